// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The Unix sockets that front ends connect to: made 0600 in place, a stale
//! one replaced only if nobody answers on it, removed at the end if still ours.

use std::fmt;
use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, UnixAddr, connect, getsockopt, listen, socket,
    sockopt,
};
use nix::sys::stat::{Mode, fchmod};

/// Where a front end comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// A socket to be made at this path.
    Path(PathBuf),
    /// An inherited socket, listening or connected.
    Fd(RawFd),
}

impl Address {
    /// The same for two ways to say the same.
    pub(super) fn place(&self) -> Address {
        let Address::Path(path) = self else {
            return self.clone();
        };
        let whole = std::path::absolute(path).unwrap_or_else(|_| path.clone());
        let folder = whole.parent().and_then(|p| fs::canonicalize(p).ok());
        Address::Path(match (folder, whole.file_name()) {
            (Some(folder), Some(name)) => folder.join(name),
            _ => whole,
        })
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Address::Path(path) => write!(f, "{}", path.display()),
            Address::Fd(fd) => write!(f, "fd {fd}"),
        }
    }
}

/// A socket that is open.
pub(super) enum Socket {
    /// With the file that goes when the socket does.
    Listening(UnixListener, #[allow(dead_code)] Option<Placed>),
    Connected(UnixStream),
}

/// A socket file of ours; removed with the value.
pub(super) struct Placed {
    path: PathBuf,
    /// Device and inode: somebody may have put another in its place.
    identity: (u64, u64),
}

impl Placed {
    fn folder(&self) -> PathBuf {
        match self.path.parent() {
            Some(folder) if !folder.as_os_str().is_empty() => folder.to_owned(),
            _ => PathBuf::from("."),
        }
    }
}

impl Drop for Placed {
    fn drop(&mut self) {
        let ours = fs::symlink_metadata(&self.path).map(|m| (m.dev(), m.ino()));
        if ours.is_ok_and(|found| found == self.identity) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

impl Socket {
    pub fn open(address: &Address) -> Result<Socket> {
        match address {
            Address::Path(path) => bind(path),
            Address::Fd(fd) => inherit(*fd),
        }
    }

    /// The folder of its file, which is removed with it.
    pub fn folder(&self) -> Option<PathBuf> {
        match self {
            Socket::Listening(_, Some(placed)) => Some(placed.folder()),
            Socket::Listening(_, None) | Socket::Connected(_) => None,
        }
    }

    pub fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Socket::Listening(listener, _) => listener.as_fd(),
            Socket::Connected(stream) => stream.as_fd(),
        }
    }
}

fn bind(path: &Path) -> Result<Socket> {
    let shown = path.display();
    if let Ok(found) = fs::symlink_metadata(path) {
        if !found.file_type().is_socket() {
            bail!("{shown} exists and is no socket");
        }
        if answers(path) {
            bail!("somebody answers on socket {shown}");
        }
        fs::remove_file(path).with_context(|| format!("cannot replace stale socket {shown}"))?;
    }
    let cannot = || format!("cannot make socket {shown}");
    let made = place(path).with_context(cannot)?;
    let found = fs::symlink_metadata(path)?;
    let placed = Placed {
        path: path.to_owned(),
        identity: (found.dev(), found.ino()),
    };
    // A umask may have taken rights away.
    fs::set_permissions(path, fs::Permissions::from_mode(0o600))
        .with_context(|| format!("cannot restrict socket {shown}"))?;
    listen(&made, Backlog::MAXALLOWABLE).with_context(cannot)?;
    Ok(Socket::Listening(UnixListener::from(made), Some(placed)))
}

/// A socket at this path that nobody but its owner could ever connect to: its file has the mode of
/// the socket's own inode (less the umask) from the moment when it is there.
fn place(path: &Path) -> nix::Result<OwnedFd> {
    let address = UnixAddr::new(path)?;
    let flags = SockFlag::SOCK_CLOEXEC;
    let made = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
    fchmod(&made, Mode::S_IRUSR | Mode::S_IWUSR)?;
    nix::sys::socket::bind(made.as_raw_fd(), &address)?;
    Ok(made)
}

/// Whether somebody listens there. He may be too busy to take one more, which is not waited for.
fn answers(path: &Path) -> bool {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let asked = UnixAddr::new(path).and_then(|address| {
        let asking = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
        connect(asking.as_raw_fd(), &address)
    });
    matches!(asked, Ok(()) | Err(Errno::EAGAIN))
}

fn inherit(fd: RawFd) -> Result<Socket> {
    if fd <= 2 {
        bail!("fd {fd} is standard input, output or error, not a socket");
    }
    // SAFETY: the number is only looked up; the borrow ends before the fd is owned.
    let borrowed = unsafe { BorrowedFd::borrow_raw(fd) };
    let kind = getsockopt(&borrowed, sockopt::SockType)
        .map_err(|e| anyhow::anyhow!("fd {fd} is not an open socket: {e}"))?;
    if kind != SockType::Stream {
        bail!("fd {fd} is a socket, but no stream");
    }
    let listening = getsockopt(&borrowed, sockopt::AcceptConn)
        .map_err(|e| anyhow::anyhow!("fd {fd} is not an open socket: {e}"))?;
    fcntl(borrowed, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC))?;
    // SAFETY: the fd is open (just checked) and was given to us by whoever started us;
    // nothing else in this process uses the number.
    let owned = unsafe { OwnedFd::from_raw_fd(fd) };
    if listening {
        return Ok(Socket::Listening(UnixListener::from(owned), None));
    }
    let stream = UnixStream::from(owned);
    if let Err(e) = stream.peer_addr() {
        bail!("fd {fd} is neither a listening nor a connected Unix socket: {e}");
    }
    Ok(Socket::Connected(stream))
}

/// Accepts, with a stream that blocks whatever the listener does.
pub(super) fn accept(listener: &UnixListener) -> io::Result<Option<UnixStream>> {
    match listener.accept() {
        Ok((stream, _)) => {
            stream.set_nonblocking(false)?;
            tracing::debug!(fd = stream.as_raw_fd(), "connected");
            Ok(Some(stream))
        }
        Err(e)
            if matches!(
                e.kind(),
                io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
            ) =>
        {
            Ok(None)
        }
        Err(e) => Err(e),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::IntoRawFd;

    fn error(result: Result<Socket>) -> String {
        result.err().map(|e| format!("{e:#}")).unwrap_or_default()
    }

    #[test]
    fn stale_sockets_are_replaced_live_ones_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        drop(UnixListener::bind(&path).unwrap());
        let socket = bind(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        assert!(error(bind(&path)).contains("answers"));
        drop(socket);
        assert!(!path.exists());
        // Somebody whose backlog is full: connecting as usual would wait for him for ever.
        let busy = nix::sys::socket::socket(
            AddressFamily::Unix,
            SockType::Stream,
            SockFlag::empty(),
            None,
        );
        let busy = busy.unwrap();
        nix::sys::socket::bind(busy.as_raw_fd(), &UnixAddr::new(&path).unwrap()).unwrap();
        nix::sys::socket::listen(&busy, nix::sys::socket::Backlog::new(0).unwrap()).unwrap();
        let _first = UnixStream::connect(&path).unwrap();
        assert!(error(bind(&path)).contains("answers"));
        fs::remove_file(&path).unwrap();
        fs::write(&path, "x").unwrap();
        assert!(error(bind(&path)).contains("no socket"));
    }

    /// Before anything else was done to it, where nothing but us keeps rights back.
    #[test]
    fn a_socket_file_is_its_owners_from_the_first_moment() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        std::thread::scope(|s| {
            s.spawn(|| {
                // A umask of this thread's own.
                nix::sched::unshare(nix::sched::CloneFlags::CLONE_FS).unwrap();
                nix::sys::stat::umask(Mode::empty());
                let made = place(&path).unwrap();
                assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
                drop(made);
                fs::remove_file(&path).unwrap();
                // One that takes too much away.
                nix::sys::stat::umask(Mode::S_IRWXU);
                let socket = bind(&path).unwrap();
                assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
                UnixStream::connect(&path).unwrap();
                drop(socket);
            });
        });
    }

    #[test]
    fn a_socket_of_somebody_else_stays() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let socket = bind(&path).unwrap();
        fs::rename(&path, dir.path().join("t")).unwrap();
        let _other = UnixListener::bind(&path).unwrap();
        drop(socket);
        assert!(path.exists());
    }

    #[test]
    fn inherited_fds() {
        let (a, _b) = UnixStream::pair().unwrap();
        assert!(matches!(inherit(a.into_raw_fd()), Ok(Socket::Connected(_))));
        assert!(error(inherit(1)).contains("standard"));
        assert!(error(inherit(9999)).contains("not an open socket"));
    }
}
