// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Scenario files, right and wrong.

use super::action::{Action, HoldFor};
use super::rule::{SectorRange, Trigger};
use super::scenario::{OnStop, Scenario};
use crate::trace::event::{Op, Status};

const FULL: &str = r#"
version = 1
name = "two bios"
about = "the first data write fails, late"

[device]
queues = 4
read_only = false
write_cache = true
logical_block = 4096
on_stop = "abandon"
size = "512MiB"

[[fault]]
name = "fail-first"
test = "error-mid-call"
when = { op = "write", nth_in_call = 1 }
action = { status = "ioerr", hold = true }
times = 1

[[fault]]
name = "bad.block"
when = { lba = "2048+8" }
action = { status = 0x7f }

[[fault]]
name = "slow_flush"
[fault.when]
op = "flush"
[fault.action]
hold = true

[[fault]]
name = "any"
when = { op = "any", nth_in_call = 2 }
action = { status = "unsupp", hold = false }
"#;

#[test]
fn a_whole_file() {
    let s = Scenario::parse("full.toml", FULL).unwrap();
    assert_eq!(s.name.as_deref(), Some("two bios"));
    assert_eq!(s.about.as_deref(), Some("the first data write fails, late"));
    assert_eq!(s.device.queues(), Some(4));
    assert_eq!(s.device.read_only(), Some(false));
    assert_eq!(s.device.write_cache(), Some(true));
    assert_eq!(s.device.logical_block(), Some(4096));
    assert_eq!(s.device.on_stop(), Some(OnStop::Abandon));
    assert_eq!(s.device.size(), Some(512 << 20));
    let names: Vec<&str> = s.rules.iter().map(|r| r.name.as_str()).collect();
    assert_eq!(names, ["fail-first", "bad.block", "slow_flush", "any"]);
    assert_eq!(s.rules[0].test.as_deref(), Some("error-mid-call"));
    assert_eq!(s.rules[0].times, Some(1));
    let nth = |op, n| Trigger::NthInCall { op, n };
    assert_eq!(
        s.rules[0].when,
        Trigger::All(vec![Trigger::Op(Op::Write), nth(Some(Op::Write), 1)])
    );
    assert_eq!(
        s.rules[0].action,
        Action {
            status: Some(Status::IOERR),
            hold: Some(HoldFor::default()),
            ..Action::default()
        }
    );
    let range = SectorRange {
        start: 2048,
        len: 8,
    };
    assert_eq!(s.rules[1].when, Trigger::All(vec![Trigger::Lba(range)]));
    assert_eq!(s.rules[1].action.status, Some(Status(0x7f)));
    assert_eq!(s.rules[2].when, Trigger::All(vec![Trigger::Op(Op::Flush)]));
    assert_eq!(s.rules[3].when, Trigger::All(vec![nth(None, 2)]));
    assert_eq!(s.to_text(), FULL);
    assert_eq!(s.sources()[0].file, "full.toml");
}

#[test]
fn the_least_file() {
    let s = Scenario::parse("x", "version = 1").unwrap();
    assert!(s.rules.is_empty());
    assert_eq!(s.device, Default::default());
}

/// What the documentation shows is what happens.
#[test]
fn the_examples_of_the_documentation() {
    let page = include_str!("../../docs/scenario.md");
    let mut blocks = page.split("```toml\n").skip(1);
    let first = blocks.next().unwrap().split("```").next().unwrap();
    assert_eq!(Scenario::parse("doc", first).unwrap().rules.len(), 1);
    for (n, when) in blocks
        .next()
        .unwrap()
        .lines()
        .take_while(|l| !l.starts_with("```"))
        .enumerate()
    {
        let text = rule(&format!("action = {{ hold = true }}\n{when}"));
        assert!(Scenario::parse("doc", &text).is_ok(), "example {n}");
    }
    let contract = page.rsplit("```toml\n").next().unwrap();
    let contract = contract.split("```").next().unwrap();
    let contract = Scenario::parse("doc", &format!("version = 1\n{contract}")).unwrap();
    assert_eq!(contract.contract().name, "rfc-v1, adjusted by the scenario");
    let wrong =
        "version = 1\n\n[[fault]]\nname = \"a\"\nwhen = { op = \"wrote\" }\naction.hold = true\n";
    let error = Scenario::parse("late.toml", wrong).unwrap_err().to_string();
    let indented: String = error.lines().map(|l| format!("    {l}\n")).collect();
    assert!(page.contains(&indented), "{error}");
}

/// A file with one rule of these fields.
fn rule(fields: &str) -> String {
    format!("version = 1\n[[fault]]\nname = \"a\"\n{fields}\n")
}

const GOOD: &str = "when = { op = \"write\" }\naction = { hold = true }";

/// Every wrong file and the first lines of its problems.
#[test]
fn wrong_files_say_where_and_what_was_expected() {
    const NO_STATUS: &str = "expected `ioerr`, `unsupp` or an integer from 1 to 255";
    const SIZE: &str = "expected a number and a unit (B, KiB, MiB, GiB or TiB) such as \"512MiB\", at most 1048576TiB";
    const RANGE: &str = "expected \"START+LEN\" in sectors of 512 bytes, such as \"2048+8\"";
    let when = |w: &str| rule(&format!("action = {{ hold = true }}\nwhen = {w}"));
    let action = |a: &str| rule(&format!("when = {{ op = \"write\" }}\naction = {a}"));
    let device = |d: &str| format!("version = 1\n[device]\n{d}\n");
    let table: Vec<(String, Vec<String>)> = vec![
        ("".into(), vec!["f:1:1: `version` is missing, expected `version = 1`".into()]),
        ("version = 2".into(), vec!["f:1:11: `version = 2` is impossible, expected `version = 1`".into()]),
        ("version = \"1\"".into(), vec!["f:1:11: `version` is a string, expected `version = 1`".into()]),
        ("version = 1\nnmae = \"x\"".into(), vec!["f:2:1: unknown key `nmae`, expected …".into()]),
        ("version = 1\nname = 5".into(), vec!["f:2:8: `name` is an integer, expected a string".into()]),
        ("version = 1\ndevice = true".into(), vec!["f:2:10: `device` is a boolean, expected a table".into()]),
        (device("queue = 1"), vec!["f:3:1: unknown key `queue`, expected `queues`, `read_only`, `write_cache`, `logical_block`, `queue_size`, `physical_block`, `alignment_offset`, `min_io`, `opt_io`, `size_max`, `seg_max`, `discard`, `serial`, `on_stop` or `size`".into()]),
        (device("queues = 0"), vec!["f:3:10: `queues = 0` is impossible, expected an integer from 1 to 64".into()]),
        (device("queues = 65"), vec!["f:3:10: `queues = 65` is impossible, expected an integer from 1 to 64".into()]),
        (device("queues = -1"), vec!["f:3:10: `queues = -1` is impossible, expected an integer from 1 to 64".into()]),
        (device("queues = 1.5"), vec!["f:3:10: `queues` is a float, expected an integer from 1 to 64".into()]),
        (device("read_only = \"yes\""), vec!["f:3:13: `read_only` is a string, expected true or false".into()]),
        (device("write_cache = 1"), vec!["f:3:15: `write_cache` is an integer, expected true or false".into()]),
        (device("logical_block = 4096\nmin_io = 512"), vec!["f:4:10: `min_io`: 512 bytes, expected whole logical blocks (4096), at most 65535".into()]),
        (device("discard = true\nread_only = true"), vec!["f:3:11: `discard`: `discard` on a disk that is `read_only`, expected one of them".into()]),
        (device("serial = \"a b\""), vec!["f:3:10: `serial`: `a b`, expected 1 to 20 ASCII characters without a space".into()]),
        (device("queue_size = 100"), vec!["f:3:14: `queue_size`: a queue of 100 descriptors, expected a power of two from 4 to 1024".into()]),
        (device("logical_block = 1024"), vec!["f:3:17: `logical_block = 1024` is impossible, expected 512 or 4096".into()]),
        (device("on_stop = \"drop\""), vec!["f:3:11: `on_stop` knows no `drop`, expected `complete` or `abandon`".into()]),
        (device("size = 512"), vec![format!("f:3:8: `size` is an integer, {SIZE}")]),
        (device("size = \"512MB\""), vec![format!("f:3:8: `size` cannot be \"512MB\", {SIZE}")]),
        (device("size = \"0MiB\""), vec![format!("f:3:8: `size` cannot be \"0MiB\", {SIZE}")]),
        (device("size = \"99999999999TiB\""), vec![format!("f:3:8: `size` cannot be \"99999999999TiB\", {SIZE}")]),
        (device("size = \"1KiB\"\nlogical_block = 4096"), vec!["f:3:8: a size of 1024 bytes is no whole number of logical blocks, expected a multiple of 4096".into()]),
        ("version = 1\nfault = 1".into(), vec!["f:2:9: `fault` is no list, expected `[[fault]]`, one for each rule".into()]),
        ("version = 1\n[fault]\nname = \"a\"".into(), vec!["f:2:1: `fault` is no list, expected `[[fault]]`, one for each rule".into()]),
        ("version = 1\nfault = [1]".into(), vec!["f:2:10: `fault` is an integer, expected `[[fault]]`, one for each rule".into()]),
        (format!("version = 1\n[[fault]]\n{GOOD}"), vec!["f:2:1: `name` is missing, expected `name = \"...\"`".into()]),
        (format!("version = 1\n[[fault]]\nname = \"a b\"\n{GOOD}"), vec!["f:3:8: `a b` is no name for a rule, expected 1 to 64 letters, digits, `-`, `_` or `.`".into()]),
        (format!("version = 1\n[[fault]]\nname = \"\"\n{GOOD}"), vec!["f:3:8: `` is no name for a rule, expected 1 to 64 letters, digits, `-`, `_` or `.`".into()]),
        (format!("{0}[[fault]]\nname = \"a\"\n{GOOD}", rule(GOOD)), vec!["f:7:8: a rule named `a` is also in line 3, expected names that no two rules share".into()]),
        (rule("test = \"\"\nwhen = { op = \"write\" }\naction = { hold = true }"), vec!["f:4:8: `test` is empty, expected a test's name".into()]),
        (rule("test = [\"t\"]\nwhen = { op = \"write\" }\naction = { hold = true }"), vec!["f:4:8: `test` is an array, expected a test's name".into()]),
        (rule("times = 0\nwhen = { op = \"write\" }\naction = { hold = true }"), vec!["f:4:9: `times = 0` is impossible, expected an integer from 1 on".into()]),
        (rule("tims = 1\nwhen = { op = \"write\" }\naction = { hold = true }"), vec!["f:4:1: unknown key `tims`, expected …".into()]),
        (rule("action = { hold = true }"), vec!["f:2:1: `when` is missing, expected `when = { op = \"write\" }`".into()]),
        (rule("when = { op = \"write\" }"), vec!["f:2:1: `action` is missing, expected `action = { status = \"ioerr\" }`".into()]),
        (when("\"write\""), vec!["f:5:8: `when` is a string, expected a table such as `when = { op = \"write\" }`".into()]),
        (when("{}"), vec!["f:5:8: `when` says nothing, expected a trigger (`op = \"any\"` for every request)".into()]),
        (when("{ op = \"wrote\" }"), vec!["f:5:15: `op` knows no `wrote`, expected `read`, `write`, `flush`, `get-id`, `discard`, `write-zeroes` or `any`".into()]),
        (when("{ nth = 1 }"), vec!["f:5:16: `nth` is an integer, expected `nth = { n = 3, per = \"rule\" }` (or per `call`, or `test`)".into()]),
        (when("{ op = \"write\", nth_in_call = 0 }"), vec!["f:5:38: `nth_in_call = 0` is impossible, expected an integer from 1 on".into()]),
        (when("{ op = \"flush\", nth_in_call = 1 }"), vec!["f:5:38: a flush carries no call tag, expected no `nth_in_call` beside this `op`".into()]),
        (when("{ op = \"get-id\", lba = \"0+1\" }"), vec!["f:5:31: a get-id has no sectors, expected no `lba` beside this `op`".into()]),
        (when("{ lba = 2048 }"), vec![format!("f:5:16: `lba` is an integer, {RANGE}")]),
        (when("{ lba = { start = 1, len = 2 } }"), vec![format!("f:5:16: `lba` is a table, {RANGE}")]),
        (when("{ lba = \"2048-8\" }"), vec![format!("f:5:16: `lba` cannot be \"2048-8\", {RANGE}")]),
        (when("{ lba = \"+1+2\" }"), vec![format!("f:5:16: `lba` cannot be \"+1+2\", {RANGE}")]),
        (when("{ lba = \"2048+0\" }"), vec!["f:5:16: `lba` is an empty range, expected at least 1 sector".into()]),
        (when("{ lba = \"36028797018963967+2\" }"), vec!["f:5:16: `lba` ends beyond the last sector there can be, expected an end of at most 2^55".into()]),
        (when("{ lba = \"99999999999999999999+1\" }"), vec!["f:5:16: `lba` ends beyond the last sector there can be, expected an end of at most 2^55".into()]),
        (action("{}"), vec!["f:5:10: `action` does nothing, expected `status`, `hold = true` or another key of it".into()]),
        (action("{ hold = false }"), vec!["f:5:10: `action` does nothing, expected `status`, `hold = true` or another key of it".into()]),
        (action("{ delay = 5 }"), vec!["f:5:20: `delay` is an integer, expected a number and a unit (ns, us, ms or s) such as \"5ms\", at most 3600s".into()]),
        (action("{ status = \"eio\" }"), vec![format!("f:5:21: `status` knows no `eio`, {NO_STATUS}")]),
        (action("{ status = 256 }"), vec![format!("f:5:21: `status = 256` is impossible, {NO_STATUS}")]),
        (action("{ status = 0, hold = true }"), vec![format!("f:5:21: status 0 is success, which a request gets without a rule, {NO_STATUS}")]),
        (action("{ status = \"ok\" }"), vec![format!("f:5:21: status 0 is success, which a request gets without a rule, {NO_STATUS}")]),
        (action("{ status = \"enospc\" }"), vec![format!("f:5:21: virtio-blk has no status for a full disk: a guest sees ENOSPC from its file system only, {NO_STATUS}")]),
        (action("{ status = \"timeout\" }"), vec!["f:5:21: virtio-blk has no status for a time-out: a late device is one that does not answer, expected `hold = true` instead, or `ioerr`, `unsupp` or an integer from 1 to 255".into()]),
        (action("{ hold = 1 }"), vec!["f:5:19: `hold` is an integer, expected true or false".into()]),
        // All at once, in the order of the file.
        ("version = 3\nx = 1\n[device]\nqueues = \"ü\" # ü\n".into(), vec![
            "f:1:11: `version = 3` is impossible, expected `version = 1`".into(),
            "f:2:1: unknown key `x`, expected …".into(),
            "f:4:10: `queues` is a string, expected an integer from 1 to 64".into(),
        ]),
        // Columns count characters.
        ("version = 1\n[[fault]]\nname = \"a\"\nwhen = { \"üü\" = 1, x = 2 }\naction = { hold = true }".into(), vec![
            "f:4:10: unknown key `üü`, expected …".into(),
            "f:4:20: unknown key `x`, expected …".into(),
        ]),
    ];
    assert!(table.len() >= 25);
    for (text, expected) in table {
        let error = Scenario::parse("f", &text).expect_err(&text);
        let found: Vec<String> = error
            .problems()
            .iter()
            .map(|p| p.to_string().lines().next().unwrap_or_default().to_owned())
            .collect();
        assert_eq!(found.len(), expected.len(), "{text}: {found:?}");
        for (found, expected) in found.iter().zip(expected) {
            // Lists of all keys are in tests/scenario_wrong.txt.
            match expected.strip_suffix('…') {
                Some(begin) => assert!(found.starts_with(begin), "{found}"),
                None => assert_eq!(*found, expected, "{text}"),
            }
        }
    }
}

#[test]
fn syntax_errors_have_a_place() {
    for (text, at) in [
        ("version = ", "f:1:"),
        ("version = 1\n[[fault]\n", "f:2:"),
        (
            "version = 1\nversion = 1\n",
            "f:2:1: not TOML: duplicate key",
        ),
        ("version = 1\nname = \"x\n", "f:2:"),
        ("\u{1}", "f:1:1: not TOML:"),
    ] {
        let error = Scenario::parse("f", text).unwrap_err().to_string();
        assert!(error.starts_with(at), "{text:?}: {error}");
    }
}

#[test]
fn the_place_is_shown() {
    let text = "version = 1\n\n[device]\n\tqueues = 99 # many\n";
    assert_eq!(
        Scenario::parse("dir/f.toml", text).unwrap_err().to_string(),
        "dir/f.toml:4:11: `queues = 99` is impossible, expected an integer from 1 to 64
  |
4 |  queues = 99 # many
  |           ^^"
    );
    let long = format!(
        "version = 1\nabout = \"{}\"\nname = [{}7]\n",
        "x".repeat(500),
        "1,".repeat(400)
    );
    let error = Scenario::parse("f", &long).unwrap_err().to_string();
    assert!(error.lines().all(|l| l.chars().count() < 120), "{error}");
}

#[test]
fn many_problems_are_not_all_shown() {
    let keys: String = (0..50).map(|n| format!("k{n} = 1\n")).collect();
    let error = Scenario::parse("f", &format!("version = 1\n{keys}")).unwrap_err();
    assert_eq!(error.problems().len(), 50);
    assert!(error.to_string().ends_with("\n... and 30 more"));
}

#[test]
fn limits() {
    let big = format!("version = 1\nabout = \"{}\"", "x".repeat(1 << 20));
    let error = Scenario::parse("f", &big).unwrap_err().to_string();
    assert!(error.contains("expected at most 1048576"), "{error}");
    let rules: String = (0..4097)
        .map(|n| format!("[[fault]]\nname = \"r{n}\"\n{GOOD}\n"))
        .collect();
    let error = Scenario::parse("f", &format!("version = 1\n{rules}")).unwrap_err();
    assert!(error.to_string().contains("too many rules"), "{error}");
    let deep = format!("version = 1\nname = {}", "[".repeat(100_000));
    assert!(Scenario::parse("f", &deep).is_err());
}

fn merge(texts: &[(&str, &str)]) -> Result<Scenario, String> {
    let parsed = texts.iter().map(|(f, t)| Scenario::parse(f, t).unwrap());
    Scenario::merge(parsed.collect()).map_err(|e| e.to_string())
}

#[test]
fn scenarios_merge_in_order() {
    let a = rule(GOOD);
    let b = "version = 1\nname = \"b\"\n[device]\nqueues = 2\n[[fault]]\nname = \"b\"\nwhen = { op = \"any\" }\naction = { status = 3 }\n";
    let c = "version = 1\nname = \"c\"\n[device]\nqueues = 2\nread_only = true\n";
    let s = merge(&[("a", &a), ("b", b), ("c", c)]).unwrap();
    assert_eq!(s.name.as_deref(), Some("b + c"));
    assert_eq!(
        s.rules.iter().map(|r| &r.name).collect::<Vec<_>>(),
        ["a", "b"]
    );
    assert_eq!(
        (s.device.queues(), s.device.read_only()),
        (Some(2), Some(true))
    );
    assert_eq!(s.sources().len(), 3);
    assert_eq!(
        s.to_text(),
        format!("# --- a ---\n{a}\n# --- b ---\n{b}\n# --- c ---\n{c}\n")
    );
    assert_eq!(merge(&[]).unwrap(), Scenario::default());
}

#[test]
fn contradictions_name_both_files() {
    let one = rule(GOOD);
    let other = format!("{one}\ntimes = 7");
    // The very same rule is meant once.
    let twice = merge(&[("a", &one), ("b", &one)]).unwrap();
    assert_eq!(twice.rules.len(), 1);
    assert_eq!(
        merge(&[("a", &one), ("x", "version = 1"), ("b", &other)]).unwrap_err(),
        "b:3:8: a rule named `a` is also in a:3:8, expected names that no two rules share
  |
3 | name = \"a\"
  |        ^^^"
    );
    let queues = |n: u8| format!("version = 1\n\n[device]\nqueues = {n}");
    assert_eq!(
        merge(&[("a", &queues(1)), ("b", &queues(2))]).unwrap_err(),
        "b:4:10: `queues` is set otherwise in a:4:10, expected files that agree
  |
4 | queues = 2
  |          ^"
    );
    let size = "version = 1\n[device]\nsize = \"1KiB\"";
    let block = "version = 1\n[device]\nlogical_block = 4096";
    assert!(
        merge(&[("a", size), ("b", block)])
            .unwrap_err()
            .starts_with("a:3:8: a size of 1024 bytes")
    );
}

#[test]
fn what_is_to_be_run() {
    let s = Scenario::parse(
        "f",
        "version = 1\n[run]\ntests = [\"a\", \"b\"]\ndefect = \"d\"\nexpect = true\nseed = 7\ntags = false\nfs = \"xfs-1k\"",
    )
    .unwrap();
    assert_eq!(s.launch.tests(), ["a", "b"]);
    assert_eq!(
        (s.launch.defect(), s.launch.expect()),
        (Some("d"), Some(true))
    );
    assert_eq!((s.launch.seed(), s.launch.tags()), (Some(7), Some(false)));
    assert_eq!(s.launch.fs(), Some("xfs-1k"));
    let said = |text: &str| {
        let text = format!("version = 1\n[run]\n{text}");
        Scenario::parse("f", &text).unwrap_err().to_string()
    };
    assert!(said("expect = true").starts_with("f:3:10: `expect` compares with the defect table"));
    assert!(said("tests = []").starts_with("f:3:9: an empty list"));
    assert!(said("tests = \"a b\"").starts_with("f:3:9: "));
    assert!(said("seed = -1").starts_with("f:3:8: "));
    assert!(said("test = \"a\"").contains("unknown key `test`"));
    let seed = |n: u8| format!("version = 1\n[run]\nseed = {n}");
    let both = merge(&[("a", &seed(1)), ("b", &seed(2))]).unwrap_err();
    assert!(both.starts_with("b:3:8: `seed` is set otherwise in a:3:8"));
}

mod random {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// Any text, and any mutilated scenario: an answer, and places that exist.
        #[test]
        fn no_text_is_a_panic(cut in 0usize..600, insert in "\\PC{0,8}|[\\[\\]{}=\",.+0-9\n\t#]{0,6}") {
            let mut at = cut.min(FULL.len());
            while !FULL.is_char_boundary(at) {
                at -= 1;
            }
            for text in [
                format!("{}{insert}{}", &FULL[..at], &FULL[at..]),
                format!("{}{insert}", &FULL[..at]),
                insert.clone(),
            ] {
                if let Err(error) = Scenario::parse("f", &text) {
                    prop_assert!(!error.problems().is_empty());
                    for p in error.problems() {
                        prop_assert!(p.line >= 1 && p.line <= text.split('\n').count());
                        prop_assert!(p.column >= 1);
                    }
                    prop_assert!(!error.to_string().is_empty());
                }
            }
        }
    }
}
