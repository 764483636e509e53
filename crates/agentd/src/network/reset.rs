//! The end of a copy's TCP connections. They were its source's: the addresses that they have are gone, so the kernel
//! could not even send a reset, and would have programs wait until it gives up, or, if they only read, for good.
//!
//! This kernel has no SOCK_DESTROY (CONFIG_INET_DIAG_DESTROY). So a copy of each socket's descriptor is fetched, and
//! the socket is disconnected (connect(2) with AF_UNSPEC): whoever has it meets ECONNRESET and then a socket that
//! is not connected. While programs are frozen nobody waits inside of the kernel for one.
//!
//! The workload may have made network namespaces, and have translated their addresses, so that a connection with the
//! world has any address there. It is known by its far end, which is nobody's in the sandbox.

use std::collections::HashSet;
use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::path::{Path, PathBuf};

use crate::log;
use crate::sys;

/// States of a TCP socket, as in the first byte of struct tcp_info (include/net/tcp_states.h).
const TIME_WAIT: u8 = 6;
const CLOSED: u8 = 7;
const LISTENING: u8 = 10;

/// Network namespaces whose connections are looked through, at most: with more, what leads out of one of them without
/// one of the card's addresses is not known.
const NAMESPACES: usize = 256;

/// Ends every connection of the workload with the world: those with one of these addresses, which the card had, and
/// those whose far end is nobody's in the sandbox. `proc` is /proc; what comes or goes meanwhile is passed over.
pub fn reset(proc: &OwnedFd, addresses: &[IpAddr]) {
    if addresses.is_empty() {
        return;
    }
    let proc = PathBuf::from(format!("/proc/self/fd/{}", proc.as_raw_fd()));
    let processes = numbers(&proc);
    let known = Known::read(&proc, &processes);
    // Most copies have none, and then nobody's descriptors are looked through.
    if !known.any {
        return;
    }
    // Each socket once, however many processes have it.
    let mut seen = HashSet::new();
    for process in processes {
        let descriptors = proc.join(process.to_string()).join("fd");
        let mut opened = None;
        for descriptor in numbers(&descriptors) {
            let Ok(target) = fs::read_link(descriptors.join(descriptor.to_string())) else {
                continue;
            };
            if !target
                .as_os_str()
                .as_encoded_bytes()
                .starts_with(b"socket:")
            {
                continue;
            }
            if !seen.insert(target) {
                continue;
            }
            if opened.is_none() {
                opened = pidfd(process).ok();
            }
            let socket = opened.as_ref().and_then(|of| fetch(of, descriptor).ok());
            if let Some(socket) = socket {
                if is_connected(&socket) && known.leads_out(ends(&socket), addresses) {
                    disconnect(&socket);
                }
            }
        }
    }
}

/// The TCP connections that the kernel lists in all network namespaces in which there is a process.
struct Known {
    /// Whether there is one, to whomever. True also if the kernel does not say.
    any: bool,
    /// The addresses on this side of each; None if there are too many namespaces.
    near: Option<HashSet<IpAddr>>,
}

impl Known {
    fn read(proc: &Path, processes: &[i32]) -> Known {
        let mut known = Known {
            any: false,
            near: Some(HashSet::new()),
        };
        let mut namespaces = HashSet::new();
        for process in processes {
            let process = proc.join(process.to_string());
            // Kernel threads have one too; who has ended has none.
            let Ok(namespace) = fs::read_link(process.join("ns/net")) else {
                continue;
            };
            if !namespaces.insert(namespace) {
                continue;
            }
            if namespaces.len() > NAMESPACES {
                log::error(&format!(
                    "more than {NAMESPACES} network namespaces: connections with the world through others are not reset"
                ));
                known.any = true;
                known.near = None;
                break;
            }
            match fs::read_to_string(process.join("net/tcp")) {
                Ok(listed) => known.note(&listed),
                Err(_) => known.any = true,
            }
            // A kernel may have been built without IPv6.
            known.note(&fs::read_to_string(process.join("net/tcp6")).unwrap_or_default());
        }
        known.any |= namespaces.is_empty();
        known
    }

    /// What /proc/net/tcp or tcp6 lists.
    fn note(&mut self, listed: &str) {
        for line in listed.lines().filter(|line| is_connection(line)) {
            self.any = true;
            if let Some(near) = &mut self.near {
                near.extend(near_end(line));
            }
        }
    }

    /// Whether a connection between `ends` (this side, the far one) is one with the world. `former` are the card's.
    fn leads_out(&self, ends: Option<(IpAddr, IpAddr)>, former: &[IpAddr]) -> bool {
        let Some((near, far)) = ends else {
            return false;
        };
        // A copy has the addresses of its card no more, whoever is at the other end.
        let gone = former.contains(&near) || former.contains(&far);
        let inside = |known: &HashSet<IpAddr>| far.is_loopback() || known.contains(&far);
        gone || self.near.as_ref().is_some_and(|known| !inside(known))
    }
}

/// Whether a line of /proc/net/tcp, whose fourth word is the state, is of one that a program may have.
fn is_connection(line: &str) -> bool {
    let word = line.split_whitespace().nth(3).unwrap_or_default();
    let state = u8::from_str_radix(word, 16);
    state.is_ok_and(|state| !matches!(state, TIME_WAIT | CLOSED | LISTENING))
}

/// The address on this side of such a line: its second word up to the colon, the bytes of the network in numbers of
/// 32 bits as the processor has them (net/ipv4/tcp_ipv4.c, get_tcp4_sock).
fn near_end(line: &str) -> Option<IpAddr> {
    let (digits, _) = line.split_whitespace().nth(1)?.split_once(':')?;
    let mut octets = Vec::new();
    for at in (0..digits.len()).step_by(8) {
        let number = u32::from_str_radix(digits.get(at..at + 8)?, 16).ok()?;
        octets.extend(number.to_ne_bytes());
    }
    match <[u8; 4]>::try_from(octets) {
        Ok(octets) => Some(octets.into()),
        Err(octets) => Some(IpAddr::from(<[u8; 16]>::try_from(octets).ok()?).to_canonical()),
    }
}

/// The entries of a directory that are numbers.
fn numbers(directory: &Path) -> Vec<i32> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let name = |entry: fs::DirEntry| entry.file_name().to_str()?.parse().ok();
    entries.filter_map(name).collect()
}

fn owned(result: libc::c_long) -> io::Result<OwnedFd> {
    let fd = sys::check(RawFd::try_from(result).unwrap_or(-1))?;
    // SAFETY: the call succeeded, so the descriptor is open and belongs to nobody else.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn pidfd(process: i32) -> io::Result<OwnedFd> {
    // SAFETY: takes no pointers.
    owned(unsafe { libc::syscall(libc::SYS_pidfd_open, process, 0) })
}

fn fetch(process: &OwnedFd, descriptor: RawFd) -> io::Result<OwnedFd> {
    let process = process.as_raw_fd();
    // SAFETY: takes no pointers.
    owned(unsafe { libc::syscall(libc::SYS_pidfd_getfd, process, descriptor, 0) })
}

/// Whether it is a TCP socket that has, or is about to have, somebody at its other end.
fn is_connected(socket: &OwnedFd) -> bool {
    let mut state = 0u8;
    // What is longer is cut off.
    let mut size = 1;
    // SAFETY: `state` has the one byte that `size` says.
    let found = sys::check(unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            (&raw mut state).cast(),
            &mut size,
        )
    });
    found.is_ok() && size == 1 && !matches!(state, 0 | CLOSED | LISTENING)
}

/// The addresses on this side and on the far one.
fn ends(socket: &OwnedFd) -> Option<(IpAddr, IpAddr)> {
    let near = name(socket, libc::getsockname)?;
    Some((near, name(socket, libc::getpeername)?))
}

type Call = unsafe extern "C" fn(RawFd, *mut libc::sockaddr, *mut libc::socklen_t) -> libc::c_int;

/// The address that `call` tells; an IPv4 one of an IPv6 socket as what it is.
fn name(socket: &OwnedFd, call: Call) -> Option<IpAddr> {
    // SAFETY: all-zero bytes are a valid sockaddr_in6, which is the larger one.
    let mut name: libc::sockaddr_in6 = unsafe { std::mem::zeroed() };
    let mut size = size_of::<libc::sockaddr_in6>() as libc::socklen_t;
    let place = &raw mut name;
    // SAFETY: `call` is getsockname(2) or getpeername(2), and `name` is writable for `size` bytes.
    sys::check(unsafe { call(socket.as_raw_fd(), place.cast(), &mut size) }).ok()?;
    match i32::from(name.sin6_family) {
        libc::AF_INET => {
            // SAFETY: the family says so, and a sockaddr_in is no larger and no more aligned.
            let name = unsafe { &*place.cast::<libc::sockaddr_in>() };
            Some(Ipv4Addr::from(u32::from_be(name.sin_addr.s_addr)).into())
        }
        libc::AF_INET6 => Some(IpAddr::from(Ipv6Addr::from(name.sin6_addr.s6_addr)).to_canonical()),
        _ => None,
    }
}

fn disconnect(socket: &OwnedFd) {
    let nobody = libc::sockaddr {
        sa_family: libc::AF_UNSPEC as libc::sa_family_t,
        sa_data: [0; 14],
    };
    let size = size_of::<libc::sockaddr>() as libc::socklen_t;
    // SAFETY: `nobody` is readable for `size` bytes. A socket that has just ended is no error here.
    unsafe { libc::connect(socket.as_raw_fd(), &nobody, size) };
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)] // A failed test should say where.
    use super::*;
    use std::io::Read;
    use std::net::{TcpListener, TcpStream};

    /// Both ends of a connection, and who made it.
    fn connection(address: &str) -> (TcpStream, TcpStream, TcpListener) {
        let listener = TcpListener::bind((address, 0)).unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (server, _) = listener.accept().unwrap();
        (client, server, listener)
    }

    fn fd(stream: &TcpStream) -> OwnedFd {
        stream.try_clone().unwrap().into()
    }

    #[test]
    fn a_connection_is_told_from_what_is_none() {
        let (client, _server, listener) = connection("127.0.0.1");
        assert!(is_connected(&fd(&client)));
        assert!(!is_connected(&listener.into()));
        let (pipe, _) = crate::sys::fd::pipe().unwrap();
        assert!(!is_connected(&pipe));
        let (unix, _) = std::os::unix::net::UnixStream::pair().unwrap();
        assert!(!is_connected(&unix.into()));
    }

    #[test]
    fn a_line_of_the_kernel_is_a_connection_or_not() {
        let line = |state| format!("   0: 0200005F:D1BA 020000C0:ADE1 {state} 00000000:00000000");
        assert!(["01", "02", "08"]
            .iter()
            .all(|state| is_connection(&line(state))));
        assert!(!["06", "07", "0A", "st"]
            .iter()
            .any(|state| is_connection(&line(state))));
        assert!(!is_connection(
            "  sl  local_address rem_address   st tx_queue rx_queue"
        ));
        assert!(!is_connection(""));
    }

    #[test]
    fn its_ends_are_found() {
        let (client, _server, _listener) = connection("127.43.7.3");
        let far: IpAddr = "127.43.7.3".parse().unwrap();
        let near = client.local_addr().unwrap().ip();
        assert_eq!(ends(&fd(&client)), Some((near, far)));
        let (pipe, _) = crate::sys::fd::pipe().unwrap();
        assert_eq!(ends(&pipe), None);
    }

    #[test]
    fn the_address_on_this_side_is_read_from_a_line() {
        let line = |address| format!("   0: {address}:D1BA 020000C0:ADE1 01 00000000:00000000");
        let expected = |text: &str| Some(text.parse::<IpAddr>().unwrap());
        // As a processor that begins with the lowest byte writes them.
        if cfg!(target_endian = "little") {
            assert_eq!(near_end(&line("0200005F")), expected("95.0.0.2"));
            let six = "B80D01200000000000000000FE000000";
            assert_eq!(near_end(&line(six)), expected("2001:db8::fe"));
            let mapped = "0000000000000000FFFF00000200005F";
            assert_eq!(near_end(&line(mapped)), expected("95.0.0.2"));
        }
        for wrong in ["", "0200005", "0200005F02", "0200005é"] {
            assert_eq!(near_end(&line(wrong)), None, "{wrong}");
        }
        assert_eq!(near_end(""), None);
    }

    #[test]
    fn what_leads_out_is_known_by_its_ends() {
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        let former = [ip("100.80.0.2"), ip("fd00::2")];
        let near = HashSet::from([ip("100.80.0.2"), ip("172.17.0.2"), ip("172.17.0.3")]);
        let leads = |near: &Option<HashSet<IpAddr>>, ends: (&str, &str)| {
            let known = Known {
                any: true,
                near: near.clone(),
            };
            known.leads_out(Some((ip(ends.0), ip(ends.1))), &former)
        };
        for (ends, out, where_too_many) in [
            // The card's own, a translated one of a namespace, two namespaces, loopback, a namespace and the card.
            (("100.80.0.2", "192.0.2.1"), true, true),
            (("172.17.0.2", "192.0.2.1"), true, false),
            (("172.17.0.2", "172.17.0.3"), false, false),
            (("127.0.0.1", "127.0.0.1"), false, false),
            (("172.17.0.2", "100.80.0.2"), true, true),
        ] {
            assert_eq!(leads(&Some(near.clone()), ends), out, "{ends:?}");
            assert_eq!(leads(&None, ends), where_too_many, "{ends:?}");
        }
    }

    #[test]
    fn this_process_s_connections_are_known() {
        let (client, _server, _listener) = connection("127.43.7.4");
        let id = std::process::id() as i32;
        let known = Known::read(Path::new("/proc"), &[id, id]);
        assert!(known.any);
        let near = known.near.unwrap();
        assert!(near.contains(&"127.43.7.4".parse().unwrap()));
        assert!(near.contains(&client.local_addr().unwrap().ip()));
        // Where the kernel says nothing, there may be some.
        assert!(Known::read(Path::new("/nowhere"), &[id]).any);
    }

    #[test]
    fn who_has_one_that_is_disconnected_sees_a_reset() {
        let (mut client, mut server, _listener) = connection("127.0.0.1");
        disconnect(&fd(&client));
        for stream in [&mut client, &mut server] {
            let error = stream.read(&mut [0]).unwrap_err();
            assert_eq!(error.raw_os_error(), Some(libc::ECONNRESET));
        }
        assert!(!is_connected(&fd(&client)));
    }

    #[test]
    fn those_with_an_address_are_reset_and_no_others() {
        // This process and no other.
        let id = std::process::id();
        let proc = std::env::temp_dir().join(format!("agentd-reset-{id}"));
        fs::create_dir(&proc).unwrap();
        let link = proc.join(id.to_string());
        std::os::unix::fs::symlink(format!("/proc/{id}"), &link).unwrap();
        let opened: OwnedFd = fs::File::open(&proc).unwrap().into();
        // Addresses that nothing else has a connection from.
        let (_client, mut ours, _listener) = connection("127.43.7.1");
        let (_other, theirs, _other_listener) = connection("127.43.7.2");
        reset(&opened, &["127.43.7.1".parse().unwrap()]);
        let error = ours.read(&mut [0]).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ECONNRESET));
        assert!(is_connected(&fd(&theirs)));
        reset(&opened, &[]);
        assert!(is_connected(&fd(&theirs)));
        fs::remove_dir_all(&proc).unwrap();
    }
}
