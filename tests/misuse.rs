// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What goes wrong around a run: each case one clear sentence, the right
//! status, and nothing left behind.

mod support;

use std::io::{Read as _, Write as _};
use std::os::unix::process::CommandExt as _;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use support::{built, run, wtblk};

#[test]
fn a_scenario_with_a_typo_is_refused_before_anything_is_booted() {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    writeln!(
        file,
        "version = 1\n[[fault]]\nname = \"a\"\nwen = {{ op = \"write\" }}"
    )
    .unwrap();
    let run = run(&["--scenario", file.path().to_str().unwrap()]);
    assert_eq!(run.status, 2, "{}", run.said());
    let place = format!("{}:4:1", file.path().display());
    assert!(
        run.stderr.contains(&place) && run.stderr.contains("wen"),
        "{}",
        run.said()
    );
    assert!(!run.dir.path().join("boot-1").exists());
}

#[test]
fn a_missing_qemu_is_one_sentence() {
    let run = run(&["--qemu", "/nonexistent/qemu"]);
    assert_eq!(run.status, 2, "{}", run.said());
    assert!(run.stderr.contains("/nonexistent/qemu"), "{}", run.said());
    assert_eq!(run.stderr.trim().lines().count(), 1, "{}", run.said());
}

#[test]
fn unknown_names_are_told_with_the_known_ones() {
    let run_test = run(&["--test", "no-such-test"]);
    assert_eq!(run_test.status, 2, "{}", run_test.said());
    assert!(
        run_test.stderr.contains("overwrite-aligned"),
        "{}",
        run_test.said()
    );
    let run_defect = run(&["--defect", "no-such-defect"]);
    assert_eq!(run_defect.status, 2, "{}", run_defect.said());
    assert!(
        run_defect.stderr.contains("leak-writeback"),
        "{}",
        run_defect.said()
    );
}

#[test]
fn a_kernel_that_panics_at_once_is_told_with_its_last_lines() {
    // A kernel without an init panics as soon as it looks for one.
    let mut empty = tempfile::NamedTempFile::new().unwrap();
    let init = wtblk::harness::cpio::Entry {
        name: "init",
        mode: 0o100755,
        data: b"#!/bin/false\n",
    };
    let real = std::fs::read(built("guest")).unwrap();
    let lister = wtblk::harness::cpio::find(&real, "init").unwrap();
    // The list is read from the archive's first /init; the kernel unpacks the last one.
    let list = wtblk::harness::cpio::Entry {
        name: "init",
        mode: 0o100755,
        data: lister,
    };
    empty
        .write_all(&wtblk::harness::cpio::archive(&[list, init]))
        .unwrap();
    let run = run(&["--initramfs", empty.path().to_str().unwrap()]);
    assert_eq!(run.status, 2, "{}", run.said());
    assert!(
        run.stderr.contains("panicked") && run.stderr.contains("console.log"),
        "{}",
        run.said()
    );
}

#[test]
fn a_guest_that_never_comes_up_is_ended_at_the_limit() {
    // -S would need another QEMU option; a limit of a second is over before any guest is up.
    let begun = Instant::now();
    let run = run(&[
        "--test",
        "error-mid-call",
        "--defect",
        "leak-writeback",
        "--limit",
        "1",
    ]);
    assert!(run.status == 2 || run.status == 1, "{}", run.said());
    assert!(run.said().contains("time limit"), "{}", run.said());
    assert!(begun.elapsed() < Duration::from_secs(30));
}

/// The processes whose command line holds `word`.
fn processes_with(word: &Path) -> Vec<i32> {
    let word = word.to_str().unwrap();
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let Ok(pid) = entry.file_name().to_string_lossy().parse::<i32>() else {
            continue;
        };
        let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        if String::from_utf8_lossy(&line).contains(word) {
            found.push(pid);
        }
    }
    found
}

/// Waits for a state of the world, not for a time.
fn until(what: &str, limit: Duration, mut state: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !state() {
        assert!(begun.elapsed() < limit, "not within {limit:?}: {what}");
        std::thread::yield_now();
    }
}

/// A run of a thousand boots, of which the first guest has just said `said`.
fn long_run(dir: &Path, said: &str) -> Child {
    let child = wtblk()
        .args(["run", "--accel", "tcg", "--repeat", "1000"])
        .args(["--test", "error-mid-call", "--out"])
        .arg(dir)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let console = dir.join("boot-1/console.log");
    until("the guest prints", Duration::from_secs(60), || {
        std::fs::read_to_string(&console).is_ok_and(|text| text.contains(said))
    });
    child
}

fn end_in_mid_run(signal: Signal) -> (Option<i32>, String) {
    let dir = tempfile::tempdir().unwrap();
    let mut child = long_run(dir.path(), "Linux version");
    kill(Pid::from_raw(child.id() as i32), signal).unwrap();
    let status = child.wait().unwrap();
    // wtblk itself, its device and QEMU all carry the folder in their arguments or logs.
    until("no orphan is left", Duration::from_secs(10), || {
        processes_with(dir.path()).is_empty()
    });
    let mut said = String::new();
    std::io::Read::read_to_string(&mut child.stderr.take().unwrap(), &mut said).unwrap();
    (status.code(), said)
}

#[test]
fn wtblk_killed_in_mid_run_leaves_no_process() {
    assert_eq!(end_in_mid_run(Signal::SIGKILL).0, None);
    // And nothing stands in the way of the next run.
    let next = run(&["--test", "overwrite-aligned"]);
    assert_eq!(next.status, 0, "{}", next.said());
}

#[test]
fn an_interrupt_ends_everything_with_its_own_status() {
    let (status, said) = end_in_mid_run(Signal::SIGINT);
    assert_eq!(status, Some(130), "{said}");
}

#[test]
fn a_read_only_image_is_one_sentence() {
    use std::os::unix::fs::PermissionsExt as _;
    let dir = tempfile::tempdir().unwrap();
    let image = dir.path().join("disk.img");
    std::fs::write(&image, vec![0u8; 1 << 20]).unwrap();
    std::fs::set_permissions(&image, std::fs::Permissions::from_mode(0o444)).unwrap();
    let mut command = wtblk();
    if nix::unistd::geteuid().is_root() {
        // Root may write anything: be somebody else, with a copy that somebody else can reach.
        std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o777)).unwrap();
        let copy = dir.path().join("wtblk");
        std::fs::copy(env!("CARGO_BIN_EXE_wtblk"), &copy).unwrap();
        command = Command::new(copy);
        command.uid(65534).gid(65534);
    }
    command
        .args(["serve", "--image"])
        .arg(&image)
        .arg("--socket")
        .arg(dir.path().join("s"));
    let output = command.stdin(Stdio::null()).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(
        said.contains("disk.img") && said.trim().lines().count() == 1,
        "{said}"
    );
    assert!(!dir.path().join("s").exists(), "the socket was left behind");
}

#[test]
fn a_reader_that_goes_away_changes_neither_status_nor_results() {
    let dir = tempfile::tempdir().unwrap();
    let mut child = wtblk()
        .args(["run", "--accel", "tcg", "--defect", "misaligned"])
        .args(["--test", "overwrite-unaligned", "--out"])
        .arg(dir.path())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    assert_eq!(child.wait().unwrap().code(), Some(1));
    assert!(dir.path().join("results.json").exists());
}

/// Of a process that serves or of QEMU: `Seccomp` (2: a filter) and `NoNewPrivs`, of all its threads.
fn confinement(pid: i32) -> (String, String) {
    let of = |status: &str, key: &str| {
        let line = status.lines().find(|line| line.starts_with(key));
        let value = line.and_then(|line| line.split_whitespace().nth(1));
        value.expect("a status of the kernel").to_owned()
    };
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    let mut found = Vec::new();
    for task in tasks {
        // A thread may end meanwhile.
        if let Ok(status) = std::fs::read_to_string(task.unwrap().path().join("status")) {
            found.push((of(&status, "Seccomp:"), of(&status, "NoNewPrivs:")));
        }
    }
    found.dedup();
    assert_eq!(found.len(), 1, "{found:?}");
    found.remove(0)
}

/// A run whose device or QEMU (whose command line holds `word`) is killed in the middle.
fn killed_in_mid_run(word: &str) -> (Option<i32>, String) {
    let dir = tempfile::tempdir().unwrap();
    let child = long_run(dir.path(), "KTAP version 1");
    let find = |word: &str| {
        let is_it = |pid: &i32| {
            let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let line = String::from_utf8_lossy(&line).replace('\0', " ");
            line.contains(word) && !line.contains(" run ")
        };
        let all = processes_with(dir.path());
        all.into_iter().find(is_it).expect("a child")
    };
    let victim = find(word);
    // The sandbox is the device's alone: the guest runs by now.
    assert_eq!(confinement(find(" serve ")), ("2".into(), "1".into()));
    assert_eq!(confinement(find("qemu-system")), ("0".into(), "0".into()));
    kill(Pid::from_raw(victim), Signal::SIGKILL).unwrap();
    let output = child.wait_with_output().unwrap();
    until("no orphan is left", Duration::from_secs(10), || {
        processes_with(dir.path()).is_empty()
    });
    let results = std::fs::read(dir.path().join("results.json"));
    let results = results.expect("what ended before must be kept");
    let results: serde_json::Value = serde_json::from_slice(&results).unwrap();
    // What was due stands there, with the reason, and is told.
    let due: Vec<_> = (results["tests"].as_array().unwrap().iter())
        .filter(|test| !test["not_run"].is_null())
        .collect();
    assert_eq!(due.len(), 1, "{results}");
    assert_eq!(due[0]["name"], "error-mid-call");
    assert_eq!(due[0]["subtests"][0]["verdict"], "not-checked");
    let why = due[0]["not_run"].as_str().unwrap();
    assert!(why.contains("ended"), "{why}");
    let ran = results["tests"].as_array().unwrap().len() as u64 - 1;
    assert_eq!(results["not_run"], 1000 - ran);
    let said = [output.stdout, output.stderr].map(|b| String::from_utf8_lossy(&b).into_owned());
    (output.status.code(), said.concat())
}

#[test]
fn a_killed_device_is_trouble_of_the_host_and_no_finding() {
    let (status, said) = killed_in_mid_run(" serve ");
    assert_eq!(status, Some(2), "{said}");
    assert!(said.contains("the device ended before the guest"), "{said}");
    assert!(
        said.contains("Bail out!") && !said.contains("\nnot ok"),
        "{said}"
    );
}

#[test]
fn a_killed_qemu_is_trouble_of_the_host_and_no_finding() {
    let (status, said) = killed_in_mid_run("qemu-system");
    assert_eq!(status, Some(2), "{said}");
    assert!(
        said.contains("QEMU ended") && !said.contains("\nnot ok"),
        "{said}"
    );
}

#[test]
fn a_scenario_without_end_is_refused() {
    for file in ["/dev/zero", "/"] {
        let run = run(&["--scenario", file]);
        assert_eq!(run.status, 2, "{}", run.said());
        assert!(run.stderr.contains("no regular file"), "{}", run.said());
    }
}

#[test]
fn a_trace_never_takes_the_place_of_an_image() {
    let dir = tempfile::tempdir().unwrap();
    let image = dir.path().join("img");
    let serve = |image: &str, trace: &str| {
        let mut command = wtblk();
        command
            .current_dir(dir.path())
            .args(["serve", "--socket", "s", "--image", image, "--trace", trace]);
        // Where it is not refused it serves, and would for ever.
        let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
        let mut status = None;
        let ended = catch_unwind(AssertUnwindSafe(|| {
            until("a refusal", Duration::from_secs(10), || {
                status = child.try_wait().unwrap();
                status.is_some()
            });
        }));
        if let Err(why) = ended {
            child.kill().unwrap();
            child.wait().unwrap();
            resume_unwind(why);
        }
        let mut said = String::new();
        let mut stderr = child.stderr.take().unwrap();
        stderr.read_to_string(&mut said).unwrap();
        (status.and_then(|s| s.code()), said)
    };
    for (image_name, trace) in [("img", "img"), ("img", "./img"), ("x.data", "x")] {
        let image = image.with_file_name(image_name);
        std::fs::write(&image, vec![7u8; 1 << 20]).unwrap();
        let (status, said) = serve(image_name, trace);
        assert_eq!(status, Some(2), "{said}");
        assert!(said.contains("is no trace"), "{said}");
        assert_eq!(std::fs::read(&image).unwrap(), vec![7u8; 1 << 20]);
    }
}

#[test]
fn an_interrupt_before_the_boot_has_the_same_status() {
    // The process group of a terminal: QEMU's version, mkfs and wtblk all get it.
    let dir = tempfile::tempdir().unwrap();
    let fake = dir.path().join("qemu");
    std::fs::write(&fake, "#!/bin/sh\nkill -INT $PPID\nexit 1\n").unwrap();
    use std::os::unix::fs::PermissionsExt as _;
    std::fs::set_permissions(&fake, std::fs::Permissions::from_mode(0o755)).unwrap();
    let run = run(&["--qemu", fake.to_str().unwrap()]);
    assert_eq!(run.status, 130, "{}", run.said());
}

/// A matrix takes hours: who interrupts it gets the command that goes on, with all that he typed.
#[test]
fn an_interrupted_matrix_says_how_to_go_on() {
    let dir = tempfile::tempdir().unwrap();
    let fake = dir.path().join("qemu");
    std::fs::write(&fake, "#!/bin/sh\nkill -TERM $PPID\nexit 1\n").unwrap();
    use std::os::unix::fs::PermissionsExt as _;
    std::fs::set_permissions(&fake, std::fs::Permissions::from_mode(0o755)).unwrap();
    let fake = fake.to_str().unwrap();
    let run = run(&["--matrix", "--defect", "partial-dirty", "--qemu", fake]);
    assert_eq!(run.status, 130, "{}", run.said());
    let line = (run.stdout.lines()).find_map(|line| line.strip_prefix("# go on with: "));
    let line = line.unwrap_or_else(|| panic!("{}", run.said()));
    let out = run.dir.path().canonicalize().unwrap();
    for word in ["--defect partial-dirty", "--matrix", "--seed ", fake] {
        assert!(line.contains(word), "{word}: {line}");
    }
    assert!(
        line.ends_with(&format!(" --out {}", out.display())),
        "{line}"
    );
}

/// Each is told before anything is booted.
#[test]
fn a_kernel_that_is_none_and_words_of_the_harness_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().to_str().unwrap();
    let cases: [(&[&str], &str); 6] = [
        (&["--kernel", folder], "that is a folder"),
        (
            &["--kernel", "/bin/true", "--machine", "microvm"],
            "no kernel image",
        ),
        (&["--append", "quiet wtblk_tests=dsync"], "--test NAME"),
        (&["--append", "wtblk_list"], "wtblk_list"),
        (&["--append", "wtblk_sweep=dsync"], "`wtblk sweep`"),
        (
            &["--test", "dsync,hole"],
            "repeated: --test dsync --test hole",
        ),
    ];
    for (args, why) in cases {
        let run = run(args);
        assert_eq!(run.status, 2, "{}", run.said());
        assert!(run.stderr.contains(why), "{why}: {}", run.said());
        assert!(!run.dir.path().join("boot-1").exists(), "{}", run.said());
    }
}

/// A fault that never came looks like a pass: the run says so.
#[test]
fn a_rule_that_never_fired_is_named() {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    writeln!(
        file,
        "version = 1\n[[fault]]\nname = \"comes\"\nwhen = {{ op = \"write\", class = \"data\" }}\n\
         action = {{ delay = \"1ms\" }}\n[[fault]]\nname = \"never-comes\"\n\
         when = {{ op = \"discard\" }}\naction = {{ status = \"ioerr\" }}"
    )
    .unwrap();
    let path = file.path().to_str().unwrap();
    let run = run(&["--scenario", path, "--test", "overwrite-aligned"]);
    assert_eq!(run.status, 0, "{}", run.said());
    assert_eq!(
        run.results["idle_rules"],
        serde_json::json!(["never-comes"]),
        "{}",
        run.said()
    );
    let line = format!("# the rule 'never-comes' of {path} never fired");
    assert!(run.stdout.contains(&line), "{}", run.said());
    assert!(!run.stdout.contains("'comes'"), "{}", run.said());
}

/// What an option says that cannot be is refused with what can be, before anything is made.
#[test]
fn options_that_would_be_passed_over_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("empty.img"), b"").unwrap();
    let serve =
        |more: &[&'static str]| [&["serve", "--socket", "s", "--mark-socket", "m"], more].concat();
    let cases: [(Vec<&str>, &[&str]); 7] = [
        (
            vec!["--log", "loud", "scenario", "schema"],
            &["loud", "warn"],
        ),
        (
            serve(&["--null", "1M", "--trace-data", "all"]),
            &["--trace-data", "--trace PATH"],
        ),
        (
            serve(&["--null", "1M", "--digest", "all"]),
            &["--digest", "--trace PATH"],
        ),
        (serve(&["--image", "empty.img"]), &["empty.img is empty"]),
        (
            vec!["minimize", "t", "--out", "o", "--promise", "bogus"],
            &["bogus", "written-once"],
        ),
        (
            vec!["verify", "--explain", "bogus"],
            &["bogus", "written-once"],
        ),
        (
            serve(&["--null", "1M", "--digest", "nobody"]),
            &["nobody", "marked"],
        ),
    ];
    for (args, words) in cases {
        let mut child = wtblk();
        child.args(&args).current_dir(dir.path());
        let mut child = child
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let begun = Instant::now();
        // One that serves is no reason to wait for it.
        let status = loop {
            match child.try_wait().unwrap() {
                Some(status) => break status.code(),
                None if begun.elapsed() > Duration::from_secs(20) => {
                    child.kill().unwrap();
                    child.wait().unwrap();
                    panic!("{args:?} was not refused");
                }
                None => std::thread::yield_now(),
            }
        };
        let mut said = String::new();
        child
            .stderr
            .take()
            .unwrap()
            .read_to_string(&mut said)
            .unwrap();
        assert_eq!(status, Some(2), "{args:?}: {said}");
        for word in words {
            assert!(said.contains(word), "{args:?}: {said}");
        }
    }
    let left: Vec<_> = std::fs::read_dir(dir.path()).unwrap().collect();
    assert_eq!(left.len(), 1, "{left:?}");
}

/// Each command on a FIFO that nobody writes: refused at once, in a sentence.
#[test]
fn a_fifo_is_refused_and_not_waited_for() {
    let dir = tempfile::tempdir().unwrap();
    let fifo = dir.path().join("fifo");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let import = [
        "trace",
        "import",
        "--from",
        "log-writes",
        "--out",
        "o",
        "fifo",
    ];
    let cases: [&[&str]; 8] = [
        &["verify", "fifo"],
        &["trace", "show", "fifo"],
        &["trace", "export", "--to", "jsonl", "fifo"],
        &import,
        &["minimize", "--out", "o", "fifo"],
        &["selftest", "fifo"],
        &["scenario", "check", "fifo"],
        &["scenario", "explain", "fifo"],
    ];
    for args in cases {
        let mut child = wtblk();
        child.args(args).current_dir(dir.path());
        let mut child = child
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let begun = Instant::now();
        while child.try_wait().unwrap().is_none() {
            if begun.elapsed() > Duration::from_secs(20) {
                child.kill().unwrap();
                child.wait().unwrap();
                panic!("{args:?} waits");
            }
            std::thread::yield_now();
        }
        let output = child.wait_with_output().unwrap();
        let said = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
        assert_eq!(output.status.code(), Some(2), "{args:?}: {said}");
        assert!(
            said.contains("fifo") && said.contains("no regular file"),
            "{args:?}: {said}"
        );
    }
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    // One that this process was given open is read.
    let mut child = wtblk();
    child.args(["scenario", "check", "/dev/stdin"]);
    let mut child = child
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    child
        .stdin
        .take()
        .unwrap()
        .write_all(b"version = 1\n")
        .unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(0));
    assert_eq!(output.stdout, b"1 file, 0 rules: good\n");
}

/// `wtblk scenario schema | head -1`
#[test]
fn a_reader_that_goes_away_is_no_error() {
    for args in [
        &["scenario", "schema"][..],
        &["verify", "--explain", "order"],
    ] {
        let (read, write) = nix::unistd::pipe().unwrap();
        drop(read);
        let output = wtblk().args(args).stdout(write).output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{args:?}");
        assert_eq!(output.stderr, b"", "{args:?}");
    }
}
