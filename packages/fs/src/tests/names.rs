//! Names that name more than one entry, and links that lead away: F01 to F05, F08, F19.

use super::support::*;
use crate::broker::Options;
use crate::share::Share;
use crate::wire::ROOT;
use rustix::io::Errno;
use std::os::unix::fs::symlink;

/// Requests with one name: opcode and what precedes the name.
const NAMED: [(u32, usize); 7] = [(1, 0), (8, 16), (9, 8), (10, 0), (11, 0), (13, 8), (35, 16)];

fn bad_names() -> Vec<(Vec<u8>, i32)> {
    let mut names: Vec<(Vec<u8>, i32)> = [
        "",
        ".",
        "..",
        "/",
        "a/b",
        "/tmp/pwn",
        "../../etc/passwd",
        "a/..",
        "..\0",
        "a\0b",
        "./a",
    ]
    .into_iter()
    .map(|name| (name.as_bytes().to_vec(), EINVAL))
    .collect();
    names.push((vec![b'a'; 256], ENAMETOOLONG));
    names.push((vec![b'a'; 60_000], ENAMETOOLONG));
    names
}

#[test]
fn no_request_takes_a_name_of_more_than_one_entry() {
    let home = Home::new();
    let guest = home.guest(Options::default());
    for (mut name, error) in bad_names() {
        name.push(0);
        for (opcode, before) in NAMED {
            let sent = body(&[], &[&vec![0; before], &name]);
            let answer = guest.call(opcode, ROOT, &sent);
            assert_eq!(answer, Err(error), "{opcode} {name:?}");
            // Without its NUL no name is one.
            let answer = guest.call(opcode, ROOT, &sent[..sent.len() - 1]);
            assert_eq!(answer, Err(EINVAL), "{opcode} {name:?}");
        }
    }
    assert_eq!(guest.names(ROOT), [""; 0]);
    home.intact();
}

#[test]
fn neither_name_of_a_rename_or_link_may_leave_its_directory() {
    let home = Home::new();
    std::fs::write(home.share().join("a"), "mine").unwrap();
    let guest = home.guest(Options::default());
    for (name, _) in bad_names() {
        for pair in [[&b"a"[..], &name], [&name, &b"b"[..]]] {
            let texts: [&[u8]; 4] = [pair[0], b"\0", pair[1], b"\0"];
            let renamed = guest.call(12, ROOT, &body(&long(ROOT), &texts));
            assert!(matches!(renamed, Err(EINVAL | ENAMETOOLONG)), "{pair:?}");
            let words = [&long(ROOT)[..], &[0, 0]].concat();
            let renamed = guest.call(45, ROOT, &body(&words, &texts));
            assert!(matches!(renamed, Err(EINVAL | ENAMETOOLONG)), "{pair:?}");
        }
        // F04: of a symbolic link only the target is free text.
        let made = guest.call(6, ROOT, &body(&[], &[&name, b"\0target\0"]));
        assert!(made.is_err(), "{name:?}");
    }
    assert_eq!(guest.names(ROOT), ["a"]);
    home.intact();
}

#[test]
fn links_are_text_and_lead_nowhere() {
    let home = Home::new();
    let guest = home.guest(Options::default());
    let secret = home.outside().join("secret");
    symlink(&secret, home.share().join("absolute")).unwrap();
    symlink("../outside", home.share().join("directory")).unwrap();
    symlink("/proc/self/root", home.share().join("magic")).unwrap();
    let made = guest
        .call(6, ROOT, b"made\0../../outside/secret\0")
        .unwrap();
    let made = entry(&made);
    assert_eq!(made.mode, 0o120_777);
    let text = guest.call(5, made.node, &[]);
    assert_eq!(text, Ok(b"../../outside/secret".to_vec()));
    for name in ["absolute", "directory", "magic", "made"] {
        let link = guest.lookup(ROOT, name).unwrap();
        assert_eq!(link.mode & 0o170_000, 0o120_000, "{name}");
        for flags in [0, 1, 2, 0o1000] {
            assert_eq!(guest.open(link.node, flags), Err(ELOOP), "{name}");
            assert_eq!(guest.create(ROOT, name, flags, 0o644).unwrap_err(), ELOOP);
        }
        assert_eq!(guest.lookup(link.node, "secret").unwrap_err(), 20, "{name}");
        assert!(guest.opendir(link.node).is_err());
        assert!(guest.setattr(link.node, 8, &[]).is_err());
    }
    home.intact();
}

#[test]
fn the_root_is_a_directory_or_a_file_and_no_link() {
    let home = Home::new();
    let link = home.0.join("link");
    symlink(home.share(), &link).unwrap();
    let socket = home.0.join("socket");
    let _bound = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    assert_eq!(
        Share::open(&link, false, false, false).err(),
        Some(Errno::LOOP)
    );
    assert!(Share::open(&link, true, false, false).is_ok());
    assert_eq!(
        Share::open(&socket, false, false, false).err(),
        Some(Errno::NOTDIR)
    );
    let proc = std::path::Path::new("/proc/self");
    assert_eq!(
        Share::open(proc, true, false, false).err(),
        Some(Errno::PERM)
    );
}

#[test]
fn a_mount_inside_is_another_file_system() {
    // What is mounted on any Linux: `/proc` is not where `/` is.
    let guest = Guest::new(
        std::path::Path::new("/"),
        Options {
            read_only: true,
            ..Options::default()
        },
    );
    guest.init();
    assert_eq!(guest.lookup(ROOT, "proc").unwrap_err(), 18);
}

#[test]
fn deep_trees_are_reached_beyond_the_longest_path() {
    let home = Home::new();
    let guest = home.guest(Options::default());
    let name = "d".repeat(250);
    let mut at = ROOT;
    for _ in 0..40 {
        at = guest.mkdir(at, &name, 0o755).unwrap().node;
    }
    let (made, _) = guest.create(at, "file", 1, 0o644).unwrap();
    assert_eq!(guest.stat(made.node).unwrap().mode, 0o100_644);
    assert_eq!(guest.names(at), ["file"]);
}
