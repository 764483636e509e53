//! DNS messages (RFC 1035): the guest's questions, and what resolvers answer to them.
//!
//! hickory-proto reads and writes the messages; before it sees one, the checks here bound it. What
//! goes to the guest is always written anew, never passed on.

mod query;
mod write;

pub use query::{is_answer, named, parse_query, refusal, Query, Stream, KINDS};
pub use write::{addresses, failure, no_such_name, question, refused, truncated};

use super::Bytes;
use crate::policy::Name;
use hickory_proto::op::{Message, ResponseCode};
use hickory_proto::rr::rdata::svcb::{SvcParamKey, SvcParamValue, SVCB};
use hickory_proto::rr::rdata::HTTPS;
use hickory_proto::rr::{DNSClass, Name as Owner, RData, Record};
use std::fmt;
use std::net::IpAddr;

/// The longest question that is read: a header, a name of 255 bytes, and EDNS options.
pub const LONGEST_QUERY: usize = 1024;
/// The longest answer that is read, over UDP with EDNS or over TCP.
pub const LONGEST_ANSWER: usize = 16 * 1024;
/// The most records of an answer, in all its sections.
pub const MOST_RECORDS: usize = 128;
/// The longest chain of CNAMEs that is followed.
pub const LONGEST_CHAIN: usize = 12;

/// Why a message is not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reject {
    /// No DNS message, or one that is not for us: no answer at all.
    Drop(&'static str),
    /// A sound question that is not answered: REFUSED, NOTIMP or FORMERR, with its id.
    Refuse(u16, Refusal),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// More or fewer questions than one, records where none belong, a name that breaks the rules.
    Format,
    /// Another operation than a query.
    Operation,
    /// A type that carries data rather than addresses, a transfer, a class other than IN.
    Type,
}

impl fmt::Display for Reject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Reject::Drop(why) => why,
            Reject::Refuse(_, Refusal::Format) => "a question that breaks the rules",
            Reject::Refuse(_, Refusal::Operation) => "an operation other than a query",
            Reject::Refuse(_, Refusal::Type) => "a type of question that is not answered",
        })
    }
}

/// What a resolver answered, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// For the guest, to be sent as it is (or cut by `truncated`).
    pub message: Vec<u8>,
    /// What the guest is told, to be pinned under the question's name, with its TTL in seconds.
    pub addresses: Vec<(IpAddr, u32)>,
    /// Addresses for which the answer was turned into "no such name": nothing is pinned then.
    pub refused: Vec<IpAddr>,
    /// A name that the answer leads to and that the policy denies; "no such name" as well.
    pub denied: Option<String>,
    /// How long the message may be kept, in seconds.
    pub ttl: u32,
    /// It did not fit into a datagram: ask again over TCP. Nothing else of it counts.
    pub truncated: bool,
    /// The resolver's code, if it did not say whether the name exists. Nothing else counts then either.
    pub failed: Option<u16>,
}

/// What may be told. A closure over addresses is one that has nothing against names.
pub trait Judge {
    /// Whether `address` may be an answer.
    fn admits(&self, address: IpAddr) -> bool;

    /// Whether the name asked for may be another name for `alias`.
    fn leads_to(&self, _alias: &Name) -> bool {
        true
    }

    /// Whether the guest could reach any address of the family of `address`.
    fn offers(&self, _address: IpAddr) -> bool {
        true
    }

    /// How old the answer is, in seconds.
    fn age(&self) -> u32 {
        0
    }
}

impl<F: Fn(IpAddr) -> bool> Judge for F {
    fn admits(&self, address: IpAddr) -> bool {
        self(address)
    }
}

/// For how long at most an answer is kept that has no record which says so, in seconds.
const LONGEST_NEGATIVE: u32 = 60;
/// For how long at most any answer may be kept, in seconds: a TTL may say 68 years.
pub const LONGEST_TTL: u32 = 3600;

/// What a resolver sent for `query`, which was asked under `id`. One address that `judge` does not admit
/// turns the whole answer into "no such name": nobody honest answers for one name with public and
/// with inner addresses (N13). So does an alias that is denied.
pub fn check_answer(
    bytes: &[u8],
    query: &Query,
    id: u16,
    judge: impl Judge,
) -> Result<Answer, Reject> {
    bounded(bytes, id)?;
    let message = Message::from_vec(bytes).map_err(|_| Reject::Drop("no DNS message"))?;
    let asked = message
        .query()
        .ok_or(Reject::Drop("an answer without question"))?;
    // Names compare without regard to case in hickory, as RFC 1035 has it.
    if asked.name() != &query.owner
        || u16::from(asked.query_type()) != query.kind
        || asked.query_class() != DNSClass::IN
    {
        return Err(Reject::Drop("an answer to another question"));
    }
    let code = message.response_code();
    let mut checked = Answer {
        message: Vec::new(),
        addresses: Vec::new(),
        refused: Vec::new(),
        denied: None,
        ttl: 0,
        truncated: message.truncated(),
        failed: None,
    };
    if !matches!(code, ResponseCode::NoError | ResponseCode::NXDomain) {
        checked.failed = Some(u16::from(code));
    }
    if checked.truncated || checked.failed.is_some() {
        checked.message = failure(query);
        return Ok(checked);
    }
    let mut answer = write::header(query, code);
    let lasting = |record: &Record| record.ttl().min(LONGEST_TTL).saturating_sub(judge.age());
    let mut tell = |mut record: Record| {
        let ttl = lasting(&record);
        record.set_ttl(ttl);
        // As the guest spelled it.
        if record.name() == &query.owner {
            record.set_name(query.owner.clone());
        }
        answer.add_answer(record);
    };
    let mut names = Vec::new();
    let mut owner = query.owner.clone();
    // CNAMEs first, from the name that was asked for: what belongs to other names is not told.
    for _ in 0..LONGEST_CHAIN {
        let alias = message
            .answers()
            .iter()
            .find_map(|record| match record.data() {
                RData::CNAME(target) if is_of(record, &owner) => Some((record, target.0.clone())),
                _ => None,
            });
        match alias {
            Some((record, target)) if query.kind != 5 => {
                names.push(target.clone());
                tell(record.clone());
                owner = target;
            }
            _ => break,
        }
    }
    for record in message.answers() {
        if !is_of(record, &owner) || u16::from(record.record_type()) != query.kind {
            continue;
        }
        let mut record = record.clone();
        let ttl = lasting(&record);
        let hints = match record.data_mut() {
            RData::A(v4) => {
                checked.addresses.push((IpAddr::V4(v4.0), ttl));
                Vec::new()
            }
            RData::AAAA(v6) => {
                checked.addresses.push((IpAddr::V6(v6.0), ttl));
                Vec::new()
            }
            RData::CNAME(target) => {
                names.push(target.0.clone());
                Vec::new()
            }
            RData::HTTPS(HTTPS(data)) | RData::SVCB(data) => {
                if !data.target_name().is_root() {
                    names.push(data.target_name().clone());
                }
                let (kept, hints) = plain(data, &judge);
                *data = kept;
                hints
            }
            // A type that was asked for and that hickory does not know inside out.
            RData::Unknown { .. } => continue,
            _ => Vec::new(),
        };
        checked
            .refused
            .extend(hints.into_iter().filter(|address| !judge.admits(*address)));
        tell(record);
    }
    let told = checked.addresses.iter().map(|(address, _)| *address);
    checked
        .refused
        .extend(told.filter(|address| !judge.admits(*address)));
    checked.denied = names.into_iter().find_map(|target| {
        let text = target.to_ascii();
        // What is no name to us could be any.
        let fine = Name::parse(&text).is_some_and(|name| judge.leads_to(&name));
        (!fine).then_some(text)
    });
    if !checked.refused.is_empty() || checked.denied.is_some() {
        checked.message = no_such_name(query);
        checked.addresses.clear();
        return Ok(checked);
    }
    // The SOA says how long "nothing" may be kept (RFC 2308 5).
    let mut shortest = answer.answers().iter().map(Record::ttl).min();
    if !message
        .answers()
        .iter()
        .any(|record| is_of(record, &owner) && u16::from(record.record_type()) == query.kind)
    {
        let soa = message
            .name_servers()
            .iter()
            .find_map(|record| match record.data() {
                RData::SOA(soa) => Some((record, record.ttl().min(soa.minimum()))),
                _ => None,
            });
        let negative = match soa {
            Some((record, ttl)) => {
                let ttl = ttl.min(LONGEST_NEGATIVE).saturating_sub(judge.age());
                let mut record = record.clone();
                record.set_ttl(ttl);
                answer.add_name_server(record);
                ttl
            }
            None => LONGEST_NEGATIVE.saturating_sub(judge.age()),
        };
        shortest = Some(shortest.map_or(negative, |ttl| ttl.min(negative)));
    }
    checked.ttl = shortest.unwrap_or(0);
    checked.message = write::written(&answer);
    Ok(checked)
}

fn is_of(record: &Record, owner: &Owner) -> bool {
    record.name() == owner && record.dns_class() == DNSClass::IN
}

/// The same binding without the key of an encrypted ClientHello, which would hide names from the
/// policy, and without hints that the guest could not use; and the addresses that it hints at.
fn plain(data: &SVCB, judge: &impl Judge) -> (SVCB, Vec<IpAddr>) {
    let mut hints = Vec::new();
    let mut kept = Vec::new();
    for (key, value) in data.svc_params() {
        let found: Vec<IpAddr> = match value {
            SvcParamValue::Ipv4Hint(list) => list.0.iter().map(|hint| hint.0.into()).collect(),
            SvcParamValue::Ipv6Hint(list) => list.0.iter().map(|hint| hint.0.into()).collect(),
            _ => Vec::new(),
        };
        let useless = found.first().is_some_and(|hint| !judge.offers(*hint));
        hints.extend(found);
        // Without the key, a list of mandatory ones that names it would make no sense.
        if !useless && !matches!(key, SvcParamKey::EchConfigList | SvcParamKey::Mandatory) {
            kept.push((*key, value.clone()));
        }
    }
    let kept = SVCB::new(data.svc_priority(), data.target_name().clone(), kept);
    (kept, hints)
}

/// What hickory is not asked to find out: sizes, counts, and compression that runs in circles.
fn bounded(bytes: &[u8], id: u16) -> Result<(), Reject> {
    let damaged = Reject::Drop("a DNS message that is cut short or runs in circles");
    if bytes.len() > LONGEST_ANSWER {
        return Err(Reject::Drop("an answer that is too long"));
    }
    let mut rest = Bytes(bytes);
    if rest.u16().ok_or(damaged)? != id {
        return Err(Reject::Drop("an answer with another id"));
    }
    let flags = rest.u16().ok_or(damaged)?;
    if flags & 0xf800 != 0x8000 {
        return Err(Reject::Drop("not the answer to a query"));
    }
    let mut records = 0;
    for index in 0..4 {
        let count = usize::from(rest.u16().ok_or(damaged)?);
        if index == 0 && count != 1 {
            return Err(Reject::Drop("an answer that does not repeat one question"));
        }
        if index > 0 {
            records += count;
        }
    }
    if records > MOST_RECORDS {
        return Err(Reject::Drop("an answer of too many records"));
    }
    let mut at = skip_name(bytes, 12).ok_or(damaged)? + 4;
    for _ in 0..records {
        at = skip_name(bytes, at).ok_or(damaged)? + 8;
        let mut length = Bytes(bytes.get(at..).ok_or(damaged)?);
        let data = length.long().ok_or(damaged)?;
        at += 2 + data.0.len();
    }
    if at != bytes.len() {
        return Err(Reject::Drop("a DNS message with bytes after its end"));
    }
    Ok(())
}

/// Where the name at `at` ends. Pointers must go backwards, each further than the one before,
/// so that every walk ends; the whole name has at most 255 bytes.
fn skip_name(bytes: &[u8], mut at: usize) -> Option<usize> {
    let mut end = None;
    let mut lowest = at;
    let mut length = 0;
    loop {
        match *bytes.get(at)? {
            0 => return Some(end.unwrap_or(at + 1)),
            label @ 1..=63 => {
                at += 1 + usize::from(label);
                length += 1 + usize::from(label);
                if length > 254 {
                    return None;
                }
            }
            high @ 0xc0.. => {
                let target = usize::from(high & 0x3f) << 8 | usize::from(*bytes.get(at + 1)?);
                end.get_or_insert(at + 2);
                if target >= lowest {
                    return None;
                }
                lowest = target;
                at = target;
            }
            _ => return None,
        }
    }
}

#[cfg(test)]
mod tests;
