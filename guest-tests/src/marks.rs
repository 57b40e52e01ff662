// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Writing marks: one O_DIRECT write each, done when the device has taken it.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::sync::{Mutex, MutexGuard, PoisonError};

use wtblk_shared::disk::{MARK_MAX, STATE_LEN, STATE_OFFSET};
use wtblk_shared::mark::{MAGIC, Mark};

use crate::sys::{Pages, errno_name};

/// The mark disk.
pub struct Marks {
    disk: File,
    block: usize,
    /// Buffers to be used again: whoever waits in the kernel for a page may hold the address
    /// space, and then no new one can be mapped.
    spare: Mutex<Vec<Pages>>,
}

impl Marks {
    /// Opens it; `block` is its logical block size.
    pub fn open(path: &str, block: usize) -> io::Result<Marks> {
        let disk = File::options()
            .read(true)
            .write(true)
            .custom_flags(libc::O_DIRECT)
            .open(path)?;
        Ok(Marks {
            disk,
            block,
            spare: Mutex::default(),
        })
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
        let mut pages = self.buffer().map_err(|e| format!("mark buffer: {e}"))?;
        pages.bytes_mut()[..block.len()].copy_from_slice(&block);
        let written = self.disk.write_at(&pages.bytes()[..block.len()], 0);
        self.spare(pages);
        match written {
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
        let mut page = self.buffer().ok()?;
        let bytes = &mut page.bytes_mut()[..STATE_LEN];
        let read = self.disk.read_exact_at(bytes, STATE_OFFSET).ok();
        let state = read.and_then(|()| parse_state(&page.bytes()[..STATE_LEN]));
        self.spare(page);
        state
    }

    /// Room for the longest mark, and for the state page.
    fn buffer(&self) -> io::Result<Pages> {
        match self.buffers().pop() {
            Some(pages) => Ok(pages),
            None => Pages::new(MARK_MAX.next_multiple_of(self.block).max(STATE_LEN)),
        }
    }

    fn spare(&self, pages: Pages) {
        self.buffers().push(pages);
    }

    fn buffers(&self) -> MutexGuard<'_, Vec<Pages>> {
        self.spare.lock().unwrap_or_else(PoisonError::into_inner)
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
