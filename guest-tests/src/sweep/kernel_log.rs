// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What the kernel logs while a point runs. The console tells it too, but not at
//! which point; a reader of the log's records does.

use std::fs::File;
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::os::unix::fs::OpenOptionsExt as _;

/// Lines that are told of one point.
const MOST: usize = 20;
/// Letters of a line.
const LINE: usize = 240;
/// The level of warnings (`KERN_WARNING`); errors are below.
const WARNING: u32 = 4;

/// A reader of the log, from where it was opened.
pub struct KernelLog(Option<File>);

impl KernelLog {
    /// Opens it behind what was logged so far. A kernel without one tells nothing.
    pub fn open() -> KernelLog {
        let opened = File::options()
            .read(true)
            .custom_flags(libc::O_NONBLOCK)
            .open("/dev/kmsg");
        let at_end = |mut log: File| log.seek(SeekFrom::End(0)).map(|_| log);
        KernelLog(opened.and_then(at_end).ok())
    }

    /// The kernel's warnings and errors since the last look, added to `lines`.
    pub fn look(&mut self, lines: &mut Vec<String>) {
        let Some(log) = &mut self.0 else { return };
        // A record is longer than 8 KiB for nobody (`PRINTK_MESSAGE_MAX` is 2048).
        let mut record = [0; 8192];
        loop {
            match log.read(&mut record) {
                Ok(0) => return,
                Ok(n) => {
                    let text = String::from_utf8_lossy(record.get(..n).unwrap_or_default());
                    if let Some(line) = warning(&text)
                        && lines.len() < MOST
                    {
                        lines.push(line.chars().take(LINE).collect());
                    }
                }
                // Records were overwritten before they were read: the next is read on.
                Err(e) if e.raw_os_error() == Some(libc::EPIPE) => {}
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return,
            }
        }
    }
}

/// The text of a record `priority,number,time,flags;text`, where it is the kernel's own and a warning or worse.
fn warning(record: &str) -> Option<&str> {
    let (head, text) = record.split_once(';')?;
    let priority: u32 = head.split(',').next()?.parse().ok()?;
    let (facility, level) = (priority >> 3, priority & 7);
    // Facility 0 is the kernel; our own lines are of facility 1.
    (facility == 0 && level <= WARNING).then(|| text.lines().next().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_kernels_own_warnings_count() {
        assert_eq!(
            warning("4,710,5140900,-;WARNING: CPU: 0\n SUBSYSTEM=x\n"),
            Some("WARNING: CPU: 0")
        );
        assert_eq!(
            warning("3,1,2,-;I/O error, dev vda"),
            Some("I/O error, dev vda")
        );
        assert_eq!(warning("6,1,2,-;XFS (vda): Mounting"), None);
        assert_eq!(warning("12,1,2,-;ours"), None);
        assert_eq!(warning("nothing"), None);
    }
}
