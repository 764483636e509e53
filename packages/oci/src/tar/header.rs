//! The 512-byte tar header: ustar (POSIX.1-2017, `pax`), GNU and v7 fields.

use crate::error::{Code, Error, Result};

pub const BLOCK: usize = 512;

/// Which dialect a header is written in; it decides what follows the link name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dialect {
    V7,
    Posix,
    Gnu,
}

/// A header whose checksum is right.
pub struct Header<'a> {
    bytes: &'a [u8; BLOCK],
}

impl<'a> Header<'a> {
    pub fn parse(bytes: &'a [u8; BLOCK]) -> Result<Self> {
        let stored = number(&bytes[148..156])?;
        // Historic writers summed signed characters.
        let (mut unsigned, mut signed) = (0i64, 0i64);
        for (i, &b) in bytes.iter().enumerate() {
            let b = if (148..156).contains(&i) { b' ' } else { b };
            unsigned += i64::from(b);
            signed += i64::from(b as i8);
        }
        if stored != unsigned && stored != signed {
            return Err(Error::new(
                Code::BadHeader,
                "not a tar header: wrong checksum",
            ));
        }
        Ok(Header { bytes })
    }

    pub fn dialect(&self) -> Dialect {
        match &self.bytes[257..265] {
            b"ustar  \0" => Dialect::Gnu,
            magic if magic.starts_with(b"ustar\0") => Dialect::Posix,
            _ => Dialect::V7,
        }
    }

    pub fn kind(&self) -> u8 {
        self.bytes[156]
    }

    /// The name, with the ustar prefix where the dialect has one.
    pub fn path(&self) -> Vec<u8> {
        let name = text(&self.bytes[..100]);
        if self.dialect() == Dialect::Posix {
            // star keeps times behind a shorter prefix and signs at the end.
            let star = self.bytes[508..512] == *b"tar\0";
            let prefix = text(&self.bytes[345..if star { 476 } else { 500 }]);
            if !prefix.is_empty() {
                return [prefix, b"/", name].concat();
            }
        }
        name.to_vec()
    }

    pub fn link(&self) -> &'a [u8] {
        text(&self.bytes[157..257])
    }

    pub fn mode(&self) -> Result<i64> {
        number(&self.bytes[100..108])
    }

    pub fn uid(&self) -> Result<i64> {
        number(&self.bytes[108..116])
    }

    pub fn gid(&self) -> Result<i64> {
        number(&self.bytes[116..124])
    }

    pub fn size(&self) -> Result<u64> {
        size(&self.bytes[124..136])
    }

    pub fn mtime(&self) -> Result<i64> {
        number(&self.bytes[136..148])
    }

    pub fn device(&self) -> Result<(i64, i64)> {
        if self.dialect() == Dialect::V7 {
            return Ok((0, 0));
        }
        Ok((
            number(&self.bytes[329..337])?,
            number(&self.bytes[337..345])?,
        ))
    }

    /// GNU sparse: the four entries in the header, whether more follow, and the logical size.
    pub fn gnu_sparse(&self) -> Result<(&'a [u8], bool, u64)> {
        if self.dialect() != Dialect::Gnu {
            return Err(Error::new(
                Code::BadHeader,
                "GNU sparse entry without a GNU header",
            ));
        }
        Ok((
            &self.bytes[386..482],
            self.bytes[482] != 0,
            size(&self.bytes[483..495])?,
        ))
    }
}

/// Bytes up to the first NUL.
pub fn text(field: &[u8]) -> &[u8] {
    let end = field.iter().position(|&b| b == 0).unwrap_or(field.len());
    &field[..end]
}

/// A number that must not be negative.
pub fn size(field: &[u8]) -> Result<u64> {
    u64::try_from(number(field)?).map_err(|_| Error::new(Code::BadHeader, "negative size"))
}

/// A numeric field: octal digits, or big-endian two's complement if the first bit is set (GNU).
pub fn number(field: &[u8]) -> Result<i64> {
    let bad = || Error::new(Code::BadHeader, "malformed number in a header");
    let Some(&first) = field.first() else {
        return Err(bad());
    };
    if first & 0x80 != 0 {
        let negative = first & 0x40 != 0;
        let mut value = if negative { -1i128 } else { 0 };
        for (i, &b) in field.iter().enumerate() {
            // Bit 7 of the first byte is the marker; the sign takes its place.
            let b = match (i, negative) {
                (0, false) => b & 0x7f,
                _ => b,
            };
            value = (value << 8) | i128::from(b);
        }
        return i64::try_from(value).map_err(|_| bad());
    }
    let digits = field
        .split(|&b| b == 0)
        .next()
        .unwrap_or_default()
        .trim_ascii();
    digits.iter().try_fold(0i64, |value, &b| match b {
        b'0'..=b'7' => Ok(value << 3 | i64::from(b - b'0')),
        _ => Err(bad()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers() {
        assert_eq!(number(b"0000644\0").unwrap(), 0o644);
        assert_eq!(number(b"   644 \0").unwrap(), 0o644);
        assert_eq!(number(b"\0\0\0\0").unwrap(), 0);
        assert_eq!(number(b"77777777777\0").unwrap(), 0o77777777777);
        assert_eq!(number(b"\x80\0\0\0\0\0\0\x02\0\0\0\0").unwrap(), 1 << 33);
        assert_eq!(number(&[0xff; 12]).unwrap(), -1);
        assert_eq!(number(b"\xff\xff\xff\xff\xff\xff\xff\x00").unwrap(), -256);
        for bad in [
            &b"12x"[..],
            b"-1",
            b"8",
            b"1 2",
            b"\x80\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff",
        ] {
            assert!(number(bad).is_err(), "{bad:?}");
        }
        assert!(size(&[0xff; 12]).is_err());
    }
}
