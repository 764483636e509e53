//! Where a rule points: an address, a network, a name, everything below a name, a group.

use super::error::{quoted, PolicyError};
use super::name::{is_number, Name};
use crate::address::{canonical, Class};
use std::fmt;
use std::net::IpAddr;

/// The name of the host inside a sandbox. A rule for it is a rule for the group `host`.
pub const HOST_NAME: &str = "host.microsandbox.internal";

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Group {
    Public,
    Private,
    Loopback,
    LinkLocal,
    Metadata,
    Multicast,
    /// The machine that runs the sandbox: its gateway, and the host's own addresses.
    Host,
}

impl Group {
    pub const ALL: [Group; 7] = [
        Group::Public,
        Group::Private,
        Group::Loopback,
        Group::LinkLocal,
        Group::Metadata,
        Group::Multicast,
        Group::Host,
    ];

    pub fn as_str(self) -> &'static str {
        match self.class() {
            Some(class) => class.as_str(),
            None => "host",
        }
    }

    /// The class of its addresses. None for the host, whose addresses may be of any class.
    pub fn class(self) -> Option<Class> {
        match self {
            Group::Public => Some(Class::Public),
            Group::Private => Some(Class::Private),
            Group::Loopback => Some(Class::Loopback),
            Group::LinkLocal => Some(Class::LinkLocal),
            Group::Metadata => Some(Class::Metadata),
            Group::Multicast => Some(Class::Multicast),
            Group::Host => None,
        }
    }

    fn parse(text: &str) -> Option<Group> {
        Group::ALL.into_iter().find(|group| group.as_str() == text)
    }
}

/// A network without host bits, in canonical form (IPv4 never as IPv6).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Cidr {
    network: IpAddr,
    length: u8,
}

impl Cidr {
    pub fn contains(&self, address: IpAddr) -> bool {
        match (self.network, canonical(address)) {
            (IpAddr::V4(network), IpAddr::V4(address)) => {
                (u32::from(network) ^ u32::from(address))
                    .checked_shr(32 - u32::from(self.length))
                    .unwrap_or(0)
                    == 0
            }
            (IpAddr::V6(network), IpAddr::V6(address)) => {
                (u128::from(network) ^ u128::from(address))
                    .checked_shr(128 - u32::from(self.length))
                    .unwrap_or(0)
                    == 0
            }
            _ => false,
        }
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.network, self.length)
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Destination {
    Any,
    Ip(IpAddr),
    Cidr(Cidr),
    /// That name and no other.
    Domain(Name),
    /// `*.example.com`: every name below it, not the name itself.
    Below(Name),
    /// `.example.com`: the name and every name below it.
    Suffix(Name),
    Group(Group),
}

impl Destination {
    /// Any form: `any`, a group, an address, a network, `example.com`, `*.example.com`,
    /// `.example.com`.
    pub fn parse(text: &str) -> Result<Destination, PolicyError> {
        if text == "any" {
            Ok(Destination::Any)
        } else if let Some(group) = Group::parse(text) {
            Ok(Destination::Group(group))
        } else if text.contains('/') {
            Destination::cidr(text)
        } else if text.parse::<IpAddr>().is_ok() || text.contains(':') {
            Destination::ip(text)
        } else if let Some(apex) = text.strip_prefix("*.") {
            Destination::apex(text, apex).map(Destination::Below)
        } else if text.starts_with('.') {
            Destination::domain_suffix(text)
        } else {
            Destination::domain(text)
        }
    }

    pub fn group(text: &str) -> Result<Destination, PolicyError> {
        Group::parse(text).map(Destination::Group).ok_or_else(|| {
            let groups = Group::ALL.map(Group::as_str).join(", ");
            PolicyError::new(
                format!("destination {} is no group", quoted(text)),
                format!("the groups are {groups}"),
            )
        })
    }

    pub fn ip(text: &str) -> Result<Destination, PolicyError> {
        match text.parse::<IpAddr>() {
            Ok(address) => Ok(Destination::Ip(canonical(address))),
            Err(_) => Err(not_an_address(text, text)),
        }
    }

    /// `ADDRESS/LENGTH`. A network of one address is that address.
    pub fn cidr(text: &str) -> Result<Destination, PolicyError> {
        let fail = |seen: &str, hint: String| {
            PolicyError::new(format!("destination {}: {seen}", quoted(text)), hint)
        };
        let Some((address, length)) = text.split_once('/') else {
            return Err(fail("no prefix length", format!("write {text}/LENGTH")));
        };
        let Ok(network) = address.parse::<IpAddr>() else {
            return Err(not_an_address(text, address));
        };
        let most: u8 = if network.is_ipv4() { 32 } else { 128 };
        let digits = length.bytes().all(|byte| byte.is_ascii_digit());
        let plain = digits && (length == "0" || !length.starts_with('0'));
        let parsed = length.parse::<u8>().ok().filter(|n| plain && *n <= most);
        let Some(length) = parsed else {
            // N09: what is no length is never taken for /0.
            let seen = match length {
                "" => "the prefix length is empty".to_string(),
                other => format!("{} is no prefix length", quoted(other)),
            };
            return Err(fail(&seen, format!("write a number from 0 to {most}")));
        };
        let first = match network {
            IpAddr::V4(v4) => {
                let mask = u32::MAX.checked_shl(32 - u32::from(length)).unwrap_or(0);
                IpAddr::V4((u32::from(v4) & mask).into())
            }
            IpAddr::V6(v6) => {
                let mask = u128::MAX.checked_shl(128 - u32::from(length)).unwrap_or(0);
                IpAddr::V6((u128::from(v6) & mask).into())
            }
        };
        if first != network {
            return Err(fail(
                "bits are set after the prefix",
                format!("write {first}/{length}, or the address alone"),
            ));
        }
        if length == most {
            return Ok(Destination::Ip(canonical(network)));
        }
        if canonical(network) != network {
            return Err(fail(
                "IPv4 written as IPv6",
                match length.checked_sub(96) {
                    Some(length) => format!("write {}/{length}", canonical(network)),
                    None => "write the IPv4 network and the IPv6 network as two rules".to_string(),
                },
            ));
        }
        Ok(Destination::Cidr(Cidr { network, length }))
    }

    pub fn domain(text: &str) -> Result<Destination, PolicyError> {
        let name = host_name(text, text)?;
        if !name.as_str().contains('.') {
            let groups = Group::ALL.map(Group::as_str).join(", ");
            return Err(PolicyError::new(
                format!(
                    "destination {} is neither a group nor a full name",
                    quoted(text)
                ),
                format!("write the name with its domain, or one of any, {groups}"),
            ));
        }
        if name.as_str() == HOST_NAME {
            return Ok(Destination::Group(Group::Host));
        }
        Ok(Destination::Domain(name))
    }

    /// `.example.com` or `example.com`: the name and everything below it.
    pub fn domain_suffix(text: &str) -> Result<Destination, PolicyError> {
        let apex = text.strip_prefix('.').unwrap_or(text);
        Destination::apex(text, apex).map(Destination::Suffix)
    }

    fn apex(text: &str, apex: &str) -> Result<Name, PolicyError> {
        let name = host_name(text, apex)?;
        // N08: below a public suffix anybody can have a name. An unknown top-level domain is a
        // public suffix too, by the default rule of <https://publicsuffix.org/list/>.
        let is_suffix = |name: &str| {
            psl::suffix(name.as_bytes()).is_some_and(|suffix| suffix == name.as_bytes())
        };
        // The list has wildcards too: every name right below kawasaki.jp is a public suffix.
        if is_suffix(name.as_str()) || is_suffix(&format!("any.{name}")) {
            return Err(PolicyError::new(
                format!(
                    "destination {}: {name} is a public suffix, names below it are anybody's",
                    quoted(text)
                ),
                format!("name the domain below it, such as .example.{name}"),
            ));
        }
        Ok(name)
    }

    /// Whether it says a name, so that only names decide whether it matches.
    pub fn is_name(&self) -> bool {
        matches!(
            self,
            Destination::Domain(_) | Destination::Below(_) | Destination::Suffix(_)
        )
    }

    pub fn matches_name(&self, name: &Name) -> bool {
        match self {
            Destination::Domain(domain) => name == domain,
            Destination::Below(apex) => name.is_below(apex),
            Destination::Suffix(apex) => name == apex || name.is_below(apex),
            _ => false,
        }
    }
}

impl fmt::Display for Destination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Destination::Any => f.write_str("any"),
            Destination::Ip(address) => write!(f, "{address}"),
            Destination::Cidr(cidr) => write!(f, "{cidr}"),
            Destination::Domain(name) => write!(f, "{name}"),
            Destination::Below(name) => write!(f, "*.{name}"),
            Destination::Suffix(name) => write!(f, ".{name}"),
            Destination::Group(group) => f.write_str(group.as_str()),
        }
    }
}

fn not_an_address(text: &str, address: &str) -> PolicyError {
    let hint = if address.contains('%') {
        "write the address without a zone"
    } else if address.contains(':') {
        "write an IPv6 address such as 2001:db8::1"
    } else {
        "write an IPv4 address as four decimal numbers without leading zeros"
    };
    PolicyError::new(
        format!("destination {} is no IP address", quoted(text)),
        hint,
    )
}

/// A host name as RFC 952 and RFC 1123 have it: letters, digits and hyphens; A-labels that are
/// what IDNA makes of their U-labels.
fn host_name(text: &str, name: &str) -> Result<Name, PolicyError> {
    let fail = |seen: &str, hint: String| {
        PolicyError::new(format!("destination {}: {seen}", quoted(text)), hint)
    };
    if name.contains('*') {
        return Err(fail(
            "a wildcard stands only for the labels in front",
            "write *.example.com, or any for every destination".to_string(),
        ));
    }
    if !name.is_ascii() {
        let hint = match idna::domain_to_ascii_strict(name) {
            Ok(ascii) => format!("write it as {ascii}"),
            Err(_) => "write it in its xn-- form".to_string(),
        };
        return Err(fail("the name has letters outside ASCII", hint));
    }
    if is_number(name) {
        return Err(fail(
            "a number is an address, not a name",
            "write an IPv4 address as four decimal numbers without leading zeros".to_string(),
        ));
    }
    let parsed = Name::parse(name).filter(|name| !name.as_str().contains('_'));
    let Some(parsed) = parsed else {
        return Err(fail(
            "this is no host name",
            "write labels of 1 to 63 letters, digits and hyphens with dots between, 253 in all"
                .to_string(),
        ));
    };
    let (unicode, valid) = idna::domain_to_unicode(parsed.as_str());
    let same = idna::domain_to_ascii(&unicode).is_ok_and(|ascii| ascii == parsed.as_str());
    if parsed.as_str().contains("xn--") && (valid.is_err() || !same) {
        return Err(fail(
            "an xn-- label that no name can have",
            "check the spelling of the name".to_string(),
        ));
    }
    Ok(parsed)
}
