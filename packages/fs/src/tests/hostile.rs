//! Messages that no kernel sends: cut, of wrong numbers, of nodes and handles never given. F09, F10, F17, F23.

use super::support::*;
use crate::broker::Options;
use crate::nodes::Nodes;
use crate::wire::ROOT;
use proptest::prelude::*;

/// A valid request of every kind, in an order in which none takes another's ground away.
fn requests(file: u64, handle: u64, directory: u64) -> Vec<(u32, u64, Vec<u8>)> {
    let at = |handle: u64, rest: &[u32]| body(&[&long(handle)[..], rest].concat(), &[]);
    vec![
        (1, ROOT, b"file\0".to_vec()),
        (3, file, vec![0; 16]),
        (
            4,
            file,
            body(&[&[1][..], &[0; 16], &[0o600], &[0; 4]].concat(), &[]),
        ),
        (5, file, vec![]),
        (6, ROOT, b"link\0target\0".to_vec()),
        (8, ROOT, body(&[0o100_644, 0, 0, 0], &[b"node\0"])),
        (9, ROOT, body(&[0o755, 0], &[b"made\0"])),
        (12, ROOT, body(&long(ROOT), &[b"node\0moved\0"])),
        (45, ROOT, body(&[1, 0, 0, 0], &[b"moved\0node\0"])),
        (13, ROOT, body(&long(file), &[b"other\0"])),
        (10, ROOT, b"other\0".to_vec()),
        (11, ROOT, b"made\0".to_vec()),
        (14, file, body(&[2, 0], &[])),
        (35, ROOT, body(&[2, 0o644, 0, 0], &[b"created\0"])),
        (15, file, at(handle, &[0, 0, 100, 0, 0, 0, 0, 0])),
        (
            16,
            file,
            [at(handle, &[0, 0, 4, 0, 0, 0, 0, 0]), b"text".to_vec()].concat(),
        ),
        (17, ROOT, vec![]),
        (20, file, at(handle, &[0, 0])),
        (21, file, body(&[3, 0], &[b"user.a\0one"])),
        (22, file, body(&[0, 0], &[b"user.a\0"])),
        (23, file, body(&[0, 0], &[])),
        (24, file, b"user.a\0".to_vec()),
        (25, file, at(handle, &[0; 4])),
        (27, ROOT, vec![0; 8]),
        (28, ROOT, at(directory, &[0, 0, 4096, 0, 0, 0, 0, 0])),
        (44, ROOT, at(directory, &[0, 0, 4096, 0, 0, 0, 0, 0])),
        (30, ROOT, at(directory, &[0, 0])),
        (34, file, body(&[4, 0], &[])),
        (43, file, at(handle, &[0, 0, 100, 0, 0, 0])),
        (46, file, at(handle, &[0, 0, 3, 0])),
        (
            47,
            file,
            at(
                handle,
                &[
                    &[0, 0][..],
                    &long(file),
                    &long(handle),
                    &[50, 0, 4, 0, 0, 0],
                ]
                .concat(),
            ),
        ),
        (36, ROOT, vec![0; 8]),
        (42, ROOT, body(&[1, 0], &[&[0; 16]])),
        (2, 999, vec![0; 8]),
        (29, ROOT, at(directory, &[0; 4])),
        (18, file, at(handle, &[0; 4])),
        (38, ROOT, vec![]),
    ]
}

fn prepared(guest: &Guest) -> (u64, u64, u64) {
    let (file, handle) = guest.create(ROOT, "file", 2, 0o644).unwrap();
    (file.node, handle, guest.opendir(ROOT).unwrap())
}

#[test]
fn every_request_is_served_and_each_cut_of_it_refused() {
    let home = Home::new();
    let guest = home.guest(Options::default());
    let (file, handle, directory) = prepared(&guest);
    for (opcode, node, sent) in requests(file, handle, directory) {
        for end in 0..sent.len() {
            let answer = guest.call(opcode, node, &sent[..end]);
            let silent = matches!(opcode, 2 | 36 | 42);
            assert!(
                answer.is_err() || silent,
                "{opcode} cut to {end}: {answer:?}"
            );
        }
        if !matches!(opcode, 16 | 21) {
            let longer = guest.call(opcode, node, &[&sent[..], b"x"].concat());
            assert!(longer.is_err() || matches!(opcode, 2 | 36 | 42), "{opcode}");
        }
        let answer = guest.call(opcode, node, &sent);
        match opcode {
            // FLUSH is never needed, and the guest is told so.
            25 => assert_eq!(answer, Err(ENOSYS)),
            // READLINK is of a link only.
            _ => assert_eq!(answer.is_ok(), opcode != 5, "{opcode}: {answer:?}"),
        }
    }
    assert_eq!(
        guest.call(17, ROOT, &[]),
        Err(EIO),
        "after DESTROY comes INIT"
    );
    assert_eq!(guest.broker.usage(), (1, 0));
    home.intact();
}

#[test]
fn what_is_no_message_ends_the_mount() {
    let home = Home::new();
    let guest = home.guest(Options::default());
    let whole = message(1, 7, ROOT, 0, b"name\0");
    let mut out = Vec::new();
    for end in 0..whole.len() {
        assert!(guest.broker.answer(&whole[..end], &mut out).is_err());
        assert!(out.is_empty());
    }
    for length in [0, 1, 39, 44, 46, u32::MAX] {
        let mut lying = whole.clone();
        lying[..4].copy_from_slice(&length.to_le_bytes());
        assert!(guest.broker.answer(&lying, &mut out).is_err());
    }
    // A reply to number 0 would be a notification.
    let nameless = message(1, 0, ROOT, 0, b"name\0");
    assert!(guest.broker.answer(&nameless, &mut out).is_err());
    let endless = message(16, 7, ROOT, 0, &vec![0; crate::wire::MAX_MESSAGE]);
    assert!(guest.broker.answer(&endless, &mut out).is_err());
    assert!(
        guest.broker.answer(&whole, &mut out).is_ok(),
        "the broker itself goes on"
    );
}

#[test]
fn nothing_is_served_before_init_and_no_old_protocol() {
    let home = Home::new();
    let guest = Guest::new(&home.share(), Options::default());
    assert_eq!(guest.lookup(ROOT, "a").unwrap_err(), EIO);
    for (major, minor) in [(6, 38), (7, 30), (0, 0)] {
        assert_eq!(
            guest.call(26, 0, &body(&[major, minor, 0, 0], &[])),
            Err(71)
        );
    }
    // A newer major is told ours, and asks again.
    let answer = guest.call(26, 0, &body(&[8, 0, 0, 0], &[])).unwrap();
    assert_eq!(u32_at(&answer, 0), 7);
    assert_eq!(guest.call(17, ROOT, &[]), Err(EIO));
    guest.init();
    assert!(guest.call(17, ROOT, &[]).is_ok());
}

#[test]
fn unknown_requests_are_not_served() {
    let home = Home::new();
    let guest = home.guest(Options::default());
    for opcode in [
        0,
        7,
        19,
        31,
        32,
        33,
        37,
        39,
        40,
        41,
        48,
        49,
        50,
        51,
        52,
        4096,
        1 << 20,
        u32::MAX,
    ] {
        assert_eq!(guest.call(opcode, ROOT, &[0; 64]), Err(ENOSYS), "{opcode}");
    }
}

#[test]
fn nodes_and_handles_that_were_never_given_reach_nothing() {
    let home = Home::new();
    let guest = home.guest(Options::default());
    let (file, handle, directory) = prepared(&guest);
    let other = guest.mkdir(ROOT, "other", 0o755).unwrap().node;
    for node in [0, 99, u64::MAX] {
        assert_eq!(guest.stat(node).unwrap_err(), ESTALE);
        assert_eq!(guest.lookup(node, "file").unwrap_err(), ESTALE);
        assert_eq!(guest.open(node, 0), Err(ESTALE));
        assert_eq!(guest.unlink(node, "file"), Err(ESTALE));
        assert_eq!(guest.rename((ROOT, "file"), (node, "new"), 0), Err(ESTALE));
    }
    for (node, handle) in [
        (file, 0),
        (file, 99),
        (file, u64::MAX),
        (file, directory),
        (other, handle),
        (99, handle),
        (ROOT, directory),
    ] {
        assert_eq!(guest.read(node, handle, 0, 10), Err(EBADF));
        assert_eq!(guest.write(node, handle, 0, b"x"), Err(EBADF));
        assert_eq!(guest.release(node, handle), Err(EBADF));
    }
    assert_eq!(guest.list(ROOT, handle, 0, 4096, false), Err(EBADF));
    assert_eq!(guest.list(other, directory, 0, 4096, false), Err(EBADF));
    guest.release(file, handle).unwrap();
    assert_eq!(guest.read(file, handle, 0, 10), Err(EBADF), "closed");
    guest.forget(file, 1);
    assert_eq!(guest.stat(file).unwrap_err(), ESTALE, "forgotten");
    guest.forget(ROOT, u64::MAX);
    assert!(guest.stat(ROOT).is_ok(), "the root stays");
}

#[test]
fn sizes_and_offsets_beyond_any_file_are_refused() {
    let home = Home::new();
    let guest = home.guest(Options::default());
    let (file, handle, directory) = prepared(&guest);
    for (offset, size) in [
        (u64::MAX, 1),
        (i64::MAX as u64, 1),
        (0, (1 << 20) + 1),
        (0, u32::MAX),
        (1 << 63, 0),
    ] {
        assert_eq!(guest.read(file, handle, offset, size), Err(EINVAL));
        let end = offset == i64::MAX as u64;
        let listed = guest.list(ROOT, directory, offset, size, true);
        assert!(listed == Err(EINVAL) || end, "{listed:?}");
    }
    assert_eq!(guest.write(file, handle, u64::MAX, b"x"), Err(EINVAL));
    assert_eq!(
        guest.write(file, handle, i64::MAX as u64, b"x"),
        Err(EINVAL)
    );
    // Whatever place in a directory is named, an answer comes.
    for offset in [1, 7, 1 << 31, 1 << 40, (1 << 62) + 1] {
        let _ = guest.list(ROOT, directory, offset, 4096, false);
    }
    assert_eq!(
        guest.list(ROOT, directory, 0, 8, false),
        Err(EINVAL),
        "no room for one"
    );
}

#[test]
fn a_read_only_share_is_read_only_whatever_the_guest_thinks() {
    let home = Home::new();
    let guest = home.guest(Options::default());
    let (file, ..) = prepared(&guest);
    guest.setattr(file, 1, &[(17, 0o640)]).unwrap();
    let path = home.share().join("file");
    std::fs::write(&path, "text").unwrap();
    let before = std::fs::metadata(&path).unwrap().modified().unwrap();

    let guest = home.guest(Options {
        read_only: true,
        ..Options::default()
    });
    let file = guest.lookup(ROOT, "file").unwrap();
    assert_eq!(file.mode, 0o100_640);
    let (node, handle) = (file.node, guest.open(file.node, 0).unwrap());
    let directory = guest.opendir(ROOT).unwrap();
    let changes = [4, 6, 8, 9, 10, 11, 12, 13, 16, 21, 24, 35, 43, 45, 47];
    for (opcode, at, sent) in requests(node, handle, directory) {
        let answer = guest.call(opcode, at, &sent);
        if changes.contains(&opcode) {
            assert_eq!(answer, Err(EROFS), "{opcode}");
        }
        if opcode == 34 {
            break;
        }
    }
    for flags in [1, 2, 0o1000, 0o1001, 0o2001] {
        assert_eq!(guest.open(node, flags), Err(EROFS), "{flags:o}");
    }
    assert_eq!(guest.call(34, node, &body(&[2, 0], &[])), Err(EROFS));
    assert_eq!(guest.read(node, handle, 0, 10), Ok(b"text".to_vec()));
    assert_eq!(
        std::fs::metadata(&path).unwrap().modified().unwrap(),
        before
    );
    assert_eq!(guest.names(ROOT), ["file"]);
}

#[test]
fn handles_are_bounded_and_nodes_that_rest_are_dropped() {
    let home = Home::new();
    for number in 0..50 {
        std::fs::write(home.share().join(number.to_string()), "").unwrap();
    }
    let guest = home.guest(Options {
        handles: 8,
        nodes: 16,
        ..Options::default()
    });
    let (kept, _) = guest.create(ROOT, "kept", 2, 0o644).unwrap();
    let first = guest.lookup(ROOT, "0").unwrap();
    for number in 0..50 {
        let entry = guest.lookup(ROOT, &number.to_string()).unwrap();
        assert!(guest.stat(entry.node).is_ok());
        assert!(guest.broker.usage().0 <= 16);
    }
    assert_eq!(guest.stat(first.node).unwrap_err(), ESTALE, "dropped");
    assert!(guest.stat(kept.node).is_ok(), "what is open is kept");
    assert!(
        guest.lookup(ROOT, "0").unwrap().node > first.node,
        "never the same number"
    );
    for _ in 0..7 {
        guest.opendir(ROOT).unwrap();
    }
    assert_eq!(guest.opendir(ROOT), Err(EMFILE));
    assert_eq!(guest.open(kept.node, 0), Err(EMFILE));
    assert_eq!(guest.create(ROOT, "more", 2, 0o644).unwrap_err(), EMFILE);
    assert!(!home.share().join("more").exists());
    guest.release(kept.node, 1).unwrap();
    assert!(guest.opendir(ROOT).is_ok());
}

#[test]
fn forgotten_directories_stay_while_something_in_them_is_known() {
    let home = Home::new();
    let guest = home.guest(Options::default());
    let outer = guest.mkdir(ROOT, "outer", 0o755).unwrap().node;
    let inner = guest.mkdir(outer, "inner", 0o755).unwrap().node;
    guest.forget(outer, 1);
    assert!(guest.stat(inner).is_ok());
    assert_eq!(guest.broker.usage().0, 3);
    guest.forget(inner, 1);
    assert_eq!(guest.broker.usage().0, 1);
}

#[test]
fn counts_of_lookups_neither_overflow_nor_underflow() {
    let home = Home::new();
    std::fs::write(home.share().join("file"), "").unwrap();
    let root = crate::share::Share::open(&home.share(), false, false, false).unwrap();
    let identity = |name| {
        crate::share::status(root.child(root.root(), name).unwrap())
            .unwrap()
            .identity
    };
    let of_root = crate::share::status(root.root()).unwrap().identity;
    let mut nodes = Nodes::new(of_root, 10);
    let node = nodes.adopt(ROOT, b"file", identity(c"file")).unwrap();
    assert_eq!(nodes.adopt(ROOT, b"file", identity(c"file")), Ok(node));
    nodes.forget(node, u64::MAX);
    nodes.forget(node, 1);
    assert_eq!(nodes.count(), 1);
}

/// Without FALLOCATE, which may take all the space of the disk.
fn opcode() -> impl Strategy<Value = u32> {
    prop_oneof![1u32..43, 44u32..50]
}

fn any_body() -> impl Strategy<Value = Vec<u8>> {
    let word = prop_oneof![
        Just(0u32),
        Just(1),
        Just(2),
        Just(3),
        Just(u32::MAX),
        Just(4096),
        any::<u32>()
    ];
    const TEXTS: [&str; 6] = ["file", "../outside/secret", "link", "new", "user.a", "/"];
    let text = prop::sample::select(&TEXTS[..]);
    let words = prop::collection::vec(word, 0..16);
    (words, prop::collection::vec(text, 0..3)).prop_map(|(words, texts)| {
        let mut sent = body(&words, &[]);
        for text in texts {
            sent.extend(text.bytes());
            sent.push(0);
        }
        sent
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever comes, in whatever order, an answer of the protocol is given and nothing outside changes.
    #[test]
    fn any_requests_are_answered_and_nothing_outside_changes(
        sent in prop::collection::vec((opcode(), 0u64..6, any_body()), 1..60)
    ) {
        let home = Home::new();
        std::os::unix::fs::symlink("../outside", home.share().join("link")).unwrap();
        std::fs::write(home.share().join("file"), "text").unwrap();
        let guest = home.guest(Options { nodes: 8, handles: 4, ..Options::default() });
        for (opcode, node, body) in sent {
            let _ = guest.call(opcode, node, &body);
            prop_assert!(guest.broker.usage().0 <= 8 && guest.broker.usage().1 <= 4);
        }
        home.intact();
    }
}
