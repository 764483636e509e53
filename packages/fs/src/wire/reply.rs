//! What is answered: each function appends one structure of the protocol.

use super::OUT_HEADER;
use rustix::io::Errno;
use std::time::Duration;

/// `struct fuse_attr`, with times in seconds and nanoseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Attributes {
    pub inode: u64,
    pub size: u64,
    pub blocks: u64,
    pub accessed: (i64, u32),
    pub modified: (i64, u32),
    pub changed: (i64, u32),
    /// With the bits of the type.
    pub mode: u32,
    pub links: u32,
    pub uid: u32,
    pub gid: u32,
    /// As Linux packs it in 32 bits.
    pub device: u32,
    pub block_size: u32,
}

/// Makes room for the header.
pub fn begin(out: &mut Vec<u8>) {
    out.clear();
    out.resize(OUT_HEADER, 0);
}

/// Writes the header of what was appended; an error has nothing after it.
pub fn finish(out: &mut Vec<u8>, unique: u64, result: Result<(), Errno>) {
    let error = match result {
        Ok(()) => 0,
        Err(errno) => {
            out.truncate(OUT_HEADER);
            // A guest takes 1 to 511; what else a system call said is an error all the same.
            match errno.raw_os_error() {
                known @ 1..=511 => -known,
                _ => -Errno::IO.raw_os_error(),
            }
        }
    };
    let length = out.len() as u32;
    out[..4].copy_from_slice(&length.to_le_bytes());
    out[4..8].copy_from_slice(&error.to_le_bytes());
    out[8..16].copy_from_slice(&unique.to_le_bytes());
}

/// Makes room for a message that is no answer, behind one that is. Returns where it begins.
pub fn begin_another(out: &mut Vec<u8>) -> usize {
    let start = out.len();
    out.resize(start + OUT_HEADER, 0);
    start
}

/// Writes the header of what was appended from `start` on: an error that no answer has, and the number 0.
pub fn finish_another(out: &mut [u8], start: usize, error: i32) {
    let message = &mut out[start..];
    let length = message.len() as u32;
    message[..4].copy_from_slice(&length.to_le_bytes());
    message[4..8].copy_from_slice(&error.to_le_bytes());
}

pub fn u16(out: &mut Vec<u8>, value: u16) {
    out.extend_from_slice(&value.to_le_bytes());
}

pub fn u32(out: &mut Vec<u8>, value: u32) {
    out.extend_from_slice(&value.to_le_bytes());
}

pub fn u64(out: &mut Vec<u8>, value: u64) {
    out.extend_from_slice(&value.to_le_bytes());
}

fn attributes(out: &mut Vec<u8>, of: &Attributes) {
    for value in [of.inode, of.size, of.blocks] {
        u64(out, value);
    }
    let times = [of.accessed, of.modified, of.changed];
    for (seconds, _) in times {
        u64(out, seconds as u64);
    }
    for (_, nanoseconds) in times {
        u32(out, nanoseconds);
    }
    for value in [
        of.mode,
        of.links,
        of.uid,
        of.gid,
        of.device,
        of.block_size,
        0,
    ] {
        u32(out, value);
    }
}

/// `struct fuse_attr_out`.
pub fn attributes_for(out: &mut Vec<u8>, of: &Attributes, valid: Duration) {
    u64(out, valid.as_secs());
    u32(out, valid.subsec_nanos());
    u32(out, 0);
    attributes(out, of);
}

/// `struct fuse_entry_out`. Node 0 is none: nothing has that name for as long as `valid`.
pub fn entry(out: &mut Vec<u8>, node: u64, of: &Attributes, valid: Duration) {
    u64(out, node);
    // Nodes are never used again, so that each has one generation.
    u64(out, 0);
    u64(out, valid.as_secs());
    u64(out, valid.as_secs());
    u32(out, valid.subsec_nanos());
    u32(out, valid.subsec_nanos());
    attributes(out, of);
}

/// Bytes of a `struct fuse_entry_out`.
pub const ENTRY: usize = 128;

/// Bytes of a `struct fuse_dirent` for a name of `length` bytes.
pub fn dirent_size(length: usize) -> usize {
    (24 + length).next_multiple_of(8)
}

/// `struct fuse_dirent`. `kind` is a DT_ number, `next` the offset that goes on after it.
pub fn dirent(out: &mut Vec<u8>, inode: u64, next: u64, kind: u32, name: &[u8]) {
    let end = out.len() + dirent_size(name.len());
    u64(out, inode);
    u64(out, next);
    u32(out, name.len() as u32);
    u32(out, kind);
    out.extend_from_slice(name);
    out.resize(end, 0);
}

/// `struct fuse_open_out`.
pub fn opened(out: &mut Vec<u8>, handle: u64, flags: u32) {
    u64(out, handle);
    u32(out, flags);
    u32(out, 0);
}
