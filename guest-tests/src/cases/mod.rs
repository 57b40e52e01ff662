// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The test cases: one file each, one line of registration here.

mod across_2g;
mod async_calls;
mod async_error_mid_call;
mod async_error_points;
mod bad_buffer;
mod behind_writeback;
mod beyond_eof;
mod blocks_in_flight;
mod churn;
mod clone_in_flight;
mod concurrent_calls;
mod dirty_by_mapping;
mod dirty_neighbours;
mod disk_full;
mod dsync;
mod errnos;
mod error_mid_call;
mod errseq;
mod fails_unwritten;
mod fails_while_held;
mod few_bios;
mod freeze_in_flight;
mod held_writes;
mod hole;
mod iovecs;
mod keeps_stable;
pub mod killed;
mod long_extent;
mod memory_pressure;
mod multi_extent;
mod ordered_writes;
mod over_delalloc;
mod overwrite_aligned;
mod overwrite_unaligned;
mod quota;
mod racing_writers;
mod read_only_in_flight;
mod reflink;
pub(crate) mod returns_after_io;
mod several_at_once;
mod signal_mid_call;
mod small_extents;
mod source_mapped;
mod stable_among_three;
mod stable_in_flight;
mod stop_after_error;
mod store_in_flight;
mod sub_block;
mod synchronous_calls;
mod umount_in_flight;
mod unsupported;
mod unwritten;
mod waits;

use crate::cmdline::Params;
use crate::sweep::Shape;
use crate::test::{Fail, Test};
use crate::world::World;

/// A test case.
pub struct Case {
    /// Its name, as the harness asks for it.
    pub name: &'static str,
    /// What it cannot do without.
    pub needs: &'static [Need],
    /// Runs it.
    pub run: fn(&mut Test) -> Result<(), Fail>,
}

/// Every case, in the order in which a boot without names runs them.
#[rustfmt::skip]
pub const ALL: &[Case] = &[
    Case { name: "overwrite-aligned", needs: &[Need::Flag], run: overwrite_aligned::run },
    Case { name: "overwrite-unaligned", needs: &[Need::Flag, Need::SmallSectorsForMisaligned], run: overwrite_unaligned::run },
    Case { name: "multi-extent", needs: &[Need::Flag], run: multi_extent::run },
    Case { name: "beyond-eof", needs: &[Need::Flag], run: beyond_eof::run },
    Case { name: "returns-after-io", needs: &[Need::Flag], run: returns_after_io::run },
    Case { name: "store-in-flight", needs: &[Need::Flag], run: store_in_flight::run },
    Case { name: "error-mid-call", needs: &[Need::Flag, Need::Cachestat, Need::Userfaultfd], run: error_mid_call::run },
    Case { name: "fails-while-held", needs: &[Need::Flag], run: fails_while_held::run },
    Case { name: "stop-after-error", needs: &[Need::Flag, Need::Cachestat, Need::Userfaultfd], run: stop_after_error::run },
    Case { name: "dsync", needs: &[Need::Flag], run: dsync::run },
    Case { name: "errseq", needs: &[Need::Flag], run: errseq::run },
    Case { name: "async-aio", needs: &[Need::Flag, Need::Aio], run: async_calls::aio },
    Case { name: "async-uring", needs: &[Need::Flag, Need::Uring], run: async_calls::uring },
    Case { name: "concurrent-calls", needs: &[Need::Flag, Need::Aio], run: concurrent_calls::run },
    Case { name: "stable-in-flight", needs: &[Need::Flag, Need::Aio], run: stable_in_flight::run },
    Case { name: "blocks-in-flight", needs: &[Need::Flag, Need::Aio], run: blocks_in_flight::run },
    Case { name: "freeze-in-flight", needs: &[Need::Flag, Need::Aio], run: freeze_in_flight::run },
    Case { name: "dirty-neighbours", needs: &[Need::Flag, Need::Cachestat], run: dirty_neighbours::run },
    Case { name: "dirty-by-mapping", needs: &[Need::Flag, Need::Cachestat], run: dirty_by_mapping::run },
    Case { name: "fails-unwritten", needs: &[Need::Flag], run: fails_unwritten::run },
    Case { name: "bad-buffer", needs: &[Need::Flag], run: bad_buffer::run },
    Case { name: "disk-full", needs: &[Need::Flag], run: disk_full::run },
    Case { name: "quota", needs: &[Need::Flag, Need::InPlace], run: quota::run },
    Case { name: "multi-extent-async", needs: &[Need::Flag, Need::Aio], run: multi_extent::run_async },
    Case { name: "async-stop-after-error", needs: &[Need::Flag, Need::Aio, Need::Cachestat, Need::Userfaultfd], run: stop_after_error::run_async },
    Case { name: "async-error-mid-call", needs: &[Need::Flag, Need::Tags, Need::Aio, Need::Cachestat, Need::Userfaultfd], run: async_error_mid_call::run },
    Case { name: "async-error-points", needs: &[Need::Flag, Need::Aio], run: async_error_points::run },
    Case { name: "stable-among-three", needs: &[Need::Flag, Need::Aio], run: stable_among_three::run },
    Case { name: "few-bios", needs: &[Need::Flag, Need::BioReserve], run: few_bios::run },
    Case { name: "few-bios-async", needs: &[Need::Flag, Need::Aio, Need::BioReserve], run: few_bios::run_async },
    Case { name: "waits-beside-sync", needs: &[Need::Flag, Need::Aio, Need::Cachestat], run: waits::beside_sync },
    Case { name: "waits-beside-async", needs: &[Need::Flag, Need::Aio, Need::Cachestat], run: waits::beside_async },
    Case { name: "umount-in-flight", needs: &[Need::Flag, Need::Aio], run: umount_in_flight::run },
    Case { name: "killed", needs: &[Need::Flag, Need::Cachestat], run: killed::run },
    Case { name: "signal-mid-call", needs: &[Need::Flag, Need::Cachestat, Need::Userfaultfd], run: signal_mid_call::run },
    Case { name: "errnos", needs: &[Need::Flag], run: errnos::run },
    Case { name: "hole", needs: &[Need::Flag], run: hole::run },
    Case { name: "unwritten", needs: &[Need::Flag], run: unwritten::run },
    Case { name: "small-extents", needs: &[Need::Flag], run: small_extents::run },
    Case { name: "long-extent", needs: &[Need::Flag], run: long_extent::run },
    Case { name: "sub-block", needs: &[Need::Flag], run: sub_block::run },
    Case { name: "reflink", needs: &[Need::Flag, Need::Reflink], run: reflink::run },
    Case { name: "across-2g", needs: &[Need::Flag], run: across_2g::run },
    Case { name: "iovecs", needs: &[Need::Flag], run: iovecs::run },
    Case { name: "source-mapped", needs: &[Need::Flag], run: source_mapped::run },
    Case { name: "over-delalloc", needs: &[Need::Flag, Need::InPlace], run: over_delalloc::run },
    Case { name: "behind-writeback", needs: &[Need::Flag, Need::InPlace], run: behind_writeback::run },
    Case { name: "racing-writers", needs: &[Need::Flag], run: racing_writers::run },
    Case { name: "synchronous-calls", needs: &[Need::Flag], run: synchronous_calls::run },
    Case { name: "read-only-in-flight", needs: &[Need::Flag, Need::Aio], run: read_only_in_flight::run },
    Case { name: "clone-in-flight", needs: &[Need::Flag, Need::Reflink, Need::Aio], run: clone_in_flight::run },
    Case { name: "several-at-once", needs: &[Need::Flag, Need::Aio], run: several_at_once::run },
    Case { name: "memory-pressure", needs: &[Need::Flag, Need::Cachestat], run: memory_pressure::run },
    Case { name: "keeps-stable", needs: &[Need::Flag, Need::Aio], run: keeps_stable::run },
    Case { name: "exerciser", needs: &[Need::Flag], run: crate::exerciser::run },
    Case { name: "unsupported", needs: &[Need::Flag], run: unsupported::run },
];

/// Not tests of the flag but aids of the host's own tests: run only when named.
#[rustfmt::skip]
pub const AIDS: &[Case] = &[
    Case { name: "churn", needs: &[], run: churn::run },
    Case { name: "held-writes", needs: &[], run: held_writes::run },
    Case { name: "ordered-writes", needs: &[], run: ordered_writes::run },
];

/// What can be swept: calls of the cases above, each on a fresh file. A line for each.
#[rustfmt::skip]
pub const SWEPT: &[Shape] = &[
    Shape { test: "overwrite-aligned", name: "one", fresh: overwrite_aligned::one },
    Shape { test: "overwrite-aligned", name: "whole", fresh: overwrite_aligned::whole },
    Shape { test: "overwrite-unaligned", name: "sectors", fresh: overwrite_unaligned::sectors },
    Shape { test: "overwrite-unaligned", name: "evicted", fresh: overwrite_unaligned::evicted },
    Shape { test: "multi-extent", name: "unwritten", fresh: multi_extent::unwritten },
    Shape { test: "multi-extent", name: "written", fresh: multi_extent::written },
    Shape { test: "multi-extent", name: "holes", fresh: multi_extent::filled },
    Shape { test: "beyond-eof", name: "append", fresh: beyond_eof::append },
    Shape { test: "beyond-eof", name: "far", fresh: beyond_eof::far },
    Shape { test: "beyond-eof", name: "empty", fresh: beyond_eof::empty },
    Shape { test: "dsync", name: "overwrite", fresh: dsync::overwrite },
    Shape { test: "dsync", name: "extend", fresh: dsync::extend },
    Shape { test: "dsync", name: "allocated", fresh: dsync::allocated },
    Shape { test: "hole", name: "across", fresh: hole::across },
    Shape { test: "unwritten", name: "edge", fresh: unwritten::edge },
    Shape { test: "sub-block", name: "both", fresh: sub_block::both },
    Shape { test: "small-extents", name: "in-turn", fresh: small_extents::in_turn },
    Shape { test: "over-delalloc", name: "edge", fresh: over_delalloc::edge },
    Shape { test: "reflink", name: "parts", fresh: reflink::parts },
];

/// The case or aid of this name.
pub fn find(name: &str) -> Option<&'static Case> {
    ALL.iter().chain(AIDS).find(|c| c.name == name)
}

/// How many limits of a test the case is given: one, or more where it has as many parts as others
/// have together, or writes as many blocks that are larger than a page.
pub fn limits(case: &Case, params: &Params, bsize: u64) -> u32 {
    let larger = if bsize > 4096 { 2 } else { 1 };
    let parts = match case.name {
        "exerciser" => crate::exerciser::limits(params.ops),
        // To take all of the memory takes its time, too.
        "memory-pressure" => 3,
        name if name.starts_with("waits-beside-") => 6,
        // Each part of them once more for every error point, or beside a write that fails.
        "async-error-points" | "blocks-in-flight" | "clone-in-flight" | "concurrent-calls"
        | "long-extent" | "synchronous-calls" => 3,
        _ => 1,
    };
    parts * larger
}

/// Whether the case lives on what an earlier boot left in its folder; all others begin with an empty one.
pub fn goes_on(case: &Case) -> bool {
    case.name == "churn"
}

/// Where a switch is from that somebody else's kernel does not have.
const OUR_SWITCH: &str = "a switch of wtblk's own kernel, by its second patch";

/// Something that a case needs of the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// `RWF_WRITETHROUGH` works on the file system under test.
    Flag,
    /// `cachestat(2)`.
    Cachestat,
    /// `userfaultfd(2)`, faults in the kernel included.
    Userfaultfd,
    /// `io_submit(2)`.
    Aio,
    /// `io_uring_setup(2)`.
    Uring,
    /// Calls with tags: without one no rule finds a call that has to allocate its blocks.
    Tags,
    /// Files that can share blocks.
    Reflink,
    /// Overwrites that go where the data was: with always_cow other room is set aside for them, and FIEMAP does not
    /// tell what is to be written there.
    InPlace,
    /// A kernel with our switch that takes the memory for bios away.
    BioReserve,
    /// With the defect `misaligned`: a logical block smaller than the file
    /// system's, else it rounds to the same and is no defect.
    SmallSectorsForMisaligned,
}

impl Need {
    /// Why this guest does not have it; `None` where it does.
    pub fn missing(self, world: &World) -> Option<String> {
        let fact = |key: &str, what: &str| {
            let value = world.fact(key);
            (value != "yes").then(|| format!("{what} is not available here ({value})"))
        };
        match self {
            Need::Flag => {
                let value = world.fact("flag");
                (value != "works").then(|| {
                    format!(
                        "RWF_WRITETHROUGH {:#x} is {value} (pwritev2 answered {})",
                        world.params.flag,
                        world.fact("flag_answer")
                    )
                })
            }
            Need::Cachestat => fact("cachestat", "cachestat(2)"),
            Need::Userfaultfd => fact("userfaultfd", "userfaultfd(2)"),
            Need::Aio => fact("aio", "io_submit(2)"),
            Need::Reflink => fact("reflink", "sharing blocks (FICLONERANGE)"),
            Need::InPlace => world
                .always_cow()
                .then(|| "with always_cow every write goes to new blocks".to_owned()),
            Need::Uring => fact("io_uring", "io_uring"),
            Need::Tags => (!world.params.tags).then(|| {
                "calls carry no tag, and no rule finds one by its place that has none yet"
                    .to_owned()
            }),
            Need::BioReserve => (!std::path::Path::new(few_bios::SWITCH).exists())
                .then(|| format!("the kernel has no {}: {OUR_SWITCH}", few_bios::SWITCH)),
            Need::SmallSectorsForMisaligned => {
                let asked = world.params.defect.as_deref() == Some("misaligned");
                (asked && world.lbs >= world.bsize).then(|| {
                    format!(
                        "the defect misaligned needs logical blocks ({}) smaller than the file system's ({})",
                        world.lbs, world.bsize
                    )
                })
            }
        }
    }
}

/// Why no test may run: the defect that the harness asked for is not on.
pub fn defect_missing(world: &World) -> Option<String> {
    let asked = world.params.defect.as_deref()?;
    let shown = world.fact("defect");
    (!shows(shown, asked)).then(|| match shown {
        "unknown" => format!("the kernel has no iomap.wt_defect, so no {asked}: {OUR_SWITCH}"),
        _ => format!("the kernel does not show the defect {asked} (iomap.wt_defect is '{shown}')"),
    })
}

/// Why no test may run: the kernel has not the kind of file system that the harness asked for.
pub fn kind_missing(world: &World) -> Option<String> {
    let realtime = world.fact("realtime");
    if world.params.realtime && realtime != "on" {
        return Some(format!(
            "files on a realtime device are {realtime}: they need a kernel with CONFIG_XFS_RT"
        ));
    }
    let is = world.fact("always_cow");
    (world.params.always_cow && is != "on").then(|| {
        format!("/sys/fs/xfs/debug/always_cow is {is}: it needs a kernel with CONFIG_XFS_DEBUG")
    })
}

/// Whether the parameter's text names the defect, alone or among others.
fn shows(text: &str, defect: &str) -> bool {
    text.split([',', ' ', '[', ']']).any(|w| w == defect)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_fit_into_a_list() {
        let every: Vec<&Case> = ALL.iter().chain(AIDS).collect();
        for (i, case) in every.iter().enumerate() {
            assert!(every[..i].iter().all(|other| other.name != case.name));
            assert!(
                case.name
                    .bytes()
                    .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-'),
                "{}",
                case.name
            );
        }
    }

    #[test]
    fn every_test_needs_the_flag() {
        // The harness does not boot a kernel of whose header it knows that it has none (`--kdir`).
        for case in ALL {
            assert!(case.needs.contains(&Need::Flag), "{}", case.name);
        }
    }

    #[test]
    fn a_defect_is_a_whole_word() {
        assert!(shows("leak-writeback", "leak-writeback"));
        assert!(shows("none [misaligned]", "misaligned"));
        assert!(shows("a,misaligned", "misaligned"));
        assert!(!shows("misaligned-2", "misaligned"));
        assert!(!shows("unknown", "misaligned"));
    }
}
