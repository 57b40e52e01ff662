// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Writing marks: one O_DIRECT write each, done when the device has taken it.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};

use wtblk_shared::disk::{STATE_LEN, STATE_OFFSET};
use wtblk_shared::mark::{MAGIC, Mark};

use crate::sys::{Pages, errno_name};

/// The mark disk.
pub struct Marks {
    disk: File,
    block: usize,
}

impl Marks {
    /// Opens it; `block` is its logical block size.
    pub fn open(path: &str, block: usize) -> io::Result<Marks> {
        let disk = File::options()
            .read(true)
            .write(true)
            .custom_flags(libc::O_DIRECT)
            .open(path)?;
        Ok(Marks { disk, block })
    }

    /// Sends a mark and waits until the device has taken it. A device that
    /// refuses a mark answers with an I/O error.
    pub fn post(&self, mark: &Mark) -> Result<(), String> {
        let line = || {
            let mut line = mark.to_line();
            line.truncate(80);
            line
        };
        let block = mark
            .to_block(self.block)
            .ok_or_else(|| format!("mark too long: {}", line()))?;
        // A buffer of its own per mark: several threads send at the same time.
        let mut pages = Pages::new(block.len().next_multiple_of(4096))
            .map_err(|e| format!("mark buffer: {e}"))?;
        pages.bytes_mut()[..block.len()].copy_from_slice(&block);
        match self.disk.write_at(&pages.bytes()[..block.len()], 0) {
            Ok(n) if n == block.len() => Ok(()),
            Ok(n) => Err(format!(
                "mark cut at {n} of {} bytes: {}",
                block.len(),
                line()
            )),
            Err(e) => Err(format!(
                "the device refused the mark ({}): {}",
                errno_name(i64::from(e.raw_os_error().unwrap_or(libc::EIO))),
                line()
            )),
        }
    }

    /// What the device says of itself; `None` where the disk is not one of wtblk's.
    pub fn state(&self) -> Option<BTreeMap<String, String>> {
        let mut page = Pages::new(STATE_LEN).ok()?;
        self.disk
            .read_exact_at(page.bytes_mut(), STATE_OFFSET)
            .ok()?;
        parse_state(page.bytes())
    }
}

/// Parses the state page: `wtblk/1 state key=value ...\n`, NUL padded.
pub fn parse_state(page: &[u8]) -> Option<BTreeMap<String, String>> {
    let end = page.iter().position(|&b| b == b'\n')?;
    let mut words = std::str::from_utf8(&page[..end]).ok()?.split(' ');
    if words.next()? != MAGIC || words.next()? != "state" {
        return None;
    }
    Some(
        words
            .filter_map(|w| w.split_once('='))
            .map(|(k, v)| (k.to_owned(), v.to_owned()))
            .collect(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_state_page_is_read() {
        let mut page = b"wtblk/1 state seq=71 held=1 inflight=2 wait=none\n".to_vec();
        page.resize(4096, 0);
        let state = parse_state(&page).unwrap();
        assert_eq!(state["held"], "1");
        assert_eq!(state["wait"], "none");
    }

    #[test]
    fn somebody_elses_disk_has_no_state() {
        assert_eq!(parse_state(&[0; 4096]), None);
        assert_eq!(parse_state(b"wtblk/1 boot\n"), None);
    }
}
