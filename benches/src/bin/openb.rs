//! The published experiment of FGD; see `openb --help` and the README beside.

fn main() -> anyhow::Result<()> {
    muster_benches::openb::main()
}
