//! One name in a directory, as a guest may give it.

use rustix::io::Errno;
use std::ffi::CStr;

/// NAME_MAX of Linux, in bytes.
pub const LONGEST: usize = 255;

/// A name that names exactly one entry of one directory: no separator, no NUL, neither `.` nor `..`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Name<'a>(&'a CStr);

impl<'a> Name<'a> {
    /// EINVAL, or ENAMETOOLONG beyond 255 bytes. `bytes` end with their NUL.
    pub fn new(bytes: &'a [u8]) -> Result<Self, Errno> {
        let name = CStr::from_bytes_with_nul(bytes).map_err(|_| Errno::INVAL)?;
        match name.to_bytes() {
            b"" | b"." | b".." => Err(Errno::INVAL),
            name if name.contains(&b'/') => Err(Errno::INVAL),
            name if name.len() > LONGEST => Err(Errno::NAMETOOLONG),
            _ => Ok(Self(name)),
        }
    }

    pub fn as_c_str(self) -> &'a CStr {
        self.0
    }

    pub fn bytes(self) -> &'a [u8] {
        self.0.to_bytes()
    }
}
