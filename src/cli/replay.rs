// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `wtblk replay TRACE --scenario FILE`: which rules would have fired on the
//! requests of a recorded trace. The story stays as it was recorded: a rule that
//! fires changes nothing of what comes after.

use std::collections::HashMap;
use std::io::Write;
use std::path::{Path, PathBuf};

use clap::Args;
use wtblk_shared::tag::Tag;

use crate::fault::Engine;
use crate::fault::request::{Decision, Request};
use crate::plain::{self, counted};
use crate::trace::TraceReader;
use crate::trace::event::{Body, DATA_DISK, DeviceKind, Event, RequestId, Submit};

/// Requests in flight that are kept in mind; a trace with more is not from us.
const MAX_IN_FLIGHT: usize = 1 << 20;

/// What to replay.
#[derive(Args, Debug)]
pub struct ReplayArgs {
    /// The trace file.
    pub trace: PathBuf,
    /// Scenario file; several are merged
    #[arg(long = "scenario", value_name = "FILE", required = true)]
    pub scenarios: Vec<PathBuf>,
    /// Seed of the rules' dice; that of the recorded run where it is not given
    #[arg(long)]
    pub seed: Option<u64>,
}

/// The seed of the run that left this trace; 0, as in `serve`, where it had no scenario.
fn recorded_seed(trace: &Path) -> anyhow::Result<u64> {
    let mut reader = TraceReader::open(trace)?;
    while let Some(event) = reader.next()? {
        match event.body {
            Body::Device(d) if d.kind == DeviceKind::Scenario => return Ok(d.b),
            // It stands before all requests.
            Body::Submit(_) => break,
            _ => {}
        }
    }
    Ok(0)
}

impl ReplayArgs {
    /// Runs it; the exit status.
    pub fn run(&self, out: &mut impl Write) -> anyhow::Result<u8> {
        let scenario = super::scenario::load(&self.scenarios)?;
        let seed = match self.seed {
            Some(seed) => seed,
            None => recorded_seed(&self.trace)?,
        };
        let mut replay = Replay::new(Engine::new(&scenario, seed));
        let mut reader = TraceReader::open(&self.trace)?;
        while let Some(event) = reader.next()? {
            for line in replay.event(&event) {
                writeln!(out, "{}", plain::line(&line))?;
            }
        }
        for line in replay.summary() {
            writeln!(out, "{}", plain::line(&line))?;
        }
        super::trace_state::warn(&reader, &self.trace, "replayed");
        Ok(crate::report::model::status::HELD)
    }
}

/// An engine that is told a recorded story.
pub struct Replay {
    engine: Engine,
    in_flight: HashMap<RequestId, Request>,
    gaps: u64,
}

impl Replay {
    /// Before the first event.
    pub fn new(engine: Engine) -> Replay {
        Replay {
            engine,
            in_flight: HashMap::new(),
            gaps: 0,
        }
    }

    /// The lines that an event causes.
    pub fn event(&mut self, event: &Event) -> Vec<String> {
        let mut lines = Vec::new();
        match &event.body {
            Body::Submit(submit) if submit.disk == DATA_DISK => {
                let decision = self.submit(event, submit);
                lines.extend(decision.map(|d| {
                    format!(
                        "{:>8} #{} {} {}+{} B: rule {} ({}): {}",
                        event.seq,
                        event.seq,
                        submit.op.name(),
                        submit.sector,
                        submit.bytes,
                        d.rule,
                        d.name,
                        d.plan
                    )
                }));
            }
            Body::Complete(complete) => {
                // One that was abandoned the guest never heard of: it counts as no completion.
                if let Some(request) = self.in_flight.remove(&complete.request)
                    && !complete.abandoned
                {
                    self.engine.completed(&request, complete.status);
                }
            }
            Body::Mark(mark) => {
                if let Ok(mark) = mark.parse() {
                    self.engine.mark(&mark, event.time_ns);
                }
            }
            Body::Gap(gap) => {
                self.gaps += 1;
                lines.push(format!(
                    "{:>8} {} missing here: counts after it may differ",
                    event.seq,
                    counted(gap.missing, "event is", "events are")
                ));
            }
            _ => {}
        }
        for rule in self.engine.take_releases() {
            lines.push(format!(
                "{:>8} what {rule} holds would be let go",
                event.seq
            ));
        }
        lines
    }

    fn submit(&mut self, event: &Event, submit: &Submit) -> Option<Decision> {
        let request = Request {
            id: event.seq,
            disk: submit.disk,
            queue: submit.queue,
            op: submit.op,
            sector: submit.sector,
            bytes: submit.bytes,
            tag: Tag::from_ioprio(submit.ioprio),
            inflight: u32::try_from(self.in_flight.len() + 1).unwrap_or(u32::MAX),
        };
        let decision = self.engine.decide(&request, event.time_ns);
        if self.in_flight.len() < MAX_IN_FLIGHT {
            self.in_flight.insert(event.seq, request);
        }
        decision
    }

    /// The engine as the story left it.
    pub fn engine(&self) -> &Engine {
        &self.engine
    }

    /// What each rule came to.
    pub fn summary(&self) -> Vec<String> {
        let mut lines: Vec<String> = self
            .engine
            .rules()
            .iter()
            .map(|r| format!("{}: fired {} of {} seen", r.rule.name, r.fired, r.seen))
            .collect();
        lines.push(format!(
            "state {}, seed {}{}",
            self.engine.state(),
            self.engine.seed(),
            if self.gaps > 0 {
                ", with gaps in the trace"
            } else {
                ""
            }
        ));
        lines
    }
}
