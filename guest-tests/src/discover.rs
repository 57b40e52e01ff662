// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Finding out what this guest is: facts that findings depend on, asked for
//! before the first test. What cannot be found out is "unknown".

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use wtblk_shared::mark::Mark;
use wtblk_shared::tag::Tag;

use crate::beside::Gate;
use crate::call::{Call, OpenFile};
use crate::disks::Disk;
use crate::flying::Engine;
use crate::sys::fsxattr::FsXattr;
use crate::sys::{self, Pages, aio, errno_name, uffd};
use crate::test::{Fail, OrFail};
use crate::world::{MOUNT, World};

/// Blocks of the plug-order probe: every second one, so that nothing merges.
const BATCH: u64 = 8;

/// Facts that need no file system.
pub fn of_disks(facts: &mut BTreeMap<String, String>, data: &Disk, mark: &Disk) {
    let mut put = |key: &str, value: String| facts.insert(key.to_owned(), value);
    put("scheduler", data.without_scheduler());
    put("mark_scheduler", mark.without_scheduler());
    put("queues", data.queues());
    put("lbs", data.fact("queue/logical_block_size"));
    put("pbs", data.fact("queue/physical_block_size"));
    put("max_sectors_kb", data.fact("queue/max_sectors_kb"));
    put("max_segments", data.fact("queue/max_segments"));
    put("stable_writes", data.fact("queue/stable_writes"));
    put(
        "write_cache",
        data.fact("queue/write_cache").replace(' ', "-"),
    );
    put("disk_sectors", data.fact("size"));
    put("release", read("/proc/sys/kernel/osrelease"));
    put("cpus", cpus());
    put(
        "thp",
        crate::disks::chosen(&read("/sys/kernel/mm/transparent_hugepage/enabled")),
    );
    put("defect", read("/sys/module/iomap/parameters/wt_defect"));
}

fn read(path: &str) -> String {
    fs::read_to_string(path).map_or_else(
        |_| "unknown".into(),
        |t| {
            let t = t.trim();
            if t.is_empty() {
                "none".into()
            } else {
                t.to_owned()
            }
        },
    )
}

fn cpus() -> String {
    std::thread::available_parallelism().map_or("unknown".into(), |n| n.to_string())
}

/// Whether threads can carry a tag: set one and read it back.
pub fn of_tags(asked: bool) -> (bool, &'static str, String) {
    if !asked {
        return (false, "off", "asked for".into());
    }
    let tag = Tag::nth(1);
    let back = sys::ioprio_set(tag.ioprio()).and_then(|()| sys::ioprio_get());
    let _ = sys::ioprio_set(0);
    match back {
        Ok(value) if value == i64::from(tag.ioprio()) => (true, "on", String::new()),
        Ok(value) => (
            true,
            "inexact",
            format!("set {:#x}, read back {value:#x}", tag.ioprio()),
        ),
        // Kernels before 6.5 know no hints and refuse.
        Err(e) => (false, "off", format!("ioprio_set: {e}")),
    }
}

/// Facts that need a file on the file system under test.
pub fn of_file_system(world: &mut World) -> Result<(), Fail> {
    let dir = PathBuf::from(MOUNT).join("probes");
    fs::create_dir_all(&dir).or_fail(|| format!("mkdir {}", dir.display()))?;
    let yes_no = |e: std::io::Result<()>| match e {
        Ok(()) => "yes".to_owned(),
        Err(e) => match e.raw_os_error() {
            Some(libc::EPERM) => "forbidden".into(),
            _ => "no".into(),
        },
    };
    let mut facts = BTreeMap::new();
    facts.insert("io_uring", yes_no(sys::io_uring_works()));
    facts.insert("userfaultfd", yes_no(uffd::works()));
    facts.insert("page_flags", yes_no(sys::page_flags::works()));
    let path = dir.join("scratch");
    let scratch = OpenFile::open(world, &path, false)?;
    let len = world.bsize * BATCH * 2;
    scratch
        .file
        .write_all_at(&vec![0x5a; len as usize], 0)
        .and_then(|()| scratch.file.sync_all())
        .or_fail(|| "writing the probes' file".into())?;
    facts.insert(
        "cachestat",
        yes_no(sys::cachestat(&scratch.file, 0, len).map(drop)),
    );
    if world.params.realtime {
        let attr = FsXattr::of(&scratch.file).or_fail(|| "FS_IOC_FSGETXATTR".into())?;
        facts.insert(
            "realtime",
            if attr.is_realtime() { "on" } else { "off" }.to_owned(),
        );
    }
    let (flag, answer) = flag_works(world, &scratch);
    facts.insert("flag", flag);
    facts.insert("flag_answer", answer);
    drop(scratch);
    facts.insert("tag_probe", probe_tag(world, &path)?);
    let aio = probe_plug_order(world, &path)?;
    if world.tags && facts["flag"] == "works" {
        let mut engines = vec![(aio == "yes").then_some(Engine::Aio)];
        engines.push((facts["io_uring"] == "yes").then_some(Engine::Uring));
        for engine in engines.into_iter().flatten() {
            probe_async_tag(world, &path, engine)?;
        }
    }
    facts.insert("aio", aio);
    // The arrival order is the device's to see; it has the marks to judge by.
    facts.insert("plug_order", "unknown".into());
    let facts = facts.into_iter().map(|(k, v)| (k.to_owned(), v));
    world.facts.extend(facts);
    Ok(())
}

/// One block with the flag, not marked: only the answer is asked for.
fn flag_works(world: &World, scratch: &OpenFile) -> (String, String) {
    let bytes = vec![0x5a; world.bsize as usize];
    let result = sys::pwritev2(&scratch.file, &[&bytes], 0, world.params.flag);
    let word = match -result {
        n if n <= 0 => "works".to_owned(),
        n if n == i64::from(libc::EOPNOTSUPP) => "absent".to_owned(),
        n => format!("refused-{}", errno_name(n)),
    };
    (word, sys::result_text(result))
}

/// One O_DIRECT write by a tagged thread: the device sees whether the tag came.
fn probe_tag(world: &World, path: &Path) -> Result<String, Fail> {
    let file = OpenFile::open(world, path, true)?;
    let done = Call {
        world,
        test: "probes",
        file: &file,
        off: 0,
        len: world.bsize,
        flags: 0,
        words: &["probe-tag"],
        pattern: (world.next_file(), 1),
    }
    .run(1)?;
    Ok(outcome(done.result, world.bsize as i64))
}

/// One asynchronous call with the flag and its tag in the request only: the device sees
/// whether the kernel gave it to the bio.
fn probe_async_tag(world: &World, path: &Path, engine: Engine) -> Result<(), Fail> {
    let file = OpenFile::open(world, path, false)?;
    let call = Call {
        world,
        test: "probes",
        file: &file,
        off: 0,
        len: world.bsize,
        flags: world.params.flag,
        words: &["async", "probe-tag"],
        pattern: (world.next_file(), 1),
    };
    // What came of it is told by its end mark.
    call.submit(engine, &Gate::default())?.finish().map(drop)
}

/// A batch of O_DIRECT writes in one io_submit, ascending, under one plug: the
/// device sees whether this kernel keeps the order.
fn probe_plug_order(world: &World, path: &Path) -> Result<String, Fail> {
    let file = OpenFile::open(world, path, true)?;
    let bsize = world.bsize;
    let offsets: Vec<u64> = (0..BATCH).map(|i| i * 2 * bsize).collect();
    let number = world.next_file();
    let mut pages = Pages::new((bsize * BATCH) as usize).or_fail(|| "buffer".into())?;
    for (i, off) in offsets.iter().enumerate() {
        let from = i * bsize as usize;
        let part = &mut pages.bytes_mut()[from..from + bsize as usize];
        wtblk_shared::pattern::fill(number, 1, *off, part);
    }
    world.note("probe plug-order begin");
    let mut problem = None;
    let done = Call {
        world,
        test: "probes",
        file: &file,
        off: 0,
        len: bsize * (BATCH * 2 - 1),
        flags: 0,
        words: &["async", "probe-plug-order"],
        pattern: (number, 1),
    }
    .marked(|begun| {
        let ioprio = begun.tag.map(Tag::ioprio);
        let limit = world.params.probe;
        match aio::write_batch(&file.file, pages, bsize as usize, &offsets, ioprio, limit) {
            Ok(results) => results
                .iter()
                .copied()
                .find(|r| *r < 0)
                .unwrap_or_else(|| results.iter().sum()),
            Err(e) => {
                let errno = e.raw_os_error().unwrap_or(libc::ETIMEDOUT);
                problem = Some(errno);
                -i64::from(errno)
            }
        }
    })?;
    world.note("probe plug-order end");
    Ok(match problem {
        Some(libc::ENOSYS) => "no".into(),
        Some(errno) => format!("failed-{}", errno_name(i64::from(errno))),
        None => outcome(done.result, (bsize * BATCH) as i64).replace("done", "yes"),
    })
}

fn outcome(result: i64, wanted: i64) -> String {
    if result == wanted {
        "done".into()
    } else {
        format!(
            "failed-{}",
            sys::result_text(result).trim_start_matches('-')
        )
    }
}

/// The line for the console: the mark's own text, so that there is one format.
pub fn env_line(facts: &BTreeMap<String, String>) -> String {
    let line = Mark::Env(facts.clone()).to_line();
    let words = line.split_once(' ').map_or("", |(_, rest)| rest);
    format!("wtblk-guest {words}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_env_line_is_the_marks_text() {
        let facts = [("a".to_owned(), "b c".to_owned())].into();
        assert_eq!(env_line(&facts), "wtblk-guest env a=b%20c");
    }
}
