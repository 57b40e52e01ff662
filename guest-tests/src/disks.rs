// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Finding our disks. By serial and never by name: the order of vda and vdb is
//! the order of the harness's arguments.

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// A disk and what sysfs says of it.
pub struct Disk {
    /// `/dev/NAME`.
    pub path: String,
    sys: PathBuf,
}

impl Disk {
    /// Waits until the disk with this serial is there, at most `limit`.
    pub fn find(serial: &str, limit: Duration) -> Result<Disk, String> {
        let start = Instant::now();
        loop {
            if let Some(disk) = look(serial) {
                return Ok(disk);
            }
            if start.elapsed() >= limit {
                return Err(format!(
                    "no disk with the serial '{serial}' after {} ms; disks here: {}",
                    limit.as_millis(),
                    all().unwrap_or_default().join(" ")
                ));
            }
            // State polling inside a limit: sysfs tells nobody when a disk comes.
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// A number or word below the disk's sysfs folder; "unknown" where there is none.
    pub fn fact(&self, name: &str) -> String {
        fs::read_to_string(self.sys.join(name))
            .map(|t| t.trim().to_owned())
            .unwrap_or_else(|_| "unknown".into())
    }

    /// Logical block size in bytes.
    pub fn logical_block(&self) -> u64 {
        self.fact("queue/logical_block_size").parse().unwrap_or(512)
    }

    /// Number of hardware queues.
    pub fn queues(&self) -> String {
        fs::read_dir(self.sys.join("mq"))
            .map(|d| d.count().to_string())
            .unwrap_or_else(|_| "unknown".into())
    }

    /// Switches the I/O scheduler off and gives the name of the one in use then.
    pub fn without_scheduler(&self) -> String {
        let file = self.sys.join("queue/scheduler");
        // A kernel without any scheduler still takes the word.
        let _ = fs::write(&file, "none");
        chosen(&self.fact("queue/scheduler"))
    }
}

/// The word in brackets of a sysfs choice; the whole where there are none.
pub fn chosen(text: &str) -> String {
    text.split_once('[')
        .and_then(|(_, rest)| rest.split_once(']'))
        .map_or(text, |(word, _)| word)
        .to_owned()
}

fn all() -> Option<Vec<String>> {
    let names = fs::read_dir("/sys/block").ok()?;
    Some(
        names
            .filter_map(|e| e.ok()?.file_name().into_string().ok())
            .collect(),
    )
}

fn look(serial: &str) -> Option<Disk> {
    all()?.into_iter().find_map(|name| {
        let sys = PathBuf::from("/sys/block").join(&name);
        let text = fs::read_to_string(sys.join("serial")).ok()?;
        let path = format!("/dev/{name}");
        (text.trim_end_matches(['\n', '\0', ' ']) == serial && fs::exists(&path).ok()?)
            .then_some(Disk { path, sys })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_choice_is_in_brackets() {
        assert_eq!(chosen("mq-deadline [none] kyber"), "none");
        assert_eq!(chosen("[none]"), "none");
        assert_eq!(chosen("none"), "none");
        assert_eq!(chosen("unknown"), "unknown");
    }
}
