//! The attributes of a directory, told before the answer to what changed its names, to who asked for them.

use super::support::*;
use crate::broker::{Cache, Options};
use crate::wire::{DIRECTORY, ROOT};

/// The error of the answer, and what comes before it, of a request that asks for it.
fn call(guest: &Guest, opcode: u32, node: u64, body: &[u8]) -> (i32, Vec<u8>) {
    let mut asked = message(opcode, 7, node, guest.uid, body);
    asked[38] = 1;
    let mut out = Vec::new();
    guest.broker.answer(&asked, &mut out).unwrap();
    let mut told = Vec::new();
    if u64_at(&out, 8) == 0 {
        let answer = out.split_off(u32_at(&out, 0) as usize);
        told = std::mem::replace(&mut out, answer);
    }
    assert_eq!((u32_at(&out, 0) as usize, u64_at(&out, 8)), (out.len(), 7));
    (-(u32_at(&out, 4) as i32), told)
}

#[test]
fn what_changes_names_tells_the_directory_to_who_asks() {
    let home = Home::new();
    let guest = home.guest(Options::default());
    let d = guest.mkdir(ROOT, "d", 0o755).unwrap().node;
    let file = guest.create(d, "file", 2, 0o644).unwrap().0.node;
    let create = [&body(&[2, 0o644, 0, 0], &[])[..], b"new\0"].concat();
    let rename = [&body(&[d as u32, 0, 0, 0], &[])[..], b"moved\0again\0"].concat();
    for (opcode, sent) in [
        (35, create),
        (8, body(&[0o100_644, 0, 0, 0], &[b"node\0"])),
        (9, body(&[0o755, 0], &[b"inner\0"])),
        (6, b"link\0target\0".to_vec()),
        (13, body(&long(file), &[b"moved\0"])),
        (45, rename),
        (10, b"again\0".to_vec()),
        (11, b"inner\0".to_vec()),
    ] {
        let (error, told) = call(&guest, opcode, d, &sent);
        assert_eq!((error, told.len()), (0, 16 + 8 + 104), "{opcode}");
        assert_eq!(u32_at(&told, 0) as usize, told.len());
        assert_eq!((u32_at(&told, 4) as i32, u64_at(&told, 8)), (DIRECTORY, 0));
        assert_eq!(u64_at(&told, 16), d);
        assert_eq!(told[24..], guest.call(3, d, &[0; 16]).unwrap(), "{opcode}");
    }
}

#[test]
fn nothing_is_told_that_has_not_changed_or_may_not_be_believed() {
    let home = Home::new();
    let guest = home.guest(Options::default());
    let file = guest.create(ROOT, "file", 2, 0o644).unwrap().0.node;
    let read = body(&[0; 10], &[]);
    for (opcode, node, sent, error) in [
        (1, ROOT, &b"file\0"[..], 0),
        (3, ROOT, &[0; 16][..], 0),
        (9, ROOT, &body(&[0o755, 0], &[b"file\0"])[..], EEXIST),
        (10, ROOT, b"absent\0", ENOENT),
        (9, file, &body(&[0o755, 0], &[b"in a file\0"])[..], 20),
        (15, file, &read[..], EBADF),
    ] {
        assert_eq!(
            call(&guest, opcode, node, sent),
            (error, vec![]),
            "{opcode}"
        );
    }
    let guest = home.guest(Options {
        cache: Cache::None,
        ..Options::default()
    });
    assert_eq!(call(&guest, 10, ROOT, b"file\0"), (0, vec![]));
}
