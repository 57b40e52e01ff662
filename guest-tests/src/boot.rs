// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The way of a boot: mounts, parameters, disks, file system, facts, tests, end.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::sync::Arc;
use std::time::Duration;

use wtblk_shared::disk::{DATA_SERIAL, MARK_SERIAL, META_SERIAL};
use wtblk_shared::exit;
use wtblk_shared::mark::Mark;

use crate::cmdline::Params;
use crate::disks::Disk;
use crate::finish::{could_not_run, finish};
use crate::marks::Marks;
use crate::task::limited;
use crate::test::Fail;
use crate::world::{Counters, MOUNT, World};
use crate::xfs::Superblock;
use crate::{cases, console, discover, runner, sweep, sys};

/// A disk is there when the kernel starts init, or soon after on PCI.
const DISK_LIMIT: Duration = Duration::from_secs(5);

/// Everything up to the first test.
const PREPARE_LIMIT: Duration = Duration::from_secs(20);

/// Everything PID 1 does.
pub fn run() -> ! {
    let mounted = mounts();
    if let Err(e) = console::open() {
        could_not_run(&format!("no console: {e}"));
    }
    if let Err(why) = mounted {
        could_not_run(&why);
    }
    let params = match fs::read_to_string("/proc/cmdline") {
        Ok(cmdline) => Params::parse(&cmdline).unwrap_or_else(|why| could_not_run(&why)),
        Err(e) => could_not_run(&format!("/proc/cmdline: {e}")),
    };
    if params.list {
        for case in cases::ALL {
            console::line(case.name);
        }
        finish(exit::OK);
    }
    // The probes write: a device that answers nothing must not stop us silently.
    let prepared = limited("preparing the guest", PREPARE_LIMIT, || prepare(params));
    let world = match prepared.and_then(|p| p) {
        Ok(world) => &*Box::leak(Box::new(world)),
        Err(why) => could_not_run(&why),
    };
    console::diagnostic(&discover::env_line(&world.facts));
    let mut code = if world.params.sweep.tests.is_empty() {
        runner::run(world)
    } else {
        sweep::run(world)
    };
    // After a hang neither sync nor umount: both would wait for the same page.
    if code != exit::HUNG
        && let Err(e) = world.umount()
    {
        let (word, new) = match e {
            Fail::Hung(_) => ("HUNG", exit::HUNG),
            _ => ("not ok:", exit::NOT_OK),
        };
        console::diagnostic(&format!("{word} the end of the boot: {}", runner::text(&e)));
        code = new;
    }
    finish(code)
}

/// XFS's knob; only in kernels with `XFS_DEBUG`.
const ALWAYS_COW: &str = "/sys/fs/xfs/debug/always_cow";

/// Mounts the kernel's own file systems. Only debugfs may be missing.
fn mounts() -> Result<(), String> {
    for (kind, target, needed) in [
        ("devtmpfs", "/dev", true),
        ("proc", "/proc", true),
        ("sysfs", "/sys", true),
        ("tmpfs", "/tmp", true),
        ("debugfs", "/sys/kernel/debug", false),
    ] {
        if target != "/sys/kernel/debug" {
            let _ = fs::create_dir_all(target);
        }
        match sys::mount(kind, target, kind) {
            Ok(()) => {}
            // The kernel may have mounted devtmpfs itself.
            Err(e) if e.raw_os_error() == Some(libc::EBUSY) => {}
            Err(e) if needed => return Err(format!("mount of {kind}: {e}")),
            Err(_) => {}
        }
    }
    fs::create_dir_all(MOUNT).map_err(|e| format!("mkdir {MOUNT}: {e}"))
}

/// The disk past the page cache, to be read.
fn uncached(disk: &Disk) -> Result<File, String> {
    File::options()
        .read(true)
        .custom_flags(libc::O_DIRECT)
        .open(&disk.path)
        .map_err(|e| format!("{}: {e}", disk.path))
}

/// Everything up to the first test.
fn prepare(params: Params) -> Result<World, String> {
    let mark_disk = Disk::find(MARK_SERIAL, DISK_LIMIT)?;
    let data = Disk::find(DATA_SERIAL, DISK_LIMIT)?;
    let marks = Marks::open(&mark_disk.path, mark_disk.logical_block() as usize)
        .map_err(|e| format!("{}: {e}", mark_disk.path))?;
    marks.post(&Mark::Boot)?;
    let mut facts = BTreeMap::new();
    discover::of_disks(&mut facts, &data, &mark_disk);
    let raw = uncached(&data)?;
    let mut superblock;
    let meta = if params.realtime {
        let meta = Disk::find(META_SERIAL, DISK_LIMIT)?;
        // One queue of requests without an order of its own, as the disk under test.
        meta.without_scheduler();
        superblock = Superblock::read(&uncached(&meta)?)?;
        // The log is on a disk whose requests nobody judges.
        (superblock.log_start, superblock.log_len) = (0, 0);
        Some(meta)
    } else {
        superblock = Superblock::read(&raw)?;
        None
    };
    let (tags, word, why) = discover::of_tags(params.tags);
    facts.insert("tags".into(), word.into());
    if !why.is_empty() {
        facts.insert("tags_why".into(), why);
    }
    for (key, value) in [
        ("fs", "xfs".to_owned()),
        ("fs_bsize", superblock.bsize.to_string()),
        (
            "reflink",
            if superblock.reflink { "yes" } else { "no" }.into(),
        ),
        ("flag_value", format!("{:#x}", params.flag)),
        ("seed", params.seed.to_string()),
        // Every file with a marked call: opens, fsyncs and changes of it are marked, too.
        ("files", "marked".to_owned()),
        ("probe_ms", params.probe.as_millis().to_string()),
    ] {
        facts.insert(key.into(), value);
    }
    let mut world = World {
        lbs: data.logical_block(),
        bsize: superblock.bsize,
        params,
        marks: Arc::new(marks),
        data,
        meta,
        raw,
        tags,
        facts,
        counters: Counters::default(),
    };
    let err = |e: Fail| runner::text(&e).to_owned();
    // Whether pages are stable is decided by what the disk says when it is mounted.
    let stable = [(
        "stable_writes".to_owned(),
        world.fact("stable_writes").to_owned(),
    )];
    world.post(&Mark::Env(stable.into())).map_err(err)?;
    // Looked at when a file system is mounted.
    if world.params.always_cow {
        let word = match fs::write(ALWAYS_COW, "1") {
            Ok(()) => "on".to_owned(),
            Err(e) => format!(
                "failed-{}",
                sys::errno_name(i64::from(e.raw_os_error().unwrap_or(libc::EIO)))
            ),
        };
        world.facts.insert("always_cow".into(), word);
    }
    match world.mount_with("") {
        Ok(()) => {}
        // No test can run, and each says why.
        Err(e) if world.params.realtime && e.raw_os_error() == Some(libc::ENOSYS) => {
            sys::mount("tmpfs", MOUNT, "tmpfs").map_err(|e| format!("mount of a tmpfs: {e}"))?;
            world.facts.insert("realtime".into(), "absent".into());
            world.post(&Mark::Env(world.facts.clone())).map_err(err)?;
            return Ok(world);
        }
        Err(e) => return Err(format!("mount of {} as xfs: {e}", world.mounted())),
    }
    let dev = fs::metadata(MOUNT)
        .map_err(|e| format!("stat {MOUNT}: {e}"))?
        .dev();
    world
        .post(&Mark::Fs {
            dev,
            kind: "xfs".into(),
            bsize: superblock.bsize,
            log_start: superblock.log_start,
            log_len: superblock.log_len,
        })
        .map_err(err)?;
    discover::of_file_system(&mut world).map_err(err)?;
    world.post(&Mark::Env(world.facts.clone())).map_err(err)?;
    Ok(world)
}
