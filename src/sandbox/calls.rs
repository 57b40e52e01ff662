// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! System calls, by seccomp. What is on the list goes on. Opening a file fails (libraries try that
//! and cope). Everything else is the end of the process, with a word that says which call it was: in
//! a library that does not expect it an error may be worse than an end (a lock that is never
//! opened, memory that stays), and a guest survives the end of its device (`docs/device.md`, killed
//! and started again).

use std::collections::BTreeMap;

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch,
};

use super::{Missing, death};

type Rules = BTreeMap<i64, Vec<SeccompRule>>;

/// `PR_SET_VMA`: glibc names its mappings.
const PR_SET_VMA: u64 = 0x5356_4d41;

/// `FIONBIO`, `FIONREAD` and `TCGETS`, whose type is another in each C library.
const IOCTLS: [u64; 3] = [0x5421, 0x541b, 0x5401];

/// What serving takes, whatever the arguments.
const ALLOWED: &[i64] = &[
    // Bytes: images, sockets, eventfds, standard error.
    libc::SYS_read,
    libc::SYS_write,
    libc::SYS_readv,
    libc::SYS_writev,
    libc::SYS_pread64,
    libc::SYS_pwrite64,
    libc::SYS_preadv,
    libc::SYS_pwritev,
    libc::SYS_preadv2,
    libc::SYS_pwritev2,
    libc::SYS_lseek,
    libc::SYS_close,
    libc::SYS_dup,
    libc::SYS_fsync,
    libc::SYS_fdatasync,
    libc::SYS_fallocate,
    libc::SYS_ftruncate,
    // The lock of a trace is given back.
    libc::SYS_flock,
    libc::SYS_io_uring_enter,
    // Sockets that are there: front ends come and go.
    libc::SYS_accept4,
    libc::SYS_recvfrom,
    libc::SYS_recvmsg,
    libc::SYS_sendto,
    libc::SYS_sendmsg,
    libc::SYS_shutdown,
    libc::SYS_getsockopt,
    libc::SYS_setsockopt,
    libc::SYS_getsockname,
    libc::SYS_getpeername,
    // Waiting.
    libc::SYS_ppoll,
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_eventfd2,
    libc::SYS_futex,
    libc::SYS_nanosleep,
    libc::SYS_clock_nanosleep,
    libc::SYS_restart_syscall,
    libc::SYS_sched_yield,
    // Time, where it takes a call.
    libc::SYS_clock_gettime,
    libc::SYS_clock_getres,
    libc::SYS_gettimeofday,
    // Memory. Mapping it to be run is not among them: see `rules`.
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_madvise,
    libc::SYS_mincore,
    libc::SYS_brk,
    // The area of what is in flight.
    libc::SYS_memfd_create,
    // Threads and their ends.
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_set_robust_list,
    libc::SYS_set_tid_address,
    libc::SYS_rseq,
    libc::SYS_sched_getaffinity,
    libc::SYS_getcpu,
    libc::SYS_gettid,
    libc::SYS_getpid,
    libc::SYS_sigaltstack,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    // Who asks at the control socket.
    libc::SYS_getuid,
    libc::SYS_geteuid,
    libc::SYS_getgid,
    libc::SYS_getegid,
    // What a file is; which is no way to what is in it.
    libc::SYS_fstat,
    libc::SYS_newfstatat,
    libc::SYS_statx,
    libc::SYS_readlinkat,
    // A panic's backtrace asks.
    libc::SYS_getcwd,
    // Sockets are removed at the end. Where, Landlock says.
    libc::SYS_unlinkat,
    libc::SYS_getrandom,
    libc::SYS_sysinfo,
    libc::SYS_uname,
];

/// Older calls that this processor has as well.
#[cfg(target_arch = "x86_64")]
const OLDER: &[i64] = &[
    libc::SYS_accept,
    libc::SYS_epoll_wait,
    libc::SYS_getrlimit,
    libc::SYS_lstat,
    libc::SYS_poll,
    libc::SYS_readlink,
    libc::SYS_stat,
    libc::SYS_time,
    libc::SYS_unlink,
];
#[cfg(not(target_arch = "x86_64"))]
const OLDER: &[i64] = &[];

/// What fails.
const OPENS: &[i64] = &[libc::SYS_openat, libc::SYS_openat2];
#[cfg(target_arch = "x86_64")]
const OLDER_OPENS: &[i64] = &[libc::SYS_open];
#[cfg(not(target_arch = "x86_64"))]
const OLDER_OPENS: &[i64] = &[];

/// `argument & mask == value`.
fn masked(argument: u8, mask: u64, value: u64) -> Result<SeccompRule, seccompiler::BackendError> {
    let compare = SeccompCmpOp::MaskedEq(mask);
    let condition = SeccompCondition::new(argument, SeccompCmpArgLen::Dword, compare, value)?;
    SeccompRule::new(vec![condition])
}

fn equal(argument: u8, value: u64) -> Result<SeccompRule, seccompiler::BackendError> {
    masked(argument, u64::from(u32::MAX), value)
}

fn any_of(argument: u8, values: &[u64]) -> Result<Vec<SeccompRule>, seccompiler::BackendError> {
    values.iter().map(|&value| equal(argument, value)).collect()
}

/// The list, with those calls whose arguments matter.
fn rules() -> Result<Rules, seccompiler::BackendError> {
    let all = ALLOWED.iter().chain(OLDER).chain(OPENS).chain(OLDER_OPENS);
    let mut rules: Rules = all.map(|&call| (call, Vec::new())).collect();
    rules.insert(libc::SYS_clone3, Vec::new());
    // Threads of this process; no other process.
    let thread = libc::CLONE_THREAD as u64;
    rules.insert(libc::SYS_clone, vec![masked(0, thread, thread)?]);
    // Memory that cannot be run.
    let exec = libc::PROT_EXEC as u64;
    rules.insert(libc::SYS_mmap, vec![masked(2, exec, 0)?]);
    rules.insert(libc::SYS_mprotect, vec![masked(2, exec, 0)?]);
    // A thread's name, a mapping's.
    let names = [libc::PR_SET_NAME as u64, PR_SET_VMA];
    rules.insert(libc::SYS_prctl, any_of(0, &names)?);
    rules.insert(libc::SYS_ioctl, any_of(1, &IOCTLS)?);
    let copies_and_flags = [
        libc::F_DUPFD_CLOEXEC,
        libc::F_GETFD,
        libc::F_SETFD,
        libc::F_GETFL,
        libc::F_SETFL,
        libc::F_ADD_SEALS,
        libc::F_GET_SEALS,
    ];
    let copies_and_flags = copies_and_flags.map(|c| c as u64);
    rules.insert(libc::SYS_fcntl, any_of(1, &copies_and_flags)?);
    // A signal to itself (abort), a limit that is only asked for.
    let ours = u64::from(std::process::id());
    rules.insert(libc::SYS_tgkill, vec![equal(0, ours)?]);
    let asked = |pid| -> Result<_, seccompiler::BackendError> {
        let nothing_new = SeccompCondition::new(2, SeccompCmpArgLen::Qword, SeccompCmpOp::Eq, 0)?;
        let whose = SeccompCondition::new(0, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, pid)?;
        SeccompRule::new(vec![nothing_new, whose])
    };
    rules.insert(libc::SYS_prlimit64, vec![asked(0)?]);
    #[cfg(target_env = "musl")]
    // Its `raise`; to whom, Landlock says.
    rules.insert(libc::SYS_tkill, Vec::new());
    Ok(rules)
}

/// Of these calls: a program that lets all others pass.
fn failing(
    calls: &[i64],
    errno: i32,
    arch: TargetArch,
) -> Result<BpfProgram, seccompiler::BackendError> {
    let rules = calls.iter().map(|&call| (call, Vec::new())).collect();
    let fails = SeccompAction::Errno(errno.unsigned_abs());
    SeccompFilter::new(rules, SeccompAction::Allow, fails, arch)?.try_into()
}

/// The programs in the order in which they are put in force.
fn programs(arch: TargetArch) -> Result<[BpfProgram; 3], seccompiler::BackendError> {
    let opens: Vec<i64> = OPENS.iter().chain(OLDER_OPENS).copied().collect();
    let list = SeccompFilter::new(rules()?, SeccompAction::Trap, SeccompAction::Allow, arch)?;
    Ok([
        failing(&opens, libc::EACCES, arch)?,
        // Its flags lie in memory, where no filter sees them: C libraries then use the older call.
        failing(&[libc::SYS_clone3], libc::ENOSYS, arch)?,
        list.try_into()?,
    ])
}

pub(super) fn forbid() -> Result<(), Missing> {
    let arch = std::env::consts::ARCH;
    let arch = TargetArch::try_from(arch)
        .map_err(|_| Missing::Lacks(format!("no list of system calls is made for {arch}")))?;
    let programs = programs(arch).map_err(|e| Missing::Failed(format!("seccomp: {e}")))?;
    let uncaught = |e| Missing::Failed(format!("cannot catch SIGSYS: {e}"));
    death::say_which().map_err(uncaught)?;
    for program in &programs {
        // A kernel without seccomp says EINVAL, one whose container forbids it EPERM or EACCES.
        let lacks = |e| Missing::Lacks(format!("seccomp: {e}"));
        seccompiler::apply_filter(program).map_err(lacks)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_call_is_both_on_the_list_and_bound_to_its_arguments() {
        let all = [ALLOWED, OLDER, OPENS, OLDER_OPENS].concat();
        let mut once = all.clone();
        once.sort_unstable();
        once.dedup();
        assert_eq!(once.len(), all.len());
        let bound = rules().unwrap();
        let bound: Vec<i64> = bound
            .iter()
            .filter(|(_, rules)| !rules.is_empty())
            .map(|(&call, _)| call)
            .collect();
        assert!(bound.len() >= 8);
        assert!(bound.iter().all(|call| !all.contains(call)));
    }

    #[test]
    fn what_would_lead_out_is_not_on_it() {
        let rules = rules().unwrap();
        for call in [
            libc::SYS_execve,
            libc::SYS_execveat,
            libc::SYS_ptrace,
            libc::SYS_process_vm_writev,
            libc::SYS_socket,
            libc::SYS_connect,
            libc::SYS_bind,
            libc::SYS_io_uring_setup,
            libc::SYS_io_uring_register,
            libc::SYS_seccomp,
            libc::SYS_unshare,
            libc::SYS_mount,
            libc::SYS_bpf,
            libc::SYS_kill,
            libc::SYS_renameat2,
        ] {
            assert!(!rules.contains_key(&call), "{call}");
        }
    }
}
