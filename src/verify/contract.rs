// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a kernel promises, as data.
//!
//! The flag is an RFC and its promises change from one version to the next, so
//! nothing in the promises themselves knows a version: they ask the contract.
//! Named sets ship; `[contract]` of a scenario adjusts one (`docs/promises.md`).

use std::collections::{BTreeMap, BTreeSet};

use nix::errno::Errno;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::trace::event::{Body, DeviceKind, Event};

/// EIO of `include/uapi/asm-generic/errno-base.h`.
pub const EIO: i32 = 5;

/// What a call may return when one of its data requests failed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OnFailedWrite {
    /// An error, nothing else.
    Error,
    /// An error or a count below the length: the RFC leaves it open.
    #[default]
    ErrorOrShort,
}

/// Whether an fsync after a call that returned its error reports that error again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FsyncRepeats {
    /// Once for each open file, as lib/errseq.c does: the mapping records the error, too.
    Once,
    /// Not at all: who got it from the call has it.
    Never,
    /// One or the other: the RFC leaves it open.
    #[default]
    Either,
}

/// What i_size is after a call that would have extended the file and failed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum IsizeAfterError {
    /// As before the call.
    Old,
    /// As if the call had not failed.
    Extended,
    /// Anything between the two: the RFC leaves it open.
    #[default]
    Either,
}

/// Which errno means what.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Errnos {
    /// Errnos that report a failed request, by its status byte.
    pub by_status: BTreeMap<u8, BTreeSet<i32>>,
    /// The same for a status byte that is not in the table.
    pub by_other_status: BTreeSet<i32>,
    /// Errnos whose cause no device can see: a call may return them at any time.
    pub not_of_the_device: BTreeSet<i32>,
}

impl Default for Errnos {
    fn default() -> Errnos {
        Errnos {
            // 1 is VIRTIO_BLK_S_IOERR, 2 is _UNSUPP: Linux's virtio_blk makes EIO of the
            // one and EOPNOTSUPP (95) of the other; mapping_set_error makes EIO of both.
            by_status: [(1, [EIO].into()), (2, [EIO, 95].into())].into(),
            by_other_status: [EIO].into(),
            // EINTR, EAGAIN, ENOMEM, EFAULT, EINVAL, EFBIG, ENOSPC, EROFS, EOPNOTSUPP, EDQUOT.
            not_of_the_device: [4, 11, 12, 14, 22, 27, 28, 30, 95, 122].into(),
        }
    }
}

impl Errnos {
    /// Whether `errno` reports a request that ended with `status`.
    pub fn reports(&self, status: u8, errno: i32) -> bool {
        self.by_status
            .get(&status)
            .unwrap_or(&self.by_other_status)
            .contains(&errno)
    }
}

/// The errno of this name, such as `EIO`, as x86-64 numbers them.
pub fn errno_named(name: &str) -> Option<i32> {
    /// EHWPOISON, the last of `include/uapi/asm-generic/errno.h`.
    const LAST: i32 = 133;
    (1..=LAST).find(|n| {
        let errno = Errno::from_raw(*n);
        errno != Errno::UnknownErrno && format!("{errno:?}") == name
    })
}

/// The contract: which promises are judged, and their parameters.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Contract {
    /// Its name, shown with every verdict.
    pub name: String,
    /// Promises that it does not make.
    pub off: BTreeSet<String>,
    /// What a call with a failed data request may return.
    pub failed_write: OnFailedWrite,
    /// Bios that may still be sent once the kernel has seen an error of the call: 1
    /// is the vector that was collected already.
    pub stop_after_error: u32,
    /// Whether fsync repeats an error that the call returned.
    pub fsync_repeats: FsyncRepeats,
    /// i_size after a failed call that would have extended the file.
    pub isize_after_error: IsizeAfterError,
    /// Whether the pages of a failed request are clean: nobody writes them again.
    pub failed_page_clean: bool,
    /// The errno table.
    pub errnos: Errnos,
}

impl Default for Contract {
    fn default() -> Contract {
        Contract {
            name: "rfc-v2".into(),
            off: BTreeSet::new(),
            failed_write: OnFailedWrite::default(),
            stop_after_error: 1,
            fsync_repeats: FsyncRepeats::default(),
            isize_after_error: IsizeAfterError::default(),
            failed_page_clean: false,
            errnos: Errnos::default(),
        }
    }
}

impl Contract {
    /// Names of the sets that ship; the default is `rfc-v2`.
    pub const NAMES: &[&str] = &["rfc-v1", "rfc-v2", "strict"];

    /// The set with this name.
    pub fn named(name: &str) -> Option<Contract> {
        let base = Contract {
            name: name.to_owned(),
            ..Contract::default()
        };
        match name {
            // v1 returned before its I/O was done, so it could not report every error either.
            "rfc-v1" => Some(Contract {
                off: ["sync-return".to_owned(), "error-report".to_owned()].into(),
                ..base
            }),
            "rfc-v2" => Some(base),
            // What a caller would like best: nothing is left open.
            "strict" => Some(Contract {
                failed_write: OnFailedWrite::Error,
                fsync_repeats: FsyncRepeats::Once,
                isize_after_error: IsizeAfterError::Old,
                ..base
            }),
            _ => None,
        }
    }

    /// Whether it makes this promise.
    pub fn makes(&self, promise: &str) -> bool {
        !self.off.contains(promise)
    }

    /// What is other than in the set that its name begins with, a line each.
    pub fn adjusted(&self) -> Vec<String> {
        let set = self.name.split(',').next().unwrap_or_default();
        let base = Contract::named(set).unwrap_or_default();
        let mut lines = Vec::new();
        let names = |of: &BTreeSet<String>, less: &BTreeSet<String>| -> Option<String> {
            let names: Vec<_> = of.difference(less).cloned().collect();
            (!names.is_empty()).then(|| names.join(", "))
        };
        lines.extend(names(&self.off, &base.off).map(|n| format!("off: {n}")));
        lines.extend(names(&base.off, &self.off).map(|n| format!("on: {n}")));
        lines.extend(others(
            "",
            &serde_json::json!(self),
            &serde_json::json!(base),
        ));
        lines
    }

    /// Adds it to the JSON of a trace's `Begin` event: a trace tells what it is to be judged by.
    pub fn note_in(&self, begin: &mut serde_json::Value) {
        if let (Some(map), Ok(contract)) = (begin.as_object_mut(), serde_json::to_value(self)) {
            map.insert("contract".into(), contract);
        }
    }

    /// The contract in the text of a `Begin` event, if it tells one that we know.
    pub fn of_begin(text: &str) -> Option<Contract> {
        let begin: serde_json::Value = serde_json::from_str(text).ok()?;
        serde_json::from_value(begin.get("contract")?.clone()).ok()
    }
}

/// `key = value` of what differs, but for the name and the switches.
fn others(of: &str, ours: &Value, base: &Value) -> Vec<String> {
    let mut lines = Vec::new();
    for (key, value) in ours.as_object().into_iter().flatten() {
        let was = base.get(key);
        match key.as_str() {
            "name" | "off" => {}
            "errnos" => lines.extend(others("errnos.", value, was.unwrap_or(&Value::Null))),
            _ if was == Some(value) => {}
            _ => lines.push(format!("{of}{key} = {value}")),
        }
    }
    lines
}

/// What a trace says of the contract by which it is to be judged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Told {
    /// This one.
    This(Box<Contract>),
    /// None: it is judged by the default one.
    Nothing,
    /// It said one, or may have said one, and that is not known any more: why.
    Lost(&'static str),
}

impl Told {
    /// What the first event says, where the `Begin` event of a trace stands.
    pub fn by(first: &Event) -> Told {
        match &first.body {
            Body::Device(d) if d.kind == DeviceKind::Begin => match Contract::of_begin(&d.text) {
                Some(contract) => Told::This(Box::new(contract)),
                None if names_one(&d.text) => {
                    Told::Lost("the contract that the trace names is none that this wtblk knows")
                }
                None => Told::Nothing,
            },
            Body::Gap(_) => Told::Lost(
                "the beginning of the trace is missing, and with it the contract that it names",
            ),
            _ => Told::Nothing,
        }
    }
}

fn names_one(begin: &str) -> bool {
    serde_json::from_str::<serde_json::Value>(begin).is_ok_and(|b| b.get("contract").is_some())
}

#[cfg(test)]
mod tests {
    use super::super::promise;
    use super::*;
    use crate::trace::event::{DeviceEvent, Gap};

    #[test]
    fn every_named_set_exists_and_survives_json() {
        for name in Contract::NAMES {
            let contract = Contract::named(name).unwrap();
            assert_eq!(&contract.name, name);
            for off in &contract.off {
                assert!(promise::about(off).is_some(), "{name}: {off}");
            }
            let json = serde_json::to_string(&contract).unwrap();
            assert_eq!(serde_json::from_str::<Contract>(&json).unwrap(), contract);
            let mut begin = serde_json::json!({"queues": 1});
            contract.note_in(&mut begin);
            assert_eq!(Contract::of_begin(&begin.to_string()), Some(contract));
        }
        assert_eq!(Contract::named("rfc-v9"), None);
        assert_eq!(Contract::of_begin("{}"), None);
        assert!(serde_json::from_str::<Contract>(r#"{"colour":1}"#).is_err());
    }

    #[test]
    fn what_was_adjusted_is_told() {
        for name in Contract::NAMES {
            assert_eq!(Contract::named(name).unwrap().adjusted(), [""; 0]);
        }
        let mut contract = Contract::named("rfc-v1").unwrap();
        contract.name.push_str(", adjusted by the scenario");
        contract.off = ["error-report".to_owned(), "size".to_owned()].into();
        contract.stop_after_error = 2;
        contract.errnos.by_other_status = [28].into();
        assert_eq!(
            contract.adjusted(),
            [
                "off: size",
                "on: sync-return",
                "errnos.by_other_status = [28]",
                "stop_after_error = 2"
            ]
        );
    }

    #[test]
    fn a_contract_that_cannot_be_known_is_lost_and_not_the_default_one() {
        let begin = |text: &str| Event {
            seq: 0,
            time_ns: 0,
            body: Body::Device(DeviceEvent {
                disk: 0,
                queue: 0,
                kind: DeviceKind::Begin,
                a: 0,
                b: 0,
                text: text.into(),
            }),
        };
        assert_eq!(Told::by(&begin("{}")), Told::Nothing);
        assert_eq!(Told::by(&begin("no JSON")), Told::Nothing);
        let told = Told::by(&begin(r#"{"contract":{"name":"x"}}"#));
        assert!(matches!(told, Told::This(c) if c.name == "x"));
        // Of a newer wtblk, say.
        let told = Told::by(&begin(r#"{"contract":{"colour":1}}"#));
        assert!(matches!(told, Told::Lost(_)));
        let gap = Body::Gap(Gap {
            missing: 1,
            why: String::new(),
        });
        let told = Told::by(&Event {
            seq: 0,
            time_ns: 0,
            body: gap,
        });
        assert!(matches!(told, Told::Lost(_)));
    }

    #[test]
    fn errnos_have_their_names() {
        assert_eq!(errno_named("EIO"), Some(EIO));
        assert_eq!(errno_named("EDQUOT"), Some(122));
        assert_eq!(errno_named("UnknownErrno"), None);
        assert_eq!(errno_named("eio"), None);
    }
}
