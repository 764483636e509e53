//! Sparse maps: where the stored bytes of a file belong. Every GNU form ends up here.

use super::{header, pax};
use crate::blob::Extent;
use crate::error::{Code, Error, Result};

fn bad(why: &str) -> Error {
    Error::new(Code::BadHeader, format!("sparse map: {why}"))
}

/// Offsets and lengths, in turn, as a checked map.
///
/// Extents must be sorted, disjoint, within `size`, and account for exactly `stored` bytes: a map that
/// claims otherwise would move the borders of this entry or write outside its file.
pub fn check(numbers: &[u64], size: u64, stored: u64) -> Result<Vec<Extent>> {
    if numbers.len() % 2 == 1 {
        return Err(bad("odd number of values"));
    }
    let (mut end, mut sum) = (0u64, 0u64);
    let mut extents = Vec::with_capacity(numbers.len() / 2);
    for pair in numbers.chunks_exact(2) {
        let extent = Extent {
            offset: pair[0],
            len: pair[1],
        };
        if extent.offset < end {
            return Err(bad("extents overlap or are out of order"));
        }
        end = extent
            .offset
            .checked_add(extent.len)
            .filter(|&end| end <= size)
            .ok_or_else(|| bad("extent beyond the end of the file"))?;
        sum += extent.len;
        if extent.len > 0 {
            extents.push(extent);
        }
    }
    if sum != stored {
        return Err(bad("lengths do not add up to the stored size"));
    }
    Ok(extents)
}

/// Append the used entries of an old GNU map (24 bytes each: offset, length); false at its end.
pub fn gnu_entries(fields: &[u8], numbers: &mut Vec<u64>) -> Result<bool> {
    for entry in fields.chunks_exact(24) {
        if entry[0] == 0 {
            return Ok(false);
        }
        numbers.push(header::size(&entry[..12])?);
        numbers.push(header::size(&entry[12..])?);
    }
    Ok(true)
}

/// Incremental parser of the map in front of the data (GNU format 1.0): a count, then that many
/// offset-length pairs, one number per line.
#[derive(Default)]
pub struct MapParser {
    line: Vec<u8>,
    expected: Option<usize>,
    pub numbers: Vec<u64>,
}

impl MapParser {
    /// Feed one 512-byte block; true when the map is complete.
    pub fn feed(&mut self, block: &[u8]) -> Result<bool> {
        for &b in block {
            if b != b'\n' {
                if self.line.len() >= 20 {
                    return Err(bad("line too long"));
                }
                self.line.push(b);
                continue;
            }
            let value = pax::decimal(&self.line)?;
            self.line.clear();
            match self.expected {
                None => {
                    let count = usize::try_from(value).ok().and_then(|n| n.checked_mul(2));
                    self.expected = Some(count.ok_or_else(|| bad("too many extents"))?);
                }
                Some(_) => self.numbers.push(value),
            }
            if Some(self.numbers.len()) == self.expected {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn maps_are_checked() {
        assert_eq!(check(&[0, 5, 10, 5, 20, 0], 20, 10).unwrap().len(), 2);
        for (numbers, size, stored) in [
            (&[0, 5, 4, 1][..], 20, 6),
            (&[10, 1, 0, 1], 20, 2),
            (&[0, 21], 20, 21),
            (&[u64::MAX, 1], u64::MAX, 1),
            (&[0, 5], 20, 6),
            (&[0], 20, 0),
        ] {
            assert!(check(numbers, size, stored).is_err(), "{numbers:?}");
        }
    }

    #[test]
    fn map_in_the_data() {
        let mut parser = MapParser::default();
        assert!(!parser.feed(b"2\n0\n51").unwrap());
        assert!(parser.feed(b"2\n1024\n512\n\0\0\0").unwrap());
        assert_eq!(parser.numbers, [0, 512, 1024, 512]);
        assert!(MapParser::default().feed(b"0\n").unwrap());
        assert!(MapParser::default().feed(b"x\n").is_err());
        assert!(MapParser::default().feed(&[b'1'; 30]).is_err());
    }
}
