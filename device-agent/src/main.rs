//! `muster-agent`: reports this node's GPUs to the scheduler, shows what it sees, or plays thousands of nodes.

mod cli;

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    let arguments = cli::Cli::parse();
    cli::init_logs(arguments.log_format);
    match cli::execute(arguments.command, arguments.log_format) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
