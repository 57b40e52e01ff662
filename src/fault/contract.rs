// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `[contract]` of a scenario: what it changes of the set that it names.

use std::collections::{BTreeMap, BTreeSet};

use super::scenario::{Merge, Set};
use crate::verify::contract::{Contract, FsyncRepeats, IsizeAfterError, OnFailedWrite};

/// What the files say of the contract.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Changes {
    pub(super) set: Option<Set<&'static str>>,
    /// Promises that are switched on or off, by name.
    pub(super) switches: BTreeMap<&'static str, Option<Set<bool>>>,
    pub(super) failed_write: Option<Set<OnFailedWrite>>,
    pub(super) stop_after_error: Option<Set<u32>>,
    pub(super) fsync_repeats: Option<Set<FsyncRepeats>>,
    pub(super) isize_after_error: Option<Set<IsizeAfterError>>,
    pub(super) failed_page_clean: Option<Set<bool>>,
    pub(super) errnos: Errnos,
}

/// What they say of errnos.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Errnos {
    pub(super) ioerr: Option<Set<BTreeSet<i32>>>,
    pub(super) unsupp: Option<Set<BTreeSet<i32>>>,
    pub(super) other: Option<Set<BTreeSet<i32>>>,
    pub(super) any_time: Option<Set<BTreeSet<i32>>>,
}

/// VIRTIO_BLK_S_IOERR and VIRTIO_BLK_S_UNSUPP (virtio 1.3, 5.2.6).
const IOERR: u8 = 1;
const UNSUPP: u8 = 2;

impl Changes {
    /// The set with these changes.
    pub(super) fn applied(&self) -> Contract {
        let set = self.set.as_ref().and_then(|s| Contract::named(s.value));
        let named = set.unwrap_or_default();
        let mut contract = named.clone();
        for (name, on) in &self.switches {
            match on.as_ref().map(|s| s.value) {
                Some(true) => contract.off.remove(*name),
                Some(false) => contract.off.insert((*name).to_owned()),
                None => false,
            };
        }
        put(&mut contract.failed_write, &self.failed_write);
        put(&mut contract.stop_after_error, &self.stop_after_error);
        put(&mut contract.fsync_repeats, &self.fsync_repeats);
        put(&mut contract.isize_after_error, &self.isize_after_error);
        put(&mut contract.failed_page_clean, &self.failed_page_clean);
        put(&mut contract.errnos.by_other_status, &self.errnos.other);
        put(
            &mut contract.errnos.not_of_the_device,
            &self.errnos.any_time,
        );
        for (status, errnos) in [(IOERR, &self.errnos.ioerr), (UNSUPP, &self.errnos.unsupp)] {
            if let Some(errnos) = errnos {
                contract
                    .errnos
                    .by_status
                    .insert(status, errnos.value.clone());
            }
        }
        if contract != named {
            contract.name.push_str(", adjusted by the scenario");
        }
        contract
    }

    /// Takes what a further file says.
    pub(super) fn join(&mut self, from: Changes, merge: &mut Merge<'_>) {
        merge.setting("set", &mut self.set, from.set);
        for (name, on) in from.switches {
            merge.setting(name, self.switches.entry(name).or_default(), on);
        }
        merge.setting("failed_write", &mut self.failed_write, from.failed_write);
        let (into, from_) = (&mut self.stop_after_error, from.stop_after_error);
        merge.setting("stop_after_error", into, from_);
        merge.setting("fsync_repeats", &mut self.fsync_repeats, from.fsync_repeats);
        let (into, from_) = (&mut self.isize_after_error, from.isize_after_error);
        merge.setting("isize_after_error", into, from_);
        let (into, from_) = (&mut self.failed_page_clean, from.failed_page_clean);
        merge.setting("failed_page", into, from_);
        let (into, from) = (&mut self.errnos, from.errnos);
        merge.setting("ioerr", &mut into.ioerr, from.ioerr);
        merge.setting("unsupp", &mut into.unsupp, from.unsupp);
        merge.setting("other", &mut into.other, from.other);
        merge.setting("any_time", &mut into.any_time, from.any_time);
    }
}

fn put<T: Clone>(into: &mut T, said: &Option<Set<T>>) {
    if let Some(said) = said {
        into.clone_from(&said.value);
    }
}
