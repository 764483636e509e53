//! Whether a directory changed since it was packed, without reading any file.

use crate::error::Result;
use crate::pack::{names, open_directory, open_root, stat_at};
use crate::source::{Observer, Watch};
use rustix::fs::{self, FileType, Stat};
use sha2::{Digest, Sha256};
use std::ffi::CString;
use std::os::fd::{AsFd, OwnedFd};

/// SHA-256 over every entry's path and what `stat` says about it.
pub fn fingerprint(path: &[u8], observer: &mut Observer<'_>) -> Result<[u8; 32]> {
    let mut observer = observer;
    let mut watch = Watch::new(&mut observer);
    let root = open_root(path)?;
    let seen = fs::fstat(&root)?;
    let mut hash = Sha256::new();
    let mut entries = 0;
    add(&mut hash, 0, b"", &seen);
    let mut levels: Vec<(OwnedFd, std::vec::IntoIter<CString>)> = Vec::new();
    let first = names(root.as_fd())?.into_iter();
    levels.push((root, first));
    while let Some((directory, rest)) = levels.last_mut() {
        let Some(name) = rest.next() else {
            levels.pop();
            continue;
        };
        entries += 1;
        watch.check(entries)?;
        let blame = |error: crate::Error| error.at(name.to_bytes());
        let stat = stat_at(directory.as_fd(), &name).map_err(blame)?;
        let below = FileType::from_raw_mode(stat.st_mode) == FileType::Directory
            && stat.st_dev == seen.st_dev;
        let next = if below {
            let fd = open_directory(directory.as_fd(), &name, &stat).map_err(blame)?;
            let list = names(fd.as_fd())?.into_iter();
            Some((fd, list))
        } else {
            None
        };
        // Depth and name give the path: the walk is in order.
        add(&mut hash, levels.len() as u64, name.to_bytes(), &stat);
        levels.extend(next);
    }
    Ok(hash.finalize().into())
}

fn add(hash: &mut Sha256, depth: u64, name: &[u8], stat: &Stat) {
    let fields = [
        depth,
        name.len() as u64,
        u64::from(stat.st_mode),
        u64::from(stat.st_uid),
        u64::from(stat.st_gid),
        stat.st_size as u64,
        stat.st_mtime as u64,
        stat.st_mtime_nsec,
        stat.st_ctime as u64,
        stat.st_ctime_nsec,
        stat.st_ino,
    ];
    let mut record = [0; 88];
    for (slot, field) in record.chunks_exact_mut(8).zip(fields) {
        slot.copy_from_slice(&field.to_le_bytes());
    }
    hash.update(record);
    hash.update(name);
}
