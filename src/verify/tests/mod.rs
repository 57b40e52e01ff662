// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Streams made by hand and by chance, and what must come out.

mod aftermath;
mod align_cover;
mod attacks;
mod between_boots;
mod boots;
mod builder;
mod data;
mod data_flushed;
mod disturbances;
mod durable;
mod edges;
mod errors;
mod legal;
mod lost;
mod mutants;
mod near;
mod near_misses;
mod opens;
mod oracle_calls;
mod oracle_progress;
mod oracle_serialised;
mod oracle_writeback;
mod oracle_written_once;
mod order;
mod overlap;
mod returns;
mod serialised;
mod size;
mod spoilt;
mod stable;
mod stop;
mod world;
mod writers;
mod written_once;
mod written_once_edges;
