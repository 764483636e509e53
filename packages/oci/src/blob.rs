//! The file contents of a layer, appended as they arrive.

use crate::erofs::format::BLOCK;
use crate::error::{Code, Error, Result};
use crate::tree::{Address, Blocks};
use sha2::{Digest, Sha256};
use std::fs::File;
use std::os::unix::fs::FileExt;

const BUFFER: usize = 1 << 20;
static ZEROS: [u8; 1 << 16] = [0; 1 << 16];

/// Appends blocks to a file, leaving runs of zeros as holes.
pub struct Blob<'f> {
    file: &'f File,
    buffer: Vec<u8>,
    /// File offset of the buffer's first byte.
    start: u64,
    hash: Option<Sha256>,
}

impl<'f> Blob<'f> {
    /// Begin at block `first`. `hash`: whether [`Blob::finish`] is to know the digest of what follows.
    pub fn new(file: &'f File, first: u32, hash: bool) -> Self {
        Blob {
            file,
            buffer: Vec::with_capacity(BUFFER),
            start: u64::from(first) * BLOCK as u64,
            hash: hash.then(Sha256::new),
        }
    }

    fn offset(&self) -> u64 {
        self.start + self.buffer.len() as u64
    }

    /// Number of the block that the next byte begins; the offset must be a multiple of the block size.
    pub fn block(&self) -> Result<u32> {
        debug_assert_eq!(self.offset() % BLOCK as u64, 0);
        block_number(self.offset() / BLOCK as u64)
    }

    pub fn write(&mut self, mut data: &[u8]) -> Result<()> {
        if let Some(hash) = &mut self.hash {
            hash.update(data);
        }
        while !data.is_empty() {
            let (now, rest) = data.split_at(data.len().min(BUFFER - self.buffer.len()));
            self.buffer.extend_from_slice(now);
            data = rest;
            if self.buffer.len() == BUFFER {
                self.flush()?;
            }
        }
        Ok(())
    }

    /// Append zeros; what exceeds the buffer becomes a hole.
    pub fn zeros(&mut self, count: u64) -> Result<()> {
        if count > BUFFER as u64 {
            self.flush()?;
            self.start += count;
            block_number(self.start / BLOCK as u64)?;
            let mut left = count;
            if let Some(hash) = &mut self.hash {
                while left > 0 {
                    let now = left.min(ZEROS.len() as u64);
                    hash.update(&ZEROS[..now as usize]);
                    left -= now;
                }
            }
            return Ok(());
        }
        let mut left = count as usize;
        while left > 0 {
            let now = left.min(ZEROS.len());
            self.write(&ZEROS[..now])?;
            left -= now;
        }
        Ok(())
    }

    /// Append zeros up to the next block.
    pub fn pad(&mut self) -> Result<()> {
        let used = self.offset() % BLOCK as u64;
        if used > 0 {
            self.zeros(BLOCK as u64 - used)?;
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<()> {
        block_number(self.offset() / BLOCK as u64)?;
        if self.buffer.iter().any(|&b| b != 0) {
            self.file.write_all_at(&self.buffer, self.start)?;
        }
        self.start += self.buffer.len() as u64;
        self.buffer.clear();
        Ok(())
    }

    /// Write what is left and give the file its length. Returns the number of blocks of the whole file,
    /// and the digest if one was asked for.
    pub fn finish(mut self) -> Result<(u32, Option<[u8; 32]>)> {
        self.pad()?;
        self.flush()?;
        self.file.set_len(self.start)?;
        let blocks = block_number(self.start / BLOCK as u64)?;
        Ok((blocks, self.hash.map(|hash| hash.finalize().into())))
    }
}

/// Block numbers have 32 bits, and the last one means a hole.
fn block_number(block: u64) -> Result<u32> {
    u32::try_from(block)
        .ok()
        .filter(|&b| b < u32::MAX)
        .ok_or_else(|| Error::new(Code::TooLarge, "image exceeds 16 TiB"))
}

/// A run of stored bytes in a sparse file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    pub offset: u64,
    pub len: u64,
}

/// Writes a file that has holes: extents in, one address per chunk out.
pub struct Sparse {
    size: u64,
    bits: u8,
    table: Vec<Option<Address>>,
    /// Logical offset up to which every stored chunk is written.
    at: u64,
}

impl Sparse {
    /// `extents` are sorted, do not overlap and end within `size`. Chunks are as large as makes the sum of
    /// table and padding smallest; a table is held in memory and padding is mostly holes, so it counts more.
    /// `hold` is told what the table costs before it exists.
    pub fn new(
        size: u64,
        extents: &[Extent],
        first_block: u32,
        hold: impl FnOnce(u64) -> Result<()>,
    ) -> Result<Self> {
        const TABLE_WEIGHT: u64 = 64;
        const ENTRY: u64 = std::mem::size_of::<Option<Address>>() as u64;
        let bits = (0..=crate::erofs::format::CHUNK_BITS_MAX)
            .min_by_key(|&bits| {
                let chunk = (BLOCK as u64) << bits;
                let table = size.div_ceil(chunk).saturating_mul(8 * TABLE_WEIGHT);
                table.saturating_add(stored_chunks(extents, chunk).saturating_mul(chunk))
            })
            .unwrap_or(0);
        let chunk = (BLOCK as u64) << bits;
        hold(size.div_ceil(chunk).saturating_mul(ENTRY))?;
        let count = usize::try_from(size.div_ceil(chunk))
            .map_err(|_| Error::new(Code::TooLarge, "sparse file is too large"))?;
        let mut table = vec![None; count];
        let mut block = u64::from(first_block);
        for extent in extents.iter().filter(|e| e.len > 0) {
            let last = (extent.offset + extent.len - 1) / chunk;
            for index in extent.offset / chunk..=last {
                let slot = &mut table[index as usize];
                if slot.is_none() {
                    *slot = Some(Address {
                        device: 0,
                        block: block_number(block)?,
                    });
                    block += chunk.min(size - index * chunk).div_ceil(BLOCK as u64);
                }
            }
        }
        block_number(block)?;
        Ok(Sparse {
            size,
            bits,
            table,
            at: 0,
        })
    }

    /// Write zeros for the stored parts between here and logical offset `to`.
    fn advance(&mut self, blob: &mut Blob<'_>, to: u64) -> Result<()> {
        let chunk = (BLOCK as u64) << self.bits;
        while self.at < to {
            let index = self.at / chunk;
            let end = to.min((index + 1) * chunk);
            if self.table[index as usize].is_some() {
                blob.zeros(end - self.at)?;
            }
            self.at = end;
        }
        Ok(())
    }

    /// Append bytes that stand at logical `offset`; offsets only grow.
    pub fn write(&mut self, blob: &mut Blob<'_>, offset: u64, data: &[u8]) -> Result<()> {
        self.advance(blob, offset)?;
        self.at += data.len() as u64;
        blob.write(data)
    }

    /// Complete the last chunk.
    pub fn finish(mut self, blob: &mut Blob<'_>) -> Result<Blocks> {
        self.advance(blob, self.size)?;
        blob.pad()?;
        if self.size == 0 {
            return Ok(Blocks::Empty);
        }
        if let (Some(first), true) = (self.table[0], self.table.iter().all(Option::is_some)) {
            return Ok(Blocks::Run(first));
        }
        Ok(Blocks::Chunks {
            bits: self.bits,
            table: self.table.into(),
        })
    }
}

/// How many chunks of this size hold some of the extents.
fn stored_chunks(extents: &[Extent], chunk: u64) -> u64 {
    let (mut count, mut next) = (0, 0);
    for extent in extents.iter().filter(|e| e.len > 0) {
        let first = (extent.offset / chunk).max(next);
        let end = (extent.offset + extent.len - 1) / chunk + 1;
        count += end.saturating_sub(first);
        next = next.max(end);
    }
    count
}
