// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a process holds, sampled over hours, and whether it grows.

use std::fmt::Write as _;
use std::path::Path;

/// What a process held at a moment.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sample {
    /// Seconds since the beginning.
    pub at: f64,
    /// Memory of its own (`RssAnon`), KiB: what a leak would make grow.
    pub anon: u64,
    /// All that is resident (`VmRSS`), KiB: guest memory and mapped files among it.
    pub rss: u64,
    pub descriptors: usize,
    pub threads: u64,
    /// Guests that came before it, and front ends of our own.
    pub guests: u32,
    /// Nobody is connected.
    pub rests: bool,
}

impl Sample {
    /// Looks at the process now.
    pub fn of(pid: u32, at: f64, guests: u32, rests: bool) -> std::io::Result<Sample> {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
        let number = |key: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(key));
            let word = line.and_then(|rest| rest.split_whitespace().next());
            word.and_then(|word| word.parse().ok())
                .ok_or_else(|| std::io::Error::other(format!("no {key} in the status of {pid}")))
        };
        Ok(Sample {
            at,
            anon: number("RssAnon:")?,
            rss: number("VmRSS:")?,
            threads: number("Threads:")?,
            descriptors: std::fs::read_dir(format!("/proc/{pid}/fd"))?.count(),
            guests,
            rests,
        })
    }
}

/// Writes them as a table for gnuplot.
pub fn write(path: &Path, samples: &[Sample]) {
    let mut text = "seconds,anon_kib,rss_kib,descriptors,threads,guests,rests\n".to_owned();
    for s in samples {
        let rests = u8::from(s.rests);
        writeln!(
            text,
            "{:.1},{},{},{},{},{},{rests}",
            s.at, s.anon, s.rss, s.descriptors, s.threads, s.guests
        )
        .unwrap();
    }
    std::fs::write(path, text).unwrap();
}

/// So much may be added between the first third and the last one, KiB: what the C library does not
/// give back, and not a page for each guest.
pub const SLACK: u64 = 2048;

/// One of the things that a sample tells.
type Of = fn(&Sample) -> u64;

/// What grew, of the samples at rest: none if it is flat. With too few of them nothing can be said.
pub fn grown(samples: &[Sample]) -> Result<Vec<String>, String> {
    let rests: Vec<&Sample> = samples.iter().filter(|s| s.rests).collect();
    let third = rests.len() / 3;
    if third < 10 {
        return Err(format!("{} samples at rest say nothing", rests.len()));
    }
    let middle = |of: &[&Sample], what: Of| {
        let mut all: Vec<u64> = of.iter().map(|s| what(s)).collect();
        all.sort_unstable();
        all[all.len() / 2]
    };
    let mut grown = Vec::new();
    let memory: Of = |s| s.anon;
    let descriptors: Of = |s| s.descriptors as u64;
    let threads: Of = |s| s.threads;
    for (what, of, slack) in [
        ("KiB of its own memory", memory, SLACK),
        ("descriptors", descriptors, 0),
        ("threads", threads, 0),
    ] {
        let (first, last) = (
            middle(&rests[..third], of),
            middle(&rests[rests.len() - third..], of),
        );
        if last > first + slack {
            grown.push(format!("{what}: {first}, later {last}"));
        }
    }
    Ok(grown)
}
