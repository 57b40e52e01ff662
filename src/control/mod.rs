// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The control protocol: what the host may ask of a running device, one JSON
//! object per line. The schema is `docs/control.md`; nothing of vhost here.

mod calls;
pub mod client;

pub use calls::OpenCalls;

use serde::{Deserialize, Serialize};

/// Version of the schema, in every line.
pub const VERSION: u32 = 1;
/// Longest line that is taken, its newline counted.
pub const LINE_MAX: usize = 4096;
/// Longest that a wait takes before it says "not yet", ms.
pub const WAIT_MAX_MS: u64 = 5000;
/// Requests that an answer lists at the most.
pub const LIST_MAX: usize = 1024;

/// A line to the device, as it is written.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Line {
    /// [`VERSION`].
    pub wtblk: u32,
    /// What to do.
    pub verb: String,
    /// A rule's name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rule: Option<String>,
    /// A request's number.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub request: Option<u64>,
    /// A state's name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub state: Option<String>,
    /// So many requests held.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub held: Option<u64>,
    /// So often fired.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fired: Option<u64>,
    /// Wait no longer than so many ms.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit_ms: Option<u64>,
}

/// What a line asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ask {
    /// Arm the rule, or all.
    Arm(Option<String>),
    /// Disarm the rule, or all.
    Disarm(Option<String>),
    /// Release what the rule holds, or all.
    Release(Option<String>),
    /// Release this request.
    ReleaseOne(u64),
    /// Move to a state.
    SetState(String),
    /// Tell the requests in flight.
    Query,
    /// Tell how things stand.
    Status,
    /// Answer when it is so, or at the limit (ms).
    Wait(WaitFor, u64),
}

/// What a wait waits for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WaitFor {
    /// At least so many requests are held.
    Held(u64),
    /// The rules are in this state.
    State(String),
    /// The rule has fired at least so often.
    Fired(String, u64),
}

impl Line {
    /// A line with only a verb.
    pub fn of(verb: &str) -> Line {
        Line {
            wtblk: VERSION,
            verb: verb.to_owned(),
            ..Line::default()
        }
    }

    /// Reads a line (without its newline).
    pub fn read(text: &[u8]) -> Result<Ask, String> {
        // Of a list the values would be taken for the keys, in some order.
        if text.trim_ascii_start().first() != Some(&b'{') {
            return Err(
                "no JSON object, expected one such as {\"wtblk\":1,\"verb\":\"status\"}".into(),
            );
        }
        let line: Line = serde_json::from_slice(text).map_err(|e| e.to_string())?;
        line.ask()
    }

    /// What it asks for; a key that does not go with the verb is refused.
    pub fn ask(self) -> Result<Ask, String> {
        if self.wtblk != VERSION {
            return Err(format!("schema {}, expected {VERSION}", self.wtblk));
        }
        let expects = |keys: &[&str]| {
            let said = [
                ("rule", self.rule.is_some()),
                ("request", self.request.is_some()),
                ("state", self.state.is_some()),
                ("held", self.held.is_some()),
                ("fired", self.fired.is_some()),
                ("limit_ms", self.limit_ms.is_some()),
            ];
            match said.iter().find(|(key, said)| *said && !keys.contains(key)) {
                Some((key, _)) => Err(format!("'{key}' does not go with '{}' here", self.verb)),
                None => Ok(()),
            }
        };
        let rule = self.rule.clone();
        match self.verb.as_str() {
            "arm" => expects(&["rule"]).map(|()| Ask::Arm(rule)),
            "disarm" => expects(&["rule"]).map(|()| Ask::Disarm(rule)),
            "release" => match self.request {
                Some(request) => expects(&["request"]).map(|()| Ask::ReleaseOne(request)),
                None => expects(&["rule"]).map(|()| Ask::Release(rule)),
            },
            "set-state" => {
                expects(&["state"])?;
                let state = self.state.clone();
                state.map(Ask::SetState).ok_or("'state' is missing".into())
            }
            "query" => expects(&[]).map(|()| Ask::Query),
            "status" => expects(&[]).map(|()| Ask::Status),
            "wait" => {
                let limit = self.limit_ms.unwrap_or(WAIT_MAX_MS).min(WAIT_MAX_MS);
                let what = match (&self.state, self.held, rule, self.fired) {
                    (Some(state), None, None, None) => WaitFor::State(state.clone()),
                    (None, Some(held), None, None) => WaitFor::Held(held),
                    (None, None, Some(rule), Some(fired)) => WaitFor::Fired(rule, fired),
                    _ => {
                        return Err(
                            "'wait' goes with 'state', or 'held', or 'rule' and 'fired'".into()
                        );
                    }
                };
                expects(&["rule", "state", "held", "fired", "limit_ms"])?;
                Ok(Ask::Wait(what, limit))
            }
            other => {
                let other: String = other.chars().take(40).collect();
                Err(format!(
                    "'{}' is no verb, expected arm, disarm, release, set-state, query, status or wait",
                    other.escape_debug()
                ))
            }
        }
    }
}

/// An answer. What was not asked for is left out.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
pub struct Answer {
    /// [`VERSION`].
    pub wtblk: u32,
    /// It was done, or could be told.
    pub ok: bool,
    /// Why not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// Release: how many requests were let go.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub released: Option<u64>,
    /// Wait: it is so; false: not yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reached: Option<bool>,
    /// Status.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<Standing>,
    /// Query: what is in flight, in the order of queues and submission.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub requests: Option<Vec<InFlight>>,
    /// Query: there are more than [`LIST_MAX`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub more: Option<u64>,
}

impl Answer {
    /// Done, nothing to tell.
    pub fn ok() -> Answer {
        Answer {
            wtblk: VERSION,
            ok: true,
            ..Answer::default()
        }
    }

    /// Not done.
    pub fn error(why: impl Into<String>) -> Answer {
        Answer {
            wtblk: VERSION,
            error: Some(why.into()),
            ..Answer::default()
        }
    }
}

/// How things stand.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
pub struct Standing {
    /// `ok`, `gone` or `cut`.
    pub device: String,
    /// The state that the rules are in; empty without rules.
    pub state: String,
    /// Requests held, those of groups among them.
    pub held: u64,
    /// Requests that hang until their ring stops.
    pub hung: u64,
    /// Requests taken and not completed.
    pub inflight: u64,
    /// The rules and their counters.
    pub rules: Vec<RuleStanding>,
    /// Groups that are under way or wait for more requests.
    pub groups: Vec<GroupStanding>,
    /// The volatile cache, where there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cache: Option<CacheStanding>,
}

/// A rule's counters.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
pub struct RuleStanding {
    /// Its name.
    pub name: String,
    /// Requests that it is about.
    pub seen: u64,
    /// Requests that it fired on.
    pub fired: u64,
    /// Requests that it holds.
    pub held: u64,
    /// It may fire.
    pub armed: bool,
    /// It was released: it holds nothing until it is armed again.
    #[serde(default)]
    pub released: bool,
}

/// A group of requests with a planned order.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
pub struct GroupStanding {
    /// Its rule.
    pub rule: String,
    /// Requests that wait in it.
    pub waiting: u64,
    /// How many it is to have.
    pub size: u32,
}

/// The volatile cache's account.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
pub struct CacheStanding {
    /// Writes completed so far.
    pub completed: u64,
    /// Of these, not durable.
    pub volatile: u64,
    /// Made durable because the cache was full.
    pub spilled: u64,
    /// Memory in use, bytes.
    pub bytes: u64,
    /// The power was cut.
    pub frozen: bool,
}

/// A request in flight.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
pub struct InFlight {
    /// Its number, that of its `Submit`.
    pub request: u64,
    /// Its queue.
    pub queue: u16,
    /// `read`, `write`, `flush`, `get-id`, `discard`, `write-zeroes` or `other`.
    pub op: String,
    /// First sector.
    pub sector: u64,
    /// Length, bytes.
    pub bytes: u32,
    /// What it waits for: `store`, `delay`, `hold`, `order`, `hang` or `ending`.
    pub waits: String,
    /// The rule that fired on it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rule: Option<String>,
    /// Its call tag.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tag: Option<u16>,
    /// The marked call with that tag.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub call: Option<u64>,
    /// Its first byte in the file of the call, where an extent known at the call's begin tells.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file_offset: Option<u64>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Ask, String> {
        Line::read(text.as_bytes())
    }

    #[test]
    fn verbs_and_their_keys() {
        let arm = read(r#"{"wtblk":1,"verb":"arm","rule":"r"}"#);
        assert_eq!(arm, Ok(Ask::Arm(Some("r".into()))));
        let all = read(r#"{"wtblk":1,"verb":"release"}"#);
        assert_eq!(all, Ok(Ask::Release(None)));
        let one = read(r#"{"wtblk":1,"verb":"release","request":7}"#);
        assert_eq!(one, Ok(Ask::ReleaseOne(7)));
        let wait = read(r#"{"wtblk":1,"verb":"wait","rule":"r","fired":2,"limit_ms":99999}"#);
        assert_eq!(
            wait,
            Ok(Ask::Wait(WaitFor::Fired("r".into(), 2), WAIT_MAX_MS))
        );
        for (bad, why) in [
            (r#"{"wtblk":2,"verb":"arm"}"#, "schema 2"),
            (r#"{"verb":"arm"}"#, "wtblk"),
            (r#"{"wtblk":1,"verb":"dance"}"#, "no verb"),
            (
                r#"{"wtblk":1,"verb":"arm","state":"x"}"#,
                "'state' does not go",
            ),
            (
                r#"{"wtblk":1,"verb":"release","rule":"a","request":1}"#,
                "'rule' does not go",
            ),
            (r#"{"wtblk":1,"verb":"wait"}"#, "goes with"),
            (
                r#"{"wtblk":1,"verb":"wait","held":1,"request":1}"#,
                "'request' does not go",
            ),
            (r#"{"wtblk":1,"verb":"set-state"}"#, "missing"),
            (r#"{"wtblk":1,"verb":"arm","more":1}"#, "unknown field"),
            ("[]", "no JSON object"),
            ("", "no JSON object"),
            ("{", "EOF"),
        ] {
            let error = read(bad).unwrap_err();
            assert!(error.contains(why), "{bad}: {error}");
        }
    }

    #[test]
    fn lines_survive_the_way() {
        let mut line = Line::of("wait");
        line.held = Some(3);
        let text = serde_json::to_string(&line).unwrap();
        assert_eq!(text, r#"{"wtblk":1,"verb":"wait","held":3}"#);
        assert_eq!(read(&text), Ok(Ask::Wait(WaitFor::Held(3), WAIT_MAX_MS)));
        let answer = Answer::error("no");
        let text = serde_json::to_string(&answer).unwrap();
        assert_eq!(text, r#"{"wtblk":1,"ok":false,"error":"no"}"#);
        assert_eq!(serde_json::from_str::<Answer>(&text).unwrap(), answer);
    }
}
