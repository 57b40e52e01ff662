// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The control socket: a thread that accepts, and one per connection. They
//! give orders as the mark disk does; no queue ever waits for them. Whoever
//! connects is checked, and has limits for everything.

use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{getsockopt, sockopt};
use nix::unistd::geteuid;
use wtblk_shared::mark::{Control, Mark};

use super::hub::Hub;
use super::orders;
use super::socket::{Socket, accept};
use super::wake::Wake;
use crate::control::{Answer, Ask, InFlight, LINE_MAX, LIST_MAX, Line, WaitFor};
use crate::trace::event::{Body, DATA_DISK, DeviceKind, MarkEvent};

/// Most connections at once.
const CONNECTIONS: usize = 8;
/// A line that has begun must end so soon, an answer be taken so soon.
const LINE_LIMIT: Duration = Duration::from_secs(5);
/// A connection on which nothing is asked.
const IDLE_LIMIT: Duration = Duration::from_secs(600);
/// How soon a connection notices that the device ends.
const LOOK: Duration = Duration::from_millis(200);

struct Shared {
    hub: Arc<Hub>,
    connections: AtomicUsize,
    /// The trace was told that there were too many.
    said: AtomicBool,
    ending: AtomicBool,
}

/// The socket; closed and removed with the value.
pub(super) struct ControlSocket {
    shared: Arc<Shared>,
    wake: Arc<Wake>,
    thread: Option<thread::JoinHandle<()>>,
}

impl ControlSocket {
    /// Starts to serve.
    pub fn start(hub: Arc<Hub>, socket: Socket) -> io::Result<ControlSocket> {
        let shared = Arc::new(Shared {
            hub,
            connections: AtomicUsize::new(0),
            said: AtomicBool::new(false),
            ending: AtomicBool::new(false),
        });
        let wake = Arc::new(Wake::new()?);
        let (theirs, stop) = (shared.clone(), wake.clone());
        let thread = thread::Builder::new()
            .name("control".into())
            .spawn(move || listen(&theirs, &socket, &stop))?;
        Ok(ControlSocket {
            shared,
            wake,
            thread: Some(thread),
        })
    }
}

impl Drop for ControlSocket {
    fn drop(&mut self) {
        self.shared.ending.store(true, Ordering::SeqCst);
        self.wake.signal();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        // The connections' threads notice by themselves and touch nothing that ends.
    }
}

fn listen(shared: &Arc<Shared>, socket: &Socket, stop: &Wake) {
    let Socket::Listening(listener, _) = socket else {
        return;
    };
    while !shared.ending.load(Ordering::SeqCst) {
        let mut fds = [
            PollFd::new(stop.as_fd(), PollFlags::POLLIN),
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
            Ok(Some(stream)) => admit(shared, stream),
            Ok(None) => {}
            Err(error) => {
                tracing::error!(%error, "cannot accept a control connection");
                let _ = poll(&mut fds[..1], PollTimeout::from(200u8));
            }
        }
    }
}

fn admit(shared: &Arc<Shared>, mut stream: UnixStream) {
    let refuse = |stream: &mut UnixStream, why: &str| {
        tracing::warn!("control connection refused: {why}");
        let _ = stream.set_nonblocking(true);
        let _ = send(stream, &Answer::error(why));
    };
    let peer = getsockopt(&stream, sockopt::PeerCredentials);
    if peer.map_or(true, |peer| peer.uid() != geteuid().as_raw()) {
        return refuse(&mut stream, "only the owner of the device may control it");
    }
    if shared.connections.fetch_add(1, Ordering::SeqCst) >= CONNECTIONS {
        shared.connections.fetch_sub(1, Ordering::SeqCst);
        let why = format!("too many control connections, there are {CONNECTIONS}");
        if !shared.said.swap(true, Ordering::Relaxed) {
            let text = format!("{why}: the next ones are refused");
            let kind = DeviceKind::Limit;
            let most = CONNECTIONS as u64;
            shared.hub.event(DATA_DISK, 0, kind, most, 0, &text);
        }
        return refuse(&mut stream, &why);
    }
    let theirs = shared.clone();
    let spawned = thread::Builder::new()
        .name("control-conn".into())
        .spawn(move || {
            if let Err(error) = serve(&theirs, &mut stream) {
                tracing::debug!(%error, "control connection ended");
            }
            theirs.connections.fetch_sub(1, Ordering::SeqCst);
        });
    if let Err(error) = spawned {
        shared.connections.fetch_sub(1, Ordering::SeqCst);
        tracing::error!(%error, "cannot serve a control connection");
    }
}

fn send(stream: &mut UnixStream, answer: &Answer) -> io::Result<()> {
    let mut text = serde_json::to_vec(answer).map_err(io::Error::other)?;
    text.push(b'\n');
    stream.write_all(&text)
}

/// Serves a connection until it ends, says nonsense, or takes too long.
fn serve(shared: &Shared, stream: &mut UnixStream) -> io::Result<()> {
    stream.set_read_timeout(Some(LOOK))?;
    stream.set_write_timeout(Some(LINE_LIMIT))?;
    let mut have: Vec<u8> = Vec::new();
    let mut since = Instant::now();
    loop {
        if let Some(end) = have.iter().position(|&b| b == b'\n') {
            let line: Vec<u8> = have.drain(..=end).collect();
            let answer = match Line::read(&line[..end]) {
                Ok(ask) => obey(shared, ask),
                Err(why) => Answer::error(why),
            };
            send(stream, &answer)?;
            since = Instant::now();
            continue;
        }
        if have.len() >= LINE_MAX {
            return send(
                stream,
                &Answer::error(format!("a line of more than {LINE_MAX} bytes")),
            );
        }
        let limit = if have.is_empty() {
            IDLE_LIMIT
        } else {
            LINE_LIMIT
        };
        if since.elapsed() > limit || shared.ending.load(Ordering::SeqCst) {
            return Ok(());
        }
        let mut part = [0; LINE_MAX];
        let room = LINE_MAX - have.len();
        match stream.read(&mut part[..room]) {
            Ok(0) => return Ok(()),
            Ok(n) => {
                if have.is_empty() {
                    since = Instant::now();
                }
                have.extend_from_slice(&part[..n]);
            }
            Err(e) if is_nothing_yet(&e) => {}
            Err(e) => return Err(e),
        }
    }
}

fn is_nothing_yet(error: &io::Error) -> bool {
    use io::ErrorKind::{Interrupted, TimedOut, WouldBlock};
    matches!(error.kind(), WouldBlock | TimedOut | Interrupted)
}

fn obey(shared: &Shared, ask: Ask) -> Answer {
    let hub = &*shared.hub;
    match ask {
        Ask::Arm(rule) => rules(hub, Control::Arm(rule)),
        Ask::Disarm(rule) => rules(hub, Control::Disarm(rule)),
        Ask::Release(rule) => {
            let mut answer = rules(hub, Control::Release(rule.clone()));
            if answer.ok {
                answer.released = Some(orders::release(hub, rule.as_deref()));
            }
            answer
        }
        Ask::ReleaseOne(request) => match orders::release_one(hub, request) {
            true => Answer {
                released: Some(1),
                ..Answer::ok()
            },
            false => Answer::error(format!("request {request} is not held")),
        },
        Ask::SetState(state) => rules(hub, Control::SetState(state)),
        Ask::Query => query(hub),
        Ask::Status => Answer {
            status: Some(orders::standing(hub)),
            ..Answer::ok()
        },
        Ask::Wait(what, limit_ms) => wait(shared, &what, Duration::from_millis(limit_ms)),
    }
}

/// An order to the rules: known to the trace as the guest's own are, but tied to no request.
fn rules(hub: &Hub, control: Control) -> Answer {
    let mark = Mark::Control(control);
    if let Some(why) = orders::unknown(hub, &mark) {
        return Answer::error(why);
    }
    hub.mark(&mark);
    hub.trace.record(&Body::Mark(MarkEvent {
        line: mark.to_line(),
        ordered: false,
    }));
    Answer::ok()
}

fn query(hub: &Hub) -> Answer {
    let mut flights = orders::list(hub);
    let more = flights.len().saturating_sub(LIST_MAX);
    flights.truncate(LIST_MAX);
    let requests = flights.into_iter().map(|flight| {
        let request = flight.request;
        let tag = request.tag.map(|tag| tag.number());
        let found = tag.and_then(|tag| hub.find_call(tag, request.sector));
        InFlight {
            request: request.id,
            queue: request.queue,
            op: request.op.name().into(),
            sector: request.sector,
            bytes: request.bytes,
            waits: flight.waits.into(),
            rule: flight.rule,
            tag,
            call: found.map(|f| f.0),
            file_offset: found.and_then(|f| f.1),
        }
    });
    Answer {
        requests: Some(requests.collect()),
        more: (more > 0).then_some(more as u64),
        ..Answer::ok()
    }
}

fn wait(shared: &Shared, what: &WaitFor, limit: Duration) -> Answer {
    let hub = &*shared.hub;
    let control = match what {
        WaitFor::Fired(rule, n) => Control::WaitFired(rule.clone(), *n),
        WaitFor::State(state) => Control::WaitState(state.clone()),
        WaitFor::Held(held) => Control::WaitHeld(*held),
    };
    if let Some(why) = orders::unknown(hub, &Mark::Control(control)) {
        return Answer::error(why);
    }
    let ending = || shared.ending.load(Ordering::SeqCst).then_some(false);
    let reached = || orders::is_so(hub, what).then_some(true);
    let reached = hub.wait(Instant::now() + limit, || reached().or_else(ending));
    let reached = reached == Some(true);
    let text = orders::wait_text(what);
    let kind = DeviceKind::Wait;
    hub.event(DATA_DISK, 0, kind, u64::from(reached), hub.held(), &text);
    Answer {
        reached: Some(reached),
        ..Answer::ok()
    }
}
