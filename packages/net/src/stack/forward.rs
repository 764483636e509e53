//! The resolver of a sandbox: names are decided on first, then asked of the host's servers, and what these
//! say is checked and pinned before the guest is told.

use super::diary::Diary;
use super::gate::{Answer, Answered, Resolver, Standing, Transport};
use super::lookup::{Lookup, Missing};
use super::packet::Ends;
use super::servers::Servers;
use super::synthetic;
use super::warden::Ward;
use crate::policy::{
    decide_alias, decide_answer, decide_name, Action, Name, Policy, Verdict, HOST_NAME,
};
use crate::wire::dns::{self, Judge, Query, Refusal, Reject};
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How long a pin lasts at least: who gets an answer with a TTL of 0 connects all the same. No TTL that is
/// told is longer than `dns::LONGEST_TTL`, and so is no pin.
const SHORTEST_PIN: Duration = Duration::from_secs(60);
/// How long the guest may keep an answer that was made here, in seconds.
const TTL: u32 = 60;

const A: u16 = 1;
const AAAA: u16 = 28;

/// Where the answers to allowed questions come from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// From the host's name servers.
    #[default]
    Resolve,
    /// From here: addresses that stand for names. The servers are asked when the sandbox connects to one.
    Synthetic,
}

pub struct Forwarder(Arc<Shared>);

struct Shared {
    ward: Ward,
    ends: Ends,
    lookup: Lookup,
    diary: Mutex<Diary>,
}

impl Forwarder {
    /// Ask `servers`, in their order.
    pub fn new(ward: Ward, ends: Ends, servers: Vec<SocketAddr>) -> Forwarder {
        Forwarder::over(ward, ends, Servers::fixed(servers), Mode::Resolve)
    }

    pub fn over(ward: Ward, ends: Ends, servers: Servers, mode: Mode) -> Forwarder {
        if mode == Mode::Synthetic {
            ward.state().synthetic = Some(synthetic::Synthetic::default());
        }
        Forwarder(Arc::new(Shared {
            ward,
            ends,
            lookup: Lookup::new(servers),
            diary: Mutex::default(),
        }))
    }
}

impl Resolver for Forwarder {
    fn answer(&self, message: Vec<u8>, over: Transport) -> Answer {
        let shared = Arc::clone(&self.0);
        Box::pin(async move {
            let (message, decided) = match dns::parse_query(&message) {
                Ok(query) => {
                    let (message, verdict) = shared.resolve(&query).await;
                    let message = match over {
                        Transport::Udp => dns::truncated(&query, message),
                        Transport::Tcp => message,
                    };
                    (Some(message), Some((query.name, verdict)))
                }
                Err(reject) => (dns::refusal(reject), of_type(&message, reject)),
            };
            let mut diary = shared.diary.lock().unwrap_or_else(PoisonError::into_inner);
            let decided =
                decided.filter(|(name, verdict)| diary.admit(name, verdict, Instant::now()));
            Answered { message, decided }
        })
    }

    fn standing(&self, address: IpAddr) -> Option<Standing> {
        let name = {
            let state = self.0.ward.state();
            let stand = state.synthetic.as_ref()?.stand(address)?;
            if !stand.real.is_empty() && Instant::now() < stand.until {
                return None;
            }
            stand.name.clone()
        };
        let shared = Arc::clone(&self.0);
        Some(Box::pin(async move { shared.settle(&name, address).await }))
    }
}

/// What is put on record of a question whose type is refused.
fn of_type(message: &[u8], reject: Reject) -> Option<(Name, Verdict)> {
    if !matches!(reject, Reject::Refuse(_, Refusal::Type)) {
        return None;
    }
    let (name, kind) = dns::named(message)?;
    let rule = format!("built-in: questions of type {kind} are not answered");
    Some((name, deny(rule)))
}

/// Why an answer was turned into "no such name".
fn turned(answer: &dns::Answer) -> Option<String> {
    if let Some(address) = answer.refused.first() {
        let rule = format!("built-in: an answer with {address}, which the policy does not allow");
        return Some(rule);
    }
    let alias = answer.denied.as_ref()?;
    Some(format!(
        "built-in: an answer that leads to {alias}, which the policy denies"
    ))
}

fn deny(rule: String) -> Verdict {
    let action = Action::Deny;
    Verdict { action, rule }
}

/// What the policy of now lets a guest be told of one name.
struct Rules<'a> {
    name: &'a Name,
    policy: &'a Policy,
    ends: &'a Ends,
    age: u32,
}

impl Judge for Rules<'_> {
    fn admits(&self, address: IpAddr) -> bool {
        decide_answer(self.name, address, self.policy).action == Action::Allow
    }

    fn leads_to(&self, alias: &Name) -> bool {
        decide_alias(alias, self.policy).action == Action::Allow
    }

    fn offers(&self, address: IpAddr) -> bool {
        match address {
            IpAddr::V4(_) => self.ends.v4.is_some(),
            IpAddr::V6(_) => self.ends.v6.is_some(),
        }
    }

    fn age(&self) -> u32 {
        self.age
    }
}

impl Shared {
    /// The answer, and what was decided.
    async fn resolve(&self, query: &Query) -> (Vec<u8>, Verdict) {
        let verdict = decide_name(&query.name, &self.ward.state().policy);
        if verdict.action == Action::Deny {
            return (dns::no_such_name(query), verdict);
        }
        // Whom the link cannot reach the guest is not told: it would only wait (N29).
        let missing = match query.kind {
            A => self.ends.v4.is_none(),
            AAAA => self.ends.v6.is_none(),
            _ => false,
        };
        if missing {
            return (dns::addresses(query, &[], TTL), verdict);
        }
        if query.name.as_str() == HOST_NAME {
            return (self.host(query), verdict);
        }
        if let Some(message) = self.stand_in(query) {
            return (message, verdict);
        }
        let spelled = self.ward.state().policy.spells(&query.name);
        let found = match self.lookup.find(query, spelled).await {
            Ok(found) => found,
            Err(Missing::Limited(rule)) => return (dns::refused(query), deny(rule)),
            Err(Missing::Unanswered) => return (dns::failure(query), verdict),
        };
        let now = Instant::now();
        let state = &mut *self.ward.state();
        // The policy may be another one by now, and an answer out of the cache never met this one.
        let verdict = decide_name(&query.name, &state.policy);
        if verdict.action == Action::Deny {
            return (dns::no_such_name(query), verdict);
        }
        let rules = Rules {
            name: &query.name,
            policy: &state.policy,
            ends: &self.ends,
            age: found.age(now),
        };
        let Ok(answer) = dns::check_answer(&found.bytes, query, found.id, rules) else {
            return (dns::failure(query), verdict);
        };
        if let Some(rule) = turned(&answer) {
            return (answer.message, deny(rule));
        }
        let mut told = answer.addresses.iter();
        let pinned = told.all(|(address, ttl)| {
            let lasting = SHORTEST_PIN.max(Duration::from_secs((*ttl).into()));
            state.pins.pin(&query.name, *address, now + lasting)
        });
        match pinned {
            true => (answer.message, verdict),
            false => (dns::failure(query), verdict),
        }
    }

    /// The gateways, which stand for the host.
    fn host(&self, query: &Query) -> Vec<u8> {
        let state = &mut *self.ward.state();
        let v4 = self.ends.v4.map(|(_, gateway)| IpAddr::from(gateway));
        let v6 = self.ends.v6.map(|(_, gateway)| IpAddr::from(gateway));
        let until = Instant::now() + SHORTEST_PIN;
        let told: Vec<IpAddr> = v4
            .into_iter()
            .chain(v6)
            .filter(|address| {
                let verdict = decide_answer(&query.name, *address, &state.policy);
                verdict.action == Action::Allow && state.pins.pin(&query.name, *address, until)
            })
            .collect();
        dns::addresses(query, &told, TTL)
    }

    /// An answer that nobody is asked for. None where names are resolved.
    fn stand_in(&self, query: &Query) -> Option<Vec<u8>> {
        let state = &mut *self.ward.state();
        let synthetic = state.synthetic.as_mut()?;
        if !matches!(query.kind, A | AAAA) {
            return Some(dns::addresses(query, &[], TTL));
        }
        Some(match synthetic.addresses(&query.name) {
            Some(addresses) => dns::addresses(query, &addresses, TTL),
            None => dns::failure(query),
        })
    }

    /// Look up where the name behind `address` leads. An error if nowhere, with what the policy said.
    async fn settle(&self, name: &Name, address: IpAddr) -> Result<(), Option<(Name, Verdict)>> {
        let denied = |verdict| Err(Some((name.clone(), verdict)));
        let (verdict, spelled) = {
            let policy = &self.ward.state().policy;
            (decide_name(name, policy), policy.spells(name))
        };
        if verdict.action == Action::Deny {
            return denied(verdict);
        }
        let (Some(v4), Some(v6)) = (Query::new(name.clone(), A), Query::new(name.clone(), AAAA))
        else {
            return Err(None);
        };
        let (found4, found6) = tokio::join!(
            self.lookup.find(&v4, spelled),
            self.lookup.find(&v6, spelled)
        );
        let now = Instant::now();
        let state = &mut *self.ward.state();
        let mut real = Vec::new();
        let mut against = None;
        let mut lasting = dns::LONGEST_TTL;
        for (query, found) in [(v4, found4), (v6, found6)] {
            let found = match found {
                Ok(found) => found,
                Err(Missing::Limited(rule)) => return denied(deny(rule)),
                Err(Missing::Unanswered) => continue,
            };
            let rules = Rules {
                name,
                policy: &state.policy,
                ends: &self.ends,
                age: found.age(now),
            };
            let Ok(answer) = dns::check_answer(&found.bytes, &query, found.id, rules) else {
                continue;
            };
            against = against.or(turned(&answer));
            for (address, ttl) in answer.addresses {
                lasting = lasting.min(ttl);
                real.push(address);
            }
        }
        if let Some(rule) = against.filter(|_| real.is_empty()) {
            return denied(deny(rule));
        }
        // A family that the host does not route is no use; unless there is nothing else, for the error.
        let routed: Vec<IpAddr> = real.iter().copied().filter(is_routed).collect();
        if !routed.is_empty() {
            real = routed;
        }
        let stand = state
            .synthetic
            .as_mut()
            .and_then(|all| all.stand_mut(address));
        match stand {
            Some(stand) if stand.name == *name && !real.is_empty() => {
                let lasting = SHORTEST_PIN.max(Duration::from_secs(lasting.into()));
                stand.lead(real, now + lasting);
                Ok(())
            }
            _ => Err(None),
        }
    }
}

/// Whether the host knows a way to `address`. Sends nothing.
fn is_routed(address: &IpAddr) -> bool {
    let any = match address {
        IpAddr::V4(_) => "0.0.0.0:0",
        IpAddr::V6(_) => "[::]:0",
    };
    UdpSocket::bind(any).is_ok_and(|socket| socket.connect((*address, 9)).is_ok())
}
