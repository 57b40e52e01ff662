// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Buffers of an operation: somebody else's memory, kept alive while in flight.

/// See the module.
pub struct Buffers;
