// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What lies before the reading of a message: the crate that reads them waits without a limit
//! for the rest of one that has begun, and for room for its answer. So it is let at a message only
//! when the whole of it is there and an answer finds room; a front end that keeps us waiting for
//! either loses its connection, and the next one is served.

use std::io::{self, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};
use nix::unistd::close;
use vhost::vhost_user::message::{FrontendReq, MAX_ATTACHED_FD_ENTRIES, MAX_MSG_SIZE};

/// A message that has begun must be there so soon, room for its answer too.
pub(super) const MESSAGE_LIMIT: Duration = Duration::from_secs(5);
/// Who has not said a word has so long from when somebody else waits.
pub(super) const WORD_LIMIT: Duration = Duration::from_secs(10);

/// Request, flags, and the size of the body, 32 bits each.
const HEADER: usize = 12;
/// As many descriptors as the kernel lets anybody send (SCM_MAX_FD).
const SCM_MAX_FD: usize = 253;

/// See the module. Of one connection.
pub(super) struct Gate {
    stream: UnixStream,
    /// Tells each time that more bytes have come, or that no more will.
    more: Epoll,
    /// No more will come.
    ended: bool,
    /// What the header of the last message said that it is.
    code: u32,
}

/// What waiting came to.
enum Waited {
    Ready,
    Over,
}

impl Gate {
    pub fn new(stream: UnixStream) -> io::Result<Gate> {
        let more = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        let flags = EpollFlags::EPOLLIN | EpollFlags::EPOLLRDHUP | EpollFlags::EPOLLET;
        more.add(&stream, EpollEvent::new(flags, 0))?;
        Ok(Gate {
            stream,
            more,
            ended: false,
            code: 0,
        })
    }

    /// The last message, by the name that the protocol has for it.
    pub fn name(&self) -> String {
        match FrontendReq::try_from(self.code) {
            Ok(known) => format!("{known:?}"),
            Err(_) => format!("message {}", self.code),
        }
    }

    /// Waits for the front end's first word, without a limit until somebody else waits at the
    /// listening socket.
    pub fn first(&mut self, others: BorrowedFd<'_>) -> Result<(), String> {
        let mut fds = [
            PollFd::new(self.stream.as_fd(), PollFlags::POLLIN),
            PollFd::new(others, PollFlags::POLLIN),
        ];
        while let Err(Errno::EINTR) = poll(&mut fds, PollTimeout::NONE) {}
        if fds[0].any() == Some(true) {
            return Ok(());
        }
        match self.wait(PollFlags::POLLIN, Some(WORD_LIMIT)) {
            Waited::Ready => Ok(()),
            Waited::Over => Err(format!(
                "not a word in {} s while another front end waits",
                WORD_LIMIT.as_secs()
            )),
        }
    }

    /// Waits for a message, as long as it takes, and for all of it, which is limited. What is wrong
    /// with it, or with who does not take our answers.
    pub fn message(&mut self) -> Result<(), String> {
        let _ = self.wait(PollFlags::POLLIN, None);
        self.whole()?;
        match self.wait(PollFlags::POLLOUT, Some(MESSAGE_LIMIT)) {
            Waited::Ready => Ok(()),
            Waited::Over => Err(format!(
                "bad peer: it has not read our answers for {} s",
                MESSAGE_LIMIT.as_secs()
            )),
        }
    }

    fn wait(&self, what: PollFlags, limit: Option<Duration>) -> Waited {
        let until = limit.map(|limit| Instant::now() + limit);
        loop {
            let mut fds = [PollFd::new(self.stream.as_fd(), what)];
            let timeout = until.map_or(PollTimeout::NONE, |until| {
                let left = until.saturating_duration_since(Instant::now());
                PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX)
            });
            match poll(&mut fds, timeout) {
                Ok(0) => return Waited::Over,
                Err(Errno::EINTR) => {}
                // What is wrong with the connection whoever reads finds out.
                Ok(_) | Err(_) => return Waited::Ready,
            }
        }
    }

    /// Waits until all of the message is there that has begun, or until no more will come (which
    /// whoever reads finds out).
    fn whole(&mut self) -> Result<(), String> {
        let until = Instant::now() + MESSAGE_LIMIT;
        let mut need = HEADER;
        let mut known = false;
        loop {
            let Ok(have) = rustix::io::ioctl_fionread(&self.stream) else {
                return Ok(());
            };
            if have >= HEADER as u64 && !known {
                known = true;
                // A longer one is refused for its header alone.
                match self.body()? {
                    Some(len) if len <= MAX_MSG_SIZE => need = HEADER + len,
                    _ => return Ok(()),
                }
            }
            // Messages behind it count as well, but these come after its end.
            if have >= need as u64 || self.ended {
                return Ok(());
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(format!(
                    "bad message: {have} of its {need} bytes came in {} s",
                    MESSAGE_LIMIT.as_secs()
                ));
            }
            let mut events = [EpollEvent::empty()];
            let timeout = EpollTimeout::try_from(left + Duration::from_millis(1));
            let timeout = timeout.unwrap_or(EpollTimeout::MAX);
            if let Ok(1) = self.more.wait(&mut events, timeout) {
                let over = EpollFlags::EPOLLRDHUP | EpollFlags::EPOLLHUP | EpollFlags::EPOLLERR;
                self.ended |= events[0].events().intersects(over);
            }
        }
    }

    /// Looks at the header: the size of the body that it announces. The crate that reads messages
    /// takes 32 descriptors; with more it forgets the message and goes on with what follows it.
    fn body(&mut self) -> Result<Option<usize>, String> {
        let mut header = [0; HEADER];
        let mut iov = [IoSliceMut::new(&mut header)];
        let mut space = nix::cmsg_space!([RawFd; SCM_MAX_FD]);
        let flags = MsgFlags::MSG_PEEK | MsgFlags::MSG_CMSG_CLOEXEC | MsgFlags::MSG_DONTWAIT;
        let fd = self.stream.as_raw_fd();
        let Ok(message) = recvmsg::<()>(fd, &mut iov, Some(&mut space), flags) else {
            return Ok(None);
        };
        let mut count = 0;
        for part in message.cmsgs().into_iter().flatten() {
            if let ControlMessageOwned::ScmRights(fds) = part {
                count += fds.len();
                // They are copies.
                for fd in fds {
                    let _ = close(fd);
                }
            }
        }
        let cut = message.flags.contains(MsgFlags::MSG_CTRUNC);
        let bytes = message.bytes;
        if count > MAX_ATTACHED_FD_ENTRIES {
            return Err(format!(
                "bad message: {count} descriptors came with it, too many (at most {MAX_ATTACHED_FD_ENTRIES})"
            ));
        }
        if cut {
            // There is room for as many as can be sent.
            return Err(format!(
                "bad message: more than {count} descriptors came with it, and this process can have no more: Too many open files"
            ));
        }
        if bytes < HEADER {
            // Descriptors end what is read at once: they come with the first byte of a message.
            return Err("bad message: descriptors in the middle of its header".into());
        }
        self.code = u32::from_le_bytes([header[0], header[1], header[2], header[3]]);
        let size = [header[8], header[9], header[10], header[11]];
        Ok(Some(u32::from_le_bytes(size) as usize))
    }
}
