// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Scenario file -> rules -> `decide` (`docs/scenario.md`). Pure and seeded;
//! knows nothing of vhost, has no clock and does no I/O.

mod calls;
mod diagnosis;
mod engine;
mod parse;
mod plan_text;
mod read;
pub mod request;
mod rules;
mod scenario;

#[cfg(test)]
mod engine_tests;
#[cfg(test)]
mod parse_tests;

pub use diagnosis::{Problem, ScenarioError};
pub use engine::{Engine, RuleState};
pub use scenario::{Action, Device, OnStop, Rule, Scenario, SectorRange, Source, Trigger};
