//! What is asked for: gangs, their size, and the nodes that are there.

/// One workload on one cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Case {
    /// Short name, as on the command line.
    pub name: &'static str,
    /// Number of gangs.
    pub gangs: usize,
    /// Pods of each gang.
    pub pods: usize,
    /// GPUs of each pod.
    pub gpus: u32,
    /// Nodes with 8 GPUs each.
    pub nodes: u32,
    /// Pods are created in turn, one of each gang, instead of gang by gang.
    pub interleaved: bool,
    /// What is there when the gangs come.
    pub scene: Scene,
}

/// What is there when the gangs come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scene {
    /// The scheduler runs, the nodes are empty.
    Empty,
    /// The scheduler is started once all gangs are there; time counts from that start.
    NoScheduler,
    /// The scheduler runs and no node has a free GPU: how soon is a gang told so?
    Full,
}

/// Least number of nodes in the case `large`: its gang takes 512 of them whole.
const LARGE_NODES: u32 = 600;

/// GPUs of a node.
pub const GPUS_PER_NODE: u32 = 8;

impl Case {
    /// All cases. `nodes` is the size of the cluster in those that fit; the overload case has its
    /// own.
    pub fn all(nodes: u32) -> Vec<Case> {
        let fitting = |name, gangs, pods, gpus| Case {
            name,
            gangs,
            pods,
            gpus,
            nodes,
            interleaved: false,
            scene: Scene::Empty,
        };
        vec![
            fitting("many", 200, 16, 1),
            fitting("whole-nodes", 60, 8, 8),
            fitting("one", 1, 256, 8),
            Case {
                nodes: nodes.max(LARGE_NODES),
                ..fitting("large", 1, 512, 8)
            },
            Case {
                scene: Scene::NoScheduler,
                ..fitting("before", 200, 16, 1)
            },
            Case {
                nodes: 100,
                interleaved: true,
                ..fitting("overload", 30, 10, 4)
            },
            Case {
                scene: Scene::Full,
                ..fitting("verdict", 1, 10, 8)
            },
        ]
    }

    /// Pods of all gangs.
    pub fn pods_total(&self) -> usize {
        self.gangs.saturating_mul(self.pods)
    }

    /// Gangs that fit at the same time.
    pub fn fit(&self) -> usize {
        if self.scene == Scene::Full {
            return 0;
        }
        let per_node = GPUS_PER_NODE.checked_div(self.gpus).unwrap_or(0) as usize;
        let places = per_node.saturating_mul(self.nodes as usize);
        places.checked_div(self.pods).unwrap_or(0).min(self.gangs)
    }

    /// Whether some gangs run and others have to wait.
    pub fn is_overload(&self) -> bool {
        self.scene != Scene::Full && self.fit() < self.gangs
    }

    /// Name of a gang.
    pub fn gang(index: usize) -> String {
        format!("g{index:03}")
    }

    /// The case in words.
    pub fn title(&self) -> String {
        format!(
            "{}: {} x {} pods x {} GPUs on {} nodes{}",
            self.name,
            self.gangs,
            self.pods,
            self.gpus,
            self.nodes,
            match self.scene {
                Scene::NoScheduler => ", all there before the scheduler".to_owned(),
                Scene::Full => ", all of them full".to_owned(),
                Scene::Empty if self.is_overload() => format!(", {} fit", self.fit()),
                Scene::Empty => String::new(),
            }
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn twenty_of_thirty_gangs_fit_in_the_overload_case_none_on_full_nodes_and_all_in_the_others() {
        for case in Case::all(500) {
            let fit = match case.name {
                "overload" => 20,
                "verdict" => 0,
                _ => case.gangs,
            };
            assert_eq!(case.fit(), fit, "{}", case.title());
            assert_eq!(case.is_overload(), case.name == "overload");
        }
    }
}
