//! What is asked upstream, and what becomes of the answers.

use super::*;

#[test]
fn answers_are_kept_and_told_in_the_spelling_of_each_question() {
    let (server, log) = server(|name, _, _| says(vec![address(name, 90_000, GOOD)]));
    let mut asking = Asking::new(policy(Preset::PublicOnly, &[]), vec![server]);
    for spelling in ["WwW.ExAmPlE.org", "www.example.org", "WWW.EXAMPLE.ORG"] {
        let message = asking.ask(spelling, A);
        let query = message.query().unwrap();
        assert_eq!(query.name().to_ascii(), format!("{spelling}."));
        let record = &message.answers()[0];
        assert_eq!(record.name().to_ascii(), format!("{spelling}."));
        // No TTL is longer than an hour, and less is left of it as time goes by.
        assert!((3590..=3600).contains(&record.ttl()));
        assert_eq!(told(&message), [GOOD]);
    }
    assert!(asking.pinned("www.example.org", GOOD));
    // Upstream hears no spelling: it could carry data (N19).
    assert_eq!(names(&log), ["www.example.org"]);
}

#[test]
fn that_there_is_nothing_is_kept_too() {
    let (server, log) = server(|name, kind, _| {
        let mut message = fails(match name {
            "none.example" => ResponseCode::NXDomain,
            _ => ResponseCode::NoError,
        })?;
        let data = SOA::new(owner("ns.example"), owner("who.example"), 1, 2, 3, 4, 40);
        message.add_name_server(record("example", 50, RData::SOA(data)));
        if kind == A && name == "v4.example" {
            message.add_answer(address(name, 60, GOOD));
        }
        Some(message)
    });
    let mut asking = Asking::new(policy(Preset::PublicOnly, &[]), vec![server]);
    for _ in 0..3 {
        let message = asking.ask("none.example", A);
        assert_eq!(message.response_code(), ResponseCode::NXDomain);
        let soa = &message.name_servers()[0];
        assert!(soa.ttl() <= 40 && soa.record_type() == RecordType::SOA);
        let empty = (ResponseCode::NoError, Vec::new());
        assert_eq!(asking.told("v4.example", AAAA), empty);
    }
    assert_eq!(names(&log), ["none.example", "v4.example"]);
}

#[test]
fn an_answer_out_of_the_cache_meets_the_policy_of_now() {
    let (server, log) = server(|name, _, _| says(vec![address(name, 600, GOOD)]));
    let mut asking = Asking::new(policy(Preset::PublicOnly, &[]), vec![server]);
    let good = (ResponseCode::NoError, vec![GOOD.to_owned()]);
    let none = (ResponseCode::NXDomain, Vec::new());
    assert_eq!(asking.told("a.example", A), good);
    for (rule, name) in [
        ("deny@a.example", "a.example"),
        ("deny@93.184.215.0/24", "a.example"),
    ] {
        asking.ward.narrow(policy(Preset::PublicOnly, &[rule]));
        assert!(!asking.pinned(name, GOOD), "{rule}");
        assert_eq!(asking.told(name, A), none, "{rule}");
        assert!(!asking.pinned(name, GOOD), "{rule}");
    }
    asking.ward.narrow(policy(Preset::PublicOnly, &[]));
    assert_eq!(asking.told("a.example", A), good);
    assert!(asking.pinned("a.example", GOOD));
    assert_eq!(names(&log), ["a.example"]);
}

#[test]
fn who_asks_the_same_at_once_shares_the_answer() {
    let gate = Arc::new(Mutex::new(()));
    let closed = gate.lock().unwrap();
    let opens = Arc::clone(&gate);
    let (server, log) = server(move |name, _, _| {
        drop(opens.lock().unwrap());
        // Not to be kept at all.
        says(vec![address(name, 0, GOOD)])
    });
    let mut asking = Asking::new(policy(Preset::PublicOnly, &[]), vec![server]);
    let asked: Vec<u16> = (0..50)
        .map(|_| asking.send("same.example", A, None))
        .collect();
    asking
        .guest
        .until("all asked", |guest| guest.metric("questions") == 50);
    drop(closed);
    for id in asked {
        let message = Message::from_vec(&asking.receive(id)).unwrap();
        assert_eq!(told(&message), [GOOD]);
    }
    assert_eq!(names(&log).len(), 1);
    asking.ask("same.example", A);
    assert_eq!(names(&log).len(), 2);
}

#[test]
fn numbers_and_ports_of_questions_cannot_be_guessed() {
    let (server, log) = server(|name, _, _| says(vec![address(name, 60, GOOD)]));
    let mut asking = Asking::new(policy(Preset::PublicOnly, &[]), vec![server]);
    for n in 0..64 {
        asking.ask(&format!("n{n}.example"), A);
    }
    let heard = log.lock().unwrap();
    let ids: HashSet<u16> = heard.iter().map(|(_, _, id, _)| *id).collect();
    let ports: HashSet<u16> = heard.iter().map(|(_, _, _, port)| *port).collect();
    assert!(ids.len() > 60 && ports.len() > 40, "{ids:?} {ports:?}");
    let steps = heard.windows(2).filter(|two| two[1].2 == two[0].2 + 1);
    assert!(steps.count() < 5);
}

#[test]
fn a_server_that_does_not_answer_or_fails_gives_way_to_the_next() {
    let (silent, unheard) = server(|_, _, _| None);
    let (failing, failed) = server(|_, _, _| fails(ResponseCode::ServFail));
    // A port that nobody else can have, where nobody hears us either.
    let deaf = UdpSocket::bind("127.0.0.1:0").unwrap();
    deaf.connect("127.0.0.1:9").unwrap();
    let nobody = deaf.local_addr().unwrap();
    let (good, heard) = server(|name, _, _| says(vec![address(name, 60, GOOD)]));
    let servers = vec![nobody, failing, silent, good];
    let mut asking = Asking::new(policy(Preset::PublicOnly, &[]), servers);
    let expected = (ResponseCode::NoError, vec![GOOD.to_owned()]);
    assert_eq!(asking.told("a.example", A), expected);
    assert_eq!(asking.told("b.example", A), expected);
    // The second time the one who said nothing was not waited for; who fails may know other names.
    assert_eq!(names(&unheard), ["a.example"]);
    assert_eq!(names(&failed), ["a.example", "b.example"]);
    assert_eq!(names(&heard), ["a.example", "b.example"]);

    // So may one whose answer cannot be: it is not waited for either (N16).
    let (endless, _) = server(|name, _, _| {
        let many = (0..500).map(|n| address(name, 60, &format!("8.8.{}.{}", n / 250, n % 250)));
        says(many.collect())
    });
    let mut asking = Asking::new(policy(Preset::PublicOnly, &[]), vec![endless, good]);
    assert_eq!(asking.told("d.example", A), expected);

    // When nobody knows that is said at once, and it is no refusal.
    let mut asking = Asking::new(policy(Preset::PublicOnly, &[]), vec![failing, nobody]);
    let nothing = (ResponseCode::ServFail, Vec::new());
    assert_eq!(asking.told("c.example", A), nothing);
}

#[test]
fn a_server_that_knows_no_edns_is_asked_without() {
    let asked: Log<bool> = Log::default();
    let said = Arc::clone(&asked);
    let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
    let server = udp.local_addr().unwrap();
    thread::spawn(move || loop {
        let mut bytes = [0; 1500];
        let (count, from) = udp.recv_from(&mut bytes).unwrap();
        let question = Message::from_vec(&bytes[..count]).unwrap();
        let edns = question.extensions().is_some();
        said.lock().unwrap().push(edns);
        let mut answer = match edns {
            true => fails(ResponseCode::FormErr).unwrap(),
            false => says(vec![address("old.example", 60, GOOD)]).unwrap(),
        };
        answer
            .set_id(question.id())
            .set_message_type(MessageType::Response)
            .add_query(question.query().unwrap().clone());
        udp.send_to(&answer.to_vec().unwrap(), from).unwrap();
    });
    let mut asking = Asking::new(policy(Preset::PublicOnly, &[]), vec![server]);
    assert_eq!(asking.told("old.example", A).1, [GOOD]);
    assert_eq!(*asked.lock().unwrap(), [true, false]);
}

#[test]
fn what_does_not_fit_is_asked_over_tcp_and_cut_for_those_who_take_less() {
    let (server, log) = server(|name, _, over_tcp| {
        if !over_tcp {
            let mut message = Message::new();
            message.set_truncated(true);
            return Some(message);
        }
        says(
            (0..100)
                .map(|n| address(name, 60, &format!("93.184.215.{n}")))
                .collect(),
        )
    });
    let mut asking = Asking::new(policy(Preset::PublicOnly, &[]), vec![server]);
    let message = asking.ask("big.example", A);
    assert!(message.truncated() && message.answers().is_empty());
    assert!(message.extensions().is_none());
    assert_eq!(asking.ask_over_tcp("big.example", A).answers().len(), 100);
    // EDNS: as much as the guest says that it takes.
    let id = asking.send("big.example", A, Some(1300));
    let message = Message::from_vec(&asking.receive(id)).unwrap();
    assert!(message.truncated() && message.extensions().is_some());
    assert_eq!(names(&log).len(), 2);
}
