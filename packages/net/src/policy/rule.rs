//! One rule, and the text in which it is written.
//!
//! `ACTION[:DIRECTION]@DESTINATION[:PROTOCOL[:PORTS]]`, such as `allow@example.com:tcp:443`,
//! `deny@10.0.0.0/8`, `allow:ingress@private:tcp:8000-8999,22`, `deny@[2001:db8::/32]:udp`.

use super::destination::{Destination, Group};
use super::error::{quoted, PolicyError};
use super::{Direction, Protocol};
use std::fmt;
use std::str::FromStr;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Effect {
    Allow,
    Deny,
}

/// At most this many ranges of ports in a rule.
pub const MOST_RANGES: usize = 64;

/// Ranges of ports, both ends included.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Ports(Vec<(u16, u16)>);

impl Ports {
    pub fn contains(&self, port: u16) -> bool {
        self.0
            .iter()
            .any(|(first, last)| (*first..=*last).contains(&port))
    }

    pub fn parse(text: &str) -> Result<Ports, PolicyError> {
        let fail = |part: &str| {
            PolicyError::new(
                format!("ports {}: {} is no port", quoted(text), quoted(part)),
                "write numbers from 1 to 65535 and ranges, such as 443 or 80,8000-8999",
            )
        };
        let port = |digits: &str| -> Result<u16, PolicyError> {
            let plain = digits.bytes().all(|b| b.is_ascii_digit()) && !digits.starts_with('0');
            let value = digits.parse::<u16>().ok().filter(|_| plain);
            value.ok_or_else(|| fail(digits))
        };
        let mut ranges = Vec::new();
        for part in text.split(',') {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let range = (port(first)?, port(last)?);
            if range.0 > range.1 {
                return Err(PolicyError::new(
                    format!("ports {}: {} runs backwards", quoted(text), quoted(part)),
                    format!("write {}-{}", range.1, range.0),
                ));
            }
            if ranges.len() == MOST_RANGES {
                return Err(PolicyError::new(
                    format!("ports {}: more than {MOST_RANGES} ranges", quoted(text)),
                    "write several rules",
                ));
            }
            ranges.push(range);
        }
        Ok(Ports(ranges))
    }
}

impl fmt::Display for Ports {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, (first, last)) in self.0.iter().enumerate() {
            let comma = if index == 0 { "" } else { "," };
            if first == last {
                write!(f, "{comma}{first}")?;
            } else {
                write!(f, "{comma}{first}-{last}")?;
            }
        }
        Ok(())
    }
}

/// What is asked of the HTTP requests of a flow. Only where a host's traffic is intercepted can it
/// be seen; a policy refuses it elsewhere.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Http {
    pub methods: Vec<String>,
    pub paths: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Rule {
    effect: Effect,
    direction: Direction,
    destination: Destination,
    /// None: any.
    protocol: Option<Protocol>,
    /// None: any. ICMP has none.
    ports: Option<Ports>,
    http: Option<Http>,
}

impl Rule {
    pub fn new(
        effect: Effect,
        direction: Direction,
        destination: Destination,
        protocol: Option<Protocol>,
        ports: Option<Ports>,
        http: Option<Http>,
    ) -> Result<Rule, PolicyError> {
        let rule = Rule {
            effect,
            direction,
            destination,
            protocol,
            ports,
            http,
        };
        let fail =
            |seen: &str, hint: &str| Err(PolicyError::new(format!("rule '{rule}': {seen}"), hint));
        if rule.ports.is_some() && rule.protocol == Some(Protocol::Icmp) {
            return fail("ICMP has no ports", "leave the ports out");
        }
        if effect == Effect::Allow && rule.destination == Destination::Group(Group::Metadata) {
            // N11: only an address itself opens a metadata service.
            return fail(
                "metadata services are not allowed as a group",
                "name the address, such as allow@169.254.169.254:tcp:80",
            );
        }
        if direction == Direction::Ingress && rule.destination.is_name() {
            return fail(
                "who connects to a published port has an address and no name",
                "write an address, a network or a group",
            );
        }
        if let Some(http) = &rule.http {
            if http.methods.is_empty() && http.paths.is_empty() {
                return fail("no HTTP method and no path", "name at least one");
            }
            let token = |text: &String| {
                !text.is_empty() && text.bytes().all(|b| b.is_ascii_uppercase() || b == b'-')
            };
            if !http.methods.iter().all(token) {
                return fail("an HTTP method is in capitals", "write GET, POST...");
            }
            if !http.paths.iter().all(|path| path.starts_with('/')) {
                return fail("an HTTP path starts with /", "write /path or /path/*");
            }
        }
        Ok(rule)
    }

    pub fn effect(&self) -> Effect {
        self.effect
    }

    pub fn direction(&self) -> Direction {
        self.direction
    }

    pub fn destination(&self) -> &Destination {
        &self.destination
    }

    pub fn protocol(&self) -> Option<Protocol> {
        self.protocol
    }

    pub fn ports(&self) -> Option<&Ports> {
        self.ports.as_ref()
    }

    pub fn http(&self) -> Option<&Http> {
        self.http.as_ref()
    }

    /// Whether it is the same for every protocol and port.
    pub fn is_whole(&self) -> bool {
        self.protocol.is_none() && self.ports.is_none()
    }

    pub(super) fn covers(&self, protocol: Protocol, port: Option<u16>) -> bool {
        self.protocol.is_none_or(|wanted| wanted == protocol)
            && self
                .ports
                .as_ref()
                .is_none_or(|ports| port.is_some_and(|port| ports.contains(port)))
    }
}

impl FromStr for Rule {
    type Err = PolicyError;

    fn from_str(text: &str) -> Result<Rule, PolicyError> {
        let fail = |seen: String, hint: &str| {
            PolicyError::new(format!("rule {}: {seen}", quoted(text)), hint.to_string())
        };
        let within = |error: PolicyError| {
            PolicyError::new(
                format!("rule {}: {}", quoted(text), error.message),
                error.hint,
            )
        };
        const SHAPE: &str = "write ACTION[:DIRECTION]@DESTINATION[:PROTOCOL[:PORTS]], \
                             such as allow@example.com:tcp:443";
        let Some((verb, target)) = text.split_once('@') else {
            return Err(fail("no '@'".to_string(), SHAPE));
        };
        let (action, direction) = match verb.split_once(':') {
            Some((action, direction)) => (action, Some(direction)),
            None => (verb, None),
        };
        let effect = match action {
            "allow" => Effect::Allow,
            "deny" => Effect::Deny,
            other => {
                let seen = format!("{} is no action", quoted(other));
                return Err(fail(seen, "write allow or deny"));
            }
        };
        let direction = match direction {
            None | Some("egress") => Direction::Egress,
            Some("ingress") => Direction::Ingress,
            Some(other) => {
                let seen = format!("{} is no direction", quoted(other));
                return Err(fail(seen, "write egress or ingress"));
            }
        };
        if target.contains("://") {
            return Err(fail("this is a URL".to_string(), "write its host alone"));
        }
        let (destination, rest) = if let Some(inside) = target.strip_prefix('[') {
            let Some((address, rest)) = inside.split_once(']') else {
                return Err(fail("'[' without ']'".to_string(), "write [2001:db8::1]"));
            };
            if !address.contains(':') {
                return Err(fail(
                    "brackets are for IPv6".to_string(),
                    "leave them out, or write [2001:db8::1]",
                ));
            }
            match rest.strip_prefix(':') {
                Some(rest) => (address, Some(rest)),
                None if rest.is_empty() => (address, None),
                None => {
                    let seen = format!("{} after ']'", quoted(rest));
                    return Err(fail(seen, "write [2001:db8::/32]:tcp:443"));
                }
            }
        } else if target.split('/').next().is_some_and(is_bare_ipv6) {
            return Err(fail(
                "an IPv6 address without brackets".to_string(),
                "write [2001:db8::1] or [2001:db8::/32]",
            ));
        } else {
            match target.split_once(':') {
                Some((destination, rest)) => (destination, Some(rest)),
                None => (target, None),
            }
        };
        if destination.is_empty() {
            return Err(fail("no destination".to_string(), SHAPE));
        }
        let destination = Destination::parse(destination).map_err(within)?;
        let (protocol, ports) = match rest.map(|rest| match rest.split_once(':') {
            Some((protocol, ports)) => (protocol, Some(ports)),
            None => (rest, None),
        }) {
            None => (None, None),
            Some((protocol, ports)) => {
                let protocol = match protocol {
                    "any" => None,
                    "tcp" => Some(Protocol::Tcp),
                    "udp" => Some(Protocol::Udp),
                    "icmp" => Some(Protocol::Icmp),
                    other => {
                        let seen = format!("{} is no protocol", quoted(other));
                        let hint = "write tcp, udp, icmp or any; ports come after it, as tcp:443";
                        return Err(fail(seen, hint));
                    }
                };
                let ports = ports.map(Ports::parse).transpose().map_err(within)?;
                (protocol, ports)
            }
        };
        Rule::new(effect, direction, destination, protocol, ports, None)
    }
}

/// `::1`, `fe80::1%eth0`, `2001:db8:...`: what would be cut apart at its first colon.
fn is_bare_ipv6(text: &str) -> bool {
    let address = text.split('%').next().unwrap_or_default();
    address.parse::<std::net::Ipv6Addr>().is_ok()
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.effect {
            Effect::Allow => "allow",
            Effect::Deny => "deny",
        })?;
        if self.direction == Direction::Ingress {
            f.write_str(":ingress")?;
        }
        let destination = self.destination.to_string();
        if destination.contains(':') {
            write!(f, "@[{destination}]")?;
        } else {
            write!(f, "@{destination}")?;
        }
        match (self.protocol, &self.ports) {
            (None, None) => {}
            (protocol, ports) => {
                write!(f, ":{}", protocol.map_or("any", Protocol::as_str))?;
                if let Some(ports) = ports {
                    write!(f, ":{ports}")?;
                }
            }
        }
        if let Some(http) = &self.http {
            let all: Vec<_> = http.methods.iter().chain(&http.paths).cloned().collect();
            write!(f, " ({})", all.join(" "))?;
        }
        Ok(())
    }
}
