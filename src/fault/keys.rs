// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Every key of a scenario file, once: the parser takes from here what it knows,
//! the JSON schema is made of it, and a test wants each in docs/scenario.md.

/// A key of a table.
pub(super) struct Key {
    pub(super) name: &'static str,
    pub(super) kind: Kind,
    pub(super) required: bool,
    pub(super) about: &'static str,
}

/// What a key may be set to.
pub(super) enum Kind {
    Text,
    Bool,
    /// From, to.
    Integer(i64, i64),
    /// A share, 0 to 1.
    Share,
    Words(&'static [&'static str]),
    /// A string of this form, as a regular expression.
    Form(&'static str),
    List(&'static Kind),
    Table(&'static [Key]),
    Either(&'static [Kind]),
    /// `when` again, within itself.
    Trigger,
}

use crate::verify::contract::Contract;
use crate::verify::promise;

use Kind::{Bool, Either, Form, Integer, List, Share, Table, Text, Trigger, Words};

const fn key(name: &'static str, kind: Kind, about: &'static str) -> Key {
    Key {
        name,
        kind,
        required: false,
        about,
    }
}

const fn must(name: &'static str, kind: Kind, about: &'static str) -> Key {
    Key {
        name,
        kind,
        required: true,
        about,
    }
}

const COUNT: Kind = Integer(1, i64::MAX);
const NUMBER: Kind = Integer(0, i64::MAX);
const NAME: Kind = Form("^[A-Za-z0-9._-]{1,64}$");
const RANGE: Kind = Form("^[0-9]+\\+[0-9]+$");
const RANGES: Kind = Either(&[RANGE, List(&RANGE)]);
const SIZE: Kind = Form("^[0-9]+ *(B|KiB|MiB|GiB|TiB)$");
const BYTES: Kind = Either(&[NUMBER, SIZE]);
const TIME: Kind = Form("^[0-9]+ *(ns|us|ms|s)$");

pub(super) const OPS: &[&str] = &[
    "read",
    "write",
    "flush",
    "get-id",
    "discard",
    "write-zeroes",
    "any",
];
pub(super) const PERS: &[&str] = &["rule", "call", "test"];
pub(super) const CLASSES: &[&str] = &["log", "data", "other"];

pub(super) const TOP: &[Key] = &[
    must("version", Integer(1, 1), "version of the format"),
    key("name", Text, "name of the scenario"),
    key("about", Text, "what it is about"),
    key("state", NAME, "the state at the start; default `start`"),
    key("device", Table(DEVICE), "settings of the device"),
    key("run", Table(LAUNCH), "what `wtblk run` runs with it"),
    key(
        "contract",
        Table(CONTRACT),
        "what the kernel promises, where it is not the default",
    ),
    key(
        "fault",
        List(&Table(FAULT)),
        "the rules: the first that can fire wins",
    ),
];

pub(super) const DEVICE: &[Key] = &[
    key("queues", Integer(1, 64), "number of queues"),
    key("read_only", Bool, "the guest may not write"),
    key("write_cache", Bool, "a volatile write cache; default true"),
    key("logical_block", Integer(512, 4096), "512 or 4096 bytes"),
    key(
        "queue_size",
        Integer(4, 1024),
        "most descriptors of a queue; a power of two",
    ),
    key(
        "physical_block",
        BYTES,
        "physical block: a power of two, no less than the logical one",
    ),
    key(
        "alignment_offset",
        BYTES,
        "where the first physical block begins",
    ),
    key("min_io", BYTES, "bytes that I/O should have at least"),
    key("opt_io", BYTES, "bytes that I/O should best have"),
    key("size_max", BYTES, "most bytes of a data segment"),
    key(
        "seg_max",
        Integer(1, 1022),
        "most data segments of a request",
    ),
    key(
        "discard",
        Bool,
        "discard and write-zeroes are offered; default true",
    ),
    key(
        "serial",
        Form("^[!-~]{1,20}$"),
        "serial of the disk; default `wtblk-data`",
    ),
    key(
        "on_stop",
        Words(&["complete", "abandon"]),
        "held requests when their ring stops",
    ),
    key("size", SIZE, "size of the disk"),
];

pub(super) const LAUNCH: &[Key] = &[
    key(
        "tests",
        Either(&[NAME, List(&NAME)]),
        "the guest's tests; all of them if it does not say",
    ),
    key("defect", NAME, "seeded defect of the reference kernel"),
    key(
        "expect",
        Bool,
        "compare the findings with the table of defects",
    ),
    key("seed", Integer(0, i64::MAX), "seed of everything random"),
    key("tags", Bool, "the guest tags its calls; default true"),
    key(
        "fs",
        NAME,
        "kind of file system on the data disk, as `--fs` takes it; default `xfs-4k`",
    ),
];

const PROMISES: Kind = List(&Words(promise::NAMES));
const ERRNOS_LIST: Kind = List(&Either(&[Form("^E[A-Z0-9]+$"), Integer(1, 4095)]));

pub(super) const CONTRACT: &[Key] = &[
    key(
        "set",
        Words(Contract::NAMES),
        "the set that the other keys adjust; default `rfc-v2`",
    ),
    key("on", PROMISES, "promises that are judged all the same"),
    key("off", PROMISES, "promises that are not judged"),
    key(
        "failed_write",
        Words(&["error", "error-or-short"]),
        "what a call with a failed write returns",
    ),
    key(
        "stop_after_error",
        Integer(0, 1_000_000),
        "bios that may still be sent once the error was seen",
    ),
    key(
        "fsync_repeats",
        Words(&["once", "never", "either"]),
        "whether fsync repeats an error that the call returned",
    ),
    key(
        "isize_after_error",
        Words(&["old", "extended", "either"]),
        "i_size after a failed call that would have extended the file",
    ),
    key(
        "failed_page",
        Words(&["clean", "either"]),
        "whether the pages of a failed write are clean: nobody writes them again",
    ),
    key("errnos", Table(ERRNOS), "which errno means what"),
];

pub(super) const ERRNOS: &[Key] = &[
    key(
        "ioerr",
        ERRNOS_LIST,
        "errnos that report a request with the status ioerr",
    ),
    key(
        "unsupp",
        ERRNOS_LIST,
        "errnos that report a request with the status unsupp",
    ),
    key(
        "other",
        ERRNOS_LIST,
        "errnos that report a request with any other status",
    ),
    key(
        "any_time",
        ERRNOS_LIST,
        "errnos whose cause no device can see",
    ),
];

pub(super) const FAULT: &[Key] = &[
    must("name", NAME, "name of the rule; no other rule has it"),
    key("test", Text, "it works between the marks of this test only"),
    key(
        "disk",
        NAME,
        "a disk of `serve --disk`; default: the disk under test",
    ),
    must("when", Trigger, "which requests"),
    key(
        "action",
        Table(ACTION),
        "what happens to them; may be missing beside `goto`",
    ),
    key("times", COUNT, "it fires at most so often"),
    key("goto", NAME, "the state that it moves to when it fires"),
];

pub(super) const WHEN: &[Key] = &[
    key("op", Words(OPS), "kind of the request"),
    key("class", Words(CLASSES), "what its place on the disk is for"),
    key(
        "lba",
        RANGES,
        "START+LEN in sectors of 512 bytes: it shares one with the range",
    ),
    key(
        "file",
        Either(&[RANGE, Table(FILE)]),
        "OFFSET+LENGTH in bytes of the file of its call",
    ),
    key(
        "size",
        Either(&[NUMBER, SIZE, Table(SIZES)]),
        "bytes of data",
    ),
    key("nth_in_call", COUNT, "the n-th data request of its call"),
    key(
        "nth",
        Table(COUNTS),
        "only the n-th for which all else in the table holds",
    ),
    key(
        "every",
        Table(COUNTS),
        "every n-th for which all else in the table holds",
    ),
    key(
        "probability",
        Share,
        "by the seed, for requests for which all else in the table holds",
    ),
    key(
        "in_call",
        Either(&[Bool, NUMBER, Words(&["data", "side"])]),
        "it is of a call: any, none, this one, its data, or beside its data",
    ),
    key(
        "in_test",
        Either(&[Bool, Text]),
        "a test is under way: any, none, this one",
    ),
    key(
        "flags",
        Either(&[Text, List(&Text)]),
        "its call has all of these flags",
    ),
    key("state", NAME, "the rules are in this state"),
    key(
        "inflight",
        Either(&[NUMBER, Table(LIMITS)]),
        "requests in flight, this one among them",
    ),
    key(
        "after",
        Table(AFTER),
        "something has happened since the rule was armed",
    ),
    key(
        "elapsed",
        Table(ELAPSED),
        "so much time has passed since a note",
    ),
    key("all", List(&Trigger), "all of them hold"),
    key("any", List(&Trigger), "at least one of them holds"),
    key("not", Trigger, "it does not hold"),
];

pub(super) const FILE: &[Key] = &[
    key(
        "range",
        RANGE,
        "OFFSET+LENGTH in bytes; default: all of the file",
    ),
    key(
        "ino",
        NUMBER,
        "inode number of the file; default: whatever file",
    ),
];
pub(super) const SIZES: &[Key] = &[key("min", BYTES, "at least"), key("max", BYTES, "at most")];
pub(super) const LIMITS: &[Key] = &[
    key("min", NUMBER, "at least"),
    key("max", NUMBER, "at most"),
];
pub(super) const COUNTS: &[Key] = &[
    must("n", COUNT, "which one"),
    must("per", Words(PERS), "where the count begins again"),
];
pub(super) const AFTER: &[Key] = &[
    key("mark", Text, "a mark `note` with this text"),
    key("flush", COUNT, "so many flushes that succeeded"),
    key("rule", NAME, "this rule fired"),
    key("completions", COUNT, "so many requests that were completed"),
    key(
        "count",
        COUNT,
        "with `mark` and `rule`: so often; default 1",
    ),
];
pub(super) const ELAPSED: &[Key] = &[
    must("since", Text, "the last mark `note` with this text"),
    must("ms", NUMBER, "milliseconds"),
];

pub(super) const ACTION: &[Key] = &[
    key(
        "status",
        Either(&[Words(&["ioerr", "unsupp"]), Integer(1, 255)]),
        "the status byte",
    ),
    key("store", Bool, "with `status`: the I/O is done all the same"),
    key("delay", Either(&[TIME, Table(DELAY)]), "wait first"),
    key(
        "hold",
        Either(&[Bool, Table(HOLD)]),
        "keep it back until the rule is released",
    ),
    key(
        "order",
        Table(ORDER),
        "keep groups back and complete them in a planned order",
    ),
    key("hang", Bool, "never complete it while the ring runs"),
    key("torn", Table(TORN), "store a part of a write only"),
    key(
        "corrupt",
        Table(CORRUPT),
        "flip bits of what is written or read",
    ),
    key("drop", Bool, "acknowledge a write that is never stored"),
    key("misdirect", Table(MISDIRECT), "read or write elsewhere"),
    key(
        "stale",
        RANGES,
        "reads within these ranges give what was there before the last write",
    ),
    key("drop_flush", Bool, "acknowledge a flush that is never done"),
    key(
        "late_flush",
        Table(LATE_FLUSH),
        "a flush that leaves out the last writes",
    ),
    key(
        "used_len",
        Integer(0, 4_294_967_295),
        "a wrong used length, bytes",
    ),
    key("disconnect", Table(DISCONNECT), "close the connection"),
    key("gone", Bool, "this and every later request fails"),
    key("cut", Bool, "power cut"),
];

pub(super) const DELAY: &[Key] = &[
    key("fixed", TIME, "so long"),
    key("min", TIME, "at least so long; the seed says how long"),
    key("max", TIME, "at most so long"),
    key("per_kib", TIME, "so much more for each KiB of data"),
];
pub(super) const HOLD: &[Key] = &[
    key("limit", TIME, "at most so long"),
    key(
        "until",
        Table(AFTER),
        "until this has happened, from the first request that is held",
    ),
];
pub(super) const ORDER: &[Key] = &[
    must("group", Integer(2, 256), "requests of a group"),
    key(
        "permutation",
        Either(&[Words(PERMUTATIONS), List(&NUMBER)]),
        "arrivals (from 0) in the order in which they complete",
    ),
    key(
        "index",
        NUMBER,
        "the order of this number of all group! orders",
    ),
    key("limit", TIME, "an incomplete group goes after so long"),
];
pub(super) const PERMUTATIONS: &[&str] = &["reverse", "offset", "seeded", "all"];
pub(super) const TORN: &[Key] = &[
    key("first", NUMBER, "the first so many sectors are stored"),
    key("last", NUMBER, "the last so many sectors are stored"),
    key(
        "sectors",
        List(&Either(&[NUMBER, RANGE])),
        "these sectors are stored, from 0",
    ),
];
pub(super) const CORRUPT: &[Key] = &[
    must("bits", Integer(1, 1024), "how many bits"),
    key(
        "offset",
        NUMBER,
        "from this byte of the request on; default: anywhere, by the seed",
    ),
];
pub(super) const MISDIRECT: &[Key] = &[
    key(
        "by",
        Integer(i64::MIN, i64::MAX),
        "so many sectors further on, or back",
    ),
    key("to", NUMBER, "to this sector"),
];
pub(super) const LATE_FLUSH: &[Key] = &[must(
    "writes",
    Integer(1, 1_000_000),
    "so many are left out",
)];
pub(super) const DISCONNECT: &[Key] = &[must(
    "inflight",
    Words(&["keep", "lose"]),
    "what is in flight is completed first, or lost: that hangs a guest for ever",
)];

/// A key that exists, but in another table; and words that others use for ours.
pub(super) fn elsewhere(said: &str) -> Option<String> {
    let tables: [(&str, &[Key]); 8] = [
        ("when", WHEN),
        ("action", ACTION),
        ("[[fault]]", FAULT),
        ("[device]", DEVICE),
        ("[run]", LAUNCH),
        ("[contract]", CONTRACT),
        ("[contract] errnos", ERRNOS),
        ("the file itself", TOP),
    ];
    let place = tables
        .iter()
        .find(|(_, keys)| keys.iter().any(|k| k.name == said));
    if let Some((place, _)) = place {
        return Some(format!("`{said}` is a key of `{place}`"));
    }
    let ours = match said {
        "error" | "errno" | "fail" => "`action = { status = \"ioerr\" }`",
        "latency" | "sleep" | "wait" => "`action = { delay = \"5ms\" }`",
        "sector" | "sectors" | "offset" => "`when = { lba = \"2048+8\" }`",
        "event" => "`when = { op = \"write\" }`",
        "once" => "`times = 1`",
        "set_state" | "new_state" => "`goto = \"...\"`",
        "block" => "`action = { hold = true }`",
        _ => return None,
    };
    Some(format!("perhaps {ours} is meant"))
}
