// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The kernel's own AIO (io_submit): several writes in one system call, which
//! the kernel collects under one plug.

use std::fs::File;
use std::io;
use std::mem::ManuallyDrop;
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use super::check;

/// IOCB_CMD_PWRITE and IOCB_FLAG_IOPRIO of `include/uapi/linux/aio_abi.h`.
const CMD_PWRITE: u16 = 1;
const FLAG_IOPRIO: u32 = 2;

/// `struct iocb`, little-endian layout.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Iocb {
    data: u64,
    key: u32,
    rw_flags: i32,
    opcode: u16,
    reqprio: i16,
    fd: u32,
    buf: u64,
    nbytes: u64,
    offset: i64,
    reserved: u64,
    flags: u32,
    resfd: u32,
}

/// `struct io_event`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct IoEvent {
    data: u64,
    obj: u64,
    res: i64,
    res2: i64,
}

/// Writes of one io_submit on their way. The kernel may still read the data of
/// those that have not come back: dropped before that, it is leaked.
pub struct Writes {
    ctx: libc::c_ulong,
    data: ManuallyDrop<Box<dyn Send>>,
    /// Submitted and not yet collected.
    left: usize,
}

impl Writes {
    /// Submits one write of `data` per offset, all in one call, with `RWF_*` flags.
    pub fn submit(
        file: &File,
        data: super::Pages,
        each: usize,
        offsets: &[u64],
        ioprio: Option<u16>,
        rw_flags: u32,
    ) -> io::Result<Writes> {
        assert!(each * offsets.len() <= data.len());
        let ioprios = vec![ioprio; offsets.len()];
        Writes::submit_each(file, data, each, offsets, &ioprios, rw_flags)
    }

    /// The same with a priority for each write.
    pub fn submit_each(
        file: &File,
        data: super::Pages,
        each: usize,
        offsets: &[u64],
        ioprios: &[Option<u16>],
        rw_flags: u32,
    ) -> io::Result<Writes> {
        assert!(each * offsets.len() <= data.len());
        let address = data.address(0);
        // SAFETY: so many bytes are mapped there as long as `data` lives, which it keeps.
        unsafe {
            Writes::submit_raw(
                file,
                address,
                Box::new(data),
                each,
                offsets,
                ioprios,
                rw_flags,
            )
        }
    }

    /// The same of memory that is no Rust slice: one write of `each` bytes per offset, one behind
    /// the other from `address` on.
    ///
    /// # Safety
    /// All of it must be mapped, or cause a fault that somebody serves, as long as `keep` lives.
    pub(super) unsafe fn submit_raw(
        file: &File,
        address: u64,
        keep: Box<dyn Send>,
        each: usize,
        offsets: &[u64],
        ioprios: &[Option<u16>],
        rw_flags: u32,
    ) -> io::Result<Writes> {
        let mut ctx: libc::c_ulong = 0;
        // SAFETY: `ctx` is the zeroed word that io_setup wants.
        check(unsafe { libc::syscall(libc::SYS_io_setup, offsets.len(), &raw mut ctx) })?;
        let mut iocbs: Vec<Iocb> = offsets
            .iter()
            .zip(ioprios)
            .enumerate()
            .map(|(i, (&offset, &ioprio))| Iocb {
                data: i as u64,
                opcode: CMD_PWRITE,
                // A word of bits, too.
                rw_flags: rw_flags as i32,
                // The priority is a 16-bit pattern; the field's sign means nothing.
                reqprio: ioprio.unwrap_or(0) as i16,
                fd: file.as_raw_fd() as u32,
                buf: address + (i * each) as u64,
                nbytes: each as u64,
                offset: offset as i64,
                flags: if ioprio.is_some() { FLAG_IOPRIO } else { 0 },
                ..Iocb::default()
            })
            .collect();
        let pointers: Vec<*mut Iocb> = iocbs.iter_mut().map(|i| &raw mut *i).collect();
        let mut writes = Writes {
            ctx,
            data: ManuallyDrop::new(keep),
            left: 0,
        };
        // SAFETY: the pointers lead to iocbs that live through the call (the kernel
        // copies them); the data lives until every result is there, or for ever.
        let submitted =
            unsafe { libc::syscall(libc::SYS_io_submit, ctx, pointers.len(), pointers.as_ptr()) };
        writes.left = check(submitted)? as usize;
        Ok(writes)
    }

    /// How many have not been collected.
    pub fn left(&self) -> usize {
        self.left
    }

    /// Waits for at least one; those that are there, in the order in which they
    /// completed: the write's index, its result.
    pub fn collect(&mut self, limit: Duration) -> io::Result<Vec<(usize, i64)>> {
        let mut events = vec![IoEvent::default(); self.left.max(1)];
        let end = Instant::now() + limit;
        let got = loop {
            let limit = end.saturating_duration_since(Instant::now());
            let timeout = libc::timespec {
                tv_sec: limit.as_secs() as i64,
                tv_nsec: i64::from(limit.subsec_nanos()),
            };
            // SAFETY: room for `left` events, a timespec that lives through the call.
            let got = check(unsafe {
                libc::syscall(
                    libc::SYS_io_getevents,
                    self.ctx,
                    1,
                    self.left,
                    events.as_mut_ptr(),
                    &raw const timeout,
                )
            });
            match got {
                // What io_uring has left to do in this thread ends the wait early.
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                got => break got? as usize,
            }
        };
        if got == 0 {
            return Err(io::ErrorKind::TimedOut.into());
        }
        self.left -= got;
        let come = events[..got].iter();
        Ok(come.map(|e| (e.data as usize, e.res)).collect())
    }
}

impl Drop for Writes {
    fn drop(&mut self) {
        // io_destroy would wait for what does not come.
        if self.left == 0 {
            // SAFETY: a context of ours with nothing in flight.
            unsafe { libc::syscall(libc::SYS_io_destroy, self.ctx) };
            // SAFETY: dropped once, and the kernel is done with it.
            unsafe { ManuallyDrop::drop(&mut self.data) };
        }
    }
}

/// Submits one write of `data` per offset, all in one call, and waits for them.
/// Gives each result in the order of the offsets; an `Err` where not all came
/// back in time, in which case the data is leaked, because the kernel may
/// still read it.
pub fn write_batch(
    file: &File,
    data: super::Pages,
    each: usize,
    offsets: &[u64],
    ioprio: Option<u16>,
    limit: Duration,
) -> io::Result<Vec<i64>> {
    let end = Instant::now() + limit;
    let mut writes = Writes::submit(file, data, each, offsets, ioprio, 0)?;
    let mut results = vec![-i64::from(libc::EAGAIN); offsets.len()];
    while writes.left() > 0 {
        let left = end.saturating_duration_since(Instant::now());
        for (index, result) in writes.collect(left)? {
            if let Some(slot) = results.get_mut(index) {
                *slot = result;
            }
        }
    }
    Ok(results)
}
