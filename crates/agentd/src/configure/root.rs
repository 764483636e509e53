//! The directory of the upper that becomes the root.
//!
//! overlayfs shows the attributes of the upper's directory and not those of the image's: they are copied.

use std::fs::{self, File, FileTimes};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{fchown, MetadataExt, PermissionsExt};
use std::path::Path;

use crate::log;
use crate::sys::{c_bytes, check, check_size};

/// Makes `upper`, with the attributes of the directory `image`, unless it is there: a sandbox that starts again
/// has what its programs have made of it.
pub fn ensure(upper: &Path, image: &Path) -> io::Result<()> {
    if fs::symlink_metadata(upper).is_ok() {
        return Ok(());
    }
    // Complete under another name first: power may fail at any time.
    let making = upper.with_extension("new");
    match fs::create_dir(&making) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        other => other?,
    }
    copy_attributes(&File::open(image)?, &File::open(&making)?)?;
    fs::rename(&making, upper)
}

fn copy_attributes(from: &File, to: &File) -> io::Result<()> {
    let found = from.metadata()?;
    fchown(to, Some(found.uid()), Some(found.gid()))?;
    to.set_permissions(fs::Permissions::from_mode(found.mode() & 0o7777))?;
    if let Err(error) = copy_extended(from, to) {
        // An ext4 directory has room for less than an image's may have; a sandbox without them is better than none.
        log::error(&format!("extended attributes of the root: {error}"));
    }
    let modified = found.modified()?;
    to.set_times(
        FileTimes::new()
            .set_accessed(modified)
            .set_modified(modified),
    )
}

fn copy_extended(from: &File, to: &File) -> io::Result<()> {
    let mut names = vec![0; 1 << 16];
    // SAFETY: `names` is writable for its length.
    let size = check_size(unsafe {
        libc::flistxattr(from.as_raw_fd(), names.as_mut_ptr().cast(), names.len())
    })?;
    names.truncate(size);
    let mut value = vec![0; 1 << 16];
    for name in names
        .split(|&byte| byte == 0)
        .filter(|name| !name.is_empty())
    {
        let name = c_bytes(name)?;
        // SAFETY: `name` is a valid C string, `value` writable for its length.
        let size = check_size(unsafe {
            libc::fgetxattr(
                from.as_raw_fd(),
                name.as_ptr(),
                value.as_mut_ptr().cast(),
                value.len(),
            )
        })?;
        // SAFETY: `name` is a valid C string, and `size` bytes of `value` were just written.
        check(unsafe {
            libc::fsetxattr(
                to.as_raw_fd(),
                name.as_ptr(),
                value.as_ptr().cast(),
                size,
                0,
            )
        })?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)] // A failed test should say where.
    use super::*;
    use std::time::{Duration, SystemTime};

    #[test]
    fn a_new_root_is_like_the_images_and_an_old_one_stays() {
        let place = std::env::temp_dir().join(format!("agentd-root-{}", std::process::id()));
        let (image, upper) = (place.join("image"), place.join("upper"));
        fs::create_dir_all(&image).unwrap();
        fs::create_dir_all(place.join("upper.new")).unwrap(); // of a start that was cut off
        fs::set_permissions(&image, fs::Permissions::from_mode(0o1751)).unwrap();
        let time = SystemTime::UNIX_EPOCH + Duration::new(1_000_000_000, 123_456_789);
        let times = FileTimes::new().set_modified(time);
        File::open(&image).unwrap().set_times(times).unwrap();
        ensure(&upper, &image).unwrap();
        let found = fs::metadata(&upper).unwrap();
        assert_eq!(found.mode() & 0o7777, 0o1751);
        assert_eq!(found.modified().unwrap(), time);
        fs::set_permissions(&upper, fs::Permissions::from_mode(0o700)).unwrap();
        ensure(&upper, &image).unwrap();
        assert_eq!(fs::metadata(&upper).unwrap().mode() & 0o7777, 0o700);
        fs::remove_dir_all(&place).unwrap();
    }
}
