// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! See `wtblk::fuzzing::message`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| wtblk::fuzzing::message(bytes));
