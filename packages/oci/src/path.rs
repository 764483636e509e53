//! Names from archives, made harmless.

use crate::error::{Code, Error, Result};

/// Longest file name that EROFS, and every Linux file system, can hold.
pub const NAME_MAX: usize = 255;

/// The components of an archive path, relative to the root; empty for the root itself.
///
/// A leading `/`, repeated slashes and `.` fall away. `..` is refused wherever it stands, even where it
/// would stay inside: two readers that resolve it differently would see two different layers.
pub fn components(path: &[u8], max_path: u64) -> Result<Vec<&[u8]>> {
    if path.len() as u64 > max_path {
        return Err(Error::new(
            Code::PathTooLong,
            format!("path of {} bytes (limit {max_path})", path.len()),
        )
        .at(path));
    }
    if path.is_empty() {
        return Err(Error::new(Code::BadPath, "empty name"));
    }
    if path.contains(&0) {
        return Err(Error::new(Code::BadPath, "name contains a NUL byte").at(path));
    }
    let mut parts = Vec::new();
    for part in path.split(|&b| b == b'/') {
        match part {
            b"" | b"." => {}
            b".." => return Err(Error::new(Code::BadPath, "name contains `..`").at(path)),
            _ if part.len() > NAME_MAX => {
                return Err(Error::new(
                    Code::PathTooLong,
                    format!("name component of {} bytes (limit {NAME_MAX})", part.len()),
                )
                .at(path))
            }
            _ => parts.push(part),
        }
    }
    Ok(parts)
}

/// What a file name in an OCI layer means.
#[derive(Debug, PartialEq, Eq)]
pub enum Marker<'a> {
    /// An ordinary name.
    None,
    /// `.wh.NAME`: NAME of lower layers is gone.
    Whiteout(&'a [u8]),
    /// `.wh..wh..opq`: everything lower layers put into this directory is gone.
    Opaque,
    /// Bookkeeping of aufs that never was part of the image.
    Ignored,
}

/// Interpret the components of an archive path as OCI layer markers.
pub fn marker<'a>(parts: &[&'a [u8]]) -> Result<Marker<'a>> {
    let Some((last, parents)) = parts.split_last() else {
        return Ok(Marker::None);
    };
    let bad = |why| Err(Error::new(Code::BadPath, why).at(&parts.join(&b'/')));
    for parent in parents {
        if parent.starts_with(b".wh..wh.") {
            return Ok(Marker::Ignored);
        }
        if parent.starts_with(b".wh.") {
            return bad("a whiteout cannot have children");
        }
    }
    match last.strip_prefix(b".wh.") {
        None => Ok(Marker::None),
        Some(b".wh..opq") => Ok(Marker::Opaque),
        Some(b"" | b"." | b"..") => bad("whiteout of an impossible name"),
        Some(name) if name.starts_with(b".wh.") => Ok(Marker::Ignored),
        Some(name) => Ok(Marker::Whiteout(name)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(path: &[u8]) -> Option<Vec<&[u8]>> {
        components(path, 4095).ok()
    }

    #[test]
    fn o01_names_stay_under_the_root() {
        assert_eq!(parts(b"/abs/path").unwrap(), [&b"abs"[..], b"path"]);
        assert_eq!(parts(b"./a//b/./c/").unwrap(), [&b"a"[..], b"b", b"c"]);
        assert_eq!(parts(b"./").unwrap().len(), 0);
        assert_eq!(parts(b"a..b/...").unwrap(), [&b"a..b"[..], b"..."]);
        for bad in [
            &b"../../etc/cron.d/x"[..],
            b"a/../../b",
            b"a/..",
            b"..",
            b"",
            b"a\0b",
        ] {
            assert!(parts(bad).is_none(), "{bad:?}");
        }
        assert!(parts(&[b'a'; 255]).is_some());
        assert!(parts(&[b'a'; 256]).is_none());
        assert!(parts(&b"a/".repeat(2048)).is_none());
    }

    #[test]
    fn markers() {
        let of = |path: &'static [u8]| marker(&components(path, 4095).unwrap());
        assert_eq!(of(b"a/.wh.b").unwrap(), Marker::Whiteout(b"b"));
        assert_eq!(of(b"a/.wh..wh..opq").unwrap(), Marker::Opaque);
        assert_eq!(of(b".wh..wh.plnk/1.2").unwrap(), Marker::Ignored);
        assert_eq!(of(b".wh..wh.aufs").unwrap(), Marker::Ignored);
        assert_eq!(of(b"a/.whb").unwrap(), Marker::None);
        assert_eq!(of(b"/").unwrap(), Marker::None);
        for bad in [&b"a/.wh."[..], b".wh...", b".wh..", b".wh.a/b"] {
            assert!(of(bad).is_err(), "{bad:?}");
        }
    }
}
