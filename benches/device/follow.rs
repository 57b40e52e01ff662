// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The live verifier as `wtblk run` has it: a process that reads the trace while
//! it grows and judges every event.

use std::path::Path;
use std::time::Duration;

use anyhow::Result;
use wtblk::trace::TraceReader;
use wtblk::verify::Verifier;
use wtblk::verify::contract::Contract;

/// How often `wtblk run` looks for new events.
const LOOK: Duration = Duration::from_millis(10);

/// Follows a trace until it is closed or we are told to end.
pub fn follow(trace: &Path) -> Result<()> {
    let mut reader = TraceReader::open_live(trace)?;
    let mut verifier = Verifier::new(Contract::default());
    loop {
        while let Some(event) = reader.next()? {
            verifier.event(&event);
        }
        std::thread::sleep(LOOK);
    }
}
