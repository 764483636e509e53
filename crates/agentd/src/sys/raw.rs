//! System calls that leave the C library alone: for a child that shares agentd's memory until it executes its
//! program. The library would keep things (`errno` is the first) in memory that is agentd's.

use std::arch::asm;
use std::ffi::{c_long, c_void};

/// The arguments of a call; those it does not take are 0.
pub type Arguments = [usize; 5];

/// One system call. The error is errno.
///
/// # Safety
///
/// That of the call: pointers among the arguments are what the kernel takes them for.
pub unsafe fn call(number: c_long, arguments: Arguments) -> Result<usize, i32> {
    let [a, b, c, d, e] = arguments;
    let result: isize;
    // SAFETY: the contract of this function. The kernel changes no other registers than these.
    #[cfg(target_arch = "x86_64")]
    unsafe {
        asm!(
            "syscall",
            inlateout("rax") number as isize => result,
            in("rdi") a, in("rsi") b, in("rdx") c, in("r10") d, in("r8") e,
            lateout("rcx") _, lateout("r11") _,
            options(nostack),
        );
    }
    // SAFETY: as above.
    #[cfg(target_arch = "aarch64")]
    unsafe {
        asm!(
            "svc 0",
            in("x8") number,
            inlateout("x0") a as isize => result,
            in("x1") b, in("x2") c, in("x3") d, in("x4") e,
            options(nostack),
        );
    }
    match result {
        // The kernel's errors are -1 to -4095.
        -4095..=-1 => Err(-result as i32),
        _ => Ok(result as usize),
    }
}

/// What a child that shares its parent's memory begins with.
pub type Entry = unsafe extern "C" fn(*const c_void) -> !;

/// clone3(2) with a stack of the child's own, on which it calls `entry`. Returns in the parent only.
///
/// # Safety
///
/// `arguments` names a stack, aligned to 16 bytes, that nobody else uses until the child has executed a program or
/// ended; what `argument` points to stays as long.
pub unsafe fn clone(
    arguments: &libc::clone_args,
    entry: Entry,
    argument: *const c_void,
) -> Result<libc::pid_t, i32> {
    let size = size_of::<libc::clone_args>();
    let result: isize;
    // SAFETY: the contract of this function. In the child nothing here is gone on with: it finds the registers
    // as they were, another stack, and 0.
    #[cfg(target_arch = "x86_64")]
    unsafe {
        asm!(
            "syscall",
            "test rax, rax",
            "jnz 2f",
            "xor ebp, ebp",
            "mov rdi, r12",
            "call r13",
            "ud2",
            "2:",
            inlateout("rax") libc::SYS_clone3 as isize => result,
            in("rdi") arguments, in("rsi") size, in("r12") argument, in("r13") entry,
            lateout("rcx") _, lateout("r11") _,
        );
    }
    // SAFETY: as above.
    #[cfg(target_arch = "aarch64")]
    unsafe {
        asm!(
            "svc 0",
            "cbnz x0, 2f",
            "mov x29, xzr",
            "mov x0, x20",
            "blr x21",
            "brk 1",
            "2:",
            in("x8") libc::SYS_clone3,
            inlateout("x0") arguments => result,
            in("x1") size, in("x20") argument, in("x21") entry,
        );
    }
    match result {
        -4095..=-1 => Err(-result as i32),
        // A pid is at most 2^22.
        _ => Ok(result as libc::pid_t),
    }
}

/// Ends the process.
pub fn exit(code: i32) -> ! {
    loop {
        // SAFETY: takes no pointers, and does not return.
        let _ = unsafe { call(libc::SYS_exit_group, [code as usize, 0, 0, 0, 0]) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_and_errors_are_told_apart() {
        // SAFETY: neither call takes a pointer.
        unsafe {
            assert_eq!(
                call(libc::SYS_getpid, [0; 5]),
                Ok(std::process::id() as usize)
            );
            assert_eq!(
                call(libc::SYS_close, [usize::MAX, 0, 0, 0, 0]),
                Err(libc::EBADF)
            );
        }
    }
}
