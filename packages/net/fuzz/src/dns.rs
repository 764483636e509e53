//! Any bytes as a DNS question, and as a resolver's answer to one: nothing inner is ever told.
use microsandbox_net_native::address::{classify, Class};
use microsandbox_net_native::policy::Name;
use microsandbox_net_native::wire::dns;

/// `example.com A`, `AAAA` or `HTTPS`.
fn asked(kind: u8) -> Vec<u8> {
    let mut bytes = b"\0\x07\x01\0\0\x01\0\0\0\0\0\0\x07example\x03com\0\0".to_vec();
    bytes.extend([kind, 0, 1]);
    bytes
}

/// An old answer: public addresses, of IPv4 only, and no name below `ads.example`.
struct Judge(u32);

impl dns::Judge for Judge {
    fn admits(&self, address: std::net::IpAddr) -> bool {
        classify(address) == Class::Public
    }

    fn leads_to(&self, alias: &Name) -> bool {
        !alias.as_str().ends_with("ads.example")
    }

    fn offers(&self, address: std::net::IpAddr) -> bool {
        address.is_ipv4()
    }

    fn age(&self) -> u32 {
        self.0
    }
}

pub fn dns(data: &[u8]) {
    match dns::parse_query(data) {
        Ok(query) => {
            assert!(dns::parse_query(&dns::question(&query, 1, true)).is_ok());
            dns::no_such_name(&query);
        }
        Err(reject) => drop(dns::refusal(reject)),
    }
    let mut stream = dns::Stream::default();
    stream.feed(data);
    let Some((control, answer)) = data.split_first() else {
        return;
    };
    let query = dns::parse_query(&asked([1, 28, 65, 16][usize::from(control & 3)])).expect("sound");
    let id = answer.first_chunk().map_or(0, |id| u16::from_be_bytes(*id));
    let admits = |address| classify(address) == Class::Public;
    let Ok(fresh) = dns::check_answer(answer, &query, id, admits) else {
        return;
    };
    dns::is_answer(answer, &query, id);
    assert!(fresh.addresses.iter().all(|(address, _)| admits(*address)));
    assert!(fresh.refused.is_empty() || fresh.addresses.is_empty());
    assert!(fresh.ttl <= dns::LONGEST_TTL);
    // What the guest is told is sound, and says of itself what was found in it.
    assert!(dns::truncated(&query, fresh.message.clone()).len() <= 512);
    if fresh.failed.is_none() && !fresh.truncated {
        let again = dns::check_answer(&fresh.message, &query, query.id, admits).expect("sound");
        assert_eq!(again.addresses, fresh.addresses);
    }
    // Age changes how long it may be kept, and nothing else; a stricter judge tells no more.
    let old = dns::check_answer(answer, &query, id, Judge(100)).expect("sound");
    assert!(old.ttl <= fresh.ttl);
    assert!(old.denied.is_none() || old.addresses.is_empty());
    let told = |answer: &dns::Answer| -> Vec<_> {
        answer.addresses.iter().map(|(address, _)| *address).collect()
    };
    assert!(old.denied.is_some() || told(&old) == told(&fresh));
}
