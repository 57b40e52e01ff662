// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The guest kernel: Debian's source, our patches and fragment, built once per key.
//!
//! Cache layout: `kernel/SOURCE/linux` is one work tree per source version. It
//! stays patched; when the patches change, the old ones are taken back and the
//! new ones applied, so that make rebuilds only what they touch. It is built beside itself,
//! as somebody's own tree is (`kbuild`). Images lie in `kernel/images/KEY`, the key being over everything that goes in.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::AtomicBool;

use anyhow::{Context, Result, bail};

use super::kbuild::{self, Job, Kbuild, missing_options};
use super::paths;
use super::progress::Progress;

/// The series of Debian's kernel source package that our patches are for.
pub const SERIES: &str = "6.12";
/// Part of the key: raise it when the way we build changes what comes out.
const RECIPE: &str = "1";

/// A built kernel.
#[derive(Clone, Debug)]
pub struct Kernel {
    /// Folder with `vmlinux`, `bzImage`, `config`, `build.log`.
    pub dir: PathBuf,
    /// Its key.
    pub key: String,
}

impl Kernel {
    /// The PVH image.
    pub fn vmlinux(&self) -> PathBuf {
        self.dir.join("vmlinux")
    }
}

/// What goes into a build.
struct Recipe {
    /// Name and version of the source, e.g. `linux-source-6.12_6.12.117-1`.
    source: String,
    deb: PathBuf,
    /// The patches in the order of `series`.
    patches: Vec<(String, Vec<u8>)>,
    fragment: Vec<u8>,
    compiler: String,
}

impl Recipe {
    fn key(&self) -> String {
        let mut parts: Vec<(&str, &[u8])> = vec![
            ("recipe", RECIPE.as_bytes()),
            ("source", self.source.as_bytes()),
            ("compiler", self.compiler.as_bytes()),
            ("fragment", &self.fragment),
        ];
        parts.extend(
            self.patches
                .iter()
                .map(|(name, bytes)| (name.as_str(), bytes.as_slice())),
        );
        paths::key(parts)
    }
}

/// The kernel for the current patches: from the cache, or built now.
pub fn build() -> Result<Kernel> {
    let cache = paths::cache()?.join("kernel");
    fs::create_dir_all(cache.join("images"))?;
    let recipe = recipe(&cache)?;
    if let Some(kernel) = cached(&cache, &recipe) {
        return Ok(kernel);
    }
    let _lock = paths::lock(&cache.join("lock"), "builds a kernel")?;
    if let Some(kernel) = cached(&cache, &recipe) {
        return Ok(kernel);
    }
    let tree = source_tree(&cache, &recipe)?;
    patch_tree(&tree, &recipe)?;
    compile(&cache, &recipe, &tree)
}

/// The patched source of the current patches: as it is, or unpacked and patched now. It is ours: who wants to
/// change it takes a copy.
pub fn source() -> Result<PathBuf> {
    let cache = paths::cache()?.join("kernel");
    fs::create_dir_all(cache.join("images"))?;
    let recipe = recipe(&cache)?;
    let _lock = paths::lock(&cache.join("lock"), "builds a kernel")?;
    let tree = source_tree(&cache, &recipe)?;
    patch_tree(&tree, &recipe)?;
    Ok(tree)
}

/// Builds the tree and keeps what comes out.
fn compile(cache: &Path, recipe: &Recipe, tree: &Path) -> Result<Kernel> {
    let kbuild = Kbuild::of(tree)?;
    let lock = kbuild.lock()?;
    let fragments = [("wtblk.config".to_owned(), recipe.fragment.clone())];
    let config = kbuild.configure(&fragments)?;
    let missing = missing_options(&config, &String::from_utf8_lossy(&recipe.fragment));
    if !missing.is_empty() {
        bail!(
            "the kernel configuration did not take: {}",
            missing.join(", ")
        );
    }
    let job = Job {
        what: "building the guest kernel",
        fragments: &fragments,
        targets: &["vmlinux", "bzImage"],
        stop: &AtomicBool::new(false),
    };
    kbuild.make(&lock, &job)?;
    keep(cache, recipe, &kbuild)
}

fn cached(cache: &Path, recipe: &Recipe) -> Option<Kernel> {
    let key = recipe.key();
    let dir = cache.join("images").join(&key);
    dir.join("vmlinux").is_file().then_some(Kernel { dir, key })
}

fn recipe(cache: &Path) -> Result<Recipe> {
    let config = paths::root()?.join("kernel-config");
    let patch_dir = config.join("patches").join(SERIES);
    let series = read(&patch_dir.join("series"))?;
    let series = String::from_utf8_lossy(&series).into_owned();
    let mut patches = Vec::new();
    for name in series
        .lines()
        .map(str::trim)
        .filter(|l| !l.is_empty() && !l.starts_with('#'))
    {
        patches.push((name.to_owned(), read(&patch_dir.join(name))?));
    }
    let deb = source_package(cache)?;
    let source = deb
        .file_stem()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned();
    let compiler = kbuild::compiler()?;
    Ok(Recipe {
        source,
        deb,
        patches,
        fragment: read(&config.join("wtblk.config"))?,
        compiler,
    })
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("cannot read {}", path.display()))
}

/// The source package, from the cache or by apt. The newest cached one is taken
/// without asking the network, so that a run today builds what ran yesterday.
fn source_package(cache: &Path) -> Result<PathBuf> {
    let dir = cache.join("deb");
    fs::create_dir_all(&dir)?;
    if let Some(deb) = newest_deb(&dir)? {
        return Ok(deb);
    }
    let _lock = paths::lock(&cache.join("deb.lock"), "fetches the kernel source")?;
    if let Some(deb) = newest_deb(&dir)? {
        return Ok(deb);
    }
    let progress = Progress::new("fetching the kernel source", 1);
    let staging = tempfile::tempdir_in(cache)?;
    let package = format!("linux-source-{SERIES}");
    let download = || {
        Command::new("apt-get")
            .args(["-q", "-o", "APT::Sandbox::User=root", "download", &package])
            .current_dir(staging.path())
            .stdin(Stdio::null())
            .output()
            .context("cannot run apt-get: the kernel source comes as a Debian package")
    };
    let mut result = download()?;
    if !result.status.success() {
        // A fresh machine has no package lists yet, an old one stale ones.
        let _ = Command::new("apt-get")
            .args(["-q", "update"])
            .stdin(Stdio::null())
            .output();
        result = download()?;
    }
    if !result.status.success() {
        bail!(
            "apt-get could not fetch {package}; its last words: {}",
            String::from_utf8_lossy(&result.stderr)
                .lines()
                .last()
                .unwrap_or("none")
        );
    }
    let deb = newest_deb(staging.path())?
        .with_context(|| format!("apt-get left no {package} package"))?;
    let name = deb.file_name().context("a package without a name")?;
    // apt writes an epoch's colon as %3a, and a colon would end a PATH-like word.
    let kept = dir.join(name.to_string_lossy().replace("%3a", "-"));
    fs::rename(&deb, &kept)?;
    progress.end(&kept.file_name().unwrap_or_default().to_string_lossy());
    Ok(kept)
}

fn newest_deb(dir: &Path) -> Result<Option<PathBuf>> {
    let mut debs: Vec<PathBuf> = fs::read_dir(dir)?
        .filter_map(|e| Some(e.ok()?.path()))
        .filter(|p| p.extension().is_some_and(|e| e == "deb"))
        .collect();
    debs.sort_by_key(|p| fs::metadata(p).and_then(|m| m.modified()).ok());
    Ok(debs.pop())
}

/// The unpacked work tree of the source.
fn source_tree(cache: &Path, recipe: &Recipe) -> Result<PathBuf> {
    let home = cache.join(&recipe.source);
    let tree = home.join("linux");
    if tree.join("Makefile").is_file() {
        // Earlier versions of wtblk built in the tree itself.
        if tree.join(".config").exists() {
            let progress = Progress::new("cleaning the kernel source", 1);
            kbuild::run(Command::new("make").arg("-C").arg(&tree).arg("mrproper"))?;
            let _ = fs::remove_file(tree.join(".wtblk-config"));
            progress.end("done");
        }
        return Ok(tree);
    }
    let progress = Progress::new("unpacking the kernel source", 1);
    let _ = fs::remove_dir_all(&home);
    let staging = tempfile::tempdir_in(cache)?;
    kbuild::run(
        Command::new("dpkg-deb")
            .arg("-x")
            .arg(&recipe.deb)
            .arg(staging.path()),
    )?;
    let tar = staging
        .path()
        .join(format!("usr/src/linux-source-{SERIES}.tar.xz"));
    let unpacked = staging.path().join("out");
    fs::create_dir(&unpacked)?;
    kbuild::run(
        Command::new("tar")
            .args(["-x", "--xz", "--strip-components=1", "-f"])
            .arg(&tar)
            .arg("-C")
            .arg(&unpacked),
    )?;
    fs::create_dir_all(&home)?;
    // Last, so that an interrupted unpacking is never taken for a tree.
    fs::rename(&unpacked, &tree)?;
    progress.end("done");
    Ok(tree)
}

/// Brings the tree from the patches it has to those it should have.
fn patch_tree(tree: &Path, recipe: &Recipe) -> Result<()> {
    let kept = tree.join(".wtblk-patches");
    let applied = applied_patches(&kept)?;
    if applied
        .iter()
        .map(|(_, bytes)| bytes)
        .eq(recipe.patches.iter().map(|(_, bytes)| bytes))
    {
        return Ok(());
    }
    for (name, bytes) in applied.iter().rev() {
        patch(tree, name, bytes, true).with_context(|| {
            format!(
                "the tree {} does not let go of {name}; remove the folder, it is made anew",
                tree.display()
            )
        })?;
        fs::remove_file(kept.join(name))?;
    }
    fs::create_dir_all(&kept)?;
    for (i, (name, bytes)) in recipe.patches.iter().enumerate() {
        patch(tree, name, bytes, false)?;
        // The number keeps the order when they are taken back.
        fs::write(kept.join(format!("{i:04}-{name}")), bytes)?;
    }
    Ok(())
}

fn applied_patches(kept: &Path) -> Result<Vec<(String, Vec<u8>)>> {
    if !kept.is_dir() {
        return Ok(Vec::new());
    }
    paths::tree(kept)
}

fn patch(tree: &Path, name: &str, bytes: &[u8], reverse: bool) -> Result<()> {
    // A trial first: a patch that fails half way would leave a tree that is neither.
    for dry in [true, false] {
        let mut command = Command::new("patch");
        command
            .args([
                "-p1",
                "--batch",
                "--no-backup-if-mismatch",
                "--fuzz=0",
                "-d",
            ])
            .arg(tree);
        command
            .args(reverse.then_some("-R"))
            .args(dry.then_some("--dry-run"));
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = command
            .spawn()
            .context("cannot run patch (ci/setup installs it)")?;
        let mut stdin = child.stdin.take().context("no pipe to patch")?;
        let bytes = bytes.to_vec();
        // A thread, because patch may write much before it has read all.
        let writer = std::thread::spawn(move || stdin.write_all(&bytes));
        let output = child.wait_with_output()?;
        let _ = writer.join();
        if !output.status.success() {
            bail!(
                "{name} does not apply to {}:\n{}",
                tree.display(),
                String::from_utf8_lossy(&output.stdout)
            );
        }
    }
    Ok(())
}

/// Copies what was built to its place under the key.
fn keep(cache: &Path, recipe: &Recipe, kbuild: &Kbuild) -> Result<Kernel> {
    let key = recipe.key();
    let images = cache.join("images");
    let staging = tempfile::tempdir_in(&images)?;
    for (from, to) in [
        ("vmlinux", "vmlinux"),
        ("arch/x86/boot/bzImage", "bzImage"),
        (".config", "config"),
    ] {
        fs::copy(kbuild.output().join(from), staging.path().join(to))
            .with_context(|| format!("the build left no {from}"))?;
    }
    fs::copy(kbuild.log(), staging.path().join("build.log"))?;
    let dir = images.join(&key);
    let _ = fs::remove_dir_all(&dir);
    fs::rename(staging.keep(), &dir)?;
    Ok(Kernel { dir, key })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patches_are_exchanged_in_place() {
        let dir = tempfile::tempdir().unwrap();
        let tree = dir.path();
        fs::write(tree.join("f"), "one\ntwo\n").unwrap();
        let recipe = |new: &str| Recipe {
            source: String::new(),
            deb: PathBuf::new(),
            patches: vec![(
                "a.patch".into(),
                format!("--- a/f\n+++ b/f\n@@ -1,2 +1,2 @@\n one\n-two\n+{new}\n").into_bytes(),
            )],
            fragment: vec![],
            compiler: String::new(),
        };
        patch_tree(tree, &recipe("three")).unwrap();
        assert_eq!(fs::read_to_string(tree.join("f")).unwrap(), "one\nthree\n");
        patch_tree(tree, &recipe("three")).unwrap();
        patch_tree(tree, &recipe("four")).unwrap();
        assert_eq!(fs::read_to_string(tree.join("f")).unwrap(), "one\nfour\n");
        fs::write(tree.join("f"), "else\n").unwrap();
        assert!(patch_tree(tree, &recipe("five")).is_err());
        assert_ne!(recipe("a").key(), recipe("b").key());
    }
}
