//! File contents in compressed extents.
//!
//! A file is cut into extents of [`EXTENT`] bytes. Each is compressed by itself and takes as many blocks as
//! that needs, or stays as it is where no block would be saved. Extents of one size, and not physical clusters
//! of one size as `mkfs.erofs` makes them: no block of a file belongs to two extents, all extents of a file
//! follow each other, and one byte per extent says in memory where each of them is.

use crate::blob::Blob;
use crate::erofs::format::BLOCK;
use crate::error::{Code, Error, Result};
use crate::tree::{Address, Blocks};
use lz4_flex::block::{
    compress_into_with_table, decompress_into, get_maximum_output_size, CompressTable,
};

/// Blocks of one extent before it is compressed. LZ4 looks back 64 KiB at most, and a page that is read
/// costs the decompression of what stands before it in its extent.
pub const EXTENT_BLOCKS: usize = 16;
pub const EXTENT: usize = EXTENT_BLOCKS * BLOCK;

/// How file contents are stored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Encoding {
    #[default]
    Plain,
    Lz4,
}

impl Encoding {
    pub fn parse(name: &str) -> Option<Self> {
        match name {
            "none" => Some(Encoding::Plain),
            "lz4" => Some(Encoding::Lz4),
            _ => None,
        }
    }
}

/// Blocks of each extent of `size` bytes before compression.
pub fn extent_blocks(size: u64) -> impl Iterator<Item = usize> {
    let blocks = size.div_ceil(BLOCK as u64);
    (0..blocks.div_ceil(EXTENT_BLOCKS as u64))
        .map(move |i| (blocks - i * EXTENT_BLOCKS as u64).min(EXTENT_BLOCKS as u64) as usize)
}

/// Compresses one file after the other; the buffers last.
pub struct Compressor {
    /// The extent that is being collected.
    extent: Vec<u8>,
    packed: Vec<u8>,
    table: CompressTable,
    /// Blocks of the extents of this file that are written.
    sizes: Vec<u8>,
    /// The file has an extent that is smaller than its contents.
    gained: bool,
}

impl Default for Compressor {
    fn default() -> Self {
        Compressor {
            extent: Vec::with_capacity(EXTENT),
            packed: vec![0; get_maximum_output_size(EXTENT)],
            table: CompressTable::large(),
            sizes: Vec::new(),
            gained: false,
        }
    }
}

impl Compressor {
    /// Append contents of the file.
    pub fn write(&mut self, blob: &mut Blob<'_>, mut data: &[u8]) -> Result<()> {
        while !data.is_empty() {
            let (now, rest) = data.split_at(data.len().min(EXTENT - self.extent.len()));
            self.extent.extend_from_slice(now);
            data = rest;
            if self.extent.len() == EXTENT {
                self.extent(blob)?;
            }
        }
        Ok(())
    }

    /// End the file that began at `start` and return where it is.
    pub fn finish(&mut self, blob: &mut Blob<'_>, start: Address) -> Result<Blocks> {
        if !self.extent.is_empty() {
            self.extent(blob)?;
        }
        let sizes = std::mem::take(&mut self.sizes);
        let gained = std::mem::take(&mut self.gained);
        if sizes.is_empty() {
            return Ok(Blocks::Empty);
        }
        if !gained {
            // A run needs one index or none; extents need one for every block.
            return Ok(Blocks::Run(start));
        }
        Ok(Blocks::Compressed {
            start,
            sizes: sizes.into(),
        })
    }

    /// Write the extent, compressed if that saves a block.
    fn extent(&mut self, blob: &mut Blob<'_>) -> Result<()> {
        let plain = self.extent.len().div_ceil(BLOCK);
        let packed = match plain {
            1 => 1,
            _ => {
                let len = compress_into_with_table(&self.extent, &mut self.packed, &mut self.table)
                    .map_err(|error| Error::new(Code::Unsupported, format!("LZ4: {error}")))?;
                let blocks = len.div_ceil(BLOCK);
                if blocks < plain {
                    // Zeros in front and the data at the end: so the kernel can decompress in place.
                    blob.zeros((blocks * BLOCK - len) as u64)?;
                    blob.write(&self.packed[..len])?;
                }
                blocks
            }
        };
        if packed >= plain {
            blob.write(&self.extent)?;
            blob.pad()?;
        }
        self.gained |= packed < plain;
        self.sizes.push(packed.min(plain) as u8);
        self.extent.clear();
        Ok(())
    }
}

/// The contents of an extent of `len` bytes from the blocks that it takes.
pub fn decompress(stored: &[u8], len: usize) -> Result<Vec<u8>> {
    let corrupt = || Error::new(Code::Corrupt, "image: a compressed extent is damaged");
    if stored.len() >= len {
        return Ok(stored[..len].to_vec());
    }
    // No LZ4 block begins with a zero: that would be a match before the first byte.
    let begin = stored.iter().position(|&b| b != 0).ok_or_else(corrupt)?;
    let mut out = vec![0; len];
    match decompress_into(&stored[begin..], &mut out) {
        Ok(count) if count == len => Ok(out),
        _ => Err(corrupt()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::{hex, sha256};
    use crate::limits::Limits;
    use crate::merge::merge;
    use crate::testing::{contents, describe, encoded_layer, file, open, scratch};
    use crate::tree::Kind;
    use proptest::prelude::*;
    use std::fs::File;

    fn encoded(files: &[(&str, &[u8])], encoding: Encoding) -> File {
        let entries: Vec<_> = files
            .iter()
            .map(|(name, data)| file(name.as_bytes(), data))
            .collect();
        encoded_layer(&entries, encoding, &Limits::default()).unwrap()
    }

    /// Bytes that cannot be made smaller, the same every time.
    fn noise(len: usize) -> Vec<u8> {
        let mut state = 1u64;
        let mut next = || {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1);
            (state >> 56) as u8
        };
        (0..len).map(|_| next()).collect()
    }

    fn text(len: usize) -> Vec<u8> {
        let lines = (0..).flat_map(|i: u32| format!("line {i} of a text\n").into_bytes());
        lines.take(len).collect()
    }

    /// What the only file `f` of a layer with these contents became, after a look at its contents.
    fn stored(data: &[u8]) -> Blocks {
        let layer = encoded(&[("f", data)], Encoding::Lz4);
        let tree = open(&layer);
        let id = tree.lookup(&[b"f"]).unwrap();
        let Kind::File { size, blocks } = &tree.node(id).kind else {
            panic!("not a file");
        };
        assert_eq!(contents(*size, blocks, &[&layer]), data);
        blocks.clone()
    }

    #[test]
    fn only_what_gets_smaller_is_compressed() {
        let run = Blocks::Run(Address {
            device: 0,
            block: 1,
        });
        assert_eq!(stored(b""), Blocks::Empty);
        assert_eq!(stored(&text(BLOCK)), run);
        assert_eq!(stored(&noise(5 * EXTENT + 1)), run);
        let sizes = |data: &[u8]| match stored(data) {
            Blocks::Compressed { start, sizes } => {
                assert_eq!(
                    start,
                    Address {
                        device: 0,
                        block: 1
                    }
                );
                sizes.to_vec()
            }
            other => panic!("{other:?}"),
        };
        assert_eq!(sizes(&text(BLOCK + 1)), [1]);
        assert_eq!(sizes(&vec![0; 2 * EXTENT + 1]), [1, 1, 1]);
        assert_eq!(
            sizes(&[noise(EXTENT), vec![7; EXTENT], noise(BLOCK + 1)].concat()),
            [16, 1, 2]
        );
        let all = sizes(&text(20 * EXTENT + 5000));
        assert!(all[..20].iter().all(|&blocks| blocks < 9), "{all:?}");
    }

    /// The bytes of compressed layers are a format: `msb image verify` makes them again and compares. If
    /// this fails after an update of the library, then the update cannot be taken just so.
    #[test]
    fn the_bytes_stay_what_they_are() {
        let mixed = [text(300_000), noise(100_000), vec![0; 200_000]].concat();
        let layer = encoded(&[("a", &text(5000)), ("b", &mixed)], Encoding::Lz4);
        let digest = hex(&sha256(&layer, &mut |_| true).unwrap());
        assert_eq!(
            digest,
            "3bca8a0878f5a9352635d349d575ea9dca15e7e14632ef84f86aeeb681103096"
        );
    }

    #[test]
    fn damaged_extents_are_errors_or_other_bytes() {
        let data = text(EXTENT);
        let mut out = vec![0; get_maximum_output_size(EXTENT)];
        let len = compress_into_with_table(&data, &mut out, &mut CompressTable::large()).unwrap();
        let mut stored = vec![0; len.next_multiple_of(BLOCK) - len];
        stored.extend_from_slice(&out[..len]);
        assert_eq!(decompress(&stored, EXTENT).unwrap(), data);
        for at in 0..stored.len() {
            stored[at] ^= 0x55;
            if let Ok(found) = decompress(&stored, EXTENT) {
                assert_eq!(found.len(), EXTENT);
            }
            stored[at] ^= 0x55;
        }
        assert!(decompress(&[0; BLOCK], EXTENT).is_err());
        assert!(decompress(&stored, EXTENT + 1).is_err());
    }

    fn piece() -> impl Strategy<Value = Vec<u8>> {
        let len = prop_oneof![0..9000usize, EXTENT - 2..EXTENT + 2, 0..3 * EXTENT,];
        (0..4, len, any::<u8>()).prop_map(|(kind, len, byte)| match kind {
            0 => vec![byte; len],
            1 => noise(len),
            2 => text(len),
            _ => text(len).iter().map(|b| b & (byte | 3)).collect(),
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(20))]

        /// Compressed, merged or not, is what it is without compression, attribute for attribute.
        #[test]
        fn both_encodings_hold_the_same(
            files in proptest::collection::vec((proptest::collection::vec(piece(), 0..4), 0..3usize), 1..5),
        ) {
            let names = ["a", "b", "c", "d", "e"];
            let data: Vec<_> = files.iter().map(|(pieces, layer)| (pieces.concat(), *layer)).collect();
            let layers = |encoding| -> Vec<File> {
                (0..3)
                    .map(|number| {
                        let inside: Vec<_> = data
                            .iter()
                            .zip(names)
                            .filter(|((_, layer), _)| *layer == number)
                            .map(|((data, _), name)| (name, data.as_slice()))
                            .collect();
                        encoded(&inside, encoding)
                    })
                    .collect()
            };
            let merged = |layers: &[File]| {
                let out = scratch();
                merge(layers, &out, &mut |_| true).unwrap();
                let tree = open(&out);
                let mut devices = vec![&out];
                devices.extend(layers);
                for ((data, _), name) in data.iter().zip(names) {
                    let Kind::File { size, blocks } = &tree.node(tree.lookup(&[name.as_bytes()]).unwrap()).kind else {
                        panic!("not a file");
                    };
                    assert!(contents(*size, blocks, &devices) == *data, "{name}");
                }
                describe(&tree, &devices)
            };
            let (plain, packed) = (layers(Encoding::Plain), layers(Encoding::Lz4));
            for (plain, packed) in plain.iter().zip(&packed) {
                prop_assert_eq!(describe(&open(plain), &[plain]), describe(&open(packed), &[packed]));
                prop_assert!(packed.metadata().unwrap().len() <= plain.metadata().unwrap().len() + 4096);
            }
            prop_assert_eq!(merged(&plain), merged(&packed));
        }
    }
}
