// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a run found, as KTAP for people and CI and as `results.json` for machines.

pub mod ktap;
pub mod model;
pub mod results;
