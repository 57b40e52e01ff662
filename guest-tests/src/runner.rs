// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Runs the tests one after the other, each in a thread under a limit, and
//! prints KTAP.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;

use wtblk_shared::exit;
use wtblk_shared::mark::Mark;

use crate::cases::{self, Case};
use crate::console::{diagnostic, line};
use crate::task::Task;
use crate::test::{Fail, Findings, Test};
use crate::world::World;

/// Runs them all and gives the exit byte.
pub fn run(world: &'static World) -> u8 {
    let names: Vec<String> = match &world.params.tests {
        Some(names) => names.clone(),
        None => cases::ALL.iter().map(|c| c.name.to_owned()).collect(),
    };
    line("KTAP version 1");
    line(&format!("1..{}", names.len()));
    let mut code = exit::OK;
    for (i, name) in names.iter().enumerate() {
        let n = i + 1;
        // A `#` would begin the directive.
        let shown = name.replace('#', "_");
        let Some(case) = cases::find(name) else {
            let known: Vec<&str> = cases::ALL.iter().map(|c| c.name).collect();
            diagnostic(&format!("{shown}: known tests: {}", known.join(" ")));
            line(&format!("not ok {n} {shown} # ERROR no such test"));
            code = exit::NOT_OK;
            continue;
        };
        match run_one(world, case) {
            Verdict::Ok => line(&format!("ok {n} {name}")),
            Verdict::Skip(why) => line(&format!("ok {n} {name} # SKIP {why}")),
            Verdict::NotOk => {
                line(&format!("not ok {n} {name}"));
                code = exit::NOT_OK;
            }
            Verdict::Hung(why) => {
                diagnostic(&format!("HUNG {name}: {why}"));
                line(&format!("not ok {n} {name} # TIMEOUT {why}"));
                return exit::HUNG;
            }
        }
    }
    code
}

enum Verdict {
    Ok,
    NotOk,
    Skip(String),
    Hung(String),
}

fn run_one(world: &'static World, case: &'static Case) -> Verdict {
    let missing = cases::defect_missing(world)
        .or_else(|| cases::kind_missing(world))
        .or_else(|| case.needs.iter().find_map(|need| need.missing(world)));
    if let Some(why) = missing {
        return Verdict::Skip(why);
    }
    if !cases::goes_on(case) {
        let cleared = world.limited("the folder of the test", world.params.test, || {
            Test::clear(case.name)
        });
        match cleared.and_then(|r| r) {
            Ok(()) => {}
            Err(Fail::Hung(why)) => return Verdict::Hung(why),
            Err(e) => {
                diagnostic(&format!("{}: {}", case.name, text(&e)));
                return Verdict::NotOk;
            }
        }
    }
    let findings = Arc::new(Findings::default());
    if let Err(e) = world.post(&Mark::TestBegin {
        name: case.name.to_owned(),
    }) {
        diagnostic(&format!("{}: {}", case.name, text(&e)));
        return Verdict::NotOk;
    }
    let (send, receive) = mpsc::channel();
    let thread_findings = Arc::clone(&findings);
    world.spawn(case.name, move || {
        let result =
            Test::new(world, case.name, thread_findings).and_then(|mut t| (case.run)(&mut t));
        let _ = send.send(result);
    });
    let limit = world.params.test * cases::limits(case, &world.params, world.bsize);
    let mut result = match receive.recv_timeout(limit) {
        Ok(result) => result,
        Err(RecvTimeoutError::Disconnected) => Err(Fail::Error("the test's thread broke".into())),
        Err(RecvTimeoutError::Timeout) => Err(Fail::Hung(format!(
            "the test did not end in {} ms, {}",
            limit.as_millis(),
            Task(findings.tid.load(Ordering::Acquire)).describe()
        ))),
    };
    // The mark disk may be what hangs: nothing after a hang waits without a limit.
    let end = Mark::TestEnd {
        name: case.name.to_owned(),
    };
    let ended = world
        .limited("test-end", Duration::from_secs(6), move || world.post(&end))
        .and_then(|r| r);
    if let (Ok(()), Err(e)) = (&result, ended) {
        result = Err(e);
    }
    for note in &*findings.notes.lock().unwrap_or_else(|e| e.into_inner()) {
        diagnostic(&format!("{}: note: {note}", case.name));
    }
    for line in &*findings.waits.lock().unwrap_or_else(|e| e.into_inner()) {
        diagnostic(&format!("{}: waits: {line}", case.name));
    }
    let failures = findings.failures.lock().unwrap_or_else(|e| e.into_inner());
    for failure in &*failures {
        diagnostic(&format!("{}: {failure}", case.name));
    }
    match result {
        Ok(()) if failures.is_empty() => Verdict::Ok,
        Ok(()) => Verdict::NotOk,
        Err(Fail::Skip(why)) if failures.is_empty() => Verdict::Skip(why),
        Err(Fail::Hung(why)) => Verdict::Hung(why),
        Err(e) => {
            diagnostic(&format!("{}: {}", case.name, text(&e)));
            Verdict::NotOk
        }
    }
}

/// A failure's text.
pub fn text(fail: &Fail) -> &str {
    match fail {
        Fail::Skip(t) | Fail::Error(t) | Fail::Hung(t) => t,
    }
}
