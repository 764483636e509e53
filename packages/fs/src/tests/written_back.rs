//! Writing back: the guest keeps what is written, and with it sizes, times and where a file ends.

use super::support::*;
use crate::broker::{Cache, Options};
use crate::quota::{Limits, Quota, BLOCK};
use crate::wire::init::WRITEBACK_CACHE;
use crate::wire::{MAX_DATA, ROOT};
use std::os::unix::fs::{MetadataExt, PermissionsExt};

/// Written from pages, at their own place.
const CACHED: u32 = 1;
const DIRECT_IO: u32 = 1;

fn always() -> Options {
    Options {
        cache: Cache::Always,
        ..Options::default()
    }
}

fn init(home: &Home, options: Options, minor: u32) -> Vec<u8> {
    let guest = Guest::new(&home.share(), options);
    let sent = body(&[7, minor, 1 << 17, u32::MAX], &[&[0; 48]]);
    guest.call(26, 0, &sent).unwrap()
}

fn write_pages(guest: &Guest, file: (u64, u64), offset: u64, data: &[u8]) -> Result<u32, i32> {
    let size = data.len() as u32;
    let words = [&long(file.1)[..], &long(offset), &[size, CACHED], &[0; 4]].concat();
    let answer = guest.call(16, file.0, &body(&words, &[data]))?;
    Ok(u32_at(&answer, 0))
}

/// Handle and flags.
fn open(guest: &Guest, node: u64, flags: u32) -> (u64, u32) {
    let answer = guest.call(14, node, &body(&[flags, 0], &[])).unwrap();
    (u64_at(&answer, 0), u32_at(&answer, 8))
}

#[test]
fn only_where_nobody_else_changes_anything_and_close_waits() {
    let home = Home::new();
    for (cache, read_only, watch, minor, expected) in [
        (Cache::Always, false, false, 38, true),
        (Cache::Always, false, false, 36, true),
        (Cache::Always, false, false, 35, false),
        (Cache::Always, true, false, 38, false),
        (Cache::Always, false, true, 38, false),
        (Cache::Auto, false, false, 38, false),
        (Cache::None, false, false, 38, false),
    ] {
        let options = Options {
            cache,
            read_only,
            watch,
            ..Options::default()
        };
        let answer = init(&home, options, minor);
        let granted = u32_at(&answer, 12) & WRITEBACK_CACHE != 0;
        assert_eq!(granted, expected, "{options:?} {minor}");
        assert_eq!(u32_at(&answer, 8), MAX_DATA, "read ahead");
    }
    let guest = Guest::new(&home.share(), always());
    let without = body(&[7, 38, 0, !WRITEBACK_CACHE], &[&[0; 48]]);
    let answer = guest.call(26, 0, &without).unwrap();
    assert_eq!(u32_at(&answer, 12) & WRITEBACK_CACHE, 0, "not asked for");
    let (file, handle) = guest.create(ROOT, "file", 1, 0o644).unwrap();
    assert_eq!(guest.read(file.node, handle, 0, 1), Err(EBADF));
}

#[test]
fn what_is_opened_to_write_can_be_read_and_the_end_is_where_the_guest_says() {
    let home = Home::new();
    let guest = home.guest(always());
    let path = home.share().join("file");
    let (file, handle) = guest.create(ROOT, "file", 1, 0o644).unwrap();
    guest.write(file.node, handle, 0, b"one, two").unwrap();
    assert_eq!(guest.read(file.node, handle, 0, 3), Ok(b"one".to_vec()));
    guest.release(file.node, handle).unwrap();
    for append in [0o2001, 0o2002] {
        let (handle, _) = open(&guest, file.node, append);
        guest.write(file.node, handle, 5, b"TWO").unwrap();
        assert_eq!(guest.read(file.node, handle, 5, 3), Ok(b"TWO".to_vec()));
    }
    assert_eq!(std::fs::read(&path).unwrap(), b"one, TWO");
    let (_, handle) = guest.create(ROOT, "file", 0o2001, 0o644).unwrap();
    guest.write(file.node, handle, 0, b"ONE").unwrap();
    assert_eq!(std::fs::read(&path).unwrap(), b"ONE, TWO");
    let (handle, _) = open(&guest, file.node, 0);
    assert_eq!(guest.write(file.node, handle, 0, b"x"), Err(EBADF));
    // Data that is not written back yet is data: the guest is to take all of the file for it.
    let seek = [&long(handle)[..], &[0, 0, 3, 0]].concat();
    assert_eq!(guest.call(46, file.node, &body(&seek, &[])), Err(ENOSYS));
    // One that the host lets nobody read is written without the guest's pages; root may read everything.
    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o200)).unwrap();
    let readable = std::fs::File::open(&path).is_ok();
    let (handle, flags) = open(&guest, file.node, 1);
    assert_eq!(flags & DIRECT_IO != 0, !readable);
    guest.write(file.node, handle, 0, b"1").unwrap();
}

#[test]
fn times_are_those_of_the_guest() {
    let home = Home::new();
    let guest = home.guest(always());
    let (file, handle) = guest.create(ROOT, "file", 1, 0o644).unwrap();
    guest.write(file.node, handle, 0, b"text").unwrap();
    // FATTR_MTIME, FATTR_FH and FATTR_CTIME: handle, modification in seconds and nanoseconds.
    let [low, high] = long(handle);
    let set = [(2, low), (3, high), (10, 1_000_000), (15, 5)];
    let link = home.share().join("link");
    std::fs::hard_link(home.share().join("file"), &link).unwrap();
    guest.unlink(ROOT, "file").unwrap();
    let valid = 1 << 5 | 1 << 6 | 1 << 10;
    assert_eq!(guest.setattr(file.node, valid, &set).unwrap().size, 4);
    let found = std::fs::metadata(link).unwrap();
    assert_eq!((found.mtime(), found.mtime_nsec()), (1_000_000, 5));
}

#[test]
fn pages_are_written_as_a_whole_or_their_loss_is_told() {
    let home = Home::new();
    let mut guest = Guest::new(&home.share(), always());
    let limits = Limits {
        bytes: 4 * BLOCK,
        names: 10,
    };
    guest.limit(Quota::new(limits, None).unwrap());
    guest.init();
    let (entry, handle) = guest.create(ROOT, "file", 1, 0o644).unwrap();
    let file = (entry.node, handle);
    assert_eq!(write_pages(&guest, file, 0, &[1; 8192]), Ok(8192));
    // A kernel believes that all of it is there, if it is told of no error; of errors close(2) knows ENOSPC.
    assert_eq!(write_pages(&guest, file, 8192, &[2; 12288]), Err(ENOSPC));
    let size = || std::fs::metadata(home.share().join("file")).unwrap().len();
    assert_eq!(size(), 4 * BLOCK, "what fits is there");
    assert_eq!(write_pages(&guest, file, 4 * BLOCK, &[3]), Err(ENOSPC));
    assert_eq!(write_pages(&guest, file, 0, &[4; 16384]), Ok(16384));
    let sync = [&long(handle)[..], &[0, 0]].concat();
    guest.call(20, file.0, &body(&sync, &[])).unwrap();
    assert_eq!(size(), 4 * BLOCK);
    assert_eq!(guest.broker.counted().unwrap(), Some((4 * BLOCK, 1)));
}
