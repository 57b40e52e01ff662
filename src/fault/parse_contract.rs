// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The `[contract]` table of a scenario.

use std::collections::BTreeSet;

use toml::de::{DeTable, DeValue};

use super::contract::{Changes, Errnos};
use super::keys::{CONTRACT, ERRNOS};
use super::parse::set;
use super::read::{Reader, Value, get};
use super::scenario::{Place, Set};
use crate::verify::contract::{
    Contract, FsyncRepeats, IsizeAfterError, OnFailedWrite, errno_named,
};
use crate::verify::promise;

/// The largest errno (MAX_ERRNO of `include/linux/err.h`).
const MAX_ERRNO: u64 = 4095;
const AN_ERRNO: &str = "an errno such as `\"EIO\"` or 5";

/// What the table says.
pub(super) fn contract(reader: &mut Reader<'_>, table: &DeTable<'_>) -> Changes {
    reader.only(table, CONTRACT);
    let mut changes = Changes::default();
    if let Some(value) = get(table, "set") {
        let known: Vec<_> = Contract::NAMES.iter().map(|n| (*n, *n)).collect();
        changes.set = set(value, reader.word("set", value, &known));
    }
    switches(reader, table, &mut changes);
    if let Some(value) = get(table, "failed_write") {
        let known = [
            ("error", OnFailedWrite::Error),
            ("error-or-short", OnFailedWrite::ErrorOrShort),
        ];
        changes.failed_write = set(value, reader.word("failed_write", value, &known));
    }
    if let Some(value) = get(table, "stop_after_error") {
        let expected = "an integer from 0 to 1000000";
        let n = reader.integer("stop_after_error", value, 0..=1_000_000, expected);
        changes.stop_after_error = set(value, n.and_then(|n| u32::try_from(n).ok()));
    }
    if let Some(value) = get(table, "fsync_repeats") {
        let known = [
            ("once", FsyncRepeats::Once),
            ("never", FsyncRepeats::Never),
            ("either", FsyncRepeats::Either),
        ];
        changes.fsync_repeats = set(value, reader.word("fsync_repeats", value, &known));
    }
    if let Some(value) = get(table, "isize_after_error") {
        let known = [
            ("old", IsizeAfterError::Old),
            ("extended", IsizeAfterError::Extended),
            ("either", IsizeAfterError::Either),
        ];
        changes.isize_after_error = set(value, reader.word("isize_after_error", value, &known));
    }
    if let Some(value) = get(table, "failed_page") {
        let known = [("clean", true), ("either", false)];
        changes.failed_page_clean = set(value, reader.word("failed_page", value, &known));
    }
    if let Some(value) = get(table, "errnos")
        && let Some(table) = reader.table("errnos", value, "a table")
    {
        changes.errnos = errnos(reader, table);
    }
    changes
}

/// `on` and `off`; a promise stands in one of them at most.
fn switches(reader: &mut Reader<'_>, table: &DeTable<'_>, changes: &mut Changes) {
    let known: Vec<_> = promise::NAMES.iter().map(|n| (*n, *n)).collect();
    for (key, on) in [("on", true), ("off", false)] {
        let Some(value) = get(table, key) else {
            continue;
        };
        let DeValue::Array(list) = value.get_ref() else {
            reader.wrong_type(key, value, "a list of promises");
            continue;
        };
        if list.is_empty() {
            reader.complain(value.span(), "an empty list, expected at least one promise");
        }
        for value in list {
            let Some(name) = reader.word(key, value, &known) else {
                continue;
            };
            let new = Set {
                value: on,
                place: Place::here(value.span()),
            };
            match changes.switches.insert(name, Some(new)) {
                Some(Some(old)) => {
                    let line = reader.line(&old.place.span);
                    let message = format!(
                        "`{name}` is switched in line {line} already, expected each promise once"
                    );
                    reader.complain(value.span(), message);
                }
                _ => continue,
            }
        }
    }
}

fn errnos(reader: &mut Reader<'_>, table: &DeTable<'_>) -> Errnos {
    reader.only(table, ERRNOS);
    let mut errnos = Errnos::default();
    for (key, into) in [
        ("ioerr", &mut errnos.ioerr),
        ("unsupp", &mut errnos.unsupp),
        ("other", &mut errnos.other),
        ("any_time", &mut errnos.any_time),
    ] {
        let Some(value) = get(table, key) else {
            continue;
        };
        let DeValue::Array(list) = value.get_ref() else {
            reader.wrong_type(key, value, "a list of errnos");
            continue;
        };
        if list.is_empty() {
            let message = format!("an empty list, expected at least {AN_ERRNO}");
            reader.complain(value.span(), message);
        }
        let known: Option<BTreeSet<i32>> = list.iter().map(|v| errno(reader, key, v)).collect();
        *into = set(value, known);
    }
    errnos
}

fn errno(reader: &mut Reader<'_>, key: &str, value: &Value<'_>) -> Option<i32> {
    match value.get_ref() {
        DeValue::String(name) => {
            let found = errno_named(name);
            if found.is_none() {
                let message = format!(
                    "`{key}` knows no errno `{}`, expected {AN_ERRNO}",
                    name.escape_debug()
                );
                reader.complain(value.span(), message);
            }
            found
        }
        DeValue::Integer(_) => reader
            .integer(key, value, 1..=MAX_ERRNO, AN_ERRNO)
            .and_then(|n| i32::try_from(n).ok()),
        _ => {
            reader.wrong_type(key, value, AN_ERRNO);
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::fault::Scenario;
    use crate::verify::contract::{Contract, FsyncRepeats, IsizeAfterError, OnFailedWrite};

    fn parse(text: &str) -> Result<Scenario, String> {
        Scenario::parse("f", &format!("version = 1\n{text}")).map_err(|e| e.to_string())
    }

    #[test]
    fn a_scenario_that_says_nothing_leaves_the_default() {
        let plain = parse("").unwrap().contract();
        assert_eq!(plain, Contract::default());
        let empty = parse("[contract]\n").unwrap().contract();
        assert_eq!(empty, Contract::default());
        for name in Contract::NAMES {
            let named = parse(&format!("[contract]\nset = \"{name}\"")).unwrap();
            assert_eq!(Some(named.contract()), Contract::named(name));
        }
    }

    #[test]
    fn every_key_changes_what_it_says() {
        let changed = parse(
            "[contract]\nset = \"rfc-v1\"\non = [\"sync-return\"]\noff = [\"order\"]\nfailed_write = \"error\"\n\
             stop_after_error = 3\nfsync_repeats = \"never\"\nisize_after_error = \"extended\"\nfailed_page = \"clean\"\n\
             errnos = { ioerr = [\"EIO\", 110], unsupp = [95], other = [\"ENODATA\"], any_time = [\"EINTR\"] }\n",
        )
        .unwrap()
        .contract();
        assert_eq!(changed.name, "rfc-v1, adjusted by the scenario");
        assert!(changed.makes("sync-return") && !changed.makes("order"));
        assert!(!changed.makes("error-report"), "the rest of the set stays");
        assert_eq!(changed.failed_write, OnFailedWrite::Error);
        assert_eq!(changed.stop_after_error, 3);
        assert_eq!(changed.fsync_repeats, FsyncRepeats::Never);
        assert_eq!(changed.isize_after_error, IsizeAfterError::Extended);
        assert!(changed.failed_page_clean);
        let e = &changed.errnos;
        assert!(e.reports(1, 110) && e.reports(2, 95) && !e.reports(2, 5) && e.reports(9, 61));
        assert_eq!(e.not_of_the_device, [4].into());
    }

    /// Not in `tests/scenario_wrong.txt`: each new promise would change the answer.
    #[test]
    fn a_promise_that_is_none_is_refused_at_its_place() {
        let error = parse("[contract]\noff = [\"ordre\"]").unwrap_err();
        assert!(
            error.starts_with("f:3:8: `off` knows no `ordre`, expected `align`, "),
            "{error}"
        );
        assert!(error.ends_with("= did you mean `order`?"), "{error}");
    }

    #[test]
    fn files_that_disagree_are_refused_and_those_that_do_not_are_joined() {
        let a = parse("[contract]\noff = [\"order\"]").unwrap();
        let b = parse("[contract]\nset = \"strict\"\noff = [\"order\", \"cover\"]").unwrap();
        let both = Scenario::merge(vec![a.clone(), b]).unwrap().contract();
        assert!(!both.makes("order") && !both.makes("cover"));
        assert_eq!(both.failed_write, OnFailedWrite::Error);
        let c = parse("[contract]\non = [\"order\"]").unwrap();
        let error = Scenario::merge(vec![a, c]).unwrap_err().to_string();
        assert!(
            error
                .starts_with("f:3:7: `order` is set otherwise in f:3:8, expected files that agree"),
            "{error}"
        );
    }
}
