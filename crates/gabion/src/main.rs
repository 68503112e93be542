//! The program `gabion`. Under the name `mount.gabion` it is what mount(8) calls.

use std::process::ExitCode;

fn main() -> ExitCode {
    gabion::run(std::env::args_os().collect())
}
