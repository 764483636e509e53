//! What takes one path and few calls.

use std::ffi::CString;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;

use super::record::{Entry, Record, Writer};
use super::unpack::open_directory;
use super::{at, errno, not_regular, sys, Done};
use crate::channel::{Map, Value};

pub fn stat(path: &Path, follow: bool) -> Done<Map> {
    let found = match follow {
        true => fs::metadata(path),
        false => fs::symlink_metadata(path),
    };
    let found = found.map_err(at(path))?;
    let mut facts = Map::new()
        .with("mode", u64::from(found.mode()))
        .with("size", found.size())
        .with("seconds", found.mtime())
        .with("nanoseconds", found.mtime_nsec())
        .with("uid", u64::from(found.uid()))
        .with("gid", u64::from(found.gid()));
    if found.is_symlink() {
        let target = fs::read_link(path).map_err(at(path))?;
        facts = facts.with("target", Value::Bin(target.as_os_str().as_bytes().to_vec()));
    }
    Ok(facts)
}

pub fn list<W: Write>(path: &Path, mut out: Writer<W>) -> Done {
    let mut entries = sys::Entries::of(open_directory(path)?).map_err(at(path))?;
    while let Some(name) = entries.next().map_err(at(path))? {
        let found = match sys::stat(entries.as_raw_fd(), &name) {
            // It has gone since.
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => continue,
            found => found.map_err(at(path))?,
        };
        let mut entry = Entry::of(&found, name.to_bytes());
        if found.st_mode & libc::S_IFMT == libc::S_IFLNK {
            entry.target = sys::read_link(entries.as_raw_fd(), &name).unwrap_or_default();
        }
        out.write(&Record::Item(entry)).map_err(at(path))?;
    }
    out.write(&Record::End).map_err(at(path))
}

pub fn mkdir(path: &Path, parents: bool) -> Done {
    match parents {
        true => fs::create_dir_all(path),
        false => fs::create_dir(path),
    }
    .map_err(at(path))
}

pub fn remove(path: &Path, recursive: bool) -> Done {
    let found = fs::symlink_metadata(path).map_err(at(path))?;
    if !found.is_dir() {
        return fs::remove_file(path).map_err(at(path));
    }
    if path.file_name().is_none() {
        // F28: `/`, or a path that ends in `..`.
        return Err(errno(path, libc::EBUSY));
    }
    match recursive {
        true => fs::remove_dir_all(path),
        false => fs::remove_dir(path),
    }
    .map_err(at(path))
}

pub fn rename(path: &Path, to: &Path) -> Done {
    fs::rename(path, to).map_err(at(path))
}

pub fn chmod(path: &Path, mode: u32) -> Done {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).map_err(at(path))
}

pub fn chown(path: &Path, uid: u32, gid: u32) -> Done {
    let name = CString::new(path.as_os_str().as_bytes()).map_err(|_| errno(path, libc::EINVAL))?;
    // SAFETY: `name` is a valid C string for the whole call.
    let result = unsafe { libc::chown(name.as_ptr(), uid, gid) };
    crate::sys::check(result).map(drop).map_err(at(path))
}

/// The content of a regular file, as it is, until its end.
pub fn read(path: &Path, mut out: File) -> Done {
    let mut file = File::options()
        .read(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
        .open(path)
        .map_err(at(path))?;
    let found = file.metadata().map_err(at(path))?;
    if found.is_dir() {
        return Err(errno(path, libc::EISDIR));
    }
    if !found.is_file() {
        // A device or a FIFO may have no end.
        return Err(not_regular(path));
    }
    let mut buffer = vec![0; 64 << 10];
    loop {
        match file.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(count) => out.write_all(&buffer[..count]).map_err(at(path))?,
            // A file of /proc that waits for news: this is all for now.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
            Err(error) => return Err(at(path)(error)),
        }
    }
}
