// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Goes into the copy of the tree as `crate::mutant_switch`: which mutant is on.

use std::io::Write as _;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

static CHOSEN: AtomicUsize = AtomicUsize::new(usize::MAX);

/// No mutant is on, and it is noted which of them the tests come by.
const WATCH: usize = usize::MAX - 1;
/// More numbers than there are.
const NUMBERS: usize = 1 << 14;

static SEEN: [AtomicBool; NUMBERS] = [const { AtomicBool::new(false) }; NUMBERS];
static FILE: Mutex<Option<std::fs::File>> = Mutex::new(None);

/// Whether this is the mutant that `WTBLK_MUTANT` names.
#[inline]
pub fn on(number: usize) -> bool {
    let mut chosen = CHOSEN.load(Ordering::Relaxed);
    if chosen >= WATCH {
        if chosen == usize::MAX {
            chosen = first();
        }
        if chosen == WATCH {
            note(number);
        }
    }
    chosen == number
}

/// The same; where it is only watched, `differs` says whether the mutant would make a difference here.
#[inline]
pub fn on_if(number: usize, differs: impl FnOnce() -> bool) -> bool {
    let chosen = CHOSEN.load(Ordering::Relaxed);
    if chosen < WATCH {
        return chosen == number;
    }
    let chosen = if chosen == usize::MAX { first() } else { chosen };
    if chosen == WATCH && !SEEN[number].load(Ordering::Relaxed) && differs() {
        note(number);
    }
    chosen == number
}

#[cold]
fn note(number: usize) {
    if SEEN[number].swap(true, Ordering::Relaxed) {
        return;
    }
    let mut file = FILE.lock().unwrap();
    // One write each: programs that are started by tests add to the same file.
    let file = file.as_mut().expect("it is watched");
    file.write_all(format!("{number}\n").as_bytes()).expect("the list of WTBLK_MUTANT_WATCH");
}

#[cold]
fn first() -> usize {
    if let Ok(path) = std::env::var("WTBLK_MUTANT_WATCH") {
        let file = std::fs::File::options().append(true).create(true).open(path);
        *FILE.lock().unwrap() = Some(file.expect("WTBLK_MUTANT_WATCH is a path"));
        CHOSEN.store(WATCH, Ordering::Relaxed);
        return WATCH;
    }
    let Ok(text) = std::env::var("WTBLK_MUTANT") else {
        CHOSEN.store(0, Ordering::Relaxed);
        return 0;
    };
    let chosen = text.parse().expect("WTBLK_MUTANT is a number");
    // One failed test is enough: nothing of the rest is run, nothing is shrunk.
    std::panic::set_hook(Box::new(|info| {
        eprintln!("panicked: {info}");
        std::process::exit(101);
    }));
    CHOSEN.store(chosen, Ordering::Relaxed);
    chosen
}
