// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Scenario file -> rules -> `decide`. Pure and seeded; knows nothing of vhost.

pub mod request;
