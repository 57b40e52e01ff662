// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `--kdir`: a kernel from somebody's own tree. Most of it with a tree that only looks like one (its Makefile plays the
//! part of Linux's, so nothing is compiled), the last one with our own source as Linux builds it.

mod support;

use std::fs;
use std::path::{Path, PathBuf};

use support::{Run, built, run, wtblk};

/// The value in our own kernel, which the trees below "build".
const RIGHT: &str = "#define RWF_WRITETHROUGH ((__force __kernel_rwf_t)0x00000200)\n";

/// What a tree's Makefile does.
struct Rules {
    /// Options that its configuration drops, as an expression of grep.
    drops: &'static str,
    /// How it makes `vmlinux`.
    vmlinux: String,
}

impl Rules {
    /// It "builds" our own kernel.
    fn sound() -> Rules {
        Rules {
            drops: "nothing",
            vmlinux: format!("@cp {} $(O)/vmlinux", built("build").display()),
        }
    }
}

/// A folder that looks like a tree whose header says this.
fn tree(dir: &Path, header: &str, rules: &Rules) -> PathBuf {
    let tree = dir.join("linux");
    let write = |name: &str, text: &str| {
        let path = tree.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    };
    let makefile = format!(
        "VERSION = 6\nPATCHLEVEL = 12\nSUBLEVEL = 99\n.PHONY: tinyconfig olddefconfig vmlinux\n\
         tinyconfig:\n\t@echo '# tiny' > $(O)/.config\n\
         olddefconfig:\n\t@grep -v '^CONFIG_{}=' $(O)/.config > $(O)/new; mv $(O)/new $(O)/.config\n\
         vmlinux:\n\t{}\n",
        rules.drops, rules.vmlinux
    );
    write("Makefile", &makefile);
    write("Kconfig", "config XFS_FS\n\ttristate\n");
    write("arch/x86/Kconfig", "");
    // As the real one is called: -m -O FOLDER .config FRAGMENT...
    let script = "#!/bin/sh\nset -e\n[ \"$1 $2\" = '-m -O' ]\ncd \"$3\"\nbase=$4\nshift 4\ncat \"$@\" >> \"$base\"\n";
    write("scripts/kconfig/merge_config.sh", script);
    let script = tree.join("scripts/kconfig/merge_config.sh");
    fs::set_permissions(&script, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    write("include/uapi/linux/fs.h", header);
    tree
}

/// Tests that were skipped; their subtests may be without anything to judge.
fn skipped(run: &Run) -> usize {
    let lines = run.stdout.lines();
    lines
        .filter(|l| l.starts_with("ok ") && l.contains("# SKIP"))
        .count()
}

fn run_tree(tree: &Path, args: &[&str]) -> Run {
    run(&[&["--kdir", tree.to_str().unwrap()], args].concat())
}

#[test]
fn a_tree_without_the_flag_decides_nothing_and_is_not_even_built() {
    let dir = tempfile::tempdir().unwrap();
    let rules = Rules {
        drops: "nothing",
        vmlinux: "@echo error: it was built >&2; exit 1".into(),
    };
    let tree = tree(dir.path(), "#define RWF_ATOMIC 0x40\n", &rules);
    let ended = run_tree(
        &tree,
        &["--test", "dsync", "--test", "errseq", "--repeat", "2"],
    );
    assert_eq!(ended.status, 3, "{}", ended.said());
    let skips = ended
        .stdout
        .matches("# SKIP this kernel has no RWF_WRITETHROUGH")
        .count();
    assert_eq!(skips, 4, "{}", ended.said());
    let tests = ended.results["tests"].as_array().unwrap();
    assert_eq!(tests.len(), 4, "{}", ended.said());
    assert_eq!(ended.results["boots"].as_array().unwrap().len(), 0);
    assert_eq!(ended.results["status"], 3);
    let environment = &ended.results["environment"];
    assert_eq!(environment["linux"], "6.12.99");
    assert!(environment["kdir"].as_str().unwrap().ends_with("/linux"));
    // What is mistyped is an error there, too.
    let ended = run_tree(&tree, &["--test", "no-such-test"]);
    assert_eq!(ended.status, 2, "{}", ended.said());
    // Who says the flag's value himself has it built.
    let ended = run_tree(&tree, &["--test", "dsync", "--flag", "0x200"]);
    assert_eq!(ended.status, 2, "{}", ended.said());
    assert!(
        ended.stderr.contains("error: it was built"),
        "{}",
        ended.said()
    );
    let sweep = wtblk()
        .args(["sweep", "--test", "multi-extent", "--kdir"])
        .arg(&tree)
        .output()
        .unwrap();
    assert_eq!(sweep.status.code(), Some(3));
}

#[test]
fn a_tree_that_does_not_compile_shows_what_the_compiler_says() {
    let dir = tempfile::tempdir().unwrap();
    let rules = Rules {
        drops: "nothing",
        vmlinux: "@echo '  CC      fs/first.o'; gcc -c $(CURDIR)/broken.c -o $(O)/broken.o".into(),
    };
    let tree = tree(dir.path(), RIGHT, &rules);
    fs::write(
        tree.join("broken.c"),
        "int f(void)\n{\n\treturn nowhere;\n}\n",
    )
    .unwrap();
    let ended = run_tree(&tree, &["--test", "dsync"]);
    assert_eq!(ended.status, 2, "{}", ended.said());
    for word in [
        "the kernel did not build",
        "broken.c:3:16: error:",
        "nowhere",
        "build.log",
    ] {
        assert!(ended.stderr.contains(word), "{word}: {}", ended.said());
    }
    assert!(!ended.stderr.contains("  CC  "), "{}", ended.said());
    assert_eq!(ended.stdout, "", "no verdict: {}", ended.said());
}

/// What the device is kept from its maker is not: `make` has all calls and files, and its children, too.
#[test]
fn make_inherits_no_sandbox() {
    let dir = tempfile::tempdir().unwrap();
    let status = dir.path().join("status");
    let rules = Rules {
        drops: "nothing",
        vmlinux: format!(
            "@cat /proc/self/status > {}; echo error: enough was seen >&2; exit 1",
            status.display()
        ),
    };
    let tree = tree(dir.path(), RIGHT, &rules);
    let ended = run_tree(&tree, &["--test", "dsync"]);
    assert!(ended.stderr.contains("enough was seen"), "{}", ended.said());
    let status = fs::read_to_string(status).unwrap();
    let line = |line: &str| status.lines().any(|l| l == line);
    assert!(line("Seccomp:\t0") && line("NoNewPrivs:\t0"), "{status}");
}

#[test]
fn options_that_the_tree_drops_are_named_and_what_nothing_runs_without_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let failing = |drops| Rules {
        drops,
        vmlinux: "@echo error: it was built >&2; exit 1".into(),
    };
    let path = tree(dir.path(), RIGHT, &failing("USERFAULTFD"));
    let ended = run_tree(&path, &["--test", "dsync"]);
    let named = "tests need it: CONFIG_USERFAULTFD=y (the tree has no such option): stops a call";
    assert!(ended.stderr.contains(named), "{}", ended.said());
    assert!(ended.stderr.contains("it was built"), "{}", ended.said());
    let path = tree(dir.path(), RIGHT, &failing("XFS_FS"));
    let ended = run_tree(&path, &["--test", "dsync"]);
    assert_eq!(ended.status, 2, "{}", ended.said());
    let refused = "does not take what no test runs without: CONFIG_XFS_FS=y: the file system";
    assert!(ended.stderr.contains(refused), "{}", ended.said());
    assert!(!ended.stderr.contains("it was built"), "{}", ended.said());
    // Options of one's own are merged behind ours, and named where they are dropped.
    let mine = dir.path().join("mine.config");
    fs::write(&mine, "CONFIG_MINE=y\n").unwrap();
    let path = tree(dir.path(), RIGHT, &failing("MINE"));
    let ended = run_tree(&path, &["--kconfig", mine.to_str().unwrap()]);
    assert!(ended.stderr.contains("CONFIG_MINE=y"), "{}", ended.said());
    assert!(ended.stderr.contains("mine.config"), "{}", ended.said());
}

#[test]
fn the_flags_value_is_that_of_the_trees_header_and_the_tests_run() {
    let dir = tempfile::tempdir().unwrap();
    let path = tree(dir.path(), RIGHT, &Rules::sound());
    let ended = run_tree(
        &path,
        &["--test", "overwrite-aligned", "--test", "few-bios"],
    );
    assert_eq!(ended.status, 0, "{}", ended.said());
    // The image has our switches: nothing is skipped because the tree is somebody else's.
    assert_eq!(skipped(&ended), 0, "{}", ended.said());
    assert_eq!(ended.results["environment"]["linux"], "6.12.99");
    // The header says something else than the image does: its word is what counts, and then --flag's.
    let path = tree(
        dir.path(),
        "#define RWF_WRITETHROUGH 0x20000\n",
        &Rules::sound(),
    );
    let ended = run_tree(&path, &["--test", "overwrite-aligned"]);
    assert_eq!(ended.status, 3, "{}", ended.said());
    assert!(
        ended.stdout.contains("0x20000 is absent"),
        "{}",
        ended.said()
    );
    let ended = run_tree(&path, &["--test", "overwrite-aligned", "--flag", "0x200"]);
    assert_eq!(ended.status, 0, "{}", ended.said());
}

#[test]
fn what_is_no_tree_is_one_sentence() {
    let dir = tempfile::tempdir().unwrap();
    let path = tree(dir.path(), RIGHT, &Rules::sound());
    let said = |path: &Path| {
        let ended = run_tree(path, &[]);
        assert_eq!(ended.status, 2, "{}", ended.said());
        assert_eq!(ended.stderr.lines().count(), 1, "{}", ended.said());
        ended.stderr.clone()
    };
    assert!(said(Path::new("/nonexistent")).contains("there is no such folder"));
    assert!(said(Path::new("/dev/null")).contains("no folder"));
    assert!(said(&path.join("scripts")).contains("did you mean"));
    assert!(said(dir.path()).contains("did you mean"));
    fs::write(path.join(".config"), "").unwrap();
    assert!(said(&path).contains("mrproper"));
    let both = run(&["--kdir", "/a", "--kernel", "/b"]);
    assert_eq!(both.status, 2, "{}", both.said());
    let alone = run(&["--kconfig", "/a"]);
    assert_eq!(alone.status, 2, "{}", alone.said());
    assert!(alone.stderr.contains("--kdir"), "{}", alone.said());
}

/// The real thing: Linux's own build of the tree that our kernel is built of. Its objects are those of that build,
/// so make finds nothing to do.
#[test]
#[ignore = "may compile a whole kernel: ci/soak runs it"]
fn the_source_of_our_own_kernel_goes_the_way_of_every_tree() {
    let path = built("source");
    let ended = run_tree(&path, &["--test", "error-mid-call", "--test", "few-bios"]);
    assert_eq!(ended.status, 0, "{}", ended.said());
    assert_eq!(skipped(&ended), 0, "{}", ended.said());
    assert!(!ended.stderr.contains("did not take"), "{}", ended.said());
    assert!(
        ended.stderr.contains("RWF_WRITETHROUGH is 0x200"),
        "{}",
        ended.said()
    );
    assert!(!path.join(".config").exists(), "it was built in the tree");
    let ended = run_tree(
        &path,
        &["--test", "error-mid-call", "--defect", "leak-writeback"],
    );
    assert_eq!(ended.status, 1, "{}", ended.said());
    assert_eq!(ended.verdict("error-mid-call", "progress"), "broken");
}
