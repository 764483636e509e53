//! On-disk structures of EROFS, and the label that this crate adds to the first block.

use crate::compress::{extent_blocks, EXTENT_BLOCKS};

pub const BLOCK_BITS: u8 = 12;
pub const BLOCK: usize = 1 << BLOCK_BITS;
pub const SUPER_OFFSET: usize = 1024;
const SUPER_LEN: usize = 128;
const MAGIC: u32 = 0xe0f5_e1e2;

pub const COMPAT_SB_CHKSUM: u32 = 1;
pub const COMPAT_MTIME: u32 = 2;
/// Compressed data stands at the end of its blocks, behind zeros.
pub const INCOMPAT_ZERO_PADDING: u32 = 1;
/// What is compressed may take several blocks, and the superblock says with what.
pub const INCOMPAT_COMPRESSION: u32 = 2;
pub const INCOMPAT_CHUNKED_FILE: u32 = 4;
pub const INCOMPAT_DEVICE_TABLE: u32 = 8;

/// Inode numbers count slots of this many bytes.
pub const SLOT: u64 = 32;
pub const INODE_LEN: usize = 64;
pub const CHUNK_INDEX_LEN: usize = 8;
pub const CLUSTER_INDEX_LEN: usize = 8;
/// In front of a compressed file's cluster indexes: header, and eight bytes of nothing.
pub const CLUSTER_HEADER_LEN: usize = 16;
pub const DEVICE_SLOT_LEN: usize = 128;
/// Chunk address of a hole.
pub const NULL_BLOCK: u32 = u32::MAX;
/// `chunk format` bit: 8-byte indexes rather than bare block numbers.
pub const CHUNK_INDEXES: u32 = 0x20;
/// The exponent field has five bits.
pub const CHUNK_BITS_MAX: u8 = 31;

/// How an inode's data is found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    Plain = 0,
    /// With one full (8-byte) index for every block.
    Compressed = 1,
    Inline = 2,
    Chunked = 4,
}

pub const TYPE_MASK: u16 = 0o170000;
pub const FIFO: u16 = 0o010000;
pub const CHARACTER: u16 = 0o020000;
pub const DIRECTORY: u16 = 0o040000;
pub const BLOCK_DEVICE: u16 = 0o060000;
pub const REGULAR: u16 = 0o100000;
pub const SYMLINK: u16 = 0o120000;

/// The type byte of a directory entry.
pub fn dirent_type(mode: u16) -> u8 {
    match mode & TYPE_MASK {
        REGULAR => 1,
        DIRECTORY => 2,
        CHARACTER => 3,
        BLOCK_DEVICE => 4,
        FIFO => 5,
        SYMLINK => 7,
        _ => 0,
    }
}

/// Largest device numbers that the kernel's 32-bit encoding can hold.
pub const MAJOR_MAX: u32 = (1 << 12) - 1;
pub const MINOR_MAX: u32 = (1 << 20) - 1;

pub fn encode_device(major: u32, minor: u32) -> u32 {
    (minor & 0xff) | (major << 8) | ((minor & !0xff) << 12)
}

pub fn decode_device(encoded: u32) -> (u32, u32) {
    (
        (encoded >> 8) & MAJOR_MAX,
        (encoded & 0xff) | ((encoded >> 12) & 0xf_ff00),
    )
}

fn put<const N: usize>(out: &mut [u8], at: usize, bytes: [u8; N]) {
    out[at..at + N].copy_from_slice(&bytes);
}

fn get<const N: usize>(data: &[u8], at: usize) -> [u8; N] {
    let mut bytes = [0; N];
    bytes.copy_from_slice(&data[at..at + N]);
    bytes
}

pub fn u16_at(data: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(get(data, at))
}

pub fn u32_at(data: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(get(data, at))
}

pub fn u64_at(data: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(get(data, at))
}

/// What a file of ours is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ImageKind {
    Layer = 1,
    Merged = 2,
}

/// The first block: superblock and label.
///
/// The label (at byte 2048, covered by the superblock's checksum) is what makes a cache file checkable
/// without reading it whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FirstBlock {
    pub kind: ImageKind,
    pub blocks: u32,
    pub root_nid: u16,
    pub inodes: u64,
    /// First block of the inode area.
    pub meta_block: u32,
    pub devices: u16,
    /// Start of the device table in units of its slots.
    pub device_slot: u16,
    pub feature_incompat: u32,
    pub uuid: [u8; 16],
    /// First block of everything that `metadata_sha256` covers; it reaches to the end of the file.
    pub metadata_start: u32,
    pub metadata_sha256: [u8; 32],
    /// SHA-256 of the tar, of a packed image, or of the list of merged layers.
    pub identity: [u8; 32],
}

const LABEL: usize = 2048;
const LABEL_MAGIC: [u8; 8] = *b"MSBOCI\0\x01";

impl FirstBlock {
    pub fn encode(&self) -> [u8; BLOCK] {
        let mut block = [0; BLOCK];
        let sb = &mut block[SUPER_OFFSET..];
        put(sb, 0, MAGIC.to_le_bytes());
        put(sb, 8, (COMPAT_SB_CHKSUM | COMPAT_MTIME).to_le_bytes());
        sb[12] = BLOCK_BITS;
        put(sb, 14, self.root_nid.to_le_bytes());
        put(sb, 16, self.inodes.to_le_bytes());
        put(sb, 36, self.blocks.to_le_bytes());
        put(sb, 40, self.meta_block.to_le_bytes());
        put(sb, 48, self.uuid);
        put(sb, 80, self.feature_incompat.to_le_bytes());
        if self.feature_incompat & INCOMPAT_COMPRESSION != 0 {
            // Bit 0 is LZ4. Its settings follow the superblock: their length, how far back a match may lie
            // (the most that LZ4 has), and the most blocks of one extent.
            put(sb, 84, 1u16.to_le_bytes());
            put(sb, SUPER_LEN, 14u16.to_le_bytes());
            put(sb, SUPER_LEN + 2, u16::MAX.to_le_bytes());
            put(sb, SUPER_LEN + 4, (EXTENT_BLOCKS as u16).to_le_bytes());
        }
        put(sb, 86, self.devices.to_le_bytes());
        put(sb, 88, self.device_slot.to_le_bytes());

        let label = &mut block[LABEL..];
        put(label, 0, LABEL_MAGIC);
        put(label, 8, (self.kind as u32).to_le_bytes());
        put(label, 12, self.metadata_start.to_le_bytes());
        put(label, 16, self.metadata_sha256);
        put(label, 48, self.identity);

        let checksum = checksum(&block);
        put(&mut block, SUPER_OFFSET + 4, checksum.to_le_bytes());
        block
    }

    /// `None` unless this is a first block of ours with a valid checksum, down to the last byte.
    pub fn decode(block: &[u8; BLOCK]) -> Option<FirstBlock> {
        let sb = &block[SUPER_OFFSET..];
        let label = &block[LABEL..];
        let kind = match u32_at(label, 8) {
            1 => ImageKind::Layer,
            2 => ImageKind::Merged,
            _ => return None,
        };
        let first = FirstBlock {
            kind,
            blocks: u32_at(sb, 36),
            root_nid: u16_at(sb, 14),
            inodes: u64_at(sb, 16),
            meta_block: u32_at(sb, 40),
            devices: u16_at(sb, 86),
            device_slot: u16_at(sb, 88),
            feature_incompat: u32_at(sb, 80),
            uuid: get(sb, 48),
            metadata_start: u32_at(label, 12),
            metadata_sha256: get(label, 16),
            identity: get(label, 48),
        };
        // Whatever the fields do not say must be what the encoder writes: no unknown feature survives.
        (first.encode() == *block).then_some(first)
    }
}

/// The superblock's checksum: CRC-32C from the superblock to the end of its block, with the field itself
/// zero, seeded with ones and not inverted at the end.
fn checksum(block: &[u8; BLOCK]) -> u32 {
    let mut covered = [0; BLOCK - SUPER_OFFSET];
    covered.copy_from_slice(&block[SUPER_OFFSET..]);
    put(&mut covered, 4, [0; 4]);
    !crc32c::crc32c(&covered)
}

/// An extended inode. `place` is the union of block address, device number, chunk format and number of
/// compressed blocks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inode {
    pub layout: Layout,
    pub xattr_len: usize,
    pub mode: u16,
    pub size: u64,
    pub place: u32,
    pub number: u32,
    pub uid: u32,
    pub gid: u32,
    pub mtime: i64,
    pub mtime_nsec: u32,
    pub links: u32,
}

impl Inode {
    pub fn encode(&self) -> [u8; INODE_LEN] {
        let mut out = [0; INODE_LEN];
        let format = 1 | ((self.layout as u16) << 1);
        put(&mut out, 0, format.to_le_bytes());
        put(&mut out, 2, xattr_count(self.xattr_len).to_le_bytes());
        put(&mut out, 4, self.mode.to_le_bytes());
        put(&mut out, 8, self.size.to_le_bytes());
        put(&mut out, 16, self.place.to_le_bytes());
        put(&mut out, 20, self.number.to_le_bytes());
        put(&mut out, 24, self.uid.to_le_bytes());
        put(&mut out, 28, self.gid.to_le_bytes());
        put(&mut out, 32, self.mtime.to_le_bytes());
        put(&mut out, 40, self.mtime_nsec.to_le_bytes());
        put(&mut out, 44, self.links.to_le_bytes());
        out
    }

    pub fn decode(data: &[u8; INODE_LEN]) -> Option<Inode> {
        let layout = match u16_at(data, 0) {
            1 => Layout::Plain,
            3 => Layout::Compressed,
            5 => Layout::Inline,
            9 => Layout::Chunked,
            _ => return None,
        };
        let inode = Inode {
            layout,
            xattr_len: match u16_at(data, 2) {
                0 => 0,
                count => crate::xattr::HEADER_LEN + 4 * (count as usize - 1),
            },
            mode: u16_at(data, 4),
            size: u64_at(data, 8),
            place: u32_at(data, 16),
            number: u32_at(data, 20),
            uid: u32_at(data, 24),
            gid: u32_at(data, 28),
            mtime: u64_at(data, 32) as i64,
            mtime_nsec: u32_at(data, 40),
            links: u32_at(data, 44),
        };
        (inode.encode() == *data && inode.mtime_nsec < 1_000_000_000).then_some(inode)
    }
}

/// The inode's field for the length of its attribute area: header counts one, every four bytes one.
fn xattr_count(len: usize) -> u16 {
    match len.checked_sub(crate::xattr::HEADER_LEN) {
        None => 0,
        Some(entries) => (entries / 4 + 1) as u16,
    }
}

/// Header and indexes of a compressed file of `size` bytes whose extents take `sizes` blocks each, the first
/// of them at `block` of the address space that the image's devices make together.
pub fn cluster_indexes(size: u64, block: u32, sizes: &[u8], out: &mut Vec<u8>) {
    const PLAIN: u16 = 0;
    const HEAD: u16 = 1;
    const NOT_HEAD: u16 = 2;
    /// Advice: an extent may take several blocks.
    const BIG: u16 = 2;
    /// The distance to the head is 1, and these bits are the number of blocks that the extent takes.
    const COUNT: u16 = 1 << 11;
    let mut push = |fields: [u16; 4]| {
        for field in fields {
            out.extend_from_slice(&field.to_le_bytes());
        }
    };
    push([0, 0, BIG, 0]);
    push([0; 4]);
    let mut at = block;
    for (blocks, &stored) in extent_blocks(size).zip(sizes) {
        if usize::from(stored) == blocks {
            for block in at..at + u32::from(stored) {
                push([PLAIN, 0, block as u16, (block >> 16) as u16]);
            }
        } else {
            push([HEAD, 0, at as u16, (at >> 16) as u16]);
            for back in 1..blocks as u16 {
                let distance = if back == 1 {
                    COUNT | u16::from(stored)
                } else {
                    back
                };
                push([NOT_HEAD, 0, distance, blocks as u16 - back]);
            }
        }
        at += u32::from(stored);
    }
}

/// What [`cluster_indexes`] wrote for a file of `size` bytes: the first block, and the blocks of each extent.
/// `None` if it did not write this.
pub fn decode_clusters(size: u64, data: &[u8]) -> Option<(u32, Box<[u8]>)> {
    let indexes = data.get(CLUSTER_HEADER_LEN..)?;
    let first = u32_at(indexes.get(..CLUSTER_INDEX_LEN)?, 4);
    let mut sizes = Vec::new();
    let (mut at, mut sum) = (0, 0u64);
    for blocks in extent_blocks(size) {
        let extent = indexes.get(at..at + blocks * CLUSTER_INDEX_LEN)?;
        let stored = match u16_at(extent, 0) {
            0 => blocks,
            _ => usize::from(u16_at(extent.get(CLUSTER_INDEX_LEN..)?.get(..6)?, 4) & 0x7ff),
        };
        if stored == 0 || stored > blocks {
            return None;
        }
        sizes.push(stored as u8);
        sum += stored as u64;
        at += extent.len();
    }
    if u64::from(first) + sum > u64::from(u32::MAX) {
        return None;
    }
    let mut written = Vec::with_capacity(data.len());
    cluster_indexes(size, first, &sizes, &mut written);
    (written == data).then(|| (first, sizes.into()))
}

/// One slot of the device table.
pub fn device_slot(tag: &[u8; 64], blocks: u32, mapped_block: u32) -> [u8; DEVICE_SLOT_LEN] {
    let mut slot = [0; DEVICE_SLOT_LEN];
    put(&mut slot, 0, *tag);
    put(&mut slot, 64, blocks.to_le_bytes());
    put(&mut slot, 68, mapped_block.to_le_bytes());
    slot
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn device_numbers() {
        for (major, minor) in [
            (1, 3),
            (0, 0),
            (MAJOR_MAX, MINOR_MAX),
            (8, 256),
            (259, 70000),
        ] {
            assert_eq!(decode_device(encode_device(major, minor)), (major, minor));
        }
    }

    #[test]
    fn first_block_rejects_every_flipped_bit() {
        let first = FirstBlock {
            kind: ImageKind::Layer,
            blocks: 7,
            root_nid: 1,
            inodes: 3,
            meta_block: 6,
            devices: 0,
            device_slot: 0,
            feature_incompat: 0,
            uuid: [9; 16],
            metadata_start: 5,
            metadata_sha256: [1; 32],
            identity: [2; 32],
        };
        let mut block = first.encode();
        assert_eq!(FirstBlock::decode(&block), Some(first));
        for at in (0..BLOCK).step_by(3) {
            block[at] ^= 0x10;
            assert_eq!(FirstBlock::decode(&block), None, "byte {at}");
            block[at] ^= 0x10;
        }
    }
}
