//! Reading nodes and pods. Columns: `sn`, `cpu_milli`, `memory_mib`, `gpu`, `model`; and `name`,
//! `cpu_milli`, `memory_mib`, `num_gpu`, `gpu_milli`, and where there is one `gpu_spec`.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

use super::{ARRIVALS_MAX, GPUS_MAX, MILLI};
use crate::error::Error;
use crate::input::table::{Row, Table};
use crate::scene::NODES_MAX;

/// Most thousandths of a core, of a node or of a pod.
const CPU_MILLI_MAX: u32 = 1_000_000;

/// Most memory of a node or of a pod, MiB.
const MEMORY_MIB_MAX: u32 = 100_000_000;

/// Most GPU models of the nodes together: a request has a bit for each.
const MODELS_MAX: usize = 64;

/// Longest name of a node, pod or model, bytes: what Kubernetes allows for a label's value is less, for an
/// object's name no more.
const NAME_MAX: usize = 253;

/// A node, empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Machine {
    /// Name.
    pub name: Arc<str>,
    /// Its CPU, thousandths of a core.
    pub cpu_milli: u32,
    /// Its memory, MiB.
    pub memory_mib: u32,
    /// Its GPUs; at most [`GPUS_MAX`].
    pub gpus: usize,
    /// Position of their model in [`Trace::models`]; without GPUs nothing asks for it.
    pub model: usize,
}

/// What a pod asks for.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Request {
    /// CPU, thousandths of a core.
    pub cpu_milli: u32,
    /// Memory, MiB.
    pub memory_mib: u32,
    /// GPUs; at most [`GPUS_MAX`].
    pub gpus: usize,
    /// Thousandths of each of them: less than [`MILLI`] for a share of one GPU, 0 without GPUs.
    pub gpu_milli: u32,
    /// `gpu_spec`: names of the models that will do, with `|` between them; empty for any.
    pub spec: Arc<str>,
    /// The same as a bit for each of [`Trace::models`].
    pub accepted: u64,
}

impl Request {
    /// Thousandths of GPUs in all.
    pub fn milli(&self) -> u64 {
        let gpus = u64::try_from(self.gpus).unwrap_or(u64::MAX);
        gpus.saturating_mul(u64::from(self.gpu_milli))
    }

    /// Whether it wants a part of one GPU.
    pub fn is_share(&self) -> bool {
        self.gpus == 1 && self.gpu_milli < MILLI
    }

    /// Whether GPUs of a model will do.
    pub fn accepts(&self, model: usize) -> bool {
        self.gpus == 0 || model >= MODELS_MAX || (self.accepted >> model) & 1 == 1
    }
}

/// A pod of the trace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pod {
    /// Name.
    pub name: Arc<str>,
    /// Position of what it asks for in [`Trace::requests`].
    pub request: usize,
}

/// Nodes and pods as they were read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trace {
    /// Name of the pods' file, without its ending.
    pub name: String,
    /// The nodes, in order of name.
    pub nodes: Vec<Machine>,
    /// GPU models of the nodes, in order of name.
    pub models: Vec<Arc<str>>,
    /// Every different request.
    pub requests: Vec<Request>,
    /// The pods, in order of name.
    pub pods: Vec<Pod>,
}

impl Trace {
    /// Reads both tables.
    ///
    /// # Errors
    /// A file cannot be read, lacks a column, has a value outside its limits or a name twice; the error says
    /// where. Nodes without any GPU, or pods of which none asks for one, have no allocation to speak of.
    pub fn read(nodes: &Path, pods: &Path) -> Result<Self, Error> {
        let stem = pods.file_stem().unwrap_or_default();
        let name = stem.to_string_lossy().into_owned();
        let machines = read_nodes(Table::open(nodes, &NODE_COLUMNS, NODES_MAX)?)?;
        Self::with_pods(
            name,
            machines,
            Table::open(pods, &POD_COLUMNS, ARRIVALS_MAX)?,
        )
    }

    fn with_pods(
        name: String,
        (nodes, models): (Vec<Machine>, Vec<Arc<str>>),
        mut table: Table<impl std::io::Read>,
    ) -> Result<Self, Error> {
        let mut known: BTreeMap<Request, usize> = BTreeMap::new();
        let mut names = BTreeSet::new();
        let mut pods = Vec::new();
        let has_spec = table.has("gpu_spec");
        while let Some(row) = table.row()? {
            let request = request(&row, has_spec, &models)?;
            let next = known.len();
            pods.push(Pod {
                name: unique(&row, "name", &mut names)?,
                request: *known.entry(request).or_insert(next),
            });
        }
        let mut requests: Vec<(usize, Request)> = known.into_iter().map(|(r, i)| (i, r)).collect();
        requests.sort_by_key(|(position, _)| *position);
        let requests: Vec<Request> = requests.into_iter().map(|(_, request)| request).collect();
        if requests.iter().all(|request| request.gpus == 0) {
            return Err(table.wrong("has no pod that asks for a GPU"));
        }
        pods.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(Self {
            name,
            nodes,
            models,
            requests,
            pods,
        })
    }

    /// Thousandths of all GPUs of the nodes.
    pub fn capacity_milli(&self) -> u64 {
        self.nodes.iter().fold(0, |sum: u64, node| {
            let gpus = u64::try_from(node.gpus).unwrap_or(u64::MAX);
            sum.saturating_add(gpus.saturating_mul(u64::from(MILLI)))
        })
    }

    /// What a pod asks for.
    pub fn request_of(&self, pod: usize) -> Option<(usize, &Request)> {
        let position = self.pods.get(pod)?.request;
        Some((position, self.requests.get(position)?))
    }
}

const NODE_COLUMNS: [&str; 5] = ["sn", "cpu_milli", "memory_mib", "gpu", "model"];

const POD_COLUMNS: [&str; 5] = ["name", "cpu_milli", "memory_mib", "num_gpu", "gpu_milli"];

/// A name that no row before had.
fn unique(row: &Row<'_>, field: &str, names: &mut BTreeSet<Arc<str>>) -> Result<Arc<str>, Error> {
    let name: Arc<str> = Arc::from(row.text(field));
    if !(1..=NAME_MAX).contains(&name.len()) {
        return Err(row.wrong(field, format!("must have 1 to {NAME_MAX} bytes")));
    }
    if !names.insert(Arc::clone(&name)) {
        return Err(row.wrong(field, "must differ from that of every row before"));
    }
    Ok(name)
}

type Machines = (Vec<Machine>, Vec<Arc<str>>);

fn read_nodes(mut table: Table<impl std::io::Read>) -> Result<Machines, Error> {
    let gpus_max = u32::try_from(GPUS_MAX).unwrap_or(u32::MAX);
    let (mut names, mut models) = (BTreeSet::new(), BTreeSet::new());
    let mut read: Vec<(Machine, Arc<str>)> = Vec::new();
    while let Some(row) = table.row()? {
        let gpus = row.number("gpu", 0..=gpus_max)?;
        let model: Arc<str> = Arc::from(if gpus == 0 { "" } else { row.text("model") });
        if gpus > 0 && (!(1..=NAME_MAX).contains(&model.len()) || model.contains('|')) {
            let limit = format!("must have 1 to {NAME_MAX} bytes, and no |, where gpu is not 0");
            return Err(row.wrong("model", limit));
        }
        if gpus > 0 && models.insert(Arc::clone(&model)) && models.len() > MODELS_MAX {
            let limit = format!("must be one of at most {MODELS_MAX} models in all");
            return Err(row.wrong("model", limit));
        }
        let machine = Machine {
            name: unique(&row, "sn", &mut names)?,
            cpu_milli: row.number("cpu_milli", 0..=CPU_MILLI_MAX)?,
            memory_mib: row.number("memory_mib", 0..=MEMORY_MIB_MAX)?,
            gpus: usize::try_from(gpus).unwrap_or(GPUS_MAX),
            model: 0,
        };
        read.push((machine, model));
    }
    if models.is_empty() {
        return Err(table.wrong("has no node with a GPU"));
    }
    let models: Vec<Arc<str>> = models.into_iter().collect();
    for (machine, model) in &mut read {
        machine.model = models.binary_search(model).unwrap_or(MODELS_MAX);
    }
    let mut machines: Vec<Machine> = read.into_iter().map(|(machine, _)| machine).collect();
    machines.sort_by(|a, b| a.name.cmp(&b.name));
    Ok((machines, models))
}

fn request(row: &Row<'_>, has_spec: bool, models: &[Arc<str>]) -> Result<Request, Error> {
    let gpus_max = u32::try_from(GPUS_MAX).unwrap_or(u32::MAX);
    let gpus = row.number("num_gpu", 0..=gpus_max)?;
    let gpu_milli = row.number("gpu_milli", 0..=MILLI)?;
    match gpus {
        0 if gpu_milli > 0 => return Err(row.wrong("gpu_milli", "must be 0 where num_gpu is 0")),
        1 if gpu_milli == 0 => {
            return Err(row.wrong("gpu_milli", "must be 1 to 1000 where num_gpu is 1"));
        }
        2.. if gpu_milli != MILLI => {
            let limit = "must be 1000 where num_gpu is more than 1: only one GPU can be shared";
            return Err(row.wrong("gpu_milli", limit));
        }
        _ => {}
    }
    // As in data/pod_csv_to_yaml.py: empty names do not count, and pods without GPUs name none.
    let text = if has_spec && gpus > 0 {
        row.text("gpu_spec")
    } else {
        ""
    };
    let names: Vec<&str> = text.split('|').filter(|name| !name.is_empty()).collect();
    let accepted = match names.is_empty() {
        true => u64::MAX,
        false => models
            .iter()
            .zip(0u32..)
            .filter(|(model, _)| names.contains(&&***model))
            .fold(0, |bits, (_, position)| {
                bits | 1u64.checked_shl(position).unwrap_or(0)
            }),
    };
    Ok(Request {
        cpu_milli: row.number("cpu_milli", 0..=CPU_MILLI_MAX)?,
        memory_mib: row.number("memory_mib", 0..=MEMORY_MIB_MAX)?,
        gpus: usize::try_from(gpus).unwrap_or(GPUS_MAX),
        gpu_milli,
        spec: Arc::from(names.join("|")),
        accepted,
    })
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// Nodes and pods as rows of their tables, without the heads.
    pub(in crate::openb) fn read(nodes: &str, pods: &str) -> Result<Trace, Error> {
        let nodes = format!("sn,cpu_milli,memory_mib,gpu,model\n{nodes}");
        let pods = format!("name,cpu_milli,memory_mib,num_gpu,gpu_milli,gpu_spec\n{pods}");
        let nodes = Table::new("nodes.csv", nodes.as_bytes(), &NODE_COLUMNS, NODES_MAX)?;
        let pods = Table::new("pods.csv", pods.as_bytes(), &POD_COLUMNS, ARRIVALS_MAX)?;
        Trace::with_pods("pods".into(), read_nodes(nodes)?, pods)
    }

    #[test]
    fn bad_values_name_file_line_column_value_and_limit() {
        let (node, pod) = ("n,8000,1024,2,T4\n", "p,1000,1,1,500,\n");
        let pods = [
            (
                "p,x,1,1,500,\n",
                "cpu_milli is \"x\": must be a number from 0 to 1000000",
            ),
            (
                "p,1,1,9,1000,\n",
                "num_gpu is \"9\": must be a number from 0 to 8",
            ),
            (
                "p,1,1,1,1001,\n",
                "gpu_milli is \"1001\": must be a number from 0 to 1000",
            ),
            (
                "p,1,1,1,0,\n",
                "gpu_milli is \"0\": must be 1 to 1000 where num_gpu is 1",
            ),
            (
                "p,1,1,0,5,\n",
                "gpu_milli is \"5\": must be 0 where num_gpu is 0",
            ),
            (
                "p,1,1,2,500,\n",
                "gpu_milli is \"500\": must be 1000 where num_gpu is more than 1",
            ),
            (
                "p,1,-1,1,500,\n",
                "memory_mib is \"-1\": must be a number from 0 to 100000000",
            ),
            (",1,1,1,500,\n", "name is \"\": must have 1 to 253 bytes"),
        ];
        for (row, wanted) in pods {
            let said = read(node, &format!("a,1,1,1,1,\n{row}")).unwrap_err();
            let said = said.to_string();
            let place = "pods.csv, line 3: ";
            assert!(
                said.starts_with(place) && said.contains(wanted),
                "{said}, not {wanted}"
            );
        }
        let nodes = [
            ("n,1,1,9,T4\n", "gpu is \"9\": must be a number from 0 to 8"),
            ("n,1,1,1,\n", "model is \"\": must have 1 to 253 bytes"),
            (
                "n,1,1,1,A|B\n",
                "model is \"A|B\": must have 1 to 253 bytes, and no |",
            ),
            (
                "a,1,1,1,T4\n",
                "sn is \"a\": must differ from that of every row before",
            ),
        ];
        for (row, wanted) in nodes {
            let said = read(&format!("a,1,1,1,T4\n{row}"), pod).unwrap_err();
            let said = said.to_string();
            let place = "nodes.csv, line 3: ";
            assert!(
                said.starts_with(place) && said.contains(wanted),
                "{said}, not {wanted}"
            );
        }
        let whole = [
            (read("n,1,1,0,\n", pod), "nodes.csv: has no node with a GPU"),
            (
                read(node, "p,1,1,0,0,\n"),
                "pods.csv: has no pod that asks for a GPU",
            ),
            (read("", pod), "nodes.csv: has no rows"),
        ];
        for (result, wanted) in whole {
            assert_eq!(result.unwrap_err().to_string(), wanted);
        }
    }

    #[test]
    fn models_that_will_do_are_those_named_and_any_where_none_is() {
        let nodes = "b,1,1,1,T4\na,1,1,8,G2\nc,1,1,0,\n";
        let pods = "z,1,1,1,500,|T4||A10\ny,1,1,1,500,\nx,1,1,0,0,T4\nw,1,1,1,500,H100\n";
        let trace = read(nodes, pods).unwrap();
        assert_eq!(trace.models, [Arc::from("G2"), Arc::from("T4")]);
        let names: Vec<&str> = trace.nodes.iter().map(|node| &*node.name).collect();
        assert_eq!(names, ["a", "b", "c"]);
        let accepts: Vec<(&str, &str, [bool; 2])> = trace
            .pods
            .iter()
            .map(|pod| {
                let request = &trace.requests[pod.request];
                let accepts = [request.accepts(0), request.accepts(1)];
                (&*pod.name, &*request.spec, accepts)
            })
            .collect();
        assert_eq!(
            accepts,
            [
                ("w", "H100", [false, false]),
                ("x", "", [true, true]),
                ("y", "", [true, true]),
                ("z", "T4|A10", [false, true]),
            ]
        );
        assert_eq!(trace.capacity_milli(), 9000);
    }
}
