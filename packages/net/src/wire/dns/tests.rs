use super::write::header;
use super::*;
use crate::address::{classify, Class};
use crate::wire::Progress;
use hickory_proto::op::MessageType;
use hickory_proto::rr::rdata::svcb::{Alpn, EchConfigList, IpHint};
use hickory_proto::rr::rdata::CNAME;
use proptest::prelude::*;

fn wire_name(name: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    for label in name.split('.').filter(|label| !label.is_empty()) {
        bytes.push(label.len() as u8);
        bytes.extend(label.as_bytes());
    }
    bytes.push(0);
    bytes
}

fn asked(flags: u16, counts: [u16; 4], tail: &[u8]) -> Vec<u8> {
    let mut bytes = 7u16.to_be_bytes().to_vec();
    bytes.extend(flags.to_be_bytes());
    bytes.extend(counts.iter().flat_map(|count| count.to_be_bytes()));
    bytes.extend(tail);
    bytes
}

fn question_for(name: &str, kind: u16) -> Vec<u8> {
    let mut bytes = wire_name(name);
    bytes.extend(kind.to_be_bytes());
    bytes.extend([0, 1]);
    bytes
}

fn query(name: &str, kind: u16) -> Query {
    parse_query(&asked(0x0100, [1, 0, 0, 0], &question_for(name, kind))).expect(name)
}

fn owner(name: &str) -> Owner {
    Owner::from_ascii(format!("{name}.")).expect(name)
}

fn address(name: &str, text: &str) -> Record {
    let data = match text.parse().expect(text) {
        IpAddr::V4(v4) => RData::A(v4.into()),
        IpAddr::V6(v6) => RData::AAAA(v6.into()),
    };
    Record::from_rdata(owner(name), 60, data)
}

fn alias(name: &str, target: &str) -> Record {
    Record::from_rdata(owner(name), 60, RData::CNAME(CNAME(owner(target))))
}

fn response(query: &Query, id: u16, records: Vec<Record>) -> Vec<u8> {
    let mut message = header(query, ResponseCode::NoError);
    message.set_id(id).add_answers(records);
    message.to_vec().expect("a message")
}

fn is_public(address: IpAddr) -> bool {
    classify(address) == Class::Public
}

fn checked(query: &Query, records: Vec<Record>) -> Answer {
    check_answer(&response(query, 9, records), query, 9, is_public).expect("an answer")
}

#[test]
fn a_question_is_read() {
    let mut tail = question_for("WwW.Example.com", 28);
    tail.extend([0, 0, 41, 0x10, 0, 0, 0, 0x80, 0, 0, 0]);
    let query = parse_query(&asked(0x0120, [1, 0, 0, 1], &tail)).expect("a question");
    assert_eq!(query.name.as_str(), "www.example.com");
    assert_eq!((query.id, query.kind, query.payload), (7, 28, 4096));
    assert!(query.recursion_desired);
    // The answer repeats the spelling, which some clients use against forged answers.
    let message = Message::from_vec(&no_such_name(&query)).expect("a message");
    assert_eq!(message.queries()[0].name().to_ascii(), "WwW.Example.com.");
    assert_eq!(message.response_code(), ResponseCode::NXDomain);
    assert_eq!(message.id(), 7);
}

#[test]
fn n16_n19_what_is_no_question_of_ours() {
    let a = question_for("example.com", 1);
    let one = [1, 0, 0, 0];
    let format = Reject::Refuse(7, Refusal::Format);
    for (bytes, expected) in [
        (asked(0, [0, 0, 0, 0], &[]), format),
        (
            asked(0, [2, 0, 0, 0], &[a.clone(), a.clone()].concat()),
            format,
        ),
        (asked(0, [1, 1, 0, 0], &a), format),
        (asked(0, [1, 0, 0, 2], &a), format),
        (asked(0, one, &[&a[..], b"x"].concat()), format),
        (asked(0, one, &a[..a.len() - 1]), format),
        (asked(0, one, &[0xc0, 12, 0, 1, 0, 1]), format),
        (asked(0, one, &[1, b'a', 0xc0, 12, 0, 1, 0, 1]), format),
        (asked(0, one, &[0x41, b'a', 0, 0, 1, 0, 1]), format),
        (asked(0, one, &question_for("", 1)), format),
        (asked(0, one, &[3, b'a', b'.', b'b', 0, 0, 1, 0, 1]), format),
        (asked(0, one, &[3, b'a', 0, b'b', 0, 0, 1, 0, 1]), format),
        (
            asked(0, one, &question_for("b\u{fc}cher.example", 1)),
            format,
        ),
        (asked(0, one, &question_for("169.254.169.254", 1)), format),
        (asked(0, one, &question_for(&"abc.".repeat(64), 1)), format),
        (
            asked(0x2800, one, &a),
            Reject::Refuse(7, Refusal::Operation),
        ),
        (
            asked(0, one, &question_for("a.example", 10)),
            Reject::Refuse(7, Refusal::Type),
        ),
        (
            asked(0, one, &question_for("a.example", 255)),
            Reject::Refuse(7, Refusal::Type),
        ),
        (
            asked(0, one, &question_for("a.example", 252)),
            Reject::Refuse(7, Refusal::Type),
        ),
        (
            asked(0, one, &question_for("a.example", 65399)),
            Reject::Refuse(7, Refusal::Type),
        ),
    ] {
        assert_eq!(parse_query(&bytes), Err(expected), "{bytes:?}");
        let told = refusal(expected).expect("an answer");
        let read = Message::from_vec(&told).expect("a message");
        assert_eq!((read.id(), read.message_type()), (7, MessageType::Response));
    }
    for bytes in [
        &b""[..],
        b"\0\x07\0",
        &asked(0x8000, one, &a),
        &[0; LONGEST_QUERY + 1],
    ] {
        let reject = parse_query(bytes).expect_err("no question");
        assert_eq!(refusal(reject), None, "{reject}");
    }
}

#[test]
fn an_answer_is_told_with_its_aliases_and_nothing_else() {
    let query = query("example.com", 1);
    let answer = checked(
        &query,
        vec![
            address("cdn.example", "93.184.215.15"),
            alias("www.cdn.example", "cdn.example"),
            alias("example.com", "www.cdn.example"),
            address("evil.example", "93.184.215.66"),
            address("example.com", "2a00:1450::1"),
        ],
    );
    assert_eq!(answer.addresses, [("93.184.215.15".parse().unwrap(), 60)]);
    let told = Message::from_vec(&answer.message).expect("a message");
    assert_eq!((told.id(), told.answers().len()), (7, 3));
    assert!(told.name_servers().is_empty() && told.additionals().is_empty());
}

#[test]
fn n13_one_inner_address_makes_it_no_name() {
    for inner in [
        "192.168.1.1",
        "127.0.0.1",
        "0.0.0.0",
        "169.254.169.254",
        "10.0.0.1",
    ] {
        let query = query("example.com", 1);
        let records = vec![
            address("example.com", "93.184.215.14"),
            address("example.com", inner),
        ];
        let answer = checked(&query, records);
        assert!(answer.addresses.is_empty());
        assert_eq!(answer.refused, [inner.parse::<IpAddr>().unwrap()]);
        assert_eq!(answer.message, no_such_name(&query));
    }
    for inner in ["::1", "fd00:ec2::254", "64:ff9b::7f00:1", "::ffff:10.0.0.1"] {
        let answer = checked(
            &query("example.com", 28),
            vec![address("example.com", inner)],
        );
        assert_eq!(answer.refused.len(), 1, "{inner}");
    }
}

#[test]
fn n13_hints_of_https_records_count_and_keys_that_hide_names_go() {
    let https = |hint: &str| {
        let hint: std::net::Ipv4Addr = hint.parse().unwrap();
        let parameters = vec![
            (
                SvcParamKey::Alpn,
                SvcParamValue::Alpn(Alpn(vec!["h2".to_string()])),
            ),
            (
                SvcParamKey::Ipv4Hint,
                SvcParamValue::Ipv4Hint(IpHint(vec![hint.into()])),
            ),
            (
                SvcParamKey::EchConfigList,
                SvcParamValue::EchConfigList(EchConfigList(vec![1, 2, 3])),
            ),
        ];
        let data = HTTPS(SVCB::new(1, Owner::root(), parameters));
        vec![Record::from_rdata(
            owner("example.com"),
            60,
            RData::HTTPS(data),
        )]
    };
    let query = query("example.com", 65);
    assert_eq!(checked(&query, https("10.0.0.1")).refused.len(), 1);
    let answer = checked(&query, https("93.184.215.14"));
    let told = Message::from_vec(&answer.message).expect("a message");
    let RData::HTTPS(data) = told.answers()[0].data() else {
        panic!("{told:?}");
    };
    let keys: Vec<_> = data.0.svc_params().iter().map(|(key, _)| *key).collect();
    assert_eq!(keys, [SvcParamKey::Alpn, SvcParamKey::Ipv4Hint]);
    // A hint is no answer: it is not pinned, so that a flow by it alone goes nowhere.
    assert!(answer.addresses.is_empty());
}

#[test]
fn n16_answers_are_bounded_and_must_fit_the_question() {
    let query = query("example.com", 1);
    let good = response(&query, 9, vec![address("example.com", "93.184.215.14")]);
    let check = |bytes: &[u8], id| check_answer(bytes, &query, id, is_public);
    assert!(check(&good, 9).is_ok());
    assert!(check(&good, 8).is_err());
    let other = super::tests::query("other.example", 1);
    assert!(check_answer(&good, &other, 9, is_public).is_err());
    let aaaa = super::tests::query("example.com", 28);
    assert!(check_answer(&good, &aaaa, 9, is_public).is_err());
    assert!(check(&question(&query, 9, true), 9).is_err());
    assert!(is_answer(&good, &query, 9) && !is_answer(&good, &query, 8));
    assert!(!is_answer(&good, &other, 9) && !is_answer(&good, &aaaa, 9));
    assert!(!is_answer(&question(&query, 9, true), &query, 9));
    let many = (0..500).map(|n| address("example.com", &format!("8.8.{}.{}", n / 250, n % 250)));
    assert!(check(&response(&query, 9, many.collect()), 9).is_err());
    assert!(check(&[&good[..], b"x"].concat(), 9).is_err());
    for cut in 0..good.len() {
        assert!(check(&good[..cut], 9).is_err(), "{cut}");
    }
    let question = question_for("example.com", 1);
    // The owner's name at 29 points at itself, forwards, or in a circle of two.
    for owner in [
        &[0xc0, 29][..],
        &[0xc0, 60],
        &[0xc0, 31, 0xc0, 29],
        &[0x80, 0],
        &[0xff, 0xff],
    ] {
        let mut bytes = asked(0x8180, [1, 1, 0, 0], &[&question[..], owner].concat());
        bytes[1] = 9;
        bytes.extend([0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 8, 8, 8, 8]);
        assert!(check(&bytes, 9).is_err(), "{owner:?}");
    }
    // A circle of aliases ends.
    let circle = vec![
        alias("example.com", "b.example"),
        alias("b.example", "example.com"),
    ];
    let answer = checked(&query, circle);
    assert!(answer.addresses.is_empty());
}

#[test]
fn failures_and_empty_answers() {
    let query = query("example.com", 1);
    let mut message = header(&query, ResponseCode::Refused);
    message.set_id(9);
    let answer = check_answer(&message.to_vec().unwrap(), &query, 9, is_public).unwrap();
    let told = Message::from_vec(&answer.message).unwrap();
    assert_eq!(told.response_code(), ResponseCode::ServFail);
    assert_eq!((answer.ttl, answer.truncated), (0, false));
    let nothing = checked(&query, Vec::new());
    assert_eq!(
        (nothing.addresses.len(), nothing.ttl),
        (0, LONGEST_NEGATIVE)
    );
    assert_eq!(
        checked(&query, vec![address("example.com", "8.8.8.8")]).ttl,
        60
    );
    message.set_truncated(true);
    let answer = check_answer(&message.to_vec().unwrap(), &query, 9, is_public).unwrap();
    assert!(answer.truncated);
}

#[test]
fn what_is_made_here() {
    let query = query("example.com", 1);
    let both: Vec<IpAddr> = vec!["8.8.8.8".parse().unwrap(), "2a00::1".parse().unwrap()];
    let told = Message::from_vec(&addresses(&query, &both, 30)).unwrap();
    assert_eq!(told.answers().len(), 1);
    let asked = Message::from_vec(&question(&query, 99, true)).unwrap();
    assert_eq!((asked.id(), asked.message_type()), (99, MessageType::Query));
    let many: Vec<IpAddr> = (0..100u8).map(|n| IpAddr::from([8, 8, 8, n])).collect();
    let long = addresses(&query, &many, 30);
    assert!(long.len() > 512);
    let short = truncated(&query, long);
    assert!(short.len() <= 512 && Message::from_vec(&short).unwrap().truncated());
}

#[test]
fn questions_over_tcp_come_after_their_length() {
    let message = asked(0x0100, [1, 0, 0, 0], &question_for("example.com", 1));
    let framed = [&(message.len() as u16).to_be_bytes()[..], &message].concat();
    let mut stream = Stream::default();
    for byte in &framed[..framed.len() - 1] {
        assert_eq!(stream.feed(&[*byte]), Progress::NeedMore);
    }
    let twice = [&framed[framed.len() - 1..], &framed].concat();
    assert_eq!(stream.feed(&twice), Progress::Found(message.clone()));
    assert_eq!(stream.feed(&[]), Progress::Found(message));
    assert_eq!(stream.feed(&[]), Progress::NeedMore);
    assert!(matches!(stream.feed(&[0xff, 0xff]), Progress::Malformed(_)));
    assert!(matches!(
        Stream::default().feed(&[0, 0]),
        Progress::Malformed(_)
    ));
}

proptest! {
    #[test]
    fn any_question(change in prop::collection::vec((0..64usize, any::<u8>()), 0..5)) {
        let mut bytes = asked(0x0100, [1, 0, 0, 1], &question_for("www.example.com", 28));
        bytes.extend([0, 0, 41, 0x10, 0, 0, 0, 0, 0, 0, 0]);
        for (at, value) in change {
            let length = bytes.len();
            bytes[at % length] = value;
        }
        if let Ok(query) = parse_query(&bytes) {
            let again = Message::from_vec(&no_such_name(&query)).unwrap();
            prop_assert_eq!(again.id(), query.id);
            let asked = again.queries()[0].name().to_ascii();
            prop_assert_eq!(Name::parse(&asked), Some(query.name));
        }
    }

    #[test]
    fn any_answer(change in prop::collection::vec((0..256usize, any::<u8>()), 0..8)) {
        let query = query("example.com", 1);
        let mut bytes = response(&query, 9, vec![
            alias("example.com", "cdn.example"),
            address("cdn.example", "93.184.215.14"),
            address("cdn.example", "93.184.215.15"),
        ]);
        for (at, value) in change {
            let length = bytes.len();
            bytes[at % length] = value;
        }
        if let Ok(answer) = check_answer(&bytes, &query, 9, is_public) {
            prop_assert!(answer.addresses.iter().all(|(address, _)| is_public(*address)));
            let told = Message::from_vec(&answer.message).unwrap();
            let sound = |record: &Record| match record.data() {
                RData::A(v4) => is_public(IpAddr::V4(v4.0)),
                _ => true,
            };
            prop_assert!(told.answers().iter().all(sound));
        }
    }
}
