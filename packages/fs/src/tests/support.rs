//! A guest's kernel that says what it is told to, and a directory of the host beside which nothing may change.

use crate::broker::{Broker, Options};
use crate::quota::Quota;
use crate::tests::ringed::machine::{Machine, HIGH_PRIORITY, REQUESTS, ROOM};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};

pub const ENOENT: i32 = 2;
pub const EIO: i32 = 5;
pub const EBADF: i32 = 9;
pub const EPERM: i32 = 1;
pub const EEXIST: i32 = 17;
pub const EINVAL: i32 = 22;
pub const EMFILE: i32 = 24;
pub const ENOSPC: i32 = 28;
pub const EROFS: i32 = 30;
pub const ENAMETOOLONG: i32 = 36;
pub const ENOSYS: i32 = 38;
pub const ELOOP: i32 = 40;
pub const ENODATA: i32 = 61;
pub const EOPNOTSUPP: i32 = 95;
pub const ESTALE: i32 = 116;

/// `HOME/share` is shared, `HOME/outside` is not and holds a canary.
pub struct Home(pub PathBuf);

impl Home {
    pub fn new() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let kind = if super::RINGED { "ringed" } else { "fs" };
        let name = format!("microsandbox-{kind}-{}-{number}", std::process::id());
        let home = Self(std::env::temp_dir().join(name));
        std::fs::create_dir_all(home.share()).unwrap();
        std::fs::create_dir(home.outside()).unwrap();
        std::fs::write(home.outside().join("secret"), "canary").unwrap();
        home
    }

    pub fn share(&self) -> PathBuf {
        self.0.join("share")
    }

    pub fn outside(&self) -> PathBuf {
        self.0.join("outside")
    }

    pub fn guest(&self, options: Options) -> Guest {
        let guest = Guest::new(&self.share(), options);
        guest.init();
        guest
    }

    /// Nothing was made, taken or written outside.
    pub fn intact(&self) {
        let names = |path: &Path| -> Vec<_> {
            let entries = std::fs::read_dir(path).unwrap();
            entries.map(|entry| entry.unwrap().file_name()).collect()
        };
        assert_eq!(names(&self.outside()), ["secret"]);
        let secret = std::fs::read(self.outside().join("secret")).unwrap();
        assert_eq!(secret, b"canary");
        assert_eq!(names(&self.0).len(), 2);
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

pub struct Guest {
    pub broker: Arc<Broker>,
    pub uid: u32,
    /// What carries its messages, where it is not the broker's own function.
    machine: OnceLock<Mutex<Machine>>,
}

/// The fields of an entry that tests look at.
#[derive(Debug)]
pub struct Entry {
    pub node: u64,
    pub size: u64,
    pub mode: u32,
    pub links: u32,
    pub uid: u32,
    pub gid: u32,
    pub device: u32,
}

pub fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
}

pub fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
}

/// `struct fuse_attr` at `at`.
fn attributes(node: u64, bytes: &[u8], at: usize) -> Entry {
    Entry {
        node,
        size: u64_at(bytes, at + 8),
        mode: u32_at(bytes, at + 60),
        links: u32_at(bytes, at + 64),
        uid: u32_at(bytes, at + 68),
        gid: u32_at(bytes, at + 72),
        device: u32_at(bytes, at + 76),
    }
}

pub fn entry(bytes: &[u8]) -> Entry {
    attributes(u64_at(bytes, 0), bytes, 40)
}

/// Bytes of a body: numbers of 32 bits, then one after the other what is given.
pub fn body(words: &[u32], texts: &[&[u8]]) -> Vec<u8> {
    let mut body: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
    body.extend(texts.concat());
    body
}

/// The two words of a number of 64 bits.
pub fn long(value: u64) -> [u32; 2] {
    [value as u32, (value >> 32) as u32]
}

pub fn message(opcode: u32, unique: u64, node: u64, uid: u32, body: &[u8]) -> Vec<u8> {
    let mut message = Vec::new();
    message.extend((40 + body.len() as u32).to_le_bytes());
    message.extend(opcode.to_le_bytes());
    message.extend(unique.to_le_bytes());
    message.extend(node.to_le_bytes());
    for word in [uid, uid, 1, 0] {
        message.extend(word.to_le_bytes());
    }
    message.extend(body);
    message
}

impl Guest {
    pub fn new(share: &Path, options: Options) -> Self {
        let broker = Broker::open(share, options).unwrap();
        Self {
            broker: Arc::new(broker),
            uid: 1000,
            machine: OnceLock::new(),
        }
    }

    /// Before it says anything.
    pub fn limit(&mut self, quota: Quota) {
        Arc::get_mut(&mut self.broker).unwrap().limit(quota);
    }

    fn say(&self, message: &[u8]) -> Vec<u8> {
        if super::RINGED {
            let machine = || Mutex::new(Machine::new(self.broker.clone()));
            let machine = self.machine.get_or_init(machine).lock().unwrap();
            let forgets = matches!(u32_at(message, 4), 2 | 42);
            return match forgets {
                true => machine.ask(HIGH_PRIORITY, message, 0),
                false => machine.ask(REQUESTS, message, ROOM),
            };
        }
        let mut out = Vec::new();
        self.broker.answer(message, &mut out).unwrap();
        out
    }

    /// What the broker answers after the header, or the number of its error. Nothing answered is empty.
    pub fn call(&self, opcode: u32, node: u64, body: &[u8]) -> Result<Vec<u8>, i32> {
        let mut out = self.say(&message(opcode, 7, node, self.uid, body));
        if out.is_empty() {
            return Ok(out);
        }
        assert_eq!(u32_at(&out, 0) as usize, out.len());
        assert_eq!(u64_at(&out, 8), 7);
        match u32_at(&out, 4) as i32 {
            0 => Ok(out.split_off(16)),
            error => {
                assert_eq!(out.len(), 16, "an error says no more");
                Err(-error)
            }
        }
    }

    pub fn init(&self) {
        let answer = self.call(26, 0, &body(&[7, 38, 1 << 17, u32::MAX], &[&[0; 48]]));
        let answer = answer.unwrap();
        assert_eq!(answer.len(), 64);
        assert_eq!((u32_at(&answer, 0), u32_at(&answer, 4)), (7, 38));
    }

    pub fn lookup(&self, parent: u64, name: &str) -> Result<Entry, i32> {
        let found = entry(&self.call(1, parent, &body(&[], &[name.as_bytes(), b"\0"]))?);
        match found.node {
            0 => Err(ENOENT),
            _ => Ok(found),
        }
    }

    pub fn forget(&self, node: u64, lookups: u64) {
        let silent = self.call(2, node, &lookups.to_le_bytes()).unwrap();
        assert!(silent.is_empty());
    }

    pub fn stat(&self, node: u64) -> Result<Entry, i32> {
        let answer = self.call(3, node, &[0; 16])?;
        assert_eq!(answer.len(), 104);
        Ok(attributes(node, &answer, 16))
    }

    pub fn mkdir(&self, parent: u64, name: &str, mode: u32) -> Result<Entry, i32> {
        let made = self.call(9, parent, &body(&[mode, 0], &[name.as_bytes(), b"\0"]))?;
        Ok(entry(&made))
    }

    pub fn mknod(&self, parent: u64, name: &str, mode: u32, device: u32) -> Result<Entry, i32> {
        let words = [mode, device, 0, 0];
        let made = self.call(8, parent, &body(&words, &[name.as_bytes(), b"\0"]))?;
        Ok(entry(&made))
    }

    /// The entry, and the handle.
    pub fn create(
        &self,
        parent: u64,
        name: &str,
        flags: u32,
        mode: u32,
    ) -> Result<(Entry, u64), i32> {
        let words = [flags, mode, 0, 0];
        let made = self.call(35, parent, &body(&words, &[name.as_bytes(), b"\0"]))?;
        assert_eq!(made.len(), 144);
        Ok((entry(&made), u64_at(&made, 128)))
    }

    pub fn open(&self, node: u64, flags: u32) -> Result<u64, i32> {
        Ok(u64_at(&self.call(14, node, &body(&[flags, 0], &[]))?, 0))
    }

    pub fn opendir(&self, node: u64) -> Result<u64, i32> {
        Ok(u64_at(&self.call(27, node, &[0; 8])?, 0))
    }

    pub fn release(&self, node: u64, handle: u64) -> Result<(), i32> {
        let words = [&long(handle)[..], &[0; 4]].concat();
        self.call(18, node, &body(&words, &[])).map(drop)
    }

    pub fn read(&self, node: u64, handle: u64, offset: u64, size: u32) -> Result<Vec<u8>, i32> {
        let words = [&long(handle)[..], &long(offset), &[size], &[0; 5]].concat();
        self.call(15, node, &body(&words, &[]))
    }

    pub fn write(&self, node: u64, handle: u64, offset: u64, data: &[u8]) -> Result<u32, i32> {
        let size = data.len() as u32;
        let words = [&long(handle)[..], &long(offset), &[size], &[0; 5]].concat();
        Ok(u32_at(&self.call(16, node, &body(&words, &[data]))?, 0))
    }

    pub fn unlink(&self, parent: u64, name: &str) -> Result<(), i32> {
        let body = body(&[], &[name.as_bytes(), b"\0"]);
        self.call(10, parent, &body).map(drop)
    }

    pub fn rename(&self, from: (u64, &str), to: (u64, &str), flags: u32) -> Result<(), i32> {
        let words = [&long(to.0)[..], &[flags, 0]].concat();
        let names: [&[u8]; 4] = [from.1.as_bytes(), b"\0", to.1.as_bytes(), b"\0"];
        self.call(45, from.0, &body(&words, &names)).map(drop)
    }

    pub fn setattr(&self, node: u64, valid: u32, set: &[(usize, u32)]) -> Result<Entry, i32> {
        let mut words = [0; 22];
        words[0] = valid;
        for (at, value) in set {
            words[*at] = *value;
        }
        Ok(attributes(
            node,
            &self.call(4, node, &body(&words, &[]))?,
            16,
        ))
    }

    /// Names with their offsets, from one place on; with `plus`, also their nodes.
    pub fn list(&self, node: u64, handle: u64, from: u64, size: u32, plus: bool) -> Listing {
        let words = [&long(handle)[..], &long(from), &[size], &[0; 5]].concat();
        let opcode = if plus { 44 } else { 28 };
        let bytes = self.call(opcode, node, &body(&words, &[]))?;
        assert!(bytes.len() <= size as usize);
        let (mut at, mut listed) = (0, Vec::new());
        while at < bytes.len() {
            let mut found = 0;
            if plus {
                found = u64_at(&bytes, at);
                at += 128;
            }
            let length = u32_at(&bytes, at + 16) as usize;
            let name = String::from_utf8(bytes[at + 24..at + 24 + length].to_vec()).unwrap();
            listed.push((name, u64_at(&bytes, at + 8), found));
            at += (24 + length).next_multiple_of(8);
        }
        Ok(listed)
    }

    /// All names but `.` and `..`, sorted.
    pub fn names(&self, node: u64) -> Vec<String> {
        let handle = self.opendir(node).unwrap();
        let (mut names, mut at) = (Vec::new(), 0);
        loop {
            let listed = self.list(node, handle, at, 4096, false).unwrap();
            let Some(last) = listed.last() else { break };
            at = last.1;
            names.extend(listed.into_iter().map(|(name, ..)| name));
        }
        names.retain(|name| name != "." && name != "..");
        names.sort();
        names
    }
}

/// Names, offsets after them, and nodes.
pub type Listing = Result<Vec<(String, u64, u64)>, i32>;
