// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A front end that does not keep to anything: messages byte by byte, shared memory of any shape.

use std::fs::File;
use std::io::IoSlice;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;

use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use vhost::VhostUserMemoryRegionInfo;
use wtblk::trace::event::DeviceKind;

use super::LIMIT;
use super::driver::Driver;
use super::serve::Serve;

pub fn memfd(len: u64) -> File {
    let file = File::from(memfd_create(c"more", MFdFlags::empty()).unwrap());
    file.set_len(len).unwrap();
    file
}

pub fn region(guest: u64, size: u64, user: u64, file: &File) -> VhostUserMemoryRegionInfo {
    VhostUserMemoryRegionInfo {
        guest_phys_addr: guest,
        memory_size: size,
        userspace_addr: user,
        mmap_offset: 0,
        mmap_handle: file.as_raw_fd(),
    }
}

/// A message as it goes over the socket; the body may be shorter than what is announced.
pub fn message(code: u32, announced: usize, body: &[u8]) -> Vec<u8> {
    // Version 1, and an answer is wanted.
    let header = [code, 1 | 1 << 3, announced as u32].map(u32::to_le_bytes);
    [&header.concat(), body].concat()
}

pub fn send(stream: &UnixStream, bytes: &[u8], fds: &[RawFd]) {
    let rights = [ControlMessage::ScmRights(fds)];
    let rights = if fds.is_empty() { &[][..] } else { &rights[..] };
    let flags = MsgFlags::MSG_NOSIGNAL;
    // The other side may have closed it.
    let _ = sendmsg::<()>(
        stream.as_raw_fd(),
        &[IoSlice::new(bytes)],
        rights,
        flags,
        None,
    );
}

/// A front end that behaves is served, and soon: the library that it uses would wait for ever.
pub fn goes_on(serve: &Serve) {
    let stream = serve.data();
    let (done, told) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let mut d = Driver::connect(stream, 1);
        assert_eq!(d.write(8, &[7; 512]), 0);
        assert_eq!(d.read(8, 512), (0, vec![7; 512]));
        drop(d);
        let _ = done.send(());
    });
    let served = told.recv_timeout(LIMIT);
    assert!(
        served.is_ok(),
        "the next front end is not served: {served:?}"
    );
}

pub fn ends(serve: Serve) -> Vec<String> {
    let gone = serve.end().device(DeviceKind::Disconnected);
    gone.into_iter().map(|e| e.2).collect()
}
