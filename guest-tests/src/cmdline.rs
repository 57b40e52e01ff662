// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What the harness asks for: the `wtblk_` words of the kernel command line.

use std::time::Duration;

use crate::exerciser::op::{self, Op};
use crate::sweep::params::SweepParams;

/// The parameters of a boot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Params {
    /// Names of the tests, in order; `None`: every test.
    pub tests: Option<Vec<String>>,
    /// Value of `RWF_WRITETHROUGH`.
    pub flag: u32,
    /// Whether marked calls carry a tag.
    pub tags: bool,
    /// Seed of what the tests draw at random.
    pub seed: u64,
    /// Limit of a probe.
    pub probe: Duration,
    /// Limit of a whole test.
    pub test: Duration,
    /// The defect that the kernel must show as switched on.
    pub defect: Option<String>,
    /// The file system under test is to send every overwrite to new blocks.
    pub always_cow: bool,
    /// The disk under test is the realtime device of a file system that is mounted from another disk.
    pub realtime: bool,
    /// Only print the tests' names.
    pub list: bool,
    /// How many writes the aid `held-writes` lets the device hold.
    pub hold: u32,
    /// What it does then.
    pub then: Then,
    /// Rounds of the aid `churn`.
    pub rounds: u32,
    /// Operations of the test `exerciser`, by the seed; `None`: the short run that is always the same.
    pub ops: Option<u32>,
    /// A list of operations for it instead.
    pub exerciser: Option<Vec<Op>>,
    /// A sweep instead of tests.
    pub sweep: SweepParams,
}

/// What the aid `held-writes` does when its writes are held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Then {
    /// Waits until they come back.
    Wait,
    /// Ends QEMU by the debug port.
    Exit,
    /// Powers the machine off, without sync.
    PowerOff,
    /// Resets the machine, without sync.
    Reset,
}

impl Default for Params {
    fn default() -> Params {
        Params {
            tests: None,
            flag: wtblk_shared::RWF_WRITETHROUGH,
            tags: true,
            seed: 0,
            probe: Duration::from_millis(2000),
            test: Duration::from_millis(15_000),
            defect: None,
            always_cow: false,
            realtime: false,
            list: false,
            hold: 1,
            then: Then::Wait,
            rounds: 1,
            ops: None,
            exerciser: None,
            sweep: SweepParams::default(),
        }
    }
}

impl Params {
    /// Reads the command line. Words without our prefix are somebody else's; one
    /// of ours that cannot be understood is an error, never a silent default.
    pub fn parse(cmdline: &str) -> Result<Params, String> {
        let mut p = Params::default();
        for word in cmdline.split_whitespace() {
            if !word.starts_with("wtblk_") {
                continue;
            }
            let (key, value) = word.split_once('=').unwrap_or((word, ""));
            let bad = |expected: &str| format!("'{word}' on the command line, expected {expected}");
            match key {
                "wtblk_tests" => {
                    let names: Vec<String> = value
                        .split(',')
                        .filter(|n| !n.is_empty())
                        .map(str::to_owned)
                        .collect();
                    if names.is_empty() {
                        return Err(bad("wtblk_tests=NAME[,NAME...]"));
                    }
                    // The second one would find the files of the first.
                    if (1..names.len()).any(|n| names[..n].contains(&names[n])) {
                        return Err(bad("each test once in a boot"));
                    }
                    p.tests = Some(names);
                }
                "wtblk_flag" => {
                    p.flag = number(value)
                        .and_then(|n| u32::try_from(n).ok())
                        .filter(|n| *n != 0)
                        .ok_or_else(|| bad("wtblk_flag=0x200 or another 32-bit value"))?;
                }
                "wtblk_tags" => {
                    p.tags = match value {
                        "on" => true,
                        "off" => false,
                        _ => return Err(bad("wtblk_tags=on or off")),
                    };
                }
                "wtblk_seed" => p.seed = number(value).ok_or_else(|| bad("a number"))?,
                "wtblk_probe_ms" => p.probe = ms(value).ok_or_else(|| bad("1 to 600000 ms"))?,
                "wtblk_test_ms" => p.test = ms(value).ok_or_else(|| bad("1 to 600000 ms"))?,
                "wtblk_defect" => {
                    p.defect = (!value.is_empty() && value != "none").then(|| value.to_owned());
                }
                "wtblk_hold" => {
                    p.hold = number(value)
                        .and_then(|n| u32::try_from(n).ok())
                        .filter(|n| (1..=128).contains(n))
                        .ok_or_else(|| bad("1 to 128 writes"))?;
                }
                "wtblk_rounds" => {
                    p.rounds = number(value)
                        .and_then(|n| u32::try_from(n).ok())
                        .filter(|n| (1..=10_000).contains(n))
                        .ok_or_else(|| bad("1 to 10000 rounds"))?;
                }
                "wtblk_ops" => {
                    let ops = number(value)
                        .and_then(|n| u32::try_from(n).ok())
                        .filter(|n| (1..=1_000_000).contains(n))
                        .ok_or_else(|| bad("1 to 1000000 operations"))?;
                    p.ops = Some(ops);
                }
                "wtblk_exerciser" => {
                    p.exerciser = Some(op::parse(value).map_err(|e| bad(&e))?);
                }
                "wtblk_then" => {
                    p.then = match value {
                        "wait" => Then::Wait,
                        "exit" => Then::Exit,
                        "poweroff" => Then::PowerOff,
                        "reset" => Then::Reset,
                        _ => return Err(bad("wtblk_then=wait, exit, poweroff or reset")),
                    };
                }
                "wtblk_always_cow" if value.is_empty() => p.always_cow = true,
                "wtblk_realtime" if value.is_empty() => p.realtime = true,
                "wtblk_list" if value.is_empty() => p.list = true,
                _ => match p.sweep.word(key, value) {
                    Ok(true) => {}
                    Ok(false) => return Err(bad("a parameter of docs/guest-tests.md")),
                    Err(expected) => return Err(bad(expected)),
                },
            }
        }
        Ok(p)
    }
}

fn number(text: &str) -> Option<u64> {
    match text.strip_prefix("0x") {
        Some(hex) => u64::from_str_radix(hex, 16).ok(),
        None => text.parse().ok(),
    }
}

fn ms(text: &str) -> Option<Duration> {
    number(text)
        .filter(|n| (1..=600_000).contains(n))
        .map(Duration::from_millis)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_of_ours_gives_the_defaults() {
        assert_eq!(
            Params::parse("console=ttyS0 panic=-1 virtio_mmio.device=512@0xfeb00e00:12\n"),
            Ok(Params::default())
        );
    }

    #[test]
    fn every_word_is_understood() {
        let p = Params::parse(
            "quiet wtblk_tests=a,b-c wtblk_flag=0x400 wtblk_tags=off wtblk_seed=7 \
             wtblk_probe_ms=500 wtblk_test_ms=9000 wtblk_defect=leak-writeback wtblk_list",
        )
        .unwrap();
        assert_eq!(p.tests, Some(vec!["a".to_owned(), "b-c".to_owned()]));
        assert_eq!((p.flag, p.tags, p.seed, p.list), (0x400, false, 7, true));
        assert_eq!(p.probe, Duration::from_millis(500));
        assert_eq!(p.test, Duration::from_secs(9));
        assert_eq!(p.defect.as_deref(), Some("leak-writeback"));
        assert_eq!(Params::parse("wtblk_defect=none").unwrap().defect, None);
    }

    #[test]
    fn what_cannot_be_understood_is_refused() {
        for word in [
            "wtblk_tests=",
            "wtblk_tests=hole,dsync,hole",
            "wtblk_flag=0",
            "wtblk_flag=0x100000000",
            "wtblk_tags=yes",
            "wtblk_seed=x",
            "wtblk_probe_ms=0",
            "wtblk_list=1",
            "wtblk_hold=129",
            "wtblk_then=dance",
            "wtblk_ops=0",
            "wtblk_exerciser=t0+4096,x",
            "wtblk_colour=red",
        ] {
            let e = Params::parse(word).unwrap_err();
            assert!(e.contains(word), "{e}");
        }
    }
}
