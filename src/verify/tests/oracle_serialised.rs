// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `serialised` against a judge that looks at each sector: calls of three files on two file systems side by side, truncates and
//! punches at any byte, that wait or do not, fail, never tell, and freezes.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use proptest::prelude::*;
use wtblk_shared::mark::{CallBegin, Change, FileMark};

use super::super::verdict::Verdict;
use super::builder::*;
use super::world::Dice;
use crate::trace::event::RequestId;

const P: &str = "serialised";
/// `st_dev`, `st_ino` and place on the disk of the files; each has 64 blocks.
const FILES: [(u64, u64, u64); 3] = [(8, 1, DISK), (8, 2, DISK + (80 << 20)), (9, 3, 300 << 20)];
const FILE: u64 = 64 * B;

#[derive(Clone, Debug)]
struct Sent {
    call: u64,
    file: usize,
    /// Of the file.
    bytes: Range<u64>,
    taken: u64,
    done: Option<u64>,
}

#[derive(Clone, Debug)]
struct Deed {
    what: What,
    begin: u64,
    succeeded: Option<u64>,
    thawed: Option<u64>,
}

#[derive(Clone, Debug)]
enum What {
    Taken(usize, Range<u64>),
    Frozen(u64),
}

#[derive(Debug, Default, PartialEq)]
struct Due {
    /// Calls that something passed: begin and success of the first such deed.
    broken: BTreeMap<u64, (u64, u64)>,
    held: u64,
}

/// Whether it takes away a whole block of which the request has a sector; of a freeze, whether it is the same file system.
fn concerns(deed: &Deed, r: &Sent) -> bool {
    match &deed.what {
        What::Frozen(dev) => FILES[r.file].0 == *dev,
        What::Taken(file, bytes) => {
            let gone = |sector: u64| {
                let block = sector * 512 / B * B;
                bytes.start <= block && block + B <= bytes.end
            };
            r.file == *file && (r.bytes.start / 512..r.bytes.end.div_ceil(512)).any(gone)
        }
    }
}

fn due(sent: &[Sent], deeds: &[Deed], calls: &BTreeMap<u64, u64>) -> Due {
    let mut due = Due::default();
    for (call, began) in calls {
        let mut met = false;
        'deeds: for deed in deeds {
            for r in sent.iter().filter(|r| r.call == *call && concerns(deed, r)) {
                let flying = r.taken..r.done.expect("all are completed");
                met |= flying.contains(&deed.begin);
                let Some(done) = deed.succeeded else { continue };
                let passed = match deed.what {
                    What::Taken(..) => flying.contains(&deed.begin) && flying.contains(&done),
                    What::Frozen(_) => {
                        let thawed = deed.thawed.unwrap_or(u64::MAX);
                        met |= done < *began && *began < thawed;
                        // Some of its time in flight is some of the frozen time.
                        flying.start.max(done) < flying.end.min(thawed)
                    }
                };
                if passed {
                    due.broken.insert(*call, (deed.begin, done));
                    break 'deeds;
                }
            }
        }
        due.held += u64::from(met && !due.broken.contains_key(call));
    }
    due
}

/// A change that has begun.
struct Under {
    number: u64,
    deed: usize,
}

fn chance(seed: u64, steps: u64) -> (Stream, Due) {
    let mut dice = Dice(seed);
    let mut s = Stream::files_marked();
    let mut running: Vec<(CallBegin, usize)> = Vec::new();
    let mut calls = BTreeMap::new();
    let mut sent: Vec<Sent> = Vec::new();
    let mut flying: Vec<(RequestId, usize)> = Vec::new();
    let mut deeds: Vec<Deed> = Vec::new();
    let mut changes: Vec<Under> = Vec::new();
    // By device: the freeze under way or in force.
    let mut freezes: BTreeMap<u64, usize> = BTreeMap::new();
    let mut number = 0;
    for _ in 0..steps {
        match dice.below(11) {
            0 | 1 if running.len() < 3 => {
                number += 1;
                let file = dice.below(3) as usize;
                let (dev, ino, disk) = FILES[file];
                let c = CallBegin {
                    dev,
                    ino,
                    open: ino,
                    extents: Some(vec![ext(0, disk, FILE)]),
                    isize: FILE,
                    ..call(number, 0, FILE)
                };
                calls.insert(number, s.begin(&c));
                running.push((c, file));
            }
            2..5 if !running.is_empty() => {
                let (c, file) = &running[dice.below(running.len() as u64) as usize];
                // Sometimes parts of blocks: the block layer splits at any sector.
                let unit = if dice.one_in(4) { 512 } else { B };
                let off = dice.below(FILE / unit - 3) * unit;
                let len = (1 + dice.below(3)) * unit;
                let id = s.write(c.call as u16, FILES[*file].2 + off, len);
                flying.push((id, sent.len()));
                sent.push(Sent {
                    call: c.call,
                    file: *file,
                    bytes: off..off + len,
                    taken: id,
                    done: None,
                });
            }
            5 | 6 if !flying.is_empty() => {
                let (id, n) = flying.swap_remove(dice.below(flying.len() as u64) as usize);
                sent[n].done = Some(s.ok(id));
            }
            7 => {
                let file = dice.below(3) as usize;
                let off = dice.below(2 * FILE / B) * B / 2 + dice.below(2);
                let len = dice.below(16) * B / 2;
                let (kind, bytes) = match dice.below(5) {
                    0 | 1 => ("truncate", off..u64::MAX),
                    2 | 3 => ("punch", off..off + len),
                    _ => ("write", 0..0),
                };
                let change = 100 + deeds.len() as u64;
                let begin = s.file(FileMark::ChangeBegin(Change {
                    change,
                    dev: FILES[file].0,
                    ino: FILES[file].1,
                    off,
                    len,
                    kind: kind.into(),
                }));
                changes.push(Under {
                    number: change,
                    deed: deeds.len(),
                });
                deeds.push(Deed {
                    what: What::Taken(file, bytes),
                    begin,
                    succeeded: None,
                    thawed: None,
                });
            }
            8 if !changes.is_empty() => {
                let n = dice.below(changes.len() as u64) as usize;
                let under = changes.swap_remove(n);
                let result = [Some(0), Some(0), Some(0), Some(-5), None][dice.below(5) as usize];
                let seq = s.file(FileMark::ChangeEnd {
                    change: under.number,
                    result,
                });
                deeds[under.deed].succeeded = (result == Some(0)).then_some(seq);
            }
            9 | 10 => {
                let dev = 8 + dice.below(2);
                match freezes.get(&dev).copied() {
                    None => {
                        let begin = s.file(FileMark::Freezing { dev });
                        // One in four fails, and no more is said of it.
                        if !dice.one_in(4) {
                            freezes.insert(dev, deeds.len());
                        }
                        deeds.push(Deed {
                            what: What::Frozen(dev),
                            begin,
                            succeeded: None,
                            thawed: None,
                        });
                    }
                    Some(n) if deeds[n].succeeded.is_none() => {
                        deeds[n].succeeded = Some(s.file(FileMark::Frozen { dev }));
                    }
                    Some(n) => {
                        deeds[n].thawed = Some(s.file(FileMark::Thawing { dev }));
                        freezes.remove(&dev);
                    }
                }
            }
            _ if !running.is_empty() => {
                let (c, _) = running.swap_remove(dice.below(running.len() as u64) as usize);
                s.end(&c, FILE as i64);
            }
            _ => {}
        }
    }
    for (c, _) in running {
        s.end(&c, FILE as i64);
    }
    for (id, n) in flying {
        sent[n].done = Some(s.ok(id));
    }
    let due = due(&sent, &deeds, &calls);
    (s, due)
}

proptest! {
    #[test]
    fn each_call_is_judged_sector_by_sector(seed: u64, steps in 0u64..50) {
        let (s, due) = chance(seed, steps);
        let verdicts = s.verdicts();
        let v = verdicts.get(TEST, P).unwrap();
        let mut broken = BTreeMap::new();
        if let Verdict::Broken { findings, more } = &v.verdict {
            prop_assert_eq!(*more, 0);
            for f in findings {
                let number = |key: &str| f.details[key].as_u64().unwrap();
                let of = (number("began"), number("succeeded"));
                prop_assert_eq!(broken.insert(f.call.as_ref().unwrap().call, of), None);
                let proof: BTreeSet<u64> = f.events.iter().copied().collect();
                prop_assert!(proof.contains(&of.0) && proof.contains(&of.1), "{:#?}", f);
            }
        }
        prop_assert_eq!(Due { broken, held: v.held }, due, "{:#?}", s.events);
    }
}

/// The draws above come to each verdict often enough to mean something.
#[test]
fn the_draws_come_to_both_verdicts() {
    let (mut broken, mut held) = (0, 0);
    for seed in 0..1000 {
        let due = chance(seed, seed % 50).1;
        broken += due.broken.len();
        held += due.held;
    }
    assert!(broken > 200 && held > 200, "{broken} {held}");
}
