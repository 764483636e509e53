//! The `patch` method: one change to the root before anything of the image runs.
//!
//! Links of the image are followed inside its root, and never onto another file system: what is
//! written through one to /proc or /dev would not be a change to the root.

use std::ffi::{CString, OsStr};
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use crate::channel::{Invalid, Map};
use crate::sys::{self, c_bytes, fd, resolve};

/// Bytes of content in one request.
const DATA_MAX: usize = 1 << 20;
const PATH_MAX: usize = 4095;

/// What is to be done at a path.
#[derive(Debug, PartialEq, Eq)]
enum Change {
    Mkdir {
        mode: Option<u32>,
    },
    /// A new file; with `replace` also one that is there.
    Write {
        data: Vec<u8>,
        mode: Option<u32>,
        replace: bool,
    },
    Append {
        data: Vec<u8>,
    },
    Symlink {
        target: Vec<u8>,
        replace: bool,
    },
    Remove,
    /// All that was done before is on the disk.
    Sync,
}

/// A checked request.
#[derive(Debug, PartialEq, Eq)]
pub struct Patch {
    path: Vec<u8>,
    change: Change,
}

impl Patch {
    pub fn parse(request: &Map) -> Result<Patch, Invalid> {
        let operation: &str = request.field("operation")?;
        if operation == "sync" {
            return Ok(Patch {
                path: Vec::new(),
                change: Change::Sync,
            });
        }
        let path: &[u8] = request.field("path")?;
        let last = path.rsplit(|byte| *byte == b'/').next();
        let climbs = path.split(|byte| *byte == b'/').any(|name| name == b"..");
        let ends_in_name = !matches!(last, None | Some(b"" | b"."));
        if !path.starts_with(b"/") || path.len() > PATH_MAX || climbs || !ends_in_name {
            return Err(Invalid::new("`path` is not an absolute path to a name"));
        }
        let change = match operation {
            "mkdir" => Change::Mkdir {
                mode: mode(request)?,
            },
            "write" => Change::Write {
                data: data(request)?,
                mode: mode(request)?,
                replace: request.field("replace")?,
            },
            "append" => Change::Append {
                data: data(request)?,
            },
            "symlink" => Change::Symlink {
                target: request.field::<&[u8]>("target")?.to_vec(),
                replace: request.field("replace")?,
            },
            "remove" => Change::Remove,
            _ => return Err(Invalid::new("no such operation")),
        };
        Ok(Patch {
            path: path.to_vec(),
            change,
        })
    }

    pub fn apply(&self) -> io::Result<()> {
        self.change().map_err(|error| match error.raw_os_error() {
            Some(libc::EXDEV) => {
                io::Error::other("it is not in the root (but in /tmp, /proc, ...)")
            }
            _ => error,
        })
    }

    fn change(&self) -> io::Result<()> {
        match &self.change {
            Change::Mkdir { mode } => {
                let made = resolve::directory(&self.path, resolve::CONTAINED)?;
                set_mode(&resolve::path_of(&made), *mode)
            }
            Change::Write {
                data,
                mode,
                replace,
            } => {
                self.parent()?;
                let flags = if *replace { 0 } else { libc::O_EXCL };
                let mut file = self.file(libc::O_CREAT | flags)?;
                file.set_len(0)?;
                file.write_all(data)?;
                set_mode(&resolve::path_of(&file.into()), *mode)
            }
            Change::Append { data } => self.file(libc::O_APPEND)?.write_all(data),
            Change::Symlink { target, replace } => {
                let (parent, name) = self.parent()?;
                let target = c_bytes(target)?;
                if *replace && self.found().is_ok() {
                    self.remove()?;
                }
                // SAFETY: both are valid C strings for the whole call.
                sys::check(unsafe {
                    libc::symlinkat(target.as_ptr(), parent.as_raw_fd(), name.as_ptr())
                })?;
                Ok(())
            }
            Change::Remove => self.remove(),
            Change::Sync => {
                // SAFETY: takes nothing and cannot fail.
                unsafe { libc::sync() };
                Ok(())
            }
        }
    }

    /// The directory that the path is in, made if need be, and the name in it.
    fn parent(&self) -> io::Result<(OwnedFd, CString)> {
        let cut = self
            .path
            .iter()
            .rposition(|byte| *byte == b'/')
            .unwrap_or(0);
        let (directory, name) = self.path.split_at(cut);
        let parent = resolve::directory(directory, resolve::CONTAINED)?;
        Ok((parent, c_bytes(&name[1..])?))
    }

    /// The regular file, to write to.
    fn file(&self, flags: i32) -> io::Result<File> {
        // An image may have a FIFO there.
        let flags = flags | libc::O_WRONLY | libc::O_NONBLOCK | libc::O_NOCTTY;
        let file = File::from(self.open(flags, 0o644)?);
        match file.metadata()?.is_file() {
            true => Ok(file),
            false => Err(io::Error::other("it is not a regular file")),
        }
    }

    /// What has the name, if it is a link the link.
    fn found(&self) -> io::Result<OwnedFd> {
        self.open(libc::O_PATH | libc::O_NOFOLLOW, 0)
    }

    fn open(&self, flags: i32, mode: u32) -> io::Result<OwnedFd> {
        let root = fd::open(c"/", libc::O_PATH | libc::O_DIRECTORY)?;
        let path = c_bytes(&self.path)?;
        let creates = flags & libc::O_CREAT != 0;
        let mode = if creates { mode } else { 0 };
        resolve::open(root.as_raw_fd(), &path, flags, mode, resolve::CONTAINED)
    }

    fn remove(&self) -> io::Result<()> {
        self.found()?;
        let (parent, name) = self.parent()?;
        let path = Path::new(&resolve::path_of(&parent)).join(OsStr::from_bytes(name.to_bytes()));
        match fs::symlink_metadata(&path)?.is_dir() {
            true => fs::remove_dir_all(path),
            false => fs::remove_file(path),
        }
    }
}

fn set_mode(path: &str, mode: Option<u32>) -> io::Result<()> {
    match mode {
        Some(mode) => fs::set_permissions(path, fs::Permissions::from_mode(mode)),
        None => Ok(()),
    }
}

fn mode(request: &Map) -> Result<Option<u32>, Invalid> {
    match request.field::<Option<u64>>("mode")? {
        None => Ok(None),
        Some(mode) => match u32::try_from(mode) {
            Ok(mode) if mode <= 0o7777 => Ok(Some(mode)),
            _ => Err(Invalid::new("`mode` is not up to 07777")),
        },
    }
}

fn data(request: &Map) -> Result<Vec<u8>, Invalid> {
    let data: &[u8] = request.field("data")?;
    match data.len() <= DATA_MAX {
        true => Ok(data.to_vec()),
        false => Err(Invalid(format!("`data` has more than {DATA_MAX} bytes"))),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)] // A failed test should say where.
    use super::*;
    use crate::channel::Value;

    fn parse(path: &[u8], operation: &str) -> Result<Patch, Invalid> {
        Patch::parse(
            &Map::new()
                .with("path", Value::Bin(path.to_vec()))
                .with("operation", operation)
                .with("mode", 0o600u64)
                .with("data", Value::Bin(b"x".to_vec()))
                .with("replace", false),
        )
    }

    #[test]
    fn a_patch_says_where_and_what() {
        assert_eq!(
            parse(b"/etc/motd", "write").unwrap().change,
            Change::Write {
                data: b"x".to_vec(),
                mode: Some(0o600),
                replace: false
            }
        );
        assert_eq!(
            parse(b"/etc/motd", "remove").unwrap().change,
            Change::Remove
        );
    }

    #[test]
    fn a_path_is_absolute_and_ends_in_a_name() {
        for path in [
            &b""[..],
            b"/",
            b"etc",
            b"/etc/",
            b"/etc/.",
            b"/etc/..",
            b"/../x",
        ] {
            assert!(parse(path, "write").is_err(), "{path:?}");
        }
        assert!(parse(b"/x", "chmod").is_err());
        assert!(parse(&[b"/".as_slice(), &[b'a'; PATH_MAX]].concat(), "write").is_err());
    }
}
