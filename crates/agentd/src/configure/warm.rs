//! Reading files of the image ahead, so that a saved machine has them in its page cache.

use std::ffi::CString;
use std::fs::File;
use std::io::{self, Read};

use crate::sys::fd;

/// Bytes of one file that are read: programs are smaller, and memory is what a template shares.
const LIMIT: u64 = 8 << 20;

/// Reads a regular file; what is not there or cannot be read is left alone.
pub fn read(path: &[u8]) {
    // An image may have anything under any name: nothing may block, or become our terminal.
    let flags = libc::O_RDONLY | libc::O_NONBLOCK | libc::O_NOCTTY;
    let Ok(path) = CString::new(path) else { return };
    let Ok(file) = fd::open(&path, flags).map(File::from) else {
        return;
    };
    if file.metadata().is_ok_and(|found| found.is_file()) {
        // A file that cannot be read to its end is a matter for whoever executes it.
        let _ = io::copy(&mut file.take(LIMIT), &mut io::sink());
    }
}
