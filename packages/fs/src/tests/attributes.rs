//! Owners, modes and extended attributes: F12, F14, F21, F22.

use super::support::*;
use crate::broker::Options;
use crate::owners::Ownership;
use crate::wire::ROOT;
use std::os::unix::fs::{symlink, FileTypeExt, MetadataExt, PermissionsExt};

const MODE: u32 = 1;
const UID: u32 = 2;
const GID: u32 = 4;
/// Places of the fields in the words of SETATTR.
const AT_MODE: usize = 17;
const AT_UID: usize = 19;
const AT_GID: usize = 20;

fn options(ownership: Ownership) -> Options {
    Options {
        ownership,
        ..Options::default()
    }
}

const VIRTUAL: Ownership = Ownership::Virtual {
    uid: 1000,
    gid: 1000,
};

#[test]
fn owners_and_modes_of_a_guest_stay_its_own() {
    let home = Home::new();
    let path = home.share().join("file");
    std::fs::write(&path, "").unwrap();
    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o4754)).unwrap();
    let host = std::fs::metadata(&path).unwrap();
    let guest = home.guest(options(VIRTUAL));
    let file = guest.lookup(ROOT, "file").unwrap();
    assert_eq!(
        (file.uid, file.gid, file.mode),
        (1000, 1000, 0o100_754),
        "the host's set-id bit is not the guest's"
    );
    let set = guest.setattr(
        file.node,
        UID | GID | MODE,
        &[(AT_UID, 0), (AT_GID, 7), (AT_MODE, 0o6777)],
    );
    let set = set.unwrap();
    assert_eq!((set.uid, set.gid, set.mode), (0, 7, 0o106_777));
    let now = std::fs::metadata(&path).unwrap();
    assert_eq!(
        (now.uid(), now.gid(), now.mode()),
        (host.uid(), host.gid(), host.mode())
    );

    // Another broker of the same directory shows the same.
    let again = home.guest(options(Ownership::Virtual { uid: 5, gid: 5 }));
    let file = again.lookup(ROOT, "file").unwrap();
    assert_eq!((file.uid, file.gid, file.mode), (0, 7, 0o106_777));
    // FATTR_KILL_SUIDGID.
    assert_eq!(
        again.setattr(file.node, 1 << 11, &[]).unwrap().mode,
        0o100_777
    );
}

#[test]
fn what_a_guest_makes_is_private_on_the_host() {
    let home = Home::new();
    let guest = home.guest(options(VIRTUAL));
    let (file, handle) = guest.create(ROOT, "file", 1, 0o6755).unwrap();
    let directory = guest.mkdir(ROOT, "d", 0o2775).unwrap();
    assert_eq!((file.mode, directory.mode), (0o106_755, 0o042_775));
    let mode = |name| std::fs::metadata(home.share().join(name)).unwrap().mode();
    assert_eq!((mode("file"), mode("d")), (0o100_600, 0o040_700));
    guest.setattr(directory.node, GID, &[(AT_GID, 77)]).unwrap();
    let (inner, _) = guest.create(directory.node, "inner", 1, 0o644).unwrap();
    assert_eq!(
        (inner.uid, inner.gid),
        (1000, 77),
        "the group of a set-group-id directory"
    );
    assert_eq!(
        guest.mkdir(directory.node, "e", 0o755).unwrap().mode,
        0o042_755
    );
    let words = [&long(handle)[..], &[0, 0, 1, 4], &[0; 4]].concat();
    guest.call(16, file.node, &body(&words, &[b"x"])).unwrap();
    assert_eq!(guest.stat(file.node).unwrap().mode, 0o100_755, "written to");
}

#[test]
fn devices_are_files_on_the_host() {
    let home = Home::new();
    let guest = home.guest(options(VIRTUAL));
    for (name, kind) in [
        ("c", 0o020_000),
        ("b", 0o060_000),
        ("f", 0o010_000),
        ("s", 0o140_000),
    ] {
        let made = guest.mknod(ROOT, name, kind | 0o640, 0x103).unwrap();
        assert_eq!(
            (made.mode, made.device, made.size),
            (kind | 0o640, 0x103, 0)
        );
        let host = std::fs::metadata(home.share().join(name)).unwrap();
        assert!(host.is_file() && !host.file_type().is_fifo());
        assert_eq!(host.mode(), 0o100_600);
    }
    assert_eq!(guest.mknod(ROOT, "d", 0o040_755, 0).unwrap_err(), EINVAL);
    for ownership in [Ownership::Passthrough, Ownership::Squash { uid: 1, gid: 1 }] {
        let guest = home.guest(options(ownership));
        for kind in [0o020_000, 0o060_000, 0o010_000, 0o140_000] {
            assert_eq!(guest.mknod(ROOT, "x", kind | 0o600, 0).unwrap_err(), EPERM);
        }
    }
    assert_eq!(guest.names(ROOT), ["b", "c", "f", "s"]);
}

#[test]
fn what_acts_when_opened_on_the_host_is_not_opened() {
    let home = Home::new();
    let fifo = home.share().join("fifo");
    let mode = rustix::fs::Mode::from_raw_mode(0o600);
    rustix::fs::mkfifoat(rustix::fs::CWD, &fifo, mode).unwrap();
    let guest = home.guest(options(VIRTUAL));
    let node = guest.lookup(ROOT, "fifo").unwrap().node;
    for flags in [0, 1, 2] {
        assert_eq!(guest.open(node, flags), Err(EPERM));
        assert_eq!(guest.create(ROOT, "fifo", flags, 0o600).unwrap_err(), EPERM);
    }
    assert_eq!(guest.setattr(node, 8, &[]).unwrap_err(), EINVAL);
}

#[test]
fn links_have_owners_that_last_as_long_as_the_broker() {
    let home = Home::new();
    let guest = home.guest(options(VIRTUAL));
    let link = entry(&guest.call(6, ROOT, b"link\0target\0").unwrap());
    assert_eq!(link.uid, 1000);
    let set = guest.setattr(link.node, UID, &[(AT_UID, 5)]).unwrap();
    assert_eq!((set.uid, set.mode), (5, 0o120_777));
    symlink("x", home.share().join("other")).unwrap();
    assert_eq!(guest.lookup(ROOT, "other").unwrap().uid, 1000);
}

#[test]
fn passthrough_shows_the_host_and_sets_permissions_alone() {
    let home = Home::new();
    let host = std::fs::metadata(home.share()).unwrap();
    let guest = home.guest(options(Ownership::Passthrough));
    let (file, _) = guest.create(ROOT, "file", 1, 0o6771).unwrap();
    assert_eq!((file.uid, file.mode), (host.uid(), 0o100_771));
    let set = guest
        .setattr(file.node, MODE, &[(AT_MODE, 0o7640)])
        .unwrap();
    assert_eq!(set.mode, 0o100_640);
    let mode = std::fs::metadata(home.share().join("file")).unwrap().mode();
    assert_eq!(mode, 0o100_640, "no set-id bit reaches the host");
    let other = host.uid() + 1;
    assert_eq!(
        guest
            .setattr(file.node, UID, &[(AT_UID, other)])
            .unwrap_err(),
        EPERM
    );

    let guest = home.guest(options(Ownership::Squash { uid: 33, gid: 34 }));
    let file = guest.lookup(ROOT, "file").unwrap();
    assert_eq!((file.uid, file.gid), (33, 34));
    let set = guest.setattr(file.node, UID, &[(AT_UID, 0)]).unwrap();
    assert_eq!(set.uid, 33, "without effect");
}

#[test]
fn only_attributes_of_users_are_shared_and_never_ours() {
    let home = Home::new();
    let guest = home.guest(options(VIRTUAL));
    let (file, _) = guest.create(ROOT, "file", 1, 0o644).unwrap();
    let set = |name: &str, value: &[u8]| {
        let body = body(&[value.len() as u32, 0], &[name.as_bytes(), b"\0", value]);
        guest.call(21, file.node, &body).map(drop)
    };
    let get = |name: &str, size: u32| {
        let body = body(&[size, 0], &[name.as_bytes(), b"\0"]);
        guest.call(22, file.node, &body)
    };
    let ours = "user.microsandbox.owner";
    for name in [
        "security.capability",
        "trusted.x",
        ours,
        "user.microsandbox.x",
        "other",
    ] {
        assert_eq!(set(name, b"1 0 0 104777 0"), Err(EPERM), "{name}");
        assert_eq!(get(name, 100), Err(ENODATA), "{name}");
        let removed = guest.call(24, file.node, &body(&[], &[name.as_bytes(), b"\0"]));
        assert_eq!(removed, Err(EPERM), "{name}");
    }
    assert_eq!(set("system.posix_acl_access", b"x"), Err(EOPNOTSUPP));
    set("user.a", b"one").unwrap();
    assert_eq!(get("user.a", 100), Ok(b"one".to_vec()));
    assert_eq!(get("user.a", 2), Err(34));
    assert_eq!(u32_at(&get("user.a", 0).unwrap(), 0), 3);
    let names = guest.call(23, file.node, &body(&[100, 0], &[]));
    assert_eq!(names, Ok(b"user.a\0".to_vec()));
    guest.call(24, file.node, b"user.a\0").unwrap();
    assert_eq!(get("user.a", 100), Err(ENODATA));
    assert_eq!(guest.stat(file.node).unwrap().uid, 1000);
}

#[test]
fn times_are_the_hosts() {
    let home = Home::new();
    let guest = home.guest(options(VIRTUAL));
    let (file, handle) = guest.create(ROOT, "file", 1, 0o644).unwrap();
    // FATTR_MTIME at 5 s and 6 ns; with FATTR_FH too.
    guest
        .setattr(file.node, 1 << 5, &[(10, 5), (15, 6)])
        .unwrap();
    let seen = || {
        let seen = std::fs::metadata(home.share().join("file")).unwrap();
        (seen.mtime(), seen.mtime_nsec())
    };
    assert_eq!(seen(), (5, 6));
    guest
        .setattr(file.node, 1 << 5 | 1 << 6, &[(2, handle as u32), (10, 7)])
        .unwrap();
    assert_eq!(seen(), (7, 0));
    let late = guest.setattr(file.node, 1 << 5, &[(15, 1_000_000_000)]);
    assert_eq!(late.unwrap_err(), EINVAL);
}

#[test]
fn files_with_other_names_are_guarded_if_asked() {
    let home = Home::new();
    std::fs::hard_link(home.outside().join("secret"), home.share().join("file")).unwrap();
    let guest = home.guest(Options {
        link_guard: true,
        ..Options::default()
    });
    let node = guest.lookup(ROOT, "file").unwrap().node;
    for flags in [1, 2, 0o1000] {
        assert_eq!(guest.open(node, flags), Err(EPERM));
    }
    assert_eq!(guest.setattr(node, 8, &[]).unwrap_err(), EPERM);
    let handle = guest.open(node, 0).unwrap();
    assert_eq!(
        guest.read(node, handle, 0, 10),
        Ok(b"canary".to_vec()),
        "to read is allowed"
    );
    home.intact();
}

#[test]
fn access_goes_by_what_is_shown() {
    let home = Home::new();
    let mut guest = home.guest(options(VIRTUAL));
    let (file, _) = guest.create(ROOT, "file", 1, 0o640).unwrap();
    let access = |guest: &Guest, mask| guest.call(34, file.node, &body(&[mask, 0], &[])).map(drop);
    assert_eq!((access(&guest, 6), access(&guest, 1)), (Ok(()), Err(13)));
    guest.uid = 2000;
    assert_eq!((access(&guest, 0), access(&guest, 4)), (Ok(()), Err(13)));
    guest.uid = 0;
    assert_eq!((access(&guest, 6), access(&guest, 1)), (Ok(()), Err(13)));
    assert_eq!(access(&guest, 8), Err(EINVAL));
}
