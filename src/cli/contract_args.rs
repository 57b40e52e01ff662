// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `--contract` and `--scenario` of the commands that judge a stored trace.

use std::path::PathBuf;

use anyhow::Context as _;
use clap::Args;

use super::scenario;
use crate::verify::contract::Contract;

/// By what to judge, where it is not what the trace names.
#[derive(Args, Debug)]
pub(super) struct ContractArgs {
    /// Judge by this set (rfc-v1, rfc-v2, strict) instead of the contract that the trace names.
    #[arg(long, value_name = "NAME", conflicts_with = "scenario")]
    contract: Option<String>,
    /// Judge by the contract of this scenario, where it has one; repeatable.
    #[arg(long, value_name = "FILE")]
    scenario: Vec<PathBuf>,
}

/// What was chosen.
#[derive(Debug, Default)]
pub(super) struct Chosen {
    /// The contract; `None`: that of the trace.
    pub(super) contract: Option<Contract>,
    /// What whoever chose should know.
    pub(super) note: Option<&'static str>,
}

impl ContractArgs {
    /// What they say.
    pub(super) fn chosen(&self) -> anyhow::Result<Chosen> {
        if let Some(name) = &self.contract {
            return Ok(Chosen {
                contract: Some(named(name)?),
                note: None,
            });
        }
        if self.scenario.is_empty() {
            return Ok(Chosen::default());
        }
        let scenario = scenario::load(&self.scenario)?;
        let says = scenario.has_contract();
        Ok(Chosen {
            contract: says.then(|| scenario.contract()),
            note: (!says).then_some(
                "the scenario has no [contract]: judged by the contract that the trace names",
            ),
        })
    }
}

fn named(name: &str) -> anyhow::Result<Contract> {
    Contract::named(name).with_context(|| {
        format!(
            "there is no contract '{name}'; those that ship are: {}",
            Contract::NAMES.join(", ")
        )
    })
}
