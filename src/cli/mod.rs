// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The subcommands: parsing and printing only.

mod activation;
mod contract_args;
pub mod ctl;
mod disk_arg;
pub mod export;
pub mod kernel;
mod kernel_args;
mod log;
pub mod minimize;
mod qemu_args;
mod recording;
pub mod replay;
pub mod run;
pub mod scenario;
pub mod selftest;
pub mod serve;
mod shape_args;
mod speed_args;
pub mod sweep;
pub mod trace;
mod trace_state;
pub mod verify;

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::plain;
use crate::report::model::status;

/// A vhost-user-blk device that judges RWF_WRITETHROUGH.
#[derive(Parser, Debug)]
#[command(name = "wtblk", version, about)]
struct Cli {
    /// What to tell on standard error: error, warn, info, debug, trace.
    #[arg(long, global = true, value_name = "LEVEL", default_value = "warn", value_parser = log::filter)]
    log: String,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Boot a kernel, run guest tests against the device, print the verdict as KTAP.
    Run(run::RunArgs),
    /// Let every request of a test's call fail in turn, all in one boot, and print a grid.
    Sweep(sweep::SweepArgs),
    /// Serve a disk over vhost-user, beside your own QEMU.
    Serve(serve::ServeArgs),
    /// Look into a trace.
    #[command(subcommand)]
    Trace(TraceVerb),
    /// Judge a stored trace by the promises.
    Verify(verify::VerifyArgs),
    /// Cut a trace to the events that still show a finding. Status 0: they are there, and show it.
    Minimize(minimize::MinimizeArgs),
    /// Spoil recorded traces and tell how often the judge sees it.
    Selftest(selftest::SelftestArgs),
    /// Check scenario files, say in plain words what they do, print their JSON schema.
    Scenario(scenario::ScenarioArgs),
    /// Feed the requests of a recorded trace to the rules of a scenario: which would have fired.
    Replay(replay::ReplayArgs),
    /// Orders to a running device over its control socket: arm, disarm, release, status, wait.
    Ctl(ctl::CtlArgs),
    /// The reference kernel and the guest's initramfs.
    Kernel(kernel::KernelArgs),
}

#[derive(Subcommand, Debug)]
enum TraceVerb {
    /// Print a trace, one line per event.
    Show {
        /// The trace file.
        file: PathBuf,
    },
    /// Write a trace in another program's format.
    Export(export::ExportArgs),
    /// Make a trace of another program's log.
    Import(export::ImportArgs),
}

/// Parses the command line and runs; the exit status is that of `docs/architecture.md`.
pub fn main() -> ExitCode {
    let cli = match read(std::env::args_os().collect()) {
        Ok(cli) => cli,
        Err(error) => {
            let _ = error.print();
            // --help and --version are no errors.
            return ExitCode::from(if error.use_stderr() {
                status::CANNOT
            } else {
                status::HELD
            });
        }
    };
    if let Err(error) = log::start(&cli.log) {
        eprintln!("wtblk: --log {}: {error}", cli.log);
        return ExitCode::from(status::CANNOT);
    }
    let result = match cli.command {
        Command::Run(args) => args.run(),
        Command::Sweep(args) => args.run(),
        Command::Serve(args) => serve::run(&args).map(|()| status::HELD),
        Command::Trace(TraceVerb::Show { file }) => {
            trace::show(&file, &mut std::io::stdout().lock()).map(|()| 0)
        }
        Command::Trace(TraceVerb::Export(args)) => args.run(&mut std::io::stdout().lock()),
        Command::Trace(TraceVerb::Import(args)) => args.run(&mut std::io::stdout().lock()),
        Command::Verify(args) => args.run(&mut std::io::stdout().lock()),
        Command::Minimize(args) => args.run(&mut std::io::stdout().lock()),
        Command::Selftest(args) => args.run(&mut std::io::stdout().lock()),
        Command::Scenario(args) => args.run(&mut std::io::stdout().lock()),
        Command::Replay(args) => args.run(&mut std::io::stdout().lock()),
        Command::Ctl(args) => args.run(&mut std::io::stdout().lock()),
        Command::Kernel(args) => args.run(),
    };
    log::finish();
    match result {
        Ok(code) => ExitCode::from(code),
        Err(error) if is_broken_pipe(&error) => ExitCode::from(status::HELD),
        Err(error) => {
            eprintln!("wtblk: {}", plain::lines(&in_one_sentence(&error)));
            ExitCode::from(status::CANNOT)
        }
    }
}

/// The name under which management tools start a vhost-user back end (`docs/50-wtblk.json`):
/// they know nothing of subcommands.
const BACK_END: &str = "vhost-user-wtblk";

/// `wtblk serve` under that name.
#[derive(Parser, Debug)]
#[command(name = BACK_END, version, about = "Serve a disk over vhost-user, as `wtblk serve` does")]
struct BackEnd {
    /// What to tell on standard error: error, warn, info, debug, trace.
    #[arg(long, value_name = "LEVEL", default_value = "warn")]
    log: String,
    #[command(flatten)]
    serve: serve::ServeArgs,
}

/// Reads the command line.
fn read(words: Vec<OsString>) -> Result<Cli, clap::Error> {
    let name = words.first().map(Path::new).and_then(Path::file_name);
    if name.is_some_and(|name| name == BACK_END) {
        let BackEnd { log, serve } = BackEnd::try_parse_from(words)?;
        let command = Command::Serve(serve);
        return Ok(Cli { log, command });
    }
    Cli::try_parse_from(words)
}

/// The error and its causes, each said once: some name their cause themselves.
fn in_one_sentence(error: &anyhow::Error) -> String {
    let mut text = String::new();
    for cause in error.chain().map(ToString::to_string) {
        if !text.contains(&cause) {
            let colon = if text.is_empty() { "" } else { ": " };
            text = format!("{text}{colon}{cause}");
        }
    }
    text
}

/// `wtblk trace show FILE | head` is no error.
fn is_broken_pipe(error: &anyhow::Error) -> bool {
    let kind = |e: &std::io::Error| e.kind() == std::io::ErrorKind::BrokenPipe;
    error
        .chain()
        .any(|cause| cause.downcast_ref::<std::io::Error>().is_some_and(kind))
}
