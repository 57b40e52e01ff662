// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a kernel promises, as data.
//!
//! The flag is an RFC and its promises change from one version to the next, so
//! nothing in the promises themselves knows a version: they ask the contract.
//! Named sets ship; `[contract]` of a scenario adjusts one (`docs/promises.md`).

use std::collections::{BTreeMap, BTreeSet};

use nix::errno::Errno;
use serde::{Deserialize, Serialize};

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

#[cfg(test)]
mod tests {
    use super::super::promise;
    use super::*;

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
    fn errnos_have_their_names() {
        assert_eq!(errno_named("EIO"), Some(EIO));
        assert_eq!(errno_named("EDQUOT"), Some(122));
        assert_eq!(errno_named("UnknownErrno"), None);
        assert_eq!(errno_named("eio"), None);
    }
}
