// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A raw image file. How it is read and written depends on where it lies and on
//! what the host allows: by an io_uring for each queue, past the page cache where
//! the file can be; in memory at once; else by threads.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use nix::fcntl::OFlag;
use nix::sys::statfs::{FsType, TMPFS_MAGIC, fstatfs};

use super::aligned::Aligned;
use super::lock::lock;
use super::mapped::Mapped;
use super::memory::MemoryQueue;
use super::threads::Threads;
use super::uring::{Target, UringQueue};
use super::{Store, StoreQueue};

/// `RAMFS_MAGIC` of linux/magic.h.
const RAMFS_MAGIC: FsType = FsType(0x8584_58f6);

/// How an image is read and written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Aio {
    /// What is best here.
    #[default]
    Auto,
    /// By io_uring, or not at all.
    IoUring,
    /// By threads with ordinary system calls.
    Threads,
}

/// How to open an image.
#[derive(Clone, Debug, Default)]
pub struct ImageOptions {
    /// Create it with this length where it does not exist.
    pub create: Option<u64>,
    /// Open it for reading only.
    pub read_only: bool,
    /// Its length must be a multiple of this many bytes (0: 512).
    pub block: u32,
    /// How it is read and written.
    pub aio: Aio,
    /// Take no lock: somebody else sees to it that it has one writer.
    pub unlocked: bool,
}

enum Means {
    Uring(Arc<Target>),
    /// It lies in memory: a copy never waits.
    AtOnce(Arc<Mapped>),
    Threads(Threads),
}

/// See the module.
pub struct FileStore {
    means: Means,
    capacity: u64,
}

impl FileStore {
    /// Opens (or creates) a raw image.
    pub fn open(path: &Path, options: &ImageOptions) -> Result<FileStore> {
        let (file, made) = open(path, options)?;
        let len = file
            .metadata()
            .with_context(|| format!("cannot read the length of image {}", path.display()))?
            .len();
        let block = u64::from(options.block.max(512));
        if len == 0 {
            bail!(
                "image {} is empty (truncate -s gives it a length)",
                path.display()
            );
        }
        if len % block != 0 {
            bail!(
                "image {} has {len} bytes, expected a multiple of its logical block of {block} bytes (truncate -s changes it)",
                path.display()
            );
        }
        let store = FileStore {
            means: means(file, len, block, options)?,
            capacity: len,
        };
        made.stays();
        tracing::info!("image {}: {}", path.display(), store.words());
        Ok(store)
    }

    /// By what means it is read and written.
    pub fn words(&self) -> &'static str {
        match &self.means {
            Means::Uring(target) if target.direct.is_some() => "io_uring, O_DIRECT",
            Means::Uring(_) => "io_uring, buffered",
            Means::AtOnce(disk) if disk.is_mapped() => "in memory, mapped",
            Means::AtOnce(_) => "in memory, at once",
            Means::Threads(_) => "threads, buffered",
        }
    }
}

fn means(file: File, capacity: u64, block: u64, options: &ImageOptions) -> Result<Means> {
    let threads = |file| -> Result<Means> { Ok(Means::Threads(Threads::new(file, capacity))) };
    match options.aio {
        Aio::Threads => return threads(file),
        Aio::IoUring => {
            UringQueue::possible().context("--aio io_uring: the host forbids io_uring")?;
        }
        Aio::Auto => {
            let kind = fstatfs(&file)?.filesystem_type();
            if kind == TMPFS_MAGIC || kind == RAMFS_MAGIC {
                let mapped = Mapped::new(file, capacity, options.read_only);
                return Ok(Means::AtOnce(Arc::new(mapped)));
            }
            if let Err(error) = UringQueue::possible() {
                tracing::warn!(
                    "no io_uring here ({error}): the image is served by threads, which is slower (--aio threads asks for that)"
                );
                return threads(file);
            }
        }
    }
    let direct = direct(&file, block, options.read_only);
    let locked = file.try_clone()?;
    let (file, direct) = match direct {
        Some((file, align)) => (file, Some(align)),
        None => (file, None),
    };
    Ok(Means::Uring(Arc::new(Target {
        file,
        direct,
        capacity,
        _locked: locked,
    })))
}

/// The same file past the page cache, and what addresses and lengths must be multiples of. `None`
/// where the file system cannot do it, or not for blocks as small as these.
fn direct(file: &File, block: u64, read_only: bool) -> Option<(File, usize)> {
    let again = OpenOptions::new()
        .read(true)
        .write(!read_only)
        .custom_flags(OFlag::O_DIRECT.bits())
        .open(format!("/proc/self/fd/{}", file.as_raw_fd()))
        .ok()?;
    // Asked by trying: the answer of statx(2) is not to be had before Linux 6.1.
    let takes = |len: usize| {
        let mut memory = Aligned::new(len);
        again.read_at(memory.bytes_mut(), 0).is_ok()
    };
    let align = [512, 4096].into_iter().find(|&len| takes(len))?;
    (align as u64 <= block).then_some((again, align))
}

/// A file that goes again unless it is said to stay.
struct Made(Option<PathBuf>);

impl Made {
    fn stays(mut self) {
        self.0 = None;
    }
}

impl Drop for Made {
    fn drop(&mut self) {
        if let Some(path) = &self.0 {
            let _ = std::fs::remove_file(path);
        }
    }
}

fn open(path: &Path, options: &ImageOptions) -> Result<(File, Made)> {
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
    let made = Made((!exists).then(|| path.to_owned()));
    let kind = file.metadata()?;
    if !kind.is_file() {
        bail!("image {shown} is not a regular file");
    }
    if !options.unlocked {
        lock(&file, path, options.read_only)?;
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
    Ok((file, made))
}

impl Store for FileStore {
    fn capacity(&self) -> u64 {
        self.capacity
    }

    fn queue(&self) -> io::Result<Box<dyn StoreQueue>> {
        Ok(match &self.means {
            Means::Uring(target) => Box::new(UringQueue::new(target.clone())?),
            Means::AtOnce(disk) => Box::new(MemoryQueue::of_image(disk.clone())?),
            Means::Threads(threads) => threads.queue()?,
        })
    }
}
