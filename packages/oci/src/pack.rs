//! A host directory into a layer file, without ever leaving it.

use crate::blob::{Blob, Extent, Sparse};
use crate::convert::device;
use crate::erofs::write::{self, Identity};
use crate::error::{Code, Error, Result};
use crate::limits::Limits;
use crate::source::{Observer, Watch};
use crate::tree::{Address, Blocks, Id, Kind, Meta, Node, Tree};
use crate::xattr::{self, Xattrs};
use rustix::fs::{self, AtFlags, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;
use std::collections::HashMap;
use std::ffi::{CStr, CString, OsStr};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;

/// A packed directory.
#[derive(Debug)]
pub struct Packed {
    pub identity: [u8; 32],
    pub entries: u64,
    /// Bytes of file data read.
    pub bytes: u64,
    pub blocks: u32,
}

/// Opened directories are read without following a link at their end.
const DIRECTORY: OFlags = OFlags::RDONLY
    .union(OFlags::DIRECTORY)
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC);
/// `NONBLOCK`: if the file was exchanged for a fifo since, the open must not hang.
const FILE: OFlags = OFlags::RDONLY
    .union(OFlags::NOFOLLOW)
    .union(OFlags::NONBLOCK)
    .union(OFlags::CLOEXEC);

/// The descriptor that a walk begins with; only here may a symbolic link be followed.
pub fn open_root(path: &[u8]) -> Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(fs::open(OsStr::from_bytes(path), flags, Mode::empty())?)
}

/// Open a directory below `parent` and make sure that it is the one that was seen.
pub fn open_directory(parent: BorrowedFd<'_>, name: &CStr, seen: &Stat) -> Result<OwnedFd> {
    let fd = fs::openat(parent, name, DIRECTORY, Mode::empty()).map_err(moved)?;
    same(&fs::fstat(&fd)?, seen)?;
    Ok(fd)
}

/// Names in a directory, sorted: the order in which a file system lists them is not reproducible.
pub fn names(directory: BorrowedFd<'_>) -> Result<Vec<CString>> {
    let mut names = Vec::new();
    for entry in fs::Dir::read_from(directory)? {
        let entry = entry?;
        let name = entry.file_name();
        if !matches!(name.to_bytes(), b"." | b"..") {
            names.push(name.to_owned());
        }
    }
    names.sort();
    Ok(names)
}

pub fn stat_at(directory: BorrowedFd<'_>, name: &CStr) -> Result<Stat> {
    fs::statat(directory, name, AtFlags::SYMLINK_NOFOLLOW).map_err(moved)
}

fn changed() -> Error {
    Error::new(Code::Changed, "changed while it was read")
}

/// An entry that was listed a moment ago is gone or became something else.
fn moved(errno: Errno) -> Error {
    match errno {
        Errno::NOENT | Errno::LOOP | Errno::NOTDIR | Errno::NXIO => changed(),
        other => other.into(),
    }
}

fn same(now: &Stat, seen: &Stat) -> Result<()> {
    let identity = |s: &Stat| (s.st_dev, s.st_ino, s.st_mode);
    let content = |s: &Stat| {
        (
            s.st_size,
            s.st_mtime,
            s.st_mtime_nsec,
            s.st_ctime,
            s.st_ctime_nsec,
        )
    };
    if identity(now) != identity(seen) || content(now) != content(seen) {
        return Err(changed());
    }
    Ok(())
}

/// Pack the directory at `path` into the empty file `out`.
pub fn pack(
    path: &[u8],
    out: &File,
    limits: &Limits,
    observer: &mut Observer<'_>,
) -> Result<Packed> {
    let mut observer = observer;
    let root = open_root(path)?;
    let seen = fs::fstat(&root)?;
    let mut packer = Packer {
        tree: Tree::new(limits.clone()),
        blob: Blob::new(out, 1, true),
        watch: Watch::new(&mut observer),
        limits,
        device: seen.st_dev,
        links: HashMap::new(),
        path: Vec::new(),
        entries: 0,
        bytes: 0,
        buffer: vec![0; 1 << 18],
    };
    packer.walk(root, &seen)?;
    let (blocks, contents) = packer.blob.finish()?;
    let identity = Identity::OfContents(contents.unwrap_or_default());
    let written = write::write(out, &packer.tree, blocks, &[], identity)?;
    packer.watch.now(packer.bytes)?;
    Ok(Packed {
        identity: written.identity,
        entries: packer.entries,
        bytes: packer.bytes,
        blocks: written.blocks,
    })
}

struct Packer<'a> {
    tree: Tree,
    blob: Blob<'a>,
    watch: Watch<'a>,
    limits: &'a Limits,
    device: u64,
    /// Files with several names that were packed already.
    links: HashMap<u64, Id>,
    path: Vec<Vec<u8>>,
    entries: u64,
    bytes: u64,
    buffer: Vec<u8>,
}

/// A directory that is being walked.
struct Level {
    fd: OwnedFd,
    seen: Stat,
    names: std::vec::IntoIter<CString>,
}

impl Packer<'_> {
    fn walk(&mut self, root: OwnedFd, seen: &Stat) -> Result<()> {
        let xattrs = self.xattrs(format!("/proc/self/fd/{}", root.as_raw_fd()), true)?;
        self.tree.add_directory(&[], meta(seen), xattrs)?;
        let names = names(root.as_fd())?.into_iter();
        let seen = *seen;
        let mut levels = vec![Level {
            fd: root,
            seen,
            names,
        }];
        // One descriptor per level. A tree deeper than the descriptor limit is an OSError (EMFILE).
        while let Some(level) = levels.last_mut() {
            let Some(name) = level.names.next() else {
                // Entries that came or went since the listing show in the directory's times.
                same(&fs::fstat(&level.fd)?, &level.seen)
                    .map_err(|error| error.at(&self.path.join(&b'/')))?;
                levels.pop();
                self.path.pop();
                continue;
            };
            self.watch.check(self.bytes)?;
            self.path.push(name.to_bytes().to_vec());
            let below = self
                .entry(level.fd.as_fd(), &name)
                .map_err(|error| error.at(&self.path.join(&b'/')))?;
            match below {
                Some(level) => levels.push(level),
                None => {
                    self.path.pop();
                }
            }
        }
        Ok(())
    }

    /// Pack one entry; a directory is returned for the walk to go on in.
    fn entry(&mut self, parent: BorrowedFd<'_>, name: &CStr) -> Result<Option<Level>> {
        let path: Vec<Vec<u8>> = self.path.clone();
        let parts: Vec<&[u8]> = path.iter().map(Vec::as_slice).collect();
        let length = parts.iter().map(|part| part.len() as u64 + 1).sum::<u64>();
        if length > self.limits.max_path + 1 {
            return Err(Error::new(
                Code::PathTooLong,
                format!("path of {} bytes", length - 1),
            ));
        }
        let seen = stat_at(parent, name)?;
        let file_type = FileType::from_raw_mode(seen.st_mode);
        if file_type == FileType::Socket {
            return Ok(None);
        }
        self.entries += 1;
        let shared = seen.st_nlink > 1 && file_type != FileType::Directory;
        if let Some(&id) = self.links.get(&seen.st_ino).filter(|_| shared) {
            self.tree.link(&parts, id)?;
            return Ok(None);
        }
        if file_type == FileType::Directory {
            return self.directory(parent, name, &parts, &seen);
        }
        let kind = match file_type {
            FileType::RegularFile => self.file(parent, name, &seen)?,
            FileType::Symlink => {
                let target = fs::readlinkat(parent, name, Vec::new()).map_err(moved)?;
                Kind::Symlink(target.into_bytes().into())
            }
            FileType::Fifo => Kind::Fifo,
            kind @ (FileType::CharacterDevice | FileType::BlockDevice) => device(
                kind == FileType::BlockDevice,
                fs::major(seen.st_rdev),
                fs::minor(seen.st_rdev),
            )?,
            _ => return Err(Error::new(Code::Unsupported, "unknown file type")),
        };
        let xattrs = self.xattrs_at(parent, name)?;
        let node = Node {
            meta: meta(&seen),
            xattrs,
            kind,
        };
        let id = self.tree.add(&parts, node)?;
        if shared {
            self.links.insert(seen.st_ino, id);
        }
        Ok(None)
    }

    fn directory(
        &mut self,
        parent: BorrowedFd<'_>,
        name: &CStr,
        parts: &[&[u8]],
        seen: &Stat,
    ) -> Result<Option<Level>> {
        let xattrs = self.xattrs_at(parent, name)?;
        self.tree.add_directory(parts, meta(seen), xattrs)?;
        // Something else is mounted here: /proc, /sys, a bind mount of the host's.
        if seen.st_dev != self.device {
            return Ok(None);
        }
        let fd = open_directory(parent, name, seen)?;
        let names = names(fd.as_fd())?.into_iter();
        let seen = *seen;
        Ok(Some(Level { fd, seen, names }))
    }

    fn file(&mut self, parent: BorrowedFd<'_>, name: &CStr, seen: &Stat) -> Result<Kind> {
        let size = seen.st_size as u64;
        if size > self.limits.max_file_size {
            return Err(Error::new(
                Code::TooLarge,
                format!("file of {size} bytes (limit {})", self.limits.max_file_size),
            ));
        }
        let file: File = fs::openat(parent, name, FILE, Mode::empty())
            .map_err(moved)?
            .into();
        same(&fs::fstat(&file)?, seen)?;
        let extents = extents(&file, size)?;
        self.bytes += extents.iter().map(|extent| extent.len).sum::<u64>();
        if self.bytes > self.limits.max_size {
            return Err(Error::new(
                Code::TooLarge,
                format!("directory exceeds {} bytes", self.limits.max_size),
            ));
        }
        let start = self.blob.block()?;
        let blocks = match extents[..] {
            [] if size == 0 => Blocks::Empty,
            [Extent { offset: 0, len }] if len == size => {
                self.copy(&file, extents[0], None)?;
                self.blob.pad()?;
                Blocks::Run(Address {
                    device: 0,
                    block: start,
                })
            }
            _ => {
                let mut sparse = Sparse::new(size, &extents, start, |cost| self.tree.hold(cost))?;
                for &extent in &extents {
                    self.copy(&file, extent, Some(&mut sparse))?;
                }
                sparse.finish(&mut self.blob)?
            }
        };
        same(&fs::fstat(&file)?, seen)?;
        Ok(Kind::File { size, blocks })
    }

    fn copy(&mut self, file: &File, extent: Extent, mut sparse: Option<&mut Sparse>) -> Result<()> {
        let mut done = 0;
        while done < extent.len {
            let want = (extent.len - done).min(self.buffer.len() as u64) as usize;
            let offset = extent.offset + done;
            let count = match file.read_at(&mut self.buffer[..want], offset) {
                Ok(0) => return Err(changed()),
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {
                    self.watch.now(self.bytes)?;
                    continue;
                }
                Err(error) => return Err(error.into()),
            };
            let data = &self.buffer[..count];
            match sparse.as_deref_mut() {
                Some(sparse) => sparse.write(&mut self.blob, offset, data)?,
                None => self.blob.write(data)?,
            }
            done += count as u64;
            self.watch.check(self.bytes)?;
        }
        Ok(())
    }

    fn xattrs_at(&mut self, parent: BorrowedFd<'_>, name: &CStr) -> Result<u32> {
        // Attributes of links and devices can only be had by path; this one starts at an open directory
        // and is one component long, so nothing on the way can be exchanged.
        let mut path = format!("/proc/self/fd/{}/", parent.as_raw_fd()).into_bytes();
        path.extend_from_slice(name.to_bytes());
        self.xattrs(OsStr::from_bytes(&path), false)
    }

    fn xattrs(&mut self, path: impl AsRef<OsStr>, follow: bool) -> Result<u32> {
        let path = std::path::Path::new(path.as_ref());
        let list = |buffer: &mut [u8]| match follow {
            true => fs::listxattr(path, buffer),
            false => fs::llistxattr(path, buffer),
        };
        let Some(names) = grown(list)? else {
            return Ok(0);
        };
        let mut set = Xattrs::new();
        for name in names.split(|&b| b == 0).filter(|name| !name.is_empty()) {
            let name = CString::new(name).map_err(|_| changed())?;
            let get = |buffer: &mut [u8]| match follow {
                true => fs::getxattr(path, &name, buffer),
                false => fs::lgetxattr(path, &name, buffer),
            };
            if let Some(value) = grown(get)? {
                xattr::insert(&mut set, name.to_bytes(), &value)?;
            }
        }
        self.tree.intern(set)
    }
}

/// Call `read` with a buffer that is large enough; `None` where the file system has no such thing.
fn grown(read: impl Fn(&mut [u8]) -> rustix::io::Result<usize>) -> Result<Option<Vec<u8>>> {
    let mut buffer = vec![0; 256];
    loop {
        match read(&mut buffer) {
            Ok(len) => {
                buffer.truncate(len);
                return Ok(Some(buffer));
            }
            // Linux limits both lists and values to 64 KiB.
            Err(Errno::RANGE) if buffer.len() <= 1 << 16 => {
                let len = buffer.len() * 8;
                buffer.resize(len, 0);
            }
            Err(Errno::NOTSUP | Errno::NODATA) => return Ok(None),
            // Attributes that only their owner or root may read are not part of what this user sees.
            Err(Errno::PERM | Errno::ACCESS) => return Ok(None),
            Err(errno) => return Err(moved(errno)),
        }
    }
}

/// Where a file has data. File systems that cannot tell say: everywhere.
fn extents(file: &File, size: u64) -> Result<Vec<Extent>> {
    let mut extents = Vec::new();
    let mut at = 0;
    while at < size {
        let start = match fs::seek(file, fs::SeekFrom::Data(at)) {
            Ok(start) => start,
            Err(Errno::NXIO) => break,
            Err(Errno::INVAL) => at,
            Err(errno) => return Err(errno.into()),
        };
        let end = match fs::seek(file, fs::SeekFrom::Hole(start)) {
            Ok(end) => end.min(size),
            Err(Errno::INVAL) => size,
            Err(_) => return Err(changed()),
        };
        if start >= size || end <= start {
            break;
        }
        extents.push(Extent {
            offset: start,
            len: end - start,
        });
        at = end;
    }
    Ok(extents)
}

fn meta(stat: &Stat) -> Meta {
    Meta {
        mode: (stat.st_mode & 0o7777) as u16,
        uid: stat.st_uid,
        gid: stat.st_gid,
        mtime: stat.st_mtime,
        mtime_nsec: stat.st_mtime_nsec as u32,
    }
}
