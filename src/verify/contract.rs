// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a kernel promises, as data.
//!
//! The flag is an RFC and its promises change from one version to the next, so
//! nothing in the promises themselves knows a version: they ask the contract.

use std::collections::{BTreeMap, BTreeSet};

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

/// The contract: which promises are judged, and their parameters.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Contract {
    /// Its name, shown with every verdict.
    pub name: String,
    /// Promises that it does not make.
    pub off: BTreeSet<String>,
    /// What a call with a failed data request may return.
    pub on_failed_write: OnFailedWrite,
    /// The errno table.
    pub errnos: Errnos,
}

impl Default for Contract {
    fn default() -> Contract {
        Contract {
            name: "rfc-v2".into(),
            off: BTreeSet::new(),
            on_failed_write: OnFailedWrite::default(),
            errnos: Errnos::default(),
        }
    }
}

impl Contract {
    /// Names of the sets that ship.
    pub const NAMES: [&str; 3] = ["rfc-v1", "rfc-v2", "strict"];

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
            "strict" => Some(Contract {
                on_failed_write: OnFailedWrite::Error,
                ..base
            }),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_named_set_exists_and_survives_json() {
        for name in Contract::NAMES {
            let contract = Contract::named(name).unwrap();
            assert_eq!(contract.name, name);
            let json = serde_json::to_string(&contract).unwrap();
            assert_eq!(serde_json::from_str::<Contract>(&json).unwrap(), contract);
        }
        assert_eq!(Contract::named("rfc-v9"), None);
        assert!(serde_json::from_str::<Contract>(r#"{"colour":1}"#).is_err());
    }
}
