//! F15, F16: no guest has more than its share, however it asks.

use super::support::*;
use crate::broker::Options;
use crate::quota::{Limits, Quota, BLOCK};
use crate::wire::ROOT;
use proptest::prelude::*;
use std::os::fd::OwnedFd;

const EDQUOT: i32 = 122;
const FALLOCATE: u32 = 43;
const COPY: u32 = 47;

/// A guest with `blocks` and `names` to fill; with `counter`, together with others.
fn limited(home: &Home, blocks: u64, names: u64, counter: Option<OwnedFd>) -> Guest {
    let limits = Limits {
        bytes: blocks * BLOCK,
        names,
    };
    let mut guest = Guest::new(&home.share(), Options::default());
    guest.limit(Quota::new(limits, counter).unwrap());
    guest.init();
    guest
}

/// The account's file, as each broker opens it for itself.
fn counter(home: &Home) -> Option<OwnedFd> {
    let mut options = std::fs::OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false);
    let path = home.0.with_extension("counter");
    Some(options.open(path).unwrap().into())
}

fn counted(guest: &Guest) -> (u64, u64) {
    let (bytes, names) = guest.broker.counted().unwrap().unwrap();
    assert_eq!(bytes % BLOCK, 0);
    (bytes / BLOCK, names)
}

fn allocate(guest: &Guest, file: (u64, u64), at: u64, length: u64, mode: u32) -> Result<(), i32> {
    let words = [&long(file.1)[..], &long(at), &long(length), &[mode, 0]].concat();
    guest.call(FALLOCATE, file.0, &body(&words, &[])).map(drop)
}

#[test]
fn bytes_hold_to_the_block_however_they_are_asked_for() {
    let home = Home::new();
    let guest = limited(&home, 10, 100, None);
    let (entry, handle) = guest.create(ROOT, "file", 2, 0o644).unwrap();
    let file = (entry.node, handle);
    let size = |value: u64| {
        guest
            .setattr(file.0, 8, &[(4, value as u32)])
            .map(|set| set.size)
    };

    // Written: what fits of it, and then nothing.
    assert_eq!(
        guest.write(file.0, handle, 0, &[1; 9 * 4096 + 1]),
        Ok(9 * 4096 + 1)
    );
    assert_eq!(
        guest.write(file.0, handle, 9 * 4096 + 1, &[1; 8192]),
        Ok(4095)
    );
    assert_eq!(guest.write(file.0, handle, 10 * 4096, &[1]), Err(EDQUOT));
    assert_eq!(guest.write(file.0, handle, 1 << 40, &[1]), Err(EDQUOT));
    assert_eq!(counted(&guest), (10, 1));
    // What is there already may be changed.
    assert_eq!(guest.write(file.0, handle, 0, &[2; 4096]), Ok(4096));
    // Its size set, up and down; holes count.
    assert_eq!(size(10 * 4096 + 1), Err(EDQUOT));
    assert_eq!(size(4097), Ok(4097));
    assert_eq!(counted(&guest).0, 2);
    assert_eq!(size(10 * 4096), Ok(10 * 4096));
    assert_eq!(counted(&guest).0, 10);
    // Allocated, and beyond the size where nobody would see it.
    assert_eq!(allocate(&guest, file, 0, 11 * 4096, 0), Err(EDQUOT));
    assert_eq!(allocate(&guest, file, 0, 11 * 4096, 1), Err(EOPNOTSUPP));
    assert_eq!(allocate(&guest, file, 9 * 4096, 4096, 1), Ok(()));
    assert_eq!(size(4096), Ok(4096));
    assert_eq!(allocate(&guest, file, 0, 2 * 4096, 0), Ok(()));
    assert_eq!(counted(&guest).0, 2);
    // Copied.
    let (copy, copied) = guest.create(ROOT, "copy", 2, 0o644).unwrap();
    let words = [
        &long(handle)[..],
        &long(0),
        &long(copy.node),
        &long(copied),
        &long(8 * 4096),
        &long(8192),
        &[0, 0],
    ]
    .concat();
    assert_eq!(guest.call(COPY, file.0, &body(&words, &[])), Err(EDQUOT));
    assert_eq!(guest.write(copy.node, copied, 8 * 4096 - 1, &[1; 9]), Ok(1));
    assert_eq!(counted(&guest), (10, 2));
    // A link has a block, another name of a file none.
    let link = b"link\0/tmp\0";
    assert_eq!(guest.call(6, ROOT, link), Err(EDQUOT));
    guest
        .call(13, ROOT, &body(&long(file.0), &[b"other\0"]))
        .unwrap();
    assert_eq!(counted(&guest), (10, 3));
    guest.unlink(ROOT, "file").unwrap();
    assert_eq!(counted(&guest), (10, 2), "it has another name");
    guest.rename((ROOT, "copy"), (ROOT, "other"), 0).unwrap();
    assert_eq!(counted(&guest), (10, 1), "open still");
    guest.release(file.0, handle).unwrap();
    assert_eq!(counted(&guest), (8, 1));
    guest.call(6, ROOT, link).unwrap();
    assert_eq!(counted(&guest), (9, 2));
    // Emptied when opened, and at last taken away.
    guest.open(copy.node, 0o1001).unwrap();
    assert_eq!(counted(&guest), (1, 2));
    guest.unlink(ROOT, "other").unwrap();
    guest.unlink(ROOT, "link").unwrap();
    assert_eq!(counted(&guest), (0, 0));
    home.intact();
}

#[test]
fn names_hold_of_every_kind() {
    let home = Home::new();
    std::fs::write(home.share().join("there"), "text").unwrap();
    std::fs::hard_link(home.share().join("there"), home.share().join("twice")).unwrap();
    let guest = limited(&home, 100, 6, None);
    assert_eq!(counted(&guest), (1, 2));
    guest.mkdir(ROOT, "directory", 0o755).unwrap();
    guest.mknod(ROOT, "fifo", 0o010_644, 0).unwrap();
    guest.call(6, ROOT, b"link\0there\0").unwrap();
    let file = guest.create(ROOT, "file", 2, 0o644).unwrap().0.node;
    assert_eq!(counted(&guest), (2, 6));
    assert_eq!(guest.create(ROOT, "more", 2, 0o644).unwrap_err(), EDQUOT);
    assert_eq!(guest.mkdir(ROOT, "more", 0o755).unwrap_err(), EDQUOT);
    assert_eq!(guest.mknod(ROOT, "more", 0o100_644, 0).unwrap_err(), EDQUOT);
    assert_eq!(guest.call(6, ROOT, b"more\0there\0"), Err(EDQUOT));
    let link = body(&long(file), &[b"more\0"]);
    assert_eq!(guest.call(13, ROOT, &link), Err(EDQUOT));
    // What is there can be opened, and is said to be there.
    assert!(guest.create(ROOT, "there", 2, 0o644).is_ok());
    assert_eq!(guest.mkdir(ROOT, "file", 0o755).unwrap_err(), EEXIST);
    guest.rename((ROOT, "file"), (ROOT, "moved"), 0).unwrap();
    guest.rename((ROOT, "there"), (ROOT, "twice"), 0).unwrap();
    assert_eq!(counted(&guest).1, 6, "two names of one file stay");
    guest.call(11, ROOT, b"directory\0").unwrap();
    guest.create(ROOT, "more", 2, 0o644).unwrap();
    assert!(!home.share().join("directory").exists());
    assert_eq!(counted(&guest), (2, 6));
}

#[test]
fn attributes_are_bounded_under_a_quota() {
    let home = Home::new();
    let guest = limited(&home, 1, 1, None);
    let file = guest.create(ROOT, "file", 2, 0o644).unwrap().0.node;
    let set = |name: &str, size: usize| {
        let sent = body(&[size as u32, 0], &[name.as_bytes(), b"\0", &vec![1; size]]);
        guest.call(21, file, &sent).map(drop)
    };
    if set("user.a", 1000) == Err(EOPNOTSUPP) {
        return;
    }
    set("user.a", 1500).unwrap();
    set("user.b", 1500).unwrap();
    assert_eq!(set("user.c", 1500), Err(ENOSPC));
}

#[test]
fn brokers_of_one_volume_keep_one_account() {
    let home = Home::new();
    let (one, two) = (
        limited(&home, 10, 10, counter(&home)),
        limited(&home, 10, 10, counter(&home)),
    );
    let (file, handle) = one.create(ROOT, "file", 2, 0o644).unwrap();
    one.write(file.node, handle, 0, &[1; 6 * 4096]).unwrap();
    assert_eq!(counted(&two), (6, 1));
    let (other, others) = two.create(ROOT, "other", 2, 0o644).unwrap();
    assert_eq!(
        two.write(other.node, others, 0, &[1; 6 * 4096]),
        Ok(4 * 4096)
    );
    // Taken away by one while the other has it open: it counts until that is over.
    two.unlink(ROOT, "file").unwrap();
    assert_eq!(counted(&two), (10, 1));
    assert_eq!(one.write(file.node, handle, 6 * 4096, &[1]), Err(EDQUOT));
    let seen = one.lookup(ROOT, "other").unwrap();
    let again = one.open(seen.node, 2).unwrap();
    two.unlink(ROOT, "other").unwrap();
    two.release(other.node, others).unwrap();
    assert_eq!(counted(&one), (10, 0));
    one.release(seen.node, again).unwrap();
    assert_eq!(counted(&one), (6, 0));
    // With the broker, as when it is killed, goes what it had open; the next who is alone counts.
    drop(two);
    drop(one);
    assert_eq!(counted(&limited(&home, 10, 10, counter(&home))), (0, 0));
    std::fs::remove_file(home.0.with_extension("counter")).unwrap();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// After any changes by two brokers the account is what a count finds, and never beyond the limits.
    #[test]
    fn the_account_is_what_is_there(
        changes in prop::collection::vec((0..2usize, 0..8u8, 0..4usize, 0..4usize, 0..9u32), 0..60)
    ) {
        const NAMES: [&str; 4] = ["a", "b", "c", "d"];
        let home = Home::new();
        let guests = [limited(&home, 8, 3, counter(&home)), limited(&home, 8, 3, counter(&home))];
        let mut open: [Vec<(u64, u64)>; 2] = Default::default();
        for (who, what, name, other, size) in changes {
            let (guest, open) = (&guests[who], &mut open[who]);
            match what {
                0 => if let Ok((entry, handle)) = guest.create(ROOT, NAMES[name], 2, 0o644) {
                    open.push((entry.node, handle));
                },
                1 => drop(guest.unlink(ROOT, NAMES[name])),
                2 => drop(guest.rename((ROOT, NAMES[name]), (ROOT, NAMES[other]), 0)),
                3 => if let Ok(file) = guest.lookup(ROOT, NAMES[name]) {
                    let sent = body(&long(file.node), &[NAMES[other].as_bytes(), b"\0"]);
                    let _ = guest.call(13, ROOT, &sent);
                },
                4 => if let Ok(file) = guest.lookup(ROOT, NAMES[name]) {
                    let _ = guest.setattr(file.node, 8, &[(4, size * 1500)]);
                },
                5 | 6 => if let Some((node, handle)) = open.get(other % open.len().max(1)) {
                    let _ = guest.write(*node, *handle, u64::from(size) * 3000, &[1; 9000]);
                },
                _ => if !open.is_empty() {
                    let (node, handle) = open.swap_remove(other % open.len());
                    guest.release(node, handle).unwrap();
                },
            }
            let (blocks, names) = counted(guest);
            prop_assert!(blocks <= 8 && names <= 3, "{blocks} {names}");
        }
        for (guest, open) in guests.iter().zip(open) {
            for (node, handle) in open {
                guest.release(node, handle).unwrap();
            }
        }
        let found = counted(&limited(&home, 8, 3, None));
        prop_assert_eq!(counted(&guests[0]), found);
        std::fs::remove_file(home.0.with_extension("counter")).unwrap();
    }
}
