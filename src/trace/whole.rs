// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A trace that is made at once, of another file: it gets its name when it is whole, or never.
//!
//! A trace that is recorded has its name from the first event on, for whoever follows it. One
//! that is imported or cut is of no use before its end, and what had its name is kept until then.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::error::TraceError;
use super::writer::{TraceWriter, data_path, place_for, with_suffix};

/// See the module. What is not published is removed.
#[derive(Debug)]
pub struct WholeTrace {
    writer: TraceWriter,
    path: PathBuf,
    part: PathBuf,
    published: bool,
}

impl WholeTrace {
    /// Begins one beside PATH. What is no trace is never replaced, a trace only if `force`.
    pub fn create(path: &Path, force: bool) -> Result<WholeTrace, TraceError> {
        drop(place_for(path)?);
        let full = |name: &Path| fs::metadata(name).is_ok_and(|m| m.len() > 0);
        for name in [path, &data_path(path)] {
            if !force && full(name) {
                return Err(TraceError::Exists {
                    path: name.to_owned(),
                });
            }
        }
        let part = with_suffix(path, ".wtblk-part");
        Ok(WholeTrace {
            writer: TraceWriter::create(&part)?,
            path: path.to_owned(),
            part,
            published: false,
        })
    }

    /// Where its events go.
    pub fn writer(&self) -> &TraceWriter {
        &self.writer
    }

    /// Closes it; where it can be read until it has its name. One that lost events is an error:
    /// a recording goes on without them, a copy is to have them all.
    pub fn close(&self) -> Result<&Path, TraceError> {
        self.writer.close();
        if self.writer.lost_events() {
            return Err(TraceError::NotWhole {
                path: self.path.clone(),
            });
        }
        Ok(&self.part)
    }

    /// Gives it its name, in place of what had it.
    pub fn publish(mut self) -> Result<(), TraceError> {
        self.close()?;
        // Somebody may have begun to write there meanwhile.
        let old = place_for(&self.path)?;
        let give = || -> io::Result<()> {
            fs::rename(data_path(&self.part), data_path(&self.path))?;
            fs::rename(&self.part, &self.path)
        };
        give().map_err(|source| TraceError::Create {
            path: self.path.clone(),
            source,
        })?;
        self.published = true;
        drop(old);
        Ok(())
    }
}

impl Drop for WholeTrace {
    fn drop(&mut self) {
        if !self.published {
            let _ = fs::remove_file(&self.part);
            let _ = fs::remove_file(data_path(&self.part));
        }
    }
}
