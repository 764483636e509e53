//! Looking at files of the image ahead, so that a saved machine has them in its caches.

use std::ffi::{CString, OsStr};
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;

use crate::sys::fd;

/// Bytes of one file that are read: programs are smaller, and memory is what a template shares.
const LIMIT: u64 = 8 << 20;

/// Entries of one directory that are looked up: two kilobytes of the guest's memory for each.
const ENTRIES: usize = 1024;

/// Reads a regular file; looks up what is in a directory, so that finding a program there needs neither the
/// disk nor the file systems. What is not there or cannot be read is left alone.
pub fn read(path: &[u8]) {
    // An image may have anything under any name: nothing may block, or become our terminal.
    let flags = libc::O_RDONLY | libc::O_NONBLOCK | libc::O_NOCTTY;
    let Ok(path) = CString::new(path) else { return };
    let Ok(file) = fd::open(&path, flags).map(File::from) else {
        return;
    };
    let Ok(found) = file.metadata() else { return };
    if found.is_file() {
        // A file that cannot be read to its end is a matter for whoever executes it.
        let _ = io::copy(&mut file.take(LIMIT), &mut io::sink());
    } else if found.is_dir() {
        look_up(OsStr::from_bytes(path.to_bytes()));
    }
}

fn look_up(directory: &OsStr) {
    let Ok(entries) = fs::read_dir(directory) else {
        return;
    };
    for entry in entries.take(ENTRIES).flatten() {
        // Through links, as whoever executes it will go.
        let _ = fs::metadata(entry.path());
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)] // A failed test should say where.
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn whatever_is_in_a_directory_holds_nobody_up() {
        let place = std::env::temp_dir().join(format!("agentd-warm-{}", std::process::id()));
        fs::create_dir(&place).unwrap();
        let fifo = CString::new(place.join("fifo").as_os_str().as_bytes()).unwrap();
        // SAFETY: `fifo` is a valid C string.
        assert_eq!(unsafe { libc::mkfifo(fifo.as_ptr(), 0o600) }, 0);
        symlink("loop", place.join("loop")).unwrap();
        symlink("/nowhere", place.join("dangling")).unwrap();
        read(fifo.as_bytes());
        read(place.as_os_str().as_bytes());
        fs::remove_dir_all(&place).unwrap();
    }
}
