//! Changes that the host makes, as agentd is told of them, and its requests, which change nothing.

use super::support::{body, entry, message, u32_at, u64_at, Guest, Home, ENOENT};
use crate::broker::Options;
use crate::serve::Session;
use crate::watch::{BATCH, GROUP};
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

const OPTIONS: fn() -> Options = || Options {
    watch: true,
    ..Options::default()
};

/// A guest's kernel and its agentd, behind a stream.
struct Machine {
    stream: UnixStream,
    /// Items of batches that were read while something else was waited for.
    told: Vec<(u8, u8, String)>,
    /// A batch had nothing that a test waits for, and agentd has not answered yet.
    owes: bool,
}

/// The file by whose changes a test knows that they are seen. It may have changed more often than was told then.
const READY: &str = "ready";

impl Machine {
    fn packet(&mut self) -> Vec<u8> {
        let mut packet = vec![0; 4];
        self.stream.read_exact(&mut packet).unwrap();
        packet.resize(u32_at(&packet, 0) as usize, 0);
        self.stream.read_exact(&mut packet[4..]).unwrap();
        packet
    }

    /// Asks as a program of `gid`, and returns the error or what is answered.
    fn ask(&mut self, gid: u32, opcode: u32, node: u64, body: &[u8]) -> Result<Vec<u8>, i32> {
        let mut asked = message(opcode, 7, node, 0, body);
        asked[28..32].copy_from_slice(&gid.to_le_bytes());
        self.stream.write_all(&asked).unwrap();
        loop {
            let packet = self.packet();
            if u64_at(&packet, 8) == 0 {
                self.note(&packet);
                continue;
            }
            return match u32_at(&packet, 4) as i32 {
                0 => Ok(packet[16..].to_vec()),
                error => Err(-error),
            };
        }
    }

    fn note(&mut self, packet: &[u8]) {
        assert_eq!(u32_at(packet, 4) as i32, BATCH);
        let mut at = 16;
        while at < packet.len() {
            let length = u16::from_le_bytes([packet[at + 2], packet[at + 3]]) as usize;
            let path = String::from_utf8(packet[at + 4..at + 4 + length].to_vec()).unwrap();
            if path != READY {
                self.told.push((packet[at], packet[at + 1], path));
            }
            at += 5 + length;
        }
        self.owes = self.told.is_empty();
    }

    /// The next batch.
    fn batch(&mut self) -> Vec<(u8, u8, String)> {
        while self.told.is_empty() {
            if std::mem::take(&mut self.owes) {
                self.ask(GROUP, 17, 1, &[]).unwrap();
                continue;
            }
            let packet = self.packet();
            self.note(&packet);
        }
        std::mem::take(&mut self.told)
    }

    fn lookup(&mut self, gid: u32, name: &str) -> u64 {
        let found = self.ask(gid, 1, 1, &body(&[], &[name.as_bytes(), b"\0"]));
        entry(&found.unwrap()).node
    }
}

/// Runs `act` with a machine that has the share, and waits for its end.
fn with_machine(home: &Home, act: impl FnOnce(&mut Machine)) {
    let guest = Guest::new(&home.share(), OPTIONS());
    let (ours, theirs) = UnixStream::pair().unwrap();
    ours.set_read_timeout(Some(Duration::from_secs(120)))
        .unwrap();
    let session = Arc::new(Session::new(theirs.into()).unwrap());
    std::thread::scope(|scope| {
        let serving = scope.spawn(|| session.run(&guest.broker, 2));
        let mut machine = Machine {
            stream: ours,
            told: Vec::new(),
            owes: false,
        };
        let init = body(&[7, 38, 1 << 17, u32::MAX], &[&[0; 48]]);
        machine.ask(0, 26, 0, &init).unwrap();
        // What is watched is watched soon: the first that is seen says that it is.
        let ready = home.share().join(READY);
        machine
            .stream
            .set_read_timeout(Some(Duration::from_millis(50)))
            .unwrap();
        let mut one = [0];
        loop {
            std::fs::write(&ready, "").unwrap();
            if rustix::net::recv(&machine.stream, &mut one, rustix::net::RecvFlags::PEEK).is_ok() {
                break;
            }
        }
        let patient = Some(Duration::from_secs(120));
        machine.stream.set_read_timeout(patient).unwrap();
        let first = machine.packet();
        machine.note(&first);
        machine.owes = false;
        machine.ask(GROUP, 17, 1, &[]).unwrap();
        act(&mut machine);
        drop(machine);
        serving.join().unwrap().unwrap();
    });
    home.intact();
}

#[test]
fn what_the_host_makes_is_told_and_made_again_without_effect() {
    let home = Home::new();
    with_machine(&home, |machine| {
        let file = home.share().join("file");
        std::fs::write(&file, "contents").unwrap();
        assert_eq!(machine.batch(), [(1, 8, "file".to_owned())]);
        // For programs it is there, for agentd it is not until it has made it.
        assert_ne!(machine.lookup(0, "file"), 0);
        let name = body(&[], &[b"file\0"]);
        assert_eq!(machine.ask(GROUP, 1, 1, &name), Err(ENOENT));
        let make = body(&[0o100_600, 0, 0, 0], &[b"file\0"]);
        let made = entry(&machine.ask(GROUP, 8, 1, &make).unwrap());
        assert_eq!(made.size, 8);
        assert_eq!(machine.lookup(GROUP, "file"), made.node);
        // Nor do a time stamp, and opening to write and truncate, touch it.
        let before = std::fs::metadata(&file).unwrap().modified().unwrap();
        let times = body(&[1 << 8 | 1 << 5], &[&[0; 84]]);
        machine.ask(GROUP, 4, made.node, &times).unwrap();
        let opened = machine.ask(GROUP, 14, made.node, &body(&[0o1001, 0], &[]));
        let handle = u64_at(&opened.unwrap(), 0);
        let close = body(&[handle as u32, (handle >> 32) as u32], &[&[0; 16]]);
        machine.ask(GROUP, 18, made.node, &close).unwrap();
        assert_eq!(
            std::fs::metadata(&file).unwrap().modified().unwrap(),
            before
        );
        assert_eq!(std::fs::read(&file).unwrap(), b"contents");
    });
}

#[test]
fn what_the_host_removes_is_there_for_agentd_until_it_has_removed_it() {
    let home = Home::new();
    std::fs::write(home.share().join("gone"), "").unwrap();
    std::fs::write(home.share().join("kept"), "").unwrap();
    with_machine(&home, |machine| {
        let known = machine.lookup(0, "gone");
        std::fs::remove_file(home.share().join("gone")).unwrap();
        assert_eq!(machine.batch(), [(4, 8, "gone".to_owned())]);
        assert_eq!(machine.lookup(0, "gone"), 0);
        let ghost = machine.lookup(GROUP, "gone");
        assert!(ghost != 0 && ghost != known);
        let name = body(&[], &[b"gone\0"]);
        machine.ask(GROUP, 10, 1, &name).unwrap();
        assert_eq!(machine.lookup(GROUP, "gone"), 0);
        // What is there it cannot remove.
        let kept = machine.ask(GROUP, 10, 1, &body(&[], &[b"kept\0"]));
        assert_eq!(kept, Err(ENOENT));
        assert!(home.share().join("kept").exists());
    });
}

#[test]
fn what_the_guest_does_itself_is_no_news() {
    let home = Home::new();
    with_machine(&home, |machine| {
        let make = body(&[0o102, 0o644, 0, 0], &[b"own\0"]);
        let made = machine.ask(0, 35, 1, &make).unwrap();
        let (node, handle) = (entry(&made).node, u64_at(&made, 128));
        let words = [handle as u32, (handle >> 32) as u32, 0, 0, 3, 0, 0, 0, 0, 0];
        machine.ask(0, 16, node, &body(&words, &[b"abc"])).unwrap();
        let rename = body(&[1, 0, 0, 0], &[b"own\0", b"moved\0"]);
        machine.ask(0, 45, 1, &rename).unwrap();
        let gone = body(&[0o100_644, 0, 0, 0], &[b"gone\0"]);
        machine.ask(0, 8, 1, &gone).unwrap();
        machine.ask(0, 10, 1, &body(&[], &[b"gone\0"])).unwrap();
        std::fs::write(home.share().join("host"), "").unwrap();
        assert_eq!(machine.batch(), [(1, 8, "host".to_owned())]);
    });
}

#[test]
fn what_was_moved_out_of_the_share_is_told_no_more() {
    let home = Home::new();
    let inner = home.share().join("inner");
    std::fs::create_dir(&inner).unwrap();
    std::fs::create_dir(home.share().join("other")).unwrap();
    with_machine(&home, |machine| {
        machine.lookup(0, "inner");
        let elsewhere = home.outside().join("inner");
        std::fs::rename(&inner, &elsewhere).unwrap();
        std::fs::write(elsewhere.join("private"), "").unwrap();
        assert_eq!(machine.batch(), [(4, 4, "inner".to_owned())]);
        machine.ask(GROUP, 17, 1, &[]).unwrap();
        std::fs::write(elsewhere.join("secret"), "").unwrap();
        std::fs::write(home.share().join("host"), "").unwrap();
        assert_eq!(machine.batch(), [(1, 8, "host".to_owned())]);
        std::fs::remove_dir_all(&elsewhere).unwrap();
    });
}
