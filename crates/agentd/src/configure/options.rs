//! What a sandbox may be given beyond its disks and names: a working directory that is made, file
//! systems in memory, scripts, and the signal that asks its processes to end.

use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use super::mounts::create_directory;
use crate::attached::Place;
use crate::channel::{Field, Invalid, Map, Value};
use crate::sys::mount::mount;
use crate::sys::{describe, resolve};

/// Where scripts are; the host puts it on PATH. Not below /run, which an init mounts over.
const SCRIPTS: &str = "/.msb/scripts";
/// Of each kind, and bytes of all scripts together.
const ITEMS_MAX: usize = 64;
const SCRIPTS_MAX: usize = 1 << 20;
const NAME_MAX: usize = 255;
/// The last of the real-time signals.
const SIGNAL_MAX: u64 = 64;

/// A file system in memory.
#[derive(Debug, PartialEq, Eq)]
struct Tmpfs {
    path: Vec<u8>,
    /// Bytes; None is the kernel's default, half of the memory.
    size: Option<u64>,
    mode: u64,
    read_only: bool,
    noexec: bool,
}

/// Checked options; none is needed.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Options {
    workdir: Option<Vec<u8>>,
    tmpfs: Vec<Tmpfs>,
    scripts: Vec<(Vec<u8>, Vec<u8>)>,
    pub stop_signal: Option<i32>,
}

/// The value of a key that may be missing.
fn optional<'a, T: Field<'a>>(map: &'a Map, key: &str) -> Result<Option<T>, Invalid> {
    match map.get(key) {
        None => Ok(None),
        Some(_) => map.field(key),
    }
}

fn items<'a>(map: &'a Map, key: &str) -> Result<&'a [Value], Invalid> {
    let items: &[Value] = optional(map, key)?.unwrap_or_default();
    match items.len() <= ITEMS_MAX {
        true => Ok(items),
        false => Err(Invalid(format!("`{key}` has more than {ITEMS_MAX} items"))),
    }
}

impl Options {
    pub fn parse(request: &Map) -> Result<Options, Invalid> {
        let workdir: Option<&[u8]> = optional(request, "workdir")?;
        let tmpfs = items(request, "tmpfs")?.iter().map(Tmpfs::parse);
        let scripts = items(request, "scripts")?.iter().map(script);
        let scripts = scripts.collect::<Result<Vec<_>, _>>()?;
        if scripts.iter().map(|(_, body)| body.len()).sum::<usize>() > SCRIPTS_MAX {
            return Err(Invalid(format!(
                "`scripts` has more than {SCRIPTS_MAX} bytes"
            )));
        }
        Ok(Options {
            workdir: workdir.map(|path| absolute(path, "workdir")).transpose()?,
            tmpfs: tmpfs.collect::<Result<_, _>>()?,
            scripts,
            stop_signal: signal(request)?,
        })
    }

    pub fn has_workdir(&self) -> bool {
        self.workdir.is_some()
    }

    pub fn has_tmpfs(&self) -> bool {
        !self.tmpfs.is_empty()
    }

    pub fn has_scripts(&self) -> bool {
        !self.scripts.is_empty()
    }

    /// Makes the working directory if it is missing, as every engine does for an image's.
    pub fn make_workdir(&self) -> io::Result<()> {
        let Some(path) = &self.workdir else {
            return Ok(());
        };
        let path = Path::new(std::ffi::OsStr::from_bytes(path));
        fs::create_dir_all(path).map_err(|error| naming(path.as_os_str().as_bytes(), &error))
    }

    /// The file systems in memory, each with how to mount it.
    pub fn tmpfs_places(&self) -> impl Iterator<Item = Place<'_>> {
        self.tmpfs.iter().map(|tmpfs| Place {
            target: &tmpfs.path,
            put: Box::new(|| tmpfs.mount()),
        })
    }

    /// Puts the scripts into a file system of their own, which then nobody writes to.
    pub fn write_scripts(&self) -> io::Result<()> {
        create_directory("/.msb", 0o755)?;
        create_directory(SCRIPTS, 0o755)?;
        let flags = libc::MS_NOSUID | libc::MS_NODEV;
        mount("tmpfs", SCRIPTS, "tmpfs", flags, "mode=755,size=2m")?;
        for (name, content) in &self.scripts {
            let path = Path::new(SCRIPTS).join(std::ffi::OsStr::from_bytes(name));
            let write = || {
                fs::write(&path, content)?;
                fs::set_permissions(&path, fs::Permissions::from_mode(0o755))
            };
            write().map_err(|error: io::Error| naming(name, &error))?;
        }
        let flags = flags | libc::MS_REMOUNT | libc::MS_RDONLY;
        mount("tmpfs", SCRIPTS, "tmpfs", flags, "")
    }
}

impl Tmpfs {
    fn parse(value: &Value) -> Result<Tmpfs, Invalid> {
        let map = <&Map>::read(value).ok_or_else(|| Invalid::new("`tmpfs` is not maps"))?;
        let mode: u64 = map.field("mode")?;
        if mode > 0o7777 {
            return Err(Invalid::new("`mode` is not up to 07777"));
        }
        Ok(Tmpfs {
            path: absolute(map.field("path")?, "path")?,
            size: map.field("size")?,
            mode,
            read_only: map.field("read_only")?,
            noexec: map.field("noexec")?,
        })
    }

    fn mount(&self) -> io::Result<()> {
        // A link of the image must not decide where it lands.
        let target = resolve::directory(&self.path, resolve::PLAIN)?;
        let mut flags = libc::MS_NOSUID | libc::MS_NODEV;
        flags |= if self.read_only { libc::MS_RDONLY } else { 0 };
        flags |= if self.noexec { libc::MS_NOEXEC } else { 0 };
        let mut options = format!("mode={:o}", self.mode);
        if let Some(size) = self.size {
            options += &format!(",size={size}");
        }
        mount(
            "tmpfs",
            &resolve::path_of(&target),
            "tmpfs",
            flags,
            &options,
        )
    }
}

fn script(value: &Value) -> Result<(Vec<u8>, Vec<u8>), Invalid> {
    let malformed = || Invalid::new("`scripts` is not name and content");
    let pair: Vec<&[u8]> = Vec::read(value).ok_or_else(malformed)?;
    let [name, content] = pair[..] else {
        return Err(malformed());
    };
    let is_name = (1..=NAME_MAX).contains(&name.len())
        && !matches!(name, b"." | b"..")
        && !name.iter().any(|byte| matches!(byte, b'/' | 0));
    match is_name {
        true => Ok((name.to_vec(), content.to_vec())),
        false => Err(Invalid::new("a name in `scripts` is not a file's")),
    }
}

/// A path of the guest that begins at its root and stays there.
pub fn absolute(path: &[u8], key: &str) -> Result<Vec<u8>, Invalid> {
    let climbs = path.split(|byte| *byte == b'/').any(|name| name == b"..");
    match path.starts_with(b"/") && !climbs && !path.contains(&0) {
        true => Ok(path.to_vec()),
        false => Err(Invalid(format!(
            "`{key}` is not an absolute path without .."
        ))),
    }
}

fn signal(request: &Map) -> Result<Option<i32>, Invalid> {
    let Some(number) = optional::<u64>(request, "stop_signal")? else {
        return Ok(None);
    };
    match i32::try_from(number) {
        Ok(signal) if (1..=SIGNAL_MAX).contains(&number) => Ok(Some(signal)),
        _ => Err(Invalid::new("`stop_signal` is not 1 to 64")),
    }
}

/// The same error, said of what it is about.
pub fn naming(path: &[u8], error: &io::Error) -> io::Error {
    let reason = match error.raw_os_error() {
        Some(libc::ELOOP) => "a part of the path is a symbolic link".to_owned(),
        _ => describe(error),
    };
    io::Error::other(format!("{}: {reason}", String::from_utf8_lossy(path)))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)] // A failed test should say where.
    use super::*;

    fn bin(bytes: &[u8]) -> Value {
        Value::Bin(bytes.to_vec())
    }

    fn with(key: &str, value: impl Into<Value>) -> Result<Options, Invalid> {
        Options::parse(&Map::new().with(key, value))
    }

    fn tmpfs(path: &[u8], mode: u64) -> Vec<Value> {
        let map = Map::new()
            .with("path", bin(path))
            .with("size", Value::Nil)
            .with("mode", mode)
            .with("read_only", false)
            .with("noexec", true);
        vec![map.into()]
    }

    #[test]
    fn nothing_is_needed() {
        let read = Options::parse(&Map::new()).unwrap();
        assert_eq!(read, Options::default());
        assert!(!read.has_workdir() && !read.has_tmpfs() && !read.has_scripts());
    }

    #[test]
    fn paths_are_absolute_and_do_not_climb() {
        assert!(with("tmpfs", tmpfs(b"/a/b", 0o1777)).unwrap().has_tmpfs());
        for path in [&b"a"[..], b"", b"/a/../b", b"/..", b"/a\0b"] {
            assert!(with("tmpfs", tmpfs(path, 0o1777)).is_err(), "{path:?}");
            assert!(with("workdir", bin(path)).is_err(), "{path:?}");
        }
        assert!(with("tmpfs", tmpfs(b"/a", 0o10000)).is_err());
        assert!(with("tmpfs", vec![bin(b"/a")]).is_err());
    }

    #[test]
    fn a_script_is_a_file_in_its_directory() {
        let script = |name: &[u8]| vec![Value::Array(vec![bin(name), bin(b"#!/bin/sh\n")])];
        assert!(with("scripts", script(b"setup")).unwrap().has_scripts());
        for name in [&b""[..], b".", b"..", b"a/b", b"a\0", &[b'a'; 256]] {
            assert!(with("scripts", script(name)).is_err(), "{name:?}");
        }
        let large = Value::Array(vec![bin(b"a"), bin(&vec![0; SCRIPTS_MAX + 1])]);
        assert!(with("scripts", vec![large]).is_err());
        assert!(with("scripts", vec![Value::Array(vec![bin(b"a"), bin(b"")]); 65]).is_err());
    }

    #[test]
    fn a_signal_has_a_number() {
        assert_eq!(with("stop_signal", 37u64).unwrap().stop_signal, Some(37));
        assert!(with("stop_signal", 0u64).is_err());
        assert!(with("stop_signal", 65u64).is_err());
    }
}
