//! The published experiment of FGD, over traces, policies and seeds: what is idle, beside what was published.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::{Context as _, bail};
use clap::Parser;
use muster_simulate::Error;
use muster_simulate::openb::allocation::header;
use muster_simulate::openb::{Allocation, INFLATE, PolicyKind, Setting, Trace, play};

use crate::goals::{self, Goal};

/// GPUs that had arrived where allocations are compared, percent of the cluster's: as many as there are, and
/// all of them.
const ARRIVED: [u32; 2] = [100, 130];

/// Plays the traces of a folder with several seeds and policies, and compares with what was published.
///
/// The result depends on data and seeds alone: every machine gets the same.
#[derive(Debug, Parser)]
#[command(name = "openb")]
pub struct Cli {
    /// Folder with `openb_node_list_gpu_node.csv`, `openb_pod_list_*.csv` and
    /// `expected/analysis_allo_discrete.csv`.
    #[arg(long, value_name = "DIR")]
    data: PathBuf,
    /// Policies, separated by commas: muster, fgd, bestfit, random, first-fit.
    #[arg(
        long,
        value_delimiter = ',',
        default_value = "muster,fgd,bestfit,random,first-fit"
    )]
    policy: Vec<PolicyKind>,
    /// Traces without `openb_pod_list_`, separated by commas, as `default,cpu250`; all by default.
    #[arg(long, value_delimiter = ',')]
    trace: Vec<String>,
    /// The first seed.
    #[arg(long, default_value_t = 42)]
    seed: u64,
    /// Seeds, one after the other. The published runs have 10, from 42 on.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=1_000))]
    seeds: u64,
    /// Runs at a time.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u64).range(1..=64))]
    at_once: u64,
    /// End with an error when a floor is missed, or a policy refuses a trace.
    #[arg(long)]
    strict: bool,
    /// Folder for `allocation.csv` (every run, with the columns of the published table) and `table.md`.
    #[arg(long, value_name = "DIR", default_value = "target/openb")]
    out: PathBuf,
}

/// Mean allocation of several runs at each of [`ARRIVED`], percent of all GPUs.
type Means = [f64; 2];

/// Published means by trace and policy, both by the names that the table has.
type Published = BTreeMap<(String, String), Means>;

/// What was found for one trace and policy.
#[derive(Clone, Debug, PartialEq)]
struct Row {
    trace: String,
    policy: PolicyKind,
    means: Means,
    /// Idle GPUs divided by those of published FGD.
    of_fgd: [f64; 2],
    /// Idle GPUs divided by those of the same policy as published, where it was.
    of_published: Option<[f64; 2]>,
}

impl Cli {
    /// Runs what is asked for and prints the table.
    ///
    /// # Errors
    /// Data cannot be read, a run fails, or a floor was missed and that counts.
    pub fn run(self) -> anyhow::Result<()> {
        let expected = self.data.join("expected/analysis_allo_discrete.csv");
        let text = std::fs::read_to_string(&expected)
            .with_context(|| format!("{}", expected.display()))?;
        let published = published(&text).with_context(|| format!("{}", expected.display()))?;
        let nodes = self.data.join("openb_node_list_gpu_node.csv");
        let traces: Vec<Trace> = self
            .traces()?
            .iter()
            .map(|pods| Trace::read(&nodes, pods))
            .collect::<Result<_, _>>()?;
        let (mut rows, mut table) = (Vec::new(), header());
        for policy in &self.policy {
            for trace in &traces {
                eprintln!("{} {}", policy.as_str(), trace.name);
                let runs = self.play(trace, *policy)?;
                for (setting, allocation) in &runs {
                    let gpus = trace.capacity_milli().div_euclid(1000);
                    let text = allocation.text(&trace.name, setting, gpus);
                    table.push('\n');
                    table.push_str(text.lines().nth(1).unwrap_or_default());
                }
                rows.push(row(trace, *policy, &runs, &published)?);
            }
        }
        table.push('\n');
        let shown = show(&rows);
        std::fs::create_dir_all(&self.out)?;
        std::fs::write(self.out.join("allocation.csv"), table)?;
        std::fs::write(self.out.join("table.md"), &shown)?;
        print!("{shown}");
        let goals = goals(&rows);
        if self.strict && goals.iter().any(|goal| goal.floor && !goal.is_met()) {
            bail!("a floor was missed");
        }
        Ok(())
    }

    /// Files with pods, in order of name.
    fn traces(&self) -> anyhow::Result<Vec<PathBuf>> {
        let file = |name: &str| self.data.join(format!("openb_pod_list_{name}.csv"));
        if !self.trace.is_empty() {
            return Ok(self.trace.iter().map(|name| file(name)).collect());
        }
        let folder = std::fs::read_dir(&self.data)
            .with_context(|| format!("--data is {}", self.data.display()))?;
        let mut found = Vec::new();
        for entry in folder {
            let path = entry?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            if name.starts_with("openb_pod_list_") && name.ends_with(".csv") {
                found.push(path);
            }
        }
        found.sort();
        if found.is_empty() {
            bail!(
                "--data is {}: must have files openb_pod_list_*.csv",
                self.data.display()
            );
        }
        Ok(found)
    }

    /// One trace and policy with every seed, some at a time; in order of seed.
    fn play(&self, trace: &Trace, policy: PolicyKind) -> Result<Vec<(Setting, Allocation)>, Error> {
        let settings: Vec<Setting> = (0..self.seeds)
            .map(|more| Setting {
                policy,
                inflate: INFLATE,
                seed: self.seed.wrapping_add(more),
            })
            .collect();
        let (next, found) = (AtomicUsize::new(0), Mutex::new(BTreeMap::new()));
        std::thread::scope(|scope| {
            for _ in 0..self.at_once {
                scope.spawn(|| {
                    while let Some(setting) = settings.get(next.fetch_add(1, Ordering::Relaxed)) {
                        let run = play(trace, setting, &mut |_, _| ());
                        let allocation = run.map(|run| Allocation::of(&run));
                        if let Ok(mut found) = found.lock() {
                            found.insert(setting.seed.wrapping_sub(self.seed), allocation);
                        }
                    }
                });
            }
        });
        let found = found.into_inner().unwrap_or_default();
        settings
            .into_iter()
            .zip(found.into_values())
            .map(|(setting, allocation)| Ok((setting, allocation?)))
            .collect()
    }
}

/// Reads the published table: means over its seeds.
fn published(text: &str) -> anyhow::Result<Published> {
    let mut lines = text.lines();
    if lines.next() != Some(header().as_str()) {
        bail!("line 1 is not that of a table of allocation by arrived load");
    }
    let mut sums: BTreeMap<(String, String), (Means, f64)> = BTreeMap::new();
    for (line, number) in lines.zip(2..) {
        let cells: Vec<&str> = line.split(',').collect();
        let mut values = [0.0; 2];
        for (value, arrived) in values.iter_mut().zip(ARRIVED) {
            let cell = usize::try_from(arrived).ok().and_then(|x| cells.get(5 + x));
            *value = cell
                .and_then(|cell| cell.parse::<f64>().ok())
                .filter(|value| (0.0..=100.0).contains(value))
                .with_context(|| {
                    format!("line {number}, column {arrived}: must be a number from 0 to 100")
                })?;
        }
        let name = |column: usize| cells.get(column).copied().unwrap_or_default().to_owned();
        let (sum, runs) = sums.entry((name(0), name(1))).or_default();
        for (sum, value) in sum.iter_mut().zip(values) {
            *sum += value;
        }
        *runs += 1.0;
    }
    let mean = |(sum, runs): (Means, f64)| sum.map(|sum| sum / runs);
    Ok(sums
        .into_iter()
        .map(|(key, sum)| (key, mean(sum)))
        .collect())
}

/// Means of a trace's runs beside what was published.
fn row(
    trace: &Trace,
    policy: PolicyKind,
    runs: &[(Setting, Allocation)],
    published: &Published,
) -> anyhow::Result<Row> {
    let mut means = [0.0; 2];
    for (mean, arrived) in means.iter_mut().zip(ARRIVED) {
        for (_, allocation) in runs {
            let value = allocation.at(arrived);
            let name = &trace.name;
            *mean += value.with_context(|| format!("{name}: {arrived} % have not arrived"))?;
        }
        *mean /= runs.len() as f64;
    }
    let of = |policy: PolicyKind| {
        let key = (trace.name.clone(), policy.published().to_owned());
        published.get(&key).map(|other| idle_ratio(means, *other))
    };
    let fgd = of(PolicyKind::Fgd);
    Ok(Row {
        trace: short(&trace.name).to_owned(),
        policy,
        means,
        of_fgd: fgd.with_context(|| format!("{}: nothing of FGD was published", trace.name))?,
        of_published: of(policy),
    })
}

fn idle_ratio(ours: Means, others: Means) -> [f64; 2] {
    let mut ratio = [0.0; 2];
    for (ratio, (ours, other)) in ratio.iter_mut().zip(ours.iter().zip(others)) {
        *ratio = (100.0 - ours) / (100.0 - other);
    }
    ratio
}

fn short(name: &str) -> &str {
    name.strip_prefix("openb_pod_list_").unwrap_or(name)
}

/// Geometric mean of each column; `None` without rows.
fn geometric<'a>(ratios: impl Iterator<Item = &'a [f64; 2]>) -> Option<[f64; 2]> {
    let (mut sums, mut count) = ([0.0; 2], 0.0);
    for ratio in ratios {
        for (sum, ratio) in sums.iter_mut().zip(ratio) {
            *sum += ratio.ln();
        }
        count += 1.0;
    }
    (count > 0.0).then(|| sums.map(|sum: f64| (sum / count).exp()))
}

/// Most that a published policy's geometric mean may differ from its own as published: what is compared with would
/// be something else.
const DRIFT_MAX: f64 = 0.02;

/// What Muster is held to, and what others are.
fn goals(rows: &[Row]) -> Vec<Goal> {
    let mut goals = held_to_fgd(rows);
    for policy in PolicyKind::ALL {
        let own = rows.iter().filter(|row| row.policy == policy);
        let Some(ratios) = geometric(own.filter_map(|row| row.of_published.as_ref())) else {
            continue;
        };
        for (ratio, arrived) in ratios.into_iter().zip(ARRIVED) {
            goals.push(Goal {
                floor: true,
                what: format!("{} at {arrived}, off its own as published", policy.as_str()),
                figure: (ratio - 1.0).abs(),
                most: DRIFT_MAX,
            });
        }
    }
    goals
}

/// Idle GPUs, of those that published FGD leaves.
fn held_to_fgd(rows: &[Row]) -> Vec<Goal> {
    let ours: Vec<&Row> = rows
        .iter()
        .filter(|row| row.policy == PolicyKind::Muster)
        .collect();
    let Some([at_100, at_130]) = geometric(ours.iter().map(|row| &row.of_fgd)) else {
        return Vec::new();
    };
    let mut goals = Vec::new();
    let mut add = |floor: bool, what: String, figure: f64, most: f64| {
        goals.push(Goal {
            floor,
            what,
            figure,
            most,
        });
    };
    for (figure, arrived, floor, aim) in [(at_130, 130, 0.95, 0.85), (at_100, 100, 1.0, 0.95)] {
        let what = format!("idle at {arrived}, of published FGD's, geometric mean");
        add(true, what.clone(), figure, floor);
        add(false, what, figure, aim);
    }
    for arrived in ARRIVED {
        let of = |row: &&&Row| match arrived {
            100 => row.of_fgd[0],
            _ => row.of_fgd[1],
        };
        let worst = ours.iter().max_by(|a, b| of(a).total_cmp(&of(b)));
        if let Some(row) = worst {
            let what = format!(
                "idle at {arrived}, of published FGD's, worst trace ({})",
                row.trace
            );
            add(false, what, of(&row), 1.0);
        }
    }
    goals
}

/// Every row, the geometric means and the goals.
fn show(rows: &[Row]) -> String {
    let mut text = String::from(
        "| policy | trace | at 100 | at 130 | idle at 100, of FGD's | at 130 | of its own as published, at 100 | at 130 |\n\
         |---|---|---|---|---|---|---|---|\n",
    );
    let ratios = |ratio: Option<[f64; 2]>| match ratio {
        Some([first, second]) => format!("{first:.3} | {second:.3}"),
        None => "- | -".into(),
    };
    // Writing to a String does not fail, here and below.
    for row in rows {
        let [at_100, at_130] = row.means;
        let _ = writeln!(
            text,
            "| {} | {} | {at_100:.2} | {at_130:.2} | {} | {} |",
            row.policy.as_str(),
            row.trace,
            ratios(Some(row.of_fgd)),
            ratios(row.of_published)
        );
    }
    for policy in PolicyKind::ALL {
        let of = || rows.iter().filter(|row| row.policy == policy);
        if let Some(of_fgd) = geometric(of().map(|row| &row.of_fgd)) {
            let of_published = geometric(of().filter_map(|row| row.of_published.as_ref()));
            let _ = writeln!(
                text,
                "| {} | geometric mean of {} | | | {} | {} |",
                policy.as_str(),
                of().count(),
                ratios(Some(of_fgd)),
                ratios(of_published)
            );
        }
    }
    text.push_str(&goals::table(&goals(rows)));
    text
}

/// Runs `openb`.
///
/// # Errors
/// As [`Cli::run`].
pub fn main() -> anyhow::Result<()> {
    Cli::parse().run()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    /// A published table: trace, policy and allocation at 100 and 130 of each run.
    fn table(runs: &[(&str, &str, [&str; 2])]) -> String {
        let mut text = header();
        for (trace, policy, [at_100, at_130]) in runs {
            let mut cells = vec!["50.0"; 131];
            (cells[100], cells[130]) = (at_100, at_130);
            let _ = write!(
                text,
                "\nopenb_pod_list_{trace},{policy},1.3,42,8,{}",
                cells.join(",")
            );
        }
        text
    }

    fn data(folder: &Path, published: &str) {
        std::fs::create_dir_all(folder.join("expected")).unwrap();
        let write = |name: &str, text: &str| std::fs::write(folder.join(name), text).unwrap();
        write("expected/analysis_allo_discrete.csv", published);
        let nodes = "sn,cpu_milli,memory_mib,gpu,model\nn,4000,1024,8,T4\nm,1000,1024,2,T4\n";
        write("openb_node_list_gpu_node.csv", nodes);
        for (name, gpu_milli) in [("whole", 1000), ("shares", 500)] {
            let mut pods = String::from("name,cpu_milli,memory_mib,num_gpu,gpu_milli\n");
            for i in 0..8 {
                pods += &format!("p{i},1000,1,1,{gpu_milli}\n");
            }
            write(&format!("openb_pod_list_{name}.csv"), &pods);
        }
    }

    #[test]
    fn a_table_is_read_as_means_over_seeds_and_bad_cells_are_named() {
        let text = table(&[
            ("a", "06-FGD", ["90.0", "94.0"]),
            ("a", "06-FGD", ["92.0", "96.0"]),
            ("a", "05-BestFit", ["80.0", "80.5"]),
        ]);
        let found = published(&text).unwrap();
        let of = |policy: &str| found[&("openb_pod_list_a".to_owned(), policy.to_owned())];
        assert_eq!(
            (of("06-FGD"), of("05-BestFit")),
            ([91.0, 95.0], [80.0, 80.5])
        );
        let said = |text: &str| published(text).unwrap_err().to_string();
        assert!(said("workload,seed\n").contains("line 1 is not"));
        let text = table(&[
            ("a", "06-FGD", ["90.0", "94.0"]),
            ("a", "06-FGD", ["x", "1.0"]),
        ]);
        assert_eq!(
            said(&text),
            "line 3, column 100: must be a number from 0 to 100"
        );
        let text = table(&[("a", "06-FGD", ["90.0", "940.0"])]);
        assert_eq!(
            said(&text),
            "line 2, column 130: must be a number from 0 to 100"
        );
    }

    /// 10 GPUs and 5 cores, pods with a core each: half of the GPUs stay idle; where each pod has half a GPU, three
    /// quarters.
    #[test]
    fn rows_are_those_worked_out_by_hand_and_the_same_for_any_number_at_once() {
        let folder = tempfile::tempdir().unwrap();
        let text = table(&[
            ("whole", "06-FGD", ["60.0", "75.0"]),
            ("shares", "06-FGD", ["70.0", "70.0"]),
            ("whole", "01-Random", ["50.0", "50.0"]),
        ]);
        data(folder.path(), &text);
        let run = |at_once: &str| {
            let out = folder.path().join(at_once);
            let data = folder.path();
            let words = ["openb", "--seeds", "5", "--at-once", at_once, "--data"];
            let line = words.iter().map(|word| (*word).into());
            let line = line.chain([data.into(), "--out".into(), out.clone().into()]);
            let line: Vec<std::ffi::OsString> = line.collect();
            Cli::try_parse_from(line).unwrap().run().unwrap();
            let read = |name: &str| std::fs::read_to_string(out.join(name)).unwrap();
            (read("table.md"), read("allocation.csv"))
        };
        let (shown, rows) = run("1");
        assert_eq!((shown.clone(), rows.clone()), run("3"));
        for wanted in [
            "| fgd | whole | 50.00 | 50.00 | 1.250 | 2.000 | 1.250 | 2.000 |",
            "| fgd | shares | 25.00 | 25.00 | 2.500 | 2.500 | 2.500 | 2.500 |",
            "| random | whole | 50.00 | 50.00 | 1.250 | 2.000 | 1.000 | 1.000 |",
            "| first-fit | geometric mean of 2 | | | 1.768 | 2.236 | - | - |",
            "| muster | geometric mean of 2 | | | 1.768 | 2.236 | - | - |",
            "floor MISSED  idle at 130, of published FGD's, geometric mean",
            "floor MISSED  fgd at 100, off its own as published",
            "floor met     random at 100, off its own as published",
            "aim MISSED  idle at 100, of published FGD's, worst trace (shares)",
        ] {
            assert!(shown.contains(wanted), "{wanted}\n{shown}");
        }
        // 5 seeds of 2 traces and 5 policies.
        assert_eq!(rows.lines().count(), 1 + 50);
        assert_eq!(rows.lines().next(), Some(header().as_str()));
    }
}
