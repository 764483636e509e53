//! The request of a SOCKS client: SOCKS4, SOCKS4a, SOCKS5 (RFC 1928, RFC 1929).

use super::{Bytes, Host, Progress};
use crate::address::canonical;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The longest beginning that is read, in bytes: more than any client sends.
pub const LONGEST: usize = 2048;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    Connect,
    Bind,
    /// UDP ASSOCIATE. Where the datagrams go is not in the request.
    Associate,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    pub version: u8,
    pub command: Command,
    pub host: Host,
    pub port: u16,
    /// Bytes of all that the client sent up to its end.
    pub length: usize,
}

/// Fed with what a TCP client sends first; what the server answers is not needed.
#[derive(Debug, Default)]
pub struct Reader {
    bytes: Vec<u8>,
}

enum End {
    NotThis,
    Malformed(&'static str),
}

impl Reader {
    pub fn feed(&mut self, bytes: &[u8]) -> Progress<Request> {
        let room = LONGEST - self.bytes.len();
        self.bytes
            .extend_from_slice(&bytes[..bytes.len().min(room)]);
        let rest = &mut Bytes(&self.bytes);
        let parsed = match self.bytes.first() {
            Some(4) => version_4(rest),
            Some(5) => version_5(rest),
            Some(_) => Err(End::NotThis),
            None => Ok(None),
        };
        let left = rest.0.len();
        match parsed {
            Ok(Some(request)) => Progress::Found(Request {
                length: self.bytes.len() - left,
                ..request
            }),
            Ok(None) if self.bytes.len() == LONGEST => {
                Progress::Malformed("a SOCKS request that is too long")
            }
            Ok(None) => Progress::NeedMore,
            Err(End::NotThis) => Progress::NotThis,
            Err(End::Malformed(why)) => Progress::Malformed(why),
        }
    }
}

/// `Ok(None)` where bytes are missing.
macro_rules! need {
    ($taken:expr) => {
        match $taken {
            Some(taken) => taken,
            None => return Ok(None),
        }
    };
}

fn version_4(rest: &mut Bytes<'_>) -> Result<Option<Request>, End> {
    need!(rest.u8());
    let command = match need!(rest.u8()) {
        1 => Command::Connect,
        2 => Command::Bind,
        _ => return Err(End::NotThis),
    };
    let port = need!(rest.u16());
    let octets = need!(rest.take(4));
    let address = Ipv4Addr::new(octets[0], octets[1], octets[2], octets[3]);
    need!(until_zero(rest)?); // the user
                              // SOCKS4a: 0.0.0.x, x not 0, and the name after the user.
    let host = if octets[..3] == [0, 0, 0] && octets[3] != 0 {
        host(need!(until_zero(rest)?))?
    } else {
        Host::Address(address.into())
    };
    Ok(Some(Request {
        version: 4,
        command,
        host,
        port,
        length: 0,
    }))
}

fn until_zero<'a>(rest: &mut Bytes<'a>) -> Result<Option<&'a [u8]>, End> {
    let Some(end) = rest.0.iter().take(256).position(|byte| *byte == 0) else {
        return if rest.0.len() > 255 {
            Err(End::Malformed("a SOCKS4 text without an end"))
        } else {
            Ok(None)
        };
    };
    let text = rest.take(end);
    rest.take(1);
    Ok(text)
}

fn host(text: &[u8]) -> Result<Host, End> {
    let text = std::str::from_utf8(text).ok();
    text.and_then(Host::parse).ok_or(End::Malformed(
        "a SOCKS request for something that is no host",
    ))
}

fn version_5(rest: &mut Bytes<'_>) -> Result<Option<Request>, End> {
    need!(rest.u8());
    let count = need!(rest.u8());
    if count == 0 {
        return Err(End::NotThis);
    }
    let methods = need!(rest.take(usize::from(count)));
    let mut version = need!(rest.u8());
    if version == 1 {
        // Both the password's and GSSAPI's messages begin so.
        if !methods.contains(&2) || methods.contains(&1) {
            return Err(End::Malformed(
                "SOCKS5 with an authentication that hides the request",
            ));
        }
        need!(rest.short()); // user
        need!(rest.short()); // password
        version = need!(rest.u8());
    }
    if version != 5 {
        return Err(End::Malformed("a SOCKS5 greeting without a request"));
    }
    let command = match need!(rest.u8()) {
        1 => Command::Connect,
        2 => Command::Bind,
        3 => Command::Associate,
        _ => return Err(End::Malformed("a SOCKS5 command that does not exist")),
    };
    if need!(rest.u8()) != 0 {
        return Err(End::Malformed(
            "a SOCKS5 request whose reserved byte is not 0",
        ));
    }
    let host = match need!(rest.u8()) {
        1 => {
            let octets = need!(rest.take(4));
            let octets: [u8; 4] = octets.try_into().expect("four were taken");
            Host::Address(octets.into())
        }
        4 => {
            let octets = need!(rest.take(16));
            let octets: [u8; 16] = octets.try_into().expect("sixteen were taken");
            Host::Address(canonical(IpAddr::V6(Ipv6Addr::from(octets))))
        }
        3 => host(need!(rest.short()).0)?,
        _ => {
            return Err(End::Malformed(
                "a SOCKS5 address of a type that does not exist",
            ))
        }
    };
    let port = need!(rest.u16());
    Ok(Some(Request {
        version: 5,
        command,
        host,
        port,
        length: 0,
    }))
}

#[cfg(test)]
mod tests {
    use super::super::testing::whole_and_in_pieces;
    use super::*;
    use proptest::prelude::*;

    fn read(bytes: &[u8]) -> Progress<Request> {
        whole_and_in_pieces(bytes, Reader::default, Reader::feed)
    }

    fn found(bytes: &[u8]) -> (u8, Host, u16) {
        match read(bytes) {
            Progress::Found(request) => (request.version, request.host, request.port),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn n22_the_inner_target_is_found() {
        let name = |text| Host::parse(text).unwrap();
        let address = |text: &str| Host::Address(text.parse().unwrap());
        for (bytes, expected) in [
            (
                &b"\x04\x01\x00\x16\x0a\x00\x00\x01root\x00"[..],
                (4, address("10.0.0.1"), 22),
            ),
            (
                b"\x04\x01\x00\x50\x00\x00\x00\x01\x00Internal.example\x00",
                (4, name("internal.example"), 80),
            ),
            (
                b"\x05\x01\x00\x05\x01\x00\x01\x0a\x00\x00\x01\x00\x16",
                (5, address("10.0.0.1"), 22),
            ),
            (
                b"\x05\x02\x00\x01\x05\x01\x00\x03\x03a.b\x01\xbb",
                (5, name("a.b"), 443),
            ),
            (
                b"\x05\x02\x00\x02\x01\x01u\x01p\x05\x01\x00\x03\x03a.b\x01\xbb",
                (5, name("a.b"), 443),
            ),
            (
                b"\x05\x01\x00\x05\x03\x00\x04\0\0\0\0\0\0\0\0\0\0\xff\xff\x7f\0\0\x01\0\x35",
                (5, address("127.0.0.1"), 53),
            ),
            (
                b"\x05\x01\x00\x05\x01\x00\x03\x0910.0.0.01\x00\x16",
                (5, address("0.0.0.0"), 0),
            ),
        ] {
            if expected.2 == 0 {
                assert!(matches!(read(bytes), Progress::Malformed(_)));
            } else {
                assert_eq!(found(bytes), expected);
            }
        }
    }

    #[test]
    fn what_is_not_socks_or_not_sound() {
        for bytes in [
            &b"GET /"[..],
            b"\x16\x03\x01",
            b"\x04\x09",
            b"\x05\x00",
            b"\x00",
        ] {
            assert_eq!(read(bytes), Progress::NotThis, "{bytes:?}");
        }
        let long_user = [&b"\x04\x01\x00\x50\x08\x08\x08\x08"[..], &[b'x'; 400]].concat();
        for bytes in [
            &b"\x05\x01\x00\x04"[..],
            b"\x05\x01\x01\x01\x01",
            b"\x05\x02\x01\x02\x01\x01",
            b"\x05\x01\x00\x05\x04",
            b"\x05\x01\x00\x05\x01\x01",
            b"\x05\x01\x00\x05\x01\x00\x02",
            b"\x05\x01\x00\x05\x01\x00\x03\x03a b\x00\x50",
            b"\x05\x01\x00\x05\x01\x00\x03\x00\x00\x50",
            &long_user,
        ] {
            assert!(matches!(read(bytes), Progress::Malformed(_)), "{bytes:?}");
        }
        assert_eq!(read(b"\x05"), Progress::NeedMore);
        assert_eq!(read(b""), Progress::NeedMore);
    }

    proptest! {
        #[test]
        fn any_bytes(version in 4..6u8, bytes in prop::collection::vec(0..6u8, 0..40)) {
            read(&[&[version][..], &bytes].concat());
        }
    }
}
