// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! An operation and its text. A list of them, with commas between, is a word of the kernel command
//! line, so that what was found can be done again.
//!
//! A letter, numbers in bytes, and options behind dots: `t4096+1000.s.f2` is a call that writes
//! 1000 bytes at 4096 with DSYNC, the second data request of which fails.

use std::fmt;

/// How a call is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum By {
    /// `pwritev2(2)`.
    Call,
    /// `io_submit(2)`.
    Aio,
    /// io_uring.
    Uring,
}

/// What fails of an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Nothing.
    None,
    /// The n-th write.
    Write(u32),
    /// Every write.
    Every,
    /// The first read.
    Read,
}

/// A range of the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    /// Offset.
    pub off: u64,
    /// Length.
    pub len: u64,
}

/// Something to do to the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    /// A writethrough call.
    Call {
        /// Where.
        at: Range,
        /// Parts of its iovec.
        parts: u32,
        /// With DSYNC.
        dsync: bool,
        /// How.
        by: By,
        /// What fails of it.
        fault: Fault,
    },
    /// A plain write.
    Write(Range),
    /// Bytes stored through a mapping.
    Store(Range),
    /// truncate(2) to this size.
    Truncate(u64),
    /// A hole is punched.
    Punch(Range),
    /// fallocate(2) that leaves zeros.
    Zero(Range),
    /// fallocate(2); the file grows unless `keep`.
    Allocate {
        /// Where.
        at: Range,
        /// Keeps the size.
        keep: bool,
    },
    /// The blocks of `from`, of the file itself or of another one, become those at `to` as well.
    Clone {
        /// Which blocks.
        from: Range,
        /// Where to.
        to: u64,
        /// Of the other file.
        other: bool,
    },
    /// fsync; what fails of it.
    Sync(Fault),
    /// A range is read and compared.
    Read(Range),
    /// Synced, out of the page cache, and all of it read and compared; by `drop_caches`, or by advice.
    Evict {
        /// Every page of every file.
        every: bool,
    },
    /// The file system is mounted anew.
    Remount,
}

impl fmt::Display for Range {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}+{}", self.off, self.len)
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Fault::None => Ok(()),
            Fault::Write(n) => write!(f, ".f{n}"),
            Fault::Every => f.write_str(".fa"),
            Fault::Read => f.write_str(".fr"),
        }
    }
}

impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Op::Call {
                at,
                parts,
                dsync,
                by,
                fault,
            } => {
                write!(f, "t{at}")?;
                if *parts > 1 {
                    write!(f, ".i{parts}")?;
                }
                if *dsync {
                    f.write_str(".s")?;
                }
                f.write_str(match by {
                    By::Call => "",
                    By::Aio => ".a",
                    By::Uring => ".u",
                })?;
                write!(f, "{fault}")
            }
            Op::Write(at) => write!(f, "w{at}"),
            Op::Store(at) => write!(f, "m{at}"),
            Op::Truncate(size) => write!(f, "z{size}"),
            Op::Punch(at) => write!(f, "p{at}"),
            Op::Zero(at) => write!(f, "n{at}"),
            Op::Allocate { at, keep } => write!(f, "f{at}{}", if *keep { ".k" } else { "" }),
            Op::Clone { from, to, other } => {
                write!(f, "{}{from}@{to}", if *other { "d" } else { "c" })
            }
            Op::Sync(fault) => write!(f, "y{fault}"),
            Op::Read(at) => write!(f, "r{at}"),
            Op::Evict { every } => f.write_str(if *every { "E" } else { "e" }),
            Op::Remount => f.write_str("u"),
        }
    }
}

/// The list's text.
pub fn text(ops: &[Op]) -> String {
    let words: Vec<String> = ops.iter().map(Op::to_string).collect();
    words.join(",")
}

/// Offsets and lengths end here: no file of a test is longer.
const MOST: u64 = 1 << 30;

/// The list of a text.
pub fn parse(text: &str) -> Result<Vec<Op>, String> {
    text.split(',').map(one).collect()
}

fn one(word: &str) -> Result<Op, String> {
    let bad = || format!("'{word}' is no operation of docs/exerciser.md");
    let mut options = word.split('.');
    let head = options.next().unwrap_or_default();
    let letter = head.chars().next().filter(char::is_ascii).ok_or_else(bad)?;
    let rest = &head[1..];
    let number = |text: &str| text.parse().ok().filter(|n| *n <= MOST).ok_or_else(bad);
    let range = |text: &str| -> Result<Range, String> {
        let (off, len) = text.split_once('+').ok_or_else(bad)?;
        let (off, len) = (number(off)?, number(len)?);
        (len > 0).then_some(Range { off, len }).ok_or_else(bad)
    };
    let mut parts = 1;
    let (mut dsync, mut keep, mut by, mut fault) = (false, false, By::Call, Fault::None);
    for option in options {
        match (option, option.split_at_checked(1)) {
            ("s", _) if letter == 't' => dsync = true,
            ("a", _) if letter == 't' => by = By::Aio,
            ("u", _) if letter == 't' => by = By::Uring,
            ("k", _) if letter == 'f' => keep = true,
            ("fr", _) if letter == 't' => fault = Fault::Read,
            ("fa", _) if "ty".contains(letter) => fault = Fault::Every,
            (_, Some(("f", n))) if "ty".contains(letter) => {
                let n = number(n)? as u32;
                fault = (1..=super::FAULTS)
                    .contains(&n)
                    .then_some(Fault::Write(n))
                    .ok_or_else(bad)?;
            }
            (_, Some(("i", n))) if letter == 't' => {
                parts = number(n).map(|n| n as u32)?;
                if !(1..=64).contains(&parts) {
                    return Err(bad());
                }
            }
            _ => return Err(bad()),
        }
    }
    Ok(match letter {
        't' => Op::Call {
            at: range(rest)?,
            parts,
            dsync,
            by,
            fault,
        },
        'w' => Op::Write(range(rest)?),
        'm' => Op::Store(range(rest)?),
        'z' => Op::Truncate(number(rest)?),
        'p' => Op::Punch(range(rest)?),
        'n' => Op::Zero(range(rest)?),
        'f' => Op::Allocate {
            at: range(rest)?,
            keep,
        },
        'c' | 'd' => {
            let (from, to) = rest.split_once('@').ok_or_else(bad)?;
            Op::Clone {
                from: range(from)?,
                to: number(to)?,
                other: letter == 'd',
            }
        }
        'y' if rest.is_empty() => Op::Sync(fault),
        'r' => Op::Read(range(rest)?),
        'e' | 'E' if rest.is_empty() => Op::Evict {
            every: letter == 'E',
        },
        'u' if rest.is_empty() => Op::Remount,
        _ => return Err(bad()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_is_its_text() {
        let list = "t0+4096,t100+5.i3.s.a.f2,t1+1.u.fa,t7+9.fr,w5+6,m4096+3,z77,p0+10,n1+2,f0+9,\
                    f0+9.k,c0+4096@8192,d4096+4096@0,y,y.f1,y.fa,r0+1,e,E,u";
        let list = list.replace(' ', "");
        assert_eq!(text(&parse(&list).unwrap()), list);
    }

    #[test]
    fn what_is_no_operation_is_refused_by_its_name() {
        for word in [
            "",
            "t",
            "t5",
            "t5+0",
            "w5+6.s",
            "y5",
            "y.fr",
            "c0+1",
            "x1+1",
            "t0+1.i0",
            "t0+1.f0",
            "t0+1.f99",
            "z",
            "z-1",
            "t0+9999999999",
            "é",
            "t0+1.é",
            "u.s",
            "e1",
        ] {
            let e = parse(word).unwrap_err();
            assert!(e.contains(&format!("'{word}'")), "{word}: {e}");
        }
    }
}
