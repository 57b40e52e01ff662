// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Sockets that a service manager hands over (sd_listen_fds(3)): descriptors
//! from 3 on, for the process that LISTEN_PID names.

use std::os::fd::RawFd;

use anyhow::{Result, bail};

/// The first descriptor that is handed over.
const FIRST: RawFd = 3;

/// The sockets of the disk and of the mark disk, as far as they are handed over: those named
/// `data` and `mark`, or, without names, the first and the second.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Handed {
    pub data: Option<RawFd>,
    pub mark: Option<RawFd>,
}

/// What this process was handed.
pub fn handed() -> Result<Handed> {
    let said = |name| std::env::var(name).ok();
    read(
        said("LISTEN_PID").as_deref(),
        said("LISTEN_FDS").as_deref(),
        said("LISTEN_FDNAMES").as_deref(),
        std::process::id(),
    )
}

fn read(pid: Option<&str>, fds: Option<&str>, names: Option<&str>, us: u32) -> Result<Handed> {
    // Meant for another process, one of our parents.
    if pid.and_then(|pid| pid.parse().ok()) != Some(us) {
        return Ok(Handed::default());
    }
    let count = match fds.unwrap_or("0").parse::<u8>() {
        Ok(count) => RawFd::from(count),
        Err(_) => bail!("LISTEN_FDS={}, expected a number", fds.unwrap_or_default()),
    };
    let names: Vec<&str> = names.unwrap_or_default().split(':').collect();
    let mut handed = Handed::default();
    for n in 0..count {
        let name = names.get(n as usize).copied().unwrap_or_default();
        let into = match (name, n) {
            ("data", _) => &mut handed.data,
            ("mark", _) => &mut handed.mark,
            // What systemd calls a socket that nobody named is the unit's name.
            (_, 0) if handed.data.is_none() => &mut handed.data,
            (_, 1) if handed.mark.is_none() => &mut handed.mark,
            _ => {
                bail!("{count} sockets are handed over, expected one named data and one named mark")
            }
        };
        if into.replace(FIRST + n).is_some() {
            bail!("two sockets named {name} are handed over");
        }
    }
    Ok(handed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn by_name_or_by_place_and_only_ours() {
        let read = |pid, fds, names| read(pid, fds, names, 77);
        let both = |data, mark| Handed {
            data: Some(data),
            mark: Some(mark),
        };
        assert_eq!(read(Some("77"), Some("2"), None).unwrap(), both(3, 4));
        let named = read(Some("77"), Some("2"), Some("mark:data")).unwrap();
        assert_eq!(named, both(4, 3));
        let one = read(Some("77"), Some("1"), Some("wtblk.socket")).unwrap();
        assert_eq!((one.data, one.mark), (Some(3), None));
        for (pid, fds) in [(None, None), (Some("78"), Some("2")), (Some("77"), None)] {
            assert_eq!(read(pid, fds, None).unwrap(), Handed::default());
        }
        assert!(read(Some("77"), Some("many"), None).is_err());
        assert!(read(Some("77"), Some("3"), None).is_err());
        assert!(read(Some("77"), Some("2"), Some("data:data")).is_err());
    }
}
