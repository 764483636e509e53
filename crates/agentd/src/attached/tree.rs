//! A copy of a directory on the guest's own disk, as the share shows it: owners, modes, times, links.

use std::fs::{self, DirEntry, File, FileTimes, Metadata};
use std::io;
use std::os::unix::fs::{chown, fchown, lchown, symlink, MetadataExt};
use std::path::Path;

/// Levels of directories.
const DEPTH_MAX: usize = 256;

/// Copies the directory `from` to `to`, which is not there. Devices, FIFOs and sockets are left out.
pub fn copy(from: &Path, to: &Path) -> io::Result<()> {
    directory(from, to, DEPTH_MAX)
}

fn directory(from: &Path, to: &Path, depth: usize) -> io::Result<()> {
    if depth == 0 {
        return Err(io::Error::from_raw_os_error(libc::ENAMETOOLONG));
    }
    let found = fs::symlink_metadata(from)?;
    fs::create_dir(to)?;
    for item in fs::read_dir(from)? {
        entry(&item?, to, depth)?;
    }
    chown(to, Some(found.uid()), Some(found.gid()))?;
    fs::set_permissions(to, found.permissions())?;
    File::open(to)?.set_times(times(&found)?)
}

fn entry(item: &DirEntry, to: &Path, depth: usize) -> io::Result<()> {
    let (from, to) = (item.path(), to.join(item.file_name()));
    let found = match fs::symlink_metadata(&from) {
        // It has gone since: the host lives on.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        found => found?,
    };
    let kind = found.file_type();
    if kind.is_dir() {
        return directory(&from, &to, depth - 1);
    }
    if kind.is_symlink() {
        symlink(fs::read_link(&from)?, &to)?;
        return lchown(&to, Some(found.uid()), Some(found.gid()));
    }
    if !kind.is_file() {
        return Ok(());
    }
    let mut source = match File::open(&from) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        opened => opened?,
    };
    let mut made = File::options().write(true).create_new(true).open(&to)?;
    io::copy(&mut source, &mut made)?;
    fchown(&made, Some(found.uid()), Some(found.gid()))?;
    made.set_permissions(found.permissions())?;
    made.set_times(times(&found)?)
}

fn times(found: &Metadata) -> io::Result<FileTimes> {
    let modified = found.modified()?;
    Ok(FileTimes::new()
        .set_accessed(modified)
        .set_modified(modified))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)] // A failed test should say where.
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_copy_is_like_it() {
        let place = std::env::temp_dir().join(format!("agentd-tree-{}", std::process::id()));
        let (from, to) = (place.join("from"), place.join("to"));
        fs::create_dir_all(from.join("a/b")).unwrap();
        fs::write(from.join("a/file"), "content").unwrap();
        fs::set_permissions(from.join("a/file"), fs::Permissions::from_mode(0o751)).unwrap();
        fs::set_permissions(from.join("a"), fs::Permissions::from_mode(0o500)).unwrap();
        symlink("/nowhere", from.join("link")).unwrap();
        copy(&from, &to).unwrap();
        let (old, new) = ["from", "to"]
            .map(|name| fs::metadata(place.join(name).join("a/file")).unwrap())
            .into();
        assert_eq!(fs::read(to.join("a/file")).unwrap(), b"content");
        assert_eq!(new.mode() & 0o7777, 0o751);
        assert_eq!(new.modified().unwrap(), old.modified().unwrap());
        assert_eq!(fs::metadata(to.join("a")).unwrap().mode() & 0o7777, 0o500);
        assert_eq!(
            fs::read_link(to.join("link")).unwrap(),
            Path::new("/nowhere")
        );
        assert!(to.join("a/b").is_dir());
        fs::set_permissions(from.join("a"), fs::Permissions::from_mode(0o700)).unwrap();
        fs::set_permissions(to.join("a"), fs::Permissions::from_mode(0o700)).unwrap();
        fs::remove_dir_all(&place).unwrap();
    }
}
