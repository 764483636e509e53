//! Entries of a PAX archive (POSIX.1-2017, `pax`, "pax Interchange Format"), with the keys by which GNU tar, Go and
//! libarchive know extended attributes and sparse files.
//!
//! The same entry always gives the same bytes: no process numbers, no user names, no time of writing.

use super::header::BLOCK;
use crate::blob::Extent;
use crate::tree::Meta;
use crate::xattr::Xattrs;

/// Largest numbers of a header's octal fields of seven and eleven digits.
const SEVEN_DIGITS: u64 = (1 << 21) - 1;
const ELEVEN_DIGITS: u64 = (1 << 33) - 1;
/// Bytes of a header's name, and of its link target.
const NAME_LEN: usize = 100;

/// What is behind an entry's header.
pub enum Data<'a> {
    None,
    /// This many bytes.
    Whole(u64),
    /// Only these parts of a file of `size` bytes.
    Sparse {
        size: u64,
        extents: &'a [Extent],
    },
}

/// One entry, without its data.
pub struct Entry<'a> {
    /// Relative to the root; that of a directory ends with `/`.
    pub path: &'a [u8],
    /// The header's type: `b'0'` for files.
    pub kind: u8,
    /// Target of a symbolic or hard link.
    pub link: &'a [u8],
    pub meta: Meta,
    pub xattrs: &'a Xattrs,
    /// Major and minor number.
    pub device: (u32, u32),
    pub data: Data<'a>,
}

/// Append everything that stands in front of the entry's data: extended header, header, sparse map.
pub fn begin(entry: &Entry<'_>, out: &mut Vec<u8>) {
    let mut records = Vec::new();
    let mut map = Vec::new();
    let mut path = entry.path;
    let placeholder;
    let stored = match entry.data {
        Data::None => 0,
        Data::Whole(size) => size,
        Data::Sparse { size, extents } => {
            // GNU format 1.0. Who does not know it finds a file that says by its name what it is.
            placeholder = beside(path, b"GNUSparseFile.0");
            record(&mut records, b"GNU.sparse.major", b"1");
            record(&mut records, b"GNU.sparse.minor", b"0");
            record(&mut records, b"GNU.sparse.name", path);
            number(&mut records, b"GNU.sparse.realsize", size);
            path = &placeholder;
            map = sparse_map(size, extents);
            map.len() as u64 + extents.iter().map(|extent| extent.len).sum::<u64>()
        }
    };
    if path.len() > NAME_LEN {
        record(&mut records, b"path", path);
    }
    if entry.link.len() > NAME_LEN {
        record(&mut records, b"linkpath", entry.link);
    }
    let meta = &entry.meta;
    for (key, value, largest) in [
        (&b"size"[..], stored, ELEVEN_DIGITS),
        (b"uid", meta.uid.into(), SEVEN_DIGITS),
        (b"gid", meta.gid.into(), SEVEN_DIGITS),
    ] {
        if value > largest {
            number(&mut records, key, value);
        }
    }
    let seconds = u64::try_from(meta.mtime)
        .ok()
        .filter(|&seconds| seconds <= ELEVEN_DIGITS);
    if seconds.is_none() || meta.mtime_nsec != 0 {
        let time = decimal_time(meta.mtime, meta.mtime_nsec);
        record(&mut records, b"mtime", time.as_bytes());
    }
    for (name, value) in entry.xattrs {
        attribute(&mut records, name, value);
    }
    if !records.is_empty() {
        let texts = [path, entry.link, entry.path];
        if texts.iter().any(|text| std::str::from_utf8(text).is_err()) {
            // First, because it is about the records behind it: they are UTF-8 otherwise.
            let mut first = Vec::new();
            record(&mut first, b"hdrcharset", b"BINARY");
            records.splice(0..0, first);
        }
        let name = beside(entry.path, b"PaxHeaders.0");
        let own = Meta {
            mode: 0o644,
            ..Meta::INVENTED
        };
        header(out, &name, b'x', b"", &own, records.len() as u64, (0, 0));
        out.extend_from_slice(&records);
        pad(out, records.len() as u64);
    }
    header(
        out,
        path,
        entry.kind,
        entry.link,
        meta,
        stored,
        entry.device,
    );
    out.extend_from_slice(&map);
}

/// Append the zeros that follow `len` bytes of data.
pub fn pad(out: &mut Vec<u8>, len: u64) {
    let zeros = len.next_multiple_of(BLOCK as u64) - len;
    out.resize(out.len() + zeros as usize, 0);
}

/// Append the end of the archive.
pub fn end(out: &mut Vec<u8>) {
    out.resize(out.len() + 2 * BLOCK, 0);
}

fn header(
    out: &mut Vec<u8>,
    name: &[u8],
    kind: u8,
    link: &[u8],
    meta: &Meta,
    size: u64,
    device: (u32, u32),
) {
    let mut block = [0; BLOCK];
    text(&mut block[..NAME_LEN], name);
    octal(&mut block[100..108], u64::from(meta.mode));
    octal(&mut block[108..116], meta.uid.into());
    octal(&mut block[116..124], meta.gid.into());
    octal(&mut block[124..136], size);
    octal(
        &mut block[136..148],
        u64::try_from(meta.mtime).unwrap_or_default(),
    );
    block[148..156].fill(b' ');
    block[156] = kind;
    text(&mut block[157..157 + NAME_LEN], link);
    block[257..265].copy_from_slice(b"ustar\x0000");
    octal(&mut block[329..337], device.0.into());
    octal(&mut block[337..345], device.1.into());
    let sum: u64 = block.iter().map(|&b| u64::from(b)).sum();
    octal(&mut block[148..155], sum);
    out.extend_from_slice(&block);
}

/// As much of `value` as there is room for: an extended header has what is longer.
fn text(field: &mut [u8], value: &[u8]) {
    let len = value.len().min(field.len());
    field[..len].copy_from_slice(&value[..len]);
}

/// Digits and a NUL; 0 for a number that has an extended header.
fn octal(field: &mut [u8], value: u64) {
    let digits = field.len() - 1;
    let value = if value >> (3 * digits) == 0 { value } else { 0 };
    for (i, slot) in field[..digits].iter_mut().rev().enumerate() {
        *slot = b'0' + (value >> (3 * i) & 7) as u8;
    }
    field[digits] = 0;
}

/// `directory` put in front of the last component of a path.
fn beside(path: &[u8], directory: &[u8]) -> Vec<u8> {
    let path = path.strip_suffix(b"/").unwrap_or(path);
    let last = path.rsplit(|&b| b == b'/').next().unwrap_or_default();
    let parents = &path[..path.len() - last.len()];
    [parents, directory, b"/", last].concat()
}

/// Append one record: its length, which counts its own digits, then `key=value` and a line break.
fn record(out: &mut Vec<u8>, key: &[u8], value: &[u8]) {
    let rest = key.len() + value.len() + 3;
    let mut len = rest + 1;
    while len.to_string().len() + rest != len {
        len += 1;
    }
    for part in [len.to_string().as_bytes(), b" ", key, b"=", value, b"\n"] {
        out.extend_from_slice(part);
    }
}

fn number(out: &mut Vec<u8>, key: &[u8], value: u64) {
    record(out, key, value.to_string().as_bytes());
}

fn attribute(out: &mut Vec<u8>, name: &[u8], value: &[u8]) {
    if name.contains(&b'=') {
        // A record's key ends at the first `=`: only libarchive's form can hold such a name.
        let key = [b"LIBARCHIVE.xattr.", &percent_encode(name)[..]].concat();
        record(out, &key, &base64_encode(value));
    } else {
        record(out, &[b"SCHILY.xattr.", name].concat(), value);
    }
}

/// Seconds with nine decimals; the nanoseconds of a time count forward also before 1970.
fn decimal_time(seconds: i64, nanos: u32) -> String {
    if nanos == 0 {
        return seconds.to_string();
    }
    if seconds >= 0 {
        return format!("{seconds}.{nanos:09}");
    }
    format!("-{}.{:09}", -(seconds + 1), 1_000_000_000 - nanos)
}

/// The map in front of a sparse file's data, padded. One that ends with a hole has an empty extent there.
fn sparse_map(size: u64, extents: &[Extent]) -> Vec<u8> {
    let end = extents.last().map_or(0, |last| last.offset + last.len);
    let last = (end < size).then_some(Extent {
        offset: size,
        len: 0,
    });
    let count = extents.len() + usize::from(last.is_some());
    let mut map = format!("{count}\n").into_bytes();
    for extent in extents.iter().chain(&last) {
        map.extend_from_slice(format!("{}\n{}\n", extent.offset, extent.len).as_bytes());
    }
    let len = map.len() as u64;
    pad(&mut map, len);
    map
}

fn percent_encode(text: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    for &b in text {
        if b.is_ascii_graphic() && b != b'%' && b != b'=' {
            out.push(b);
        } else {
            out.extend_from_slice(format!("%{b:02X}").as_bytes());
        }
    }
    out
}

/// Base64 as libarchive writes it: without padding.
fn base64_encode(data: &[u8]) -> Vec<u8> {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut out = Vec::new();
    for group in data.chunks(3) {
        let mut bytes = [0; 3];
        bytes[..group.len()].copy_from_slice(group);
        let bits = u32::from_be_bytes([0, bytes[0], bytes[1], bytes[2]]);
        for i in 0..=group.len() {
            out.push(ALPHABET[(bits >> (18 - 6 * i) & 63) as usize]);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::Limits;
    use crate::tar::{EntryKind, Reader};
    use crate::xattr;
    use proptest::prelude::*;

    const META: Meta = Meta {
        mode: 0o4755,
        uid: 1000,
        gid: 100,
        mtime: 1_700_000_000,
        mtime_nsec: 0,
    };

    fn plain<'a>(path: &'a [u8], xattrs: &'a Xattrs) -> Entry<'a> {
        Entry {
            path,
            kind: b'0',
            link: b"",
            meta: META,
            xattrs,
            device: (0, 0),
            data: Data::None,
        }
    }

    /// The entry as our own reader has it, with its data.
    fn read(entry: &Entry<'_>, data: &[u8]) -> (crate::tar::Entry, Vec<u8>) {
        let mut archive = Vec::new();
        begin(entry, &mut archive);
        archive.extend_from_slice(data);
        pad(&mut archive, data.len() as u64);
        end(&mut archive);
        assert_eq!(archive.len() % BLOCK, 0);
        let mut reader = Reader::new(&archive[..], Limits::default());
        let found = reader.next_entry().unwrap().unwrap();
        let mut read = Vec::new();
        loop {
            let part = reader.data().unwrap().to_vec();
            if part.is_empty() {
                break;
            }
            reader.consume(part.len());
            read.extend_from_slice(&part);
        }
        assert!(reader.next_entry().unwrap().is_none());
        (found, read)
    }

    #[test]
    fn a_plain_entry_is_one_header() {
        let none = Xattrs::new();
        let mut out = Vec::new();
        begin(&plain(&[b'n'; 100], &none), &mut out);
        assert_eq!(out.len(), BLOCK);
        assert_eq!(&out[136..148], b"14524770400\0");
    }

    #[test]
    fn sparse_files_come_back() {
        let none = Xattrs::new();
        let extents = [
            Extent {
                offset: 4096,
                len: 8,
            },
            Extent {
                offset: 1 << 30,
                len: 4,
            },
        ];
        let long = [b"d/", &[b's'; 120][..]].concat();
        for path in [&b"s"[..], &long] {
            for size in [1 << 40, (1 << 30) + 4] {
                let mut entry = plain(path, &none);
                entry.data = Data::Sparse {
                    size,
                    extents: &extents,
                };
                let (found, data) = read(&entry, b"contentsmore");
                assert_eq!((&found.path[..], found.size), (path, size));
                assert_eq!(found.extents.unwrap(), extents);
                assert_eq!(data, b"contentsmore");
            }
        }
        let mut entry = plain(b"nothing", &none);
        entry.data = Data::Sparse {
            size: 5,
            extents: &[],
        };
        let (found, data) = read(&entry, b"");
        assert_eq!((found.size, found.extents.unwrap().len()), (5, 0));
        assert!(data.is_empty());
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(
            name in proptest::collection::vec(1u8.., 1..300),
            link in proptest::collection::vec(1u8.., 1..300),
            mode in 0u16..0o10000,
            (uid, gid) in any::<(u32, u32)>(),
            mtime in -(1i64 << 40)..1 << 40,
            mtime_nsec in prop_oneof![Just(0), 0u32..1_000_000_000],
            attributes in proptest::collection::vec(
                ("[ -~]{1,40}", proptest::collection::vec(any::<u8>(), 0..40)), 0..4),
            size in prop_oneof![0u64..2, ELEVEN_DIGITS - 1..=ELEVEN_DIGITS + 2],
        ) {
            let mut xattrs = Xattrs::new();
            for (name, value) in &attributes {
                let name = [b"user.", name.as_bytes()].concat();
                xattr::insert(&mut xattrs, &name, value).unwrap();
            }
            let meta = Meta { mode, uid, gid, mtime, mtime_nsec };
            let (link_found, _) = read(
                &Entry {
                    path: &name,
                    kind: b'2',
                    link: &link,
                    meta,
                    xattrs: &xattrs,
                    device: (0, 0),
                    data: Data::None,
                },
                b"",
            );
            prop_assert_eq!(link_found.kind, EntryKind::Symlink);
            prop_assert_eq!(&link_found.path, &name);
            prop_assert_eq!(&link_found.link, &link);
            prop_assert_eq!(link_found.meta, meta);
            prop_assert_eq!(link_found.xattrs, xattrs);

            let none = Xattrs::new();
            let mut out = Vec::new();
            begin(&Entry { data: Data::Whole(size), ..plain(b"f", &none) }, &mut out);
            let found = Reader::new(&out[..], Limits::default()).next_entry().unwrap().unwrap();
            prop_assert_eq!(found.size, size);
        }
    }
}
