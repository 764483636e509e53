//! The filter of system calls, as a program for the kernel's classic BPF machine (seccomp(2)).
//!
//! Written out here and not by a library, because PID 1 has no dependencies but the C library's names, and
//! because of its form: a binary search. The kernel runs a filter once for every number when a process enters it, so a
//! chain of comparisons is paid at every exec. Afterwards calls whose verdict depends on nothing else are not
//! filtered at all (the kernel keeps a bitmap of them).

use std::ffi::c_long;

use libc::{
    sock_filter, BPF_ABS, BPF_JA, BPF_JEQ, BPF_JGE, BPF_JMP, BPF_JSET, BPF_K, BPF_LD, BPF_RET,
    BPF_W,
};

use super::syscalls::{
    Verdict, FAMILIES, LAST, NAMESPACES, NAMESPACE_OF_TIME, PERSONALITIES, RULES,
};

// Offsets in struct seccomp_data.
const NUMBER: u32 = 0;
const ARCHITECTURE: u32 = 4;
/// The lower half of the first argument on a little-endian machine; the kernel looks at no more of those
/// that are checked.
const FIRST_ARGUMENT: u32 = 16;

#[cfg(target_arch = "x86_64")]
const NATIVE: u32 = 0xc000_003e;
#[cfg(target_arch = "aarch64")]
const NATIVE: u32 = 0xc000_00b7;

/// Calls of x32 have this bit. Other architectures have no numbers as high.
const X32: u32 = 0x4000_0000;

fn statement(code: u32, k: u32) -> sock_filter {
    // Every code is below 2^16.
    sock_filter {
        code: code as u16,
        jt: 0,
        jf: 0,
        k,
    }
}

/// Goes on `yes` or `no` instructions later.
fn jump(test: u32, k: u32, yes: u8, no: u8) -> sock_filter {
    sock_filter {
        jt: yes,
        jf: no,
        ..statement(BPF_JMP | test | BPF_K, k)
    }
}

fn load(offset: u32) -> sock_filter {
    statement(BPF_LD | BPF_W | BPF_ABS, offset)
}

fn give(action: u32) -> sock_filter {
    statement(BPF_RET | BPF_K, action)
}

fn fail(errno: i32) -> sock_filter {
    give(libc::SECCOMP_RET_ERRNO | errno as u32)
}

/// The whole filter.
pub fn program() -> Vec<sock_filter> {
    let mut program = vec![
        load(ARCHITECTURE),
        // Another architecture's numbers mean other calls: nothing built for this one makes any.
        jump(BPF_JEQ, NATIVE, 1, 0),
        give(libc::SECCOMP_RET_KILL_PROCESS),
        load(NUMBER),
        jump(BPF_JGE, X32, 0, 1),
        fail(libc::ENOSYS),
    ];
    program.extend(search(&ranges()));
    program
}

/// Runs of numbers with one verdict, each with its first number: all there are, in order.
fn ranges() -> Vec<(u32, Verdict)> {
    let mut verdicts = [Verdict::Allow; LAST as usize + 2];
    for (number, verdict) in RULES {
        verdicts[*number as usize] = *verdict;
    }
    verdicts[LAST as usize + 1] = Verdict::Fail(libc::ENOSYS);
    let mut ranges: Vec<(u32, Verdict)> = Vec::new();
    for (number, verdict) in (0..).zip(verdicts) {
        if ranges.last().is_none_or(|(_, last)| *last != verdict) {
            ranges.push((number, verdict));
        }
    }
    ranges
}

/// Finds the range that the loaded number is in.
fn search(ranges: &[(u32, Verdict)]) -> Vec<sock_filter> {
    if let [(number, verdict)] = ranges {
        return leaf(*number, *verdict);
    }
    let (below, from) = ranges.split_at(ranges.len() / 2);
    let (middle, _) = from[0];
    let below = search(below);
    let mut program = match u8::try_from(below.len()) {
        Ok(distance) => vec![jump(BPF_JGE, middle, distance, 0)],
        // A conditional jump reaches no further.
        Err(_) => vec![
            jump(BPF_JGE, middle, 0, 1),
            statement(BPF_JMP | BPF_JA, below.len() as u32),
        ],
    };
    program.extend(below);
    program.extend(search(from));
    program
}

fn leaf(number: u32, verdict: Verdict) -> Vec<sock_filter> {
    let allow = give(libc::SECCOMP_RET_ALLOW);
    // Allowed is what equals one of these.
    let one_of = |values: &[u32], errno| {
        let mut program = vec![load(FIRST_ARGUMENT)];
        for (index, value) in values.iter().enumerate() {
            // To the end, past the comparisons that are left and the failure: a handful.
            program.push(jump(BPF_JEQ, *value, (values.len() - index) as u8, 0));
        }
        program.extend([fail(errno), allow]);
        program
    };
    match verdict {
        Verdict::Allow => vec![allow],
        Verdict::Fail(errno) => vec![fail(errno)],
        Verdict::Families => one_of(&FAMILIES, libc::EAFNOSUPPORT),
        Verdict::Personalities => one_of(&PERSONALITIES, libc::EPERM),
        Verdict::NoNamespaces => {
            let time = match c_long::from(number) {
                libc::SYS_unshare => NAMESPACE_OF_TIME,
                _ => 0,
            };
            vec![
                load(FIRST_ARGUMENT),
                jump(BPF_JSET, NAMESPACES | time, 0, 1),
                fail(libc::EPERM),
                allow,
            ]
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)] // A failed test should say where.
    use super::*;

    const ALLOW: u32 = libc::SECCOMP_RET_ALLOW;

    fn errno(number: i32) -> u32 {
        libc::SECCOMP_RET_ERRNO | number as u32
    }

    /// What the kernel's machine would say; only what is used here.
    fn run(architecture: u32, number: u32, argument: u32) -> (u32, usize) {
        let program = program();
        let (mut at, mut accumulator, mut steps) = (0, 0, 0);
        loop {
            let instruction = &program[at];
            (at, steps) = (at + 1, steps + 1);
            let k = instruction.k;
            let code = u32::from(instruction.code);
            let take = |condition: bool| match condition {
                true => usize::from(instruction.jt),
                false => usize::from(instruction.jf),
            };
            if code == BPF_RET | BPF_K {
                return (k, steps);
            } else if code == BPF_LD | BPF_W | BPF_ABS {
                accumulator = match k {
                    NUMBER => number,
                    ARCHITECTURE => architecture,
                    FIRST_ARGUMENT => argument,
                    _ => panic!("loads {k}"),
                };
            } else if code == BPF_JMP | BPF_JA {
                at += k as usize;
            } else if code == BPF_JMP | BPF_JEQ | BPF_K {
                at += take(accumulator == k);
            } else if code == BPF_JMP | BPF_JGE | BPF_K {
                at += take(accumulator >= k);
            } else if code == BPF_JMP | BPF_JSET | BPF_K {
                at += take(accumulator & k != 0);
            } else {
                panic!("instruction {code:#x}");
            }
        }
    }

    fn verdict(number: c_long, argument: u32) -> u32 {
        run(NATIVE, number as u32, argument).0
    }

    #[test]
    fn every_number_gets_the_verdict_of_its_rule() {
        for number in 0..=LAST + 100 {
            let rule = RULES.iter().find(|(other, _)| *other == number);
            let wanted = match rule.map(|(_, verdict)| *verdict) {
                Some(Verdict::Fail(error)) => errno(error),
                Some(Verdict::NoNamespaces | Verdict::Allow) => ALLOW,
                Some(Verdict::Personalities) => ALLOW,
                Some(Verdict::Families) => errno(libc::EAFNOSUPPORT),
                None if number > LAST => errno(libc::ENOSYS),
                None => ALLOW,
            };
            assert_eq!(verdict(number, 0), wanted, "call {number}");
        }
    }

    #[test]
    fn a_verdict_takes_few_steps() {
        let longest = (0..=LAST).map(|number| run(NATIVE, number as u32, 0).1);
        assert!(longest.max().unwrap() <= 20);
        assert!(program().len() < 300); // said in docs/security.md; the kernel takes 4096
    }

    #[test]
    fn namespaces_are_refused_and_threads_are_not() {
        let threads = libc::CLONE_VM | libc::CLONE_FS | libc::CLONE_FILES | libc::CLONE_THREAD;
        let of_time = NAMESPACE_OF_TIME as i32;
        for (number, flags, wanted) in [
            (libc::SYS_clone, threads, ALLOW),
            (libc::SYS_clone, libc::SIGCHLD, ALLOW),
            (libc::SYS_clone, of_time, ALLOW),
            (
                libc::SYS_clone,
                libc::CLONE_NEWUSER | libc::SIGCHLD,
                errno(libc::EPERM),
            ),
            (libc::SYS_unshare, libc::CLONE_FS | libc::CLONE_FILES, ALLOW),
            (libc::SYS_unshare, libc::CLONE_NEWNS, errno(libc::EPERM)),
            (libc::SYS_unshare, of_time, errno(libc::EPERM)),
        ] {
            assert_eq!(verdict(number, flags as u32), wanted, "{number} {flags:#x}");
        }
    }

    #[test]
    fn sockets_and_personalities_are_the_usual_ones() {
        let refused = errno(libc::EAFNOSUPPORT);
        for (family, wanted) in [
            (libc::AF_UNIX, ALLOW),
            (libc::AF_INET, ALLOW),
            (libc::AF_INET6, ALLOW),
            (libc::AF_NETLINK, ALLOW),
            (libc::AF_PACKET, refused),
            (libc::AF_ALG, refused),
            (libc::AF_VSOCK, refused),
            (-1, refused),
        ] {
            assert_eq!(verdict(libc::SYS_socket, family as u32), wanted, "{family}");
        }
        for (personality, wanted) in [
            (0, ALLOW),
            (u32::MAX, ALLOW),
            (0x0004_0000, errno(libc::EPERM)), // ADDR_NO_RANDOMIZE
            (0x0040_0000, errno(libc::EPERM)), // READ_IMPLIES_EXEC
        ] {
            assert_eq!(verdict(libc::SYS_personality, personality), wanted);
        }
    }

    #[test]
    fn other_architectures_have_no_calls() {
        const I386: u32 = 0x4000_0003;
        let write = libc::SYS_write as u32;
        assert_eq!(run(I386, 4, 0).0, libc::SECCOMP_RET_KILL_PROCESS);
        assert_eq!(run(NATIVE, X32 | write, 0).0, errno(libc::ENOSYS));
        assert_eq!(run(NATIVE, u32::MAX, 0).0, errno(libc::ENOSYS));
    }

    #[test]
    fn the_kernel_takes_it() {
        let confinement = super::super::Confinement { filter: program() };
        // SAFETY: the child makes system calls and ends; it shares nothing.
        let pid = unsafe { libc::fork() };
        if pid == 0 {
            // SAFETY: the child has this memory to itself, and the calls take no pointers.
            let code = unsafe {
                // As anybody, for the tests need not be root.
                let entered = confinement.enter(1000).is_ok();
                let refused = libc::unshare(libc::CLONE_NEWUSER) == -1;
                let allowed = libc::getppid() > 0;
                i32::from(!(entered && refused && allowed))
            };
            crate::sys::raw::exit(code);
        }
        let mut status = -1;
        // SAFETY: `status` is writable.
        assert_eq!(unsafe { libc::waitpid(pid, &mut status, 0) }, pid);
        assert_eq!(status, 0);
    }
}
