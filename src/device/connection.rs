// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! One thread per disk that serves its connections, one after the other: a
//! front end may go and the next one come.

use std::io;
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use vhost::vhost_user::{BackendReqHandler, Error};

use super::disk::Disk;
use super::gate::Gate;
use super::socket::{Socket, accept};
use super::transport::Handler;
use super::wake::Wake;
use super::worker::said;
use crate::trace::event::{DeviceKind, WENT};

/// Handles the message that has come.
pub(super) type Handle =
    fn(&mut BackendReqHandler<Mutex<Handler>>) -> vhost::vhost_user::Result<()>;

/// Ends a [`serve`] thread from another one.
pub(super) struct Stopper {
    stopping: AtomicBool,
    /// A rule closes the connection that is being served.
    hung_up: AtomicBool,
    /// Readable when it is time to end.
    wake: Wake,
    /// The connection that is being served.
    current: Mutex<Option<UnixStream>>,
}

impl Stopper {
    pub fn new() -> io::Result<Arc<Stopper>> {
        Ok(Arc::new(Stopper {
            stopping: AtomicBool::new(false),
            hung_up: AtomicBool::new(false),
            wake: Wake::new()?,
            current: Mutex::new(None),
        }))
    }

    /// The thread finishes what is in flight and ends.
    pub fn stop(&self) {
        self.stopping.store(true, Ordering::SeqCst);
        self.wake.signal();
        self.shut();
    }

    /// Closes the connection that is being served, as if the front end had; the next is served.
    pub fn hang_up(&self) {
        self.hung_up.store(true, Ordering::SeqCst);
        self.shut();
    }

    /// Readable when it is time to end.
    pub fn wake(&self) -> &Wake {
        &self.wake
    }

    fn shut(&self) {
        let current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(stream) = &*current {
            // Only our side hears of it: the front end keeps its connection until its requests
            // are completed.
            let _ = stream.shutdown(Shutdown::Read);
        }
    }

    pub fn stopping(&self) -> bool {
        self.stopping.load(Ordering::SeqCst)
    }

    fn hung_up(&self) -> bool {
        self.hung_up.load(Ordering::SeqCst)
    }

    fn set_current(&self, stream: Option<UnixStream>) {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        if let (true, Some(stream)) = (self.stopping(), &stream) {
            let _ = stream.shutdown(Shutdown::Read);
        }
        *current = stream;
    }
}

/// Starts the thread. It ends when stopped, or when the peer of a connected socket has gone;
/// `ended` is written then.
pub(super) fn serve(
    disk: Arc<Disk>,
    socket: Socket,
    stopper: Arc<Stopper>,
    ended: Arc<Wake>,
) -> io::Result<JoinHandle<()>> {
    let name = format!("{}-conn", disk.name);
    thread::Builder::new().name(name).spawn(move || {
        match socket {
            Socket::Connected(stream) => guarded(&disk, stream, None, &stopper),
            Socket::Listening(..) => listen(&disk, &socket, &stopper),
        }
        ended.signal();
    })
}

/// Serves one connection to its end, which a panic of ours is, too: it ends like one of which a
/// message was bad, and the thread is there for the next one.
fn guarded(
    disk: &Arc<Disk>,
    stream: UnixStream,
    others: Option<BorrowedFd<'_>>,
    stopper: &Arc<Stopper>,
) {
    let handle: Handle = BackendReqHandler::handle_request;
    let serve = || connection(disk, stream, others, stopper, handle);
    // What happens at a message is caught there, and its rings are stopped as usual.
    if let Err(panic) = catch_unwind(AssertUnwindSafe(serve)) {
        let why = format!("the device panicked: {}", said(&*panic));
        tracing::error!(disk = disk.name, "{why}");
        Handler::new(disk.clone(), stopper.clone()).stop_all();
        if let Some(state) = &disk.state {
            state.outage.closed();
        }
        stopper.hung_up.store(false, Ordering::SeqCst);
        let number = disk.connections.load(Ordering::Relaxed);
        let kind = DeviceKind::Disconnected;
        disk.hub.event(disk.number, 0, kind, number, 0, &why);
        stopper.set_current(None);
    }
}

fn listen(disk: &Arc<Disk>, socket: &Socket, stopper: &Arc<Stopper>) {
    let Socket::Listening(listener, _) = socket else {
        return;
    };
    let mut said = false;
    while !stopper.stopping() {
        let mut fds = [
            PollFd::new(stopper.wake.as_fd(), PollFlags::POLLIN),
            PollFd::new(socket.as_fd(), PollFlags::POLLIN),
        ];
        match poll(&mut fds, PollTimeout::NONE) {
            Ok(_) => {}
            Err(Errno::EINTR) => continue,
            Err(error) => return tracing::error!(%error, "poll"),
        }
        if fds[1].any() != Some(true) {
            continue;
        }
        match accept(listener) {
            Ok(Some(stream)) => {
                guarded(disk, stream, Some(socket.as_fd()), stopper);
                // What is still written for this one must not meet what the next one writes.
                disk.settle(stopper);
            }
            Ok(None) => {}
            Err(error) => {
                // Out of fds, most likely: the front end waits in the backlog meanwhile.
                tracing::error!(%error, disk = disk.name, "cannot accept a connection");
                if !std::mem::replace(&mut said, true) {
                    let text = format!("cannot accept a connection: {error}");
                    let kind = DeviceKind::Limit;
                    disk.hub.event(disk.number, 0, kind, 0, 0, &text);
                }
                let _ = poll(&mut fds[..1], PollTimeout::from(200u8));
            }
        }
    }
}

/// Serves one connection to its end; why it ended. `others`: where somebody else may wait meanwhile.
pub(super) fn connection(
    disk: &Arc<Disk>,
    stream: UnixStream,
    others: Option<BorrowedFd<'_>>,
    stopper: &Arc<Stopper>,
    handle: Handle,
) -> String {
    let event = |kind, a, text: &str| disk.hub.event(disk.number, 0, kind, a, 0, text);
    let number = disk.connections.fetch_add(1, Ordering::Relaxed) + 1;
    event(DeviceKind::Connected, number, "");
    tracing::info!(disk = disk.name, "front end {number} connected");
    let clones = || Ok::<_, io::Error>((stream.try_clone()?, Gate::new(stream.try_clone()?)?));
    let mut gate = match clones() {
        Ok((clone, gate)) => {
            stopper.set_current(Some(clone));
            gate
        }
        Err(error) => {
            // Out of fds, most likely. The front end sees its connection end.
            let why = format!("cannot serve the connection: {error}");
            event(DeviceKind::Disconnected, number, &why);
            tracing::error!(disk = disk.name, "front end {number}: {why}");
            return why;
        }
    };
    let handler = Arc::new(Mutex::new(Handler::new(disk.clone(), stopper.clone())));
    let mut requests = BackendReqHandler::from_stream(stream, handler.clone());
    let first = others.map_or(Ok(()), |others| gate.first(others));
    let mut messages = || loop {
        if let Err(why) = first.clone().and_then(|()| gate.message()) {
            break why;
        }
        match handle(&mut requests) {
            Ok(()) => {}
            // Our own shutdown looks like the peer's.
            Err(Error::Disconnected) if stopper.stopping() => break "stopping".to_owned(),
            Err(Error::Disconnected) if stopper.hung_up() => break "a rule".to_owned(),
            Err(Error::Disconnected) => break WENT.to_owned(),
            Err(Error::SocketBroken(e)) => break format!("{WENT}: {e}"),
            Err(error) => break format!("bad message: {}: {error}", gate.name()),
        }
    };
    let why = catch_unwind(AssertUnwindSafe(&mut messages));
    let why =
        why.unwrap_or_else(|panic| format!("bad message: the device panicked: {}", said(&*panic)));
    if why.starts_with("bad") || why.starts_with("not a word") {
        tracing::warn!(disk = disk.name, "front end {number}: {why}");
    }
    // The requests in flight are finished before the socket is closed.
    let mut rings = handler.lock().unwrap_or_else(PoisonError::into_inner);
    rings.stop_all();
    if let Some(state) = &disk.state {
        state.outage.closed();
    }
    stopper.hung_up.store(false, Ordering::SeqCst);
    event(DeviceKind::Disconnected, number, &why);
    tracing::info!(disk = disk.name, "front end {number} gone: {why}");
    stopper.set_current(None);
    why
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::config::Geometry;
    use crate::device::disk::handles;
    use crate::device::hub::Hub;
    use crate::device::settings::Recording;
    use crate::fault::Shape;
    use crate::trace::event::Body;
    use crate::trace::{TraceReader, TraceWriter};
    use std::io::{Read, Write};
    use std::sync::atomic::{AtomicU32, AtomicU64};

    /// The second message is one that our own code does not survive.
    #[test]
    fn a_panic_at_a_message_is_the_end_of_its_connection_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("trace");
        let trace = Arc::new(TraceWriter::create(&path).unwrap());
        let hub = Hub::new(trace.clone(), Vec::new(), None, &Recording::default());
        let (workers, _idle) = handles(0).unwrap();
        let disk = Arc::new(Disk {
            number: 0,
            name: "data".into(),
            hub: Arc::new(hub.unwrap()),
            geometry: Geometry::of(&Shape::default(), 64),
            state: None,
            start_writeback: true,
            workers,
            epochs: AtomicU32::new(0),
            connections: AtomicU64::new(0),
        });
        let stopper = Stopper::new().unwrap();
        let fails: Handle = |requests| {
            requests.handle_request()?;
            panic!("an error of ours")
        };
        let well: Handle = BackendReqHandler::handle_request;
        for (handle, answers) in [(fails, 0), (well, 20)] {
            let (mut front_end, stream) = UnixStream::pair().unwrap();
            // SET_OWNER, and GET_FEATURES, which is answered.
            let messages = [3u32, 1, 0, 1, 1, 0].map(u32::to_le_bytes).concat();
            front_end.write_all(&messages).unwrap();
            front_end.shutdown(Shutdown::Write).unwrap();
            connection(&disk, stream, None, &stopper, handle);
            let mut answer = Vec::new();
            let _ = front_end.read_to_end(&mut answer);
            assert_eq!(answer.len(), answers);
        }
        trace.close();
        let mut reader = TraceReader::open(&path).unwrap();
        let mut why = Vec::new();
        while let Some(event) = reader.next().unwrap() {
            if let Body::Device(event) = event.body
                && event.kind == DeviceKind::Disconnected
            {
                why.push(event.text);
            }
        }
        assert_eq!(
            why,
            ["bad message: the device panicked: an error of ours", WENT]
        );
    }
}
