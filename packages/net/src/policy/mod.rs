//! The network policy: one pure function, `decide`, answers every enforcement point.
//!
//! A flow passes only if *every* enforcement point that sees it is answered `Allow`: the SYN (no
//! name yet), and later each name the client states (SNI, Host, `:authority`, CONNECT, SOCKS).
//! Each answer depends on its question alone, so that it does not matter which point asks first.

mod decide;
pub mod destination;
pub mod error;
pub mod explain;
mod guard;
pub mod name;
pub mod pins;
pub mod rule;

#[cfg(test)]
pub(crate) mod tests;

pub use decide::{decide, decide_alias, decide_answer, decide_name};
pub use destination::{Destination, Group, HOST_NAME};
pub use error::PolicyError;
pub use name::Name;
pub use pins::Pins;
pub use rule::{Effect, Rule};

use crate::address::{classify, forms, Class};
use std::net::IpAddr;
use std::sync::LazyLock;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Direction {
    /// From the guest to `Flow::address`.
    Egress,
    /// From `Flow::address` to a published port of the guest.
    Ingress,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Protocol {
    Tcp,
    Udp,
    Icmp,
}

impl Protocol {
    pub fn as_str(self) -> &'static str {
        match self {
            Protocol::Tcp => "tcp",
            Protocol::Udp => "udp",
            Protocol::Icmp => "icmp",
        }
    }
}

/// What an enforcement point knows about a flow when it asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Flow {
    pub direction: Direction,
    pub protocol: Protocol,
    /// The remote end: where the guest connects to, or the peer of a published port.
    pub address: IpAddr,
    /// Egress: the remote port. Ingress: the port in the guest. ICMP: None.
    pub port: Option<u16>,
    /// The name that the client stated on the wire, as far as it has been seen.
    pub name: Option<Name>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    Allow,
    Deny,
    /// TCP, no name seen yet, and it is a name rule (strict) that would let the flow pass. The
    /// upstream connection may be made and the guest's SYN answered, but no byte of the guest
    /// goes upstream until it stated a name and `decide` said `Allow` for it. A client that
    /// turns out to state none is refused: see `Verdict::unnamed`.
    AllowIfNamed,
}

/// The answer, with the rule that gave it in words (for the audit and for `explain`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    pub action: Action,
    pub rule: String,
}

impl Verdict {
    /// What the verdict becomes once it is certain that the client states no name (none, an
    /// address, or one that an encrypted ClientHello hides).
    pub fn unnamed(self) -> Verdict {
        match self.action {
            Action::AllowIfNamed => Verdict {
                action: Action::Deny,
                rule: format!("{} (strict: the client stated no name)", self.rule),
            },
            _ => self,
        }
    }
}

/// What stands below the user's own rules.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Preset {
    /// Nothing passes, in neither direction.
    None,
    /// The public internet, and every name that leads to it.
    #[default]
    PublicOnly,
    /// The public internet and private networks; never loopback, link-local, metadata, the host.
    Nonlocal,
    /// Everything but metadata services.
    AllowAll,
}

impl Preset {
    pub const ALL: [Preset; 4] = [
        Preset::None,
        Preset::PublicOnly,
        Preset::Nonlocal,
        Preset::AllowAll,
    ];

    pub fn as_str(self) -> &'static str {
        match self {
            Preset::None => "none",
            Preset::PublicOnly => "public-only",
            Preset::Nonlocal => "nonlocal",
            Preset::AllowAll => "allow-all",
        }
    }

    pub fn parse(text: &str) -> Result<Preset, PolicyError> {
        Preset::ALL
            .into_iter()
            .find(|preset| preset.as_str() == text)
            .ok_or_else(|| {
                PolicyError::new(
                    format!("network policy {} is not known", error::quoted(text)),
                    format!(
                        "the policies are {}",
                        Preset::ALL.map(Preset::as_str).join(", ")
                    ),
                )
            })
    }

    /// Its rules. What is published is open to all whom the address it is bound to lets in.
    pub fn rules(self) -> &'static [Rule] {
        static RULES: LazyLock<[Vec<Rule>; 4]> = LazyLock::new(|| {
            Preset::ALL.map(|preset| {
                let texts: &[&str] = match preset {
                    Preset::None => &[],
                    Preset::PublicOnly => &["allow@public", "allow:ingress@any"],
                    Preset::Nonlocal => &["allow@public", "allow@private", "allow:ingress@any"],
                    Preset::AllowAll => &["allow@any", "allow:ingress@any"],
                };
                texts
                    .iter()
                    .map(|text| text.parse().expect("the presets' rules are rules"))
                    .collect()
            })
        });
        &RULES[self as usize]
    }
}

/// What a name rule asks of a flow whose client states no name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Names {
    /// It is refused.
    #[default]
    Strict,
    /// That the sandbox resolved the name to the address.
    PinOnly,
}

impl Names {
    pub fn as_str(self) -> &'static str {
        match self {
            Names::Strict => "strict",
            Names::PinOnly => "pin-only",
        }
    }

    pub fn parse(text: &str) -> Result<Names, PolicyError> {
        [Names::Strict, Names::PinOnly]
            .into_iter()
            .find(|names| names.as_str() == text)
            .ok_or_else(|| {
                PolicyError::new(
                    format!("names {} is not known", error::quoted(text)),
                    "write strict or pin-only",
                )
            })
    }
}

/// At most this many rules in a policy.
pub const MOST_RULES: usize = 1024;

/// The user's rules in their order, then those of the preset, then: deny. The first that matches
/// decides.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Policy {
    preset: Preset,
    rules: Vec<Rule>,
    names: Names,
    host: Vec<IpAddr>,
}

impl Policy {
    pub fn new(preset: Preset, rules: Vec<Rule>, names: Names) -> Result<Policy, PolicyError> {
        if rules.len() > MOST_RULES {
            return Err(PolicyError::new(
                format!("network policy: {} rules", rules.len()),
                format!("write at most {MOST_RULES}; a network or a suffix covers many addresses"),
            ));
        }
        if let Some((index, rule)) = rules.iter().enumerate().find(|(_, r)| r.http().is_some()) {
            return Err(PolicyError::new(
                format!(
                    "rule {} '{rule}': HTTP methods and paths cannot be seen, the host's traffic \
                     is not intercepted",
                    index + 1
                ),
                "leave methods and paths out",
            ));
        }
        Ok(Policy {
            preset,
            rules,
            names,
            host: Vec::new(),
        })
    }

    /// Only public addresses, and every name that leads to one.
    pub fn public_only() -> Policy {
        Policy::default()
    }

    /// Nothing at all.
    pub fn none() -> Policy {
        Policy {
            preset: Preset::None,
            ..Policy::default()
        }
    }

    /// The same rules for a sandbox in which `addresses` stand for the host: its gateway, and
    /// the addresses of the host's own interfaces. They are of the group `host` and no other.
    pub fn with_host(mut self, addresses: impl IntoIterator<Item = IpAddr>) -> Policy {
        self.host = addresses
            .into_iter()
            .map(crate::address::canonical)
            .collect();
        self
    }

    /// The addresses that stand for the host.
    pub fn host(&self) -> &[IpAddr] {
        &self.host
    }

    pub fn preset(&self) -> Preset {
        self.preset
    }

    pub fn rules(&self) -> &[Rule] {
        &self.rules
    }

    pub fn names(&self) -> Names {
        self.names
    }

    /// Whether names make a difference, so that a flow that hides its name has to be refused.
    fn names_matter(&self) -> bool {
        self.rules.iter().any(|rule| rule.destination().is_name())
    }

    /// Whether a rule spells out `name` itself, so that asking for it says nothing that the policy does not.
    pub fn spells(&self, name: &Name) -> bool {
        let is =
            |rule: &Rule| matches!(rule.destination(), Destination::Domain(own) if own == name);
        self.rules.iter().any(is)
    }

    /// Whether `address`, or what it carries, is the host's.
    fn is_host(&self, address: IpAddr) -> bool {
        !self.host.is_empty()
            && classify(address) != Class::Metadata
            && forms(address).any(|form| self.host.contains(&form))
    }

    fn ordered(&self, direction: Direction) -> impl Iterator<Item = (Source, &Rule)> {
        let own = self
            .rules
            .iter()
            .enumerate()
            .map(|(index, rule)| (Source::Rule(index + 1), rule));
        let preset = self
            .preset
            .rules()
            .iter()
            .map(|rule| (Source::Preset(self.preset), rule));
        own.chain(preset)
            .filter(move |(_, rule)| rule.direction() == direction)
    }
}

/// Where a rule comes from.
#[derive(Clone, Copy)]
enum Source {
    /// The user's, counted from 1.
    Rule(usize),
    Preset(Preset),
}

impl Source {
    fn describe(self, rule: &Rule) -> String {
        match self {
            Source::Rule(number) => format!("rule {number}: {rule}"),
            Source::Preset(preset) => format!("policy {}: {rule}", preset.as_str()),
        }
    }
}
