// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A raw image file, served by a few threads with `preadv` and `pwritev`
//! straight on the submitter's buffers.

use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;

use anyhow::{Context, Result, bail};

use super::done::Done;
use super::transfer::{Way, transfer, zero};
use super::{Completion, Op, Store, StoreQueue};

/// Enough to keep a disk busy, few enough not to crowd a small machine.
const THREADS: usize = 4;

/// How to open an image.
#[derive(Clone, Debug, Default)]
pub struct ImageOptions {
    /// Create it with this length where it does not exist.
    pub create: Option<u64>,
    /// Open it for reading only.
    pub read_only: bool,
    /// Its length must be a multiple of this many bytes (0: 512).
    pub block: u32,
}

struct Job {
    token: u64,
    op: Op,
    done: Arc<Done>,
}

struct Jobs {
    waiting: VecDeque<Job>,
    ended: bool,
}

struct Pool {
    file: File,
    capacity: u64,
    jobs: Mutex<Jobs>,
    more: Condvar,
}

/// See the module.
pub struct FileStore {
    pool: Arc<Pool>,
}

impl FileStore {
    /// Opens (or creates) a raw image.
    pub fn open(path: &Path, options: &ImageOptions) -> Result<FileStore> {
        let file = open(path, options)?;
        let len = file
            .metadata()
            .with_context(|| format!("cannot read the length of image {}", path.display()))?
            .len();
        let block = u64::from(options.block.max(512));
        if len == 0 || len % block != 0 {
            bail!(
                "image {} has {len} bytes, expected a multiple of its logical block of {block} bytes (truncate -s changes it)",
                path.display()
            );
        }
        Ok(FileStore::over(file, len)?)
    }

    fn over(file: File, capacity: u64) -> io::Result<FileStore> {
        let pool = Arc::new(Pool {
            file,
            capacity,
            jobs: Mutex::new(Jobs {
                waiting: VecDeque::new(),
                ended: false,
            }),
            more: Condvar::new(),
        });
        for i in 0..THREADS {
            let pool = pool.clone();
            thread::Builder::new()
                .name(format!("store-{i}"))
                .spawn(move || work(&pool))?;
        }
        Ok(FileStore { pool })
    }
}

fn open(path: &Path, options: &ImageOptions) -> Result<File> {
    let shown = path.display();
    let exists = path.exists();
    if !exists && options.create.is_none() {
        bail!("image {shown} does not exist (--size creates it)");
    }
    if !exists && options.read_only {
        bail!("image {shown} does not exist, and --read-only does not create one");
    }
    let file = OpenOptions::new()
        .read(true)
        .write(!options.read_only)
        .create_new(!exists)
        .open(path)
        .map_err(|e| match e.kind() {
            io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem
                if exists && !options.read_only =>
            {
                anyhow::anyhow!(
                    "image {shown} is not writable ({e}); --read-only serves it as it is"
                )
            }
            _ => anyhow::anyhow!("cannot open image {shown}: {e}"),
        })?;
    let kind = file.metadata()?;
    if !kind.is_file() {
        bail!("image {shown} is not a regular file");
    }
    match options.create {
        Some(size) if !exists => file
            .set_len(size)
            .with_context(|| format!("cannot make image {shown} {size} bytes long"))?,
        Some(size) if size != kind.len() => bail!(
            "image {shown} exists with {} bytes, but a size of {size} bytes is asked for",
            kind.len()
        ),
        _ => {}
    }
    Ok(file)
}

impl Drop for FileStore {
    fn drop(&mut self) {
        self.pool.lock().ended = true;
        self.pool.more.notify_all();
        // The threads end by themselves; one that is stuck in the host kernel is nothing to wait for.
    }
}

impl Pool {
    fn lock(&self) -> std::sync::MutexGuard<'_, Jobs> {
        self.jobs.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn work(pool: &Pool) {
    loop {
        let mut jobs = pool.lock();
        let job = loop {
            if let Some(job) = jobs.waiting.pop_front() {
                break job;
            }
            if jobs.ended {
                return;
            }
            jobs = pool.more.wait(jobs).unwrap_or_else(PoisonError::into_inner);
        };
        drop(jobs);
        let file = pool.file.as_fd();
        let result = match &job.op {
            Op::Read { offset, buffers } | Op::ReadOld { offset, buffers } => {
                transfer(file, Way::In, *offset, buffers)
            }
            Op::Write { offset, buffers } => transfer(file, Way::Out, *offset, buffers),
            Op::Discard { offset, len } => zero(file, pool.capacity, *offset, *len, true),
            Op::WriteZeroes { offset, len, unmap } => {
                zero(file, pool.capacity, *offset, *len, *unmap)
            }
            Op::Flush | Op::FlushFirst(_) => pool.file.sync_data(),
        };
        // The buffers go before the completion is told: after it nobody holds the guest's memory.
        let Job { token, op, done } = job;
        drop(op);
        done.push(Completion { token, result });
    }
}

impl Store for FileStore {
    fn capacity(&self) -> u64 {
        self.pool.capacity
    }

    fn queue(&self) -> io::Result<Box<dyn StoreQueue>> {
        Ok(Box::new(FileQueue {
            pool: self.pool.clone(),
            done: Arc::new(Done::new()?),
        }))
    }
}

struct FileQueue {
    pool: Arc<Pool>,
    done: Arc<Done>,
}

impl StoreQueue for FileQueue {
    fn submit(&mut self, token: u64, op: Op) {
        let done = self.done.clone();
        self.pool.lock().waiting.push_back(Job { token, op, done });
        self.pool.more.notify_one();
    }

    fn reap(&mut self, into: &mut Vec<Completion>) {
        self.done.reap(into);
    }

    fn event(&self) -> BorrowedFd<'_> {
        self.done.event()
    }
}
