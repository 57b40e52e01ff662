// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The other side of the device, for its tests: a `wtblk serve` process and a
//! small driver that speaks real vhost-user to it over shared memory.
#![allow(dead_code)]

pub mod driver;
pub mod hostile;
pub mod inside;
pub mod serve;

use std::time::{Duration, Instant};

/// Longest wait for anything that must happen.
pub const LIMIT: Duration = Duration::from_secs(20);

/// Waits until `state` gives something; fails the test at the limit.
pub fn until<T>(what: &str, mut state: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + LIMIT;
    loop {
        if let Some(value) = state() {
            return value;
        }
        assert!(Instant::now() < end, "still waiting for: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// What a test needs is not to be had. To root nothing of it is refused: there it is a failure.
pub fn not_checked(why: &str) {
    assert!(!nix::unistd::geteuid().is_root(), "not checked: {why}");
    eprintln!("SKIP: {why} (not root)");
}
