// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The device of a boot: `wtblk serve` as a child, with sockets that QEMU has the other ends of.

use std::ffi::OsString;
use std::fs::File;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use wtblk_shared::disk::META_NAME;

use super::boot::Plan;
use super::child::{self, Guarded};
use super::image::{self, Kind};
use crate::trace::TraceReader;

/// The sockets between the device and QEMU: one end of each.
pub(super) struct Sockets {
    /// The disk under test.
    pub data: OwnedFd,
    /// The mark disk.
    pub mark: OwnedFd,
    /// The disk beside the one under test, where there is one.
    pub meta: Option<OwnedFd>,
}

impl Sockets {
    /// The device's ends and QEMU's.
    pub(super) fn pairs(fs: &Kind) -> Result<(Sockets, Sockets)> {
        let (data, mark) = (UnixStream::pair()?, UnixStream::pair()?);
        let meta = fs.realtime.then(UnixStream::pair).transpose()?;
        let (meta_ours, meta_theirs) = meta.unzip();
        let end = |data: UnixStream, mark: UnixStream, meta: Option<UnixStream>| Sockets {
            data: data.into(),
            mark: mark.into(),
            meta: meta.map(OwnedFd::from),
        };
        Ok((
            end(data.0, mark.0, meta_ours),
            end(data.1, mark.1, meta_theirs),
        ))
    }

    /// All of them, for a child to inherit.
    pub(super) fn all(&self) -> Vec<&OwnedFd> {
        let mut all = vec![&self.data, &self.mark];
        all.extend(&self.meta);
        all
    }
}

/// Starts the device.
pub(super) fn start_device(
    plan: &Plan<'_>,
    image: &Path,
    trace: &Path,
    fds: &Sockets,
) -> Result<Guarded> {
    let program = std::env::current_exe().context("cannot tell which program this is")?;
    let mut command = Command::new(program);
    command.args(["serve", "--die-with-parent", "--poison"]);
    command.arg("--fd").arg(fds.data.as_raw_fd().to_string());
    command
        .arg("--mark-fd")
        .arg(fds.mark.as_raw_fd().to_string());
    if let Some(fd) = &fds.meta {
        let mut disk = OsString::from(format!(
            "name={META_NAME},logical-block={},fd={},image=",
            plan.shape.block(),
            fd.as_raw_fd()
        ));
        disk.push(image::meta_of(image));
        command.arg("--disk").arg(disk);
    }
    command.arg("--image").arg(image).arg("--trace").arg(trace);
    command
        .arg("--queues")
        .arg(plan.shape.queues.unwrap_or(1).to_string())
        .arg("--seed")
        .arg(plan.seed.to_string());
    command.args(plan.recording.options());
    // The guest's CPUs are worth more here than a request's microseconds.
    command.args(["--poll", "off"]);
    for scenario in plan.scenarios {
        command.arg("--scenario").arg(scenario);
    }
    command.stdin(Stdio::null()).stdout(Stdio::null());
    command.stderr(File::create(plan.dir.join("device.log"))?);
    child::spawn("the device", command, &fds.all())
}

/// Waits until the device has made its trace: then it is set up, or it has ended with a reason.
pub(super) fn open_trace(trace: &Path, device: &mut Guarded, log: &Path) -> Result<TraceReader> {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        if trace.exists()
            && let Ok(reader) = TraceReader::open_live(trace)
        {
            return Ok(reader);
        }
        if device.wait(Duration::from_millis(2))?.is_some() {
            let said = std::fs::read_to_string(log).unwrap_or_default();
            bail!("the device did not start: {}", said.trim());
        }
        if Instant::now() > deadline {
            bail!("the device made no trace within 10 s");
        }
    }
}
