//! Queues that a guest's kernel has written what it likes into.

use super::machine::*;
use super::support::*;
use crate::broker::{Broker, Options};
use crate::device::Device;
use crate::serve::Failure;
use crate::wire::request::Malformed;
use crate::wire::{MAX_MESSAGE, ROOT};
use proptest::prelude::*;
use rustix::fs::SealFlags;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use vhost::vhost_user::{Frontend, VhostUserFrontend, VhostUserProtocolFeatures};
use vhost::VhostBackend;

fn init() -> Vec<u8> {
    let sent = body(&[7, 38, 1 << 17, u32::MAX], &[&[0; 48]]);
    message(26, 1, 0, 0, &sent)
}

/// A machine that has begun.
fn machine(home: &Home, features: u64) -> Machine {
    let broker = Broker::open(&home.share(), Options::default()).unwrap();
    let machine = Machine::with(Arc::new(broker), features);
    assert_eq!(machine.ask(REQUESTS, &init(), ROOM).len(), 80);
    machine
}

fn lookup(unique: u64) -> Vec<u8> {
    message(1, unique, ROOT, 0, b"name\0")
}

/// Number and error of what is answered.
fn told(answer: &[u8]) -> (u64, i32) {
    assert_eq!(answer.len() as u32, u32_at(answer, 0));
    (u64_at(answer, 8), -(u32_at(answer, 4) as i32))
}

fn malformed(what: &'static str) -> Result<(), Failure> {
    Err(Failure::Malformed(Malformed(what)))
}

#[test]
fn many_requests_are_answered_each_once() {
    let home = Home::new();
    for features in [0, EVENTS] {
        let machine = machine(&home, features);
        // As many as a queue has places for, and more than once around.
        for _ in 0..3 {
            let places = SIZE / 4;
            for number in 0..places {
                let sent = lookup(u64::from(number) + 2);
                let (asked, said) = (
                    ASKED + 4096 * u64::from(number),
                    SAID + 4096 * u64::from(number),
                );
                use vm_memory::Bytes;
                let place = vm_memory::GuestAddress(asked);
                machine.memory.write_slice(&sent, place).unwrap();
                let (first, table) = (4 * number, Machine::table(REQUESTS));
                let two = [
                    (asked, sent.len() as u32, NEXT, first + 1),
                    (said, 4096, WRITE, 0),
                ];
                machine.describe(table, first, &two);
                machine.offer(REQUESTS, first);
            }
            let mut heads: Vec<u32> = (0..places).map(|_| machine.answer(REQUESTS).0).collect();
            heads.sort_unstable();
            assert!(heads
                .into_iter()
                .eq((0..places).map(|number| u32::from(4 * number))));
        }
        assert_eq!(machine.off(), Ok(()));
    }
}

#[test]
fn what_is_no_message_ends_the_share_with_eio() {
    let home = Home::new();
    let whole = lookup(7);
    let mut lying = whole.clone();
    lying[..4].copy_from_slice(&46u32.to_le_bytes());
    let endless = message(16, 7, ROOT, 0, &vec![0; MAX_MESSAGE]);
    let cases: [(&[u8], &str); 6] = [
        (&whole[..20], "shorter than a header"),
        (&whole[..44], "its length is not that of the message"),
        (&lying, "its length is not that of the message"),
        (&[0; 64], "its length is not that of the message"),
        (&message(1, 0, ROOT, 0, b"name\0"), "its number is 0"),
        (&endless, "longer than any request"),
    ];
    for (sent, reason) in cases {
        let machine = machine(&home, EVENTS);
        let (_, error) = told(&machine.ask(REQUESTS, sent, ROOM));
        assert_eq!(error, EIO, "{reason}");
        // So is all that follows; what is not answered is given back.
        for unique in 10..14 {
            let answer = machine.ask(REQUESTS, &lookup(unique), ROOM);
            assert_eq!(told(&answer), (unique, EIO));
        }
        let forget = message(2, 7, ROOT, 0, &1u64.to_le_bytes());
        assert!(machine.ask(HIGH_PRIORITY, &forget, 0).is_empty());
        assert_eq!(machine.off(), malformed(reason));
        home.intact();
    }
}

#[test]
fn an_answer_without_a_place_is_none() {
    let home = Home::new();
    std::fs::write(home.share().join("name"), "text").unwrap();
    let machine = machine(&home, 0);
    assert_eq!(machine.ask(REQUESTS, &lookup(8), 0), b"");
    assert_eq!(machine.ask(REQUESTS, &lookup(8), 15), b"");
    // An error has one.
    assert_eq!(told(&machine.ask(REQUESTS, &lookup(8), 16)), (8, EIO));
    assert_eq!(told(&machine.ask(REQUESTS, &lookup(8), 143)), (8, EIO));
    assert_eq!(told(&machine.ask(REQUESTS, &lookup(8), 144)), (8, 0));
    assert_eq!(machine.off(), Ok(()));
}

#[test]
fn what_only_a_carrier_may_ask_is_not_heard() {
    let home = Home::new();
    let machine = machine(&home, 0);
    let mut sent = message(9, 8, ROOT, 0, &body(&[0o755, 0], &[b"made\0"]));
    sent[38] = 1;
    assert_eq!(machine.ask(REQUESTS, &sent, ROOM).len(), 16 + 128);
    assert_eq!(machine.off(), Ok(()));
}

#[test]
fn a_chain_that_is_none_ends_the_share() {
    let home = Home::new();
    let far = HIGH_END - 8;
    let cases: [(&[Descriptor], &str); 7] = [
        // Around in a circle, beyond the table, and nowhere.
        (
            &[(ASKED, 8, NEXT, 1), (ASKED, 8, NEXT, 0)],
            "its descriptors do not end",
        ),
        (&[(ASKED, 45, NEXT, SIZE)], "its descriptors do not end"),
        (
            &[(8 << 20, 45, 0, 0)],
            "it is outside of the guest's memory",
        ),
        (&[(far, 45, 0, 0)], "it is outside of the guest's memory"),
        (
            &[(u64::MAX - 4, 45, 0, 0)],
            "it is outside of the guest's memory",
        ),
        (&[(ASKED, u32::MAX, 0, 0)], "longer than any request"),
        (
            &[(SAID, 16, WRITE | NEXT, 1), (ASKED, 45, 0, 0)],
            "it goes on after the place for its answer",
        ),
    ];
    for (descriptors, reason) in cases {
        let machine = machine(&home, 0);
        machine.describe(Machine::table(REQUESTS), 0, descriptors);
        machine.offer(REQUESTS, 0);
        assert_eq!(machine.answer(REQUESTS).0, 0, "{reason}");
        assert_eq!(told(&machine.ask(REQUESTS, &lookup(8), ROOM)), (8, EIO));
        assert_eq!(machine.off(), malformed(reason));
    }
    // Tables in tables, and such as have no whole number of descriptors.
    for table in [
        (ASKED, 16, INDIRECT, 0),
        (ASKED, 15, INDIRECT, 0),
        (u64::MAX - 16, 16, INDIRECT, 0),
    ] {
        let machine = machine(&home, 0);
        machine.describe(ASKED, 0, &[(ASKED, 16, INDIRECT, 0)]);
        machine.describe(Machine::table(REQUESTS), 0, &[table]);
        machine.offer(REQUESTS, 0);
        assert_eq!(machine.answer(REQUESTS).0, 0);
        assert_eq!(machine.off(), malformed("its descriptors do not end"));
    }
}

#[test]
fn an_answer_goes_nowhere_but_into_the_guests_memory() {
    let home = Home::new();
    let machine = machine(&home, 0);
    for place in [8 << 20, HIGH_END - 8, u64::MAX - 15] {
        let mut descriptors = machine.lay(&lookup(8), 0);
        let last = descriptors.len() as u16;
        let end = descriptors.last_mut().unwrap();
        (end.2, end.3) = (NEXT, last);
        descriptors.push((place, 4096, WRITE, 0));
        machine.describe(Machine::table(REQUESTS), 0, &descriptors);
        machine.offer(REQUESTS, 0);
        assert_eq!(machine.answer(REQUESTS), (0, 0));
    }
    // The share goes on.
    assert_eq!(told(&machine.ask(REQUESTS, &lookup(8), ROOM)).1, 0);
    assert_eq!(machine.off(), Ok(()));
}

#[test]
fn a_broken_queue_ends_the_share_and_nothing_else() {
    let home = Home::new();
    let machine = machine(&home, EVENTS);
    machine.lie(REQUESTS, SIZE + 1);
    assert!(matches!(machine.end(), Err(Failure::Ring(_))));
    // Nothing comes by it any more, and the other one is given back what it asks.
    let forget = message(2, 7, ROOT, 0, &1u64.to_le_bytes());
    assert!(machine.ask(HIGH_PRIORITY, &forget, 0).is_empty());
    assert_eq!(machine.answer_within(REQUESTS, 50), None);

    // A chain that begins beyond the table can be given back to nobody.
    let machine = self::machine(&home, 0);
    machine.offer(REQUESTS, SIZE);
    let ended = machine.end();
    assert!(matches!(
        ended,
        Err(Failure::Malformed(_) | Failure::Ring(_))
    ));
    assert_eq!(machine.answer_within(REQUESTS, 50), None);
    home.intact();
}

#[test]
fn it_goes_on_where_it_was_stopped() {
    let home = Home::new();
    let mut machine = machine(&home, EVENTS);
    assert_eq!(told(&machine.ask(REQUESTS, &lookup(8), ROOM)).0, 8);
    let next = machine.stop(REQUESTS);
    assert_eq!(next, 2);
    let sent = machine.lay(&lookup(9), ROOM);
    machine.describe(Machine::table(REQUESTS), 0, &sent);
    machine.offer(REQUESTS, 0);
    assert_eq!(machine.answer_within(REQUESTS, 100), None);
    machine.start(REQUESTS, next as u16);
    let (_, length) = machine.answer(REQUESTS);
    assert_eq!(told(&machine.said(length)).0, 9);
    assert_eq!(machine.off(), Ok(()));
}

#[test]
fn one_that_is_halted_refuses() {
    let home = Home::new();
    let machine = machine(&home, EVENTS);
    machine.halt();
    // It may be taken by who serves, or by who refuses.
    while told(&machine.ask(REQUESTS, &lookup(8), ROOM)) != (8, EIO) {}
    assert_eq!(machine.off(), Ok(()));
}

/// A frontend that has said nothing yet, whose every message is answered.
fn frontend() -> (Device, Frontend) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let device = Device::open(theirs.into()).unwrap();
    let mut frontend = Frontend::from_stream(ours, 2);
    frontend.get_features().unwrap();
    frontend.set_features(1 << 32 | 1 << 30).unwrap();
    frontend.get_protocol_features().unwrap();
    let parts = VhostUserProtocolFeatures::REPLY_ACK;
    frontend.set_protocol_features(parts).unwrap();
    frontend.set_hdr_flags(vhost::vhost_user::message::VhostUserHeaderFlag::NEED_REPLY);
    (device, frontend)
}

#[test]
fn memory_that_may_become_shorter_is_not_touched() {
    for (seals, taken) in [(SealFlags::GROW, false), (SealFlags::SHRINK, true)] {
        let (_device, frontend) = frontend();
        let memory = memory(seals);
        let told = frontend.set_mem_table(&regions(&memory));
        assert_eq!(told.is_ok(), taken);
    }
    // What is there is not as much as is said.
    let (_device, frontend) = frontend();
    let memory = memory(SealFlags::SHRINK);
    let mut regions = regions(&memory);
    regions[0].memory_size <<= 4;
    assert!(frontend.set_mem_table(&regions).is_err());
}

#[test]
fn a_device_ends_with_its_socket() {
    let home = Home::new();
    let broker = Broker::open(&home.share(), Options::default()).unwrap();
    let (device, frontend) = frontend();
    std::thread::scope(|scope| {
        let served = scope.spawn(|| device.serve(&broker, 3));
        drop(frontend);
        assert_eq!(served.join().unwrap(), Ok(()));
    });
    assert_eq!(device.refuse(), Ok(()));
    let (messages, _) = std::os::unix::net::UnixDatagram::pair().unwrap();
    assert!(Device::open(messages.into()).is_err());
}

/// An address near something that matters, or any.
fn address() -> impl Strategy<Value = u64> {
    prop_oneof![
        (0u64..64).prop_map(|near| ASKED + near),
        (0u64..64).prop_map(|near| SAID + near),
        (0u64..64).prop_map(|near| HIGH_END - near),
        // Not in the queues themselves, where an answer could be lost.
        (0x2000u64..0x10000).prop_map(|near| near * 16),
        any::<u64>(),
    ]
}

fn descriptor() -> impl Strategy<Value = Descriptor> {
    let length = prop_oneof![0u32..64, (0u32..16).prop_map(|n| n * 16), any::<u32>()];
    (address(), length, 0u16..8, 0u16..24)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever is in the tables, every chain is given back; it never hangs, and nothing outside changes.
    #[test]
    fn any_chains_are_given_back(
        direct in prop::collection::vec(descriptor(), 16),
        indirect in prop::collection::vec(descriptor(), 16),
        heads in prop::collection::vec(0u16..16, 1..12),
    ) {
        let home = Home::new();
        let machine = machine(&home, EVENTS);
        machine.lay(&lookup(9), 0);
        machine.describe(ASKED + 48, 0, &indirect);
        machine.describe(Machine::table(HIGH_PRIORITY), 0, &direct);
        for head in &heads {
            machine.offer(HIGH_PRIORITY, *head);
        }
        let mut given: Vec<u32> = heads.iter().map(|_| machine.answer(HIGH_PRIORITY).0).collect();
        let mut offered: Vec<u32> = heads.into_iter().map(u32::from).collect();
        given.sort_unstable();
        offered.sort_unstable();
        prop_assert_eq!(given, offered);
        let ended = machine.off();
        prop_assert!(matches!(ended, Ok(()) | Err(Failure::Malformed(_))), "{ended:?}");
        home.intact();
    }
}
