//! The proxy that TCP goes through, and what goes past it, as they are written. Pure.

use crate::address::canonical;
use crate::authority::{Authority, Host};
use crate::policy::{Name, HOST_NAME};
use crate::wire::tunnel::Protocol;
use std::fmt;
use std::net::IpAddr;

/// A proxy. Neither of its texts holds the password.
#[derive(Clone, PartialEq, Eq)]
pub struct Proxy {
    pub protocol: Protocol,
    pub host: Host,
    pub port: u16,
    /// User and password.
    pub credentials: Option<(Vec<u8>, Vec<u8>)>,
    pub exempt: Exempt,
}

impl Proxy {
    /// `http://` or `socks5://` (`socks5h://` is the same), `[user[:password]@]host:port`, user and password
    /// percent-encoded. The error says what is wrong, without user and password.
    pub fn parse(url: &str, no_proxy: &str) -> Result<Proxy, String> {
        let (scheme, rest) = url
            .split_once("://")
            .filter(|(scheme, _)| scheme.bytes().all(|byte| byte.is_ascii_alphanumeric()))
            .ok_or("proxy: no URL; write http://host:port or socks5://host:port")?;
        let rest = rest.strip_suffix('/').unwrap_or(rest);
        let (user, place) = match rest.rsplit_once('@') {
            Some((user, place)) => (Some(user), place),
            None => (None, rest),
        };
        let protocol = match scheme.to_ascii_lowercase().as_str() {
            "http" => Protocol::Http,
            "socks5" | "socks5h" => Protocol::Socks5,
            _ => {
                return Err(format!(
                    "proxy: {scheme:?} is not supported; write http:// or socks5://"
                ))
            }
        };
        let Some(Authority {
            host,
            port: Some(port),
        }) = Authority::parse(place)
        else {
            // Not shown: where something is wrong with it, it may be the end of a password.
            return Err("proxy: write a host and a port, as http://proxy.example:3128".to_owned());
        };
        let credentials = match user {
            Some(text) => {
                let wrong = |what| format!("proxy at {place:?}: {what}");
                Some(credentials(protocol, text).map_err(wrong)?)
            }
            None => None,
        };
        Ok(Proxy {
            protocol,
            host,
            port,
            credentials,
            exempt: Exempt::parse(no_proxy)?,
        })
    }
}

/// How a flow gets out where there is a proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    Through,
    Past,
    /// It leads to the proxy itself, which is not for the sandbox to reach.
    Itself,
}

impl Proxy {
    /// The way of a flow to `host`, as far as it can be told without asking anybody: what a name leads to is not
    /// known, and neither is whether two names are of one machine.
    pub fn way(&self, host: &Host, port: Option<u16>) -> Way {
        let exempt = match host {
            Host::Name(name) => name.as_str() == HOST_NAME || self.exempt.name(name),
            Host::Address(address) => self.exempt.address(*address),
        };
        match exempt {
            _ if *host == self.host && port == Some(self.port) => Way::Itself,
            true => Way::Past,
            false => Way::Through,
        }
    }
}

impl fmt::Display for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = match self.protocol {
            Protocol::Http => "http",
            Protocol::Socks5 => "socks5",
        };
        match &self.host {
            Host::Name(name) => write!(f, "{scheme}://{name}:{}", self.port),
            Host::Address(IpAddr::V4(v4)) => write!(f, "{scheme}://{v4}:{}", self.port),
            Host::Address(IpAddr::V6(v6)) => write!(f, "{scheme}://[{v6}]:{}", self.port),
        }
    }
}

impl fmt::Debug for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Proxy({self})")
    }
}

type Credentials = (Vec<u8>, Vec<u8>);

fn credentials(protocol: Protocol, text: &str) -> Result<Credentials, &'static str> {
    let (user, password) = text.split_once(':').unwrap_or((text, ""));
    let decoded = |part| decoded(part).ok_or("its user or password has a % that encodes nothing");
    let (user, password) = (decoded(user)?, decoded(password)?);
    match protocol {
        // RFC 7617, 2.
        Protocol::Http if user.contains(&b':') => Err("a user of HTTP has no colon"),
        // RFC 1929, 2.
        Protocol::Socks5
            if [&user, &password]
                .iter()
                .any(|part| !(1..=255).contains(&part.len())) =>
        {
            Err("user and password of SOCKS5 have 1 to 255 bytes each")
        }
        _ => Ok((user, password)),
    }
}

/// Percent-encoding (RFC 3986, 2.1) undone.
fn decoded(text: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, behind)) = rest.split_first() {
        rest = behind;
        if *first != b'%' {
            bytes.push(*first);
            continue;
        }
        let (digits, behind) = rest.split_at_checked(2)?;
        if !digits.iter().all(u8::is_ascii_hexdigit) {
            return None;
        }
        bytes.push(u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?);
        rest = behind;
    }
    Some(bytes)
}

/// What goes past the proxy, in the words of curl's `no_proxy`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Exempt {
    all: bool,
    /// Names with all that is below them.
    names: Vec<Name>,
    /// Networks as address and length of the prefix.
    networks: Vec<(IpAddr, u32)>,
}

impl Exempt {
    /// Entries with commas or spaces between them: `example.com` and `.example.com` (the name and all below it),
    /// addresses, networks, `*` for everything. `*.example.com` is the same as `.example.com`.
    pub fn parse(text: &str) -> Result<Exempt, String> {
        let mut exempt = Exempt::default();
        for entry in text
            .split([',', ' ', '\t'])
            .filter(|entry| !entry.is_empty())
        {
            if entry == "*" {
                exempt.all = true;
            } else if let Some(network) = network(entry) {
                exempt.networks.push(network);
            } else {
                let name = entry.strip_prefix('*').unwrap_or(entry);
                // With a star, the dot has to be there.
                let bare = name.strip_prefix('.').or((name == entry).then_some(name));
                let name = bare.and_then(Name::parse).ok_or_else(|| {
                    format!(
                        "no_proxy {entry:?} is no name, address or network; \
                         write .example.com, 192.0.2.1, 10.0.0.0/8 or *"
                    )
                })?;
                exempt.names.push(name);
            }
        }
        Ok(exempt)
    }

    pub fn name(&self, name: &Name) -> bool {
        let known = |tree: &Name| name == tree || name.is_below(tree);
        self.all || self.names.iter().any(known)
    }

    pub fn address(&self, address: IpAddr) -> bool {
        let address = canonical(address);
        let held = |(network, prefix): &(IpAddr, u32)| within(address, *network, *prefix);
        self.all || self.networks.iter().any(held)
    }
}

/// `192.0.2.1`, `10.0.0.0/8`, `2001:db8::1`, `[2001:db8::1]`, `2001:db8::/32`.
fn network(entry: &str) -> Option<(IpAddr, u32)> {
    let (text, prefix) = match entry.split_once('/') {
        Some((text, prefix)) => (text, Some(prefix)),
        None => (entry, None),
    };
    let inside = text
        .strip_prefix('[')
        .and_then(|text| text.strip_suffix(']'));
    let address: IpAddr = inside.unwrap_or(text).parse().ok()?;
    let most = if address.is_ipv4() { 32 } else { 128 };
    let prefix = match prefix {
        Some(digits) if digits.bytes().all(|byte| byte.is_ascii_digit()) => digits.parse().ok()?,
        Some(_) => return None,
        None => most,
    };
    (prefix <= most).then_some((address, prefix))
}

fn within(address: IpAddr, network: IpAddr, prefix: u32) -> bool {
    match (address, network) {
        (IpAddr::V4(a), IpAddr::V4(b)) => {
            (a.to_bits() ^ b.to_bits())
                .checked_shr(32 - prefix)
                .unwrap_or(0)
                == 0
        }
        (IpAddr::V6(a), IpAddr::V6(b)) => {
            (a.to_bits() ^ b.to_bits())
                .checked_shr(128 - prefix)
                .unwrap_or(0)
                == 0
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_a_proxy_is() {
        for (url, shown) in [
            ("http://proxy.example:3128", "http://proxy.example:3128"),
            ("HTTP://Proxy.Example:3128/", "http://proxy.example:3128"),
            (
                "socks5h://[2001:db8::1]:1080",
                "socks5://[2001:db8::1]:1080",
            ),
            ("http://me:s%40cret@127.0.0.1:80", "http://127.0.0.1:80"),
        ] {
            let proxy = Proxy::parse(url, "").unwrap();
            assert_eq!(proxy.to_string(), shown);
            assert!(!format!("{proxy:?}").contains("cret"));
        }
        let credentials = |url| Proxy::parse(url, "").unwrap().credentials.unwrap();
        let told = credentials("socks5://m%3Ae:s%40c:r@x:1");
        assert_eq!(told, (b"m:e".to_vec(), b"s@c:r".to_vec()));
        assert_eq!(credentials("http://me@x:1"), (b"me".to_vec(), Vec::new()));
        for (url, told) in [
            ("proxy.example:3128", "no URL"),
            (
                "https://u:secret@proxy.example:3128",
                "\"https\" is not supported",
            ),
            ("http://u:secret@proxy.example", "write a host and a port"),
            ("http://u:secret@proxy.example:0", "write a host and a port"),
            (
                "http://u:secret@proxy.example:3128/path",
                "write a host and a port",
            ),
            ("http://u:secret@0x7f.1:80", "write a host and a port"),
            ("http://u:secret%4@x:1", "a % that encodes nothing"),
            ("http://u:secret%+4@x:1", "a % that encodes nothing"),
            ("http://u%3a:secret@x:1", "has no colon"),
            ("socks5://secret@x:1", "1 to 255 bytes"),
        ] {
            let error = Proxy::parse(url, "").unwrap_err();
            assert!(error.contains(told) && !error.contains("secret"), "{error}");
        }
    }

    #[test]
    fn what_goes_past_it() {
        let name = |text| Name::parse(text).unwrap();
        let address = |text: &str| text.parse::<IpAddr>().unwrap();
        let exempt = Exempt::parse(
            "localhost, .corp.example,git.example. *.svc,10.1.2.3/8,192.0.2.7,[2001:db8::1],fd00::/8,0.0.0.0/32",
        )
        .unwrap();
        for yes in [
            "localhost",
            "corp.example",
            "a.b.corp.example",
            "x.git.example",
            "y.svc",
        ] {
            assert!(exempt.name(&name(yes)), "{yes}");
        }
        for no in [
            "xcorp.example",
            "example",
            "localhost.example",
            "git.example.org",
        ] {
            assert!(!exempt.name(&name(no)), "{no}");
        }
        for yes in [
            "10.255.0.1",
            "192.0.2.7",
            "::ffff:192.0.2.7",
            "2001:db8::1",
            "fdff::1",
        ] {
            assert!(exempt.address(address(yes)), "{yes}");
        }
        for no in [
            "11.0.0.1",
            "192.0.2.8",
            "2001:db8::2",
            "fe00::1",
            "127.0.0.1",
        ] {
            assert!(!exempt.address(address(no)), "{no}");
        }
        let all = Exempt::parse(" a.example,*").unwrap();
        assert!(all.name(&name("b.example")) && all.address(address("192.0.2.1")));
        let nothing = Exempt::parse("").unwrap();
        assert!(!nothing.name(&name("b.example")) && !nothing.address(address("192.0.2.1")));
        assert!(Exempt::parse("0.0.0.0/0")
            .unwrap()
            .address(address("192.0.2.1")));
        for wrong in [
            "10.0.0.0/33",
            "10.0.0.0/",
            "10.0.0.0/+8",
            "x.example:80",
            "*corp",
            "a_*",
            "fd00::/129",
        ] {
            let error = Exempt::parse(wrong).unwrap_err();
            assert!(
                error.starts_with(&format!("no_proxy {wrong:?} is no name")),
                "{error}"
            );
        }
    }

    #[test]
    fn the_way_of_a_flow() {
        let proxy = Proxy::parse("http://proxy.example:3128", ".corp.example,10.0.0.0/8").unwrap();
        for (target, way) in [
            ("example.com:443", Way::Through),
            ("192.0.2.1:80", Way::Through),
            ("git.corp.example:22", Way::Past),
            ("10.1.2.3:5432", Way::Past),
            ("host.microsandbox.internal:80", Way::Past),
            ("proxy.example:3128", Way::Itself),
            ("proxy.example:80", Way::Through),
        ] {
            let target = crate::authority::Authority::parse(target).unwrap();
            assert_eq!(proxy.way(&target.host, target.port), way, "{target:?}");
        }
    }

    proptest! {
        #[test]
        fn arbitrary_texts_do_no_harm(url in "(http|socks5)?(://)?[a-z%:@\\[\\]0-9./]{0,30}", list in "[a-z*.,0-9/:\\[\\] ]{0,40}") {
            let _ = Proxy::parse(&url, &list);
            if let Ok(exempt) = Exempt::parse(&list) {
                exempt.address("192.0.2.1".parse().unwrap());
                exempt.address("2001:db8::1".parse().unwrap());
            }
        }
    }
}
