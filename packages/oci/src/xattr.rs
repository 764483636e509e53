//! Extended attributes: which are kept, and how EROFS abbreviates their names.

use crate::error::{Code, Error, Result};
use std::collections::BTreeMap;

/// Attributes of one inode by full name. Sorted, so equal sets are equal bytes.
pub type Xattrs = BTreeMap<Box<[u8]>, Box<[u8]>>;

/// Marks a directory that hides what lower layers put into it.
pub const OPAQUE: &[u8] = b"trusted.overlay.opaque";
/// Marks a directory that the tar did not list: its attributes are invented.
pub const IMPLICIT: &[u8] = b"trusted.microsandbox.implicit";
/// On an empty file: a hard link to this path in lower layers.
pub const HARD_LINK: &[u8] = b"trusted.microsandbox.hardlink";

/// EROFS name indexes (`EROFS_XATTR_INDEX_*`) with the prefix that each stands for. The two ACL
/// attributes are stored with an empty rest.
const PREFIXES: [(u8, &[u8]); 5] = [
    (2, b"system.posix_acl_access"),
    (3, b"system.posix_acl_default"),
    (1, b"user."),
    (4, b"trusted."),
    (6, b"security."),
];

/// Longest attribute name in Linux (`XATTR_NAME_MAX`).
const NAME_MAX: usize = 255;
/// The length field of a value has 16 bits.
const VALUE_MAX: usize = 65535;
/// Bytes before the entries of an inode's attribute area.
pub const HEADER_LEN: usize = 12;

/// Index and rest of a full name; `None` for a name that EROFS cannot hold.
pub fn split(name: &[u8]) -> Option<(u8, &[u8])> {
    PREFIXES.iter().find_map(|&(index, prefix)| {
        let rest = name.strip_prefix(prefix)?;
        let whole = !prefix.ends_with(b".");
        (whole == rest.is_empty()).then_some((index, rest))
    })
}

/// The inverse of [`split`].
pub fn join(index: u8, rest: &[u8]) -> Option<Box<[u8]>> {
    let (_, prefix) = PREFIXES.iter().find(|(i, _)| *i == index)?;
    let name = [prefix, rest].concat().into_boxed_slice();
    (split(&name) == Some((index, rest)) && name.len() <= NAME_MAX).then_some(name)
}

/// Put an attribute of an archive or directory into `set`, if it is one that images carry.
///
/// Left out: names outside the four Linux namespaces (macOS archives have them), and the attributes by
/// which overlayfs and this crate talk to themselves, since an image that could set those would steer
/// the guest's overlay mount (redirects, metacopy) and the merge.
pub fn insert(set: &mut Xattrs, name: &[u8], value: &[u8]) -> Result<()> {
    if name.starts_with(b"trusted.overlay.") || name.starts_with(b"trusted.microsandbox.") {
        return Ok(());
    }
    if split(name).is_none() {
        return Ok(());
    }
    if name.len() > NAME_MAX || name.contains(&0) {
        return Err(Error::new(Code::Xattrs, "malformed attribute name"));
    }
    if value.len() > VALUE_MAX {
        return Err(Error::new(
            Code::Xattrs,
            format!(
                "attribute value of {} bytes (limit {VALUE_MAX})",
                value.len()
            ),
        ));
    }
    set.insert(name.into(), value.into());
    Ok(())
}

/// Bytes that a set occupies behind its inode.
pub fn encoded_len(set: &Xattrs) -> usize {
    if set.is_empty() {
        return 0;
    }
    let entries: usize = set
        .iter()
        .map(|(name, value)| {
            let rest = split(name).map_or(0, |(_, rest)| rest.len());
            (4 + rest + value.len()).next_multiple_of(4)
        })
        .sum();
    HEADER_LEN + entries
}

/// Append the attribute area of an inode.
pub fn encode(set: &Xattrs, out: &mut Vec<u8>) {
    if set.is_empty() {
        return;
    }
    out.extend_from_slice(&[0; HEADER_LEN]);
    for (name, value) in set {
        let Some((index, rest)) = split(name) else {
            continue;
        };
        out.push(rest.len() as u8);
        out.push(index);
        out.extend_from_slice(&(value.len() as u16).to_le_bytes());
        out.extend_from_slice(rest);
        out.extend_from_slice(value);
        let pad =
            (4 + rest.len() + value.len()).next_multiple_of(4) - (4 + rest.len() + value.len());
        out.extend_from_slice(&[0; 3][..pad]);
    }
}

/// Parse the attribute area of an inode; `None` if it is malformed.
pub fn decode(area: &[u8]) -> Option<Xattrs> {
    let mut set = Xattrs::new();
    if area.is_empty() {
        return Some(set);
    }
    // The shared count is zero in every image of ours.
    if area.get(4) != Some(&0) {
        return None;
    }
    let mut rest = area.get(HEADER_LEN..)?;
    while !rest.is_empty() {
        let [name_len, index, low, high] = *rest.first_chunk::<4>()?;
        let name_end = 4 + name_len as usize;
        let end = name_end + u16::from_le_bytes([low, high]) as usize;
        let name = join(index, rest.get(4..name_end)?)?;
        let value = rest.get(name_end..end)?;
        if set.insert(name, value.into()).is_some() {
            return None;
        }
        rest = rest.get(end.next_multiple_of(4)..)?;
    }
    Some(set)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn round_trip() {
        let mut set = Xattrs::new();
        insert(&mut set, b"user.a", b"1").unwrap();
        insert(&mut set, b"security.capability", &[1; 20]).unwrap();
        insert(&mut set, b"system.posix_acl_access", &[2; 28]).unwrap();
        insert(&mut set, b"trusted.x", b"").unwrap();
        assert_eq!(set.len(), 4);
        let mut area = Vec::new();
        encode(&set, &mut area);
        assert_eq!(area.len(), encoded_len(&set));
        assert_eq!(decode(&area).unwrap(), set);
    }

    #[test]
    fn foreign_and_reserved_names_are_left_out() {
        let mut set = Xattrs::new();
        for name in [
            &b"com.apple.provenance"[..],
            b"trusted.overlay.redirect",
            b"trusted.overlay.overlay.opaque",
            HARD_LINK,
            b"system.nfs4_acl",
            b"user.",
            b"",
        ] {
            insert(&mut set, name, b"x").unwrap();
        }
        assert!(set.is_empty(), "{set:?}");
        assert!(insert(&mut set, b"user.a", &[0; 65536]).is_err());
        assert!(insert(&mut set, &[b"user.", &[b'n'; 251][..]].concat(), b"").is_err());
    }
}
