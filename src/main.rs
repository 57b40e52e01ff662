// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The `wtblk` command.

use std::io::IsTerminal;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use tracing_subscriber::EnvFilter;
use wtblk::cli;

/// Bad input, or something that could not be run (`docs/architecture.md`, "Results").
const COULD_NOT_RUN: u8 = 2;

/// A vhost-user-blk device that judges RWF_WRITETHROUGH.
#[derive(Parser, Debug)]
#[command(version)]
struct Cli {
    /// What to tell on standard error: error, warn, info, debug, trace
    #[arg(long, global = true, value_name = "LEVEL", default_value = "warn")]
    log: String,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    Serve(cli::serve::ServeArgs),
}

fn main() -> ExitCode {
    let args = Cli::parse();
    let filter = match EnvFilter::try_new(&args.log) {
        Ok(filter) => filter,
        Err(error) => return fail(&format!("--log {}: {error}", args.log)),
    };
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .init();
    let result = match &args.command {
        Command::Serve(args) => cli::serve::run(args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(&format!("{error:#}")),
    }
}

fn fail(why: &str) -> ExitCode {
    eprintln!("wtblk: {why}");
    ExitCode::from(COULD_NOT_RUN)
}
