//! The program itself. What it does is tested in the packages of `tests`; with this here, cargo builds it for them.

use std::process::Command;

const PROGRAM: &str = env!("CARGO_BIN_EXE_muster-scheduler");

#[test]
fn program_says_what_it_can_do_and_refuses_what_it_cannot() {
    let help = Command::new(PROGRAM).arg("--help").output().unwrap();
    let said = String::from_utf8_lossy(&help.stdout).into_owned();
    assert!(help.status.success(), "{said}");
    for command in ["serve", "print", "simulate", "plan", "dump", "make-certs"] {
        assert!(said.contains(command), "{command} in {said}");
    }
    let wrong = Command::new(PROGRAM).arg("sevre").output().unwrap();
    let said = String::from_utf8_lossy(&wrong.stderr).into_owned();
    assert_eq!(wrong.status.code(), Some(2), "{said}");
    assert!(said.contains("sevre"), "{said}");
}
