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
}

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
        };
        vec![
            fitting("many", 200, 16, 1),
            fitting("whole-nodes", 60, 8, 8),
            fitting("one", 1, 256, 8),
            Case {
                name: "overload",
                gangs: 30,
                pods: 10,
                gpus: 4,
                nodes: 100,
                interleaved: true,
            },
        ]
    }

    /// Pods of all gangs.
    pub fn pods_total(&self) -> usize {
        self.gangs.saturating_mul(self.pods)
    }

    /// Gangs that fit at the same time.
    pub fn fit(&self) -> usize {
        let per_node = GPUS_PER_NODE.checked_div(self.gpus).unwrap_or(0) as usize;
        let places = per_node.saturating_mul(self.nodes as usize);
        places.checked_div(self.pods).unwrap_or(0).min(self.gangs)
    }

    /// Whether some gangs have to wait.
    pub fn is_overload(&self) -> bool {
        self.fit() < self.gangs
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
            if self.is_overload() {
                format!(", {} fit", self.fit())
            } else {
                String::new()
            }
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn twenty_of_thirty_gangs_fit_in_the_overload_case_and_all_in_the_others() {
        for case in Case::all(500) {
            let fit = if case.name == "overload" {
                20
            } else {
                case.gangs
            };
            assert_eq!(case.fit(), fit, "{}", case.title());
            assert_eq!(case.is_overload(), case.name == "overload");
        }
    }
}
