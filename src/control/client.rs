// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The asking side of the control socket.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::{Answer, Line, WAIT_MAX_MS};

/// Longest answer that is taken: a list of requests with all their words stays below.
const ANSWER_MAX: u64 = 4 << 20;
/// Beyond the time that the device may take for a wait.
const MARGIN: Duration = Duration::from_secs(10);

/// A connection to a control socket.
pub struct Client(BufReader<UnixStream>);

impl Client {
    /// Connects.
    pub fn connect(path: &Path) -> Result<Client> {
        let stream = UnixStream::connect(path)
            .with_context(|| format!("nobody answers on control socket {}", path.display()))?;
        stream.set_read_timeout(Some(Duration::from_millis(WAIT_MAX_MS) + MARGIN))?;
        stream.set_write_timeout(Some(MARGIN))?;
        Ok(Client(BufReader::new(stream)))
    }

    /// Asks and waits for the answer, as it came and as it is understood.
    pub fn ask(&mut self, line: &Line) -> Result<(String, Answer)> {
        let mut text = serde_json::to_vec(line)?;
        text.push(b'\n');
        let sent = self.0.get_mut().write_all(&text);
        // A device that has refused the connection has said why before it closed it.
        let mut answer = String::new();
        let read = self.0.by_ref().take(ANSWER_MAX).read_line(&mut answer);
        if !answer.ends_with('\n') {
            sent.context("cannot ask")?;
            read.context("no answer")?;
            bail!("the device has closed the control connection");
        }
        answer.pop();
        let understood = serde_json::from_str(&answer);
        let understood = understood.with_context(|| format!("no answer of ours: {answer}"))?;
        Ok((answer, understood))
    }
}
