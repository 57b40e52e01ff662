// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `wtblk-guest`: PID 1 of the test guest. `docs/guest-tests.md` says what it
//! does, what it takes and what it gives.

mod aftermath;
mod beside;
mod boot;
mod call;
mod cases;
mod cmdline;
mod console;
mod discover;
mod disks;
mod exerciser;
mod fate;
mod faulty;
mod fiemap;
mod finish;
mod flying;
mod marks;
mod open_file;
mod page_flags;
mod pages;
mod probe;
mod rules;
mod runner;
mod scene;
mod subject;
mod sweep;
mod sys;
mod task;
mod test;
mod versions;
mod world;
mod xfs;

use std::process::ExitCode;

fn main() -> ExitCode {
    if std::process::id() == 1 {
        finish::install_panic_hook();
        boot::run()
    }
    // Outside a guest: names only, so that a harness can know them without a boot.
    if std::env::args().nth(1).as_deref() == Some("--list") {
        for case in cases::ALL {
            println!("{}", case.name);
        }
        return ExitCode::SUCCESS;
    }
    // The caller that a test kills is a process of its own.
    let words: Vec<String> = std::env::args().skip(1).collect();
    if let Some((cases::killed::CHILD, rest)) =
        words.split_first().map(|(w, rest)| (w.as_str(), rest))
    {
        return cases::killed::child(rest);
    }
    if std::env::args().nth(1).as_deref() == Some("--list-sweep") {
        for shape in cases::SWEPT {
            println!("{} {}", shape.test, shape.name);
        }
        return ExitCode::SUCCESS;
    }
    eprintln!(
        "wtblk-guest is the init of a test guest; outside one it only knows --list and --list-sweep"
    );
    ExitCode::from(2)
}
