//! PAX extended headers (POSIX.1-2017, `pax`, "pax Extended Header"), with the keys that GNU tar, star and
//! libarchive add.

use super::header;
use crate::error::{Code, Error, Result};
use crate::xattr::{self, Xattrs};

/// What extended headers say about the next entry.
#[derive(Clone, Debug, Default)]
pub struct Pax {
    pub path: Option<Vec<u8>>,
    pub link: Option<Vec<u8>>,
    pub size: Option<u64>,
    pub uid: Option<u64>,
    pub gid: Option<u64>,
    pub mtime: Option<(i64, u32)>,
    pub xattrs: Xattrs,
    pub sparse: GnuSparse,
}

/// The `GNU.sparse.*` keys.
#[derive(Clone, Debug, Default)]
pub struct GnuSparse {
    pub major: Option<u64>,
    pub minor: Option<u64>,
    pub name: Option<Vec<u8>>,
    /// `GNU.sparse.size` or `GNU.sparse.realsize`.
    pub size: Option<u64>,
    pub map: Option<Vec<u64>>,
    /// `GNU.sparse.offset` and `GNU.sparse.numbytes`, in turn.
    pub pairs: Vec<u64>,
}

impl GnuSparse {
    pub fn is_used(&self) -> bool {
        self.major.is_some() || self.size.is_some() || self.map.is_some() || !self.pairs.is_empty()
    }
}

fn bad(why: &str) -> Error {
    Error::new(Code::BadHeader, format!("PAX header: {why}"))
}

impl Pax {
    /// Apply the records of one extended header. `global`: it stands for all following entries.
    pub fn apply(&mut self, mut records: &[u8], global: bool) -> Result<()> {
        while !records.is_empty() {
            let space = records
                .iter()
                .take(20)
                .position(|&b| b == b' ')
                .ok_or_else(|| bad("record without a length"))?;
            let len = decimal(&records[..space])? as usize;
            if len <= space + 1 || len > records.len() || records[len - 1] != b'\n' {
                return Err(bad("record length is wrong"));
            }
            let record = &records[space + 1..len - 1];
            let equals = record
                .iter()
                .position(|&b| b == b'=')
                .ok_or_else(|| bad("record without `=`"))?;
            self.set(&record[..equals], &record[equals + 1..], global)?;
            records = &records[len..];
        }
        Ok(())
    }

    fn set(&mut self, key: &[u8], value: &[u8], global: bool) -> Result<()> {
        if global && (key.starts_with(b"SCHILY.xattr.") || key.starts_with(b"LIBARCHIVE.xattr.")) {
            // Nobody writes this, and it would multiply the attributes by the number of entries.
            return Err(Error::new(
                Code::Unsupported,
                "extended attributes for all entries",
            ));
        }
        if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
            return xattr::insert(&mut self.xattrs, name, value);
        }
        if let Some(name) = key.strip_prefix(b"LIBARCHIVE.xattr.") {
            let name = percent_decode(name).ok_or_else(|| bad("malformed attribute name"))?;
            // SCHILY is the exact form; libarchive writes both and they may differ in nothing.
            if self.xattrs.contains_key(name.as_slice()) {
                return Ok(());
            }
            let value = base64_decode(value).ok_or_else(|| bad("malformed base64"))?;
            return xattr::insert(&mut self.xattrs, &name, &value);
        }
        // An empty value takes the header's own field back into force.
        let set = !value.is_empty();
        match key {
            b"path" | b"linkpath" | b"size" if global => {
                return Err(bad("one name or size for all entries"));
            }
            b"path" => self.path = set.then(|| value.to_vec()),
            b"linkpath" => self.link = set.then(|| value.to_vec()),
            b"size" => self.size = set.then(|| decimal(value)).transpose()?,
            b"uid" => self.uid = set.then(|| decimal(value)).transpose()?,
            b"gid" => self.gid = set.then(|| decimal(value)).transpose()?,
            b"mtime" => self.mtime = set.then(|| time(value)).transpose()?,
            _ => {
                if let Some(key) = key.strip_prefix(b"GNU.sparse.") {
                    if global {
                        return Err(bad("one sparse map for all entries"));
                    }
                    return self.set_sparse(key, value);
                }
            }
        }
        Ok(())
    }

    fn set_sparse(&mut self, key: &[u8], value: &[u8]) -> Result<()> {
        let sparse = &mut self.sparse;
        match key {
            b"major" => sparse.major = Some(decimal(value)?),
            b"minor" => sparse.minor = Some(decimal(value)?),
            b"name" => sparse.name = Some(value.to_vec()),
            b"size" | b"realsize" => sparse.size = Some(decimal(value)?),
            b"map" => {
                let numbers: Result<Vec<u64>> = value.split(|&b| b == b',').map(decimal).collect();
                sparse.map = Some(numbers?);
            }
            b"offset" | b"numbytes" => {
                if (key == b"offset") != (sparse.pairs.len() % 2 == 0) {
                    return Err(bad("sparse offsets and lengths do not alternate"));
                }
                sparse.pairs.push(decimal(value)?);
            }
            // numblocks repeats what the pairs say.
            _ => {}
        }
        Ok(())
    }
}

/// A whole number in decimal digits, below 2⁶³.
pub fn decimal(text: &[u8]) -> Result<u64> {
    if text.is_empty() || text.len() > 19 || !text.iter().all(u8::is_ascii_digit) {
        return Err(bad("malformed number"));
    }
    let value = text
        .iter()
        .fold(0u64, |value, b| value * 10 + u64::from(b - b'0'));
    if value > i64::MAX as u64 {
        return Err(bad("number out of range"));
    }
    Ok(value)
}

/// Seconds and nanoseconds; digits beyond nanoseconds are cut off towards the past.
fn time(text: &[u8]) -> Result<(i64, u32)> {
    let (negative, digits) = match text.strip_prefix(b"-") {
        Some(rest) => (true, rest),
        None => (false, text),
    };
    let mut parts = digits.splitn(2, |&b| b == b'.');
    let seconds = decimal(parts.next().unwrap_or_default())? as i64;
    let fraction = parts.next().unwrap_or_default();
    if !fraction.iter().all(u8::is_ascii_digit) {
        return Err(bad("malformed time"));
    }
    let nanos = (0..9).fold(0u32, |nanos, i| {
        nanos * 10 + u32::from(fraction.get(i).map_or(0, |b| b - b'0'))
    });
    let cut = fraction.iter().skip(9).any(|&b| b != b'0');
    match (negative, nanos + u32::from(negative && cut)) {
        (false, nanos) => Ok((seconds, nanos)),
        (true, 0) => Ok((-seconds, 0)),
        (true, nanos) => Ok((-seconds - 1, 1_000_000_000 - nanos)),
    }
}

fn percent_decode(text: &[u8]) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((&b, tail)) = rest.split_first() {
        rest = tail;
        if b == b'%' {
            let hex = std::str::from_utf8(rest.get(..2)?).ok()?;
            out.push(u8::from_str_radix(hex, 16).ok()?);
            rest = &rest[2..];
        } else {
            out.push(b);
        }
    }
    Some(out)
}

/// Base64 as libarchive writes it: standard alphabet, usually without padding.
fn base64_decode(text: &[u8]) -> Option<Vec<u8>> {
    let text = text.trim_ascii_end();
    let text = &text[..text.iter().position(|&b| b == b'=').unwrap_or(text.len())];
    let mut out = Vec::with_capacity(text.len() / 4 * 3 + 2);
    let (mut bits, mut held) = (0u32, 0);
    for &b in text {
        let value = match b {
            b'A'..=b'Z' => b - b'A',
            b'a'..=b'z' => b - b'a' + 26,
            b'0'..=b'9' => b - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => return None,
        };
        bits = bits << 6 | u32::from(value);
        held += 6;
        if held >= 8 {
            held -= 8;
            out.push((bits >> held) as u8);
            bits &= (1 << held) - 1;
        }
    }
    (text.len() % 4 != 1).then_some(out)
}

/// The name in a GNU `L` or `K` record.
pub fn gnu_long_name(data: &[u8]) -> Vec<u8> {
    header::text(data).to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(key: &str, value: &[u8]) -> Vec<u8> {
        let body = [b" ", key.as_bytes(), b"=", value, b"\n"].concat();
        let mut len = body.len() + 1;
        while len.to_string().len() + body.len() != len {
            len += 1;
        }
        [len.to_string().as_bytes(), &body].concat()
    }

    fn parse(records: &[u8]) -> Result<Pax> {
        let mut pax = Pax::default();
        pax.apply(records, false).map(|()| pax)
    }

    #[test]
    fn values() {
        let all = [
            record("path", b"a\xff=b\n"),
            record("mtime", b"-1.25"),
            record("SCHILY.xattr.user.x", b"\0=\n"),
            record("LIBARCHIVE.xattr.user.%79", b"AQID"),
            record("size", b"8589934592"),
            record("comment", b"whatever"),
        ]
        .concat();
        let pax = parse(&all).unwrap();
        assert_eq!(pax.path.unwrap(), b"a\xff=b\n");
        assert_eq!(pax.mtime, Some((-2, 750_000_000)));
        assert_eq!(pax.size, Some(1 << 33));
        assert_eq!(&*pax.xattrs[&b"user.x"[..]], b"\0=\n");
        assert_eq!(&*pax.xattrs[&b"user.y"[..]], [1, 2, 3]);
    }

    #[test]
    fn times() {
        assert_eq!(time(b"1.000000001").unwrap(), (1, 1));
        assert_eq!(time(b"1.9999999999").unwrap(), (1, 999_999_999));
        assert_eq!(time(b"-1").unwrap(), (-1, 0));
        assert_eq!(time(b"-0.0000000001").unwrap(), (-1, 999_999_999));
        assert_eq!(time(b"-0.9999999999").unwrap(), (-1, 0));
        assert!(time(b"1e9").is_err() && time(b"").is_err() && time(b"1.-5").is_err());
    }

    #[test]
    fn malformed_records_are_refused() {
        for bad in [
            &b"5 a=b\n"[..],
            b"7 a=b\n",
            b"6 a=bc",
            b"99999999999999999999 a=b\n",
            b"6 abcd\n",
            b"0 \n",
            b"x a=b\n",
            b" a=b\n",
            b"13 size=-1.0\n",
        ] {
            assert!(parse(bad).is_err(), "{bad:?}");
        }
        assert!(parse(&record("size", b"-1")).is_err());
        assert!(parse(&record("size", b"99999999999999999999")).is_err());
        assert!(parse(b"6 a=b\n").is_ok());
    }
}
