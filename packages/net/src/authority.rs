//! `host[:port]` as clients write it.

use crate::address::canonical;
use crate::policy::Name;
use std::net::{IpAddr, Ipv6Addr};

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Host {
    Name(Name),
    Address(IpAddr),
}

impl Host {
    /// A name, or an IPv4 address in its one spelling. None for what some resolver would take
    /// for another address.
    pub fn parse(text: &str) -> Option<Host> {
        match text.parse::<std::net::Ipv4Addr>() {
            Ok(address) => Some(Host::Address(address.into())),
            Err(_) => Name::parse(text).map(Host::Name),
        }
    }

    /// The name to decide on, if it is one.
    pub fn name(&self) -> Option<&Name> {
        match self {
            Host::Name(name) => Some(name),
            Host::Address(_) => None,
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Authority {
    pub host: Host,
    pub port: Option<u16>,
}

impl Authority {
    /// `example.com`, `example.com:80`, `192.0.2.1:80`, `[2001:db8::1]:80`. No user, no zone, no
    /// percent-encoding, no port 0.
    pub fn parse(text: &str) -> Option<Authority> {
        let (host, rest) = if let Some(inside) = text.strip_prefix('[') {
            let (address, rest) = inside.split_once(']')?;
            let address: Ipv6Addr = address.parse().ok()?;
            (Host::Address(canonical(address.into())), rest)
        } else {
            let end = text.find(':').unwrap_or(text.len());
            (Host::parse(&text[..end])?, &text[end..])
        };
        let port = match rest.strip_prefix(':') {
            None if rest.is_empty() => None,
            None => return None,
            // RFC 3986 3.2.3 has an empty port for the default one.
            Some("") => None,
            Some(digits) if digits.bytes().all(|byte| byte.is_ascii_digit()) => {
                Some(digits.parse::<u16>().ok().filter(|port| *port != 0)?)
            }
            Some(_) => return None,
        };
        Some(Authority { host, port })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_an_authority() {
        for (text, host, port) in [
            ("example.com", "example.com", None),
            ("Example.com.:80", "example.com", Some(80)),
            ("example.com:", "example.com", None),
        ] {
            let seen = Authority::parse(text).expect(text);
            assert_eq!(seen.host, Host::Name(Name::parse(host).unwrap()));
            assert_eq!(seen.port, port);
        }
        for (text, address) in [
            ("192.0.2.1:80", "192.0.2.1"),
            ("[2001:db8::1]", "2001:db8::1"),
            ("[::ffff:192.0.2.1]:80", "192.0.2.1"),
        ] {
            let seen = Authority::parse(text).expect(text);
            assert_eq!(seen.host, Host::Address(address.parse().unwrap()));
        }
        for text in [
            "",
            ":80",
            "user@example.com",
            "example.com:80:80",
            "example.com:0",
            "example.com:65536",
            "example.com:+80",
            "example.com:8 0",
            "2001:db8::1",
            "[::1",
            "[::1]80",
            "[fe80::1%25eth0]",
            "0x7f.1",
            "2130706433",
            "127.1",
            "0177.0.0.1",
            "example.com/",
            "exam%70le.com",
            "a b",
            "[192.0.2.1]",
        ] {
            assert_eq!(Authority::parse(text), None, "{text}");
        }
    }
}
