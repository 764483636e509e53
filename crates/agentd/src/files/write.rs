//! One file, written whole or not at all.

use std::ffi::CString;
use std::fs;
use std::io::Read;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{fchown, MetadataExt, PermissionsExt};
use std::path::Path;

use super::record::{Reader, Record};
use super::temporary::Temporary;
use super::unpack::{fill, open_directory, split};
use super::{at, errno, not_regular, Done};

const NEW: u32 = 0o644;

/// Replaces the content of the file at `path` (of the one it leads to, if it is a link), or makes it. A file
/// that was there keeps its mode and its owner.
pub fn write<R: Read>(path: &Path, mut input: Reader<R>) -> Done {
    let (target, before) = match fs::metadata(path) {
        Ok(found) if found.is_dir() => return Err(errno(path, libc::EISDIR)),
        Ok(found) if !found.is_file() => return Err(not_regular(path)),
        Ok(found) => (fs::canonicalize(path).map_err(at(path))?, Some(found)),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => (path.to_owned(), None),
        Err(error) => return Err(at(path)(error)),
    };
    let (directory, name) = split(&target)?;
    let directory = open_directory(&directory)?;
    let name = CString::new(name.as_bytes()).map_err(|_| errno(path, libc::EINVAL))?;
    let mut file = Temporary::new(directory.as_raw_fd()).map_err(at(path))?;
    fill(&mut input, &mut file).map_err(at(path))?;
    if !matches!(input.next().map_err(at(path))?, Record::End) {
        return Err(errno(path, libc::EINVAL));
    }
    let mut mode = NEW;
    if let Some(before) = before {
        mode = before.permissions().mode() & 0o7777;
        fchown(file.as_file(), Some(before.uid()), Some(before.gid())).map_err(at(path))?;
    }
    file.publish(&name, mode, None).map_err(at(path))
}
