//! What programs have changed in an overlay: its upper, compared with what it lies on.
//!
//! Each change is an `Item`: `name` is `A` (added), `M` (modified) or `D` (deleted), `target` the path below the
//! overlay's root, and the rest the file's as it is now, or as it was if it has been deleted. In what was deleted
//! or replaced every file is named, those of a directory before it.

use std::collections::HashSet;
use std::ffi::{CStr, CString};
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;

use super::record::{Entry, Record, Writer};
use super::{at, errno, sys, Done, DEPTH_MAX};
use crate::configure::{image_device, upper_device};
use crate::sys::{c_string, fd, mount};

const DIRECTORY: libc::c_int = libc::O_RDONLY | libc::O_DIRECTORY | libc::O_NOFOLLOW;
/// Paths that a record has room for.
const PATH_MAX: usize = 4095;
/// Content that is compared at a time.
const PIECE: usize = 1 << 17;

/// Writes the changes of a workspace; None: of the root.
pub fn changes<W: Write>(workspace: Option<&str>, out: Writer<W>) -> Done {
    let failed = at(Path::new("/"));
    if workspace.is_some() {
        // What the guest's kernel believes of the host's files without asking. Where it cannot be had forgotten,
        // some are compared with what they were when they were last looked at.
        // Twice: the overlay holds some of them the first time.
        let _ = std::fs::write("/proc/sys/vm/drop_caches", "2");
        let _ = std::fs::write("/proc/sys/vm/drop_caches", "2");
    }
    let (upper, lower) = open(workspace).map_err(failed)?;
    let mut changes = Changes {
        out,
        path: Vec::new(),
    };
    changes.compare(upper, Some(lower), 0)?;
    changes.out.write(&Record::End).map_err(at("/"))
}

/// Upper and lower. The disks are mounted a second time, nowhere and read-only.
fn open(workspace: Option<&str>) -> io::Result<(OwnedFd, OwnedFd)> {
    let disk = mount::detached(&upper_device()?, "ext4", false)?;
    match workspace {
        None => {
            let upper = fd::open_at(disk.as_raw_fd(), c"upper", DIRECTORY, 0)?;
            let image = mount::detached(&image_device()?, "erofs", true)?;
            Ok((upper, fd::open_at(image.as_raw_fd(), c".", DIRECTORY, 0)?))
        }
        Some(id) => {
            let upper = c_string(&format!("workspaces/{id}/upper"))?;
            let upper = fd::open_at(disk.as_raw_fd(), &upper, DIRECTORY, 0)?;
            Ok((
                upper,
                fd::open(&c_string(&format!("/.msb/lower/{id}"))?, DIRECTORY)?,
            ))
        }
    }
}

struct Changes<W: Write> {
    out: Writer<W>,
    /// Of the directory at hand.
    path: Vec<u8>,
}

impl<W: Write> Changes<W> {
    fn tell(&mut self, change: &[u8], found: &libc::stat, name: &CStr) -> Done {
        let mut entry = Entry::of(found, change);
        entry.target.clone_from(&self.path);
        if !entry.target.is_empty() {
            entry.target.push(b'/');
        }
        entry.target.extend_from_slice(name.to_bytes());
        if entry.target.len() > PATH_MAX {
            return Err(self.failed(io::Error::from_raw_os_error(libc::ENAMETOOLONG)));
        }
        let written = self.out.write(&Record::Item(entry));
        written.map_err(|error| self.failed(error))
    }

    fn failed(&self, error: io::Error) -> super::Failure {
        use std::os::unix::ffi::OsStrExt;
        at(Path::new("/").join(std::ffi::OsStr::from_bytes(&self.path)))(error)
    }

    /// What `act` does in the directory `name` of the one at hand.
    fn within(&mut self, name: &CStr, depth: usize, act: impl FnOnce(&mut Self) -> Done) -> Done {
        if depth > DEPTH_MAX {
            return Err(errno("/", libc::ENAMETOOLONG));
        }
        let before = self.path.len();
        if before > 0 {
            self.path.push(b'/');
        }
        self.path.extend_from_slice(name.to_bytes());
        act(self)?;
        self.path.truncate(before);
        Ok(())
    }

    /// `lower`: what shows through, if there is anything in this place.
    fn compare(&mut self, upper: OwnedFd, lower: Option<OwnedFd>, depth: usize) -> Done {
        let opaque = is_opaque(&upper);
        let mut seen = HashSet::new();
        let mut entries = sys::Entries::of(upper).map_err(|error| self.failed(error))?;
        while let Some(name) = entries.next().map_err(|error| self.failed(error))? {
            self.entry(entries.as_raw_fd(), lower.as_ref(), &name, depth)?;
            if opaque {
                seen.insert(name);
            }
        }
        match lower {
            Some(lower) if opaque => self.all_gone(lower, &seen, depth),
            _ => Ok(()),
        }
    }

    fn entry(&mut self, upper: i32, lower: Option<&OwnedFd>, name: &CString, depth: usize) -> Done {
        let Some(now) = found(upper, name).map_err(|error| self.failed(error))? else {
            return Ok(()); // it has gone since
        };
        let before = match lower {
            Some(lower) => found(lower.as_raw_fd(), name).map_err(|error| self.failed(error))?,
            None => None,
        };
        if is_whiteout(&now) {
            return match (lower, before) {
                (Some(lower), Some(before)) => self.gone(lower, &before, name, depth),
                _ => Ok(()),
            };
        }
        match (lower, before) {
            (Some(lower), Some(before)) if is_directory(&now) && is_directory(&before) => {
                if !is_alike(&now, &before) {
                    self.tell(b"M", &now, name)?;
                }
                let open = |at: i32| fd::open_at(at, name, DIRECTORY, 0);
                let upper = open(upper).map_err(|error| self.failed(error))?;
                let lower = open(lower.as_raw_fd()).map_err(|error| self.failed(error))?;
                self.within(name, depth + 1, |all| {
                    all.compare(upper, Some(lower), depth + 1)
                })
            }
            (Some(lower), Some(before)) if !is_directory(&now) && !is_directory(&before) => {
                let same = is_alike(&now, &before)
                    && is_same(upper, lower.as_raw_fd(), name, &now, &before)
                        .map_err(|error| self.failed(error))?;
                if same {
                    Ok(())
                } else {
                    self.tell(b"M", &now, name)
                }
            }
            (lower, before) => {
                if let (Some(lower), Some(before)) = (lower, before) {
                    self.gone(lower, &before, name, depth)?;
                }
                self.tell(b"A", &now, name)?;
                if !is_directory(&now) {
                    return Ok(());
                }
                let below = fd::open_at(upper, name, DIRECTORY, 0);
                let below = below.map_err(|error| self.failed(error))?;
                self.within(name, depth + 1, |all| all.compare(below, None, depth + 1))
            }
        }
    }

    fn gone(&mut self, lower: &OwnedFd, before: &libc::stat, name: &CStr, depth: usize) -> Done {
        if is_directory(before) {
            let opened = fd::open_at(lower.as_raw_fd(), name, DIRECTORY, 0);
            let opened = opened.map_err(|error| self.failed(error))?;
            self.within(name, depth + 1, |all| {
                all.all_gone(opened, &HashSet::new(), depth + 1)
            })?;
        }
        self.tell(b"D", before, name)
    }

    /// Everything in `lower` but what is in `kept`.
    fn all_gone(&mut self, lower: OwnedFd, kept: &HashSet<CString>, depth: usize) -> Done {
        let hold = lower.try_clone().map_err(|error| self.failed(error))?;
        let mut entries = sys::Entries::of(lower).map_err(|error| self.failed(error))?;
        while let Some(name) = entries.next().map_err(|error| self.failed(error))? {
            if kept.contains(&name) {
                continue;
            }
            let before = found(hold.as_raw_fd(), &name).map_err(|error| self.failed(error))?;
            if let Some(before) = before {
                self.gone(&hold, &before, &name, depth)?;
            }
        }
        Ok(())
    }
}

fn found(at: i32, name: &CStr) -> io::Result<Option<libc::stat>> {
    match sys::stat(at, name) {
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
        found => found.map(Some),
    }
}

fn kind(found: &libc::stat) -> u32 {
    found.st_mode & libc::S_IFMT
}

fn is_directory(found: &libc::stat) -> bool {
    kind(found) == libc::S_IFDIR
}

/// overlayfs.rst, "whiteouts and opaque directories".
fn is_whiteout(found: &libc::stat) -> bool {
    kind(found) == libc::S_IFCHR && found.st_rdev == 0
}

fn is_opaque(directory: &OwnedFd) -> bool {
    let mut value = [0u8; 1];
    // SAFETY: the name is a valid C string, `value` writable for its length.
    let size = unsafe {
        libc::fgetxattr(
            directory.as_raw_fd(),
            c"trusted.overlay.opaque".as_ptr(),
            value.as_mut_ptr().cast(),
            value.len(),
        )
    };
    size == 1 && value == *b"y"
}

/// Kind, permissions and owner.
fn is_alike(now: &libc::stat, before: &libc::stat) -> bool {
    (now.st_mode, now.st_uid, now.st_gid) == (before.st_mode, before.st_uid, before.st_gid)
}

/// Of two of the same kind, which is not a directory.
fn is_same(
    upper: i32,
    lower: i32,
    name: &CStr,
    now: &libc::stat,
    before: &libc::stat,
) -> io::Result<bool> {
    match kind(now) {
        libc::S_IFLNK => Ok(sys::read_link(upper, name)? == sys::read_link(lower, name)?),
        libc::S_IFREG if now.st_size != before.st_size => Ok(false),
        libc::S_IFREG => {
            let flags = libc::O_RDONLY | libc::O_NOFOLLOW | libc::O_NONBLOCK;
            let open = |at: i32| fd::open_at(at, name, flags, 0).map(File::from);
            is_equal(open(upper)?, open(lower)?)
        }
        _ => Ok(now.st_rdev == before.st_rdev),
    }
}

fn is_equal(one: impl Read, other: impl Read) -> io::Result<bool> {
    let (mut one, mut other) = (one.take(u64::MAX), other.take(u64::MAX));
    let (mut first, mut second) = (Vec::with_capacity(PIECE), Vec::with_capacity(PIECE));
    loop {
        first.clear();
        second.clear();
        one.set_limit(PIECE as u64);
        other.set_limit(PIECE as u64);
        one.read_to_end(&mut first)?;
        other.read_to_end(&mut second)?;
        if first != second {
            return Ok(false);
        }
        if first.is_empty() {
            return Ok(true);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)] // A failed test should say where.
    use super::super::record::Reader;
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;

    fn told(place: &Path) -> Vec<String> {
        let mut stream = Vec::new();
        let open = |name| fs::File::open(place.join(name)).unwrap().into();
        let mut changes = Changes {
            out: Writer::new(&mut stream),
            path: Vec::new(),
        };
        changes
            .compare(open("upper"), Some(open("lower")), 0)
            .unwrap();
        changes.out.write(&Record::End).unwrap();
        drop(changes);
        let mut reader = Reader::new(stream.as_slice());
        let mut told = Vec::new();
        while let Ok(Record::Item(entry)) = reader.next() {
            let text = [&entry.name[..], b" ", &entry.target].concat();
            told.push(String::from_utf8(text).unwrap());
        }
        told.sort();
        told
    }

    #[test]
    fn changes_are_what_differs() {
        let place = std::env::temp_dir().join(format!("agentd-changes-{}", std::process::id()));
        for path in ["lower/a/b", "lower/gone/in", "upper/a/new", "upper/gone"] {
            fs::create_dir_all(place.join(path)).unwrap();
        }
        for (path, text) in [
            ("lower/same", "text"),
            ("upper/same", "text"),
            ("lower/a/changed", "text"),
            ("upper/a/changed", "TEXT"),
            ("lower/gone/in/file", ""),
            ("upper/a/new/file", ""),
            ("lower/untouched", ""),
        ] {
            fs::write(place.join(path), text).unwrap();
        }
        fs::write(place.join("upper/a/b"), "").unwrap();
        symlink("x", place.join("lower/link")).unwrap();
        symlink("y", place.join("upper/link")).unwrap();
        fs::remove_dir(place.join("upper/gone")).unwrap();
        fs::write(place.join("upper/gone"), "").unwrap();
        let expected = [
            "A a/b",
            "A a/new",
            "A a/new/file",
            "A gone",
            "D a/b",
            "D gone",
            "D gone/in",
            "D gone/in/file",
            "M a/changed",
            "M link",
        ];
        assert_eq!(told(&place), expected);
        fs::remove_dir_all(&place).unwrap();
    }

    #[test]
    fn content_is_compared_to_its_end() {
        let long = vec![7; 3 * PIECE + 1];
        assert!(is_equal(&long[..], &long[..]).unwrap());
        assert!(!is_equal(&long[..], &long[1..]).unwrap());
        assert!(!is_equal(&long[..], &[][..]).unwrap());
    }
}
