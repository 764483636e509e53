//! Somebody on the host changes the tree while the guest walks it. F07, F18, F26.

use super::support::*;
use crate::broker::Options;
use crate::wire::ROOT;
use rustix::fs::{RenameFlags, CWD};
use std::collections::HashSet;
use std::os::unix::fs::symlink;
use std::sync::atomic::{AtomicBool, Ordering};

const SWAPS: usize = 100_000;

/// F07: whatever is where the guest goes at that moment, it reaches what is inside or nothing.
fn walks_while_it_is_swapped(walk: bool) {
    let home = Home::new();
    let share = home.share();
    std::fs::create_dir(share.join("directory")).unwrap();
    std::fs::write(share.join("directory/secret"), "inside").unwrap();
    symlink(home.outside(), share.join("link")).unwrap();
    let guest = home.guest(Options {
        walk,
        nodes: 64,
        ..Options::default()
    });
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let [one, two] = ["directory", "link"].map(|name| share.join(name));
            for _ in 0..SWAPS {
                rustix::fs::renameat_with(CWD, &one, CWD, &two, RenameFlags::EXCHANGE).unwrap();
            }
            over.store(true, Ordering::Release);
        });
        let mut reached = 0;
        for turn in 0.. {
            if over.load(Ordering::Acquire) && (reached > 0 || turn > 100_000) {
                break;
            }
            let Ok(at) = guest.lookup(ROOT, "directory") else {
                continue;
            };
            let _ = guest
                .create(at.node, "new", 2, 0o644)
                .map(|(made, handle)| {
                    guest.write(made.node, handle, 0, b"inside").unwrap();
                    guest.release(made.node, handle).unwrap();
                });
            let _ = guest.unlink(at.node, "new");
            if let Ok(handle) = guest.opendir(at.node) {
                let listed = guest
                    .list(at.node, handle, 0, 4096, true)
                    .unwrap_or_default();
                assert!(listed.len() <= 4, "{listed:?}");
                let words = [&long(handle)[..], &[0; 4]].concat();
                guest.call(29, at.node, &body(&words, &[])).unwrap();
            }
            let Ok(file) = guest.lookup(at.node, "secret") else {
                continue;
            };
            if let Ok(handle) = guest.open(file.node, 2) {
                assert_eq!(guest.read(file.node, handle, 0, 99).unwrap(), b"inside");
                assert_eq!(guest.write(file.node, handle, 0, b"inside"), Ok(6));
                guest.release(file.node, handle).unwrap();
                reached += 1;
            }
        }
        assert!(reached > 0);
    });
    home.intact();
}

#[test]
fn f07_a_directory_swapped_for_a_link_leads_nowhere() {
    walks_while_it_is_swapped(false);
}

#[test]
fn f07_nor_without_openat2() {
    walks_while_it_is_swapped(true);
}

/// F18: names that stay are each listed once, whatever goes meanwhile; nothing is kept of a listing.
fn lists(entries: usize) {
    let home = Home::new();
    for number in 0..entries {
        std::fs::write(home.share().join(format!("{number}")), "").unwrap();
    }
    let guest = home.guest(Options {
        nodes: 1024,
        ..Options::default()
    });
    let handle = guest.opendir(ROOT).unwrap();
    let before = resident();
    let (mut seen, mut at, mut gone) = (HashSet::new(), 0, 0..entries);
    let kept = |number: usize| number % 10 != 0;
    loop {
        let listed = guest.list(ROOT, handle, at, 1 << 16, true).unwrap();
        let Some(last) = listed.last() else { break };
        at = last.1;
        for (name, ..) in listed {
            if let Ok(number) = name.parse::<usize>() {
                assert!(seen.insert(number as u32), "{number} twice");
            }
        }
        for number in gone.by_ref().filter(|number| !kept(*number)).take(100) {
            std::fs::remove_file(home.share().join(format!("{number}"))).unwrap();
        }
    }
    assert!((0..entries)
        .filter(|number| kept(*number))
        .all(|number| seen.contains(&(number as u32))));
    assert!(guest.broker.usage().0 <= 1024);
    // What this test itself keeps is a tenth of it.
    if entries >= 1_000_000 {
        assert!(resident() - before < 50 << 20);
    }
}

/// Bytes of memory of this process.
fn resident() -> usize {
    let status = std::fs::read_to_string("/proc/self/statm").unwrap();
    status.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4096
}

#[test]
fn f18_a_large_directory_is_listed_without_misses_while_files_go() {
    lists(5_000);
}

#[test]
#[ignore = "minutes: cargo test -p microsandbox-fs -- --ignored f18"]
fn f18_a_million_entries_in_bounded_memory() {
    lists(1_000_000);
}

#[test]
fn f26_a_file_that_the_host_cuts_while_it_is_open_has_an_end() {
    let home = Home::new();
    let path = home.share().join("file");
    std::fs::write(&path, vec![1; 8192]).unwrap();
    let guest = home.guest(Options::default());
    let file = guest.lookup(ROOT, "file").unwrap().node;
    let handle = guest.open(file, 2).unwrap();
    assert_eq!(guest.read(file, handle, 4096, 4096).unwrap().len(), 4096);
    std::fs::OpenOptions::new()
        .write(true)
        .open(&path)
        .unwrap()
        .set_len(10)
        .unwrap();
    // A page of a mapping, read and written back.
    assert_eq!(guest.read(file, handle, 4096, 4096), Ok(vec![]));
    assert_eq!(guest.read(file, handle, 0, 4096).unwrap(), vec![1; 10]);
    assert_eq!(guest.write(file, handle, 0, &[2; 4096]), Ok(4096));
    assert_eq!(guest.stat(file).unwrap().size, 4096);
}
