//! The guest's questions, read.

use super::{Refusal, Reject, LONGEST_QUERY};
use crate::policy::Name;
use crate::wire::{Bytes, Progress};
use hickory_proto::rr::Name as Owner;

/// A question that may be decided on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Query {
    pub id: u16,
    pub name: Name,
    /// The type, as in the IANA registry: 1 is A, 28 AAAA.
    pub kind: u16,
    pub recursion_desired: bool,
    /// The largest answer over UDP that the guest takes, in bytes: 512 or what EDNS says, at most
    /// 4096.
    pub payload: u16,
    /// The question as it was asked, so that the answer repeats its spelling.
    pub(super) owner: Owner,
    pub(super) edns: bool,
}

impl Query {
    /// A question of our own.
    pub fn new(name: Name, kind: u16) -> Option<Query> {
        Some(Query {
            id: 0,
            owner: Owner::from_labels(name.as_str().split('.').map(str::as_bytes)).ok()?,
            name,
            kind,
            recursion_desired: true,
            payload: 512,
            edns: false,
        })
    }
}

/// The types that are asked upstream. Not NULL, ANY, transfers, or private ones: they serve
/// tunnels and amplification (N19), and no program needs them to reach a host.
#[rustfmt::skip]
pub const KINDS: [u16; 13] = [
    1,   // A
    2,   // NS
    5,   // CNAME
    6,   // SOA
    12,  // PTR
    15,  // MX
    16,  // TXT
    28,  // AAAA
    33,  // SRV
    35,  // NAPTR
    64,  // SVCB
    65,  // HTTPS
    257, // CAA
];

/// A question from the guest.
pub fn parse_query(bytes: &[u8]) -> Result<Query, Reject> {
    if bytes.len() > LONGEST_QUERY {
        return Err(Reject::Drop("a question that is too long"));
    }
    let short = Reject::Drop("shorter than a DNS header");
    let mut rest = Bytes(bytes);
    let id = rest.u16().ok_or(short)?;
    let flags = rest.u16().ok_or(short)?;
    let mut counts = [0u16; 4];
    for count in &mut counts {
        *count = rest.u16().ok_or(short)?;
    }
    if flags & 0x8000 != 0 {
        return Err(Reject::Drop("an answer where a question belongs"));
    }
    let refuse = |refusal| Reject::Refuse(id, refusal);
    if flags & 0x7800 != 0 {
        return Err(refuse(Refusal::Operation));
    }
    // One question, no answers, nothing additional but EDNS.
    if counts[..3] != [1, 0, 0] || counts[3] > 1 {
        return Err(refuse(Refusal::Format));
    }
    let (labels, name) = question_name(&mut rest).ok_or(refuse(Refusal::Format))?;
    let kind = rest.u16().ok_or(refuse(Refusal::Format))?;
    let class = rest.u16().ok_or(refuse(Refusal::Format))?;
    let mut payload = 512;
    if counts[3] == 1 {
        payload = edns(&mut rest).ok_or(refuse(Refusal::Format))?;
    }
    if !rest.is_empty() {
        return Err(refuse(Refusal::Format));
    }
    if class != 1 || !KINDS.contains(&kind) {
        return Err(refuse(Refusal::Type));
    }
    Ok(Query {
        id,
        name,
        kind,
        recursion_desired: flags & 0x0100 != 0,
        payload: payload.clamp(512, 4096),
        owner: Owner::from_labels(labels).map_err(|_| refuse(Refusal::Format))?,
        edns: counts[3] == 1,
    })
}

/// Whether `bytes` answer `query`, asked under `id`, and not somebody's guess or another question. What else
/// they say is for `check_answer`.
pub fn is_answer(bytes: &[u8], query: &Query, id: u16) -> bool {
    let mut rest = Bytes(bytes);
    let mut word = || rest.u16();
    let head = [(); 3].map(|()| word());
    let [Some(seen), Some(flags), Some(1)] = head else {
        return false;
    };
    seen == id
        && flags & 0xf800 == 0x8000
        && named(bytes).as_ref() == Some(&(query.name.clone(), query.kind))
}

/// The name and type of what `parse_query` refused for its type: for the record.
pub fn named(bytes: &[u8]) -> Option<(Name, u16)> {
    let mut rest = Bytes(bytes.get(12..)?);
    let (_, name) = question_name(&mut rest)?;
    Some((name, rest.u16()?))
}

/// The labels of a name without any compression, which in a question could only point at itself.
fn question_name<'a>(rest: &mut Bytes<'a>) -> Option<(Vec<&'a [u8]>, Name)> {
    let mut labels = Vec::new();
    loop {
        match rest.u8()? {
            0 => break,
            length @ 1..=63 => labels.push(rest.take(usize::from(length))?),
            _ => return None,
        }
        if labels.len() > 127 {
            return None;
        }
    }
    // A dot or a zero byte inside a label would make another name of it.
    if labels.iter().any(|label| label.contains(&b'.')) {
        return None;
    }
    let name = Name::from_bytes(&labels.join(&b'.'))?;
    Some((labels, name))
}

/// The payload size of an OPT record (RFC 6891 6.1.2). Its options are not passed on.
fn edns(rest: &mut Bytes<'_>) -> Option<u16> {
    if rest.u8()? != 0 || rest.u16()? != 41 {
        return None;
    }
    let payload = rest.u16()?;
    let _extended_flags = rest.take(4)?;
    rest.long()?;
    Some(payload)
}

/// A refusal as a message for the guest. None for what is dropped.
pub fn refusal(reject: Reject) -> Option<Vec<u8>> {
    let Reject::Refuse(id, refusal) = reject else {
        return None;
    };
    let code: u16 = match refusal {
        Refusal::Format => 1,
        Refusal::Operation => 4,
        Refusal::Type => 5,
    };
    let mut message = id.to_be_bytes().to_vec();
    message.extend((0x8080 | code).to_be_bytes());
    message.extend([0; 8]);
    Some(message)
}

/// The messages of a TCP connection, each after its length (RFC 1035 4.2.2).
#[derive(Debug, Default)]
pub struct Stream {
    bytes: Vec<u8>,
}

impl Stream {
    /// A whole message, or more is needed. Feed nothing to take the next one of what came.
    pub fn feed(&mut self, bytes: &[u8]) -> Progress<Vec<u8>> {
        if self.bytes.len() + bytes.len() > 4 * LONGEST_QUERY {
            return Progress::Malformed("too many questions at once");
        }
        self.bytes.extend_from_slice(bytes);
        let mut rest = Bytes(&self.bytes);
        if let Some(length) = rest
            .u16()
            .filter(|l| usize::from(*l) > LONGEST_QUERY || *l == 0)
        {
            return Progress::Malformed(match length {
                0 => "a question of no bytes",
                _ => "a question that is too long",
            });
        }
        let Some(Bytes(message)) = Bytes(&self.bytes).long() else {
            return Progress::NeedMore;
        };
        let message = message.to_vec();
        self.bytes.drain(..2 + message.len());
        Progress::Found(message)
    }
}
