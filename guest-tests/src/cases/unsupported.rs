// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Where the flag has no business: file systems that do not know it, and
//! combinations that make no sense. A refused call must change nothing.

use std::fs::{self, File};
use std::path::Path;
use std::sync::Arc;

use wtblk_shared::RWF_NOWAIT;

use crate::call::{Call, OpenFile};
use crate::subject::Subject;
use crate::sys;
use crate::test::{Fail, OrFail, Test};

/// Made by the harness with mkfs.ext4, in the initramfs.
const EXT4_IMAGE: &str = "/ext4.img";
const EXT4_MOUNT: &str = "/tmp/ext4";

/// Runs the case.
pub fn run(t: &mut Test) -> Result<(), Fail> {
    refused(t, "tmpfs", Path::new("/tmp/unsupported"))?;
    match mount_ext4() {
        Ok(()) => {
            let result = refused(t, "ext4", &Path::new(EXT4_MOUNT).join("file"));
            sys::umount(EXT4_MOUNT).or_fail(|| "umount of ext4".into())?;
            result?;
        }
        Err(why) => t.note(format!("ext4 was not tried: {why}")),
    }
    combinations(t)
}

/// A file system without the flag. Not marked: its blocks are on no disk of ours.
fn refused(t: &Test, kind: &str, path: &Path) -> Result<(), Fail> {
    let file = File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .open(path)
        .or_fail(|| format!("open {}", path.display()))?;
    let bytes = [0x33; 4096];
    let result = sys::pwritev2(&file, &[&bytes], 0, t.world.params.flag);
    t.check(result == -i64::from(libc::EOPNOTSUPP), || {
        format!(
            "{kind} answered {}, expected -EOPNOTSUPP",
            sys::result_text(result)
        )
    });
    let size = file.metadata().or_fail(|| "fstat".into())?.len();
    t.check(result >= 0 || size == 0, || {
        format!("{kind}: a refused call made the file {size} bytes long")
    });
    Ok(())
}

fn mount_ext4() -> Result<(), String> {
    let image = File::options()
        .read(true)
        .write(true)
        .open(EXT4_IMAGE)
        .map_err(|e| format!("{EXT4_IMAGE}: {e}"))?;
    let device = sys::loop_bind(&image).map_err(|e| format!("loop device: {e}"))?;
    fs::create_dir_all(EXT4_MOUNT).map_err(|e| format!("mkdir {EXT4_MOUNT}: {e}"))?;
    sys::mount(&device, EXT4_MOUNT, "ext4").map_err(|e| format!("mount of {device} as ext4: {e}"))
}

/// On the file system that knows the flag.
fn combinations(t: &Test) -> Result<(), Fail> {
    let b = t.world.bsize;
    let s = Subject::written(t, "file", 4 * b)?;
    let direct = Arc::new(OpenFile::open(t.world, &t.dir.join("file"), true)?);
    let flag = t.world.params.flag;
    for (what, file, flags) in [
        ("together with RWF_NOWAIT", s.open(), flag | RWF_NOWAIT),
        ("on an O_DIRECT file", &direct, flag),
    ] {
        let done = Call {
            world: t.world,
            test: t.name,
            file,
            off: 0,
            len: b,
            flags,
            words: &[],
            pattern: (s.number, s.version() + 1),
        }
        .run(1)?;
        t.check(done.result == -i64::from(libc::EINVAL), || {
            format!(
                "{what} (call {}): answered {}, expected -EINVAL",
                done.call,
                sys::result_text(done.result)
            )
        });
    }
    s.check_whole(t, "after refused calls")
}
