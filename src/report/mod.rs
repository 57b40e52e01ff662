// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! KTAP and results.json.
