// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Sockets that a service manager hands over (sd_listen_fds(3)): descriptors
//! from 3 on, for the process that LISTEN_PID names.

use std::os::fd::RawFd;

use anyhow::{Result, bail};

/// The first descriptor that is handed over.
const FIRST: RawFd = 3;

/// The sockets that are handed over: those named `data`, `mark` or like a `--disk`; or, where
/// nobody named them, the disk's and the mark disk's in this order.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Handed {
    pub data: Option<RawFd>,
    pub mark: Option<RawFd>,
    pub more: Vec<(String, RawFd)>,
}

/// What this process was handed. `more`: names of further disks; `unnamed`: sockets without a name
/// are welcome.
pub fn handed(more: &[&str], unnamed: bool) -> Result<Handed> {
    let said = |name| std::env::var(name).ok();
    let said = Said {
        pid: said("LISTEN_PID"),
        fds: said("LISTEN_FDS"),
        names: said("LISTEN_FDNAMES"),
    };
    said.read(std::process::id(), more, unnamed)
}

/// The environment's words.
struct Said {
    pid: Option<String>,
    fds: Option<String>,
    names: Option<String>,
}

/// Whether somebody gave a socket this name: systemd calls one that nobody named by its unit, and
/// by these words where it is of no unit.
fn is_name(name: &str) -> bool {
    !(name.is_empty() || name.ends_with(".socket") || ["unknown", "stored"].contains(&name))
}

impl Said {
    fn read(&self, us: u32, more: &[&str], unnamed: bool) -> Result<Handed> {
        let mut handed = Handed::default();
        // Meant for another process, one of our parents.
        if self.pid.as_ref().and_then(|pid| pid.parse().ok()) != Some(us) {
            return Ok(handed);
        }
        let fds = self.fds.as_deref().unwrap_or("0");
        let Ok(count) = fds.parse::<u8>().map(RawFd::from) else {
            bail!("LISTEN_FDS={fds}, expected a number");
        };
        let names: Vec<&str> = self
            .names
            .as_deref()
            .unwrap_or_default()
            .split(':')
            .collect();
        let named = names.iter().any(|name| is_name(name));
        for n in 0..count {
            let name = names.get(n as usize).copied().unwrap_or_default();
            let into = match (name, n) {
                ("data", _) => &mut handed.data,
                ("mark", _) => &mut handed.mark,
                _ if more.contains(&name) => {
                    let twice = handed.more.iter().any(|(other, _)| other == name);
                    if twice {
                        bail!("two sockets named {name} are handed over");
                    }
                    handed.more.push((name.to_owned(), FIRST + n));
                    continue;
                }
                _ if !named && !unnamed => continue,
                (_, 0) if !named => &mut handed.data,
                (_, 1) if !named => &mut handed.mark,
                _ => {
                    let known = ["data", "mark"].iter().chain(more).copied();
                    let known: Vec<&str> = known.collect();
                    bail!(
                        "a socket named '{}' is handed over as number {} of {count}, expected one each for {}",
                        name.escape_debug(),
                        n + 1,
                        known.join(", ")
                    )
                }
            };
            if into.replace(FIRST + n).is_some() {
                bail!("two sockets named {name} are handed over");
            }
        }
        Ok(handed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(pid: Option<&str>, fds: Option<&str>, names: Option<&str>) -> Result<Handed> {
        let said = Said {
            pid: pid.map(str::to_owned),
            fds: fds.map(str::to_owned),
            names: names.map(str::to_owned),
        };
        said.read(77, &["log"], true)
    }

    fn both(data: RawFd, mark: RawFd) -> Handed {
        Handed {
            data: Some(data),
            mark: Some(mark),
            more: Vec::new(),
        }
    }

    #[test]
    fn by_name_or_by_place_and_only_ours() {
        assert_eq!(read(Some("77"), Some("2"), None).unwrap(), both(3, 4));
        let named = read(Some("77"), Some("2"), Some("mark:data")).unwrap();
        assert_eq!(named, both(4, 3));
        let unit = Some("wtblk.socket:wtblk.socket");
        assert_eq!(read(Some("77"), Some("2"), unit).unwrap(), both(3, 4));
        let one = read(Some("77"), Some("1"), Some("wtblk.socket")).unwrap();
        assert_eq!((one.data, one.mark), (Some(3), None));
        for (pid, fds) in [(None, None), (Some("78"), Some("2")), (Some("77"), None)] {
            assert_eq!(read(pid, fds, None).unwrap(), Handed::default());
        }
        assert!(read(Some("77"), Some("many"), None).is_err());
        assert!(read(Some("77"), Some("3"), None).is_err());
        assert!(read(Some("77"), Some("2"), Some("data:data")).is_err());
    }

    #[test]
    fn further_disks_by_their_names_and_nobody_by_a_name_unknown() {
        let three = read(Some("77"), Some("3"), Some("log:data:mark")).unwrap();
        let more = vec![("log".to_owned(), 3)];
        assert_eq!(three, Handed { more, ..both(4, 5) });
        for (fds, names, what) in [
            ("2", "dta:mark", "'dta' is handed over as number 1 of 2"),
            ("2", "data:", "'' is handed over as number 2 of 2"),
            ("1", "dta", "data, mark, log"),
            ("2", "log:log", "two sockets named log"),
        ] {
            let error = read(Some("77"), Some(fds), Some(names)).unwrap_err();
            assert!(error.to_string().contains(what), "{error}");
        }
    }
}
