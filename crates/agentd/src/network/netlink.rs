//! The few messages of rtnetlink(7) that give an interface addresses and routes, and their acknowledgements (RFC 3549).

use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use super::Address;
use crate::sys;

/// Of a header: length, type, flags, number, sender.
const HEADER: usize = 16;

/// One request, and what it does in words.
pub struct Message {
    what: String,
    kind: u16,
    flags: libc::c_int,
    body: Vec<u8>,
}

impl Message {
    /// Add or remove an address; nobody is asked whether it is taken.
    pub fn address(kind: u16, index: u32, address: &Address) -> Message {
        let scope = if address.is_link_local() {
            libc::RT_SCOPE_LINK
        } else {
            libc::RT_SCOPE_UNIVERSE
        };
        // struct ifaddrmsg: family, length of the prefix, flags, scope, index.
        let mut body = vec![
            family(&address.ip),
            address.prefix,
            libc::IFA_F_NODAD as u8,
            scope,
        ];
        body.extend(index.to_ne_bytes());
        Message {
            what: format!("the address {}", address.ip),
            kind,
            flags: libc::NLM_F_CREATE | libc::NLM_F_REPLACE,
            body,
        }
        .attribute(libc::IFA_LOCAL, &octets(&address.ip))
        .attribute(libc::IFA_ADDRESS, &octets(&address.ip))
    }

    /// Send everything to this gateway that goes nowhere else.
    pub fn default_route(index: u32, gateway: &IpAddr) -> Message {
        // struct rtmsg: family, lengths of destination and source, service, table, protocol, scope, type, flags.
        let mut body = vec![
            family(gateway),
            0,
            0,
            0,
            libc::RT_TABLE_MAIN,
            libc::RTPROT_STATIC,
            libc::RT_SCOPE_UNIVERSE,
            libc::RTN_UNICAST,
        ];
        body.extend([0; 4]);
        Message {
            what: format!("the route to {gateway}"),
            kind: libc::RTM_NEWROUTE,
            flags: libc::NLM_F_CREATE | libc::NLM_F_REPLACE,
            body,
        }
        .attribute(libc::RTA_GATEWAY, &octets(gateway))
        .attribute(libc::RTA_OIF, &index.to_ne_bytes())
    }

    /// With one more attribute: length, kind, and the value up to a multiple of four bytes.
    pub fn attribute(mut self, kind: u16, value: &[u8]) -> Message {
        let length = 4 + value.len();
        // A value is an address or a number.
        self.body.extend((length as u16).to_ne_bytes());
        self.body.extend(kind.to_ne_bytes());
        self.body.extend(value);
        self.body
            .resize(self.body.len() + length.next_multiple_of(4) - length, 0);
        self
    }

    fn encode(&self, number: u32) -> Vec<u8> {
        let length = HEADER + self.body.len();
        let flags = libc::NLM_F_REQUEST | libc::NLM_F_ACK | self.flags;
        let mut bytes = Vec::with_capacity(length);
        bytes.extend((length as u32).to_ne_bytes());
        bytes.extend(self.kind.to_ne_bytes());
        bytes.extend((flags as u16).to_ne_bytes());
        bytes.extend(number.to_ne_bytes());
        bytes.extend([0; 4]);
        bytes.extend(&self.body);
        bytes
    }
}

/// A socket on which the kernel is asked.
pub struct Talk(OwnedFd);

impl Talk {
    pub fn open() -> io::Result<Talk> {
        let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC;
        // SAFETY: takes no pointers.
        let socket =
            sys::check(unsafe { libc::socket(libc::AF_NETLINK, kind, libc::NETLINK_ROUTE) })?;
        // SAFETY: the call succeeded, so the descriptor is open and belongs to nobody else.
        Ok(Talk(unsafe { OwnedFd::from_raw_fd(socket) }))
    }

    /// Has them carried out, in their order; the first that is refused is named.
    pub fn ask(&self, messages: &[Message]) -> io::Result<()> {
        for (message, number) in messages.iter().zip(1..) {
            let bytes = message.encode(number);
            // SAFETY: `bytes` is readable for its length.
            sys::check_size(unsafe {
                libc::send(self.0.as_raw_fd(), bytes.as_ptr().cast(), bytes.len(), 0)
            })?;
            let mut answer = [0u8; 512];
            // SAFETY: `answer` is writable for its length. What is longer is cut off: it begins with what counts.
            let size = sys::check_size(unsafe {
                libc::recv(
                    self.0.as_raw_fd(),
                    answer.as_mut_ptr().cast(),
                    answer.len(),
                    0,
                )
            })?;
            acknowledged(&answer[..size]).map_err(|error| named(&message.what, error))?;
        }
        Ok(())
    }
}

impl AsFd for Talk {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Whether the kernel did what was asked.
fn acknowledged(answer: &[u8]) -> io::Result<()> {
    let malformed = || io::Error::other("the kernel's answer is no acknowledgement");
    let kind = answer.get(4..6).ok_or_else(malformed)?;
    let code: Option<[u8; 4]> = answer
        .get(HEADER..HEADER + 4)
        .and_then(|code| code.try_into().ok());
    if kind != (libc::NLMSG_ERROR as u16).to_ne_bytes() {
        return Err(malformed());
    }
    match i32::from_ne_bytes(code.ok_or_else(malformed)?) {
        0 => Ok(()),
        code => Err(io::Error::from_raw_os_error(code.saturating_neg())),
    }
}

/// The same error, with what it is about on the console: callers tell errors apart by their numbers.
fn named(what: &str, error: io::Error) -> io::Error {
    crate::log::error(&format!("{what}: {error}"));
    error
}

fn family(address: &IpAddr) -> u8 {
    match address {
        IpAddr::V4(_) => libc::AF_INET as u8,
        IpAddr::V6(_) => libc::AF_INET6 as u8,
    }
}

fn octets(address: &IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_route_is_encoded_as_the_kernel_reads_it() {
        let bytes = Message::default_route(3, &IpAddr::from([100, 80, 0, 1])).encode(7);
        let expected: [u8; 44] = [
            44, 0, 0, 0, 24, 0, 0x05, 0x05, 7, 0, 0, 0, 0, 0, 0, 0, // header
            2, 0, 0, 0, 254, 4, 0, 1, 0, 0, 0, 0, // rtmsg
            8, 0, 5, 0, 100, 80, 0, 1, // gateway
            8, 0, 4, 0, 3, 0, 0, 0, // interface
        ];
        assert_eq!(bytes, expected);
    }

    #[test]
    fn an_address_is_encoded_as_the_kernel_reads_it() {
        let address = Address {
            ip: IpAddr::from([100, 80, 0, 2]),
            prefix: 30,
        };
        let message = Message::address(libc::RTM_DELADDR, 3, &address);
        let attribute = [8, 0, 2, 0, 100, 80, 0, 2, 8, 0, 1, 0, 100, 80, 0, 2];
        assert_eq!(message.body[..8], [2, 30, 2, 0, 3, 0, 0, 0]);
        assert_eq!(message.body[8..], attribute);
    }

    #[test]
    fn an_answer_is_an_acknowledgement_or_an_error() {
        let answer = |kind: u16, code: i32| {
            let mut bytes = vec![36, 0, 0, 0];
            bytes.extend(kind.to_ne_bytes());
            bytes.extend([0; 10]);
            bytes.extend(code.to_ne_bytes());
            acknowledged(&bytes).map_err(|error| error.raw_os_error())
        };
        assert_eq!(answer(2, 0), Ok(()));
        assert_eq!(answer(2, -libc::ENODEV), Err(Some(libc::ENODEV)));
        assert_eq!(answer(3, 0), Err(None));
        assert!(acknowledged(&[36, 0, 0, 0, 2, 0]).is_err());
    }
}
