//! Directory contents: sorted names in blocks.

use super::format::{u16_at, u64_at, BLOCK};

/// Bytes of one entry before the names.
pub const DIRENT_LEN: usize = 12;

/// One directory entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dirent<'a> {
    pub name: &'a [u8],
    pub nid: u64,
    pub file_type: u8,
}

/// Size in bytes of a directory with names of these lengths, in order.
///
/// All blocks but the last count whole; an entry never spans two blocks.
pub fn size(name_lens: impl Iterator<Item = usize>) -> u64 {
    let (mut full, mut used) = (0u64, 0);
    for len in name_lens {
        let need = DIRENT_LEN + len;
        if used + need > BLOCK {
            full += 1;
            used = 0;
        }
        used += need;
    }
    full * BLOCK as u64 + used as u64
}

/// Write entries, already sorted, in the layout that [`size`] counted.
pub fn encode(entries: &[Dirent<'_>], out: &mut Vec<u8>) {
    let mut rest = entries;
    while !rest.is_empty() {
        let (mut count, mut used) = (0, 0);
        while let Some(entry) = rest.get(count) {
            let need = DIRENT_LEN + entry.name.len();
            if used + need > BLOCK {
                break;
            }
            used += need;
            count += 1;
        }
        let (block, next) = rest.split_at(count);
        let mut name_at = DIRENT_LEN * count;
        for entry in block {
            out.extend_from_slice(&entry.nid.to_le_bytes());
            out.extend_from_slice(&(name_at as u16).to_le_bytes());
            out.push(entry.file_type);
            out.push(0);
            name_at += entry.name.len();
        }
        for entry in block {
            out.extend_from_slice(entry.name);
        }
        if !next.is_empty() {
            out.resize(out.len() + BLOCK - used, 0);
        }
        rest = next;
    }
}

/// Parse a directory; `None` unless it is exactly what [`encode`] writes for sorted, distinct names.
pub fn decode(data: &[u8]) -> Option<Vec<Dirent<'_>>> {
    let mut entries: Vec<Dirent<'_>> = Vec::new();
    for block in data.chunks(BLOCK) {
        let first_name = u16_at(block.get(..DIRENT_LEN)?, 8) as usize;
        if first_name == 0 || first_name % DIRENT_LEN != 0 || first_name > block.len() {
            return None;
        }
        let count = first_name / DIRENT_LEN;
        let mut name_at = first_name;
        for i in 0..count {
            let entry = &block[i * DIRENT_LEN..(i + 1) * DIRENT_LEN];
            if u16_at(entry, 8) as usize != name_at || entry[11] != 0 {
                return None;
            }
            let end = if i + 1 < count {
                u16_at(&block[(i + 1) * DIRENT_LEN..(i + 2) * DIRENT_LEN], 8) as usize
            } else {
                let tail = block.get(name_at..)?;
                name_at + tail.iter().position(|&b| b == 0).unwrap_or(tail.len())
            };
            let name = block.get(name_at..end)?;
            let sorted = entries.last().is_none_or(|previous| previous.name < name);
            if name.is_empty()
                || name.len() > crate::path::NAME_MAX
                || name.contains(&b'/')
                || name.contains(&0)
                || !sorted
            {
                return None;
            }
            entries.push(Dirent {
                name,
                nid: u64_at(entry, 0),
                file_type: entry[10],
            });
            name_at = end;
        }
        if block[name_at..].iter().any(|&b| b != 0) {
            return None;
        }
    }
    Some(entries)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn round_trip(names in proptest::collection::btree_set("[!-.0-~]{1,255}", 0..200)) {
            let names: Vec<_> = names.iter().filter(|n| n.len() <= 255).collect();
            let entries: Vec<_> = names
                .iter()
                .enumerate()
                .map(|(i, n)| Dirent { name: n.as_bytes(), nid: i as u64 * 7, file_type: 1 })
                .collect();
            let mut data = Vec::new();
            encode(&entries, &mut data);
            prop_assert_eq!(data.len() as u64, size(names.iter().map(|n| n.len())));
            prop_assert_eq!(decode(&data).unwrap(), entries);
        }

        #[test]
        fn hostile_directories_are_refused_or_read(data in proptest::collection::vec(any::<u8>(), 0..9000)) {
            let _ = decode(&data);
        }
    }
}
