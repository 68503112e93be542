//! `gabion completions`: what a shell needs to complete the commands of this program.

use clap::{Command, CommandFactory};
use clap_complete::Shell;

use crate::args::{self, Cli};
use crate::failure::{Failure, Result};
use crate::print;

/// A command without what its help does not show, which the scripts would offer.
fn shown(command: &Command) -> Command {
    // The parser keeps names that live as long as the program, and does not give them out.
    let name: &'static str = command.get_name().to_owned().leak();
    let arguments = command.get_arguments().filter(|argument| !argument.is_hide_set()).cloned();
    let below = command.get_subcommands().filter(|command| !command.is_hide_set()).map(shown);
    let mut copy = Command::new(name).args(arguments).subcommands(below);
    if let Some(about) = command.get_about() {
        copy = copy.about(about.clone());
    }
    copy
}

/// Runs the command.
pub fn run(args: &args::Completions) -> Result<()> {
    let shell = match args.shell {
        args::Shell::Bash => Shell::Bash,
        args::Shell::Zsh => Shell::Zsh,
        args::Shell::Fish => Shell::Fish,
    };
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut shown(&Cli::command()), "gabion", &mut script);
    let script = String::from_utf8(script);
    let script = script.map_err(|error| Failure::of("cannot make the script", &error))?;
    print::line(script.trim_end())
}
