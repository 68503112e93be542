//! `gabion completions`: what a shell needs to complete the commands of this program.

use clap::CommandFactory;
use clap_complete::Shell;

use crate::args::{self, Cli};
use crate::failure::{Failure, Result};
use crate::print;

/// Runs the command.
pub fn run(args: &args::Completions) -> Result<()> {
    let shell = match args.shell {
        args::Shell::Bash => Shell::Bash,
        args::Shell::Zsh => Shell::Zsh,
        args::Shell::Fish => Shell::Fish,
    };
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "gabion", &mut script);
    let script = String::from_utf8(script);
    let script = script.map_err(|error| Failure::of("cannot make the script", &error))?;
    print::line(script.trim_end())
}
