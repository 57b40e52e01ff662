// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Telling a service manager how we are (sd_notify(3)): a datagram to the
//! socket that NOTIFY_SOCKET names.

use std::ffi::OsStr;
use std::io;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};

/// The way to whoever wants to know; found before the sandbox is entered, which has no way out.
pub(super) struct Manager(Option<UnixDatagram>);

impl Manager {
    pub fn find() -> Manager {
        let Some(socket) = std::env::var_os("NOTIFY_SOCKET") else {
            return Manager(None);
        };
        match connect(&socket) {
            Ok(datagram) => Manager(Some(datagram)),
            Err(error) => {
                tracing::warn!(%error, "cannot find the service manager at {}", socket.display());
                Manager(None)
            }
        }
    }

    /// Tells the state. Nobody waits for it, and a manager that has gone is no reason to end.
    pub fn tell(&self, state: &str) {
        if let Some(datagram) = &self.0
            && let Err(error) = datagram.send(state.as_bytes())
        {
            tracing::warn!(%error, "cannot tell the service manager: {state}");
        }
    }
}

fn connect(socket: &OsStr) -> io::Result<UnixDatagram> {
    let to = match socket.as_bytes() {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
        _ => SocketAddr::from_pathname(socket)?,
    };
    let datagram = UnixDatagram::unbound()?;
    datagram.set_nonblocking(true)?;
    datagram.connect_addr(&to)?;
    Ok(datagram)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn by_path_and_by_abstract_name() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("n");
        let at_path = UnixDatagram::bind(&path).unwrap();
        let tell = |name: &OsStr, state: &str| Manager(connect(name).ok()).tell(state);
        tell(path.as_os_str(), "READY=1");
        let name = format!("wtblk-test-{}", std::process::id());
        let address = SocketAddr::from_abstract_name(&name).unwrap();
        let by_name = UnixDatagram::bind_addr(&address).unwrap();
        tell(OsStr::new(&format!("@{name}")), "STOPPING=1");
        let mut said = [0; 20];
        for (socket, what) in [(at_path, "READY=1"), (by_name, "STOPPING=1")] {
            let n = socket.recv(&mut said).unwrap();
            assert_eq!(&said[..n], what.as_bytes());
        }
        assert!(connect(OsStr::new("/nowhere/at/all")).is_err());
    }
}
