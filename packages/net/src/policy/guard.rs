//! Services that would take names out of the policy's sight, and how they are recognised.

use super::{Name, Protocol};
use std::net::IpAddr;

/// Why a flow to this port passes only by a rule that names a destination *and* the port: such
/// services ask or answer for names past the sandbox's own resolver (N18, N20).
pub fn name_service(protocol: Protocol, port: Option<u16>) -> Option<&'static str> {
    match (protocol, port?) {
        (Protocol::Icmp, _) => None,
        (_, 853) => Some("DNS over TLS or QUIC goes past the sandbox's resolver"), // RFC 7858, 9250
        (Protocol::Udp, 5353) => Some("mDNS goes past the sandbox's resolver"),    // RFC 6762
        (_, 5355) => Some("LLMNR goes past the sandbox's resolver"),               // RFC 4795
        (_, 137..=139) => Some("NetBIOS goes past the sandbox's resolver"),        // RFC 1001
        _ => None,
    }
}

/// Addresses of public resolvers that answer DNS over HTTPS, from each operator's documentation.
#[rustfmt::skip]
const DOH_ADDRESSES: &[&str] = &[
    // Cloudflare
    "1.1.1.1", "1.0.0.1", "1.1.1.2", "1.0.0.2", "1.1.1.3", "1.0.0.3",
    "2606:4700:4700::1111", "2606:4700:4700::1001", "2606:4700:4700::1112",
    "2606:4700:4700::1002", "2606:4700:4700::1113", "2606:4700:4700::1003",
    "2606:4700:4700::64", "2606:4700:4700::6400",
    // Google
    "8.8.8.8", "8.8.4.4", "2001:4860:4860::8888", "2001:4860:4860::8844",
    "2001:4860:4860::64", "2001:4860:4860::6464",
    // Quad9
    "9.9.9.9", "149.112.112.112", "9.9.9.10", "149.112.112.10", "9.9.9.11", "149.112.112.11",
    "2620:fe::fe", "2620:fe::9", "2620:fe::10", "2620:fe::fe:10", "2620:fe::11", "2620:fe::fe:11",
    // OpenDNS
    "208.67.222.222", "208.67.220.220", "208.67.222.123", "208.67.220.123",
    "2620:119:35::35", "2620:119:53::53",
    // AdGuard
    "94.140.14.14", "94.140.15.15", "94.140.14.140", "94.140.14.141", "94.140.14.15",
    "94.140.15.16", "2a10:50c0::ad1:ff", "2a10:50c0::ad2:ff", "2a10:50c0::1:ff",
    "2a10:50c0::2:ff",
    // AliDNS, DNSPod
    "223.5.5.5", "223.6.6.6", "2400:3200::1", "2400:3200:baba::1", "1.12.12.12", "120.53.53.53",
    // CleanBrowsing, DNS.SB
    "185.228.168.9", "185.228.169.9", "185.222.222.222", "45.11.45.11",
];

/// The names of such resolvers; names below them count as well. The last two ask browsers and
/// systems to keep to the resolver they were given when they do not resolve.
#[rustfmt::skip]
const DOH_NAMES: &[&str] = &[
    "cloudflare-dns.com", "one.one.one.one", "dns.cloudflare.com", "cloudflare-gateway.com",
    "dns.google", "dns.google.com", "google-public-dns-a.google.com", "dns64.dns.google",
    "dns.quad9.net", "dns9.quad9.net", "dns10.quad9.net", "dns11.quad9.net", "dns12.quad9.net",
    "doh.opendns.com", "dns.opendns.com", "doh.familyshield.opendns.com", "doh.umbrella.com",
    "adguard-dns.com", "dns.adguard.com", "dns.nextdns.io", "doh.cleanbrowsing.org",
    "dns.alidns.com", "doh.pub", "dot.pub", "doh.360.cn", "dns.sb", "doh.dns.sb",
    "dns.mullvad.net", "doh.mullvad.net", "controld.com", "dns.digitale-gesellschaft.ch",
    "doh.libredns.gr", "dns0.eu", "dns.switch.ch", "doh.xfinity.com", "doh.applied-privacy.net",
    "dns.twnic.tw", "public.dns.iij.jp", "doh.tiar.app", "blitz.ahadns.com", "doh.li",
    "use-application-dns.net", "mask.icloud.com",
];

pub fn is_doh_address(address: IpAddr) -> bool {
    // Compared as text: the table is read as the operators print it.
    let text = address.to_string();
    DOH_ADDRESSES.contains(&text.as_str())
}

pub fn is_doh_name(name: &Name) -> bool {
    DOH_NAMES.iter().any(|known| is_or_below(name, known))
}

/// Names under which cloud providers publish their metadata services, from their documentation.
const METADATA_NAMES: &[&str] = &[
    "metadata.google.internal",
    "metadata.goog",
    "instance-data",
    "instance-data.ec2.internal",
    "metadata.tencentyun.com",
    "metadata.azure.internal",
    "metadata.packet.net",
    "metadata.platformequinix.com",
    "metadata",
];

pub fn is_metadata_name(name: &Name) -> bool {
    METADATA_NAMES.contains(&name.as_str())
}

/// Whether `name` is of the trees that lead from addresses to names (RFC 1035 3.5, RFC 3596 2.5).
pub fn is_reverse(name: &Name) -> bool {
    is_or_below(name, "in-addr.arpa") || is_or_below(name, "ip6.arpa")
}

/// The address that `name` asks backwards for. None if it is no whole address.
pub fn reversed(name: &Name) -> Option<IpAddr> {
    if let Some(labels) = name.as_str().strip_suffix(".in-addr.arpa") {
        let octets: Vec<&str> = labels.split('.').rev().collect();
        return octets
            .join(".")
            .parse::<std::net::Ipv4Addr>()
            .ok()
            .map(IpAddr::V4);
    }
    let labels = name.as_str().strip_suffix(".ip6.arpa")?;
    let mut bits = 0u128;
    let mut count = 0;
    for label in labels.split('.').rev() {
        let nibble = u128::from_str_radix(label, 16)
            .ok()
            .filter(|_| label.len() == 1)?;
        bits = bits << 4 | nibble;
        count += 1;
    }
    (count == 32).then(|| IpAddr::V6(bits.into()))
}

fn is_or_below(name: &Name, known: &str) -> bool {
    name.as_str()
        .strip_suffix(known)
        .is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tables_are_in_the_form_in_which_they_are_compared() {
        for text in DOH_ADDRESSES {
            let address: IpAddr = text.parse().expect(text);
            assert_eq!(&address.to_string(), text);
        }
        for text in DOH_NAMES.iter().chain(METADATA_NAMES) {
            assert_eq!(Name::parse(text).expect(text).as_str(), *text);
        }
    }

    #[test]
    fn addresses_asked_for_backwards() {
        let asked = |text: &str| reversed(&Name::parse(text).expect(text));
        let v4 = Some("192.168.1.2".parse().unwrap());
        assert_eq!(asked("2.1.168.192.in-addr.arpa"), v4);
        let zeros = "0.".repeat(31);
        assert_eq!(
            asked(&format!("1.{zeros}ip6.arpa")),
            Some("::1".parse().unwrap())
        );
        for text in [
            "1.168.192.in-addr.arpa",
            "5.2.1.168.192.in-addr.arpa",
            "256.1.168.192.in-addr.arpa",
            "02.1.168.192.in-addr.arpa",
            "1.0.ip6.arpa",
            "example.com",
        ] {
            assert_eq!(asked(text), None, "{text}");
        }
    }

    #[test]
    fn names_below_count_and_names_beside_do_not() {
        let known = |text| is_doh_name(&Name::parse(text).expect("a name"));
        assert!(known("dns.google"));
        assert!(known("security.cloudflare-dns.com"));
        assert!(!known("notdns.google.example"));
        assert!(!known("xdns.google"));
    }
}
