//! The decision.

use super::destination::{Destination, Group, HOST_NAME};
use super::guard;
use super::{Action, Direction, Effect, Flow, Name, Names, Pins, Policy, Protocol, Rule, Verdict};
use crate::address::{canonical, classify, forms, Class};
use std::net::IpAddr;

const NOT_RESOLVED: &str = "the sandbox did not resolve the stated name to this address";
const NOT_PUBLIC: &str = "a name leads to public addresses only";
const DOH: &str = "DNS over HTTPS goes past the sandbox's resolver";
const METADATA: &str = "a metadata service is reached only by a rule for its very address";

fn allow(rule: String) -> Verdict {
    Verdict {
        action: Action::Allow,
        rule,
    }
}

fn deny(rule: String) -> Verdict {
    Verdict {
        action: Action::Deny,
        rule,
    }
}

/// What no rule matched, with the reason why a rule that came near did not.
fn default(policy: &Policy, near: Option<String>) -> Verdict {
    deny(match near {
        Some(near) => format!("default: deny ({near})"),
        None => format!("policy {}: no rule allows it", policy.preset().as_str()),
    })
}

/// Whether an allow rule lets a flow pass.
enum Admission {
    Yes,
    /// It would if the client stated the right name.
    IfNamed,
    No,
    /// It is about this flow, and does not let it pass for this reason.
    Near(&'static str),
}

/// Whether `flow` may pass: opens nothing, reads no clock, cannot fail.
pub fn decide(flow: &Flow, policy: &Policy, pins: &Pins) -> Verdict {
    if flow.direction == Direction::Egress {
        if classify(flow.address) == Class::Unspecified {
            return deny("built-in: the unspecified address is nobody's".to_string());
        }
        if flow.protocol != Protocol::Icmp && flow.port == Some(53) {
            return deny("built-in: DNS is answered by the sandbox's own resolver".to_string());
        }
    }
    let mut near = None;
    for (source, rule) in policy.ordered(flow.direction) {
        if !rule.covers(flow.protocol, flow.port) {
            continue;
        }
        match rule.effect() {
            Effect::Deny => {
                if denies(rule.destination(), flow, policy, pins) {
                    return deny(source.describe(rule));
                }
            }
            Effect::Allow => match admits(rule, flow, policy, pins) {
                Admission::Yes => return allow(source.describe(rule)),
                Admission::IfNamed => {
                    return Verdict {
                        action: Action::AllowIfNamed,
                        rule: source.describe(rule),
                    }
                }
                Admission::No => {}
                Admission::Near(why) => {
                    near.get_or_insert_with(|| format!("{why}; {}", source.describe(rule)));
                }
            },
        }
    }
    default(policy, near)
}

/// A deny rule goes wide: every form of the address counts.
fn denies(destination: &Destination, flow: &Flow, policy: &Policy, pins: &Pins) -> bool {
    if !destination.is_name() {
        return denies_address(destination, flow.address, policy);
    }
    match &flow.name {
        Some(name) => destination.matches_name(name),
        // A flow of a policy that was narrowed since, or one without a name on the wire.
        None => pins
            .names(flow.address)
            .any(|name| destination.matches_name(name)),
    }
}

fn denies_address(destination: &Destination, address: IpAddr, policy: &Policy) -> bool {
    match destination {
        Destination::Any => true,
        Destination::Ip(ip) => forms(address).any(|form| form == *ip),
        Destination::Cidr(cidr) => forms(address).any(|form| cidr.contains(form)),
        Destination::Group(Group::Host) => policy.is_host(address),
        Destination::Group(group) => {
            let class = group.class();
            !policy.is_host(address)
                && (class == Some(classify(address))
                    || forms(address).any(|form| class == Some(classify(form))))
        }
        _ => false,
    }
}

/// An allow rule goes narrow: the address itself has to be meant.
fn admits(rule: &Rule, flow: &Flow, policy: &Policy, pins: &Pins) -> Admission {
    let destination = rule.destination();
    if !destination.is_name() {
        return match admits_address(destination, flow.address, flow.direction, policy) {
            Admission::Yes => guarded(rule, flow, policy, Admission::Yes),
            other => other,
        };
    }
    // Name rules are egress rules.
    let known = match &flow.name {
        Some(name) if !destination.matches_name(name) => return Admission::No,
        Some(name) => pins.has(name, flow.address),
        None => pins
            .names(flow.address)
            .any(|name| destination.matches_name(name)),
    };
    match (known, &flow.name) {
        // N03: a stated name proves nothing.
        (false, Some(_)) => return Admission::Near(NOT_RESOLVED),
        (false, None) => return Admission::No,
        (true, _) => {}
    }
    if policy.is_host(flow.address) || classify(flow.address) != Class::Public {
        return Admission::Near(NOT_PUBLIC);
    }
    match (&flow.name, policy.names(), flow.protocol) {
        (Some(_), _, _) | (None, Names::PinOnly, _) => guarded(rule, flow, policy, Admission::Yes),
        (None, Names::Strict, Protocol::Tcp) => guarded(rule, flow, policy, Admission::IfNamed),
        (None, Names::Strict, _) => Admission::Near("strict: no name can be seen in UDP and ICMP"),
    }
}

fn admits_address(
    destination: &Destination,
    address: IpAddr,
    direction: Direction,
    policy: &Policy,
) -> Admission {
    let class = classify(address);
    let host = policy.is_host(address);
    // N11: metadata services, under every policy. They do connect to nobody.
    let metadata = class == Class::Metadata && direction == Direction::Egress;
    let matches = match destination {
        Destination::Any => true,
        Destination::Ip(ip) => return yes_if(*ip == canonical(address)),
        Destination::Cidr(cidr) if host => {
            return if cidr.contains(address) {
                Admission::Near("the host is reached by its group or its very address")
            } else {
                Admission::No
            }
        }
        Destination::Cidr(cidr) => {
            if cidr.contains(address) && !metadata && hides_inside(address) {
                return Admission::Near("the address carries one that is not public");
            }
            cidr.contains(address)
        }
        Destination::Group(Group::Host) => host,
        Destination::Group(group) => !host && group.class() == Some(class),
        _ => false,
    };
    if matches && metadata {
        return Admission::Near(METADATA);
    }
    yes_if(matches)
}

fn yes_if(condition: bool) -> Admission {
    if condition {
        Admission::Yes
    } else {
        Admission::No
    }
}

/// Whether `address` carries another one that a network's gateway could lead inwards.
fn hides_inside(address: IpAddr) -> bool {
    forms(address).skip(1).any(|form| {
        matches!(
            classify(form),
            Class::Private | Class::Loopback | Class::LinkLocal | Class::Metadata
        )
    })
}

/// Whether a rule for names is one for a known service of DNS over HTTPS, and not for a domain that has one
/// among its names.
fn means_doh(destination: &Destination) -> bool {
    match destination {
        Destination::Domain(name) | Destination::Below(name) | Destination::Suffix(name) => {
            guard::is_doh_name(name)
        }
        _ => false,
    }
}

/// What hides names passes only by a rule that means it.
fn guarded(rule: &Rule, flow: &Flow, policy: &Policy, admission: Admission) -> Admission {
    if flow.direction == Direction::Ingress {
        return admission;
    }
    let meant = !matches!(rule.destination(), Destination::Any | Destination::Group(_));
    let port_meant = meant && rule.protocol().is_some() && rule.ports().is_some();
    if let Some(why) = guard::name_service(flow.protocol, flow.port) {
        if !port_meant {
            return Admission::Near(why);
        }
    }
    // A name that is none of theirs leads to them at no port, as in `decide_answer`.
    if rule.destination().is_name()
        && !means_doh(rule.destination())
        && guard::is_doh_address(canonical(flow.address))
    {
        return Admission::Near(DOH);
    }
    if policy.names_matter() && flow.port == Some(443) {
        // N38, N20.
        if flow.protocol == Protocol::Udp && !port_meant {
            return Admission::Near("QUIC hides names, and TCP will do");
        }
        let doh = guard::is_doh_address(canonical(flow.address))
            || flow.name.as_ref().is_some_and(guard::is_doh_name);
        // A name that is none of theirs may lead to them.
        let meant = meant && (!rule.destination().is_name() || means_doh(rule.destination()));
        if doh && !meant {
            return Admission::Near(DOH);
        }
    }
    admission
}

/// Whether the guest may learn about `name` at all (before anything is asked upstream).
/// `Deny` means NXDOMAIN, made here.
///
/// A name may be asked for if a rule for names, for groups or for anything could let a flow to it
/// pass. Rules for addresses and networks open no names: else `allow@10.0.0.5` would open every
/// name server in the world to questions that carry data out (N19). What an address is called may
/// be asked for an address that a group or `any` allows: the names of a private network are none
/// of a sandbox's business that may not go there.
pub fn decide_name(name: &Name, policy: &Policy) -> Verdict {
    let host = name.as_str() == HOST_NAME;
    let doh = policy.names_matter() && guard::is_doh_name(name);
    let only = if guard::is_metadata_name(name) {
        Some("a metadata service's name is resolved only by a rule for it")
    } else if doh {
        Some(DOH)
    } else {
        None
    };
    let backwards = guard::is_reverse(name);
    let asked = guard::reversed(name);
    let mut near = None;
    for (source, rule) in policy.ordered(Direction::Egress) {
        let named = rule.destination().matches_name(name);
        match rule.effect() {
            Effect::Deny if !rule.is_whole() => {}
            Effect::Deny => {
                let all = *rule.destination() == Destination::Any
                    || (host && *rule.destination() == Destination::Group(Group::Host));
                if named || all {
                    return deny(source.describe(rule));
                }
            }
            Effect::Allow => {
                let opens = match rule.destination() {
                    Destination::Any | Destination::Group(_) if backwards => {
                        let admits = |address| {
                            admits_address(rule.destination(), address, Direction::Egress, policy)
                        };
                        matches!(asked.map(admits), Some(Admission::Yes))
                    }
                    Destination::Any => true,
                    Destination::Group(Group::Host) => host,
                    Destination::Group(_) => !host,
                    Destination::Ip(ip) => host && policy.host.contains(ip),
                    _ => named && !host,
                };
                match only {
                    Some(why) if opens && !(named && (!doh || means_doh(rule.destination()))) => {
                        near.get_or_insert_with(|| format!("{why}; {}", source.describe(rule)));
                    }
                    _ if opens => return allow(source.describe(rule)),
                    _ => {}
                }
            }
        }
    }
    default(policy, near)
}

/// Whether a name that the guest may ask for may be another name for `alias` (CNAME, HTTPS, SVCB): no if a
/// rule denies that one, or if it may be asked for only by a rule that means it. That no rule allows
/// it says nothing: who allows a name allows it wherever it is hosted.
pub fn decide_alias(alias: &Name, policy: &Policy) -> Verdict {
    let mut near = None;
    for (source, rule) in policy.ordered(Direction::Egress) {
        if !rule.destination().matches_name(alias) {
            continue;
        }
        match rule.effect() {
            Effect::Deny if rule.is_whole() => return deny(source.describe(rule)),
            Effect::Deny => {}
            Effect::Allow => {
                let verdict = decide_name(alias, policy);
                if verdict.action == Action::Allow {
                    return verdict;
                }
                near = Some(source.describe(rule));
            }
        }
    }
    let closed = alias.as_str() == HOST_NAME
        || guard::is_metadata_name(alias)
        || (policy.names_matter() && guard::is_doh_name(alias));
    match closed {
        true => default(policy, near),
        false => allow("an alias, which no rule denies".to_string()),
    }
}

/// Whether `address` may be told to the guest (and pinned) as an answer for `name`: no if no
/// flow to it could pass (rebinding to private, loopback, link-local, metadata addresses).
pub fn decide_answer(name: &Name, address: IpAddr, policy: &Policy) -> Verdict {
    let learned = decide_name(name, policy);
    if learned.action != Action::Allow {
        return learned;
    }
    if classify(address) == Class::Unspecified {
        return deny("built-in: the unspecified address is nobody's".to_string());
    }
    let public = classify(address) == Class::Public && !policy.is_host(address);
    let doh = policy.names_matter() && guard::is_doh_address(canonical(address));
    let mut near = None;
    for (source, rule) in policy.ordered(Direction::Egress) {
        let destination = rule.destination();
        let named = destination.matches_name(name);
        match rule.effect() {
            Effect::Deny if !rule.is_whole() => {}
            Effect::Deny => {
                if named || denies_address(destination, address, policy) {
                    return deny(source.describe(rule));
                }
            }
            Effect::Allow => {
                let admission = match (named, public) {
                    (true, true) if doh && !means_doh(destination) => Admission::Near(DOH),
                    (true, true) => Admission::Yes,
                    (true, false) => Admission::Near(NOT_PUBLIC),
                    _ => admits_address(destination, address, Direction::Egress, policy),
                };
                match admission {
                    Admission::Yes => return allow(source.describe(rule)),
                    Admission::Near(why) => {
                        near.get_or_insert_with(|| format!("{why}; {}", source.describe(rule)));
                    }
                    Admission::IfNamed | Admission::No => {}
                }
            }
        }
    }
    default(policy, near)
}
