// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Mapped memory whose file goes away. The kernel tells by SIGBUS, at the instruction that
//! touched a page that has no backing any more: a file was made shorter by somebody, or
//! there is no room for the page. Here that is no end of the process:
//!
//! * [`copy`] ends early and says how much is left. Its one instruction that touches
//!   memory is known, `rep movsb`; the handler goes on behind it, as the kernel does in its own
//!   copies from user space.
//! * In a [`Watched`] range (guest memory, which is touched in many places) a page of zeros takes
//!   the place of the missing one, and the range is broken from then on: whoever uses it finds out.
//!
//! Any other SIGBUS goes where it went before. Where this is not to be had (no x86-64) nothing of
//! an image is mapped, and guest memory that goes is the end of the process.

pub(crate) use imp::{Watched, changes};

/// Whether [`copy`] is safe from SIGBUS on this machine. Called before memory is mapped for it.
pub(crate) fn possible() -> bool {
    imp::install()
}

/// Copies `len` bytes; how many of them, the last ones, could not be copied.
///
/// # Safety
/// [`possible`] has said yes. Both ranges are mapped (which their files need not back); `to` is
/// writable and no Rust reference to any of it exists. Both may change meanwhile.
pub(crate) unsafe fn copy(to: *mut u8, from: *const u8, len: usize) -> usize {
    // SAFETY: the caller's promise is the function's own.
    unsafe { imp::copy(to, from, len) }
}

#[cfg(target_arch = "x86_64")]
mod imp {
    use std::io;
    use std::mem::MaybeUninit;
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

    // System V: to in rdi, from in rsi, len in rdx; what is left comes back in rax. A fault
    // leaves rcx, rsi and rdi as they are between two bytes (Intel SDM, REP), so after the jump of
    // the handler rcx has the number of bytes that are left.
    std::arch::global_asm!(
        ".pushsection .text.wtblk_sigbus_copy,\"ax\",@progbits",
        ".globl wtblk_sigbus_copy",
        ".globl wtblk_sigbus_copy_at",
        ".globl wtblk_sigbus_copy_out",
        ".hidden wtblk_sigbus_copy",
        ".hidden wtblk_sigbus_copy_at",
        ".hidden wtblk_sigbus_copy_out",
        ".type wtblk_sigbus_copy,@function",
        "wtblk_sigbus_copy:",
        "mov rcx, rdx",
        "wtblk_sigbus_copy_at:",
        "rep movsb",
        "wtblk_sigbus_copy_out:",
        "mov rax, rcx",
        "ret",
        ".size wtblk_sigbus_copy, . - wtblk_sigbus_copy",
        ".popsection",
    );

    unsafe extern "sysv64" {
        fn wtblk_sigbus_copy(to: *mut u8, from: *const u8, len: usize) -> usize;
        static wtblk_sigbus_copy_at: u8;
        static wtblk_sigbus_copy_out: u8;
    }

    pub(super) unsafe fn copy(to: *mut u8, from: *const u8, len: usize) -> usize {
        // SAFETY: the assembler above touches these two ranges and nothing else; they are mapped
        // (the caller's promise), and a page that has no backing ends it early.
        unsafe { wtblk_sigbus_copy(to, from, len) }
    }

    /// Most ranges that are watched at a time, of all front ends together.
    const PLACES: usize = 2048;
    /// Pages are replaced one by one.
    const PAGE: usize = 4096;

    /// A range in the table that the handler reads. A start of 0 is none.
    struct Place {
        taken: AtomicBool,
        start: AtomicUsize,
        end: AtomicUsize,
        broken: AtomicBool,
    }

    static PLACE: [Place; PLACES] = [const {
        Place {
            taken: AtomicBool::new(false),
            start: AtomicUsize::new(0),
            end: AtomicUsize::new(0),
            broken: AtomicBool::new(false),
        }
    }; PLACES];
    /// Counts the pages that were replaced.
    static CHANGES: AtomicU64 = AtomicU64::new(0);

    /// How many pages of watched ranges have gone so far: whoever uses such ranges looks at
    /// [`Watched::is_broken`] when this has changed.
    pub(crate) fn changes() -> u64 {
        CHANGES.load(Ordering::Acquire)
    }

    /// A mapped range in which a missing page is replaced by zeros. Dropped before it is unmapped.
    #[derive(Debug)]
    pub(crate) struct Watched(usize);

    impl Watched {
        /// Watches `len` bytes from `start` on.
        ///
        /// # Safety
        /// They are mapped until the value is dropped, and no Rust reference to any of it exists:
        /// what they hold may change at any time.
        pub(crate) unsafe fn new(start: *mut u8, len: usize) -> io::Result<Watched> {
            if !install() {
                return Err(io::Error::other("SIGBUS cannot be handled"));
            }
            let free = |p: &Place| !p.taken.swap(true, Ordering::AcqRel);
            let index = PLACE.iter().position(free);
            let index = index.ok_or_else(|| {
                io::Error::other(format!("more than {PLACES} memory regions at a time"))
            })?;
            let place = &PLACE[index];
            place.broken.store(false, Ordering::Relaxed);
            place.end.store(start as usize + len, Ordering::Relaxed);
            place.start.store(start as usize, Ordering::Release);
            Ok(Watched(index))
        }

        /// Whether a page of it was missing and is zeros since.
        pub(crate) fn is_broken(&self) -> bool {
            PLACE[self.0].broken.load(Ordering::Acquire)
        }
    }

    impl Drop for Watched {
        fn drop(&mut self) {
            let place = &PLACE[self.0];
            place.start.store(0, Ordering::Release);
            place.taken.store(false, Ordering::Release);
        }
    }

    /// Puts zeros where the page of a watched range is missing; whether it was one.
    fn replace(address: usize) -> bool {
        let holds = |p: &&Place| {
            let start = p.start.load(Ordering::Acquire);
            start != 0 && (start..p.end.load(Ordering::Relaxed)).contains(&address)
        };
        let Some(place) = PLACE.iter().find(holds) else {
            return false;
        };
        let (start, end) = (
            place.start.load(Ordering::Relaxed),
            place.end.load(Ordering::Relaxed),
        );
        place.broken.store(true, Ordering::Release);
        CHANGES.fetch_add(1, Ordering::AcqRel);
        let page = address & !(PAGE - 1);
        // A page; all of it where the pages are larger ones.
        [(page, PAGE), (start, end - start)]
            .iter()
            .any(|&(at, len)| {
                // SAFETY: a mapping of our own range of memory in place of the file's, which no
                // Rust reference looks at (the promise of `Watched::new`). Allowed in a handler:
                // a plain system call.
                let put = unsafe {
                    libc::mmap(
                        at as *mut libc::c_void,
                        len,
                        libc::PROT_READ | libc::PROT_WRITE,
                        libc::MAP_PRIVATE
                            | libc::MAP_ANONYMOUS
                            | libc::MAP_FIXED
                            | libc::MAP_NORESERVE,
                        -1,
                        0,
                    )
                };
                put != libc::MAP_FAILED
            })
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
        if *rip == (&raw const wtblk_sigbus_copy_at) as i64 {
            *rip = (&raw const wtblk_sigbus_copy_out) as i64;
            return;
        }
        // SAFETY: with SA_SIGINFO the second argument is the signal's siginfo_t.
        if replace(unsafe { (*info).si_addr() } as usize) {
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
    /// Nothing is watched here.
    #[derive(Debug)]
    pub(crate) struct Watched;

    impl Watched {
        /// # Safety
        /// None is needed here.
        pub(crate) unsafe fn new(_: *mut u8, _: usize) -> std::io::Result<Watched> {
            Ok(Watched)
        }

        pub(crate) fn is_broken(&self) -> bool {
            false
        }
    }

    pub(crate) fn changes() -> u64 {
        0
    }

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
                // What other tests have locked must not stay locked by a child of this one.
                // SAFETY: nothing of the child uses a descriptor any more.
                unsafe { libc::close_range(3, libc::c_uint::MAX, 0) };
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

    #[test]
    fn a_watched_page_becomes_zeros_and_its_range_broken() {
        let (map, other) = (cut_short(4, 2), cut_short(2, 2));
        let base = map.as_mut_ptr();
        // SAFETY: mapped until the end of the test, and only used by pointers.
        let (watched, beside) = unsafe {
            (
                Watched::new(base, 4 * PAGE).unwrap(),
                Watched::new(other.as_mut_ptr(), 2 * PAGE).unwrap(),
            )
        };
        let before = changes();
        // SAFETY: as above.
        unsafe {
            base.write_volatile(5);
            assert!(!watched.is_broken());
            assert_eq!(base.add(3 * PAGE + 9).read_volatile(), 0);
            assert!(watched.is_broken() && !beside.is_broken());
            assert!(changes() > before);
            base.add(2 * PAGE).write_volatile(6);
            assert_eq!(base.add(2 * PAGE).read_volatile(), 6);
            // What is still there is what it was.
            assert_eq!(base.read_volatile(), 5);
        }
        drop(watched);
        // SAFETY: as above.
        let again = unsafe { Watched::new(base, PAGE).unwrap() };
        assert!(!again.is_broken());
    }
}
