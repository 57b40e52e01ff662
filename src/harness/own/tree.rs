// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Somebody's kernel tree, looked at before anything is built: whether it is one, and can be built beside itself.

use std::path::{Path, PathBuf};
use std::{fs, io};

use anyhow::{Context, Result, bail};

use super::uapi;
use crate::input;

/// Where the flag is defined.
pub const HEADER: &str = "include/uapi/linux/fs.h";
/// A tree has all of these.
const PARTS: &[&str] = &[
    "Makefile",
    "Kconfig",
    "arch/x86/Kconfig",
    "scripts/kconfig/merge_config.sh",
    HEADER,
];
/// What a build in place leaves, and a build elsewhere stumbles over: the tree's Makefile asks for the same.
const TRACES: &[&str] = &[".config", "include/config", "arch/x86/include/generated"];
/// Most bytes of the header and the Makefile.
const MAX_TEXT: u64 = 4 << 20;

/// A tree that can be built.
#[derive(Clone, Debug)]
pub struct Tree {
    /// Its path, without links.
    pub path: PathBuf,
    /// Its version: `6.12.57-rc1`.
    pub version: String,
    /// `RWF_WRITETHROUGH`, where its header defines it.
    pub flag: Option<u32>,
    /// Where the flag's value, or that there is none, is from.
    flag_from: String,
}

impl Tree {
    /// Looks at what `--kdir` names. `flag` is what `--flag` says: then the header is not asked.
    pub fn open(given: &Path, flag: Option<u32>) -> Result<Tree> {
        Tree::look(given, flag).with_context(|| format!("--kdir {}", given.display()))
    }

    fn look(given: &Path, flag: Option<u32>) -> Result<Tree> {
        let meta = fs::metadata(given).map_err(|e| match e.kind() {
            io::ErrorKind::NotFound => anyhow::anyhow!("there is no such folder"),
            _ => e.into(),
        })?;
        if !meta.is_dir() {
            bail!(
                "this is no folder; name the top of a Linux source tree (a kernel image goes with --kernel)"
            );
        }
        let path = given.canonicalize()?;
        if let Some(lacks) = lacks(&path) {
            bail!(
                "this is no Linux source tree: it has no {lacks}{}",
                hint(&path)
            );
        }
        let shown = path.to_string_lossy();
        if shown.contains([' ', '\t', '\n', ':']) {
            bail!(
                "Linux cannot be built from a path with spaces or colons ('{}'); move the tree",
                shown.escape_debug()
            );
        }
        if let Some(trace) = TRACES.iter().find(|t| path.join(t).exists()) {
            bail!(
                "the tree was built in place (it has {trace}), and Linux builds no such tree elsewhere. Either clean it: \
                 `make -C {0} mrproper` (removes its .config and all that was built in it; your sources stay), or \
                 give wtblk a tree of its own: `git -C {0} worktree add ../NAME`. A kernel that you build yourself with the \
                 options of kernel-config/wtblk.config runs with --kernel",
                path.display()
            );
        }
        let makefile = input::text(&path.join("Makefile"), "tree's file", MAX_TEXT)?;
        let version =
            version(&makefile).context("its Makefile gives no VERSION and PATCHLEVEL of Linux")?;
        let (flag, flag_from) = match flag {
            Some(flag) => (Some(flag), "--flag".to_owned()),
            None => {
                let text = input::text(&path.join(HEADER), "tree's header", MAX_TEXT)?;
                match uapi::flag(&text).with_context(|| HEADER.to_owned())? {
                    Some(found) => (Some(found.value), format!("{HEADER}:{}", found.line)),
                    None => (None, HEADER.to_owned()),
                }
            }
        };
        Ok(Tree {
            path,
            version,
            flag,
            flag_from,
        })
    }

    /// The tree in a line.
    pub fn describe(&self) -> String {
        let from = &self.flag_from;
        let flag = match self.flag {
            Some(flag) => format!("RWF_WRITETHROUGH is {flag:#x} ({from})"),
            None => format!("{from} has no RWF_WRITETHROUGH"),
        };
        format!("{}: Linux {}, {flag}", self.path.display(), self.version)
    }

    /// The commit at which the tree is, `-dirty` where files were changed since; `None` where git does not know.
    pub fn commit(&self) -> Option<String> {
        if !self.path.join(".git").exists() {
            return None;
        }
        let output = std::process::Command::new("git")
            .arg("-C")
            .arg(&self.path)
            .args([
                "--no-optional-locks",
                "describe",
                "--always",
                "--dirty",
                "--abbrev=12",
                "--exclude=*",
            ])
            .stdin(std::process::Stdio::null())
            .output()
            .ok()?;
        let text = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        (output.status.success() && !text.is_empty()).then_some(text)
    }
}

fn lacks(path: &Path) -> Option<&'static str> {
    PARTS.iter().copied().find(|p| !path.join(p).is_file())
}

/// What may have been meant by a folder that is no tree.
fn hint(path: &Path) -> String {
    let tree = |path: &Path| lacks(path).is_none();
    // What Linux leaves in a folder that make had as `O=`.
    if let Ok(source) = path.join("source").canonicalize()
        && tree(&source)
    {
        return format!("; it is a build folder of {}", source.display());
    }
    if let Some(above) = path.ancestors().skip(1).find(|above| tree(above)) {
        return format!("; did you mean {}?", above.display());
    }
    let below = fs::read_dir(path).into_iter().flatten().flatten();
    match below.take(1000).map(|e| e.path()).find(|p| tree(p)) {
        Some(below) => format!("; did you mean {}?", below.display()),
        None => String::new(),
    }
}

/// `6.12.57-rc1` of a tree's Makefile.
fn version(makefile: &str) -> Option<String> {
    let value = |name: &str| {
        let mut lines = makefile.lines().take(50);
        lines.find_map(|line| {
            let (key, value) = line.split_once('=')?;
            (key.trim() == name).then(|| value.trim().to_owned())
        })
    };
    let number = |text: Option<String>| {
        text.filter(|t| !t.is_empty() && t.len() < 10 && t.bytes().all(|b| b.is_ascii_digit()))
    };
    let mut text = format!(
        "{}.{}",
        number(value("VERSION"))?,
        number(value("PATCHLEVEL"))?
    );
    if let Some(sub) = number(value("SUBLEVEL")) {
        text = format!("{text}.{sub}");
    }
    let extra = value("EXTRAVERSION").unwrap_or_default();
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_.+".contains(c);
    Some(text + extra.split(|c| !plain(c)).next().unwrap_or_default())
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A folder that looks like a tree.
    pub(crate) fn fake(dir: &Path, flag: &str) -> PathBuf {
        let tree = dir.join("linux");
        for part in PARTS {
            let path = tree.join(part);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "").unwrap();
        }
        let makefile = "# SPDX\nVERSION = 6\nPATCHLEVEL = 12\nSUBLEVEL = 57\nEXTRAVERSION = -rc1\n";
        fs::write(tree.join("Makefile"), makefile).unwrap();
        fs::write(tree.join(HEADER), flag).unwrap();
        tree
    }

    fn said(path: &Path) -> String {
        format!("{:#}", Tree::open(path, None).unwrap_err())
    }

    #[test]
    fn a_tree_is_told_with_its_version_and_flag() {
        let dir = tempfile::tempdir().unwrap();
        let path = fake(dir.path(), "\n#define RWF_WRITETHROUGH 0x200\n");
        let tree = Tree::open(&path, None).unwrap();
        assert_eq!(tree.flag, Some(0x200));
        let said = tree.describe();
        assert!(
            said.ends_with(
                "linux: Linux 6.12.57-rc1, RWF_WRITETHROUGH is 0x200 (include/uapi/linux/fs.h:2)"
            ),
            "{said}"
        );
        fs::write(path.join(HEADER), "").unwrap();
        let tree = Tree::open(&path, None).unwrap();
        assert_eq!(tree.flag, None);
        assert!(tree.describe().contains("has no RWF_WRITETHROUGH"));
        assert_eq!(tree.commit(), None);
        // A link to it is the same tree.
        let link = dir.path().join("link");
        std::os::unix::fs::symlink(&path, &link).unwrap();
        assert_eq!(Tree::open(&link, None).unwrap().path, tree.path);
    }

    #[test]
    fn what_is_no_tree_is_refused_with_what_was_meant() {
        let dir = tempfile::tempdir().unwrap();
        let path = fake(dir.path(), "");
        assert!(said(Path::new("/nonexistent")).ends_with("/nonexistent: there is no such folder"));
        assert!(said(&path.join("Makefile")).contains("--kernel"));
        let below = said(&path.join("scripts"));
        assert!(
            below.contains("it has no Makefile; did you mean "),
            "{below}"
        );
        assert!(below.ends_with("linux?"), "{below}");
        let above = said(dir.path());
        assert!(above.ends_with("linux?"), "{above}");
        let build = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink(&path, build.path().join("source")).unwrap();
        let built = said(build.path());
        assert!(built.contains("it is a build folder of "), "{built}");
        let empty = tempfile::tempdir().unwrap();
        assert!(said(empty.path()).ends_with("it has no Makefile"));
        fs::write(path.join("Makefile"), "all:\n").unwrap();
        assert!(said(&path).contains("no VERSION"));
        fs::remove_file(path.join(HEADER)).unwrap();
        assert!(said(&path).ends_with("it has no include/uapi/linux/fs.h"));
        assert!(said(Path::new("/dev/null")).contains("no folder"));
    }

    #[test]
    fn a_tree_that_was_built_in_place_is_refused_with_the_way_out() {
        for trace in TRACES {
            let dir = tempfile::tempdir().unwrap();
            let path = fake(dir.path(), "");
            fs::create_dir_all(path.join(trace)).unwrap();
            let said = said(&path);
            for word in [*trace, "mrproper", "worktree", "--kernel"] {
                assert!(said.contains(word), "{word}: {said}");
            }
        }
    }

    #[test]
    fn a_path_that_linux_does_not_build_from_is_told_at_once() {
        let dir = tempfile::tempdir().unwrap();
        for odd in ["a b", "a:b", "a\nb"] {
            let above = dir.path().join(odd);
            fs::create_dir(&above).unwrap();
            let said = said(&fake(&above, ""));
            assert!(said.contains("spaces or colons"), "{said}");
        }
    }

    #[test]
    fn files_that_are_none_and_texts_that_are_huge_end_in_words() {
        let dir = tempfile::tempdir().unwrap();
        let path = fake(dir.path(), "#define RWF_WRITETHROUGH (RWF_ATOMIC << 3)\n");
        let odd = said(&path);
        assert!(
            odd.contains("fs.h: line 1 ") && odd.contains("--flag"),
            "{odd}"
        );
        assert_eq!(Tree::open(&path, Some(8)).unwrap().flag, Some(8));
        let header = path.join(HEADER);
        fs::remove_file(&header).unwrap();
        nix::unistd::mkfifo(&header, nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert!(said(&path).contains("it has no include/uapi/linux/fs.h"));
        fs::remove_file(&header).unwrap();
        fs::File::create(&header).unwrap().set_len(1 << 40).unwrap();
        assert!(said(&path).contains("at most"));
        fs::write(&header, [0xff, 0xfe]).unwrap();
        assert!(said(&path).contains("UTF-8"));
    }

    #[test]
    fn the_version_is_that_of_the_makefile() {
        let of = |text: &str| version(text);
        assert_eq!(of("VERSION = 7\nPATCHLEVEL = 0\n").unwrap(), "7.0");
        assert_eq!(
            of("VERSION=6\nPATCHLEVEL=1\nSUBLEVEL=0\nEXTRAVERSION = -x y\x1b[2J\n").unwrap(),
            "6.1.0-x"
        );
        assert_eq!(of("VERSION = x\nPATCHLEVEL = 0\n"), None);
        assert_eq!(of("PATCHLEVEL = 0\n"), None);
    }
}
