//! Messages that are made here: answers for the guest, questions for resolvers.

use super::Query;
use hickory_proto::op::{Edns, Header, Message, MessageType, OpCode, Query as Asked, ResponseCode};
use hickory_proto::rr::rdata::SOA;
use hickory_proto::rr::{DNSClass, Name, RData, Record, RecordType};
use std::net::IpAddr;

/// The beginning of every answer: the question as it was asked, and EDNS if it came with it.
pub(super) fn header(query: &Query, code: ResponseCode) -> Message {
    let mut header = Header::new();
    header
        .set_id(query.id)
        .set_message_type(MessageType::Response)
        .set_op_code(OpCode::Query)
        .set_recursion_desired(query.recursion_desired)
        .set_recursion_available(true)
        .set_response_code(code);
    let mut message = Message::new();
    message.set_header(header);
    let mut asked = Asked::new();
    asked
        .set_name(query.owner.clone())
        .set_query_type(RecordType::from(query.kind))
        .set_query_class(DNSClass::IN);
    message.add_query(asked);
    if query.edns {
        message.set_edns(offer());
    }
    message
}

pub(super) fn written(message: &Message) -> Vec<u8> {
    // Writing fails only for a message longer than 64 KiB, and what is read is bounded.
    message.to_vec().unwrap_or_default()
}

/// How long the guest may keep that there is nothing, in seconds: short, since policies change.
const NEGATIVE: u32 = 10;

/// Say how long "nothing" may be kept; without a SOA record it would be asked for again at once (RFC 2308 2).
fn with_authority(mut message: Message, query: &Query) -> Vec<u8> {
    let name = |text: &str| Name::from_ascii(text).expect("a name");
    let soa = SOA::new(
        name("dns.microsandbox.internal."),
        name("nobody.microsandbox.internal."),
        1,
        3600,
        600,
        86_400,
        NEGATIVE,
    );
    message.add_name_server(Record::from_rdata(
        query.owner.clone(),
        NEGATIVE,
        RData::SOA(soa),
    ));
    written(&message)
}

/// "No such name", made here: for a name that is denied.
pub fn no_such_name(query: &Query) -> Vec<u8> {
    with_authority(header(query, ResponseCode::NXDomain), query)
}

/// "Not for you": for what goes over a limit.
pub fn refused(query: &Query) -> Vec<u8> {
    written(&header(query, ResponseCode::Refused))
}

/// An answer made here: `addresses` of the question's family under its name, for `ttl` seconds.
/// None of the family is the empty answer.
pub fn addresses(query: &Query, addresses: &[IpAddr], ttl: u32) -> Vec<u8> {
    let mut message = header(query, ResponseCode::NoError);
    for address in addresses {
        let data = match (query.kind, address) {
            (1, IpAddr::V4(v4)) => RData::A((*v4).into()),
            (28, IpAddr::V6(v6)) => RData::AAAA((*v6).into()),
            _ => continue,
        };
        message.add_answer(Record::from_rdata(query.owner.clone(), ttl, data));
    }
    match message.answers().is_empty() {
        true => with_authority(message, query),
        false => written(&message),
    }
}

/// "Could not be found out": no resolver answered.
pub fn failure(query: &Query) -> Vec<u8> {
    written(&header(query, ResponseCode::ServFail))
}

/// The same message, without records and with the TC bit, if it is longer than the guest takes
/// over UDP: it asks again over TCP.
pub fn truncated(query: &Query, message: Vec<u8>) -> Vec<u8> {
    if message.len() <= usize::from(query.payload) {
        return message;
    }
    let mut short = header(query, ResponseCode::NoError);
    short.set_truncated(true);
    written(&short)
}

/// The question as it goes to a resolver, under an id of its own, with EDNS or without. In lower case: the
/// guest's spelling is nobody's business upstream, where it could carry data (N19).
pub fn question(query: &Query, id: u16, edns: bool) -> Vec<u8> {
    let mut message = Message::new();
    message
        .set_id(id)
        .set_message_type(MessageType::Query)
        .set_op_code(OpCode::Query)
        .set_recursion_desired(true);
    let mut asked = Asked::new();
    asked
        .set_name(query.owner.to_lowercase())
        .set_query_type(RecordType::from(query.kind))
        .set_query_class(DNSClass::IN);
    message.add_query(asked);
    if edns {
        message.set_edns(offer());
    }
    written(&message)
}

/// 1232 bytes fit into any packet without fragments (DNS flag day 2020).
fn offer() -> Edns {
    let mut edns = Edns::new();
    edns.set_max_payload(1232);
    edns
}
