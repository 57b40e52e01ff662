// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The guest's initramfs: our static PID 1 and a small ext4 image, made once
//! per state of the guest's sources.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use super::cpio::{Entry, archive};
use super::image;
use super::paths;

/// Part of the key: raise it when the archive's make-up changes.
const RECIPE: &str = "3";
const TARGET: &str = "x86_64-unknown-linux-gnu";
/// Static, and without vectors: an emulator does them one lane at a time, by calls. To fill a
/// buffer with a test's pattern took 17 times as long with them.
const FLAGS: &str = "-C target-feature=+crt-static -C no-vectorize-loops -C no-vectorize-slp";

/// The initramfs for the current guest sources: from the cache, or made now.
pub fn initramfs() -> Result<PathBuf> {
    let root = paths::root()?;
    let mut parts = paths::tree(&root.join("guest-tests"))?;
    parts.retain(|(name, _)| name.ends_with(".rs") || name.ends_with("Cargo.toml"));
    for name in ["Cargo.toml", "Cargo.lock"] {
        parts.push((
            format!("/{name}"),
            fs::read(root.join(name)).unwrap_or_default(),
        ));
    }
    parts.push(("recipe".into(), RECIPE.into()));
    let key = paths::key(
        parts
            .iter()
            .map(|(name, bytes)| (name.as_str(), bytes.as_slice())),
    );
    let cache = paths::cache()?.join("guest");
    let path = cache.join(&key).join("initramfs.cpio");
    if path.is_file() {
        return Ok(path);
    }
    fs::create_dir_all(cache.join(&key))?;
    let _lock = paths::lock(&cache.join("lock"), "builds the guest tests")?;
    if path.is_file() {
        return Ok(path);
    }
    // In the tree, not in the cache: cargo names what it builds by the path within
    // the workspace and trusts modification times, so with one folder for two
    // checkouts it would take the one's program for the other's.
    let target = root.join("target/guest");
    eprintln!("wtblk: building the guest tests ...");
    let output = Command::new("cargo")
        .args([
            "build",
            "--release",
            "--locked",
            "--package",
            "wtblk-guest",
            "--target",
            TARGET,
            "--target-dir",
        ])
        .arg(&target)
        .current_dir(&root)
        // A variable of its own target, so that build scripts stay dynamic.
        .env("CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUSTFLAGS", FLAGS)
        .env_remove("RUSTFLAGS")
        .stdin(Stdio::null())
        .output()
        .context("cannot run cargo: the guest tests are built with it")?;
    if !output.status.success() {
        bail!(
            "the guest tests did not build:\n{}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
    let init = target.join(TARGET).join("release/wtblk-guest");
    let init = fs::read(&init).with_context(|| format!("the build left no {}", init.display()))?;
    let ext4 = image::small_ext4()?;
    let files = [
        Entry {
            name: "init",
            mode: 0o100755,
            data: &init,
        },
        Entry {
            name: "ext4.img",
            mode: 0o100644,
            data: &ext4,
        },
    ];
    paths::write_whole(&path, &archive(&files))?;
    Ok(path)
}
