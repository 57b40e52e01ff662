// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The `[run]` table of a scenario: what `wtblk run` is to run with it, so that one file
//! tells a whole story. Options of the command line beat it; `wtblk serve` passes over it.

use toml::de::DeTable;

use super::keys::LAUNCH;
use super::parse::set;
use super::parse_rules::word;
use super::read::{Reader, get};
use super::scenario::{Merge, Set};

/// What is to be run, as far as the scenario says.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Launch {
    tests: Option<Set<Vec<String>>>,
    defect: Option<Set<String>>,
    expect: Option<Set<bool>>,
    seed: Option<Set<u64>>,
    tags: Option<Set<bool>>,
    fs: Option<Set<String>>,
}

impl Launch {
    /// The guest's tests; empty: it does not say.
    pub fn tests(&self) -> &[String] {
        self.tests.as_ref().map_or(&[], |s| &s.value)
    }

    /// The seeded defect of the reference kernel.
    pub fn defect(&self) -> Option<&str> {
        self.defect.as_ref().map(|s| s.value.as_str())
    }

    /// Compare with the defect table.
    pub fn expect(&self) -> Option<bool> {
        self.expect.as_ref().map(|s| s.value)
    }

    /// The seed of everything random.
    pub fn seed(&self) -> Option<u64> {
        self.seed.as_ref().map(|s| s.value)
    }

    /// Whether the guest tags its calls.
    pub fn tags(&self) -> Option<bool> {
        self.tags.as_ref().map(|s| s.value)
    }

    /// The kind of file system on the data disk.
    pub fn fs(&self) -> Option<&str> {
        self.fs.as_ref().map(|s| s.value.as_str())
    }

    /// Takes what a further file says.
    pub(super) fn join(&mut self, from: Launch, merge: &mut Merge<'_>) {
        merge.setting("tests", &mut self.tests, from.tests);
        merge.setting("defect", &mut self.defect, from.defect);
        merge.setting("expect", &mut self.expect, from.expect);
        merge.setting("seed", &mut self.seed, from.seed);
        merge.setting("tags", &mut self.tags, from.tags);
        merge.setting("fs", &mut self.fs, from.fs);
    }
}

/// What the table says.
pub(super) fn launch(reader: &mut Reader<'_>, table: &DeTable<'_>) -> Launch {
    reader.only(table, LAUNCH);
    let mut launch = Launch::default();
    if let Some(value) = get(table, "tests") {
        let values = reader.one_or_more(value);
        let names: Option<Vec<String>> = values
            .into_iter()
            .map(|v| word(reader, "tests", v))
            .collect();
        launch.tests = set(value, names.filter(|names| !names.is_empty()));
    }
    if let Some(value) = get(table, "defect") {
        launch.defect = set(value, word(reader, "defect", value));
    }
    if let Some(value) = get(table, "fs") {
        launch.fs = set(value, word(reader, "fs", value));
    }
    for (key, into) in [("expect", &mut launch.expect), ("tags", &mut launch.tags)] {
        if let Some(value) = get(table, key) {
            *into = set(value, reader.boolean(key, value));
        }
    }
    if let Some(value) = get(table, "seed") {
        let expected = "an integer from 0 on";
        let seed = reader.integer("seed", value, 0..=i64::MAX as u64, expected);
        launch.seed = set(value, seed);
    }
    if let (Some(expect), None) = (&launch.expect, &launch.defect)
        && expect.value
    {
        let message = "`expect` compares with the defect table, expected a `defect` beside it";
        reader.complain(expect.place.span.clone(), message);
    }
    launch
}
