//! What a thread that serves can still do, and what it cannot, even if its resolution were led astray.

use super::support::*;
use crate::broker::Options;
use crate::confine;
use crate::wire::ROOT;
use std::fs;

const EACCES: i32 = 13;

/// The error of what is done by a confined thread.
fn error<T>(done: std::io::Result<T>) -> Option<i32> {
    done.err().map(|error| error.raw_os_error().unwrap())
}

#[test]
fn a_confined_thread_has_the_share_and_nothing_else() {
    if !confine::available() {
        return;
    }
    let home = Home::new();
    let guest = home.guest(Options::default());
    let act = || {
        confine::thread(&guest.broker).unwrap();
        let secret = home.outside().join("secret");
        assert_eq!(error(fs::read(&secret)), Some(EACCES));
        assert_eq!(
            error(fs::write(home.outside().join("new"), "")),
            Some(EACCES)
        );
        assert_eq!(error(fs::remove_file(&secret)), Some(EACCES));
        assert_eq!(error(fs::read_dir("/proc/self/fd")), Some(EACCES));
        assert_eq!(
            error(std::process::Command::new("/bin/true").status()),
            Some(EACCES)
        );
        let fifo = rustix::fs::mknodat(
            rustix::fs::CWD,
            home.share().join("fifo"),
            rustix::fs::FileType::Fifo,
            rustix::fs::Mode::RWXU,
            0,
        );
        assert_eq!(fifo, Err(rustix::io::Errno::ACCESS));

        // Everything that a guest may do goes on.
        let one = guest.mkdir(ROOT, "one", 0o755).unwrap().node;
        let two = guest.mkdir(ROOT, "two", 0o755).unwrap().node;
        let (file, handle) = guest.create(one, "file", 2, 0o644).unwrap();
        assert_eq!(guest.write(file.node, handle, 0, b"text"), Ok(4));
        guest.rename((one, "file"), (two, "moved"), 0).unwrap();
        guest
            .call(13, one, &body(&long(file.node), &[b"other\0"]))
            .unwrap();
        guest.call(6, ROOT, b"link\0/etc\0").unwrap();
        assert_eq!(guest.setattr(file.node, 8, &[(4, 2)]).unwrap().size, 2);
        assert_eq!(guest.stat(file.node).unwrap().links, 2);
        guest.unlink(one, "other").unwrap();
        assert_eq!(guest.names(two), ["moved"]);
        let reader = guest.open(file.node, 0).unwrap();
        assert_eq!(guest.read(file.node, reader, 0, 9), Ok(b"te".to_vec()));
    };
    std::thread::scope(|scope| scope.spawn(act).join().unwrap());
    home.intact();
}

#[test]
fn a_confined_thread_of_a_file_has_that_file() {
    if !confine::available() {
        return;
    }
    let home = Home::new();
    let path = home.share().join("file");
    fs::write(&path, "text").unwrap();
    fs::write(home.share().join("other"), "").unwrap();
    for read_only in [false, true] {
        let guest = Guest::new(
            &path,
            Options {
                read_only,
                ..Options::default()
            },
        );
        guest.init();
        let act = || {
            confine::thread(&guest.broker).unwrap();
            assert_eq!(error(fs::read(home.share().join("other"))), Some(EACCES));
            let reader = guest.open(ROOT, 0).unwrap();
            assert_eq!(guest.read(ROOT, reader, 0, 9), Ok(b"text".to_vec()));
            assert_eq!(guest.open(ROOT, 2).is_err(), read_only);
            assert_eq!(error(fs::write(&path, "text")), read_only.then_some(EACCES));
            assert_eq!(guest.stat(ROOT).unwrap().mode & 0o170_000, 0o100_000);
            assert_eq!(guest.lookup(ROOT, "other").unwrap_err(), 20);
            assert_eq!(guest.opendir(ROOT), Err(20));
        };
        std::thread::scope(|scope| scope.spawn(act).join().unwrap());
    }
}
