// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The file system images that a guest starts from.

use std::fs::File;
use std::io::{Read as _, Seek as _};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::child;

/// Size of the disk under test, bytes. mkfs.xfs refuses much less, and a
/// sparse file costs what is written.
pub const DATA_LEN: u64 = 512 << 20;

/// It takes a tenth of a second.
const MKFS_LIMIT: Duration = Duration::from_secs(60);

/// Makes a fresh XFS image at `path`, which must not exist: no test begins on
/// the remains of another. `-K`: no discard, a sparse file has nothing to discard.
/// `sector` in bytes: no smaller than the logical block of the disk it will lie on.
pub fn xfs(path: &Path, sector: u32) -> Result<()> {
    let file = File::create_new(path)
        .with_context(|| format!("cannot make the image {}", path.display()))?;
    file.set_len(DATA_LEN)
        .with_context(|| format!("cannot size the image {}", path.display()))?;
    drop(file);
    let sector = format!("size={sector}");
    mkfs("mkfs.xfs", &["-q", "-K", "-s", &sector], path, "xfsprogs")
}

/// The bytes of an ext4 image just big enough to mount: a guest test asks that
/// file system for a flag that it does not know.
pub fn small_ext4() -> Result<Vec<u8>> {
    let dir = tempfile::tempdir()?;
    let path = dir.path().join("ext4.img");
    File::create_new(&path)?.set_len(1 << 20)?;
    mkfs(
        "mkfs.ext4",
        &["-q", "-F", "-O", "^has_journal"],
        &path,
        "e2fsprogs",
    )?;
    Ok(std::fs::read(&path)?)
}

fn mkfs(program: &'static str, options: &[&str], path: &Path, package: &str) -> Result<()> {
    // Debian keeps it where a user's PATH does not look.
    let search = format!(
        "{}:/usr/sbin:/sbin",
        std::env::var("PATH").unwrap_or_default()
    );
    let mut command = Command::new("env");
    command
        .arg(format!("PATH={search}"))
        .arg(program)
        .args(options)
        .arg(path);
    let said = tempfile::tempfile().context("cannot make a temporary file")?;
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(said.try_clone()?);
    let mut child = child::spawn(program, command, &[])?;
    let Some(status) = child.wait(MKFS_LIMIT)? else {
        bail!("{program} did not end within {} s", MKFS_LIMIT.as_secs());
    };
    match status.code() {
        Some(0) => Ok(()),
        Some(127) => bail!("{program} is missing: install {package}, or run ci/setup"),
        _ => bail!("{program} failed ({status}): {}", text_of(said).trim()),
    }
}

fn text_of(mut file: File) -> String {
    let mut text = String::new();
    // What cannot be read cannot be told; the status is told all the same.
    let _ = file
        .rewind()
        .and_then(|()| file.take(4096).read_to_string(&mut text));
    text
}
