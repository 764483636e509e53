//! Where the servers come from, and addresses that stand for names.

use super::*;

#[test]
fn the_host_s_own_servers_are_found_again_when_they_change() {
    inside(
        "names::standing::the_host_s_own_servers_are_found_again_when_they_change",
        || {
            // What systemd-resolved and dnsmasq have: a server on an address of the loopback interface.
            for (at, text) in [
                ("127.0.0.53:53", "93.184.215.1"),
                ("[::1]:53", "93.184.215.2"),
            ] {
                serve(
                    at,
                    Arc::new(move |name: &str, _, _| says(vec![address(name, 600, text)])),
                );
            }
            let path = std::env::temp_dir().join(format!("msb-resolv-{}", std::process::id()));
            std::fs::write(&path, "search example\nnameserver 127.0.0.53\n").unwrap();
            let servers = Servers::of_file(path.clone());
            let mut asking = Asking::with(
                config(),
                policy(Preset::PublicOnly, &[]),
                servers,
                Mode::Resolve,
            );
            assert_eq!(asking.told("a.example", A).1, ["93.184.215.1"]);
            let new = path.with_extension("new");
            std::fs::write(&new, "nameserver ::1\n").unwrap();
            std::fs::rename(&new, &path).unwrap();
            // What the old ones said counts no more.
            assert_eq!(asking.told("a.example", A).1, ["93.184.215.2"]);
            std::fs::remove_file(&path).unwrap();
            assert_eq!(asking.told("b.example", A).1, ["93.184.215.2"]);
        },
    );
}

// -- Addresses that stand for names ----------------------------------------------------------------

fn synthetic(policy: Policy, server: SocketAddr) -> Asking {
    Asking::with(
        config(),
        policy,
        Servers::fixed(vec![server]),
        Mode::Synthetic,
    )
}

/// In the namespace of the test, public addresses of our own.
fn own_addresses() {
    for address in [GOOD, "93.184.215.15"] {
        let mut ip = std::process::Command::new("ip");
        let done = ip
            .args(["addr", "add", &format!("{address}/32"), "dev", "lo"])
            .status();
        assert!(done.unwrap().success());
    }
}

#[test]
fn n21_names_stand_for_themselves_and_nothing_is_asked_before_a_connection() {
    inside(
        "names::standing::n21_names_stand_for_themselves_and_nothing_is_asked_before_a_connection",
        || {
            own_addresses();
            let (server, log) = server(|name, kind, _| match (name, kind) {
                ("good.example", A) => says(vec![address(name, 60, GOOD)]),
                ("two.example", A) => says(vec![
                    address(name, 60, "93.184.215.15"),
                    address(name, 60, GOOD),
                ]),
                ("rebind.example", A) => says(vec![address(name, 60, "127.0.0.1")]),
                _ => says(Vec::new()),
            });
            let listener = TcpListener::bind((GOOD, 0)).unwrap();
            let port = listener.local_addr().unwrap().port();
            let read = thread::spawn(move || {
                let mut all = Vec::new();
                for _ in 0..3 {
                    let (mut client, _) = listener.accept().unwrap();
                    let mut bytes = Vec::new();
                    let _ = client.read_to_end(&mut bytes);
                    all.push(bytes);
                }
                (all, listener)
            });
            let rules = [
                "allow@good.example",
                "allow@two.example",
                "allow@rebind.example",
                "allow@none.example",
                "deny@ads.example",
            ];
            let mut asking = synthetic(policy(Preset::None, &rules), server);
            assert_eq!(asking.told("good.example", A).1, ["198.18.0.1"]);
            assert_eq!(asking.told("good.example", AAAA).1, ["2001:2::1"]);
            assert_eq!(asking.told("two.example", A).1, ["198.18.0.2"]);
            assert_eq!(asking.told("GOOD.example", A).1, ["198.18.0.1"]);
            for kind in [TXT_, HTTPS_, CNAME_] {
                assert_eq!(
                    asking.told("good.example", kind),
                    (ResponseCode::NoError, Vec::new())
                );
            }
            assert_eq!(asking.told("evil.example", A).0, ResponseCode::NXDomain);
            assert!(names(&log).is_empty());

            // As with addresses of its own: a client states the name, and no other one (N02), or nothing passes.
            let good = "GET / HTTP/1.1\r\nHost: good.example\r\n\r\n";
            let other = "GET / HTTP/1.1\r\nHost: two.example\r\n\r\n";
            for (first, expected) in [
                (good, Some(Vec::new())),
                (other, None),
                ("SSH-2.0-x\r\n", None),
            ] {
                let handle = asking.guest.connected("198.18.0.1", port);
                asking.guest.write(handle, first.as_bytes());
                asking.guest.socket(handle).close();
                assert_eq!(asking.guest.read_to_end(handle), expected, "{first}");
            }
            let heard: HashSet<String> = names(&log).into_iter().collect();
            assert_eq!(heard, HashSet::from(["good.example".to_owned()]));
            assert!(asking.recorded(
                "\"name\":\"good.example\",\"action\":\"allow\",\"rule\":\"rule 1: allow@good.example\""
            ));
            let (all, listener) = read.join().unwrap();
            assert_eq!(all, [good.as_bytes(), b"", b""]);

            // Nobody listens at the first address; the next attempt goes to the second.
            asking.connects("198.18.0.2", port);
            assert!(asking.connects("198.18.0.2", port));
            drop(listener);

            // Where the name leads is checked as ever, and an address that stands for nothing leads nowhere.
            let told = asking.told("rebind.example", A).1;
            assert!(!asking.connects(&told[0], port));
            assert!(asking.recorded("an answer with 127.0.0.1, which the policy does not allow"));
            let told = asking.told("none.example", A).1;
            assert!(!asking.connects(&told[0], port));
            assert!(!asking.connects("198.18.7.7", port));
            assert!(!asking.connects(GOOD, port));
            assert!(asking.recorded("an address that stands for no name"));
        },
    );
}

#[test]
fn n21_datagrams_to_a_name_pass_and_a_narrower_policy_ends_them() {
    inside(
        "names::standing::n21_datagrams_to_a_name_pass_and_a_narrower_policy_ends_them",
        || {
            own_addresses();
            let (server, _) = server(|name, kind, _| match kind {
                A => says(vec![address(name, 60, GOOD)]),
                _ => says(Vec::new()),
            });
            let echo = UdpSocket::bind((GOOD, 0)).unwrap();
            let port = echo.local_addr().unwrap().port();
            let rules = vec!["allow@good.example".parse().unwrap()];
            let pin_only = Policy::new(Preset::None, rules, Names::PinOnly).unwrap();
            let mut asking = synthetic(pin_only, server);
            let told = asking.told("good.example", A).1;
            let target = (told[0].parse().unwrap(), port);
            // Both wait for the same look-up.
            for data in [&b"one"[..], b"two"] {
                let packet = reply::udp((own(&told[0]), 4002), target, data);
                asking.guest.packet(&packet);
            }
            let mut bytes = [0; 10];
            let (count, from) = echo.recv_from(&mut bytes).unwrap();
            assert_eq!(&bytes[..count], b"one");
            let (count, _) = echo.recv_from(&mut bytes).unwrap();
            assert_eq!(&bytes[..count], b"two");
            echo.send_to(b"back", from).unwrap();
            let answer = asking
                .guest
                .find("an answer", |frame| delivered(frame, 4002));
            assert_eq!(answer, b"back");
            asking.ward.narrow(policy(Preset::None, &[]));
            let gate = Box::new(Warden(asking.ward.clone()));
            asking.guest.stack.set_gate(gate);
            asking
                .guest
                .until("cut", |guest| guest.metric("datagrams_now") == 0);
            assert!(asking.prohibited(&told[0], port));
            assert_eq!(asking.told("good.example", A).0, ResponseCode::NXDomain);
        },
    );
}

#[test]
fn n17_a_flood_of_names_is_bounded_whatever_the_mode() {
    let (server, log) = server(|name, _, _| says(vec![address(name, 60, GOOD)]));
    let mut asking = synthetic(policy(Preset::PublicOnly, &[]), server);
    let taken = |guest: &mut Guest| guest.metric("questions") + guest.metric("dropped_full");
    for n in 0..6000 {
        asking.send(&format!("n{n}.example"), A, None);
        if n % 100 == 99 {
            asking.guest.until("taken", |guest| taken(guest) > n);
            asking.guest.seen.clear();
        }
    }
    assert_eq!(asking.told("n6000.example", A).1.len(), 1);
    assert!(names(&log).is_empty());
    assert!(asking.guest.stack.audit().len() < 5000);
}

#[test]
fn a_guest_that_floods_its_resolver_is_answered_again_afterwards() {
    let (server, _) = server(|_, _, _| None);
    let mut asking = Asking::new(policy(Preset::PublicOnly, &[]), vec![server]);
    for n in 0..600 {
        asking.send(&format!("n{n}.d{n}.example"), A, None);
    }
    asking.guest.until("all were looked at", |guest| {
        guest.metric("questions") + guest.metric("dropped_full") == 600
    });
    assert!(asking.guest.metric("questions") <= 256);
    // A name that needs no server has its answer as soon as the questions before it gave up.
    asking
        .guest
        .until("given up", |guest| guest.seen.len() >= 256);
    asking.guest.seen.clear();
    let stopped = asking.told("metadata.google.internal", A);
    assert_eq!(stopped.0, ResponseCode::NXDomain);
}
