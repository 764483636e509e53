//! A file that gets its name when it is complete.

use std::ffi::{CStr, CString};
use std::fs::File;
use std::io::{self, Seek, SeekFrom, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::sync::atomic::{AtomicU64, Ordering};

use super::sys;
use crate::sys::fd;

static COUNT: AtomicU64 = AtomicU64::new(0);

/// A name that nobody uses yet, given to `make`.
pub fn named<T>(mut make: impl FnMut(&CStr) -> io::Result<T>) -> io::Result<(CString, T)> {
    loop {
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = CString::new(format!(".msb-{}-{count}", std::process::id()))?;
        match make(&name) {
            Err(error) if error.raw_os_error() == Some(libc::EEXIST) => {}
            made => return made.map(|made| (name, made)),
        }
    }
}

/// Content on its way into the directory `at`; removed if it is dropped before `publish`.
pub struct Temporary {
    at: RawFd,
    name: CString,
    file: File,
    published: bool,
}

impl Temporary {
    /// The caller keeps `at` open for the life of it.
    pub fn new(at: RawFd) -> io::Result<Temporary> {
        let flags = libc::O_WRONLY | libc::O_CREAT | libc::O_EXCL | libc::O_NOFOLLOW;
        let (name, file) = named(|name| fd::open_at(at, name, flags, 0o600))?;
        Ok(Temporary {
            at,
            name,
            file: File::from(file),
            published: false,
        })
    }

    pub fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all(bytes)
    }

    pub fn skip(&mut self, size: u64) -> io::Result<()> {
        let size = i64::try_from(size).map_err(|_| io::Error::from_raw_os_error(libc::EFBIG))?;
        self.file.seek(SeekFrom::Current(size)).map(drop)
    }

    /// Gives it its name, and takes that of what had it before. `time`: seconds and nanoseconds.
    pub fn publish(mut self, name: &CStr, mode: u32, time: Option<(i64, u32)>) -> io::Result<()> {
        let end = self.file.stream_position()?;
        self.file.set_len(end)?; // a hole at the end has moved nothing but the position
        sys::set_mode(self.file.as_raw_fd(), mode)?;
        if let Some((seconds, nanoseconds)) = time {
            sys::set_time(self.file.as_raw_fd(), None, seconds, nanoseconds)?;
        }
        sys::rename(self.at, &self.name, name)?;
        self.published = true;
        Ok(())
    }

    pub fn as_file(&self) -> &File {
        &self.file
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        if !self.published {
            // There is nobody who could be told, and the name tells whose it is.
            let _ = sys::unlink(self.at, &self.name);
        }
    }
}
