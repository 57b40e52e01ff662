// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Configuring and building a kernel tree: beside the tree and not in it, and only what is new.
//!
//! `kdir/NAME-KEY` in the cache belongs to the tree of one path: `build` is what make gets as `O=`.
//! The tree itself is only read. Our own kernel and somebody's tree go the same way.

mod kconfig;
mod said;

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::sys::signal::Signal;

use self::kconfig::kconfig_files;
pub use self::kconfig::missing_options;
use self::said::{complaints, is_progress};
use super::child;
use super::paths;
use super::progress::Progress;

/// Lines of make for a whole kernel, before one was counted.
const WHOLE: u64 = 2000;
/// Lines of make between its reader and us; the reader waits when they are so many.
const LINES: usize = 1024;
/// How soon an interruption is seen while make says nothing.
const POLL: Duration = Duration::from_millis(200);
/// What a tree's build listens to. Somebody's shell may have it set for another build; ours says what it wants.
const FOREIGN: &[&str] = &[
    "ARCH",
    "CONFIG_",
    "CROSS_COMPILE",
    "KBUILD_OUTPUT",
    "KCONFIG_ALLCONFIG",
    "KCONFIG_CONFIG",
    "LLVM",
    "MAKEFLAGS",
    "MAKELEVEL",
    "MFLAGS",
    "O",
];

/// A fragment of a configuration: a name for messages, and its text.
pub type Fragment = (String, Vec<u8>);

/// The right to build a tree. make and its children inherit it: what an interrupted build leaves running keeps the next one
/// waiting.
pub struct Lock(OwnedFd);

/// A build that is to be done.
pub struct Job<'a> {
    /// Its name, for who waits.
    pub what: &'a str,
    /// The fragments that the tree was configured with.
    pub fragments: &'a [Fragment],
    /// What to build.
    pub targets: &'a [&'a str],
    /// Set when the user interrupts.
    pub stop: &'a AtomicBool,
}

/// A tree and the place of its build.
pub struct Kbuild {
    tree: PathBuf,
    home: PathBuf,
    ccache: PathBuf,
    cache: PathBuf,
}

impl Kbuild {
    /// That of the tree of this (canonical) path; its place in the cache is made.
    pub fn of(tree: &Path) -> Result<Kbuild> {
        Kbuild::within(&paths::cache()?, tree)
    }

    fn within(cache: &Path, tree: &Path) -> Result<Kbuild> {
        let places = cache.join("kdir");
        fs::create_dir_all(&places).with_context(|| format!("cannot make {}", places.display()))?;
        forget_gone(&places);
        let home = places.join(place_name(tree));
        fs::create_dir_all(home.join("build"))
            .with_context(|| format!("cannot make {}", home.display()))?;
        paths::write_whole(&home.join("tree"), path_bytes(tree))?;
        Ok(Kbuild {
            tree: tree.to_path_buf(),
            home,
            ccache: cache.join("ccache"),
            cache: cache.to_path_buf(),
        })
    }

    /// Everything of this tree in the cache.
    pub fn home(&self) -> &Path {
        &self.home
    }

    /// What was built: `.config`, `vmlinux`, ...
    pub fn output(&self) -> PathBuf {
        self.home.join("build")
    }

    /// Where make's words go.
    pub fn log(&self) -> PathBuf {
        self.home.join("build.log")
    }

    /// Keeps another `wtblk` from building the same tree meanwhile.
    pub fn lock(&self) -> Result<Lock> {
        let file = paths::lock(&self.home.join("lock"), "builds this kernel tree")?;
        Ok(Lock(file.into()))
    }

    /// tinyconfig with the fragments merged into it by the tree's own script, the later ones winning, unless that is what the
    /// last build had; the finished `.config`.
    pub fn configure(&self, fragments: &[Fragment]) -> Result<String> {
        let config = self.output().join(".config");
        let stamp = self.stamp(fragments)?;
        if stamp.is_none() || fs::read_to_string(self.stamp_file()).ok() != stamp {
            let progress = Progress::new("configuring the kernel", 1);
            let _ = fs::remove_file(self.stamp_file());
            let made = self.make_config(fragments);
            progress.end(if made.is_ok() { "done" } else { "failed" });
            made?;
        }
        fs::read_to_string(&config).with_context(|| format!("cannot read {}", config.display()))
    }

    fn make_config(&self, fragments: &[Fragment]) -> Result<()> {
        run(self.make_command().args(["-s", "tinyconfig"]))?;
        let mut merge = Command::new(self.tree.join("scripts/kconfig/merge_config.sh"));
        // It leaves its temporary files where it is called.
        merge.current_dir(self.output()).args(["-m", "-O"]);
        merge.arg(self.output()).arg(".config");
        for (n, (_, text)) in fragments.iter().enumerate() {
            let name = format!(".wtblk-fragment-{n}");
            fs::write(self.output().join(&name), text)?;
            merge.arg(name);
        }
        run(without_foreign(&mut merge))?;
        run(self.make_command().args(["-s", "olddefconfig"]))
    }

    fn stamp_file(&self) -> PathBuf {
        self.home.join("configured")
    }

    /// All that a finished configuration depends on: fragments, compiler, and the tree's Kconfig files
    /// as the tree's own build lists them. `None` before the first build.
    fn stamp(&self, fragments: &[Fragment]) -> Result<Option<String>> {
        let list = self.output().join("include/config/auto.conf.cmd");
        let Ok(list) = fs::read_to_string(list) else {
            return Ok(None);
        };
        let mut seen = compiler()?;
        for file in kconfig_files(&list) {
            use std::os::unix::fs::MetadataExt as _;
            let Ok(meta) = fs::metadata(self.tree.join(file)) else {
                return Ok(None);
            };
            let (s, ns, len) = (meta.mtime(), meta.mtime_nsec(), meta.len());
            seen.push_str(&format!("\n{file} {s} {ns} {len}"));
        }
        let mut parts: Vec<(&str, &[u8])> = vec![("seen", seen.as_bytes())];
        parts.extend(fragments.iter().map(|(name, text)| (&**name, &**text)));
        Ok(Some(paths::key(parts)))
    }

    /// Builds what is new, with all that make says in the log.
    pub fn make(&self, lock: &Lock, job: &Job<'_>) -> Result<()> {
        let built = self.run_make(lock, job);
        // Also where a source file did not compile: the configuration is finished all the same.
        if let Some(stamp) = self.stamp(job.fragments)? {
            paths::write_whole(&self.stamp_file(), stamp.as_bytes())?;
        }
        built
    }

    fn run_make(&self, lock: &Lock, job: &Job<'_>) -> Result<()> {
        let count_file = self.home.join("build.count");
        let whole = fs::read_to_string(&count_file)
            .ok()
            .and_then(|t| t.trim().parse().ok())
            .unwrap_or(WHOLE);
        // How much of a tree is new nobody knows.
        let built = self.output().join("vmlinux").exists();
        let expected = if built { 0 } else { whole };
        let mut progress = Progress::new(job.what, expected);
        let mut command = self.make_command();
        command.arg(format!(
            "-j{}",
            std::thread::available_parallelism().map_or(2, |n| n.get())
        ));
        command.args(job.targets);
        let log = self.log();
        let mut out =
            fs::File::create(&log).with_context(|| format!("cannot make {}", log.display()))?;
        // One pipe for both: an error and the line before it stay together.
        let (said, say) = std::io::pipe().context("cannot make a pipe")?;
        command.stdout(say.try_clone()?).stderr(say);
        let mut child = child::spawn_ended_by(Signal::SIGTERM, "make", command, &[&lock.0])
            .context("a kernel is built with make (ci/setup installs it)")?;
        // A thread, because make may be silent for long and must be stopped all the same.
        let (send, lines) = mpsc::sync_channel(LINES);
        std::thread::spawn(move || {
            let lines = BufReader::new(said).split(b'\n');
            lines
                .map_while(Result::ok)
                .all(|line| send.send(line).is_ok())
        });
        let (mut count, mut asked) = (0u64, false);
        loop {
            if !asked && job.stop.load(Ordering::Relaxed) {
                // make passes it on to its children, and removes what is half written.
                child.signal(Signal::SIGTERM)?;
                asked = true;
            }
            let line = match lines.recv_timeout(POLL) {
                Ok(line) => line,
                // A grandchild may live on for a moment, and hold the pipe.
                Err(RecvTimeoutError::Timeout) if !asked || child.ended()?.is_none() => continue,
                Err(_) => break,
            };
            out.write_all(&line)?;
            out.write_all(b"\n")?;
            let line = String::from_utf8_lossy(&line);
            if is_progress(&line) {
                count += 1;
                progress.step(line.trim());
            }
        }
        let status = child.inner().wait()?;
        if asked {
            progress.end("interrupted");
            bail!("interrupted");
        }
        let said = fs::read(&log).with_context(|| format!("cannot read {}", log.display()))?;
        let said = String::from_utf8_lossy(&said);
        if !status.success() {
            progress.end("failed");
            bail!(
                "the kernel did not build; what make said (all of it is in {}):\n{}",
                log.display(),
                complaints(&said)
            );
        }
        if count * 2 > whole {
            fs::write(&count_file, count.to_string())?;
        }
        let warnings = said.lines().filter(|l| l.contains(" warning: ")).count();
        progress.end(&match warnings {
            0 => "done".to_owned(),
            n => format!("done, warnings of the compiler: {n}, in {}", log.display()),
        });
        Ok(())
    }

    /// make for this tree, with all that has to be the same each time: another value would build everything again.
    fn make_command(&self) -> Command {
        let mut output = std::ffi::OsString::from("O=");
        output.push(self.output());
        let mut command = Command::new("make");
        command.arg("-C").arg(&self.tree).arg(output);
        let ccache = Command::new("ccache")
            .arg("--version")
            .stdin(Stdio::null())
            .output()
            .is_ok_and(|o| o.status.success());
        command.arg(if ccache { "CC=ccache gcc" } else { "CC=gcc" });
        command.args([
            // The same image for the same input, whenever and wherever it is built.
            "KBUILD_BUILD_TIMESTAMP=1970-01-01",
            "KBUILD_BUILD_USER=wtblk",
            "KBUILD_BUILD_HOST=wtblk",
            // Else it counts the builds of this folder.
            "KBUILD_BUILD_VERSION=1",
            // Without it the state of a git repository goes into the version.
            "LOCALVERSION=",
        ]);
        without_foreign(&mut command)
            .env("CCACHE_DIR", &self.ccache)
            // The same compiler is the same wherever and whenever it was unpacked.
            .env("CCACHE_COMPILERCHECK", "content")
            // Our own tree lies in the cache: it is the same wherever that is.
            .env("CCACHE_BASEDIR", &self.cache)
            .env("CCACHE_NOHASHDIR", "1")
            .stdin(Stdio::null());
        command
    }
}

/// The compiler in a line; a change of it builds everything again.
pub fn compiler() -> Result<String> {
    let gcc = Command::new("gcc")
        .arg("--version")
        .stdin(Stdio::null())
        .output()
        .context("cannot run gcc (ci/setup installs it)")?;
    let text = String::from_utf8_lossy(&gcc.stdout);
    Ok(text.lines().next().unwrap_or_default().to_owned())
}

fn without_foreign(command: &mut Command) -> &mut Command {
    for name in FOREIGN {
        command.env_remove(name);
    }
    // Messages are read, and shown, in one language.
    command.env("LC_ALL", "C")
}

/// Name of a tree's place: for people the folder's name, for us a key of the whole path.
fn place_name(tree: &Path) -> String {
    let name = tree.file_name().unwrap_or_default().to_string_lossy();
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    let name: String = name
        .chars()
        .map(|c| if plain(c) { c } else { '_' })
        .take(40)
        .collect();
    format!("{name}-{}", paths::key([("tree", path_bytes(tree))]))
}

fn path_bytes(path: &Path) -> &[u8] {
    use std::os::unix::ffi::OsStrExt as _;
    path.as_os_str().as_bytes()
}

/// Removes what was built of trees that are no more. Best effort: a build under way has its lock.
fn forget_gone(places: &Path) {
    use std::os::unix::ffi::OsStrExt as _;
    for entry in fs::read_dir(places).into_iter().flatten().flatten() {
        let home = entry.path();
        let Ok(tree) = fs::read(home.join("tree")) else {
            continue;
        };
        let gone = fs::symlink_metadata(Path::new(std::ffi::OsStr::from_bytes(&tree)))
            .is_err_and(|e| e.kind() == std::io::ErrorKind::NotFound);
        let lock = fs::File::create(home.join("lock"));
        if gone && lock.is_ok_and(|lock| lock.try_lock().is_ok()) {
            let _ = fs::remove_dir_all(&home);
        }
    }
}

/// Runs a step that says little, and shows what it said where it failed.
pub fn run(command: &mut Command) -> Result<()> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot run {name}"))?;
    if !output.status.success() {
        let text = [output.stdout, output.stderr].concat();
        let text = String::from_utf8_lossy(&text).into_owned();
        bail!("{name} failed ({}):\n{}", output.status, complaints(&text));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job(stop: &AtomicBool) -> Job<'_> {
        Job {
            what: "building",
            fragments: &[],
            targets: &["vmlinux"],
            stop,
        }
    }

    /// A tree whose `vmlinux` is made by this recipe.
    fn built(recipe: &str) -> (tempfile::TempDir, Kbuild, Result<()>) {
        let dir = tempfile::tempdir().unwrap();
        let tree = dir.path().join("linux");
        fs::create_dir(&tree).unwrap();
        fs::write(tree.join("Makefile"), format!("vmlinux:\n\t{recipe}\n")).unwrap();
        let kbuild = Kbuild::within(&dir.path().join("cache"), &tree).unwrap();
        let made = kbuild.make(&kbuild.lock().unwrap(), &job(&AtomicBool::new(false)));
        (dir, kbuild, made)
    }

    #[test]
    fn a_build_that_fails_shows_its_errors_and_keeps_its_log() {
        let recipe = "@for i in $$(seq 50); do echo '  CC      fs/f'$$i'.o'; done; \
                      echo 'fs/f.c: In function g:' >&2; echo 'fs/f.c:7:2: error: no x' >&2; \
                      for i in $$(seq 50); do echo '  LD      fs/f.o'; done; exit 1";
        let (_dir, kbuild, made) = built(recipe);
        let error = made.unwrap_err().to_string();
        assert!(error.contains("build.log"), "{error}");
        assert!(
            error.contains("In function g:\nfs/f.c:7:2: error: no x\n"),
            "{error}"
        );
        assert!(!error.contains("  CC"), "{error}");
        assert!(error.lines().count() < 10, "{error}");
        let log = fs::read_to_string(kbuild.log()).unwrap();
        assert!(log.contains("  CC      fs/f1.o\n"), "{log}");
    }

    #[test]
    fn a_build_that_fails_without_an_error_shows_its_last_lines() {
        let (_dir, _kbuild, made) = built("@for i in $$(seq 90); do echo line $$i; done; false");
        let error = made.unwrap_err().to_string();
        assert!(error.contains("*** "), "make's own word: {error}");
    }

    #[test]
    fn an_interrupted_build_ends_with_all_its_children() {
        let dir = tempfile::tempdir().unwrap();
        let tree = dir.path().join("linux");
        fs::create_dir(&tree).unwrap();
        // A child of make's that would go on for long; it holds the lock.
        let makefile = "vmlinux:\n\t@echo begun; exec sleep 1000\n";
        fs::write(tree.join("Makefile"), makefile).unwrap();
        let kbuild = Kbuild::within(&dir.path().join("cache"), &tree).unwrap();
        let lock = kbuild.lock().unwrap();
        let stop = AtomicBool::new(false);
        let begun_at = std::time::Instant::now();
        let error = std::thread::scope(|scope| {
            scope.spawn(|| {
                let begun = || fs::read_to_string(kbuild.log()).is_ok_and(|t| t.contains("begun"));
                for _ in 0..600 {
                    if begun() {
                        break;
                    }
                    std::thread::sleep(Duration::from_millis(50));
                }
                stop.store(true, Ordering::Relaxed);
            });
            kbuild.make(&lock, &job(&stop))
        });
        assert_eq!(error.unwrap_err().to_string(), "interrupted");
        assert!(begun_at.elapsed() < Duration::from_secs(300));
        drop(lock);
        // Waits for whoever still has it.
        kbuild.lock().unwrap();
        let log = fs::read_to_string(kbuild.log()).unwrap();
        assert!(log.contains("begun"), "{log}");
    }

    #[test]
    fn what_a_shell_has_set_for_other_builds_does_not_reach_ours() {
        // As a command has it: removed names are listed without a value.
        let (_dir, kbuild, made) = built("@true");
        made.unwrap();
        let command = kbuild.make_command();
        let removed: Vec<_> = command.get_envs().filter(|(_, v)| v.is_none()).collect();
        assert!(removed.iter().any(|(name, _)| *name == "ARCH"));
        assert!(removed.iter().any(|(name, _)| *name == "MAKEFLAGS"));
    }

    #[test]
    fn the_stamp_follows_fragments_and_kconfig_files() {
        let (_dir, kbuild, made) = built("@true");
        made.unwrap();
        let fragments = |text: &str| vec![("f".to_owned(), text.as_bytes().to_vec())];
        assert_eq!(kbuild.stamp(&fragments("a")).unwrap(), None);
        let config = kbuild.output().join("include/config");
        fs::create_dir_all(&config).unwrap();
        fs::write(
            config.join("auto.conf.cmd"),
            "deps_config := \\\n\tKconfig\n",
        )
        .unwrap();
        assert_eq!(kbuild.stamp(&fragments("a")).unwrap(), None);
        fs::write(kbuild.tree.join("Kconfig"), "one").unwrap();
        let one = kbuild.stamp(&fragments("a")).unwrap();
        assert!(one.is_some());
        assert_eq!(one, kbuild.stamp(&fragments("a")).unwrap());
        assert_ne!(one, kbuild.stamp(&fragments("b")).unwrap());
        fs::write(kbuild.tree.join("Kconfig"), "other").unwrap();
        assert_ne!(one, kbuild.stamp(&fragments("a")).unwrap());
    }

    #[test]
    fn places_of_trees_that_are_gone_go_too() {
        let dir = tempfile::tempdir().unwrap();
        let (one, two) = (dir.path().join("one"), dir.path().join("t wo"));
        fs::create_dir(&one).unwrap();
        fs::create_dir(&two).unwrap();
        let cache = dir.path().join("cache");
        let first = Kbuild::within(&cache, &one).unwrap();
        let second = Kbuild::within(&cache, &two).unwrap();
        assert_ne!(first.home(), second.home());
        assert!(second.home().display().to_string().contains("t_wo-"));
        assert!(first.home().is_dir());
        fs::remove_dir(&one).unwrap();
        let _held = first.lock().unwrap();
        Kbuild::within(&cache, &two).unwrap();
        assert!(first.home().is_dir(), "somebody builds it");
        drop(_held);
        // Another test's child has the lock's descriptor from its fork to its exec.
        let limit = std::time::Instant::now() + Duration::from_secs(30);
        while first.home().exists() {
            assert!(std::time::Instant::now() < limit, "nobody builds it");
            Kbuild::within(&cache, &two).unwrap();
            std::thread::yield_now();
        }
        assert!(second.home().is_dir());
    }
}
