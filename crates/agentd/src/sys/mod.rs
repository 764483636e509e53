//! Thin safe wrappers over the system calls that the standard library has no name for.

pub mod epoll;
pub mod fd;
pub mod mount;
pub mod process;
pub mod raw;
pub mod resolve;

use std::ffi::CString;
use std::io;

/// Turns the C convention (-1 and errno) into a result.
pub fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result == -1 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}

/// The same for calls that return a size.
pub fn check_size(result: libc::ssize_t) -> io::Result<usize> {
    usize::try_from(result).map_err(|_| io::Error::last_os_error())
}

/// A path or option for the kernel; an embedded NUL is an error.
pub fn c_string(text: &str) -> io::Result<CString> {
    CString::new(text).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))
}

/// The same for bytes.
pub fn c_bytes(bytes: &[u8]) -> io::Result<CString> {
    CString::new(bytes).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))
}

/// What the error number means, in the C library's words.
pub fn describe(error: &io::Error) -> String {
    let text = error.to_string();
    match text.find(" (os error ") {
        Some(end) => text[..end].to_owned(),
        None => text,
    }
}

/// Of the text of an error that is sent, in bytes: it may name what the host has asked for, which may be longer
/// than the answer's frame.
const SHOWN_MAX: usize = 4096;

/// The beginning of a text, as much of it as is sent.
pub fn shown(text: &str) -> &str {
    let mut end = text.len().min(SHOWN_MAX);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_shown_is_bounded_and_whole_characters() {
        assert_eq!(shown("short"), "short");
        assert_eq!(shown(""), "");
        assert_eq!(shown(&"a".repeat(SHOWN_MAX + 1)).len(), SHOWN_MAX);
        let text = format!("a{}", "ä".repeat(SHOWN_MAX));
        assert_eq!(shown(&text), &text[..SHOWN_MAX - 1]);
    }
}
