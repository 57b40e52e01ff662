// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `--kdir`: a kernel built from somebody's own tree, with our options and nothing else of ours.

pub mod options;
pub mod tree;
pub mod uapi;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::UNIX_EPOCH;

use anyhow::{Context, Result, bail};

use self::options::{Missing, Weight};
use self::tree::Tree;
use super::kbuild::{Fragment, Job, Kbuild};
use super::paths;
use crate::input;

/// Images of a tree that are kept beside the newest: runs and sweeps refer to them.
const KEPT: usize = 4;
/// Most bytes of somebody's fragment.
const MAX_FRAGMENT: u64 = 1 << 20;

/// Which kernel boots.
#[derive(Clone, Debug)]
pub enum Source {
    /// Our own, built if need be.
    Ours,
    /// An image.
    Image(PathBuf),
    /// To be built from a tree, with further fragments of a configuration.
    Tree(Tree, Vec<PathBuf>),
    /// Built from a tree.
    Built(Built),
}

impl Source {
    /// The flag's value.
    pub fn flag(&self) -> Option<u32> {
        self.tree()?.flag
    }

    /// The tree, if it is one's own.
    pub fn tree(&self) -> Option<&Tree> {
        match self {
            Source::Ours | Source::Image(_) => None,
            Source::Tree(tree, _) => Some(tree),
            Source::Built(built) => Some(&built.tree),
        }
    }

    /// Why no test of the flag can run on it: its tree does not define the flag. Nobody has to build it to know.
    pub fn without_flag(&self) -> Option<String> {
        let tree = self.tree().filter(|tree| tree.flag.is_none())?;
        Some(format!(
            "this kernel has no RWF_WRITETHROUGH ({} does not define it)",
            tree.path.join(tree::HEADER).display()
        ))
    }

    /// What of it belongs into results.
    pub fn environment(&self) -> BTreeMap<&'static str, String> {
        let mut facts = BTreeMap::new();
        let Some(tree) = self.tree() else {
            return facts;
        };
        facts.insert("kdir", tree.path.display().to_string());
        facts.insert("linux", tree.version.clone());
        if let Source::Built(built) = self {
            facts.extend(built.commit.clone().map(|commit| ("commit", commit)));
            let missing: Vec<&str> = built.missing.iter().map(|m| m.asked.as_str()).collect();
            if !missing.is_empty() {
                facts.insert("missing_options", missing.join(", "));
            }
        }
        facts
    }

    /// The same, built if it is a tree, unless `stop` is set meanwhile.
    pub fn built(self, stop: &AtomicBool) -> Result<Source> {
        Ok(match self {
            Source::Tree(tree, more) => Source::Built(build(&tree, &more, stop)?),
            other => other,
        })
    }
}

/// A kernel from somebody's tree.
#[derive(Clone, Debug)]
pub struct Built {
    /// The tree.
    pub tree: Tree,
    /// Its commit, where git knows it.
    pub commit: Option<String>,
    /// The image, under a name of its own: the next build does not touch it.
    pub image: PathBuf,
    /// Options that the tree did not take.
    pub missing: Vec<Missing>,
    /// Keeps the image from being removed.
    _held: Arc<fs::File>,
}

/// Builds what is new in the tree, unless `stop` is set meanwhile.
pub fn build(tree: &Tree, more: &[PathBuf], stop: &AtomicBool) -> Result<Built> {
    let fragments = fragments(more)?;
    let kbuild = Kbuild::of(&tree.path)?;
    let lock = kbuild.lock()?;
    let config = kbuild.configure(&fragments)?;
    let mut missing = Vec::new();
    for (name, text) in &fragments {
        let text = String::from_utf8_lossy(text);
        let of_this = options::missing(&tree.path, &config, &text);
        tell(name, &of_this);
        missing.extend(of_this);
    }
    refuse_hopeless(tree, &missing)?;
    let commit = tree.commit();
    let job = Job {
        what: "building the kernel",
        fragments: &fragments,
        targets: &["vmlinux"],
        stop,
    };
    kbuild
        .make(&lock, &job)
        .with_context(|| format!("--kdir {}", tree.path.display()))?;
    let (image, held) = keep(&kbuild)?;
    Ok(Built {
        tree: tree.clone(),
        commit,
        image,
        missing,
        _held: Arc::new(held),
    })
}

/// Our fragment, then those that the user names: where they differ the later one wins.
fn fragments(more: &[PathBuf]) -> Result<Vec<Fragment>> {
    let ours = paths::root()?.join("kernel-config/wtblk.config");
    let text = fs::read(&ours).with_context(|| format!("cannot read {}", ours.display()))?;
    let mut all = vec![("kernel-config/wtblk.config".to_owned(), text)];
    for path in more {
        let text = input::text(path, "fragment of --kconfig", MAX_FRAGMENT)?;
        all.push((path.display().to_string(), text.into_bytes()));
    }
    Ok(all)
}

/// Tells what of a fragment did not take, what matters first.
fn tell(fragment: &str, missing: &[Missing]) {
    if missing.is_empty() {
        return;
    }
    eprintln!(
        "wtblk: the tree did not take {} options of {fragment}:",
        missing.len()
    );
    let mut sorted: Vec<&Missing> = missing.iter().collect();
    sorted.sort_by_key(|m| m.weight as u8);
    for missing in sorted {
        let matters = match missing.weight {
            Weight::Vital => "no test runs without it: ",
            Weight::Tests => "tests need it: ",
            Weight::Rest => "",
        };
        eprintln!("wtblk:   {matters}{}", missing.describe());
    }
}

/// Nobody shall wait for a kernel that cannot run a test. An option that the tree does not know is another matter: it may have
/// become a matter of course.
fn refuse_hopeless(tree: &Tree, missing: &[Missing]) -> Result<()> {
    let hopeless: Vec<String> = missing
        .iter()
        .filter(|m| m.weight == Weight::Vital && !m.unknown)
        .map(Missing::describe)
        .collect();
    if !hopeless.is_empty() {
        bail!(
            "--kdir {}: the tree's configuration does not take what no test runs without: {}",
            tree.path.display(),
            hopeless.join("; ")
        );
    }
    Ok(())
}

/// Gives the image a place and name of its own, and removes those that nobody needs. The file is locked: nobody removes it.
fn keep(kbuild: &Kbuild) -> Result<(PathBuf, fs::File)> {
    let built = kbuild.output().join("vmlinux");
    let meta =
        fs::metadata(&built).with_context(|| format!("the build left no {}", built.display()))?;
    let made = meta
        .modified()?
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    let images = kbuild.home().join("images");
    // make touches it only where it links it.
    let dir = images.join(format!("{}-{}", made.as_millis(), meta.len()));
    if !dir.join("vmlinux").is_file() {
        fs::create_dir_all(&images)?;
        let staging = tempfile::tempdir_in(&images)?;
        for (from, to) in [("vmlinux", "vmlinux"), (".config", "config")] {
            fs::copy(kbuild.output().join(from), staging.path().join(to))
                .with_context(|| format!("cannot keep {from}"))?;
        }
        let _ = fs::remove_dir_all(&dir);
        fs::rename(staging.keep(), &dir)?;
    }
    let image = dir.join("vmlinux");
    let held = fs::File::open(&image)?;
    held.lock_shared()
        .with_context(|| format!("cannot lock {}", image.display()))?;
    forget_old(&images, &dir);
    Ok((image, held))
}

/// Removes images that are old and that no run holds. Best effort.
fn forget_old(images: &Path, newest: &Path) {
    let mut old: Vec<PathBuf> = fs::read_dir(images)
        .into_iter()
        .flatten()
        .filter_map(|e| Some(e.ok()?.path()))
        .filter(|path| path != newest)
        .collect();
    old.sort_by_key(|path| fs::metadata(path).and_then(|m| m.modified()).ok());
    let surplus = old.len().saturating_sub(KEPT);
    for dir in old.iter().take(surplus) {
        let image = fs::File::open(dir.join("vmlinux"));
        if image.is_ok_and(|image| image.try_lock().is_ok()) {
            let _ = fs::remove_dir_all(dir);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_tree_without_the_flag_says_so() {
        let dir = tempfile::tempdir().unwrap();
        let path = tree::tests::fake(dir.path(), "");
        let source = Source::Tree(Tree::open(&path, None).unwrap(), vec![]);
        let why = source.without_flag().unwrap();
        assert!(
            why.starts_with("this kernel has no RWF_WRITETHROUGH"),
            "{why}"
        );
        fs::write(path.join(tree::HEADER), "#define RWF_WRITETHROUGH 0x80").unwrap();
        let source = Source::Tree(Tree::open(&path, None).unwrap(), vec![]);
        assert_eq!(source.without_flag(), None);
        assert_eq!(Source::Ours.without_flag(), None);
        let source = Source::Tree(Tree::open(&path, Some(4)).unwrap(), vec![]);
        assert_eq!((source.without_flag(), source.flag()), (None, Some(4)));
    }

    #[test]
    fn what_nothing_runs_without_is_refused_and_what_the_tree_does_not_know_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = tree::tests::fake(dir.path(), "");
        let tree = Tree::open(&path, None).unwrap();
        let missing = |weight, unknown| Missing {
            asked: "CONFIG_XFS_FS=y".into(),
            purpose: "the file system under test".into(),
            weight,
            unknown,
        };
        assert!(refuse_hopeless(&tree, &[missing(Weight::Vital, true)]).is_ok());
        assert!(refuse_hopeless(&tree, &[missing(Weight::Tests, false)]).is_ok());
        let all = [missing(Weight::Rest, false), missing(Weight::Vital, false)];
        let said = refuse_hopeless(&tree, &all).unwrap_err().to_string();
        assert!(
            said.ends_with("CONFIG_XFS_FS=y: the file system under test"),
            "{said}"
        );
    }

    #[test]
    fn a_fragment_that_is_none_is_refused() {
        let said = fragments(&["/nonexistent".into()]).unwrap_err();
        assert!(
            format!("{said:#}").contains("--kconfig /nonexistent"),
            "{said:#}"
        );
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), "CONFIG_KASAN=y\n").unwrap();
        let all = fragments(&[file.path().to_owned()]).unwrap();
        assert_eq!(all[1].1, b"CONFIG_KASAN=y\n");
    }

    #[test]
    fn an_image_in_use_is_never_removed() {
        let dir = tempfile::tempdir().unwrap();
        let path = tree::tests::fake(dir.path(), "");
        let images = dir.path().join("images");
        let mut held = Vec::new();
        for n in 0..8 {
            let image = images.join(n.to_string());
            fs::create_dir_all(&image).unwrap();
            fs::write(image.join("vmlinux"), "x").unwrap();
            let file = fs::File::open(image.join("vmlinux")).unwrap();
            file.lock_shared().unwrap();
            held.push(file);
        }
        forget_old(&images, &images.join("7"));
        assert_eq!(fs::read_dir(&images).unwrap().count(), 8);
        held.clear();
        forget_old(&images, &images.join("7"));
        assert_eq!(fs::read_dir(&images).unwrap().count(), KEPT + 1);
        assert!(images.join("7").is_dir());
        drop(path);
    }
}
