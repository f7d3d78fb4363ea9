//! What is run on machines with GPUs, over the fake library: the whole way from the driver's library to a job's GPUs.

use std::process::Command;

use anyhow::ensure;
use muster_tests::programs;

/// An application faults on a GPU, once the agent runs.
const FAULTS: &str =
    "name = \"fault\"\n[[events]]\nat_s = 2\nfault = \"xid\"\ngpu = 3\ncode = 31\n";

#[test]
fn job_gets_the_gpus_that_the_drivers_library_has_and_a_fault_of_one_is_logged()
-> anyhow::Result<()> {
    let folder = tempfile::tempdir()?;
    let scenario = folder.path().join("faults.toml");
    std::fs::write(&scenario, FAULTS)?;
    let output = Command::new(env!("CARGO_BIN_EXE_gpu-node"))
        .arg("--agent")
        .arg(programs::agent()?)
        .arg("--nvml-library")
        .arg(programs::fake_nvml()?)
        // The machine's own GPUs are none of the fake library's.
        .args(["--sysfs", "/dev/null", "--idle", "1", "--fault", "sleep 30"])
        .arg("--log")
        .arg(folder.path().join("agent.log"))
        .env("MUSTER_FAKE_NVML_PROFILE", "l40s-4")
        .env("MUSTER_FAKE_NVML_SCENARIO", &scenario)
        .output()?;
    let said = String::from_utf8_lossy(&output.stdout);
    ensure!(
        output.status.success(),
        "{said}\n{}",
        String::from_utf8_lossy(&output.stderr)
    );
    for wanted in [
        "4 GPUs: GPU-",
        "a job with 4 GPUs runs after",
        "code=31",
        "milli-cores",
    ] {
        assert!(said.contains(wanted), "{wanted}: {said}");
    }
    Ok(())
}
