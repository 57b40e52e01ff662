// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What no device can beat: the copy of the data, and a loop that does nothing
//! with a request but give it back.

use std::hint::black_box;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU16, Ordering};
use std::time::{Duration, Instant};

use anyhow::Result;

use crate::backend::{BACKEND_CPU, Backend, CLIENT_CPU, Kind, Level, Spec, pin};
use crate::client::{BareRing, Client, Job};
use crate::plan::SIZE;

/// Nanoseconds of a copy between 32 buffers and a place of a disk in memory.
#[derive(Clone, Copy, Debug, Default, serde::Serialize)]
pub struct Limits {
    /// 4 KiB at random places.
    pub copy_4k_ns: f64,
    /// 128 KiB, one after the other.
    pub copy_128k_ns: f64,
    /// Requests a second of 4 KiB through a ring whose other side only gives them back: reads and
    /// writes at depth 32, reads at depth 1.
    pub bare_read: f64,
    pub bare_write: f64,
    pub bare_read_1: f64,
}

/// Takes and gives back, all that is there at once, until told to end. The other side in this
/// process is `Client::bare`.
fn echo(ring: &BareRing, stop: &AtomicBool) {
    let size = usize::from(ring.size);
    // SAFETY: the three parts are as long as a queue of this size has them (virtio 1.3, 2.7) and
    // never unmapped; the client keeps to the order of the standard: what an index shows is
    // written, and what we have is not changed. Indices go through atomics.
    unsafe {
        let avail_idx = &*ring.avail.add(2).cast::<AtomicU16>();
        let used_idx = &*ring.used.add(2).cast::<AtomicU16>();
        let mut next = 0u16;
        while !stop.load(Ordering::Relaxed) {
            let idx = avail_idx.load(Ordering::Acquire);
            if idx == next {
                std::hint::spin_loop();
                continue;
            }
            while next != idx {
                let at = usize::from(next) % size;
                let head = ring.avail.add(4 + 2 * at).cast::<u16>().read_volatile();
                let mut desc = ring.desc.add(16 * usize::from(head));
                // The last of the chain is the status byte.
                while desc.add(12).cast::<u16>().read_volatile() & 1 != 0 {
                    let next = desc.add(14).cast::<u16>().read_volatile();
                    desc = ring.desc.add(16 * usize::from(next));
                }
                let status = desc.cast::<u64>().read_volatile() as *mut u8;
                status.write_volatile(0);
                let entry = ring.used.add(4 + 8 * at).cast::<u32>();
                entry.write_volatile(u32::from(head));
                entry.add(1).write_volatile(1);
                next = next.wrapping_add(1);
            }
            used_idx.store(next, Ordering::Release);
        }
    }
}

fn bare(socket: &Path, write: bool, depth: usize) -> Result<f64> {
    let (mut client, ring) = Client::bare(socket, depth, 4096)?;
    let stop = Arc::new(AtomicBool::new(false));
    let told = stop.clone();
    let other = std::thread::spawn(move || {
        let pinned = pin(BACKEND_CPU);
        echo(&ring, &told);
        pinned
    });
    let job = Job {
        write,
        sequential: false,
        bytes: 4096,
        depth,
        span: SIZE,
        ioprio: 0,
    };
    client.run(&job, Duration::from_millis(30))?;
    let stretch = client.run(&job, Duration::from_millis(250))?;
    stop.store(true, Ordering::Relaxed);
    if let Ok(pinned) = other.join() {
        pinned?;
    }
    Ok(stretch.requests as f64 / stretch.time.as_secs_f64())
}

/// Measures them on the back end's CPU; `dir` is for a socket.
pub fn measure(dir: &Path) -> Result<Limits> {
    pin(BACKEND_CPU)?;
    let mut disk = vec![1u8; SIZE as usize];
    let mut limits = Limits {
        copy_4k_ns: copy(&mut disk, 4 << 10, 20_000, true),
        copy_128k_ns: copy(&mut disk, 128 << 10, 2_000, false),
        ..Limits::default()
    };
    pin(CLIENT_CPU)?;
    let spec = Spec {
        name: "bare".into(),
        kind: Kind::Ours {
            program: env!("CARGO_BIN_EXE_wtblk").into(),
            args: vec!["--memory".into(), "1M".into()],
            level: Level::Off,
        },
        queues: 1,
    };
    let device = Backend::start(&spec, &dir.join("bare"))?;
    let socket = device.socket();
    limits.bare_read = bare(&socket, false, 32)?;
    limits.bare_write = bare(&socket, true, 32)?;
    limits.bare_read_1 = bare(&socket, false, 1)?;
    Ok(limits)
}

fn copy(disk: &mut [u8], bytes: usize, times: usize, random: bool) -> f64 {
    let guest = vec![7u8; 32 * bytes];
    let places = disk.len() / bytes;
    let mut rng = 1u64;
    let begun = Instant::now();
    for n in 0..times {
        rng = rng.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        let place = if random { (rng >> 33) as usize } else { n } % places * bytes;
        let from = n % 32 * bytes;
        disk[place..place + bytes].copy_from_slice(&guest[from..from + bytes]);
    }
    black_box(&disk);
    begun.elapsed().as_nanos() as f64 / times as f64
}
