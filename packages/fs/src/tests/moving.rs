//! A host that moves directories and links about while a guest walks them (F07), and what stays reachable then.

use super::support::*;
use crate::broker::Options;
use crate::wire::ROOT;
use rustix::fs::{renameat_with, RenameFlags, CWD};
use std::os::unix::fs::symlink;
use std::sync::atomic::{AtomicBool, Ordering};

/// Exchanges `a` and `b` until told to stop; how often.
fn swap(a: &std::path::Path, b: &std::path::Path, stop: &AtomicBool) -> u32 {
    let mut times = 0;
    while !stop.load(Ordering::Relaxed) {
        renameat_with(CWD, a, CWD, b, RenameFlags::EXCHANGE).unwrap();
        times += 1;
    }
    times
}

/// Tells it however the guest's walk ends.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn a_directory_swapped_for_a_link_leads_nowhere_else() {
    let home = Home::new();
    let share = home.share();
    std::fs::create_dir(share.join("d")).unwrap();
    std::fs::write(share.join("d/secret"), "inside").unwrap();
    symlink(home.outside(), share.join("l")).unwrap();
    std::fs::write(share.join("f"), "inside").unwrap();
    symlink(home.outside().join("secret"), share.join("g")).unwrap();
    let guest = home.guest(Options::default());
    let stop = AtomicBool::new(false);
    let mut read = 0;
    let contents = |node: u64, handle: u64| {
        assert_eq!(guest.read(node, handle, 0, 100).unwrap(), b"inside");
        guest.release(node, handle).unwrap();
    };
    let [d, l, f, g] = ["d", "l", "f", "g"].map(|name| share.join(name));
    std::thread::scope(|scope| {
        let _stopping = Stop(&stop);
        let adversaries = [
            scope.spawn(|| swap(&d, &l, &stop)),
            scope.spawn(|| swap(&f, &g, &stop)),
        ];
        for round in 0..3000 {
            let directory = guest.lookup(ROOT, "d").unwrap();
            if let Ok(secret) = guest.lookup(directory.node, "secret") {
                assert_ne!(secret.mode & 0o170_000, 0o120_000);
                if let Ok(handle) = guest.open(secret.node, 0) {
                    contents(secret.node, handle);
                    read += 1;
                }
            }
            let name = format!("made{round}");
            if let Ok((made, handle)) = guest.create(directory.node, &name, 1, 0o644) {
                guest.write(made.node, handle, 0, b"mine").unwrap();
                guest.release(made.node, handle).unwrap();
                let _ = guest.unlink(directory.node, &name);
            }
            let _ = guest.unlink(directory.node, "canary");
            if let Ok(handle) = guest.opendir(directory.node) {
                for (name, ..) in guest
                    .list(directory.node, handle, 0, 4096, true)
                    .unwrap_or_default()
                {
                    assert!([".", "..", "secret"].contains(&&name[..]) || name.starts_with("made"));
                }
                let words = [&long(handle)[..], &[0; 4]].concat();
                guest.call(29, directory.node, &body(&words, &[])).unwrap();
            }
            if let Ok((file, handle)) = guest.create(ROOT, "f", 0, 0o644) {
                contents(file.node, handle);
            }
        }
        stop.store(true, Ordering::Relaxed);
        let swaps = adversaries.map(|adversary| adversary.join().unwrap());
        assert!(
            read > 0 && swaps.iter().all(|swaps| *swaps > 0),
            "{read} {swaps:?}"
        );
    });
    home.intact();
}

#[test]
fn what_the_host_moves_out_of_the_share_is_out_of_reach() {
    let home = Home::new();
    let share = home.share();
    std::fs::create_dir(share.join("d")).unwrap();
    std::fs::write(share.join("d/file"), "text").unwrap();
    let guest = home.guest(Options::default());
    let directory = guest.lookup(ROOT, "d").unwrap().node;
    let file = guest.lookup(directory, "file").unwrap().node;
    let handle = guest.opendir(directory).unwrap();
    let away = home.0.join("away");
    std::fs::rename(share.join("d"), &away).unwrap();
    assert_eq!(guest.lookup(directory, "file").unwrap_err(), ESTALE);
    assert_eq!(guest.stat(directory).unwrap_err(), ESTALE);
    assert_eq!(
        guest.create(directory, "new", 1, 0o644).unwrap_err(),
        ESTALE
    );
    assert_eq!(guest.list(directory, handle, 0, 4096, false), Err(ESTALE));
    assert_eq!(guest.stat(file).unwrap_err(), ESTALE);
    assert_eq!(guest.open(file, 0), Err(ESTALE));
    assert_eq!(std::fs::read_dir(&away).unwrap().count(), 1);
    std::fs::remove_dir_all(away).unwrap();
    home.intact();
}

#[test]
fn what_takes_a_name_of_another_file_is_another_node() {
    let home = Home::new();
    let share = home.share();
    std::fs::write(share.join("a"), "one").unwrap();
    let guest = home.guest(Options::default());
    let one = guest.lookup(ROOT, "a").unwrap().node;
    std::fs::write(share.join("b"), "two").unwrap();
    std::fs::rename(share.join("b"), share.join("a")).unwrap();
    assert_eq!(guest.open(one, 0), Err(ESTALE));
    let two = guest.lookup(ROOT, "a").unwrap();
    assert_ne!(two.node, one);
    // The host's rename of what is known is seen at the next lookup, as the same node.
    std::fs::rename(share.join("a"), share.join("c")).unwrap();
    assert_eq!(guest.stat(two.node).unwrap_err(), ESTALE);
    assert_eq!(guest.lookup(ROOT, "c").unwrap().node, two.node);
    assert!(guest.stat(two.node).is_ok());
}

#[test]
fn what_is_replaced_between_looking_it_up_twice_and_opening_it_is_opened() {
    let home = Home::new();
    let share = home.share();
    let guest = home.guest(Options::default());
    let replace = |text: &str| {
        std::fs::write(share.join("new"), text).unwrap();
        std::fs::rename(share.join("new"), share.join("a")).unwrap();
        guest.lookup(ROOT, "a").unwrap().node
    };
    let one = replace("one");
    let two = replace("two");
    assert_eq!(guest.open(one, 0), Err(ESTALE));
    // Found before the name was stale: it is not held, and keeps no space.
    let three = replace("three");
    assert_eq!(guest.open(two, 0), Err(ESTALE));
    let four = replace("four");
    // With `Cache::None` it is looked at before it is opened.
    guest.stat(three).unwrap();
    let handle = guest.open(three, 0).unwrap();
    assert_eq!(guest.read(three, handle, 0, 9).unwrap(), b"three");
    guest.release(three, handle).unwrap();
    assert_eq!(guest.open(three, 0), Err(ESTALE), "it was held once");
    // What was not removed but moved out is out of reach.
    std::fs::rename(share.join("a"), home.0.join("away")).unwrap();
    assert_eq!(guest.open(four, 0), Err(ESTALE));
    std::fs::remove_file(home.0.join("away")).unwrap();
    home.intact();
}

#[test]
fn directories_that_the_host_turns_inside_out_do_not_tie_a_knot() {
    let home = Home::new();
    let share = home.share();
    std::fs::create_dir_all(share.join("a/b")).unwrap();
    let guest = home.guest(Options::default());
    let a = guest.lookup(ROOT, "a").unwrap().node;
    let b = guest.lookup(a, "b").unwrap().node;
    std::fs::rename(share.join("a/b"), share.join("b")).unwrap();
    std::fs::rename(share.join("a"), share.join("b/a")).unwrap();
    assert_eq!(
        guest.lookup(b, "a").unwrap_err(),
        ESTALE,
        "b is still thought to be in a"
    );
    assert_eq!(guest.lookup(ROOT, "b").unwrap().node, b);
    assert_eq!(guest.lookup(b, "a").unwrap().node, a);
    assert!(guest.stat(a).is_ok());
}
