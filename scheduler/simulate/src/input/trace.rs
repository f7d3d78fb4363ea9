//! Traces of jobs: CSV files with a job in each row.
//!
//! A job of n GPUs is one gang. Of nodes with g GPUs it takes ceil(n/g) pods, which share the GPUs as
//! evenly as can be. A pod asks for [`CORES_PER_GPU`] and [`GIB_PER_GPU`] for each of its GPUs, and nodes
//! have more than that: GPUs alone decide.

use std::path::Path;
use std::sync::Arc;

use muster_core::ids::RoleName;
use muster_core::topology::TopologyRequest;
use muster_core::workload::MEMBERS_MAX;

use super::civil;
use super::table::{Row, Table, file_name};
use crate::error::Error;
use crate::random::Random;
use crate::record::as_f64;
use crate::scene::{
    GANGS_MAX, GPUS_PER_NODE_MAX, GangSpec, NODES_MAX, NodeSpec, Role, Roles, Scene, TIME_MAX_MS,
    shape,
};

/// Cores that a pod asks for with each GPU; a node has half as many again.
pub const CORES_PER_GPU: u64 = 8;

/// Memory that a pod asks for with each GPU, GiB; a node has half as much again.
pub const GIB_PER_GPU: u64 = 64;

/// Most GPUs of one job.
const GPUS_MAX: u32 = MEMBERS_MAX;

/// Where a trace comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TraceFormat {
    /// Columns `timestamp` (date and time), `num_gpus`, `duration` (seconds).
    Philly,
    /// Columns `submit_time` (milliseconds), `num_gpu`, `duration` (milliseconds).
    Muri,
}

/// How a trace is replayed.
#[derive(Clone, Debug)]
pub struct TraceOptions {
    /// Nodes. 1 to 20,000.
    pub nodes: usize,
    /// GPUs of each. 1 to 64.
    pub gpus_per_node: u32,
    /// Offered load that the times of arrival are stretched or shrunk to. 0.01 to 10.
    pub load: Option<f64>,
    /// So many jobs only, one after the other. At least 1.
    pub limit_jobs: Option<usize>,
    /// Where those begin: 0 at the first, every other number somewhere.
    pub seed: u64,
}

/// A job of a trace.
#[derive(Clone, Copy, Debug)]
struct Job {
    /// Row, from 1.
    row: usize,
    arrival_ms: u64,
    duration_ms: u64,
    gpus: u32,
}

impl TraceOptions {
    /// Whether every value is within its limits.
    fn check(&self) -> Result<(), Error> {
        if !(1..=NODES_MAX).contains(&self.nodes) {
            let limit = format!("must be 1 to {NODES_MAX}");
            return Err(Error::flag("--nodes", self.nodes, limit));
        }
        if !(1..=GPUS_PER_NODE_MAX).contains(&self.gpus_per_node) {
            let limit = format!("must be 1 to {GPUS_PER_NODE_MAX}");
            return Err(Error::flag("--gpus-per-node", self.gpus_per_node, limit));
        }
        if let Some(load) = self.load
            && !(0.01..=10.0).contains(&load)
        {
            return Err(Error::flag("--load", load, "must be 0.01 to 10"));
        }
        if let Some(limit @ 0) = self.limit_jobs {
            return Err(Error::flag("--limit-jobs", limit, "must be at least 1"));
        }
        Ok(())
    }

    fn capacity(&self) -> f64 {
        let nodes = u64::try_from(self.nodes).unwrap_or(u64::MAX);
        as_f64(nodes) * f64::from(self.gpus_per_node)
    }

    fn holds(&self, gpus: u32) -> bool {
        let nodes = u64::try_from(self.nodes).unwrap_or(u64::MAX);
        let pods = pods_of(gpus, self.gpus_per_node);
        u64::from(pods) <= nodes
    }
}

/// Reads a trace.
pub fn read(path: &Path, format: TraceFormat, options: &TraceOptions) -> Result<Scene, Error> {
    options.check()?;
    let table = Table::open(path, &columns(format), GANGS_MAX)?;
    let mut jobs = jobs(table, format)?;
    jobs.sort_by_key(|job| (job.arrival_ms, job.row));
    let mut scene = Scene {
        source: file_name(path),
        nodes: nodes(options),
        ..Scene::default()
    };
    choose(&mut jobs, options, &mut scene.notes);
    let origin = jobs.first().map_or(0, |job| job.arrival_ms);
    for job in &mut jobs {
        job.arrival_ms = job.arrival_ms.saturating_sub(origin);
    }
    if let Some(load) = options.load {
        set_load(&mut jobs, load, options, &mut scene.notes)?;
    }
    let wide = jobs.iter().filter(|job| !options.holds(job.gpus)).count();
    if wide > 0 {
        scene.notes.push(format!(
            "{wide} of {} jobs are wider than the cluster and are not submitted (gangs_impossible)",
            jobs.len()
        ));
    }
    let mut roles = Roles::default();
    scene.gangs = jobs
        .iter()
        .map(|job| gang(job, options.gpus_per_node, &mut roles))
        .collect();
    Ok(scene)
}

/// `--limit-jobs`: jobs that came one after the other, the seed says from where on.
fn choose(jobs: &mut Vec<Job>, options: &TraceOptions, notes: &mut Vec<String>) {
    let Some(limit) = options.limit_jobs.filter(|limit| *limit < jobs.len()) else {
        return;
    };
    let places = jobs.len().saturating_sub(limit).saturating_add(1);
    let drawn = usize::try_from(Random::new(options.seed).draw() >> 1).unwrap_or(usize::MAX);
    let first = match options.seed {
        0 => 0,
        _ => drawn.checked_rem(places).unwrap_or(0),
    };
    notes.push(format!(
        "{limit} of {} jobs, from job {} on in order of arrival (--limit-jobs, --seed)",
        jobs.len(),
        first.saturating_add(1)
    ));
    jobs.drain(..first);
    jobs.truncate(limit);
}

/// Stretches or shrinks the times of arrival, all by one factor, to an offered load:
///
/// ```text
///   load = sum of GPUs x duration / (GPUs of the cluster x (last arrival - first arrival))
/// ```
///
/// Jobs that are wider than the cluster do not count. Durations stay as they are.
fn set_load(
    jobs: &mut [Job],
    load: f64,
    options: &TraceOptions,
    notes: &mut Vec<String>,
) -> Result<(), Error> {
    let work: f64 = jobs
        .iter()
        .filter(|job| options.holds(job.gpus))
        .map(|job| f64::from(job.gpus) * as_f64(job.duration_ms))
        .sum();
    let span = as_f64(jobs.last().map_or(0, |job| job.arrival_ms));
    let unreachable = |why: &str| Err(Error::flag("--load", load, why));
    if span <= 0.0 {
        return unreachable("cannot be reached: all jobs arrive at the same time");
    }
    if work <= 0.0 {
        return unreachable("cannot be reached: no job that fits into the cluster takes any time");
    }
    let wanted = work / (options.capacity() * load);
    if wanted > as_f64(TIME_MAX_MS) {
        return unreachable("is too small: jobs would arrive for more than 100 years");
    }
    let factor = wanted / span;
    for job in jobs.iter_mut() {
        // Between 0 and TIME_MAX_MS.
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
        let scaled = (as_f64(job.arrival_ms) * factor).round() as u64;
        job.arrival_ms = scaled;
    }
    notes.push(format!(
        "times of arrival multiplied by {factor:.6} for an offered load of {load}"
    ));
    Ok(())
}

fn nodes(options: &TraceOptions) -> Vec<NodeSpec> {
    let width = options.nodes.saturating_sub(1).to_string().len();
    let gpus = u64::from(options.gpus_per_node);
    (0..options.nodes)
        .map(|index| NodeSpec {
            name: format!("node-{index:0width$}"),
            gpus: options.gpus_per_node,
            milli_cpu: gpus.saturating_mul(CORES_PER_GPU).saturating_mul(1500),
            memory_bytes: gpus.saturating_mul(GIB_PER_GPU).saturating_mul(3 << 29),
            labels: std::collections::BTreeMap::new(),
            absent: false,
        })
        .collect()
}

fn pods_of(gpus: u32, gpus_per_node: u32) -> u32 {
    gpus.div_ceil(gpus_per_node.max(1)).max(1)
}

fn gang(job: &Job, gpus_per_node: u32, roles: &mut Roles) -> GangSpec {
    let pods = pods_of(job.gpus, gpus_per_node);
    let each = job.gpus.checked_div(pods).unwrap_or(0);
    let larger = job.gpus.checked_rem(pods).unwrap_or(0);
    let role = |name: &str, count: u32, gpus: u32| Role {
        name: RoleName::from(name),
        count,
        shape: shape(
            gpus,
            u64::from(gpus)
                .saturating_mul(CORES_PER_GPU)
                .saturating_mul(1000),
            u64::from(gpus)
                .saturating_mul(GIB_PER_GPU)
                .saturating_mul(1 << 30),
            &std::collections::BTreeMap::new(),
        ),
    };
    let list = [
        role("Larger", larger, each.saturating_add(1)),
        role("Worker", pods.saturating_sub(larger), each),
    ];
    let list = list.into_iter().filter(|role| role.count > 0).collect();
    let topology = TopologyRequest::default();
    let (class, roles) = roles.share(list, &topology);
    GangSpec {
        name: Arc::from(format!("job-{}", job.row)),
        arrival_ms: job.arrival_ms,
        duration_ms: job.duration_ms,
        priority: 0,
        minimum: None,
        roles,
        settings: Arc::default(),
        topology,
        class,
    }
}

/// A time in some unit, as milliseconds.
fn time(row: &Row<'_>, field: &str, ms_per_unit: u32, unit: &str) -> Result<u64, Error> {
    let per_unit = f64::from(ms_per_unit);
    let most = as_f64(TIME_MAX_MS) / per_unit;
    let value: Option<f64> = row.text(field).parse().ok();
    match value.filter(|value| (0.0..=most).contains(value)) {
        // Between 0 and TIME_MAX_MS.
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
        Some(value) => Ok((value * per_unit).round() as u64),
        None => {
            let limit = format!("must be a number of {unit} from 0 to {most} (100 years)");
            Err(row.wrong(field, limit))
        }
    }
}

fn date(row: &Row<'_>, field: &str) -> Result<u64, Error> {
    civil::seconds(row.text(field))
        .map(|seconds| seconds.saturating_mul(1000))
        .ok_or_else(|| {
            row.wrong(
                field,
                "must be a date and time like 2017-10-09 06:13:03, from 1970 on",
            )
        })
}

/// Columns of arrival, GPUs and duration.
fn columns(format: TraceFormat) -> [&'static str; 3] {
    match format {
        TraceFormat::Philly => ["timestamp", "num_gpus", "duration"],
        TraceFormat::Muri => ["submit_time", "num_gpu", "duration"],
    }
}

fn jobs(mut table: Table<impl std::io::Read>, format: TraceFormat) -> Result<Vec<Job>, Error> {
    let [arrival, gpus, duration] = columns(format);
    let mut jobs = Vec::new();
    while let Some(row) = table.row()? {
        let (arrival_ms, duration_ms) = match format {
            TraceFormat::Philly => (date(&row, arrival)?, time(&row, duration, 1000, "seconds")?),
            TraceFormat::Muri => (
                time(&row, arrival, 1, "milliseconds")?,
                time(&row, duration, 1, "milliseconds")?,
            ),
        };
        jobs.push(Job {
            row: row.number,
            arrival_ms,
            duration_ms,
            gpus: row.number(gpus, 1..=GPUS_MAX)?,
        });
    }
    Ok(jobs)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn philly(text: &str) -> Result<Vec<Job>, Error> {
        let format = TraceFormat::Philly;
        let table = Table::new("t.csv", text.as_bytes(), &columns(format), GANGS_MAX)?;
        jobs(table, format)
    }

    #[test]
    fn bad_rows_name_file_line_field_value_and_limit() {
        let head = "timestamp,duration,num_gpus\n2017-10-09 06:13:03,1.5,1\n";
        let cases = [
            (
                "2017-10-09 06:13:03,60,0",
                "t.csv, line 3: num_gpus is \"0\": must be a number from 1 to 16384",
            ),
            (
                "2017-10-09 06:13:03,NaN,1",
                "t.csv, line 3: duration is \"NaN\": must be a number of seconds from 0 to \
                 3153600000 (100 years)",
            ),
            (
                "yesterday,60,1",
                "t.csv, line 3: timestamp is \"yesterday\": must be a date and time like \
                 2017-10-09 06:13:03, from 1970 on",
            ),
        ];
        for (row, wanted) in cases {
            let said = philly(&format!("{head}{row}\n")).unwrap_err().to_string();
            assert_eq!(said, wanted);
        }
        for (text, wanted) in [
            ("", "has no column timestamp"),
            ("timestamp,duration\n", "has no column num_gpus"),
            ("timestamp,duration,num_gpus\n", "has no rows"),
            (
                "timestamp,duration,duration,num_gpus\n",
                "has 2 columns duration",
            ),
            ("timestamp,duration,num_gpus\n1,2\n", "line: 2"),
        ] {
            let said = philly(text).unwrap_err().to_string();
            assert!(said.contains(wanted), "{said}");
        }
    }

    #[test]
    fn jobs_wider_than_a_node_share_their_gpus_evenly() {
        let job = |gpus| Job {
            row: 1,
            arrival_ms: 0,
            duration_ms: 1,
            gpus,
        };
        let mut roles = Roles::default();
        let mut parts = |gpus| {
            let gang = gang(&job(gpus), 8, &mut roles);
            assert_eq!(gang.gpus(), u64::from(gpus));
            gang.roles
                .iter()
                .map(|role| (role.count, role.gpus_each()))
                .collect::<Vec<_>>()
        };
        assert_eq!(parts(1), [(1, 1)]);
        assert_eq!(parts(8), [(1, 8)]);
        assert_eq!(parts(12), [(2, 6)]);
        assert_eq!(parts(13), [(1, 7), (1, 6)]);
        assert_eq!(parts(32), [(4, 8)]);
    }

    #[test]
    fn load_is_reached_by_one_factor_for_all_arrivals() {
        let options = TraceOptions {
            nodes: 2,
            gpus_per_node: 8,
            load: Some(0.5),
            limit_jobs: None,
            seed: 0,
        };
        let job = |arrival_ms, gpus| Job {
            row: 1,
            arrival_ms,
            duration_ms: 1000,
            gpus,
        };
        // The last one is wider than the cluster and does not count.
        let mut jobs = [job(0, 8), job(10, 4), job(20, 4), job(40, 64)];
        set_load(&mut jobs, 0.5, &options, &mut Vec::new()).unwrap();
        // 16,000 GPU ms over 16 GPUs at 0.5: 2,000 ms.
        let arrivals: Vec<u64> = jobs.iter().map(|job| job.arrival_ms).collect();
        assert_eq!(arrivals, [0, 500, 1000, 2000]);
        let same = &mut [job(0, 8), job(0, 8)];
        let said = set_load(same, 0.5, &options, &mut Vec::new()).unwrap_err();
        assert_eq!(
            said.to_string(),
            "--load is 0.5: cannot be reached: all jobs arrive at the same time"
        );
    }

    #[test]
    fn a_seed_chooses_which_jobs_come() {
        let drawn = |seed| {
            let mut jobs: Vec<Job> = (1..=100)
                .map(|row| Job {
                    row,
                    arrival_ms: 0,
                    duration_ms: 0,
                    gpus: 1,
                })
                .collect();
            let options = TraceOptions {
                nodes: 1,
                gpus_per_node: 8,
                load: None,
                limit_jobs: Some(10),
                seed,
            };
            choose(&mut jobs, &options, &mut Vec::new());
            assert_eq!(jobs.len(), 10);
            jobs[0].row
        };
        assert_eq!(drawn(0), 1);
        assert_ne!(drawn(1), drawn(2));
        assert_eq!(drawn(7), drawn(7));
    }
}
