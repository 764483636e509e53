//! What `files` is asked for, checked before a process is made for it.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use super::record::is_name;
use crate::channel::{Invalid, Map, Value};

/// Where a tree is put.
#[derive(Debug, PartialEq, Eq)]
pub struct Place {
    pub path: PathBuf,
    /// What the source is called, if `path` is a directory to put it into. None: what is in the
    /// source goes into `path` itself.
    pub name: Option<Vec<u8>>,
    /// Whether set-user-ID, set-group-ID and sticky bits are kept.
    pub special_bits: bool,
}

/// A checked request. Paths are absolute.
#[derive(Debug, PartialEq, Eq)]
pub enum Operation {
    Stat {
        path: PathBuf,
        follow: bool,
    },
    List {
        path: PathBuf,
    },
    Mkdir {
        path: PathBuf,
        parents: bool,
    },
    Remove {
        path: PathBuf,
        recursive: bool,
    },
    Rename {
        path: PathBuf,
        to: PathBuf,
    },
    Chmod {
        path: PathBuf,
        mode: u32,
    },
    Chown {
        path: PathBuf,
        uid: u32,
        gid: u32,
    },
    Read {
        path: PathBuf,
    },
    Write {
        path: PathBuf,
    },
    Pack {
        path: PathBuf,
    },
    /// Of a workspace; None: of the root.
    Changes {
        workspace: Option<String>,
    },
    Unpack(Place),
}

impl Operation {
    pub fn parse(request: &Map) -> Result<Operation, Invalid> {
        let path = || path(request, "path");
        Ok(match request.field("operation")? {
            "stat" => Operation::Stat {
                path: path()?,
                follow: flag(request, "follow")?,
            },
            "list" => Operation::List { path: path()? },
            "mkdir" => Operation::Mkdir {
                path: path()?,
                parents: flag(request, "parents")?,
            },
            "remove" => Operation::Remove {
                path: path()?,
                recursive: flag(request, "recursive")?,
            },
            "rename" => Operation::Rename {
                path: path()?,
                to: self::path(request, "to")?,
            },
            "chmod" => Operation::Chmod {
                path: path()?,
                mode: match number(request, "mode")? {
                    mode @ 0..=0o7777 => mode,
                    _ => return Err(Invalid::new("`mode` is above 07777")),
                },
            },
            "chown" => Operation::Chown {
                path: path()?,
                uid: number(request, "uid")?,
                gid: number(request, "gid")?,
            },
            "read" => Operation::Read { path: path()? },
            "write" => Operation::Write { path: path()? },
            "pack" => Operation::Pack { path: path()? },
            "changes" => Operation::Changes {
                workspace: match request.field::<Option<&str>>("workspace")? {
                    Some(id) if id.is_empty() || !id.bytes().all(|byte| byte.is_ascii_digit()) => {
                        return Err(Invalid::new("`workspace` is not a number"))
                    }
                    id => id.map(str::to_owned),
                },
            },
            "unpack" => Operation::Unpack(Place {
                path: path()?,
                name: match request.field::<Option<&[u8]>>("name")? {
                    Some(name) if !is_name(name) => {
                        return Err(Invalid::new("`name` is no file name"))
                    }
                    name => name.map(<[u8]>::to_vec),
                },
                special_bits: flag(request, "special_bits")?,
            }),
            _ => return Err(Invalid::new("no such `operation`")),
        })
    }
}

fn path(request: &Map, key: &str) -> Result<PathBuf, Invalid> {
    let bytes: &[u8] = request.field(key)?;
    if bytes.first() != Some(&b'/') {
        return Err(Invalid(format!("`{key}` is not absolute")));
    }
    if bytes.contains(&0) {
        return Err(Invalid(format!("`{key}` has a NUL byte")));
    }
    Ok(PathBuf::from(OsStr::from_bytes(bytes)))
}

fn flag(request: &Map, key: &str) -> Result<bool, Invalid> {
    match request.get(key) {
        Some(Value::Bool(value)) => Ok(*value),
        _ => Err(Invalid(format!("`{key}` is not a boolean"))),
    }
}

fn number(request: &Map, key: &str) -> Result<u32, Invalid> {
    u32::try_from(request.field::<u64>(key)?).map_err(|_| Invalid(format!("`{key}` is too large")))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)] // A failed test should say where.
    use super::*;

    fn request(operation: &str, path: &[u8]) -> Map {
        Map::new()
            .with("operation", operation)
            .with("path", Value::Bin(path.to_vec()))
    }

    #[test]
    fn requests_are_read() {
        let path = PathBuf::from("/a");
        let parse = |map: Map| Operation::parse(&map).unwrap();
        assert_eq!(
            parse(request("read", b"/a")),
            Operation::Read { path: path.clone() }
        );
        let unpack = request("unpack", b"/a")
            .with("name", Value::Bin(b"b".to_vec()))
            .with("special_bits", false);
        let place = Place {
            path,
            name: Some(b"b".to_vec()),
            special_bits: false,
        };
        assert_eq!(parse(unpack), Operation::Unpack(place));
    }

    #[test]
    fn what_cannot_be_meant_is_refused() {
        let name = |name: &[u8]| {
            request("unpack", b"/a")
                .with("name", Value::Bin(name.to_vec()))
                .with("special_bits", false)
        };
        for map in [
            Map::new(),
            request("read", b"a"),
            request("read", b""),
            request("read", b"/a\0"),
            request("format", b"/a"),
            request("mkdir", b"/a"),
            request("mkdir", b"/a").with("parents", 1u64),
            request("rename", b"/a").with("to", "/b"),
            request("chmod", b"/a").with("mode", 0o10000u64),
            request("chown", b"/a")
                .with("uid", 1u64 << 32)
                .with("gid", 0u64),
            name(b".."),
            name(b"a/b"),
            name(b""),
        ] {
            assert!(Operation::parse(&map).is_err(), "{map:?}");
        }
    }
}
