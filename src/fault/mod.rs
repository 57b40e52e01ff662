// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Scenario file -> rules -> `decide` (`docs/scenario.md`). Pure and seeded;
//! knows nothing of vhost, has no clock and does no I/O.

mod action;
mod calls;
mod contract;
mod diagnosis;
mod dice;
mod engine;
mod eval;
mod explain;
mod index;
mod intervals;
mod keys;
mod launch;
mod nonsense;
mod parse;
mod parse_action;
mod parse_contract;
mod parse_data;
mod parse_rules;
mod parse_when;
mod places;
mod plan;
mod plan_text;
mod read;
pub mod request;
mod rule;
mod rule_state;
mod scenario;
mod schema;
mod shape;
mod ticks;
mod units;
mod waiting;

#[cfg(test)]
mod engine_tests;
#[cfg(test)]
mod parse_tests;
#[cfg(test)]
mod trigger_tests;

pub use action::{Action, DataAction, Delay, HoldFor, Misdirect, Order, Permutation, Torn};
pub use diagnosis::{Problem, ScenarioError};
pub use engine::Engine;
pub use explain::explain;
pub use launch::Launch;
pub use parse::MAX_TEXT;
pub use rule::{After, CallIs, Class, Count, FileRange, Per, Rule, SectorRange, TestIs, Trigger};
pub use rule_state::RuleView;
pub use scenario::{Device, OnStop, Scenario, Source};
pub use schema::schema;
pub use shape::Shape;
