// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What becomes of a write that the device holds while something is done beside it: it succeeds, or
//! it fails. Who waits for it must come to a right end either way; that he is woken, and what he
//! finds then, is another path of the kernel for each.
//!
//! The rules of a case are `TEST-holds` and `TEST-fails`.

use crate::aftermath;
use crate::call::Done;
use crate::flying::{self, Engine};
use crate::rules::Rule;
use crate::sys::result_text;
use crate::test::Test;

/// How a held write ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// Well.
    Succeeds,
    /// With an error.
    Fails,
}

/// Both, the good one first.
pub const BOTH: [Fate; 2] = [Fate::Succeeds, Fate::Fails];

impl Fate {
    /// The rule that holds the write.
    pub fn rule(self, t: &Test) -> Rule {
        let does = match self {
            Fate::Succeeds => "holds",
            Fate::Fails => "fails",
        };
        Rule::named(format!("{}-{does}", t.name))
    }

    /// How the call is submitted: by io_uring where its write fails, if there is one; so what is done beside calls is
    /// done beside those of both kinds.
    pub fn engine(self, t: &Test) -> Engine {
        match self {
            Fate::Fails => flying::uring_or_aio(t),
            Fate::Succeeds => Engine::Aio,
        }
    }

    /// Whether it fails.
    pub fn fails(self) -> bool {
        self == Fate::Fails
    }

    /// A file's name: each fate has files of its own.
    pub fn name(self, name: &str) -> String {
        match self {
            Fate::Succeeds => name.to_owned(),
            Fate::Fails => format!("{name}-fails"),
        }
    }

    /// What the call returned is what its write says.
    pub fn check_call(self, t: &Test, what: &str, done: &Done, len: u64) {
        if self.fails() {
            aftermath::check_told(t, what, done, len);
            return;
        }
        t.check(done.result == len as i64, || {
            let result = result_text(done.result);
            format!("{what}: call {} returned {result}", done.call)
        });
    }
}

/// What a file may hold beside a call: with the call's bytes, and without.
pub struct Holds {
    /// With them.
    pub with: Vec<u8>,
    /// Without.
    pub without: Vec<u8>,
}

impl Holds {
    /// Something that is done to the file, whether the call's bytes are there or not.
    pub fn change(&mut self, how: impl Fn(&mut Vec<u8>)) {
        how(&mut self.with);
        how(&mut self.without);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_is_one_of_both() {
        let mut holds = Holds {
            with: vec![1, 1],
            without: vec![0, 0],
        };
        holds.change(|bytes| bytes[1] = 7);
        assert_eq!((holds.with, holds.without), (vec![1, 7], vec![0, 7]));
    }

    #[test]
    fn a_fate_names_its_files() {
        assert_eq!(BOTH.map(|fate| fate.name("x")), ["x", "x-fails"]);
    }
}
