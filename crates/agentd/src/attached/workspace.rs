//! A share of which the guest has a version of its own: on its own disk, or with parts of it there.
//!
//! `/workspaces/<id>` of the disk that holds the root's upper has `upper` and `work` of an overlay, `lower` of a
//! tree that was copied, and `guest/<n>`, directories that lie over some of the share's. `/.msb/lower/<id>` is
//! what the overlay lies on, for whoever compares.

use std::fs;
use std::io;
use std::os::unix::fs::{chown, DirBuilderExt};
use std::path::Path;

use super::share::Share;
use super::tree;
use crate::channel::{Invalid, Map, Value};
use crate::configure::{self, create_directory, upper_device};
use crate::sys::mount::{bind, mount, remount, unmount};
use crate::sys::resolve;

/// Where the disk is while workspaces are put together; programs of the guest never see it.
const DISK: &str = "/.msb/disk";
const LOWER: &str = "/.msb/lower";
const ID_MAX: usize = 16;
const GUEST_MAX: usize = 64;

#[derive(Debug, PartialEq, Eq)]
enum Mode {
    /// The share itself.
    Share,
    /// An overlay on the share.
    Overlay,
    /// An overlay on a copy of the share.
    Clone,
}

#[derive(Debug, PartialEq, Eq)]
pub struct Workspace {
    id: String,
    mode: Mode,
    /// Directories that are the guest's, relative to the share.
    guest: Vec<Vec<u8>>,
}

impl Workspace {
    /// None: the share is mounted as it is.
    pub fn parse(map: &Map) -> Result<Option<Workspace>, Invalid> {
        let map: &Map = match map.get("workspace") {
            None => return Ok(None),
            Some(Value::Map(map)) => map,
            Some(_) => return Err(Invalid::new("`workspace` is not a map")),
        };
        let id: &str = map.field("id")?;
        if !(1..=ID_MAX).contains(&id.len()) || !id.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(Invalid::new("`id` is not a number"));
        }
        let mode = match map.field("mode")? {
            "share" => Mode::Share,
            "overlay" => Mode::Overlay,
            "clone" => Mode::Clone,
            _ => return Err(Invalid::new("`mode` is none of share, overlay, clone")),
        };
        let items: &[Value] = map.field("guest")?;
        if items.len() > GUEST_MAX {
            return Err(Invalid(format!("`guest` has more than {GUEST_MAX} items")));
        }
        let guest = items.iter().map(|item| match item {
            Value::Bin(path) if is_relative(path) => Ok(path.clone()),
            _ => Err(Invalid::new("`guest` is not of relative paths")),
        });
        Ok(Some(Workspace {
            id: id.to_owned(),
            mode,
            guest: guest.collect::<Result<_, _>>()?,
        }))
    }

    /// Mounts `share` so at `place`, which is open at `target`.
    pub fn mount(
        &self,
        share: &Share,
        place: &[u8],
        target: &str,
        flags: libc::c_ulong,
    ) -> io::Result<()> {
        create_directory("/.msb", 0o755)?;
        create_directory(DISK, 0o700)?;
        // The file system that is mounted already, in a second place.
        let device = upper_device()?;
        mount(&device, DISK, "ext4", libc::MS_NOATIME | libc::MS_NODEV, "")?;
        let made = self.put(share, place, target, flags);
        unmount(DISK, libc::MNT_DETACH)?;
        made
    }

    fn put(
        &self,
        share: &Share,
        place: &[u8],
        target: &str,
        flags: libc::c_ulong,
    ) -> io::Result<()> {
        let own = format!("{DISK}/workspaces/{}", self.id);
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&own)?;
        match self.mode {
            Mode::Share => share.mount(target, place, flags)?,
            Mode::Overlay => {
                let lower = self.lower()?;
                share.mount(&lower, lower.as_bytes(), flags | libc::MS_RDONLY)?;
                overlay(&own, &lower, target, flags)?;
            }
            Mode::Clone => {
                let lower = self.lower()?;
                let copy = format!("{own}/lower");
                if !Path::new(&copy).exists() {
                    share.mount(&lower, lower.as_bytes(), flags | libc::MS_RDONLY)?;
                    let copied = copy_once(&lower, &copy);
                    unmount(&lower, libc::MNT_DETACH)?;
                    copied?;
                }
                bind(&copy, &lower)?;
                remount(&lower, flags | libc::MS_RDONLY | libc::MS_NODEV)?;
                overlay(&own, &lower, target, flags)?;
            }
        }
        for (number, path) in self.guest.iter().enumerate() {
            let source = format!("{own}/guest/{number}");
            let whole = [place, b"/", path].concat();
            self.keep(share, &source, &whole, flags)
                .map_err(|error| configure::naming(&whole, &error))?;
        }
        Ok(())
    }

    fn lower(&self) -> io::Result<String> {
        create_directory(LOWER, 0o700)?;
        let path = format!("{LOWER}/{}", self.id);
        create_directory(&path, 0o700)?;
        Ok(path)
    }

    /// Puts the directory `source` of the disk, made if it is missing, over `place`.
    fn keep(
        &self,
        share: &Share,
        source: &str,
        place: &[u8],
        flags: libc::c_ulong,
    ) -> io::Result<()> {
        if !Path::new(source).exists() {
            fs::create_dir_all(source)?;
            let (uid, gid) = share.owner_ids();
            chown(source, Some(uid), Some(gid))?;
        }
        let directory = resolve::directory(place, resolve::PLAIN)?;
        bind(source, &resolve::path_of(&directory))?;
        // The path again: what is open is below the new mount.
        let directory = resolve::directory(place, resolve::PLAIN)?;
        remount(
            &resolve::path_of(&directory),
            flags | libc::MS_NODEV | libc::MS_NOATIME,
        )
    }
}

fn is_relative(path: &[u8]) -> bool {
    !path.contains(&0)
        && path
            .split(|byte| *byte == b'/')
            .all(|name| !matches!(name, b"" | b"." | b".."))
}

/// Every changed file lies whole in the upper, and no directory has been renamed there.
fn overlay(own: &str, lower: &str, target: &str, flags: libc::c_ulong) -> io::Result<()> {
    let (upper, work) = (format!("{own}/upper"), format!("{own}/work"));
    configure::ensure_upper(Path::new(&upper), Path::new(lower))?;
    create_directory(&work, 0o755)?;
    let options = format!(
        "lowerdir={lower},upperdir={upper},workdir={work},\
         redirect_dir=off,index=off,metacopy=off,xino=off"
    );
    mount("workspace", target, "overlay", flags, &options)
}

/// Copies the tree. It has its name when it is complete: power may fail at any time.
fn copy_once(from: &str, to: &str) -> io::Result<()> {
    let making = format!("{to}.new");
    match fs::remove_dir_all(&making) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    tree::copy(Path::new(from), Path::new(&making))?;
    fs::rename(&making, to)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)] // A failed test should say where.
    use super::*;

    fn item(id: &str, mode: &str, guest: &[u8]) -> Map {
        let workspace = Map::new()
            .with("id", id)
            .with("mode", mode)
            .with("guest", vec![Value::Bin(guest.to_vec())]);
        Map::new().with("workspace", Value::Map(workspace))
    }

    #[test]
    fn a_share_need_be_none() {
        assert_eq!(Workspace::parse(&Map::new()).unwrap(), None);
    }

    #[test]
    fn paths_stay_in_the_share() {
        let read = Workspace::parse(&item("3", "overlay", b"web/.venv")).unwrap();
        assert_eq!(read.unwrap().guest, [b"web/.venv"]);
        for (id, mode, guest) in [
            ("../3", "overlay", &b"a"[..]),
            ("", "overlay", b"a"),
            ("3", "copy", b"a"),
            ("3", "clone", b""),
            ("3", "clone", b"/a"),
            ("3", "clone", b"a/../.."),
            ("3", "clone", b"a\0"),
        ] {
            assert!(Workspace::parse(&item(id, mode, guest)).is_err());
        }
    }
}
