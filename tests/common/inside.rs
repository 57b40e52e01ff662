// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The device inside the test's own process, with decisions that the test
//! makes: a `Plan` for each request, without any scenario. The connection is
//! as real as any.

use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use wtblk::device::{Address, Backing, Plans, Recording, ServeConfig, Wrap, serve};
use wtblk::fault::request::{Decision, Plan, Request};
use wtblk::fault::{SectorRange, Shape};

use super::driver::Driver;
use super::serve::Trace;
use super::until;

pub const SIZE: u64 = 16 << 20;

pub struct Inside {
    dir: tempfile::TempDir,
    thread: Option<JoinHandle<()>>,
    /// Ends the device when it is dropped.
    life: Option<UnixStream>,
}

/// A decision of rule 0, named `plan`.
pub fn decision(plan: Plan) -> Decision {
    Decision {
        rule: 0,
        name: "plan".into(),
        plan,
    }
}

impl Inside {
    /// A device over an image; `plans` is asked about each request. `kept`: ranges for stale reads.
    pub fn start(
        queues: u16,
        kept: Vec<SectorRange>,
        volatile_cache: bool,
        plans: impl FnMut(&Request) -> Option<Plan> + Send + 'static,
    ) -> Inside {
        Inside::start_with(queues, kept, volatile_cache, plans, None)
    }

    /// The same with a layer of the test's own on the store.
    pub fn start_with(
        queues: u16,
        kept: Vec<SectorRange>,
        volatile_cache: bool,
        mut plans: impl FnMut(&Request) -> Option<Plan> + Send + 'static,
        wrap: Option<Wrap>,
    ) -> Inside {
        let dir = tempfile::tempdir().unwrap();
        let plans: Plans = Arc::new(Mutex::new(move |request: &Request| {
            plans(request).map(decision)
        }));
        let config = ServeConfig {
            socket: Address::Path(dir.path().join("data")),
            mark_socket: Some(Address::Path(dir.path().join("mark"))),
            backing: Backing::Image(dir.path().join("image"), Some(SIZE)),
            more: Vec::new(),
            scenarios: Vec::new(),
            trace: Some(dir.path().join("trace")),
            continue_trace: false,
            poison: false,
            shape: Shape {
                queues: Some(queues),
                ..Shape::default()
            },
            recording: Recording::default(),
            seed: 0,
            control: Some(dir.path().join("control")),
            volatile_cache,
            poll: wtblk::device::Poll::Auto,
            aio: wtblk::store::Aio::Auto,
            unlocked: false,
            sandbox: wtblk::sandbox::Sandbox::On,
            marks_per_second: wtblk::device::MARKS_PER_SECOND,
            plans: Some(plans),
            wrap,
            kept,
            end: None,
        };
        let (life, end) = UnixStream::pair().unwrap();
        let config = ServeConfig {
            end: Some(Arc::new(end)),
            ..config
        };
        let thread = std::thread::spawn(move || serve(config).unwrap());
        let inside = Inside {
            dir,
            thread: Some(thread),
            life: Some(life),
        };
        for made in ["data", "mark"] {
            let path = inside.path(made);
            until("the sockets", || path.exists().then_some(()));
        }
        inside
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn connect(&self, name: &str) -> UnixStream {
        let path = self.path(name);
        until("a socket that answers", || UnixStream::connect(&path).ok())
    }

    pub fn data(&self, queues: usize) -> Driver {
        Driver::connect(self.connect("data"), queues)
    }

    pub fn mark(&self) -> Driver {
        Driver::connect(self.connect("mark"), 1)
    }

    /// Bytes of the image file, now.
    pub fn image(&self, sector: u64, len: usize) -> Vec<u8> {
        use std::os::unix::fs::FileExt;
        let file = std::fs::File::open(self.path("image")).unwrap();
        let mut bytes = vec![0; len];
        file.read_exact_at(&mut bytes, sector * 512).unwrap();
        bytes
    }

    /// The orderly end; the events.
    pub fn end(&mut self) -> Trace {
        drop(self.life.take());
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
        Trace::read(&self.path("trace"))
    }
}

impl Drop for Inside {
    fn drop(&mut self) {
        drop(self.life.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
