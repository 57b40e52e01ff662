// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Processes that we start: each dies with us, and is ended by its own pid.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, ExitStatus};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// A child process; killed and reaped when dropped.
pub struct Guarded {
    name: &'static str,
    child: Child,
    status: Option<ExitStatus>,
}

/// Starts `command` so that it is killed by the kernel if we die. Must be
/// called from the main thread: PR_SET_PDEATHSIG follows the thread, not the process.
///
/// `pass` are descriptors that the child inherits under their own numbers.
pub fn spawn(name: &'static str, command: Command, pass: &[&OwnedFd]) -> Result<Guarded> {
    spawn_ended_by(Signal::SIGKILL, name, command, pass)
}

/// The same for a child that has children of its own: `last` is the signal that it gets if we die, so that
/// it can end them.
pub fn spawn_ended_by(
    last: Signal,
    name: &'static str,
    mut command: Command,
    pass: &[&OwnedFd],
) -> Result<Guarded> {
    let parent = std::process::id();
    let fds: Vec<i32> = pass.iter().map(|fd| fd.as_raw_fd()).collect();
    let prepare = move || {
        // SAFETY: prctl, getppid and fcntl are async-signal-safe and touch no memory of ours.
        unsafe {
            if libc::prctl(libc::PR_SET_PDEATHSIG, last as libc::c_int) != 0 {
                return Err(io::Error::last_os_error());
            }
            // The parent may have died before the prctl: nobody would send the signal then.
            if libc::getppid() as u32 != parent {
                return Err(io::Error::from_raw_os_error(libc::ESRCH));
            }
            for &fd in &fds {
                if libc::fcntl(fd, libc::F_SETFD, 0) != 0 {
                    return Err(io::Error::last_os_error());
                }
            }
        }
        Ok(())
    };
    // SAFETY: `prepare` calls nothing but the async-signal-safe functions above.
    unsafe { command.pre_exec(prepare) };
    let program = command.get_program().to_string_lossy().into_owned();
    let child = command
        .spawn()
        .with_context(|| format!("cannot start {name} ({program})"))?;
    Ok(Guarded {
        name,
        child,
        status: None,
    })
}

impl Guarded {
    /// The child's pid.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The child's pipes, to take them.
    pub fn inner(&mut self) -> &mut Child {
        &mut self.child
    }

    /// Its exit status, if it has ended.
    pub fn ended(&mut self) -> Result<Option<ExitStatus>> {
        if self.status.is_none() {
            self.status = self
                .child
                .try_wait()
                .with_context(|| format!("cannot wait for {}", self.name))?;
        }
        Ok(self.status)
    }

    /// Waits for its end until the limit; `None` when it still runs.
    pub fn wait(&mut self, limit: Duration) -> Result<Option<ExitStatus>> {
        let deadline = Instant::now() + limit;
        let mut pause = Duration::from_millis(1);
        loop {
            if let Some(status) = self.ended()? {
                return Ok(Some(status));
            }
            if Instant::now() >= deadline {
                return Ok(None);
            }
            // std has no timed wait; a pause here orders nothing, it only spares the CPU.
            thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_millis(20));
        }
    }

    /// Sends a signal, if it still runs.
    pub fn signal(&mut self, signal: Signal) -> Result<()> {
        if self.ended()?.is_none() {
            kill(Pid::from_raw(self.child.id() as i32), signal)
                .with_context(|| format!("cannot signal {}", self.name))?;
        }
        Ok(())
    }

    /// Asks with SIGTERM, and insists with SIGKILL after `limit`. Says whether it went by itself.
    pub fn end(&mut self, limit: Duration) -> Result<bool> {
        self.signal(Signal::SIGTERM)?;
        if self.wait(limit)?.is_some() {
            return Ok(true);
        }
        self.kill()?;
        Ok(false)
    }

    /// Kills it at once and reaps it.
    pub fn kill(&mut self) -> Result<()> {
        if self.ended()?.is_none() {
            self.child
                .kill()
                .with_context(|| format!("cannot kill {}", self.name))?;
            self.status = Some(self.child.wait()?);
        }
        Ok(())
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        let _ = self.kill();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dropped_child_is_gone() {
        let mut command = Command::new("sleep");
        command.arg("1000");
        let child = spawn("sleep", command, &[]).unwrap();
        let pid = Pid::from_raw(child.pid() as i32);
        assert!(kill(pid, None).is_ok());
        drop(child);
        assert!(kill(pid, None).is_err());
    }

    #[test]
    fn a_missing_program_is_named() {
        let error = spawn("nobody", Command::new("/nonexistent/program"), &[])
            .err()
            .unwrap();
        assert!(format!("{error:#}").contains("/nonexistent/program"));
    }

    #[test]
    fn a_deaf_child_is_killed_at_the_limit() {
        let mut command = Command::new("sh");
        command.args(["-c", "trap '' TERM; echo ready; while :; do sleep 1; done"]);
        command.stdout(std::process::Stdio::piped());
        let mut child = spawn("sh", command, &[]).unwrap();
        let mut line = String::new();
        let out = child.inner().stdout.take().unwrap();
        std::io::BufRead::read_line(&mut std::io::BufReader::new(out), &mut line).unwrap();
        assert!(!child.end(Duration::from_millis(100)).unwrap());
        assert!(child.ended().unwrap().is_some());
    }
}
