//! What kind of address an address is, through every disguise that an IPv4 address can wear.
//!
//! Sources: the IANA IPv4 and IPv6 Special-Purpose Address Registries
//! (<https://www.iana.org/assignments/iana-ipv4-special-registry>,
//! <https://www.iana.org/assignments/iana-ipv6-special-registry>, RFC 6890, RFC 8190), the IPv6
//! address space registry (global unicast is 2000::/3 and nothing else), and for the metadata
//! services the documentation of each provider, named at each address.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Class {
    /// Globally reachable unicast.
    Public,
    /// RFC 1918, shared address space (RFC 6598), unique local (RFC 4193).
    Private,
    Loopback,
    LinkLocal,
    /// A cloud's instance metadata or platform service, whatever block it lies in.
    Metadata,
    Multicast,
    /// 0.0.0.0/8 and ::, which many systems take for "this host".
    Unspecified,
    /// Everything else that nobody is reached at: documentation, benchmarking, broadcast, future
    /// use, deprecated transition forms, addresses of protocols.
    Reserved,
}

impl Class {
    pub const ALL: [Class; 8] = [
        Class::Public,
        Class::Private,
        Class::Loopback,
        Class::LinkLocal,
        Class::Metadata,
        Class::Multicast,
        Class::Unspecified,
        Class::Reserved,
    ];

    pub fn as_str(self) -> &'static str {
        match self {
            Class::Public => "public",
            Class::Private => "private",
            Class::Loopback => "loopback",
            Class::LinkLocal => "link-local",
            Class::Metadata => "metadata",
            Class::Multicast => "multicast",
            Class::Unspecified => "unspecified",
            Class::Reserved => "reserved",
        }
    }
}

impl fmt::Display for Class {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

const fn v4(a: u8, b: u8, c: u8, d: u8) -> u32 {
    u32::from_be_bytes([a, b, c, d])
}

/// The class of `address`. An IPv6 address that carries an IPv4 address is at best what that one
/// is: `64:ff9b::a9fe:a9fe` is a metadata address.
pub fn classify(address: IpAddr) -> Class {
    match canonical(address) {
        IpAddr::V4(address) => classify_v4(address),
        IpAddr::V6(address) => classify_v6(address),
    }
}

/// `::ffff:a.b.c.d` is a.b.c.d: to a socket they are one address.
pub fn canonical(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V6(v6) => v6.to_ipv4_mapped().map_or(address, IpAddr::V4),
        IpAddr::V4(_) => address,
    }
}

// Longest prefix first where blocks nest.
#[rustfmt::skip]
const V4: &[(u32, u8, Class)] = &[
    (v4(0, 0, 0, 0), 8, Class::Unspecified),      // "this network", RFC 791
    (v4(10, 0, 0, 0), 8, Class::Private),         // RFC 1918
    (v4(100, 64, 0, 0), 10, Class::Private),      // shared address space, RFC 6598
    (v4(127, 0, 0, 0), 8, Class::Loopback),       // RFC 1122
    (v4(169, 254, 0, 0), 16, Class::LinkLocal),   // RFC 3927
    (v4(172, 16, 0, 0), 12, Class::Private),      // RFC 1918
    // IETF protocol assignments, RFC 6890. 192.0.0.9 and .10 (PCP, TURN anycast) count as
    // globally reachable in the registry, but the nearest server is the user's own router.
    (v4(192, 0, 0, 0), 24, Class::Reserved),
    (v4(192, 0, 2, 0), 24, Class::Reserved),      // TEST-NET-1, RFC 5737
    (v4(192, 31, 196, 0), 24, Class::Public),     // AS112-v4, RFC 7535: globally reachable
    (v4(192, 52, 193, 0), 24, Class::Public),     // AMT, RFC 7450: globally reachable
    (v4(192, 88, 99, 0), 24, Class::Reserved),    // 6to4 relay anycast, deprecated, RFC 7526
    (v4(192, 168, 0, 0), 16, Class::Private),     // RFC 1918
    (v4(192, 175, 48, 0), 24, Class::Public),     // AS112 direct delegation, RFC 7534
    (v4(198, 18, 0, 0), 15, Class::Reserved),     // benchmarking, RFC 2544
    (v4(198, 51, 100, 0), 24, Class::Reserved),   // TEST-NET-2, RFC 5737
    (v4(203, 0, 113, 0), 24, Class::Reserved),    // TEST-NET-3, RFC 5737
    (v4(224, 0, 0, 0), 4, Class::Multicast),      // RFC 5771
    (v4(240, 0, 0, 0), 4, Class::Reserved),       // RFC 1112, and 255.255.255.255, RFC 919
];

#[rustfmt::skip]
const METADATA_V4: &[u32] = &[
    v4(169, 254, 169, 254), // AWS, Google, Azure, OpenStack, DigitalOcean, Hetzner, Oracle, IBM...
    v4(169, 254, 169, 253), // AWS: the VPC's resolver (Amazon DNS server)
    v4(169, 254, 169, 123), // AWS: Amazon Time Sync Service
    v4(169, 254, 169, 250), // Rancher: metadata service
    v4(169, 254, 170, 2),   // AWS ECS: task metadata and credentials
    v4(169, 254, 170, 23),  // AWS EKS: Pod Identity agent
    v4(169, 254, 0, 23),    // Tencent Cloud: metadata.tencentyun.com
    v4(169, 254, 42, 42),   // Scaleway: metadata API
    v4(100, 100, 100, 200), // Alibaba Cloud: ECS instance metadata
    v4(100, 96, 0, 96),     // Volcano Engine: ECS instance metadata
    v4(168, 63, 129, 16),   // Azure: WireServer (health, DHCP, DNS, certificates)
    v4(192, 0, 0, 192),     // Oracle Cloud: instance metadata of Compute Classic
];

#[allow(clippy::too_many_arguments)] // as Ipv6Addr::new has them
const fn v6(a: u16, b: u16, c: u16, d: u16, e: u16, f: u16, g: u16, h: u16) -> u128 {
    ((a as u128) << 112)
        | ((b as u128) << 96)
        | ((c as u128) << 80)
        | ((d as u128) << 64)
        | ((e as u128) << 48)
        | ((f as u128) << 32)
        | ((g as u128) << 16)
        | (h as u128)
}

// The first match counts: longest prefix first where blocks nest.
#[rustfmt::skip]
const V6: &[(u128, u8, Class)] = &[
    (v6(0, 0, 0, 0, 0, 0, 0, 0), 128, Class::Unspecified),            // RFC 4291
    (v6(0, 0, 0, 0, 0, 0, 0, 1), 128, Class::Loopback),               // RFC 4291
    (v6(0x64, 0xff9b, 0, 0, 0, 0, 0, 0), 96, Class::Public),          // NAT64, RFC 6052: what it carries
    // Local-use NAT64 (RFC 8215), discard (RFC 6666), dummy (RFC 9780): outside 2000::/3, below.
    (v6(0x2001, 3, 0, 0, 0, 0, 0, 0), 32, Class::Public),             // AMT, RFC 7450
    (v6(0x2001, 4, 0x112, 0, 0, 0, 0, 0), 48, Class::Public),         // AS112-v6, RFC 7535
    (v6(0x2001, 0x20, 0, 0, 0, 0, 0, 0), 28, Class::Public),          // ORCHIDv2, RFC 7343
    (v6(0x2001, 0x30, 0, 0, 0, 0, 0, 0), 28, Class::Public),          // drone remote ID, RFC 9374
    // IETF protocol assignments, RFC 2928: Teredo (RFC 4380), benchmarking (2001:2::/48, RFC 5180),
    // ORCHID (2001:10::/28, RFC 4843), and the anycast addresses of PCP, TURN and DNS-SD SRP
    // (2001:1::1 to ::3), globally reachable in the registry and answered by the nearest router.
    (v6(0x2001, 0, 0, 0, 0, 0, 0, 0), 23, Class::Reserved),
    (v6(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0), 32, Class::Reserved),       // documentation, RFC 3849
    (v6(0x2002, 0, 0, 0, 0, 0, 0, 0), 16, Class::Reserved),           // 6to4, deprecated by RFC 7526
    (v6(0x3fff, 0, 0, 0, 0, 0, 0, 0), 20, Class::Reserved),           // documentation, RFC 9637
    // 2620:4f:8000::/48 (AS112, RFC 7534) is globally reachable, as the rest of 2000::/3 is.
    (v6(0x2000, 0, 0, 0, 0, 0, 0, 0), 3, Class::Public),
    // 5f00::/16 (SRv6 SIDs, RFC 9602) is outside 2000::/3.
    (v6(0xfc00, 0, 0, 0, 0, 0, 0, 0), 7, Class::Private),             // unique local, RFC 4193
    (v6(0xfe80, 0, 0, 0, 0, 0, 0, 0), 10, Class::LinkLocal),          // RFC 4291
    (v6(0xff00, 0, 0, 0, 0, 0, 0, 0), 8, Class::Multicast),           // RFC 4291
    // fec0::/10 (site-local, deprecated by RFC 3879) and all that IANA gave to nobody.
    (0, 0, Class::Reserved),
];

#[rustfmt::skip]
const METADATA_V6: &[u128] = &[
    v6(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254),           // AWS: IMDS
    v6(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x253),           // AWS: the VPC's resolver
    v6(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x123),           // AWS: Amazon Time Sync Service
    v6(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x23),            // AWS EKS: Pod Identity agent
    v6(0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254),            // Google Compute Engine
    v6(0xfd00, 0x42, 0, 0, 0, 0, 0, 0x42),             // Scaleway
    v6(0xfd00, 0xc1, 0, 0, 0, 0, 0xa9fe, 0xa9fe),      // Oracle Cloud
    v6(0xfd00, 0xa9fe, 0xa9fe, 0, 0, 0, 0, 1),         // Akamai (Linode)
    v6(0xfe80, 0, 0, 0, 0, 0, 0xa9fe, 0xa9fe),         // OpenStack Nova
];

fn in_v4(bits: u32, network: u32, length: u8) -> bool {
    (bits ^ network)
        .checked_shr(32 - u32::from(length))
        .unwrap_or(0)
        == 0
}

fn in_v6(bits: u128, network: u128, length: u8) -> bool {
    (bits ^ network)
        .checked_shr(128 - u32::from(length))
        .unwrap_or(0)
        == 0
}

fn classify_v4(address: Ipv4Addr) -> Class {
    let bits = u32::from(address);
    if METADATA_V4.contains(&bits) {
        return Class::Metadata;
    }
    V4.iter()
        .find(|(network, length, _)| in_v4(bits, *network, *length))
        .map_or(Class::Public, |(_, _, class)| *class)
}

fn classify_v6(address: Ipv6Addr) -> Class {
    let bits = u128::from(address);
    if METADATA_V6.contains(&bits) {
        return Class::Metadata;
    }
    let class = V6
        .iter()
        .find(|(network, length, _)| in_v6(bits, *network, *length))
        .map_or(Class::Reserved, |(_, _, class)| *class);
    if matches!(class, Class::Unspecified | Class::Loopback) {
        return class;
    }
    let carried = carried(address).map(classify_v4);
    if carried.clone().any(|class| class == Class::Metadata) {
        return Class::Metadata;
    }
    // Which bits of a local-use NAT64 address are the IPv4 address depends on the network's
    // prefix length, so that only the worst reading counts there; the block is not public anyway.
    carried
        .filter(|_| !is_local_nat64(bits))
        .find(|class| *class != Class::Public)
        .unwrap_or(class)
}

fn is_local_nat64(bits: u128) -> bool {
    in_v6(bits, v6(0x64, 0xff9b, 1, 0, 0, 0, 0, 0), 48)
}

/// The IPv4 addresses that an IPv6 address carries, for all the forms that a translator, a tunnel
/// or a socket may take them out of again.
pub fn carried(address: Ipv6Addr) -> impl Iterator<Item = Ipv4Addr> + Clone {
    let bits = u128::from(address);
    let low = bits as u32;
    let mut found: [Option<u32>; 4] = [None; 4];
    if bits >> 32 == 0 && bits > 1 {
        found[0] = Some(low); // IPv4-compatible, RFC 4291 2.5.5.1
    } else if bits >> 32 == 0xffff {
        found[0] = Some(low); // IPv4-mapped, RFC 4291 2.5.5.2
    } else if bits >> 32 == 0xffff_0000 {
        found[0] = Some(low); // IPv4-translated, RFC 2765
    } else if in_v6(bits, v6(0x64, 0xff9b, 0, 0, 0, 0, 0, 0), 96) {
        found[0] = Some(low); // NAT64, RFC 6052
    } else if is_local_nat64(bits) {
        // RFC 6052 2.2: prefixes of 48, 56, 64 and 96 bits, octet 8 left out. A reading without
        // any bit set is none.
        let octets = address.octets();
        let readings = [
            [octets[6], octets[7], octets[9], octets[10]],
            [octets[7], octets[9], octets[10], octets[11]],
            [octets[9], octets[10], octets[11], octets[12]],
            [octets[12], octets[13], octets[14], octets[15]],
        ];
        found = readings.map(|octets| Some(u32::from_be_bytes(octets)).filter(|v4| *v4 != 0));
    } else if bits >> 112 == 0x2002 {
        found[0] = Some((bits >> 80) as u32); // 6to4, RFC 3056
    } else if bits >> 96 == 0x2001_0000 {
        // Teredo, RFC 4380: the server, and the client's address with every bit turned.
        found[0] = Some((bits >> 64) as u32);
        found[1] = Some(!low);
    }
    // ISATAP, RFC 5214: the interface identifier of any /64.
    if matches!((bits >> 32) as u32, 0x0000_5efe | 0x0200_5efe) && found[3].is_none() {
        found[3] = Some(low);
    }
    found.into_iter().flatten().map(Ipv4Addr::from)
}

/// `address` itself and all that it carries.
pub fn forms(address: IpAddr) -> impl Iterator<Item = IpAddr> {
    let inner = match canonical(address) {
        IpAddr::V4(_) => None,
        IpAddr::V6(v6) => Some(carried(v6)),
    };
    std::iter::once(canonical(address)).chain(inner.into_iter().flatten().map(IpAddr::V4))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn class(text: &str) -> Class {
        classify(text.parse().expect(text))
    }

    /// Every row of both registries, first and last address, and the addresses just outside.
    #[test]
    fn n12_every_special_purpose_block_is_known() {
        use Class::*;
        for (text, expected) in [
            ("0.0.0.0", Unspecified),
            ("0.255.255.255", Unspecified),
            ("1.0.0.0", Public),
            ("9.255.255.255", Public),
            ("10.0.0.0", Private),
            ("10.255.255.255", Private),
            ("11.0.0.0", Public),
            ("100.63.255.255", Public),
            ("100.64.0.0", Private),
            ("100.127.255.255", Private),
            ("100.128.0.0", Public),
            ("126.255.255.255", Public),
            ("127.0.0.0", Loopback),
            ("127.255.255.255", Loopback),
            ("128.0.0.0", Public),
            ("169.253.255.255", Public),
            ("169.254.0.0", LinkLocal),
            ("169.254.255.255", LinkLocal),
            ("169.255.0.0", Public),
            ("172.15.255.255", Public),
            ("172.16.0.0", Private),
            ("172.31.255.255", Private),
            ("172.32.0.0", Public),
            ("191.255.255.255", Public),
            ("192.0.0.0", Reserved),
            ("192.0.0.8", Reserved),
            ("192.0.0.9", Reserved),
            ("192.0.0.10", Reserved),
            ("192.0.0.170", Reserved),
            ("192.0.0.171", Reserved),
            ("192.0.0.255", Reserved),
            ("192.0.1.0", Public),
            ("192.0.2.0", Reserved),
            ("192.0.2.255", Reserved),
            ("192.0.3.0", Public),
            ("192.31.196.0", Public),
            ("192.52.193.0", Public),
            ("192.88.99.0", Reserved),
            ("192.88.99.255", Reserved),
            ("192.88.100.0", Public),
            ("192.167.255.255", Public),
            ("192.168.0.0", Private),
            ("192.168.255.255", Private),
            ("192.169.0.0", Public),
            ("192.175.48.0", Public),
            ("198.17.255.255", Public),
            ("198.18.0.0", Reserved),
            ("198.19.255.255", Reserved),
            ("198.20.0.0", Public),
            ("198.51.100.0", Reserved),
            ("198.51.100.255", Reserved),
            ("203.0.113.0", Reserved),
            ("203.0.113.255", Reserved),
            ("203.0.114.0", Public),
            ("223.255.255.255", Public),
            ("224.0.0.0", Multicast),
            ("239.255.255.255", Multicast),
            ("240.0.0.0", Reserved),
            ("255.255.255.254", Reserved),
            ("255.255.255.255", Reserved),
            ("::", Unspecified),
            ("::1", Loopback),
            ("64:ff9b::", Unspecified),
            ("64:ff9b::808:808", Public),
            ("64:ff9b:0:0:0:1::", Reserved),
            ("64:ff9b:1::", Reserved),
            ("64:ff9b:1:ffff:ffff:ffff:ffff:ffff", Reserved),
            ("100::", Reserved),
            ("100:0:0:1::", Reserved),
            ("1fff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", Reserved),
            ("2000::", Public),
            ("2001::", Unspecified),
            ("2001:1::1", Reserved),
            ("2001:1::2", Reserved),
            ("2001:1::3", Reserved),
            ("2001:2::", Reserved),
            ("2001:2:0:ffff:ffff:ffff:ffff:ffff", Reserved),
            ("2001:3::1", Public),
            ("2001:4:112::1", Public),
            ("2001:10::", Reserved),
            ("2001:1f:ffff:ffff:ffff:ffff:ffff:ffff", Reserved),
            ("2001:20::", Public),
            ("2001:30::", Public),
            ("2001:40::", Reserved),
            ("2001:1ff:ffff:ffff:ffff:ffff:ffff:ffff", Reserved),
            ("2001:200::", Public),
            ("2001:db7:ffff:ffff:ffff:ffff:ffff:ffff", Public),
            ("2001:db8::", Reserved),
            ("2001:db8:ffff:ffff:ffff:ffff:ffff:ffff", Reserved),
            ("2001:db9::", Public),
            ("2002:808:808::", Reserved),
            ("2003::", Public),
            ("2620:4f:8000::", Public),
            ("2a00:1450:4001:81b::200e", Public),
            ("3ffe:ffff:ffff:ffff:ffff:ffff:ffff:ffff", Public),
            ("3fff::", Reserved),
            ("3fff:fff:ffff:ffff:ffff:ffff:ffff:ffff", Reserved),
            ("3fff:1000::", Public),
            ("4000::", Reserved),
            ("5f00::", Reserved),
            ("fbff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", Reserved),
            ("fc00::", Private),
            ("fdff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", Private),
            ("fe00::", Reserved),
            ("fe80::", LinkLocal),
            ("febf:ffff:ffff:ffff:ffff:ffff:ffff:ffff", LinkLocal),
            ("fec0::", Reserved),
            ("ff00::", Multicast),
            ("ff02::1", Multicast),
            ("ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", Multicast),
        ] {
            assert_eq!(class(text), expected, "{text}");
        }
    }

    #[test]
    fn n11_metadata_addresses_are_known_in_every_disguise() {
        for text in [
            "169.254.169.254",
            "169.254.170.2",
            "100.100.100.200",
            "168.63.129.16",
            "192.0.0.192",
            "fd00:ec2::254",
            "fd20:ce::254",
            "::ffff:169.254.169.254",
            "::169.254.169.254",
            "::ffff:0:a9fe:a9fe",
            "64:ff9b::a9fe:a9fe",
            "64:ff9b:1::a9fe:a9fe",
            "64:ff9b:1:a9fe:a9:fe00::",
            "64:ff9b:1:ffa9:fe:a9fe::",
            "64:ff9b:1:ffff:a9:fea9:fe00:0",
            "2002:a9fe:a9fe::",
            "2002:a9fe:a9fe::1",
            "2001:0:a9fe:a9fe::",
            "2001:0:808:808:0:0:5601:5601",
            "fe80::5efe:169.254.169.254",
            "2a00:1450::200:5efe:169.254.169.254",
            "fe80::a9fe:a9fe",
        ] {
            assert_eq!(class(text), Class::Metadata, "{text}");
        }
    }

    #[test]
    fn a_disguise_makes_nothing_public() {
        for (text, expected) in [
            ("::ffff:10.0.0.1", Class::Private),
            ("::10.0.0.1", Class::Private),
            ("::ffff:0:127.0.0.1", Class::Loopback),
            ("::8.8.8.8", Class::Reserved),
            ("::ffff:8.8.8.8", Class::Public),
            ("64:ff9b::10.0.0.1", Class::Private),
            ("2002:7f00:1::", Class::Loopback),
            ("2002:c0a8:101::1", Class::Private),
            ("2001:0:a00:1::", Class::Private),
            ("2001:0:808:808:0:0:f5ff:fffe", Class::Private),
            ("2001:0:808:808::f7f7:f7f7", Class::Reserved),
            ("2a00:1450::5efe:10.0.0.1", Class::Private),
            ("2a00:1450::5efe:8.8.8.8", Class::Public),
            ("fd00::5efe:8.8.8.8", Class::Private),
        ] {
            assert_eq!(class(text), expected, "{text}");
        }
    }

    proptest! {
        #[test]
        fn carriers_are_never_more_public_than_what_they_carry(bits: u32, low: u64) {
            let inner = Ipv4Addr::from(bits);
            let plain = classify(IpAddr::V4(inner));
            let high = u128::from(bits);
            for carrier in [
                high,
                0xffff_0000_0000 | high,
                0xffff_0000_0000_0000 | high,
                v6(0x64, 0xff9b, 0, 0, 0, 0, 0, 0) | high,
                (0x2002 << 112) | (high << 80) | u128::from(low),
                (0x2001_0000 << 96) | (high << 64) | u128::from(low),
                (0x2001_0000 << 96) | (v6(0, 0, 0x808, 0x808, 0, 0, 0, 0)) | u128::from(!bits),
                v6(0x2a00, 1, 2, 3, 0x200, 0x5efe, 0, 0) | high,
            ] {
                let address = IpAddr::V6(Ipv6Addr::from(carrier));
                if plain != Class::Public {
                    prop_assert_ne!(classify(address), Class::Public, "{}", address);
                }
                if plain == Class::Metadata {
                    prop_assert_eq!(classify(address), Class::Metadata, "{}", address);
                }
            }
        }

        #[test]
        fn public_ipv6_lies_in_global_unicast_or_carries_public_ipv4(bits: u128) {
            let address = Ipv6Addr::from(bits);
            if classify(IpAddr::V6(address)) == Class::Public {
                prop_assert!(bits >> 125 == 1 || carried(address).next().is_some());
                prop_assert!(carried(address).all(|v4| classify_v4(v4) == Class::Public));
            }
        }

        #[test]
        fn a_mapped_address_is_the_address(bits: u32) {
            let plain = Ipv4Addr::from(bits);
            prop_assert_eq!(classify(plain.into()), classify(plain.to_ipv6_mapped().into()));
            prop_assert_eq!(canonical(plain.to_ipv6_mapped().into()), IpAddr::V4(plain));
        }
    }
}
