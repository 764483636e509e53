//! A tree of the guest's, as records.

use std::ffi::{CStr, CString, OsStr};
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use super::record::{Entry, Record, Writer, BYTES_MAX, HEADER};
use super::{at, errno, not_regular, sys, Done, DEPTH_MAX};
use crate::sys::fd;

/// Of a file that claims to be empty: those of /proc and /sys do, and some of them never end.
const UNSIZED_MAX: u64 = 16 << 20;

/// File systems with nothing to copy: proc, sysfs, cgroup2, debugfs, tracefs, securityfs, bpf, devpts,
/// configfs, pstore. Some of their files have no end, and reading others changes something.
const KERNELS: [u64; 10] = [
    0x9fa0,
    0x6265_6572,
    0x6367_7270,
    0x6462_6720,
    0x7472_6163,
    0x7363_6673,
    0xcafe_4a11,
    0x1cd1,
    0x6265_6570,
    0x6165_676c,
];

/// Writes the records of what is at `path`. A link there is not followed.
pub fn pack<W: Write>(path: &Path, out: Writer<W>) -> Done {
    let name = CString::new(path.as_os_str().as_bytes()).map_err(|_| errno(path, libc::EINVAL))?;
    let mut pack = Pack {
        out,
        path: path.to_owned(),
        buffer: vec![0; HEADER + BYTES_MAX],
    };
    pack.entry(libc::AT_FDCWD, &name, None, 0)?;
    pack.write(&Record::End)
}

struct Pack<W: Write> {
    out: Writer<W>,
    /// Of the entry at hand.
    path: PathBuf,
    buffer: Vec<u8>,
}

impl<W: Write> Pack<W> {
    fn write(&mut self, record: &Record) -> Done {
        self.out.write(record).map_err(at(&self.path))
    }

    /// `device`: that of the directory it is in; None for the one that is copied.
    fn entry(&mut self, dir: RawFd, name: &CStr, device: Option<u64>, depth: usize) -> Done {
        let found = match sys::stat(dir, name) {
            // The tree is alive: what has gone since its directory was read is not copied.
            Err(error) if device.is_some() && error.raw_os_error() == Some(libc::ENOENT) => {
                return Ok(())
            }
            found => found.map_err(at(&self.path))?,
        };
        let shown = if device.is_some() {
            name.to_bytes()
        } else {
            b""
        };
        let mut entry = Entry::of(&found, shown);
        match found.st_mode & libc::S_IFMT {
            libc::S_IFDIR => self.directory(dir, name, entry, device, depth),
            libc::S_IFREG => self.file(dir, name, entry),
            libc::S_IFLNK => {
                entry.target = sys::read_link(dir, name).map_err(at(&self.path))?;
                self.write(&Record::Link(entry))
            }
            _ if device.is_none() => Err(not_regular(&self.path)),
            _ => self.write(&Record::Skipped(entry)),
        }
    }

    fn directory(
        &mut self,
        dir: RawFd,
        name: &CStr,
        entry: Entry,
        device: Option<u64>,
        depth: usize,
    ) -> Done {
        if depth > DEPTH_MAX {
            return Err(errno(&self.path, libc::ENAMETOOLONG));
        }
        let flags = libc::O_RDONLY | libc::O_DIRECTORY | libc::O_NOFOLLOW;
        let opened = fd::open_at(dir, name, flags, 0).map_err(at(&self.path))?;
        let found = sys::stat_open(opened.as_raw_fd()).map_err(at(&self.path))?;
        if device.is_some_and(|device| device != found.st_dev) {
            let kind = sys::filesystem(opened.as_raw_fd()).map_err(at(&self.path))?;
            if KERNELS.contains(&kind) {
                return self.write(&Record::Skipped(entry));
            }
        }
        self.write(&Record::Directory(entry))?;
        let mut entries = sys::Entries::of(opened).map_err(at(&self.path))?;
        while let Some(name) = entries.next().map_err(at(&self.path))? {
            self.path.push(OsStr::from_bytes(name.to_bytes()));
            self.entry(entries.as_raw_fd(), &name, Some(found.st_dev), depth + 1)?;
            self.path.pop();
        }
        self.write(&Record::Up)
    }

    fn file(&mut self, dir: RawFd, name: &CStr, mut entry: Entry) -> Done {
        // O_NONBLOCK: it may have become a FIFO since, and some files of /proc wait for news.
        let flags = libc::O_RDONLY | libc::O_NOFOLLOW | libc::O_NONBLOCK | libc::O_NOCTTY;
        let mut file = File::from(fd::open_at(dir, name, flags, 0).map_err(at(&self.path))?);
        let found = sys::stat_open(file.as_raw_fd()).map_err(at(&self.path))?;
        if found.st_mode & libc::S_IFMT != libc::S_IFREG {
            return self.write(&Record::Skipped(entry));
        }
        entry.size = u64::try_from(found.st_size).unwrap_or(0);
        if entry.size == 0 {
            let content = unsized_content(&file).map_err(at(&self.path))?;
            entry.size = content.len() as u64;
            self.write(&Record::File(entry))?;
            for chunk in content.chunks(BYTES_MAX) {
                let piece = &mut self.buffer[..HEADER + chunk.len()];
                piece[HEADER..].copy_from_slice(chunk);
                self.out.content(piece).map_err(at(&self.path))?;
            }
            return self.write(&Record::FileEnd);
        }
        let size = entry.size;
        self.write(&Record::File(entry))?;
        let mut offset = 0;
        let dense = found.st_blocks as u64 * 512 >= size;
        // What is appended meanwhile is not copied: a file that grows as fast as it is read would have no end.
        while offset < size {
            let Some((data, end)) = extent(&file, offset, size, dense) else {
                self.write(&Record::Hole(size - offset))?;
                break;
            };
            if data > offset {
                self.write(&Record::Hole(data - offset))?;
                offset = data;
            }
            if !self.content(&mut file, &mut offset, end)? {
                break; // it has been truncated
            }
        }
        self.write(&Record::FileEnd)
    }

    /// Whether it reached `end`. The position is at `offset` already.
    fn content(&mut self, file: &mut File, offset: &mut u64, end: u64) -> Done<bool> {
        while *offset < end {
            let room = usize::try_from(end - *offset).unwrap_or(BYTES_MAX);
            let end = HEADER + room.min(BYTES_MAX);
            let count = file
                .read(&mut self.buffer[HEADER..end])
                .map_err(at(&self.path))?;
            if count == 0 {
                return Ok(false);
            }
            self.out
                .content(&mut self.buffer[..HEADER + count])
                .map_err(at(&self.path))?;
            *offset += count as u64;
        }
        Ok(true)
    }
}

/// The next data: where it begins and ends. The position is at its beginning then.
fn extent(file: &File, offset: u64, size: u64, dense: bool) -> Option<(u64, u64)> {
    if dense {
        return Some((offset, size));
    }
    let raw = file.as_raw_fd();
    let data = match sys::seek(raw, offset, libc::SEEK_DATA) {
        Ok(found) => found.filter(|data| *data < size)?,
        Err(_) => return Some((offset, size)), // a file system that does not know
    };
    let end = match sys::seek(raw, data, libc::SEEK_HOLE) {
        Ok(Some(end)) if end > data => end.min(size),
        _ => size,
    };
    let _ = sys::seek(raw, data, libc::SEEK_SET);
    Some((data, end))
}

fn unsized_content(file: &File) -> std::io::Result<Vec<u8>> {
    let mut content = Vec::new();
    match file.take(UNSIZED_MAX).read_to_end(&mut content) {
        // It would wait for more: then this is all for now.
        Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => Ok(content),
        read => read.map(|_| content),
    }
}
