// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `wtblk ctl`: orders to a running device, over its control socket.

use std::io::Write;
use std::path::PathBuf;

use anyhow::{Result, bail};
use clap::{Args, Subcommand};

use crate::control::client::Client;
use crate::control::{Answer, InFlight, Line, Standing};
use crate::report::model::status;

/// Arm, release, ask: orders to a running `wtblk serve --control SOCKET`.
#[derive(Args, Debug)]
pub struct CtlArgs {
    /// The control socket
    socket: PathBuf,
    /// Print the device's answer as it came, a line of JSON
    #[arg(long)]
    json: bool,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand, Debug)]
enum Verb {
    /// Arm a rule again, counters at zero; without a name all rules
    Arm {
        /// The rule
        rule: Option<String>,
    },
    /// Disarm a rule, so that it fires no more; without a name all rules
    Disarm {
        /// The rule
        rule: Option<String>,
    },
    /// Let go what a rule holds; without a name everything held
    Release {
        /// The rule
        rule: Option<String>,
        /// Only this request, by its number
        #[arg(long, value_name = "N", conflicts_with = "rule")]
        request: Option<u64>,
    },
    /// Move the rules to a state
    SetState {
        /// The state
        state: String,
    },
    /// The requests in flight
    Query,
    /// Counters, state, groups, cache
    Status,
    /// Wait until it is so, 5 s at the most; "not yet" gives status 1
    #[command(group = clap::ArgGroup::new("what").required(true))]
    Wait {
        /// So many requests are held
        #[arg(long, value_name = "N", group = "what")]
        held: Option<u64>,
        /// The rules are in this state
        #[arg(long, value_name = "NAME", group = "what")]
        state: Option<String>,
        /// This rule has fired
        #[arg(long, value_name = "RULE", group = "what")]
        fired: Option<String>,
        /// So often
        #[arg(long, value_name = "N", requires = "fired", default_value_t = 1)]
        times: u64,
        /// Wait no longer than this
        #[arg(long, value_name = "MS")]
        limit_ms: Option<u64>,
    },
}

impl Verb {
    fn line(&self) -> Line {
        match self {
            Verb::Arm { rule } => named("arm", rule),
            Verb::Disarm { rule } => named("disarm", rule),
            Verb::Release { rule, request } => Line {
                request: *request,
                ..named("release", rule)
            },
            Verb::SetState { state } => Line {
                state: Some(state.clone()),
                ..Line::of("set-state")
            },
            Verb::Query => Line::of("query"),
            Verb::Status => Line::of("status"),
            Verb::Wait {
                held,
                state,
                fired,
                times,
                limit_ms,
            } => Line {
                held: *held,
                state: state.clone(),
                rule: fired.clone(),
                fired: fired.as_ref().map(|_| *times),
                limit_ms: *limit_ms,
                ..Line::of("wait")
            },
        }
    }
}

fn named(verb: &str, rule: &Option<String>) -> Line {
    Line {
        rule: rule.clone(),
        ..Line::of(verb)
    }
}

impl CtlArgs {
    /// Runs the subcommand: status 0 done, 1 "not yet".
    pub fn run(&self, out: &mut impl Write) -> Result<u8> {
        let (text, answer) = Client::connect(&self.socket)?.ask(&self.verb.line())?;
        if self.json {
            writeln!(out, "{text}")?;
        }
        if let Some(error) = &answer.error {
            bail!("the device refuses: {error}");
        }
        if !self.json {
            print(&answer, out)?;
        }
        Ok(match answer.reached {
            Some(false) => status::FINDING,
            _ => status::HELD,
        })
    }
}

fn print(answer: &Answer, out: &mut impl Write) -> Result<()> {
    if let Some(count) = answer.released {
        writeln!(out, "{count} released")?;
    }
    if let Some(reached) = answer.reached {
        writeln!(out, "{}", if reached { "reached" } else { "not yet" })?;
    }
    if let Some(standing) = &answer.status {
        print_standing(standing, out)?;
    }
    for request in answer.requests.iter().flatten() {
        print_request(request, out)?;
    }
    if let Some(more) = answer.more {
        writeln!(out, "and {more} more")?;
    }
    Ok(())
}

fn print_standing(s: &Standing, out: &mut impl Write) -> Result<()> {
    writeln!(
        out,
        "device {}, {} in flight, {} held, {} hung",
        s.device, s.inflight, s.held, s.hung
    )?;
    if !s.state.is_empty() {
        writeln!(out, "state {}", s.state)?;
    }
    for r in &s.rules {
        let armed = if r.armed { "" } else { ", disarmed" };
        let released = if r.released { ", released" } else { "" };
        writeln!(
            out,
            "rule {}: seen {}, fired {}, holds {}{armed}{released}",
            r.name, r.seen, r.fired, r.held
        )?;
    }
    for g in &s.groups {
        writeln!(
            out,
            "group of {}: {} wait, size {}",
            g.rule, g.waiting, g.size
        )?;
    }
    if let Some(c) = &s.cache {
        let frozen = if c.frozen { ", frozen" } else { "" };
        writeln!(
            out,
            "cache: {} writes completed, {} of them volatile, {} spilled, {} bytes{frozen}",
            c.completed, c.volatile, c.spilled, c.bytes
        )?;
    }
    Ok(())
}

fn print_request(r: &InFlight, out: &mut impl Write) -> Result<()> {
    write!(
        out,
        "{} q{} {} {}+{} waits for {}",
        r.request,
        r.queue,
        r.op,
        r.sector,
        r.bytes / 512,
        r.waits
    )?;
    if let Some(rule) = &r.rule {
        write!(out, ", rule {rule}")?;
    }
    if let Some(call) = r.call {
        write!(out, ", call {call}")?;
    }
    if let Some(offset) = r.file_offset {
        write!(out, ", file offset {offset}")?;
    }
    writeln!(out)?;
    Ok(())
}
