//! What the host attaches to the tree of files: `mounts` of the method `configure`.

mod block;
mod known;
mod relay;
mod share;
mod tell;
mod tree;
mod workspace;

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use crate::channel::{Field, Invalid, Map, Value};
use crate::configure;
use crate::sys::{c_bytes, fd, resolve};
use block::Block;
use share::Share;
use workspace::Workspace;

/// More than the machine has room for.
const ITEMS_MAX: usize = 64;
const PORT_MAX: usize = 32;

/// Something that is to be mounted.
pub struct Place<'a> {
    pub target: &'a [u8],
    pub put: Box<dyn Fn() -> io::Result<()> + 'a>,
}

impl Place<'_> {
    /// Mounts all, what lies in another after that, whichever was given first.
    pub fn put_all(mut places: Vec<Place<'_>>) -> io::Result<()> {
        places.sort_by_key(|place| depth(place.target));
        places.iter().try_for_each(|place| {
            (place.put)().map_err(|error| configure::naming(place.target, &error))
        })
    }
}

fn depth(path: &[u8]) -> usize {
    let names = path.split(|byte| *byte == b'/');
    names.filter(|name| !matches!(name, [] | [b'.'])).count()
}

/// What is put in a place.
#[derive(Debug, PartialEq, Eq)]
enum Kind {
    /// A directory of the host, or a single file, behind a console port.
    Share(Share),
    /// A disk.
    Block(Block),
}

#[derive(Debug, PartialEq, Eq)]
struct Mount {
    target: Vec<u8>,
    flags: libc::c_ulong,
    kind: Kind,
    /// How a share is mounted if it is not as it is.
    workspace: Option<Workspace>,
}

/// Checked, in the order given.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Mounts(Vec<Mount>);

impl Mounts {
    pub fn parse(request: &Map) -> Result<Mounts, Invalid> {
        let Some(_) = request.get("mounts") else {
            return Ok(Mounts::default());
        };
        let items: &[Value] = request.field("mounts")?;
        if items.len() > ITEMS_MAX {
            let told = format!("`mounts` has more than {ITEMS_MAX} items");
            return Err(Invalid(told));
        }
        let mounts = items.iter().map(Mount::parse);
        Ok(Mounts(mounts.collect::<Result<_, _>>()?))
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Targets, and how to mount what belongs there; `flags` are for all of them.
    pub fn places(&self, flags: libc::c_ulong) -> impl Iterator<Item = Place<'_>> {
        self.0.iter().map(move |mount| Place {
            target: &mount.target,
            put: Box::new(move || mount.mount(flags)),
        })
    }
}

impl Mount {
    fn parse(value: &Value) -> Result<Mount, Invalid> {
        let map = <&Map>::read(value).ok_or_else(|| Invalid::new("`mounts` is not maps"))?;
        let target = configure::absolute(map.field("target")?, "target")?;
        if depth(&target) == 0 {
            return Err(Invalid::new("`target` is the root"));
        }
        let names: &[Value] = map.field("flags")?;
        let mut flags = match map.field("read_only")? {
            true => libc::MS_RDONLY,
            false => 0,
        };
        for name in names {
            flags |= match <&str>::read(name) {
                Some("noexec") => libc::MS_NOEXEC,
                Some("nosuid") => libc::MS_NOSUID,
                Some("nodev") => libc::MS_NODEV,
                _ => return Err(Invalid::new("`flags` is not of noexec, nosuid and nodev")),
            };
        }
        let kind = match map.field("kind")? {
            "fuse" => Kind::Share(Share::parse(map, false)?),
            "file" => Kind::Share(Share::parse(map, true)?),
            "block" => Kind::Block(Block::parse(map)?),
            _ => return Err(Invalid::new("`kind` is none that is known")),
        };
        Ok(Mount {
            target,
            flags,
            kind,
            workspace: Workspace::parse(map)?,
        })
    }

    fn mount(&self, flags: libc::c_ulong) -> io::Result<()> {
        match &self.kind {
            Kind::Share(share) => {
                let target = match share.is_file {
                    true => file(&self.target)?,
                    // A link of the image must not decide where it lands.
                    false => resolve::directory(&self.target, resolve::PLAIN)?,
                };
                let (path, flags) = (resolve::path_of(&target), self.flags | flags);
                match &self.workspace {
                    Some(workspace) => workspace.mount(share, &self.target, &path, flags),
                    None => share.mount(&path, &self.target, flags),
                }
            }
            Kind::Block(block) => {
                let target = resolve::directory(&self.target, resolve::PLAIN)?;
                block.mount(&resolve::path_of(&target), self.flags)
            }
        }
    }
}

/// The file at `path` for another to be mounted over, made with its directories if it is missing.
fn file(path: &[u8]) -> io::Result<OwnedFd> {
    let at = path.iter().rposition(|byte| *byte == b'/').unwrap_or(0);
    let directory = resolve::directory(&path[..at], resolve::PLAIN)?;
    let name = c_bytes(&path[at + 1..])?;
    let found = fd::open_at(
        directory.as_raw_fd(),
        &name,
        libc::O_PATH | libc::O_NOFOLLOW,
        0,
    );
    let found = match found {
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {
            let flags = libc::O_CREAT | libc::O_EXCL | libc::O_WRONLY;
            fd::open_at(directory.as_raw_fd(), &name, flags, 0o644)?
        }
        found => found?,
    };
    let found = File::from(found);
    match found.metadata()?.file_type() {
        kind if kind.is_dir() => Err(io::Error::from_raw_os_error(libc::EISDIR)),
        kind if kind.is_symlink() => Err(io::Error::from_raw_os_error(libc::ELOOP)),
        _ => Ok(found.into()),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)] // A failed test should say where.
    use super::*;

    /// A mount, with another value for one key.
    fn item(other: &str, value: impl Into<Value>) -> Map {
        let mut value = Some(value.into());
        let usual = [
            ("target", Value::Bin(b"/a/b".to_vec())),
            ("kind", Value::from("fuse")),
            ("port", Value::from("msb.fs.0")),
            ("owner", Value::Nil),
            ("watch", Value::Nil),
            ("device", Value::Nil),
            ("read_only", Value::from(true)),
            ("flags", vec![Value::from("noexec"), "nodev".into()].into()),
        ];
        usual.into_iter().fold(Map::new(), |map, (key, default)| {
            let value = value.take_if(|_| key == other);
            map.with(key, value.unwrap_or(default))
        })
    }

    fn parse(item: Map) -> Result<Mounts, Invalid> {
        Mounts::parse(&Map::new().with("mounts", vec![Value::from(item)]))
    }

    #[test]
    fn nothing_is_needed() {
        assert!(Mounts::parse(&Map::new()).unwrap().is_empty());
    }

    #[test]
    fn a_mount_has_flags_and_a_port() {
        let Mounts(found) = parse(item("owner", "node")).unwrap();
        let flags = libc::MS_RDONLY | libc::MS_NOEXEC | libc::MS_NODEV;
        assert_eq!(
            (&found[0].target[..], found[0].flags),
            (&b"/a/b"[..], flags)
        );
        for (key, value) in [
            ("kind", Value::from("nfs")),
            ("target", Value::Bin(b"a".to_vec())),
            ("target", Value::Bin(b"/".to_vec())),
            ("target", Value::Bin(b"/a/../b".to_vec())),
            ("port", Value::from("")),
            ("device", Value::from("a,b")),
            ("device", Value::from("")),
            ("flags", Value::from(vec![Value::from("suid")])),
        ] {
            let shown = format!("{key} {value:?}");
            assert!(parse(item(key, value)).is_err(), "{shown}");
        }
    }

    #[test]
    fn what_lies_in_another_comes_after_it() {
        let order = std::cell::RefCell::new(Vec::new());
        let told = &order;
        let place = |target: &'static [u8]| Place {
            target,
            put: Box::new(move || {
                told.borrow_mut().push(target);
                Ok(())
            }),
        };
        let given = [&b"/a/b/c"[..], b"/z", b"//a/./b", b"/a", b"/b"];
        Place::put_all(given.map(place).into()).unwrap();
        let expected = [&b"/z"[..], b"/a", b"/b", b"//a/./b", b"/a/b/c"];
        assert_eq!(order.into_inner(), expected);
    }

    #[test]
    fn there_are_not_too_many() {
        let items = vec![Value::from(item("kind", "file")); ITEMS_MAX + 1];
        assert!(Mounts::parse(&Map::new().with("mounts", items)).is_err());
    }
}
