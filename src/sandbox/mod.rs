// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a process gives up for good once it is set up, so that whoever gets hold of it from
//! within a guest's request has little to go on with: files that are not open yet (Landlock) and
//! system calls that serving a disk does not need (seccomp). The third part, what an io_uring can
//! do, is where the rings are made (`store/uring.rs`).
//!
//! It holds for the calling thread and those that it starts from then on: nobody else's threads
//! are touched, and no program that the process starts later could get out of it.
//! `docs/sandbox.md` says what is kept and why.

mod calls;
mod death;
mod files;

use std::path::PathBuf;

/// Whether a process is confined.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Sandbox {
    /// By what the kernel has; what it lacks is told.
    #[default]
    On,
    /// It is not.
    Off,
    /// By all of it, or there is no process.
    Require,
}

/// What a process is kept from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Confined {
    /// Files, and if not, why.
    pub files: Option<String>,
    /// System calls, and if not, why.
    pub calls: Option<String>,
}

/// A part of it that is not to be had.
#[derive(Debug, thiserror::Error)]
#[error("{asked}: {what} cannot be forbidden here: {why}")]
pub struct Lacking {
    asked: &'static str,
    what: &'static str,
    why: String,
}

/// Why a part was not entered.
enum Missing {
    /// It is not to be had here.
    Lacks(String),
    /// It is, but something else went wrong (no descriptor, no memory): to go on without would be
    /// to serve unconfined by accident.
    Failed(String),
}

impl Sandbox {
    /// Confines this thread and all that it will start. In the folders `removes` files may still be
    /// removed; nothing else can be opened, made or removed. `None`: it is off.
    pub fn enter(self, removes: &[PathBuf]) -> Result<Option<Confined>, Lacking> {
        if self == Sandbox::Off {
            return Ok(None);
        }
        let files = self.part("files", files::forbid(removes))?;
        // Last: what has been forbidden could not forbid anything more.
        let calls = self.part("system calls", calls::forbid())?;
        Ok(Some(Confined { files, calls }))
    }

    /// Why a part is not there.
    fn part(
        self,
        what: &'static str,
        result: Result<(), Missing>,
    ) -> Result<Option<String>, Lacking> {
        let why = match result {
            Ok(()) => return Ok(None),
            Err(Missing::Lacks(why)) if self == Sandbox::On => why,
            Err(Missing::Lacks(why)) => {
                let asked = "--sandbox require";
                return Err(Lacking { asked, what, why });
            }
            Err(Missing::Failed(why)) => {
                let asked = "the sandbox";
                return Err(Lacking { asked, what, why });
            }
        };
        tracing::warn!("the sandbox goes without its part for {what}: {why}");
        Ok(Some(why))
    }
}

impl Confined {
    /// In a word, for the trace.
    pub fn word(&self) -> &'static str {
        match (&self.files, &self.calls) {
            (None, None) => "on",
            (None, Some(_)) => "files",
            (Some(_), None) => "calls",
            (Some(_), Some(_)) => "none",
        }
    }
}
