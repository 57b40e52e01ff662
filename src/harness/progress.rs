// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Progress for people: a bar on a terminal, a line now and then elsewhere (CI logs).

use std::io::IsTerminal as _;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

/// Progress of one long step.
pub struct Progress {
    what: String,
    bar: Option<ProgressBar>,
    total: u64,
    done: u64,
    said: Instant,
    begun: Instant,
}

impl Progress {
    /// Begins a step of about `total` units (an estimate is good enough); 0: nobody knows how many.
    pub fn new(what: &str, total: u64) -> Progress {
        let template = "{prefix:24} [{bar:30}] {pos}/{len} {elapsed} {wide_msg}";
        Progress::with_template(what, total, template)
    }

    /// The same for many units alike: the bar tells how many a second there are, and the time left.
    pub fn with_rate(what: &str, total: u64) -> Progress {
        let template = "{prefix} [{bar:30}] {pos}/{len} {per_sec} left {eta} {wide_msg}";
        Progress::with_template(what, total, template)
    }

    fn with_template(what: &str, total: u64, template: &str) -> Progress {
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::new(total);
            let style = ProgressStyle::with_template(template);
            bar.set_style(
                style
                    .unwrap_or_else(|_| ProgressStyle::default_bar())
                    .progress_chars("=> "),
            );
            bar.set_prefix(what.to_owned());
            bar
        });
        if bar.is_none() {
            eprintln!("wtblk: {what} ...");
        }
        let now = Instant::now();
        Progress {
            what: what.to_owned(),
            bar,
            total,
            done: 0,
            said: now,
            begun: now,
        }
    }

    /// One unit more.
    pub fn step(&mut self, message: &str) {
        self.done += 1;
        if self.total > 0 {
            self.total = self.total.max(self.done);
        }
        match &self.bar {
            Some(bar) => {
                bar.set_length(self.total.max(self.done));
                bar.set_position(self.done);
                bar.set_message(message.to_owned());
            }
            None if self.said.elapsed() > Duration::from_secs(15) => {
                self.said = Instant::now();
                let far = match (self.done * 100).checked_div(self.total) {
                    Some(percent) => format!("{percent} %"),
                    None => message.to_owned(),
                };
                eprintln!(
                    "wtblk: {} ... {far} after {} s",
                    self.what,
                    self.begun.elapsed().as_secs()
                );
            }
            None => {}
        }
    }

    /// The step is over.
    pub fn end(self, how: &str) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
        eprintln!(
            "wtblk: {}: {how} ({:.1} s)",
            self.what,
            self.begun.elapsed().as_secs_f64()
        );
    }
}
