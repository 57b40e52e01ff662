// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The kernel's own AIO (io_submit): several writes in one system call, which
//! the kernel collects under one plug.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::time::Duration;

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
    assert!(each * offsets.len() <= data.len());
    let mut ctx: libc::c_ulong = 0;
    // SAFETY: `ctx` is the zeroed word that io_setup wants.
    check(unsafe { libc::syscall(libc::SYS_io_setup, offsets.len(), &raw mut ctx) })?;
    let mut iocbs: Vec<Iocb> = offsets
        .iter()
        .enumerate()
        .map(|(i, &offset)| Iocb {
            data: i as u64,
            opcode: CMD_PWRITE,
            // The priority is a 16-bit pattern; the field's sign means nothing.
            reqprio: ioprio.unwrap_or(0) as i16,
            fd: file.as_raw_fd() as u32,
            buf: data.address(i * each),
            nbytes: each as u64,
            offset: offset as i64,
            flags: if ioprio.is_some() { FLAG_IOPRIO } else { 0 },
            ..Iocb::default()
        })
        .collect();
    let pointers: Vec<*mut Iocb> = iocbs.iter_mut().map(|i| &raw mut *i).collect();
    // SAFETY: the pointers lead to iocbs that live through the call (the kernel
    // copies them); the data lives until every result is there, or for ever.
    let submitted =
        unsafe { libc::syscall(libc::SYS_io_submit, ctx, pointers.len(), pointers.as_ptr()) };
    let submitted = match check(submitted) {
        Ok(n) => n as usize,
        Err(e) => {
            destroy(ctx);
            return Err(e);
        }
    };
    let mut events = vec![IoEvent::default(); submitted.max(1)];
    let timeout = libc::timespec {
        tv_sec: limit.as_secs() as i64,
        tv_nsec: i64::from(limit.subsec_nanos()),
    };
    // SAFETY: room for `submitted` events, a timespec that lives through the call.
    let got = check(unsafe {
        libc::syscall(
            libc::SYS_io_getevents,
            ctx,
            submitted,
            submitted,
            events.as_mut_ptr(),
            &raw const timeout,
        )
    });
    match got {
        Ok(n) if n as usize == submitted => {
            destroy(ctx);
            let mut results = vec![-i64::from(libc::EAGAIN); offsets.len()];
            for event in &events[..submitted] {
                if let Some(slot) = results.get_mut(event.data as usize) {
                    *slot = event.res;
                }
            }
            Ok(results)
        }
        other => {
            // io_destroy would wait for what does not come.
            std::mem::forget(data);
            Err(other
                .err()
                .unwrap_or_else(|| io::ErrorKind::TimedOut.into()))
        }
    }
}

fn destroy(ctx: libc::c_ulong) {
    // SAFETY: a context of ours with nothing in flight.
    unsafe { libc::syscall(libc::SYS_io_destroy, ctx) };
}
