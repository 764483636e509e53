//! Which system calls a restricted process may make: all but these. The numbers are the kernel's; the calls
//! that came after 5.0 have the same on every architecture, and not all have a name in the C library yet.

use std::ffi::c_long;

/// What becomes of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    Allow,
    /// It fails with this errno.
    Fail(i32),
    /// Fails if the first argument asks for a namespace (clone(2), unshare(2)).
    NoNamespaces,
    /// Fails but for these families of sockets.
    Families,
    /// Fails but for the personalities that change nothing of the address space.
    Personalities,
}

use Verdict::{Fail, Families, NoNamespaces, Personalities};

/// The kernel has it, and the process may not use it.
const REFUSED: Verdict = Fail(libc::EPERM);
/// As on a kernel without it: programs then do it in another way.
const ABSENT: Verdict = Fail(libc::ENOSYS);

/// Later calls are absent until somebody has looked at them. This is the last of Linux 6.12.
pub const LAST: c_long = 462;

/// Everything that is not simply allowed.
pub const RULES: &[(c_long, Verdict)] = &[
    // The new way of asking for namespaces has its flags in memory, where a filter cannot see them.
    (libc::SYS_clone3, ABSENT),
    (libc::SYS_clone, NoNamespaces),
    (libc::SYS_unshare, NoNamespaces),
    (libc::SYS_setns, REFUSED),
    // Mounts, old and new.
    (libc::SYS_mount, REFUSED),
    (libc::SYS_umount2, REFUSED),
    (libc::SYS_pivot_root, REFUSED),
    (428, REFUSED), // open_tree
    (429, REFUSED), // move_mount
    (430, REFUSED), // fsopen
    (431, REFUSED), // fsconfig
    (432, REFUSED), // fsmount
    (433, REFUSED), // fspick
    (442, REFUSED), // mount_setattr
    (443, REFUSED), // quotactl_fd
    (457, ABSENT),  // statmount
    (458, ABSENT),  // listmount
    (libc::SYS_quotactl, REFUSED),
    (libc::SYS_swapon, REFUSED),
    (libc::SYS_swapoff, REFUSED),
    (libc::SYS_acct, REFUSED),
    // A file by its inode, past the directories that keep it.
    (libc::SYS_open_by_handle_at, REFUSED),
    // Other processes' memory, descriptors and registers: agentd's above all.
    (libc::SYS_ptrace, REFUSED),
    (libc::SYS_process_vm_readv, REFUSED),
    (libc::SYS_process_vm_writev, REFUSED),
    (libc::SYS_kcmp, REFUSED),
    (438, REFUSED), // pidfd_getfd
    (440, REFUSED), // process_madvise
    // Large and often broken parts of the kernel.
    (425, REFUSED), // io_uring_setup
    (426, REFUSED), // io_uring_enter
    (427, REFUSED), // io_uring_register
    (libc::SYS_bpf, REFUSED),
    (libc::SYS_perf_event_open, REFUSED),
    (libc::SYS_userfaultfd, REFUSED),
    (libc::SYS_add_key, REFUSED),
    (libc::SYS_request_key, REFUSED),
    (libc::SYS_keyctl, REFUSED),
    (libc::SYS_fanotify_init, REFUSED),
    (libc::SYS_socket, Families),
    (libc::SYS_socketpair, Families),
    // The kernel itself.
    (libc::SYS_init_module, REFUSED),
    (libc::SYS_finit_module, REFUSED),
    (libc::SYS_delete_module, REFUSED),
    (libc::SYS_kexec_load, REFUSED),
    (libc::SYS_kexec_file_load, REFUSED),
    (libc::SYS_reboot, REFUSED),
    (libc::SYS_syslog, REFUSED),
    // The machine's.
    (libc::SYS_settimeofday, REFUSED),
    (libc::SYS_clock_settime, REFUSED),
    (libc::SYS_sethostname, REFUSED),
    (libc::SYS_setdomainname, REFUSED),
    (libc::SYS_vhangup, REFUSED),
    (libc::SYS_mbind, REFUSED),
    (libc::SYS_set_mempolicy, REFUSED),
    (libc::SYS_get_mempolicy, REFUSED),
    (libc::SYS_migrate_pages, REFUSED),
    (libc::SYS_move_pages, REFUSED),
    (450, REFUSED), // set_mempolicy_home_node
    // READ_IMPLIES_EXEC, ADDR_NO_RANDOMIZE and the like take a program's own protection away.
    (libc::SYS_personality, Personalities),
    // What nothing uses any more.
    (libc::SYS_lookup_dcookie, ABSENT),
    (libc::SYS_nfsservctl, ABSENT),
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_iopl, REFUSED),
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_ioperm, REFUSED),
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_modify_ldt, ABSENT),
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_uselib, ABSENT),
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_ustat, ABSENT),
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_sysfs, ABSENT),
    #[cfg(target_arch = "x86_64")]
    (libc::SYS__sysctl, ABSENT),
    #[cfg(target_arch = "x86_64")]
    (174, ABSENT), // create_module
    #[cfg(target_arch = "x86_64")]
    (177, ABSENT), // get_kernel_syms
    #[cfg(target_arch = "x86_64")]
    (178, ABSENT), // query_module
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_getpmsg, ABSENT),
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_putpmsg, ABSENT),
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_afs_syscall, ABSENT),
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_tuxcall, ABSENT),
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_security, ABSENT),
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_set_thread_area, ABSENT),
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_get_thread_area, ABSENT),
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_epoll_ctl_old, ABSENT),
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_epoll_wait_old, ABSENT),
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_vserver, ABSENT),
];

/// Every flag of clone(2) and unshare(2) that makes a namespace.
pub const NAMESPACES: u32 = (libc::CLONE_NEWNS
    | libc::CLONE_NEWCGROUP
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUSER
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWNET) as u32;
/// CLONE_NEWTIME: for clone(2) it is a part of the signal number, so only unshare(2) has it.
pub const NAMESPACE_OF_TIME: u32 = 0x80;

/// What programs talk through; packets, the kernel's cryptography and other protocols are left out.
pub const FAMILIES: [u32; 4] = [
    libc::AF_UNIX as u32,
    libc::AF_INET as u32,
    libc::AF_INET6 as u32,
    libc::AF_NETLINK as u32,
];

/// Linux, 32-bit Linux (what `uname -m` says), either with a version that begins with 2.6, and the question.
pub const PERSONALITIES: [u32; 5] = [0, 0x8, 0x20000, 0x20008, u32::MAX];
