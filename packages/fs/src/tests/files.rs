//! What a well-behaved guest does, and that the host sees the same.

use super::support::*;
use crate::broker::{Cache, Options};
use crate::wire::{FOPEN_DIRECT_IO, FOPEN_KEEP_CACHE, ROOT};
use std::collections::HashSet;

const APPEND: u32 = 0o2001;
const TRUNCATE: u32 = 0o1001;

#[test]
fn files_are_made_written_and_read() {
    let home = Home::new();
    let guest = home.guest(Options::default());
    let (file, handle) = guest.create(ROOT, "file", 2, 0o644).unwrap();
    assert_eq!(guest.write(file.node, handle, 0, b"hello"), Ok(5));
    assert_eq!(guest.write(file.node, handle, 1 << 20, b"far"), Ok(3));
    assert_eq!(guest.read(file.node, handle, 0, 5), Ok(b"hello".to_vec()));
    assert_eq!(guest.read(file.node, handle, 2 << 20, 5), Ok(vec![]));
    assert_eq!(guest.stat(file.node).unwrap().size, (1 << 20) + 3);
    let whole = vec![7; 1 << 20];
    assert_eq!(guest.write(file.node, handle, 0, &whole), Ok(1 << 20));
    assert_eq!(guest.read(file.node, handle, 0, 1 << 20), Ok(whole));
    let path = home.share().join("file");
    assert_eq!(std::fs::metadata(&path).unwrap().len(), (1 << 20) + 3);
    guest.release(file.node, handle).unwrap();

    let handle = guest.open(file.node, TRUNCATE).unwrap();
    assert_eq!(guest.stat(file.node).unwrap().size, 0);
    assert_eq!(
        guest.read(file.node, handle, 0, 5),
        Err(EBADF),
        "opened for writing"
    );
    assert_eq!(
        guest.create(ROOT, "file", 0o200 | 2, 0o644).unwrap_err(),
        EEXIST
    );
    let (again, _) = guest.create(ROOT, "file", 2, 0o600).unwrap();
    assert_eq!((again.node, again.mode), (file.node, 0o100_644));
    assert_eq!(guest.mkdir(ROOT, "file", 0o755).unwrap_err(), EEXIST);
    assert_eq!(guest.open(ROOT, 0), Err(21));
    assert_eq!(guest.open(file.node, 3), Err(EINVAL));
    assert_eq!(
        guest.open(file.node, 0o20_200_002),
        Err(EINVAL),
        "O_TMPFILE"
    );
}

#[test]
fn a_file_is_closed_without_a_question_or_an_answer() {
    let home = Home::new();
    let guest = home.guest(Options::default());
    let (file, handle) = guest.create(ROOT, "file", 2, 0o644).unwrap();
    let flush = [&long(handle)[..], &[0; 4]].concat();
    assert_eq!(guest.call(25, file.node, &body(&flush, &[])), Err(ENOSYS));
    let (mut out, unnumbered) = (Vec::new(), |opcode, words: &[u32]| {
        message(opcode, 0, file.node, 0, &body(words, &[]))
    });
    let release = [&long(handle)[..], &[0; 4]].concat();
    for _ in 0..2 {
        guest
            .broker
            .answer(&unnumbered(18, &release), &mut out)
            .unwrap();
        assert!(out.is_empty(), "not even that it is closed already");
        assert_eq!(guest.broker.usage().1, 0);
    }
    let directory = guest.opendir(ROOT).unwrap();
    let release = [&long(directory)[..], &[0; 4]].concat();
    let release = message(29, 0, ROOT, 0, &body(&release, &[]));
    guest.broker.answer(&release, &mut out).unwrap();
    assert_eq!((out.len(), guest.broker.usage().1), (0, 0));
    for opcode in [1, 3, 14, 16, 25, 27, 38] {
        let asked = guest.broker.answer(&unnumbered(opcode, &[0; 16]), &mut out);
        assert!(asked.is_err(), "{opcode}");
    }
}

#[test]
fn appending_goes_to_the_end_and_pages_to_their_place() {
    let home = Home::new();
    let path = home.share().join("file");
    std::fs::write(&path, "one").unwrap();
    let guest = home.guest(Options::default());
    let node = guest.lookup(ROOT, "file").unwrap().node;
    let handle = guest.open(node, APPEND).unwrap();
    std::fs::write(&path, "one, two").unwrap();
    guest.write(node, handle, 3, b", three").unwrap();
    assert_eq!(std::fs::read(&path).unwrap(), b"one, two, three");
    let words = [&long(handle)[..], &[0, 0, 3, 1], &[0; 4]].concat();
    guest.call(16, node, &body(&words, &[b"ONE"])).unwrap();
    assert_eq!(std::fs::read(&path).unwrap(), b"ONE, two, three");
}

#[test]
fn names_move_and_nodes_with_them() {
    let home = Home::new();
    let guest = home.guest(Options::default());
    let a = guest.mkdir(ROOT, "a", 0o755).unwrap().node;
    let b = guest.mkdir(ROOT, "b", 0o755).unwrap().node;
    let (file, handle) = guest.create(a, "file", 1, 0o644).unwrap();
    guest.rename((a, "file"), (b, "moved"), 0).unwrap();
    assert!(guest.stat(file.node).is_ok());
    guest.rename((ROOT, "b"), (a, "b"), 0).unwrap();
    assert!(guest.open(file.node, 0).is_ok(), "its directory moved");
    assert_eq!(guest.names(b), ["moved"]);
    assert_eq!(
        guest.rename((ROOT, "a"), (a, "a"), 0),
        Err(EINVAL),
        "into itself"
    );

    let (other, _) = guest.create(ROOT, "other", 1, 0o644).unwrap();
    assert_eq!(guest.rename((ROOT, "other"), (b, "moved"), 1), Err(EEXIST));
    guest.rename((ROOT, "other"), (b, "moved"), 2).unwrap();
    assert!(
        guest.stat(other.node).is_ok() && guest.stat(file.node).is_ok(),
        "exchanged"
    );
    assert_eq!(guest.lookup(b, "moved").unwrap().node, other.node);
    assert_eq!(
        guest.rename((b, "moved"), (b, "x"), 4),
        Err(EINVAL),
        "RENAME_WHITEOUT"
    );

    guest.rename((b, "moved"), (ROOT, "other"), 0).unwrap();
    assert_eq!(
        guest.write(file.node, handle, 0, b"still"),
        Ok(5),
        "replaced, yet open"
    );
    assert_eq!(guest.stat(file.node).unwrap().links, 0);
    guest.release(file.node, handle).unwrap();
    guest.setattr(other.node, 8, &[(4, 3)]).unwrap();
    assert_eq!(
        std::fs::metadata(home.share().join("other")).unwrap().len(),
        3
    );
    home.intact();
}

#[test]
fn a_file_goes_by_each_of_its_names() {
    let home = Home::new();
    let guest = home.guest(Options::default());
    let (file, handle) = guest.create(ROOT, "one", 2, 0o644).unwrap();
    guest.release(file.node, handle).unwrap();
    let link = |name: &str| {
        let body = body(&long(file.node), &[name.as_bytes(), b"\0"]);
        Ok::<_, i32>(entry(&guest.call(13, ROOT, &body)?))
    };
    let two = link("two").unwrap();
    assert_eq!((two.node, two.links), (file.node, 2));
    assert_eq!(link("one").unwrap_err(), EEXIST);
    guest.unlink(ROOT, "two").unwrap();
    assert_eq!(guest.stat(file.node).unwrap().links, 1, "by its first name");
    guest.unlink(ROOT, "one").unwrap();
    assert_eq!(guest.stat(file.node).unwrap_err(), ESTALE);
    let (new, _) = guest.create(ROOT, "one", 2, 0o644).unwrap();
    assert_ne!(new.node, file.node);
    let directory = guest.mkdir(ROOT, "d", 0o755).unwrap().node;
    let onto = guest.call(13, ROOT, &body(&long(directory), &[b"e\0"]));
    assert_eq!(onto, Err(EPERM));
    assert_eq!(guest.unlink(ROOT, "d"), Err(21));
    assert!(guest.call(11, ROOT, b"d\0").is_ok());
}

#[test]
fn an_open_file_outlives_its_name() {
    let home = Home::new();
    let guest = home.guest(Options::default());
    let (file, handle) = guest.create(ROOT, "file", 2, 0o644).unwrap();
    guest.write(file.node, handle, 0, b"text").unwrap();
    guest.unlink(ROOT, "file").unwrap();
    assert_eq!(guest.stat(file.node).unwrap().size, 4);
    guest.setattr(file.node, 8, &[(4, 2)]).unwrap();
    assert_eq!(guest.read(file.node, handle, 0, 9), Ok(b"te".to_vec()));
    guest.release(file.node, handle).unwrap();
    assert_eq!(guest.stat(file.node).unwrap_err(), ESTALE);

    let directory = guest.mkdir(ROOT, "d", 0o755).unwrap().node;
    let handle = guest.opendir(directory).unwrap();
    guest.call(11, ROOT, b"d\0").unwrap();
    assert_eq!(guest.list(directory, handle, 0, 4096, false), Ok(vec![]));
}

#[test]
fn large_directories_are_read_in_pieces_while_entries_go() {
    let home = Home::new();
    for number in 0..3000 {
        std::fs::write(home.share().join(format!("f{number}")), "").unwrap();
    }
    let guest = home.guest(Options {
        nodes: 1000,
        ..Options::default()
    });
    for plus in [false, true] {
        let handle = guest.opendir(ROOT).unwrap();
        let (mut at, mut seen, mut nodes) = (0, HashSet::new(), 0);
        loop {
            let listed = guest.list(ROOT, handle, at, 4096, plus).unwrap();
            let Some(last) = listed.last() else { break };
            at = last.1;
            for (name, _, node) in listed {
                assert!(seen.insert(name), "no entry comes twice");
                nodes += u64::from(node != 0);
            }
            if seen.len() % 7 == 0 {
                let _ = std::fs::remove_file(home.share().join(format!("f{}", seen.len() / 7)));
            }
        }
        let left = guest.names(ROOT);
        assert!(
            left.iter().all(|name| seen.contains(name)),
            "none that stayed is missed"
        );
        assert!(seen.contains(".") && seen.contains(".."));
        assert_eq!(nodes > 0, plus);
        assert!(guest.broker.usage().0 <= 1000);
    }
    // The directory above the root has no number for the guest.
    let handle = guest.opendir(ROOT).unwrap();
    let words = [&long(handle)[..], &[0, 0, 1 << 17], &[0; 5]].concat();
    let bytes = guest.call(28, ROOT, &body(&words, &[])).unwrap();
    let above = std::os::unix::fs::MetadataExt::ino(&std::fs::metadata(&home.0).unwrap());
    let inodes = bytes.windows(8).step_by(8).map(|word| u64_at(word, 0));
    assert!(!inodes.into_iter().any(|inode| inode == above));
}

#[test]
fn ranges_are_allocated_sought_and_copied() {
    let home = Home::new();
    let guest = home.guest(Options::default());
    let (file, handle) = guest.create(ROOT, "file", 2, 0o644).unwrap();
    let allocate = |offset, length, mode| {
        let words = [&long(handle)[..], &long(offset), &long(length), &[mode, 0]].concat();
        guest.call(43, file.node, &body(&words, &[]))
    };
    allocate(0, 1 << 20, 0).unwrap();
    assert_eq!(guest.stat(file.node).unwrap().size, 1 << 20);
    guest.write(file.node, handle, 0, &[1; 8192]).unwrap();
    allocate(0, 4096, 3).unwrap();
    assert_eq!(guest.read(file.node, handle, 4095, 2), Ok(vec![0, 1]));
    for mode in [8, 0x20, 0x40, 0x80, u32::MAX] {
        assert_eq!(allocate(0, 4096, mode), Err(EOPNOTSUPP), "{mode}");
    }
    assert_eq!(
        allocate(0, 1 << 60, 0),
        Err(ENOSPC),
        "before anything is taken"
    );
    let seek = |whence| {
        let words = [&long(handle)[..], &[0, 0, whence, 0]].concat();
        guest
            .call(46, file.node, &body(&words, &[]))
            .map(|found| u64_at(&found, 0))
    };
    assert_eq!(seek(3), Ok(4096));
    assert_eq!(seek(4), Ok(0));
    assert_eq!(seek(0), Err(EINVAL));

    let (copy, to) = guest.create(ROOT, "copy", 2, 0o644).unwrap();
    let words = [
        &long(handle)[..],
        &long(4096),
        &long(copy.node),
        &long(to),
        &[0, 0],
        &long(10),
        &[0, 0],
    ];
    let copied = guest
        .call(47, file.node, &body(&words.concat(), &[]))
        .unwrap();
    assert_eq!(u32_at(&copied, 0), 10);
    assert_eq!(guest.read(copy.node, to, 0, 100), Ok(vec![1; 10]));
}

#[test]
fn absent_names_are_remembered_as_the_policy_says() {
    let home = Home::new();
    for (cache, answer) in [
        (Cache::None, Err(ENOENT)),
        (Cache::Auto, Ok(1)),
        (Cache::Always, Ok(86_400)),
    ] {
        let guest = home.guest(Options {
            cache,
            ..Options::default()
        });
        let found = guest.call(1, ROOT, b"absent\0").map(|entry| {
            assert_eq!(u64_at(&entry, 0), 0);
            u64_at(&entry, 16)
        });
        assert_eq!(found, answer);
    }
}

#[test]
fn what_only_appends_is_not_cached() {
    let home = Home::new();
    std::fs::write(home.share().join("log"), "").unwrap();
    let flags = |cache: Cache, opened: u32| {
        let options = Options {
            cache,
            ..Options::default()
        };
        let guest = home.guest(options);
        let node = guest.lookup(ROOT, "log").unwrap().node;
        let reply = guest.call(14, node, &body(&[opened, 0], &[])).unwrap();
        u32_at(&reply, 8)
    };
    let both = APPEND + 1;
    assert_eq!(flags(Cache::Auto, APPEND), FOPEN_DIRECT_IO);
    assert_eq!(flags(Cache::Auto, 1), FOPEN_KEEP_CACHE);
    // It may be mapped, which is for what is cached.
    assert_eq!(flags(Cache::Auto, both), FOPEN_KEEP_CACHE);
    assert_eq!(flags(Cache::Always, APPEND), FOPEN_KEEP_CACHE);
    assert_eq!(flags(Cache::None, both), FOPEN_DIRECT_IO);
}
