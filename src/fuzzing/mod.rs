// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a fuzzer feeds: one function for each place where bytes of somebody
//! else come in. None may panic, hang or grow, whatever the bytes are; what
//! they must do besides is asserted in each. `fuzz/` drives them with
//! libFuzzer for as long as one likes, `./ci/test` with the stored corpus and
//! with bytes drawn at random.

mod events;
mod trace;

use std::hint::black_box;

use wtblk_shared::mark::Mark;

use crate::control::Line;
use crate::fault::request::Request;
use crate::fault::{Engine, Scenario, explain};
use crate::trace::event::{Op, Status};

pub use events::events;
pub use trace::trace;

/// A name and what it feeds.
pub type Target = (&'static str, fn(&[u8]));

/// All of them.
pub const TARGETS: [Target; 7] = [
    ("control", control),
    ("events", events),
    ("mark", mark),
    ("message", message),
    ("ring", ring),
    ("scenario", scenario),
    ("trace", trace),
];

/// A ring and its chains.
pub fn ring(bytes: &[u8]) {
    crate::device::fuzz_ring(bytes);
}

/// What a front end says over one connection.
pub fn message(bytes: &[u8]) {
    crate::device::fuzz_messages(bytes);
}

/// A write to the mark area.
pub fn mark(bytes: &[u8]) {
    let Ok(mark) = Mark::from_block(bytes) else {
        return;
    };
    // What was understood is said and understood again. Numbers may be spelt in several ways.
    let line = mark.to_line();
    let again = Mark::from_line(&line);
    assert_eq!(again.as_ref(), Ok(&mark), "{line}");
}

/// A line at the control socket.
pub fn control(bytes: &[u8]) {
    if let Err(why) = Line::read(bytes) {
        assert!(!why.is_empty());
    }
}

/// A scenario file; if it is good, requests for its rules.
pub fn scenario(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else {
        return;
    };
    let scenario = match Scenario::parse("fuzz.toml", text) {
        Ok(scenario) => scenario,
        Err(error) => {
            let said = error.to_string();
            return assert!(said.starts_with("fuzz.toml:"), "no place in: {said}");
        }
    };
    black_box(explain(&scenario));
    let again = Scenario::parse("fuzz.toml", &scenario.to_text());
    assert_eq!(again.as_ref().ok(), Some(&scenario));
    let mut engine = Engine::new(&scenario, 1);
    for n in 0..32 {
        let request = Request {
            id: n,
            disk: 0,
            queue: 0,
            op: [Op::Write, Op::Read, Op::Flush, Op::Discard][n as usize % 4],
            sector: n * 1000,
            bytes: 4096,
            tag: None,
            inflight: 1,
        };
        black_box(engine.decide(&request, n * 1_000_000));
        engine.completed(&request, Status::OK);
        black_box(engine.take_releases());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Bytes without a pattern, the same ones each time.
    fn random(seed: u64, len: usize) -> Vec<u8> {
        let mut x = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        let mut next = || {
            x ^= x << 13;
            x ^= x >> 7;
            x ^= x << 17;
            x as u8
        };
        (0..len).map(|_| next()).collect()
    }

    fn corpus(target: &str) -> Vec<Vec<u8>> {
        let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/fuzz/corpus");
        let files = std::fs::read_dir(format!("{dir}/{target}")).expect("a corpus");
        let mut paths: Vec<_> = files.map(|f| f.expect("a file").path()).collect();
        paths.sort();
        let read = |p: &std::path::PathBuf| std::fs::read(p).expect("a file of the corpus");
        paths.iter().map(read).collect()
    }

    fn run(name: &str) {
        let (_, target) = TARGETS.iter().find(|t| t.0 == name).expect("a target");
        let corpus = corpus(name);
        assert!(corpus.len() >= 10, "{name}: a corpus of {}", corpus.len());
        corpus.iter().for_each(|bytes| target(bytes));
        for n in 0..300u64 {
            target(&random(n, n as usize * 4));
            // A good one with a few bad bytes.
            let mut bytes = corpus[n as usize % corpus.len()].clone();
            for wrong in random(n, 4).chunks(2) {
                if !bytes.is_empty() {
                    let at = usize::from(wrong[0]) * 257 % bytes.len();
                    bytes[at] = wrong[1];
                }
            }
            target(&bytes);
        }
    }

    macro_rules! targets {
        ($($name:ident)*) => { $(
            #[test]
            fn $name() {
                run(stringify!($name));
            }
        )* };
    }

    targets! { control events mark message ring scenario trace }
}
