//! Records, as a tree of the guest's: every name is used in the open directory it belongs to, and no link is followed.

use std::ffi::{CStr, CString, OsStr};
use std::fs;
use std::io::{self, Read};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use super::record::{malformed, Entry, Reader, Record};
use super::request::Place;
use super::temporary::{named, Temporary};
use super::{at, errno, not_regular, sys, Done, DEPTH_MAX};
use crate::sys::fd;

const PERMISSIONS: u32 = 0o777;
const ALL_BITS: u32 = 0o7777;

/// Puts the tree that comes to where `place` says, as cp(1) does: into a directory that is there, else
/// by the name that is given.
pub fn unpack<R: Read>(place: &Place, mut input: Reader<R>) -> Done {
    let first = input.next().map_err(at(&place.path))?;
    let is_directory = matches!(first, Record::Directory(_));
    let (base, name, path) = resolve(place, is_directory)?;
    let mut unpack = Unpack {
        input,
        path,
        mask: if place.special_bits {
            ALL_BITS
        } else {
            PERMISSIONS
        },
    };
    match (first, name) {
        (Record::Directory(_), None) => unpack.content(&base, 0)?,
        (record, Some(name)) => unpack.entry(base.as_raw_fd(), &name, record, 0)?,
        (_, None) => return Err(errno(&place.path, libc::EISDIR)),
    }
    match unpack.next()? {
        Record::End => Ok(()),
        _ => Err(unpack.broken("records after the tree")),
    }
}

/// The directory, and the name in it; None is the directory itself. And the path of both, for messages.
fn resolve(place: &Place, is_directory: bool) -> Done<(OwnedFd, Option<CString>, PathBuf)> {
    let path = &place.path;
    let (directory, name) = match fs::metadata(path) {
        Ok(found) if found.is_dir() => match &place.name {
            None if is_directory => return Ok((open_directory(path)?, None, path.clone())),
            None => return Err(errno(path, libc::EISDIR)),
            Some(name) => (path.clone(), OsStr::from_bytes(name).to_owned()),
        },
        Ok(_) if is_directory => return Err(errno(path, libc::ENOTDIR)),
        Ok(found) if !found.is_file() => return Err(not_regular(path)),
        // A link to a file: its target is what is replaced.
        Ok(_) => split(&fs::canonicalize(path).map_err(at(path))?)?,
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {
            if path.as_os_str().as_bytes().ends_with(b"/") && !is_directory {
                return Err(at(path)(error));
            }
            split(path)?
        }
        Err(error) => return Err(at(path)(error)),
    };
    let c_name = CString::new(name.as_bytes()).map_err(|_| errno(path, libc::EINVAL))?;
    let full = directory.join(&name);
    Ok((open_directory(&directory)?, Some(c_name), full))
}

pub fn split(path: &Path) -> Done<(PathBuf, std::ffi::OsString)> {
    match (path.parent(), path.file_name()) {
        (Some(parent), Some(name)) => Ok((parent.to_owned(), name.to_owned())),
        _ => Err(errno(path, libc::EINVAL)),
    }
}

pub fn open_directory(path: &Path) -> Done<OwnedFd> {
    let name = CString::new(path.as_os_str().as_bytes()).map_err(|_| errno(path, libc::EINVAL))?;
    fd::open(&name, libc::O_RDONLY | libc::O_DIRECTORY).map_err(at(path))
}

struct Unpack<R: Read> {
    input: Reader<R>,
    /// Of the entry at hand.
    path: PathBuf,
    mask: u32,
}

impl<R: Read> Unpack<R> {
    fn next(&mut self) -> Done<Record> {
        self.input.next().map_err(at(&self.path))
    }

    fn broken(&self, what: &str) -> super::Failure {
        at(&self.path)(malformed(what))
    }

    fn entry(&mut self, dir: RawFd, name: &CStr, record: Record, depth: usize) -> Done {
        match record {
            Record::Directory(entry) => self.directory(dir, name, &entry, depth),
            Record::File(entry) => self.file(dir, name, &entry),
            Record::Link(entry) => link(dir, name, &entry).map_err(at(&self.path)),
            Record::Skipped(_) => Ok(()),
            _ => Err(self.broken("content without a file")),
        }
    }

    fn directory(&mut self, dir: RawFd, name: &CStr, entry: &Entry, depth: usize) -> Done {
        if depth > DEPTH_MAX {
            return Err(errno(&self.path, libc::ENAMETOOLONG));
        }
        let made = match sys::make_directory(dir, name) {
            Ok(()) => true,
            Err(error) if error.raw_os_error() == Some(libc::EEXIST) => false,
            Err(error) => return Err(at(&self.path)(error)),
        };
        let flags = libc::O_RDONLY | libc::O_DIRECTORY | libc::O_NOFOLLOW;
        let opened = fd::open_at(dir, name, flags, 0).map_err(at(&self.path))?;
        self.content(&opened, depth)?;
        if made {
            let raw = opened.as_raw_fd();
            sys::set_mode(raw, entry.mode & self.mask)
                .and_then(|()| sys::set_time(raw, None, entry.seconds, entry.nanoseconds))
                .map_err(at(&self.path))?;
        }
        Ok(())
    }

    /// What is in a directory, up to its end.
    fn content(&mut self, directory: &OwnedFd, depth: usize) -> Done {
        loop {
            let record = self.next()?;
            let name = match &record {
                Record::Up => return Ok(()),
                Record::Directory(entry) | Record::File(entry) | Record::Link(entry) => &entry.name,
                Record::Skipped(_) => continue,
                _ => return Err(self.broken("content without a file")),
            };
            if name.is_empty() {
                return Err(self.broken("an entry without a name"));
            }
            let c_name =
                CString::new(name.as_slice()).map_err(|_| self.broken("a name that is none"))?;
            self.path.push(OsStr::from_bytes(name));
            self.entry(directory.as_raw_fd(), &c_name, record, depth + 1)?;
            self.path.pop();
        }
    }

    fn file(&mut self, dir: RawFd, name: &CStr, entry: &Entry) -> Done {
        let mut file = Temporary::new(dir).map_err(at(&self.path))?;
        fill(&mut self.input, &mut file).map_err(at(&self.path))?;
        let time = Some((entry.seconds, entry.nanoseconds));
        file.publish(name, entry.mode & self.mask, time)
            .map_err(at(&self.path))
    }
}

/// Writes content up to the end of the file.
pub fn fill<R: Read>(input: &mut Reader<R>, file: &mut Temporary) -> io::Result<()> {
    loop {
        match input.next()? {
            Record::Bytes => file.write(input.bytes())?,
            Record::Hole(size) => file.skip(size)?,
            Record::FileEnd => return Ok(()),
            _ => return Err(malformed("a file without its end")),
        }
    }
}

/// Made under another name, because it may have to replace something.
fn link(dir: RawFd, name: &CStr, entry: &Entry) -> io::Result<()> {
    let target = CString::new(entry.target.as_slice())?;
    let (temporary, ()) = named(|name| sys::make_link(dir, name, &target))?;
    let moved = sys::set_time(dir, Some(&temporary), entry.seconds, entry.nanoseconds)
        .and_then(|()| sys::rename(dir, &temporary, name));
    if moved.is_err() {
        let _ = sys::unlink(dir, &temporary);
    }
    moved
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)] // A failed test should say where.
    use super::super::pack::pack;
    use super::super::record::Writer;
    use super::*;
    use std::os::unix::fs::{symlink, MetadataExt, PermissionsExt};

    struct Scratch(PathBuf);

    impl Scratch {
        fn new(name: &str) -> Scratch {
            let path = std::env::temp_dir().join(format!("agentd-{}-{name}", std::process::id()));
            fs::create_dir(&path).unwrap();
            Scratch(path)
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    fn packed(path: &Path) -> Vec<u8> {
        let mut stream = Vec::new();
        pack(path, Writer::new(&mut stream)).unwrap();
        stream
    }

    fn place(path: PathBuf, name: Option<&[u8]>) -> Place {
        Place {
            path,
            name: name.map(<[u8]>::to_vec),
            special_bits: false,
        }
    }

    fn put(stream: &[u8], path: PathBuf, name: Option<&[u8]>) -> Done {
        unpack(&place(path, name), Reader::new(stream))
    }

    #[test]
    fn a_tree_comes_out_as_it_went_in() {
        let scratch = Scratch::new("tree");
        let source = scratch.0.join("source");
        fs::create_dir_all(source.join("deep/er")).unwrap();
        fs::write(source.join("deep/file"), b"content").unwrap();
        fs::set_permissions(source.join("deep/file"), fs::Permissions::from_mode(0o4751)).unwrap();
        fs::write(source.join("empty"), b"").unwrap();
        symlink("/etc/passwd", source.join("link")).unwrap();
        let sparse = fs::File::create(source.join("sparse")).unwrap();
        sparse.set_len(64 << 20).unwrap();
        std::os::unix::fs::FileExt::write_all_at(&sparse, b"middle", 32 << 20).unwrap();
        let stream = packed(&source);
        assert!(stream.len() < 1 << 20);

        put(&stream, scratch.0.join("copy"), Some(b"source")).unwrap();
        let copy = scratch.0.join("copy");
        let file = fs::metadata(copy.join("deep/file")).unwrap();
        assert_eq!(file.permissions().mode() & 0o7777, 0o751);
        let original = fs::metadata(source.join("deep/file")).unwrap();
        assert_eq!(file.modified().unwrap(), original.modified().unwrap());
        assert_eq!(fs::read(copy.join("deep/file")).unwrap(), b"content");
        assert_eq!(
            fs::read_link(copy.join("link")).unwrap(),
            Path::new("/etc/passwd")
        );
        let thin = fs::metadata(copy.join("sparse")).unwrap();
        assert_eq!((thin.len(), thin.blocks() < 1 << 12), (64 << 20, true));
        assert_eq!(
            fs::metadata(copy.join("deep")).unwrap().modified().unwrap(),
            fs::metadata(source.join("deep"))
                .unwrap()
                .modified()
                .unwrap()
        );
        // A directory that is there: into it, or its content into it.
        put(&stream, copy.clone(), Some(b"source")).unwrap();
        assert!(copy.join("source/deep/file").is_file());
        put(&stream, copy.join("deep"), None).unwrap();
        assert!(copy.join("deep/deep/file").is_file());
    }

    #[test]
    fn what_cannot_be_is_refused_and_leaves_nothing() {
        let scratch = Scratch::new("refused");
        let file = scratch.0.join("file");
        fs::write(&file, b"old").unwrap();
        fs::create_dir(scratch.0.join("dir")).unwrap();
        let stream = packed(&file);
        let tree = packed(&scratch.0.join("dir"));
        let errno = |done: Done| done.unwrap_err().error.raw_os_error();
        let into = |name: &str| scratch.0.join(name);
        assert_eq!(
            errno(put(&tree, file.clone(), Some(b"x"))),
            Some(libc::ENOTDIR)
        );
        assert_eq!(
            errno(put(&stream, into("none/x"), Some(b"x"))),
            Some(libc::ENOENT)
        );
        assert_eq!(
            errno(put(&stream, into("none/"), Some(b"x"))),
            Some(libc::ENOENT)
        );
        assert_eq!(
            errno(put(&stream, into("file/"), Some(b"x"))),
            Some(libc::ENOTDIR)
        );
        assert_eq!(
            errno(put(&stream, scratch.0.clone(), Some(b"dir"))),
            Some(libc::EISDIR)
        );
        // A device or a FIFO is not replaced.
        let fifo = into("fifo");
        let c_fifo = CString::new(fifo.as_os_str().as_bytes()).unwrap();
        // SAFETY: `c_fifo` is a valid C string.
        assert_eq!(unsafe { libc::mkfifo(c_fifo.as_ptr(), 0o600) }, 0);
        let refused = put(&stream, fifo.clone(), Some(b"x")).unwrap_err();
        assert_eq!(refused.error.kind(), io::ErrorKind::Unsupported);
        fs::remove_file(fifo).unwrap();
        // Cut anywhere, the old file is still there and no other.
        for length in 0..stream.len() {
            assert!(
                put(&stream[..length], file.clone(), Some(b"x")).is_err()
                    || length >= stream.len() - 5
            );
        }
        assert_eq!(fs::read_dir(&scratch.0).unwrap().count(), 2);
    }

    #[test]
    fn a_link_in_the_way_is_not_followed() {
        let scratch = Scratch::new("links");
        let outside = scratch.0.join("outside");
        fs::create_dir(&outside).unwrap();
        fs::create_dir_all(scratch.0.join("source/a")).unwrap();
        fs::write(scratch.0.join("source/a/f"), b"x").unwrap();
        let stream = packed(&scratch.0.join("source"));
        let copy = scratch.0.join("copy");
        fs::create_dir_all(&copy).unwrap();
        symlink(&outside, copy.join("a")).unwrap();
        let failure = put(&stream, copy, None).unwrap_err();
        assert!(matches!(
            failure.error.raw_os_error(),
            Some(libc::ENOTDIR | libc::ELOOP)
        ));
        assert_eq!(fs::read_dir(&outside).unwrap().count(), 0);
    }
}
