// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A copy between mapped memory that may be gone: a file that somebody makes
//! shorter, or for whose page there is no room, is the error of this copy and
//! not the end of the process.
//!
//! The kernel says so by SIGBUS at the instruction that touched the page. There
//! is one such instruction here, `rep movsb`; the handler lets it end early,
//! as the kernel does for its own copies from user space. Any other SIGBUS goes
//! where it went before. Where this is not to be had (no x86-64) nothing is mapped.

/// Whether [`copy`] is guarded on this machine. Called before memory is mapped for it.
pub(super) fn possible() -> bool {
    imp::install()
}

/// Copies `len` bytes; how many of them, the last ones, could not be copied.
///
/// # Safety
/// [`possible`] has said yes. Both ranges are mapped (which their files need not back); `to` is
/// writable and no Rust reference to any of it exists. Both may change meanwhile.
pub(super) unsafe fn copy(to: *mut u8, from: *const u8, len: usize) -> usize {
    // SAFETY: the caller's promise is the function's own.
    unsafe { imp::copy(to, from, len) }
}

#[cfg(target_arch = "x86_64")]
mod imp {
    use std::mem::MaybeUninit;
    use std::sync::OnceLock;

    // System V: to in rdi, from in rsi, len in rdx; what is left comes back in rax. A fault
    // leaves rcx, rsi and rdi as they are between two bytes (Intel SDM, REP), so after the jump of
    // the handler rcx has the number of bytes that are left.
    std::arch::global_asm!(
        ".pushsection .text.wtblk_guarded_copy,\"ax\",@progbits",
        ".globl wtblk_guarded_copy",
        ".globl wtblk_guarded_copy_at",
        ".globl wtblk_guarded_copy_out",
        ".hidden wtblk_guarded_copy",
        ".hidden wtblk_guarded_copy_at",
        ".hidden wtblk_guarded_copy_out",
        ".type wtblk_guarded_copy,@function",
        "wtblk_guarded_copy:",
        "mov rcx, rdx",
        "wtblk_guarded_copy_at:",
        "rep movsb",
        "wtblk_guarded_copy_out:",
        "mov rax, rcx",
        "ret",
        ".size wtblk_guarded_copy, . - wtblk_guarded_copy",
        ".popsection",
    );

    unsafe extern "sysv64" {
        fn wtblk_guarded_copy(to: *mut u8, from: *const u8, len: usize) -> usize;
        static wtblk_guarded_copy_at: u8;
        static wtblk_guarded_copy_out: u8;
    }

    pub(super) unsafe fn copy(to: *mut u8, from: *const u8, len: usize) -> usize {
        // SAFETY: the assembler above touches these two ranges and nothing else; they are mapped
        // (the caller's promise), and a page that has no backing ends it early.
        unsafe { wtblk_guarded_copy(to, from, len) }
    }

    /// What was there before us, once ours is installed.
    static BEFORE: OnceLock<Option<libc::sigaction>> = OnceLock::new();

    pub(super) fn install() -> bool {
        BEFORE
            .get_or_init(|| {
                let mut before = MaybeUninit::<libc::sigaction>::uninit();
                // SAFETY: a null action only asks; the kernel fills `before` where it returns 0.
                let asked = unsafe {
                    libc::sigaction(libc::SIGBUS, std::ptr::null(), before.as_mut_ptr()) == 0
                };
                if !asked {
                    return None;
                }
                // SAFETY: filled, see above.
                let before = unsafe { before.assume_init() };
                // SAFETY: all zeros is a valid sigaction: the default, no flags, an empty mask.
                let mut ours: libc::sigaction = unsafe { std::mem::zeroed() };
                ours.sa_sigaction = on_sigbus as *const () as usize;
                // On the alternate stack, where there is one: what was there before us (Rust's
                // own look at stack overflows) needs it.
                ours.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
                // SAFETY: `ours` is complete, and the handler does only what a handler may do. A
                // SIGBUS between the two calls goes to the one before, as it would have.
                let set =
                    unsafe { libc::sigaction(libc::SIGBUS, &raw const ours, std::ptr::null_mut()) };
                (set == 0).then_some(before)
            })
            .is_some()
    }

    extern "C" fn on_sigbus(
        signal: libc::c_int,
        info: *mut libc::siginfo_t,
        context: *mut libc::c_void,
    ) {
        // SAFETY: with SA_SIGINFO the third argument is the interrupted thread's ucontext_t, ours
        // to change until we return.
        let registers = unsafe { &mut (*context.cast::<libc::ucontext_t>()).uc_mcontext.gregs };
        let rip = &mut registers[libc::REG_RIP as usize];
        if *rip == (&raw const wtblk_guarded_copy_at) as i64 {
            *rip = (&raw const wtblk_guarded_copy_out) as i64;
            return;
        }
        let before = BEFORE.get().and_then(Option::as_ref);
        match before {
            Some(before) if before.sa_sigaction > libc::SIG_IGN => {
                type Handler = extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void);
                // SAFETY: it was installed as a handler of this signal. One without SA_SIGINFO
                // takes the first argument and ignores the others, in this calling convention.
                let handler: Handler = unsafe { std::mem::transmute(before.sa_sigaction) };
                handler(signal, info, context);
            }
            _ => {
                // The default is the end of the process: by the same instruction, once more.
                // SAFETY: a plain system call, allowed in a handler.
                unsafe { libc::signal(signal, libc::SIG_DFL) };
            }
        }
    }
}

#[cfg(not(target_arch = "x86_64"))]
mod imp {
    pub(super) fn install() -> bool {
        false
    }

    pub(super) unsafe fn copy(_: *mut u8, _: *const u8, len: usize) -> usize {
        len
    }
}

#[cfg(all(test, target_arch = "x86_64"))]
mod tests {
    use std::fs::File;

    use memmap2::MmapRaw;
    use nix::sys::memfd::{MFdFlags, memfd_create};

    use super::*;

    const PAGE: usize = 4096;

    /// `pages` pages of a file that is made `left` pages long once they are mapped.
    fn cut_short(pages: usize, left: u64) -> MmapRaw {
        let file = File::from(memfd_create(c"test", MFdFlags::MFD_CLOEXEC).unwrap());
        file.set_len((pages * PAGE) as u64).unwrap();
        let map = MmapRaw::map_raw(&file).unwrap();
        file.set_len(left * PAGE as u64).unwrap();
        map
    }

    #[test]
    fn a_copy_ends_where_the_file_ends() {
        assert!(possible());
        let map = cut_short(4, 2);
        let base = map.as_mut_ptr();
        let mut own = vec![7u8; 3 * PAGE];
        let own = own.as_mut_ptr();
        // SAFETY: both ranges are mapped; `own` is only used by its pointer from here on.
        unsafe {
            assert_eq!(copy(base.add(100), own, PAGE), 0);
            assert_eq!(copy(base.add(PAGE), own, 2 * PAGE + 5), PAGE + 5);
            assert_eq!(copy(own, base.add(3 * PAGE), 10), 10);
            assert_eq!(copy(own, base.add(90), 20), 0);
            let got: Vec<u8> = (0..20).map(|i| own.add(i).read_volatile()).collect();
            assert_eq!(got, [&[0; 10][..], &[7; 10][..]].concat());
        }
    }

    /// Only the copy is guarded: a process that touches such a page otherwise dies of it.
    #[test]
    fn another_sigbus_is_what_it_was() {
        assert!(possible());
        let map = cut_short(2, 1);
        let base = map.as_mut_ptr();
        // SAFETY: the child touches memory and ends, nothing else.
        match unsafe { libc::fork() } {
            0 => {
                // SAFETY: mapped; that its page has no backing is the point.
                unsafe { base.add(PAGE).read_volatile() };
                // SAFETY: ends the child without anything of the parent's being run.
                unsafe { libc::_exit(0) }
            }
            child => {
                let mut status = 0;
                // SAFETY: waits for the child made above.
                assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
                assert!(libc::WIFSIGNALED(status), "status {status:#x}");
                assert_eq!(libc::WTERMSIG(status), libc::SIGBUS);
            }
        }
    }
}
