//! Cheap checks of files that are about to be used again, and digests of whole files.

use crate::erofs::read::Image;
use crate::error::{Error, Result};
use crate::source::{Observer, Watch};
use sha2::{Digest, Sha256};
use std::fs::File;
use std::os::unix::fs::FileExt;

/// Check everything but file contents.
pub fn check(file: &File) -> Result<()> {
    Image::open(file).map(drop)
}

/// SHA-256 of a regular file, whatever its offset.
pub fn sha256(file: &File, observer: &mut Observer<'_>) -> Result<[u8; 32]> {
    let mut observer = observer;
    let mut watch = Watch::new(&mut observer);
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 1 << 18];
    let mut at = 0u64;
    loop {
        match file.read_at(&mut buffer, at) {
            Ok(0) => return Ok(hash.finalize().into()),
            Ok(count) => {
                hash.update(&buffer[..count]);
                at += count as u64;
                watch.check(at)?;
            }
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => watch.now(at)?,
            Err(error) => return Err(Error::Io(error)),
        }
    }
}

/// Lower-case hexadecimal.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}
