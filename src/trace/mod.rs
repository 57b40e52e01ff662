// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The event, and the file that keeps it.

pub mod event;
