// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What to sweep: the `wtblk_sweep` words of the kernel command line.

use wtblk_shared::sweep::Shard;

/// A sweep that the harness asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SweepParams {
    /// The tests whose shapes are swept; empty: no sweep.
    pub tests: Vec<String>,
    /// Names of the faults.
    pub faults: Vec<String>,
    /// Every request is counted, not only the call's own data.
    pub all: bool,
    /// Every two requests fail, not every one.
    pub pairs: bool,
    /// The part of the points that is done.
    pub shard: Shard,
    /// The first point that is done.
    pub from: u64,
    /// How many points are done at most.
    pub most: u64,
    /// Requests of the shapes' clean passes, where they are known from an earlier boot.
    pub counts: Vec<u32>,
    /// So many rules there are for each fault.
    pub rules: u32,
}

impl Default for SweepParams {
    fn default() -> SweepParams {
        SweepParams {
            tests: Vec::new(),
            faults: Vec::new(),
            all: false,
            pairs: false,
            shard: Shard::WHOLE,
            from: 0,
            most: u64::MAX,
            counts: Vec::new(),
            rules: 0,
        }
    }
}

impl SweepParams {
    /// Takes a word of the command line; what was expected where it is wrong, `Ok(false)` where it is not one of these.
    pub fn word(&mut self, key: &str, value: &str) -> Result<bool, &'static str> {
        const NUMBER: &str = "a number";
        match key {
            "wtblk_sweep" => self.tests = list(value).ok_or("wtblk_sweep=TEST[,TEST...]")?,
            "wtblk_sweep_faults" => self.faults = list(value).ok_or("NAME[,NAME...]")?,
            "wtblk_sweep_requests" => {
                self.all = match value {
                    "data" => false,
                    "all" => true,
                    _ => return Err("data or all"),
                }
            }
            "wtblk_sweep_pairs" if value.is_empty() => self.pairs = true,
            "wtblk_sweep_shard" => self.shard = Shard::parse(value).ok_or("K/N")?,
            "wtblk_sweep_from" => self.from = value.parse().map_err(|_| NUMBER)?,
            "wtblk_sweep_most" => self.most = value.parse().map_err(|_| NUMBER)?,
            "wtblk_sweep_rules" => self.rules = value.parse().map_err(|_| NUMBER)?,
            "wtblk_sweep_counts" => {
                let list = list(value).ok_or("N[,N...]")?;
                let counts: Result<_, _> = list.iter().map(|n| n.parse()).collect();
                self.counts = counts.map_err(|_| "N[,N...]")?;
            }
            _ => return Ok(false),
        }
        Ok(true)
    }
}

fn list(value: &str) -> Option<Vec<String>> {
    let names = value.split(',').filter(|n| !n.is_empty());
    let names: Vec<String> = names.map(str::to_owned).collect();
    (!names.is_empty()).then_some(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_word_is_understood_and_nonsense_is_not() {
        let mut p = SweepParams::default();
        for (key, value) in [
            ("wtblk_sweep", "a,b"),
            ("wtblk_sweep_faults", "ioerr"),
            ("wtblk_sweep_requests", "all"),
            ("wtblk_sweep_pairs", ""),
            ("wtblk_sweep_shard", "2/3"),
            ("wtblk_sweep_from", "7"),
            ("wtblk_sweep_most", "1"),
            ("wtblk_sweep_counts", "8,0"),
            ("wtblk_sweep_rules", "64"),
        ] {
            assert_eq!(p.word(key, value), Ok(true), "{key}");
        }
        assert_eq!(
            (p.all, p.pairs, p.from, p.most, p.rules),
            (true, true, 7, 1, 64)
        );
        assert_eq!(p.tests, ["a", "b"]);
        assert_eq!(p.counts, [8, 0]);
        assert_eq!(p.shard, Shard { part: 2, of: 3 });
        assert_eq!(p.word("wtblk_colour", ""), Ok(false));
        assert!(p.word("wtblk_sweep_counts", "x").is_err());
        assert!(p.word("wtblk_sweep_requests", "some").is_err());
        assert!(p.word("wtblk_sweep_shard", "3/2").is_err());
        assert!(p.word("wtblk_sweep", ",").is_err());
    }
}
