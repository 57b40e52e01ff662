// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The last words of a process that made a system call which it has forbidden itself.

use std::io;
use std::mem::MaybeUninit;

/// What the kernel tells with a SIGSYS of seccomp, as far as `si_syscall` (sigaction(2)).
#[repr(C)]
struct Told {
    signal: libc::c_int,
    errno: libc::c_int,
    code: libc::c_int,
    address: *const libc::c_void,
    call: libc::c_int,
}

/// Longest number of a call, sign and all.
const DIGITS: usize = 11;
const BEFORE: &[u8] = b"wtblk: system call ";
const AFTER: &[u8] =
    b" is forbidden by the sandbox, the process ends. This is an attack, or an error of wtblk \
(--sandbox off serves without)\n";

/// Puts a number's decimal digits at the end of `room`; which part of it they are.
fn digits(number: i32, room: &mut [u8; DIGITS]) -> &[u8] {
    let mut at = DIGITS;
    let mut left = number.unsigned_abs();
    loop {
        at -= 1;
        room[at] = b'0' + (left % 10) as u8;
        left /= 10;
        if left == 0 {
            break;
        }
    }
    if number < 0 {
        at -= 1;
        room[at] = b'-';
    }
    &room[at..]
}

extern "C" fn handler(signal: libc::c_int, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
    // SAFETY: with SA_SIGINFO the kernel gives a siginfo_t that lives over the call; of a SIGSYS it
    // has these fields at its begin. Somebody's kill(2) leaves other numbers there, no less readable.
    let call = unsafe { (*info.cast::<Told>()).call };
    let mut room = [0; DIGITS];
    for part in [BEFORE, digits(call, &mut room), AFTER] {
        // SAFETY: write(2) may be called by a handler, with bytes that live over the call. Where
        // it fails there is nobody to tell.
        unsafe { libc::write(2, part.as_ptr().cast(), part.len()) };
    }
    // SAFETY: raise(3) may be called by a handler. The action is the default again (SA_RESETHAND)
    // and the signal not blocked (SA_NODEFER): this is the end.
    unsafe { libc::raise(signal) };
}

/// From now on whoever dies of a forbidden call says which it was.
pub(super) fn say_which() -> io::Result<()> {
    // SAFETY: all zeros is a valid sigaction: no flags, an empty mask; the handler is set below.
    let mut action: libc::sigaction = unsafe { MaybeUninit::zeroed().assume_init() };
    let ours: extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void) = handler;
    action.sa_sigaction = ours as usize;
    action.sa_flags = libc::SA_SIGINFO | libc::SA_RESETHAND | libc::SA_NODEFER | libc::SA_ONSTACK;
    // SAFETY: the action is whole, and its handler does only what a handler may.
    match unsafe { libc::sigaction(libc::SIGSYS, &raw const action, std::ptr::null_mut()) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers() {
        for number in [0, 7, 59, 425, -1, i32::MAX, i32::MIN] {
            let mut room = [0; DIGITS];
            assert_eq!(digits(number, &mut room), number.to_string().as_bytes());
        }
    }

    /// In a child of its own, between fork and exec.
    #[test]
    fn the_last_words_name_the_call() {
        use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
        use std::process::{Command, Stdio};
        let trap: seccompiler::BpfProgram = {
            let arch = seccompiler::TargetArch::try_from(std::env::consts::ARCH).unwrap();
            let allow = seccompiler::SeccompAction::Allow;
            let rules = [(libc::SYS_getppid, Vec::new())].into();
            let trap = seccompiler::SeccompAction::Trap;
            let filter = seccompiler::SeccompFilter::new(rules, allow, trap, arch).unwrap();
            filter.try_into().unwrap()
        };
        let last = move || {
            // What other tests have locked must not stay locked by a child of this one.
            // SAFETY: nothing of the child uses a descriptor any more but 0 to 2.
            unsafe { libc::close_range(3, libc::c_uint::MAX, 0) };
            say_which()?;
            seccompiler::apply_filter(&trap).map_err(io::Error::other)?;
            // SAFETY: the call has no arguments; it is the child's last.
            unsafe { libc::syscall(libc::SYS_getppid) };
            Ok(())
        };
        let mut command = Command::new("true");
        // SAFETY: between fork and exec only system calls are made.
        unsafe { command.pre_exec(last) };
        let child = command.stderr(Stdio::piped()).stdout(Stdio::null()).spawn();
        let output = child.unwrap().wait_with_output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.signal(), Some(libc::SIGSYS), "{said}");
        let call = format!("wtblk: system call {} is forbidden", libc::SYS_getppid);
        assert!(said.starts_with(&call), "{said}");
        assert!(said.ends_with("(--sandbox off serves without)\n"), "{said}");
    }
}
