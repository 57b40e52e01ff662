// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What /proc tells of a thread of ours that does not come back.

use std::fs;
use std::sync::mpsc;
use std::time::Duration;

use crate::sys;

/// A thread of this process.
#[derive(Clone, Copy, Debug)]
pub struct Task(pub i32);

/// One look at it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sample {
    /// State letter; '?' where the thread is gone.
    pub state: char,
    /// Context switches, voluntary and not.
    pub switches: u64,
    /// Kernel function that it waits in; empty where unknown.
    pub wchan: String,
}

impl Task {
    /// Looks.
    pub fn sample(self) -> Sample {
        let read = |name: &str| {
            fs::read_to_string(format!("/proc/self/task/{}/{name}", self.0)).unwrap_or_default()
        };
        let wchan = read("wchan").trim().to_owned();
        Sample {
            state: state_letter(&read("stat")).unwrap_or('?'),
            switches: switches(&read("status")),
            wchan: if wchan == "0" { String::new() } else { wchan },
        }
    }

    /// The state in words.
    pub fn describe(self) -> String {
        let s = self.sample();
        let place = if s.wchan.is_empty() {
            "unknown"
        } else {
            &s.wchan
        };
        format!("state {} in {place}", s.state)
    }
}

/// The kernel function that another process waits in; empty where unknown.
pub fn place_of(process: u32) -> String {
    fs::read_to_string(format!("/proc/{process}/wchan")).unwrap_or_default()
}

/// Looks in a row that must be alike before a thread stands still: one mark round trip
/// does not tell it from one that a loaded machine gave no time.
pub const LOOKS: u32 = 16;

impl Sample {
    /// In D at a known place, and not for a grace period of RCU, which ends by itself.
    pub fn stands_still(&self) -> bool {
        let passing = ["rcu_gp", "synchronize_rcu"];
        self.state == 'D'
            && !self.wchan.is_empty()
            && !passing.iter().any(|p| self.wchan.contains(p))
    }
}

/// Does something that may hang, in a thread of its own. The error says how
/// long it was waited for and where the thread is.
pub fn limited<T: Send + 'static>(
    what: &str,
    limit: Duration,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, String> {
    let (send, receive) = mpsc::channel();
    let (tid_send, tid_receive) = mpsc::channel();
    std::thread::Builder::new()
        .name(what.to_owned())
        .spawn(move || {
            let _ = tid_send.send(sys::gettid());
            let _ = send.send(work());
        })
        .expect("a thread");
    receive.recv_timeout(limit).map_err(|_| {
        let state = tid_receive.try_recv().map(|tid| Task(tid).describe());
        format!(
            "{what} did not return in {} ms{}",
            limit.as_millis(),
            state.map(|s| format!(" ({s})")).unwrap_or_default()
        )
    })
}

/// The state letter of `/proc/.../stat`: the name before it may hold anything.
fn state_letter(stat: &str) -> Option<char> {
    stat.rsplit_once(") ")?.1.chars().next()
}

/// Both counters of `/proc/.../status` together.
fn switches(status: &str) -> u64 {
    status
        .lines()
        .filter_map(|l| l.split_once(':'))
        .filter(|(key, _)| key.ends_with("voluntary_ctxt_switches"))
        .filter_map(|(_, n)| n.trim().parse::<u64>().ok())
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_state_follows_the_last_bracket() {
        assert_eq!(state_letter("7 (a) b) D 1 7 7"), Some('D'));
        assert_eq!(state_letter(""), None);
    }

    #[test]
    fn both_kinds_of_switches_count() {
        let status = "Name:\tx\nvoluntary_ctxt_switches:\t40\nnonvoluntary_ctxt_switches:\t2\n";
        assert_eq!(switches(status), 42);
        assert_eq!(switches(""), 0);
    }
}
