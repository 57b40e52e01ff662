// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The file system images that a guest starts from.

use std::fs::File;
use std::io::{Read as _, Seek as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::child;

/// Size of the disk under test where the kind asks for no more, bytes. mkfs.xfs refuses much less, and a
/// sparse file costs what is written.
pub const DATA_LEN: u64 = 512 << 20;

/// mkfs and repair take a tenth of a second.
const TOOL_LIMIT: Duration = Duration::from_secs(60);

/// A kind of file system that the guest tests run on.
#[derive(Debug, PartialEq, Eq)]
pub struct Kind {
    /// What `--fs` calls it.
    pub name: &'static str,
    /// Block size, bytes.
    pub block: u32,
    /// Every overwrite goes to new blocks: a knob of kernels with `XFS_DEBUG`.
    pub always_cow: bool,
    /// The disk under test is the realtime device, on which all files lie; everything else is on a disk beside it.
    pub realtime: bool,
}

/// The guest's page size, bytes: blocks above it are a case of their own.
pub const PAGE: u32 = 4096;

/// All kinds. XFS only, as nothing else has the flag; all but the one with a realtime device can share blocks (reflink).
pub const KINDS: &[Kind] = &[
    Kind::xfs("xfs-1k", 1024),
    Kind::xfs("xfs-2k", 2048),
    Kind::xfs("xfs-4k", 4096),
    Kind::xfs("xfs-8k", 8192),
    Kind::xfs("xfs-64k", 65536),
    Kind {
        always_cow: true,
        ..Kind::xfs("xfs-always-cow", 4096)
    },
    Kind {
        realtime: true,
        ..Kind::xfs("xfs-rt", 4096)
    },
];

/// What is taken where nobody says.
const DEFAULT: &str = "xfs-4k";

impl Kind {
    const fn xfs(name: &'static str, block: u32) -> Kind {
        Kind {
            name,
            block,
            always_cow: false,
            realtime: false,
        }
    }

    /// Size of the disk under test, bytes. Files of all tests are left there: twice as much for large blocks, of which
    /// their lengths are multiples.
    pub const fn disk_len(&self) -> u64 {
        if self.block > 4 * PAGE {
            2 * DATA_LEN
        } else {
            DATA_LEN
        }
    }

    /// The kind of this name; the default without one. `sector` is the disk's logical block
    /// in bytes: no file system has smaller blocks.
    pub fn named(name: Option<&str>, sector: u32) -> Result<&'static Kind> {
        let name = name.unwrap_or(DEFAULT);
        let Some(kind) = KINDS.iter().find(|k| k.name == name) else {
            let names: Vec<&str> = KINDS.iter().map(|k| k.name).collect();
            bail!(
                "there is no file system kind '{name}'; the kinds are: {}",
                names.join(", ")
            );
        };
        if kind.block < sector {
            bail!(
                "{name} has blocks of {} bytes, and the disk's logical blocks have {sector}: a \
                 block cannot be smaller",
                kind.block
            );
        }
        Ok(kind)
    }
}

/// Makes a fresh XFS image at `path`, which must not exist: no test begins on
/// the remains of another. `-K`: no discard, a sparse file has nothing to discard.
/// `sector` in bytes: no smaller than the logical block of the disk it will lie on.
/// Of a kind with a realtime device `path` is that, and the file system's other disk is [`meta_of`] it.
pub fn xfs(path: &Path, kind: &Kind, sector: u32) -> Result<()> {
    sized(path, kind)?;
    let sector = format!("size={sector}");
    let block = format!("size={}", kind.block);
    let mut options = vec!["-q", "-K", "-b", &block, "-s", &sector, "-m"];
    if !kind.realtime {
        options.push("reflink=1");
        return mkfs("mkfs.xfs", &options, path, "xfsprogs");
    }
    let meta = meta_of(path);
    if meta.as_os_str().as_encoded_bytes().contains(&b',') {
        bail!(
            "{}: a comma in a path ends an option of mkfs.xfs; a file system with a realtime device needs one without",
            meta.display()
        );
    }
    sized(&meta, kind)?;
    let device = format!("rtdev={}", path.display());
    // Every file becomes a realtime one: it inherits that from the root. Linux 6.12 cannot share blocks there.
    options.extend(["reflink=0", "-d", "rtinherit=1", "-r", &device]);
    mkfs("mkfs.xfs", &options, &meta, "xfsprogs")
}

/// Where everything but the files' data is, where the image at `path` is a realtime device.
pub fn meta_of(path: &Path) -> PathBuf {
    path.with_added_extension("meta")
}

/// A sparse file of the disk's size.
fn sized(path: &Path, kind: &Kind) -> Result<()> {
    let file = File::create_new(path)
        .with_context(|| format!("cannot make the image {}", path.display()))?;
    file.set_len(kind.disk_len())
        .with_context(|| format!("cannot size the image {}", path.display()))
}

/// What `xfs_repair -n` says of an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Repair {
    /// All is in order.
    Clean,
    /// It is damaged: the lines that say so.
    Damaged(Vec<String>),
    /// It could not be decided: why.
    NotChecked(String),
}

/// Most lines of a repair that are told.
const REPAIR_LINES: usize = 20;

/// Looks whether the file system of the image is consistent; changes nothing.
pub fn repair(path: &Path, kind: &Kind) -> Result<Repair> {
    let (status, said) = if kind.realtime {
        let device = path.display().to_string();
        tool(
            "xfs_repair",
            &["-n", "-r", &device],
            &meta_of(path),
            "xfsprogs",
        )?
    } else {
        tool("xfs_repair", &["-n"], path, "xfsprogs")?
    };
    Ok(verdict(status, &said))
}

/// `xfs_repair -n` ends with 1 where it found damage. Of a file system that was not unmounted it
/// passes over the log, says so in a line with ALERT, and may find anything.
fn verdict(status: Option<i32>, said: &str) -> Repair {
    if said.contains("ALERT:") {
        let why = "the log is not empty: the file system was shut down, or not unmounted";
        return Repair::NotChecked(why.into());
    }
    if status == Some(0) {
        return Repair::Clean;
    }
    let tells = |line: &&str| {
        let progress = ["Phase ", "        - ", "No modify flag set"];
        !line.trim().is_empty() && !progress.iter().any(|p| line.starts_with(p))
    };
    let mut lines: Vec<String> = said.lines().filter(tells).map(str::to_owned).collect();
    lines.truncate(REPAIR_LINES);
    if lines.is_empty() {
        lines.push(format!("xfs_repair ended with {status:?} and no reason"));
    }
    Repair::Damaged(lines)
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
    match tool(program, options, path, package)? {
        (Some(0), _) => Ok(()),
        (status, said) => bail!("{program} failed ({status:?}): {}", said.trim()),
    }
}

/// Runs a program of the file system on an image: its exit status and what it said, the beginning.
fn tool(
    program: &'static str,
    options: &[&str],
    path: &Path,
    package: &str,
) -> Result<(Option<i32>, String)> {
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
        .stdout(said.try_clone()?)
        .stderr(said.try_clone()?);
    let mut child = child::spawn(program, command, &[])?;
    let Some(status) = child.wait(TOOL_LIMIT)? else {
        bail!("{program} did not end within {} s", TOOL_LIMIT.as_secs());
    };
    match status.code() {
        Some(127) => bail!("{program} is missing: install {package}, or run ci/setup"),
        code => Ok((code, text_of(said))),
    }
}

fn text_of(mut file: File) -> String {
    let mut bytes = Vec::new();
    // What cannot be read cannot be told; the status is told all the same.
    let _ = file
        .rewind()
        .and_then(|()| file.take(64 * 1024).read_to_end(&mut bytes));
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_are_found_by_name() {
        assert_eq!(Kind::named(None, 512).unwrap().block, 4096);
        assert_eq!(Kind::named(Some("xfs-64k"), 4096).unwrap().block, 65536);
        let unknown = Kind::named(Some("ext4"), 512).unwrap_err().to_string();
        assert!(unknown.contains("xfs-1k, xfs-2k"), "{unknown}");
        let small = Kind::named(Some("xfs-1k"), 4096).unwrap_err().to_string();
        assert!(small.contains("1024") && small.contains("4096"), "{small}");
    }

    #[test]
    fn a_fresh_image_of_each_kind_is_clean_and_a_damaged_one_is_not() {
        use std::os::unix::fs::FileExt;
        let dir = tempfile::tempdir().unwrap();
        for kind in KINDS {
            let path = dir.path().join(kind.name);
            xfs(&path, kind, 512).unwrap();
            assert_eq!(repair(&path, kind).unwrap(), Repair::Clean, "{}", kind.name);
        }
        let plain = dir.path().join("xfs-4k");
        let rt = dir.path().join("xfs-rt");
        for (path, damaged, kind) in [
            (&plain, plain.clone(), "xfs-4k"),
            (&rt, meta_of(&rt), "xfs-rt"),
        ] {
            let file = File::options().write(true).open(damaged).unwrap();
            // The free space's B+tree of the first group: block 1 of the image.
            file.write_all_at(&[0xff; 512], 4096).unwrap();
            let kind = Kind::named(Some(kind), 512).unwrap();
            let Repair::Damaged(lines) = repair(path, kind).unwrap() else {
                panic!("a damaged image is clean");
            };
            assert!(!lines.is_empty());
        }
    }

    #[test]
    fn a_log_that_is_not_empty_decides_nothing() {
        let said = "Phase 2 - using internal log\nALERT: The filesystem has valuable metadata\n";
        assert!(matches!(verdict(Some(1), said), Repair::NotChecked(_)));
        assert!(matches!(verdict(Some(0), said), Repair::NotChecked(_)));
        let said = "Phase 1 - find\nbad magic\n        - scan\n";
        assert_eq!(
            verdict(Some(1), said),
            Repair::Damaged(vec!["bad magic".into()])
        );
        assert_eq!(verdict(Some(0), said), Repair::Clean);
    }
}
