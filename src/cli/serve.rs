// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `wtblk serve`: the device alone.

use std::io;
use std::num::{IntErrorKind, ParseIntError};
use std::os::fd::RawFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal;
use nix::unistd::getppid;

use super::activation;
use super::disk_arg::{self, DiskArg};
use super::qemu_args::{self, Disks};
use super::recording::RecordingArgs;
use super::shape_args::ShapeArgs;
use super::speed_args::SpeedArgs;
use crate::device::{Address, Backing, MARKS_PER_SECOND, ServeConfig, Settings, serve};
use crate::harness::qemu::Qemu;
use crate::sandbox::Sandbox;

/// Serve a disk (and a mark disk) over vhost-user, until SIGINT, SIGTERM or SIGHUP.
#[derive(Args, Debug)]
pub struct ServeArgs {
    /// Socket to make for the front end of the disk under test
    #[arg(
        long,
        alias = "socket-path",
        value_name = "PATH",
        conflicts_with = "fd"
    )]
    socket: Option<PathBuf>,
    /// Inherited socket instead, listening or connected
    #[arg(long, value_name = "N")]
    fd: Option<RawFd>,
    /// Socket to make for the front end of the mark disk
    #[arg(long, value_name = "PATH", conflicts_with = "mark_fd")]
    mark_socket: Option<PathBuf>,
    /// Inherited socket instead, listening or connected
    #[arg(long, value_name = "N")]
    mark_fd: Option<RawFd>,
    /// Raw image file
    #[arg(
        long,
        alias = "blk-file",
        value_name = "FILE",
        conflicts_with_all = ["memory", "null"]
    )]
    image: Option<PathBuf>,
    /// Create the image with this size where it does not exist (4096, 512M, 1GiB)
    #[arg(
        long,
        value_name = "SIZE",
        value_parser = size,
        requires = "image",
        // What is in conflict with an image would excuse its absence.
        conflicts_with_all = ["memory", "null"]
    )]
    size: Option<u64>,
    /// Take no lock of images: somebody else sees to it that each has one writer
    #[arg(long)]
    no_lock: bool,
    /// A disk in memory of this size instead
    #[arg(long, value_name = "SIZE", value_parser = size)]
    memory: Option<u64>,
    /// A disk of this size that stores nothing: for benchmarks
    #[arg(long, value_name = "SIZE", value_parser = size, conflicts_with = "memory")]
    null: Option<u64>,
    /// A disk beside the disk under test: name=NAME,socket=PATH,memory=SIZE (or image=FILE)
    #[arg(long, value_name = "KEY=VALUE,...", value_parser = disk_arg::parse)]
    disk: Vec<DiskArg>,
    /// Scenario file; several are merged
    #[arg(long, value_name = "FILE")]
    scenario: Vec<PathBuf>,
    /// Record every event in this file
    #[arg(long, value_name = "FILE")]
    trace: Option<PathBuf>,
    /// Go on with the trace that a killed `serve` has left there, instead of making it anew
    #[arg(long, requires = "trace")]
    continue_trace: bool,
    #[command(flatten)]
    recording: RecordingArgs,
    #[command(flatten)]
    speed: SpeedArgs,
    /// Make a control socket, for `wtblk ctl`
    #[arg(long, value_name = "PATH")]
    control: Option<PathBuf>,
    /// Keep what was not flushed out of the image until it is (or the disk ends in order)
    #[arg(long)]
    volatile_cache: bool,
    /// What was never written (holes of the image) reads as poison, not as zeros
    #[arg(long)]
    poison: bool,
    /// Seed of the scenario's random choices
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    /// Marks that are taken in a second; more of them wait
    #[arg(long, value_name = "N", default_value_t = MARKS_PER_SECOND, value_parser = clap::value_parser!(u32).range(1..))]
    marks_per_second: u32,
    /// Give up, once all is open, what serving does not take: opening files, system calls. `on` says
    /// what the kernel lacks and goes on, `require` refuses
    #[arg(long, value_name = "HOW", value_enum, default_value_t = SandboxArg::On)]
    sandbox: SandboxArg,
    /// Print the QEMU arguments that go with the other options, and end
    #[arg(long)]
    print_qemu_args: bool,
    /// Print what this back end can do, as JSON, and end
    #[arg(long)]
    print_capabilities: bool,
    /// End when the process that started this one does
    #[arg(long, hide = true)]
    die_with_parent: bool,
    // Last: its heading is that of all options after it.
    #[command(flatten)]
    shape: ShapeArgs,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum SandboxArg {
    On,
    Off,
    Require,
}

impl From<SandboxArg> for Sandbox {
    fn from(arg: SandboxArg) -> Sandbox {
        match arg {
            SandboxArg::On => Sandbox::On,
            SandboxArg::Off => Sandbox::Off,
            SandboxArg::Require => Sandbox::Require,
        }
    }
}

/// Runs the subcommand.
pub fn run(args: &ServeArgs) -> Result<()> {
    if args.print_capabilities {
        let features = ["read-only", "blk-file"];
        println!(
            "{}",
            serde_json::json!({"type": "block", "features": features})
        );
        return Ok(());
    }
    if args.die_with_parent {
        follow_parent()?;
    }
    // A file beyond `ulimit -f` is the error of a request then, and no end of the process.
    let told = Arc::default();
    signal_hook::flag::register(signal_hook::consts::SIGXFSZ, told)
        .context("cannot catch SIGXFSZ")?;
    let config = config(args)?;
    if args.print_qemu_args {
        print!("{}", qemu_args(&config)?);
        return Ok(());
    }
    serve(config)
}

fn config(args: &ServeArgs) -> Result<ServeConfig> {
    let mut socket = address(&args.socket, args.fd);
    let mut mark_socket = address(&args.mark_socket, args.mark_fd);
    // What a service manager hands over counts where no option says otherwise.
    let names: Vec<&str> = args.disk.iter().map(|d| d.name.as_str()).collect();
    let handed = activation::handed(&names, socket.is_none())?;
    if socket.is_none() {
        socket = handed.data.map(Address::Fd);
        mark_socket = mark_socket.or(handed.mark.map(Address::Fd));
    }
    let Some(socket) = socket else {
        bail!("where does the front end connect? Give --socket PATH or --fd N");
    };
    let mut more = Vec::new();
    for disk in &args.disk {
        let name = &disk.name;
        let given = handed.more.iter().find(|(other, _)| other == name);
        let handed = given.map(|(_, fd)| Address::Fd(*fd));
        let Some(socket) = disk.socket.clone().or(handed) else {
            bail!(
                "disk {name}: where does its front end connect? Give socket=PATH or fd=N, or hand a socket named {name} over"
            );
        };
        more.push(disk.with(socket));
    }
    let backing = match (&args.image, args.memory, args.null) {
        (Some(image), ..) => Backing::Image(image.clone(), args.size),
        (None, Some(size), _) => Backing::Memory(size),
        (None, None, Some(size)) => Backing::Null(size),
        (None, None, None) => Backing::Scenario,
    };
    let image = |backing: &Backing| matches!(backing, Backing::Image(..));
    if args.speed.asks_for_aio() && !image(&backing) && !more.iter().any(|d| image(&d.backing)) {
        bail!("--aio says how an image is read and written, and there is none");
    }
    if let (None, Some(option)) = (&args.trace, args.recording.for_a_trace()) {
        bail!("{option} says what goes into a trace, and there is none (--trace PATH)");
    }
    Ok(ServeConfig {
        socket,
        mark_socket,
        backing,
        more,
        scenarios: args.scenario.clone(),
        trace: args.trace.clone(),
        continue_trace: args.continue_trace,
        recording: args.recording.recording(),
        seed: args.seed,
        control: args.control.clone(),
        volatile_cache: args.volatile_cache,
        poison: args.poison,
        poll: args.speed.poll(),
        aio: args.speed.aio(),
        unlocked: args.no_lock,
        sandbox: args.sandbox.into(),
        marks_per_second: args.marks_per_second,
        shape: args.shape.shape(),
        plans: None,
        wrap: None,
        kept: Vec::new(),
        end: None,
    })
}

fn address(path: &Option<PathBuf>, fd: Option<RawFd>) -> Option<Address> {
    let path = path.clone().map(Address::Path);
    path.or(fd.map(Address::Fd))
}

fn qemu_args(config: &ServeConfig) -> Result<String> {
    let settings = Settings::of(config)?;
    let absolute = |address: &Address| match address {
        Address::Path(path) => {
            std::path::absolute(path).with_context(|| format!("{}", path.display()))
        }
        Address::Fd(_) => bail!("QEMU needs a path to connect to: give --socket, not --fd"),
    };
    let socket = absolute(&config.socket)?;
    let mark_socket = config.mark_socket.as_ref().map(absolute).transpose()?;
    let mut more = Vec::new();
    for (name, address, disk) in &settings.more {
        more.push((name.clone(), absolute(address)?, disk.queues()));
    }
    let qemu = Qemu::find(None).ok();
    if qemu.is_none() {
        eprintln!(
            "no QEMU was found: how its option to connect anew is spelt is not known, and a guest with these arguments does not outlive this process (reconnect-ms=100 since QEMU 9.2, reconnect=1 before)"
        );
    }
    Ok(qemu_args::text(&Disks {
        reconnect: qemu.as_ref().map(Qemu::reconnect),
        socket: &socket,
        mark_socket: mark_socket.as_deref().map(Path::new),
        queues: settings.queues(),
        queue_size: settings.shape.queue_size,
        more: &more,
    }))
}

/// The kernel sends SIGTERM when the parent (its thread that started us) ends.
fn follow_parent() -> io::Result<()> {
    let parent = getppid();
    set_pdeathsig(Signal::SIGTERM)?;
    // It may have ended before the kernel was told.
    if getppid() != parent || parent.as_raw() == 1 {
        return Err(io::Error::other("--die-with-parent: the parent is gone"));
    }
    Ok(())
}

/// A size: bytes, or a number with K, M, G or T (KiB, MiB, GiB, TiB; P and E too), always powers of 1024.
pub(super) fn size(text: &str) -> Result<u64, String> {
    let bad = || format!("'{text}' is no size, expected bytes (one or more) or 64K, 512M, 1GiB");
    let huge = || format!("'{text}' is too large, expected less than 16 EiB");
    let digits = text.find(|c: char| !c.is_ascii_digit());
    let (number, unit) = text.split_at(digits.unwrap_or(text.len()));
    let shift = match unit {
        "" | "B" => 0,
        "K" | "KiB" => 10,
        "M" | "MiB" => 20,
        "G" | "GiB" => 30,
        "T" | "TiB" => 40,
        "P" | "PiB" => 50,
        "E" | "EiB" => 60,
        _ => return Err(bad()),
    };
    let number: u64 = number.parse().map_err(|e: ParseIntError| match e.kind() {
        IntErrorKind::PosOverflow => huge(),
        _ => bad(),
    })?;
    let bytes = number.checked_mul(1 << shift).ok_or_else(huge)?;
    if bytes == 0 { Err(bad()) } else { Ok(bytes) }
}

#[cfg(test)]
mod tests {
    use super::size;

    #[test]
    fn sizes() {
        for (text, bytes) in [
            ("4096", 4096),
            ("64K", 65536),
            ("1GiB", 1 << 30),
            ("2T", 2 << 40),
            ("1EiB", 1 << 60),
        ] {
            assert_eq!(size(text), Ok(bytes));
        }
        for text in ["", "0", "K", "1.5G", "1kb", "-1", "99999999T"] {
            assert!(size(text).is_err(), "{text}");
        }
        for text in ["99999999T", "18446744073709551616"] {
            assert!(size(text).unwrap_err().contains("too large"), "{text}");
        }
    }
}
