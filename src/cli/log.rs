// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Messages on standard error: those of the level asked for, and of each kind
//! only so many in a time. A guest that makes us say the same thing over and
//! over fills nobody's disk.

use std::collections::HashMap;
use std::io::IsTerminal as _;
use std::sync::{LazyLock, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tracing::callsite::Identifier;
use tracing::{Event, Metadata, Subscriber};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::ParseError;
use tracing_subscriber::layer::{Context, Filter, Layer as _, SubscriberExt as _};
use tracing_subscriber::util::SubscriberInitExt as _;

/// Messages of one kind (one place in the source) in a [`WINDOW`].
const MOST: u32 = 20;
const WINDOW: Duration = Duration::from_secs(5);

/// A level, or a filter of tracing-subscriber, as an option says it. There a word alone that is
/// no level is a target's name: a mistyped level would be taken, and nothing told.
pub(super) fn filter(words: &str) -> Result<String, String> {
    const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];
    for word in words.split(',') {
        let is_level = LEVELS.iter().any(|l| l.eq_ignore_ascii_case(word));
        let is_target = word.starts_with("wtblk") || word.contains(['=', ':', '[']);
        if !is_level && !is_target {
            return Err(format!(
                "no level {word:?}; there are {}",
                LEVELS.join(", ")
            ));
        }
    }
    EnvFilter::try_new(words).map_err(|e| e.to_string())?;
    Ok(words.to_owned())
}

/// Starts the log at this level (or with this filter of tracing-subscriber).
pub fn start(level: &str) -> Result<(), ParseError> {
    let filter = EnvFilter::try_new(level)?;
    // Who asks for everything gets everything.
    let all = ["debug", "trace"].iter().any(|word| level.contains(word));
    let layer = tracing_subscriber::fmt::layer()
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal());
    tracing_subscriber::registry()
        .with(filter)
        .with(layer.with_filter((!all).then_some(Limit)))
        .init();
    Ok(())
}

/// What was said of a kind in the window that began then.
struct Said {
    since: Instant,
    count: u32,
    /// Where they come from.
    of: &'static str,
}

/// A filter over [`KINDS`].
struct Limit;

/// What was said so far.
static KINDS: LazyLock<Mutex<HashMap<Identifier, Said>>> = LazyLock::new(Mutex::default);

/// At the end: how many were left out that nothing came after.
pub fn finish() {
    let mut kinds = KINDS.lock().unwrap_or_else(PoisonError::into_inner);
    for said in kinds.values_mut() {
        let left_out = std::mem::take(&mut said.count).saturating_sub(MOST);
        if left_out > 0 {
            eprintln!("{left_out} more messages of {} were left out", said.of);
        }
    }
}

/// Whether to say it, and how many were left out before it.
fn pass(said: &mut Said, now: Instant) -> (bool, u32) {
    let mut left_out = 0;
    if now.saturating_duration_since(said.since) >= WINDOW {
        left_out = said.count.saturating_sub(MOST);
        *said = Said {
            since: now,
            count: 0,
            of: said.of,
        };
    }
    said.count = said.count.saturating_add(1);
    (said.count <= MOST, left_out)
}

impl<S: Subscriber> Filter<S> for Limit {
    fn enabled(&self, _: &Metadata<'_>, _: &Context<'_, S>) -> bool {
        true
    }

    fn event_enabled(&self, event: &Event<'_>, _: &Context<'_, S>) -> bool {
        let place = event.metadata();
        let mut kinds = KINDS.lock().unwrap_or_else(PoisonError::into_inner);
        let said = kinds.entry(place.callsite()).or_insert_with(|| Said {
            since: Instant::now(),
            count: 0,
            of: place.target(),
        });
        let (pass, left_out) = pass(said, Instant::now());
        if left_out > 0 {
            eprintln!(
                "{} more messages like the next one of {} were left out",
                left_out,
                place.target()
            );
        }
        pass
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_level_or_a_filter_and_nothing_else() {
        for good in [
            "warn",
            "OFF",
            "wtblk=debug",
            "info,wtblk::store=trace",
            "wtblk",
        ] {
            assert_eq!(filter(good), Ok(good.to_owned()));
        }
        for bad in ["loud", "", "info,", "warn,loud", "wtblk=loud"] {
            assert!(filter(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_kind_says_so_much_in_a_window() {
        let begin = Instant::now();
        let mut said = Said {
            since: begin,
            count: 0,
            of: "here",
        };
        let passed = (0..1000).filter(|_| pass(&mut said, begin).0).count();
        assert_eq!(passed as u32, MOST);
        let later = begin + WINDOW;
        assert_eq!(pass(&mut said, later), (true, 1000 - MOST));
        assert_eq!(pass(&mut said, later), (true, 0));
    }
}
