//! What `configure` says about the network, checked.

use std::net::IpAddr;

use crate::channel::{Field, Invalid, Map, Value};

/// Of each kind.
const ITEMS_MAX: usize = 8;
/// Bytes of a name, as in DNS.
const NAME_MAX: usize = 253;
const MTU: std::ops::RangeInclusive<u64> = 1280..=65_520;

/// An address and how much of it is the network's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Address {
    pub ip: IpAddr,
    pub prefix: u8,
}

impl Address {
    fn parse(text: &str) -> Option<Address> {
        let (ip, prefix) = text.split_once('/')?;
        let ip: IpAddr = ip.parse().ok()?;
        let prefix: u8 = prefix.parse().ok()?;
        let most = if ip.is_ipv4() { 32 } else { 128 };
        (1..=most)
            .contains(&prefix)
            .then_some(Address { ip, prefix })
    }

    pub fn is_link_local(&self) -> bool {
        match self.ip {
            IpAddr::V4(_) => false,
            IpAddr::V6(ip) => ip.segments()[0] & 0xffc0 == 0xfe80,
        }
    }
}

/// The checked parameter.
#[derive(Debug, PartialEq, Eq)]
pub struct Network {
    pub mac: [u8; 6],
    pub addresses: Vec<Address>,
    pub gateways: Vec<IpAddr>,
    /// Bytes of the largest IP packet.
    pub mtu: u32,
    nameservers: Vec<IpAddr>,
    search: Vec<String>,
}

impl Network {
    /// None: the sandbox has no network.
    pub fn read(request: &Map) -> Result<Option<Network>, Invalid> {
        if request.get("network").is_none() {
            return Ok(None);
        }
        let map: &Map = request.field("network")?;
        let mtu: u64 = map.field("mtu")?;
        let text: &str = map.field("mac")?;
        Ok(Some(Network {
            mac: mac(text)
                .ok_or_else(|| Invalid::new("`mac` is not an Ethernet address of one card"))?,
            addresses: each(map, "addresses", Address::parse)?,
            gateways: each(map, "gateways", |text| text.parse().ok())?,
            mtu: MTU
                .contains(&mtu)
                .then_some(mtu as u32)
                .ok_or_else(|| Invalid::new("`mtu` is not 1280 to 65520"))?,
            nameservers: each(map, "nameservers", |text| text.parse().ok())?,
            search: each(map, "search", domain)?,
        }))
    }

    /// The text of /etc/resolv.conf.
    pub fn resolv_conf(&self) -> String {
        let servers = self.nameservers.iter();
        let mut text: String = servers
            .map(|server| format!("nameserver {server}\n"))
            .collect();
        if !self.search.is_empty() {
            text += &format!("search {}\n", self.search.join(" "));
        }
        text
    }
}

fn each<T>(map: &Map, key: &str, parse: impl Fn(&str) -> Option<T>) -> Result<Vec<T>, Invalid> {
    let items: &[Value] = map.field(key)?;
    if items.len() > ITEMS_MAX {
        return Err(Invalid(format!("`{key}` has more than {ITEMS_MAX} items")));
    }
    let read = |item| <&str>::read(item).and_then(&parse);
    let found: Option<Vec<T>> = items.iter().map(read).collect();
    found.ok_or_else(|| Invalid(format!("`{key}` has an item that is none")))
}

fn mac(text: &str) -> Option<[u8; 6]> {
    let part = |part: &str| match part.len() {
        2 => u8::from_str_radix(part, 16).ok(),
        _ => None,
    };
    let parts: Option<Vec<u8>> = text.split(':').map(part).collect();
    let mac: [u8; 6] = parts?.try_into().ok()?;
    // The lowest bit of the first byte marks groups.
    (mac[0] & 1 == 0 && mac != [0; 6]).then_some(mac)
}

/// A name that cannot become another line or word of the file.
fn domain(text: &str) -> Option<String> {
    let fits = (1..=NAME_MAX).contains(&text.len());
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_');
    (fits && text.bytes().all(plain)).then(|| text.to_owned())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)] // A failed test should say where.
    use super::*;

    fn texts(items: &[&str]) -> Value {
        Value::Array(items.iter().map(|item| Value::from(*item)).collect())
    }

    fn request(key: &str, value: Value) -> Result<Option<Network>, Invalid> {
        let given = Map::new()
            .with("mac", "02:11:22:33:44:55")
            .with("addresses", texts(&["100.80.0.2/30", "fd00:1:2::2/64"]))
            .with("gateways", texts(&["100.80.0.1", "fd00:1:2::1"]))
            .with("mtu", 1500u64)
            .with("nameservers", texts(&["100.80.0.1"]))
            .with("search", texts(&[]));
        let rest = given.iter().filter(|(name, _)| *name != key);
        let rest = rest.fold(Map::new(), |map, (name, value)| {
            map.with(name, value.clone())
        });
        Network::read(&Map::new().with("network", rest.with(key, value)))
    }

    #[test]
    fn a_full_request_is_read() {
        let network = request("search", texts(&["corp.example"]))
            .unwrap()
            .unwrap();
        assert_eq!(network.mac, [2, 0x11, 0x22, 0x33, 0x44, 0x55]);
        assert_eq!(
            network.resolv_conf(),
            "nameserver 100.80.0.1\nsearch corp.example\n"
        );
        let shown: Vec<_> = network
            .addresses
            .iter()
            .map(|each| each.ip.to_string())
            .collect();
        assert_eq!(shown, ["100.80.0.2", "fd00:1:2::2"]);
        assert!(!network.addresses.iter().any(Address::is_link_local));
    }

    #[test]
    fn without_it_there_is_no_network() {
        assert_eq!(Network::read(&Map::new()).unwrap(), None);
    }

    #[test]
    fn what_cannot_be_is_refused() {
        for (key, wrong) in [
            ("mac", Value::from("02:11:22:33:44")),
            ("mac", Value::from("03:11:22:33:44:55")),
            ("mac", Value::from("00:00:00:00:00:00")),
            ("addresses", texts(&["100.80.0.2"])),
            ("addresses", texts(&["100.80.0.2/33"])),
            ("addresses", texts(&["100.80.0.2/0"])),
            ("gateways", texts(&["gateway"])),
            ("mtu", Value::from(1279u64)),
            ("mtu", Value::from(65_521u64)),
            ("nameservers", texts(&["1.1.1.1\nsearch evil"])),
            ("search", texts(&["a b"])),
            ("search", texts(&["a"; 9])),
        ] {
            assert!(request(key, wrong).is_err(), "{key}");
        }
    }
}
