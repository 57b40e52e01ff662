// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The file systems, by Landlock: what is open stays, nothing else can be opened, made, moved,
//! cut or run. Sockets are removed at the end, so removing goes on in their folders. Besides: no
//! TCP, no abstract socket and no signal to anybody outside.

use std::path::PathBuf;

use landlock::{
    ABI, Access, AccessFs, AccessNet, CompatLevel, Compatible, PathBeneath, PathFd, Ruleset,
    RulesetAttr, RulesetCreatedAttr, RulesetError, RulesetStatus, Scope,
};

use super::Missing;

/// The newest that is asked for; an older kernel forbids what it knows.
const NEWEST: ABI = ABI::V6;

pub(super) fn forbid(removes: &[PathBuf]) -> Result<(), Missing> {
    let mut folders = Vec::new();
    for folder in removes {
        let failed = |e| Missing::Failed(format!("{}: {e}", folder.display()));
        let open = PathFd::new(folder).map_err(failed)?;
        folders.push(open);
    }
    match restrict(folders) {
        Ok(RulesetStatus::NotEnforced) => Err(Missing::Lacks(
            "the kernel has no Landlock, or it is not enabled".into(),
        )),
        Ok(_) => Ok(()),
        // A kernel that lacks something says `NotEnforced`, or does less.
        Err(error) => Err(Missing::Failed(format!("Landlock: {error}"))),
    }
}

fn restrict(folders: Vec<PathFd>) -> Result<RulesetStatus, RulesetError> {
    let mut rules = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(NEWEST))?
        .handle_access(AccessNet::from_all(NEWEST))?
        .scope(Scope::from_all(NEWEST))?
        .create()?;
    for folder in folders {
        rules = rules.add_rule(PathBeneath::new(folder, AccessFs::RemoveFile))?;
    }
    Ok(rules.restrict_self()?.ruleset)
}
