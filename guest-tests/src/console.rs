// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The console: KTAP lines, as records of the kernel's own log. A write to the
//! tty and a printk share the serial port byte by byte, and a line of the one
//! can fall into a line of the other; two records of one log cannot.

use std::fs::File;
use std::io::{self, Write};
use std::sync::OnceLock;

static CONSOLE: OnceLock<File> = OnceLock::new();
static LOG: OnceLock<File> = OnceLock::new();

/// Longest piece of a line: a record of the log takes 1024 bytes
/// (`PRINTKRB_RECORD_MAX` of `kernel/printk/printk_ringbuffer.h`).
const PIECE: usize = 900;

/// Opens the log, and the console for kernels without one (`CONFIG_PRINTK`),
/// once devtmpfs is there.
pub fn open() -> io::Result<()> {
    let console = File::options().write(true).open("/dev/console")?;
    let _ = CONSOLE.set(console);
    unlimited();
    if let Ok(log) = File::options().write(true).open("/dev/kmsg") {
        let _ = LOG.set(log);
    }
    Ok(())
}

/// Where the kernel says what may be written to the log; needs `CONFIG_SYSCTL`.
const LOG_RULE: &str = "/proc/sys/kernel/printk_devkmsg";

/// Takes away the kernel's limit of ten lines each five seconds, which would lose results. Where the
/// command line has fixed it (`printk.devkmsg=`) that stays, and is said where it is not `on`.
fn unlimited() {
    // The kernel wants the newline (`devkmsg_sysctl_set_loglvl` of `kernel/printk/printk.c`).
    let _ = std::fs::write(LOG_RULE, "on\n");
    let limited = |rule: String| rule.trim_end() != "on";
    if std::fs::read_to_string(LOG_RULE).is_ok_and(limited)
        && let Some(mut console) = CONSOLE.get()
    {
        let _ = console.write_all(
            b"# the kernel's log is limited: printk.devkmsg=on is missing on the command line\n",
        );
    }
}

/// Prints one line; a newline inside becomes a space. A line too long for the
/// log goes on in diagnostic lines.
pub fn line(text: &str) {
    let text = text.replace(['\n', '\r'], " ");
    let mut rest = text.as_str();
    let mut first = true;
    while first || !rest.is_empty() {
        let (piece, next) = rest.split_at(rest.floor_char_boundary(PIECE));
        rest = next;
        // One write is one record. Level 5 (notice): printed unless `quiet`.
        // Nobody is left to tell when the log itself fails.
        let more = if first { "" } else { "# " };
        let logged = LOG.get().is_some_and(|mut log| {
            let record = format!("<5>{more}{piece}\n");
            log.write_all(record.as_bytes()).is_ok()
        });
        if !logged {
            let bytes = format!("{more}{piece}\n");
            let _ = match CONSOLE.get() {
                Some(mut console) => console.write_all(bytes.as_bytes()),
                None => io::stdout().write_all(bytes.as_bytes()),
            };
        }
        first = false;
    }
}

/// Prints a diagnostic line.
pub fn diagnostic(text: &str) {
    line(&format!("# {text}"));
}

/// Waits until everything printed has left the machine. Opening the console
/// takes its lock, whose holder prints the rest of the log before it lets go.
pub fn drain() {
    drop(File::options().write(true).open("/dev/console"));
    if let Some(console) = CONSOLE.get() {
        crate::sys::drain(console);
    }
}
