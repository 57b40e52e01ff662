// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Goes into the copy of the tree as `crate::mutant_switch`: which mutant is on.

use std::sync::atomic::{AtomicUsize, Ordering};

static CHOSEN: AtomicUsize = AtomicUsize::new(usize::MAX);

/// Whether this is the mutant that `WTBLK_MUTANT` names.
#[inline]
pub fn on(number: usize) -> bool {
    let mut chosen = CHOSEN.load(Ordering::Relaxed);
    if chosen == usize::MAX {
        chosen = first();
    }
    chosen == number
}

#[cold]
fn first() -> usize {
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
