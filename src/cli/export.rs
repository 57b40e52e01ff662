// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `wtblk trace export` and `wtblk trace import`: other programs' formats.

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use clap::{Args, ValueEnum};

use super::trace_state;
use crate::plain::{self, counted};
use crate::report::model::status;
use crate::trace::TraceReader;
use crate::trace::blktrace::{Blktrace, MAX_QUEUES, file_of};
use crate::trace::export::{ExportError, Sink, export};
use crate::trace::jsonl::Jsonl;
use crate::trace::log_writes::LogWrites;
use crate::trace::log_writes_import::import;
use crate::trace::perfetto::Perfetto;

/// A format to write.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum To {
    /// JSON Lines: an object per event.
    Jsonl,
    /// Binary files of blktrace, one for each queue; OUT is their prefix.
    Blktrace,
    /// A log of dm-log-writes, contents included; the trace must hold them (serve --trace-data writes).
    LogWrites,
    /// Chrome trace JSON, for Perfetto's viewer.
    Perfetto,
}

/// A format to read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum From {
    /// A log of dm-log-writes.
    LogWrites,
}

/// Writes a trace in another format.
#[derive(Args, Debug)]
pub struct ExportArgs {
    /// The trace file.
    file: PathBuf,
    /// The format.
    #[arg(long, value_enum)]
    to: To,
    /// Where to; jsonl and perfetto go to standard output without it.
    #[arg(long, value_name = "PATH", required_if_eq_any([("to", "blktrace"), ("to", "log-writes")]))]
    out: Option<PathBuf>,
    /// Replace files that are there and not empty
    #[arg(long)]
    force: bool,
}

impl ExportArgs {
    /// Runs it; the exit status.
    pub fn run(&self, stdout: &mut impl Write) -> anyhow::Result<u8> {
        let mut reader = TraceReader::open(&self.file)?;
        let out = self.out.clone().unwrap_or_default();
        for path in self.outputs() {
            self.may_write(&path)?;
        }
        let mut sink: Box<dyn Sink + '_> = match (self.to, &self.out) {
            (To::Blktrace, _) => Box::new(Blktrace::new(&out, reader.began_wall_ns())?),
            (To::LogWrites, _) => Box::new(LogWrites::new(&out)?),
            (to, Some(path)) => {
                let file = File::create(path);
                let file = file.with_context(|| format!("cannot write {}", plain::path(path)))?;
                text(to, BufWriter::new(file), path.clone())
            }
            (to, None) => text(to, stdout, "standard output".into()),
        };
        let exported = export(&mut reader, &mut *sink);
        drop(sink);
        if exported.is_err() {
            // Half an export may look like a whole one.
            for path in self.outputs() {
                if fs::metadata(&path).is_ok_and(|m| m.is_file()) {
                    let _ = fs::remove_file(&path);
                }
            }
        }
        exported.map_err(|error| match error {
            // `| head` is no error; the error below it says so to whoever prints it.
            ExportError::Output { source, .. }
                if source.kind() == std::io::ErrorKind::BrokenPipe =>
            {
                source.into()
            }
            ExportError::Cannot(_) | ExportError::Damaged { .. } => {
                anyhow::Error::from(error).context(plain::path(&self.file))
            }
            error => error.into(),
        })?;
        trace_state::warn(&reader, &self.file, "exported");
        Ok(status::HELD)
    }

    /// Every file that may be written.
    fn outputs(&self) -> Vec<PathBuf> {
        match (&self.out, self.to) {
            (Some(prefix), To::Blktrace) => (0..MAX_QUEUES).map(|n| file_of(prefix, n)).collect(),
            (out, _) => out.iter().cloned().collect(),
        }
    }

    /// An output is never the trace itself, and no other file of somebody's.
    fn may_write(&self, path: &Path) -> anyhow::Result<()> {
        let shown = plain::path(path);
        let Ok(meta) = fs::metadata(path) else {
            return Ok(());
        };
        not_the_trace(&self.file, path)?;
        if meta.file_type().is_block_device() {
            bail!("cannot write {shown}: it is a block device");
        }
        if meta.is_file() && meta.len() > 0 && !self.force {
            bail!("{shown} exists and is not empty: --force replaces it");
        }
        Ok(())
    }
}

/// Refuses an output that is the trace which is read, or its data.
pub(super) fn not_the_trace(trace: &Path, out: &Path) -> anyhow::Result<()> {
    let Ok(out_is) = fs::metadata(out) else {
        return Ok(());
    };
    let mut data = trace.as_os_str().to_owned();
    data.push(".data");
    for input in [trace, Path::new(&data)] {
        let same = |m: fs::Metadata| (m.dev(), m.ino()) == (out_is.dev(), out_is.ino());
        if fs::metadata(input).is_ok_and(same) {
            bail!(
                "{} is the trace that is read: it is not written over",
                plain::path(out)
            );
        }
    }
    Ok(())
}

fn text<'w>(to: To, out: impl Write + 'w, path: PathBuf) -> Box<dyn Sink + 'w> {
    match to {
        To::Perfetto => Box::new(Perfetto::new(out, path)),
        _ => Box::new(Jsonl::new(out, path)),
    }
}

/// Makes a trace of another program's log.
#[derive(Args, Debug)]
pub struct ImportArgs {
    /// The log.
    file: PathBuf,
    /// Its format.
    #[arg(long, value_enum)]
    from: From,
    /// The trace to make.
    #[arg(long, value_name = "PATH")]
    out: PathBuf,
    /// Replace a trace that is there
    #[arg(long)]
    force: bool,
}

impl ImportArgs {
    /// Runs it; the exit status.
    pub fn run(&self, stdout: &mut impl Write) -> anyhow::Result<u8> {
        match self.from {
            From::LogWrites => {
                let done = import(&self.file, &self.out, self.force)?;
                writeln!(
                    stdout,
                    "{}: {}: {}, {}, {}",
                    plain::path(&self.out),
                    counted(done.entries, "entry", "entries"),
                    counted(done.writes, "write", "writes"),
                    counted(done.flushes, "flush", "flushes"),
                    counted(done.marks, "mark", "marks")
                )?;
            }
        }
        Ok(status::HELD)
    }
}
