// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Images that lie in memory are mapped: what happens to the file under the
//! mapping is an error of one request, and the device goes on.

mod common;

use std::fs::OpenOptions;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::process::Command;

use common::driver::*;
use common::serve::{Serve, wtblk};
use common::{not_checked, until};
use wtblk::trace::event::DeviceKind;

/// A folder on a tmpfs.
fn in_memory() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm").unwrap()
}

#[test]
fn an_image_that_is_cut_short_fails_requests_and_nothing_else() {
    let serve = Serve::start_in(in_memory(), "", &["--image", "img", "--size", "16MiB"]);
    let mut d = Driver::connect(serve.data(), 1);
    for sector in [0, 8, 20_000] {
        assert_eq!(d.write(sector, &[7; 4096]), 0);
    }
    let image = OpenOptions::new().write(true).open(serve.path("img"));
    image.unwrap().set_len(4096).unwrap();
    assert_eq!(d.read(0, 4096), (0, vec![7; 4096]));
    assert_eq!(d.read(8, 4096).0, 1);
    assert_eq!(d.read(20_000, 512).0, 1);
    // A write makes the file as long as it needs; what was cut off is gone.
    assert_eq!(d.write(20_000, &[8; 512]), 0);
    assert_eq!(d.read(20_000, 512), (0, vec![8; 512]));
    assert_eq!(d.read(8, 4096), (0, vec![0; 4096]));
    drop(d);
    let trace = serve.end();
    trace.assert_paired();
    assert_eq!(trace.device(DeviceKind::StoreError).len(), 2);
}

/// What a mapping takes behind the new end, to the end of the page, never comes into the file; what
/// lay there is gone. So nothing of a cut image is said to be durable or to be zeros.
#[test]
fn of_an_image_that_is_cut_short_nothing_is_durable() {
    let elsewhere = || tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    for (dir, aio) in [
        (in_memory(), "auto"),
        (elsewhere(), "auto"),
        (elsewhere(), "threads"),
    ] {
        let words = ["--image", "img", "--size", "16MiB", "--aio", aio];
        let serve = Serve::start_in(dir, "", &words);
        let mut d = Driver::connect(serve.data(), 1);
        let flush = |d: &mut Driver| {
            let head = d.submit(0, 9, FLUSH, 0, 0);
            d.kick(0);
            d.finish(0, 9, head)
        };
        assert_eq!(d.write(0, &[7; 4096]), 0);
        assert_eq!(flush(&mut d), 0);
        let image = OpenOptions::new().write(true).open(serve.path("img"));
        let image = image.unwrap();
        image.set_len(2048).unwrap();
        // Whether the write is taken is the file system's to say; a flush must not call it durable.
        d.write(4, &[8; 512]);
        assert_eq!(flush(&mut d), 1, "{aio}");
        assert_eq!(d.zero(DISCARD, &[(800, 8, 0)]), 1, "{aio}");
        assert_eq!(d.zero(WRITE_ZEROES, &[(800, 8, 1)]), 1, "{aio}");
        assert_eq!(d.zero(WRITE_ZEROES, &[(800, 8, 0)]), 1, "{aio}");
        // A write to the end of the disk would hide it.
        assert_eq!(d.write((16 << 11) - 8, &[5; 4096]), 1, "{aio}");
        assert_eq!(flush(&mut d), 1, "{aio}");
        // Whoever makes it whole again may go on.
        image.set_len(16 << 20).unwrap();
        assert_eq!(d.write(4, &[9; 512]), 0);
        assert_eq!(flush(&mut d), 0, "{aio}");
        assert_eq!(d.read(4, 512), (0, vec![9; 512]));
        drop(d);
        let trace = serve.end();
        trace.assert_paired();
        let told = trace.device(DeviceKind::StoreError);
        assert!(told.iter().all(|t| t.2.contains("cut")), "{told:?}");
        assert_eq!(told.len(), 6, "{aio}: {told:?}");
    }
}

#[test]
fn reading_a_sparse_image_leaves_it_sparse() {
    let serve = Serve::start_in(in_memory(), "", &["--image", "img", "--size", "16MiB"]);
    let mut d = Driver::connect(serve.data(), 1);
    assert_eq!(d.write(800, &[1; 4096]), 0);
    for sector in (0..32768).step_by(64) {
        assert_eq!(d.read(sector, 32768).0, 0);
    }
    assert_eq!(std::fs::metadata(serve.path("img")).unwrap().blocks(), 8);
    assert_eq!(d.zero(DISCARD, &[(800, 8, 0)]), 0);
    assert_eq!(d.read(800, 4096), (0, vec![0; 4096]));
    assert_eq!(std::fs::metadata(serve.path("img")).unwrap().blocks(), 0);
    drop(d);
    serve.end().assert_paired();
}

/// In a mount namespace of its own, on a tmpfs with room for a few pages.
#[test]
fn a_full_tmpfs_fails_writes_and_keeps_what_was_written() {
    full_disk("auto");
}

#[test]
fn a_full_disk_fails_writes_of_threads_alone() {
    full_disk("threads");
}

#[test]
fn a_full_disk_fails_writes_by_io_uring_alone() {
    full_disk("io_uring");
}

fn full_disk(aio: &str) {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("small")).unwrap();
    let tried = Command::new("unshare").args(["-m", "true"]).status();
    if !tried.is_ok_and(|status| status.success()) {
        return not_checked("no mount namespaces");
    }
    let args = [
        &["--image", "small/img", "--size", "16MiB", "--aio", aio][..],
        &["--disk", "name=more,memory=1MiB,socket=more"],
    ];
    let serve = Serve::start_with(dir, "", &args.concat(), |command| {
        let program = wtblk().get_program().to_owned();
        *command = Command::new("unshare");
        let script = "mount -t tmpfs -o size=64k none small && exec \"$@\"";
        command.args(["-m", "sh", "-c", script, "sh"]).arg(program);
    });
    let more = until("the other socket", || {
        UnixStream::connect(serve.path("more")).ok()
    });
    let mut more = Driver::connect(more, 1);
    let mut d = Driver::connect(serve.data(), 1);
    let mut stored = Vec::new();
    for block in 0..32 {
        let status = d.write(block * 80, &[block as u8 + 1; 4096]);
        if status == 0 {
            stored.push(block);
        }
        // The other disk has room.
        assert_eq!(more.write(block, &[block as u8 + 1; 512]), 0);
    }
    // Some went in, some found no room; who was told so by a status is right.
    assert!((1..32).contains(&stored.len()), "{stored:?}");
    for block in 0..32 {
        let (status, bytes) = d.read(block * 80, 4096);
        assert_eq!(status, 0);
        let byte = match stored.contains(&block) {
            true => block as u8 + 1,
            false => 0,
        };
        assert!(bytes == [byte; 4096], "block {block}");
        assert_eq!(more.read(block, 512), (0, vec![block as u8 + 1; 512]));
    }
    // Written again where there is a page: that needs no room.
    assert_eq!(d.write(stored[0] * 80, &[99; 4096]), 0);
    assert_eq!(d.read(stored[0] * 80, 4096), (0, vec![99; 4096]));
    drop((d, more));
    let trace = serve.end();
    trace.assert_paired();
    let errors = trace.device(DeviceKind::StoreError);
    assert_eq!(errors.len(), 32 - stored.len());
    assert!(
        errors.iter().all(|e| e.0 == libc::ENOSPC as u64),
        "{errors:?}"
    );
}

/// The trace is mapped, too: who cuts it short loses the trace, not the disk.
#[test]
fn a_trace_that_is_cut_short_is_no_end_of_the_device() {
    let serve = Serve::start("", &[]);
    let mut d = Driver::connect(serve.data(), 1);
    assert_eq!(d.write(0, &[1; 512]), 0);
    for name in ["trace", "trace.data"] {
        let file = OpenOptions::new().write(true).open(serve.path(name));
        file.unwrap().set_len(0).unwrap();
    }
    for sector in 0..200 {
        assert_eq!(d.write(sector, &[2; 512]), 0);
    }
    assert_eq!(d.read(199, 512), (0, vec![2; 512]));
    drop(d);
    let mut serve = serve;
    serve.signal(nix::sys::signal::Signal::SIGTERM);
    assert_eq!(serve.wait(), 0);
}
