//! A strict reader of our own images: metadata back into a tree.
//!
//! Accepts what the writer writes and nothing else. A cached file that fails here is damaged or was put
//! there by somebody else; either way it must not reach a guest.

use super::dirent;
use super::format::{
    self, u16_at, u32_at, FirstBlock, ImageKind, Inode, Layout, BLOCK, CHUNK_INDEX_LEN,
    CLUSTER_HEADER_LEN, CLUSTER_INDEX_LEN, DEVICE_SLOT_LEN, INODE_LEN, SLOT,
};
use crate::error::{Code, Error, Result};
use crate::limits::Limits;
use crate::tree::{Address, Blocks, Directory, Id, Kind, Meta, Node, Tree, ROOT};
use crate::xattr;
use sha2::{Digest, Sha256};
use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// A sparse file can claim any size; this much memory is the most that its claim can take.
const METADATA_MAX: usize = 4 << 30;

fn corrupt(why: &str) -> Error {
    Error::new(Code::Corrupt, format!("image: {why}"))
}

/// The first block of an image file, checked against the file's length.
pub fn first_block(file: &File) -> Result<FirstBlock> {
    let len = file.metadata()?.len();
    let mut block = [0; BLOCK];
    match file.read_exact_at(&mut block, 0) {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
            return Err(Error::new(Code::Truncated, "image: shorter than one block"))
        }
        other => other?,
    }
    let first = FirstBlock::decode(&block)
        .ok_or_else(|| corrupt("first block is damaged or not one of ours"))?;
    let expected = u64::from(first.blocks) * BLOCK as u64;
    if len < expected {
        return Err(Error::new(
            Code::Truncated,
            format!("image: {len} bytes, should be {expected}"),
        ));
    }
    if len > expected {
        return Err(corrupt("longer than it should be"));
    }
    if first.metadata_start == 0
        || first.metadata_start > first.meta_block
        || first.meta_block >= first.blocks
    {
        return Err(corrupt("areas are out of order"));
    }
    Ok(first)
}

/// Metadata of one image, in memory.
pub struct Image {
    pub first: FirstBlock,
    /// From `metadata_start` to the end of the file.
    area: Vec<u8>,
}

impl Image {
    /// Read and check the first block and the metadata's digest.
    pub fn open(file: &File) -> Result<Image> {
        let first = first_block(file)?;
        let blocks = (first.blocks - first.metadata_start) as usize;
        if blocks > METADATA_MAX / BLOCK {
            return Err(corrupt("more metadata than any image has"));
        }
        let mut area = vec![0; blocks * BLOCK];
        file.read_exact_at(&mut area, u64::from(first.metadata_start) * BLOCK as u64)?;
        if Sha256::digest(&area)[..] != first.metadata_sha256 {
            return Err(corrupt("metadata does not match its checksum"));
        }
        Ok(Image { first, area })
    }

    fn bytes(&self, at: u64, len: u64) -> Result<&[u8]> {
        let end = at.checked_add(len);
        let range = usize::try_from(at)
            .ok()
            .zip(end.and_then(|e| usize::try_from(e).ok()));
        range
            .and_then(|(at, end)| self.area.get(at..end))
            .ok_or_else(|| corrupt("reference beyond the metadata"))
    }

    /// Offset in `area` of an absolute block.
    fn block_offset(&self, block: u32) -> Result<u64> {
        block
            .checked_sub(self.first.metadata_start)
            .map(|block| u64::from(block) * BLOCK as u64)
            .ok_or_else(|| corrupt("metadata before the metadata area"))
    }

    /// A block of a device from its number in the address space of all of them.
    fn address(&self, block: u32) -> Result<Address> {
        let start = u64::from(self.first.device_slot) * DEVICE_SLOT_LEN as u64;
        let area = u64::from(self.first.metadata_start) * BLOCK as u64;
        let mut found = Address { device: 0, block };
        for device in 1..=self.first.devices {
            let at = start
                .checked_sub(area)
                .map(|at| at + u64::from(device - 1) * DEVICE_SLOT_LEN as u64);
            let slot = self.bytes(at.unwrap_or(u64::MAX), DEVICE_SLOT_LEN as u64)?;
            match block.checked_sub(u32_at(slot, 68)) {
                Some(inside) if inside < u32_at(slot, 64) => {
                    found = Address {
                        device,
                        block: inside,
                    };
                }
                _ => {}
            }
        }
        Ok(found)
    }

    fn inode_offset(&self, nid: u64) -> Result<u64> {
        let area = u64::from(self.first.meta_block - self.first.metadata_start) * BLOCK as u64;
        nid.checked_mul(SLOT)
            .and_then(|offset| offset.checked_add(area))
            .ok_or_else(|| corrupt("inode number out of range"))
    }

    fn inode(&self, nid: u64) -> Result<(Inode, u64)> {
        let at = self.inode_offset(nid)?;
        let bytes = self.bytes(at, INODE_LEN as u64)?;
        let inode = bytes
            .first_chunk()
            .and_then(Inode::decode)
            .ok_or_else(|| corrupt("malformed inode"))?;
        Ok((inode, at))
    }

    /// Contents of a directory or symbolic link.
    fn contents(&self, inode: &Inode, at: u64) -> Result<Vec<u8>> {
        let tail = match inode.layout {
            Layout::Inline => inode.size % BLOCK as u64,
            _ => 0,
        };
        let apart = inode.size - tail;
        let mut data = Vec::new();
        if apart > 0 {
            data.extend_from_slice(self.bytes(self.block_offset(inode.place)?, apart)?);
        }
        if tail > 0 {
            let beside = at + (INODE_LEN + inode.xattr_len) as u64;
            if beside % BLOCK as u64 + tail > BLOCK as u64 {
                return Err(corrupt("inline data spans two blocks"));
            }
            data.extend_from_slice(self.bytes(beside, tail)?);
        }
        Ok(data)
    }

    /// The whole tree. Layers give back their markers as whiteouts, links, opaque and unlisted directories.
    pub fn tree(&self) -> Result<Tree> {
        Loader {
            image: self,
            tree: Tree::new(Limits {
                max_entries: u32::MAX.into(),
                max_metadata: u64::MAX,
                max_xattrs: u64::MAX,
                ..Limits::default()
            }),
            seen: HashMap::new(),
        }
        .load()
    }
}

struct Seen {
    id: Id,
    expected: u32,
    found: u32,
}

struct Loader<'i> {
    image: &'i Image,
    tree: Tree,
    seen: HashMap<u64, Seen>,
}

impl Loader<'_> {
    fn load(mut self) -> Result<Tree> {
        let root = u64::from(self.image.first.root_nid);
        let (inode, at) = self.image.inode(root)?;
        if inode.mode & format::TYPE_MASK != format::DIRECTORY {
            return Err(corrupt("root is not a directory"));
        }
        let node = self.node(&inode, at)?;
        *self.tree.node_mut(ROOT) = node;
        self.see(root, ROOT, &inode);
        let mut pending = vec![(root, root)];
        while let Some((nid, parent)) = pending.pop() {
            self.directory(nid, parent, &mut pending)?;
        }
        for seen in self.seen.values() {
            if seen.expected != seen.found {
                return Err(corrupt("wrong link count"));
            }
        }
        if self.seen.len() as u64 != self.image.first.inodes {
            return Err(corrupt("wrong number of inodes"));
        }
        Ok(self.tree)
    }

    fn see(&mut self, nid: u64, id: Id, inode: &Inode) {
        let seen = Seen {
            id,
            expected: inode.links,
            // A directory is named by its parent and by itself, the root only by itself (twice: `..`
            // is counted where it is read, and so are all other names).
            found: match inode.mode & format::TYPE_MASK {
                format::DIRECTORY if id == ROOT => 1,
                format::DIRECTORY => 2,
                _ => 1,
            },
        };
        self.seen.insert(nid, seen);
    }

    fn directory(&mut self, nid: u64, parent: u64, pending: &mut Vec<(u64, u64)>) -> Result<()> {
        let (inode, at) = self.image.inode(nid)?;
        let data = self.image.contents(&inode, at)?;
        let entries = dirent::decode(&data).ok_or_else(|| corrupt("malformed directory"))?;
        let this = self.seen.get(&nid).map_or(ROOT, |seen| seen.id);
        let mut own = 0;
        for entry in &entries {
            let expected = match entry.name {
                b"." => nid,
                b".." => parent,
                _ => continue,
            };
            own += 1;
            if entry.nid != expected || entry.file_type != 2 {
                return Err(corrupt("`.` or `..` leads elsewhere"));
            }
            if let Some(seen) = self.seen.get_mut(&entry.nid) {
                seen.found += u32::from(entry.name == b"..");
            }
        }
        if own != 2 {
            return Err(corrupt("directory without `.` and `..`"));
        }
        let first = pending.len();
        for entry in entries {
            if matches!(entry.name, b"." | b"..") {
                continue;
            }
            let (child, child_at) = self.image.inode(entry.nid)?;
            if format::dirent_type(child.mode) != entry.file_type {
                return Err(corrupt("type in directory differs from type in inode"));
            }
            let is_directory = entry.file_type == 2;
            let id = match self.seen.get_mut(&entry.nid) {
                // This is also what ends a loop.
                Some(_) if is_directory => return Err(corrupt("directory with two names")),
                Some(seen) => {
                    seen.found += 1;
                    seen.id
                }
                None => {
                    let node = self.node(&child, child_at)?;
                    let id = self.tree.push(node)?;
                    self.see(entry.nid, id, &child);
                    if is_directory {
                        pending.push((entry.nid, nid));
                    }
                    id
                }
            };
            self.tree.name(this, entry.name, id)?;
        }
        pending[first..].reverse();
        Ok(())
    }

    fn node(&mut self, inode: &Inode, at: u64) -> Result<Node> {
        let area = self
            .image
            .bytes(at + INODE_LEN as u64, inode.xattr_len as u64)?;
        let mut xattrs =
            xattr::decode(area).ok_or_else(|| corrupt("malformed extended attributes"))?;
        let opaque = xattrs.remove(xattr::OPAQUE).is_some();
        let listed = xattrs.remove(xattr::IMPLICIT).is_none();
        let link = xattrs.remove(xattr::HARD_LINK);
        let is_directory = inode.mode & format::TYPE_MASK == format::DIRECTORY;
        let marked = opaque || !listed || link.is_some();
        if marked && self.image.first.kind == ImageKind::Merged {
            return Err(corrupt("layer marker in a merged image"));
        }
        if (opaque || !listed) && !is_directory {
            return Err(corrupt("directory marker on something else"));
        }
        let kind = match inode.mode & format::TYPE_MASK {
            format::DIRECTORY => Kind::Directory(Directory {
                listed,
                opaque,
                ..Directory::default()
            }),
            format::REGULAR => match link {
                Some(target) if inode.size == 0 => Kind::HardLink(target),
                Some(_) => return Err(corrupt("link marker on a file with contents")),
                None => Kind::File {
                    size: inode.size,
                    blocks: self.blocks(inode, at)?,
                },
            },
            format::SYMLINK => Kind::Symlink(self.symlink(inode, at)?),
            format::FIFO => Kind::Fifo,
            kind @ (format::CHARACTER | format::BLOCK_DEVICE) => {
                let (major, minor) = format::decode_device(inode.place);
                let block = kind == format::BLOCK_DEVICE;
                match (block, major, minor, self.image.first.kind) {
                    (false, 0, 0, ImageKind::Layer) => Kind::Whiteout,
                    _ => Kind::Device {
                        block,
                        major,
                        minor,
                    },
                }
            }
            _ => return Err(corrupt("unknown inode type")),
        };
        if !matches!(
            kind,
            Kind::File { .. } | Kind::Symlink(_) | Kind::Directory(_)
        ) && (inode.size != 0 || inode.layout != Layout::Plain)
        {
            return Err(corrupt("special file with contents"));
        }
        Ok(Node {
            meta: Meta {
                mode: inode.mode & !format::TYPE_MASK,
                uid: inode.uid,
                gid: inode.gid,
                mtime: inode.mtime,
                mtime_nsec: inode.mtime_nsec,
            },
            xattrs: self.tree.intern(xattrs)?,
            kind,
        })
    }

    fn symlink(&self, inode: &Inode, at: u64) -> Result<Box<[u8]>> {
        if inode.size == 0 || inode.size >= BLOCK as u64 {
            return Err(corrupt("malformed symbolic link"));
        }
        let target = self.image.contents(inode, at)?;
        if target.contains(&0) {
            return Err(corrupt("malformed symbolic link"));
        }
        Ok(target.into())
    }

    fn blocks(&self, inode: &Inode, at: u64) -> Result<Blocks> {
        match inode.layout {
            Layout::Plain if inode.size == 0 => Ok(Blocks::Empty),
            Layout::Plain => {
                let start = Address {
                    device: 0,
                    block: inode.place,
                };
                self.check_run(start, inode.size)?;
                Ok(Blocks::Run(start))
            }
            Layout::Chunked => self.chunks(inode, at),
            Layout::Compressed => self.extents(inode, at),
            Layout::Inline => Err(corrupt("inline file")),
        }
    }

    fn extents(&self, inode: &Inode, at: u64) -> Result<Blocks> {
        let begin =
            (at + (INODE_LEN + inode.xattr_len) as u64).next_multiple_of(CLUSTER_INDEX_LEN as u64);
        let len = (inode.size.div_ceil(BLOCK as u64))
            .checked_mul(CLUSTER_INDEX_LEN as u64)
            .and_then(|len| len.checked_add(CLUSTER_HEADER_LEN as u64))
            .ok_or_else(|| corrupt("indexes out of range"))?;
        let (block, sizes) = format::decode_clusters(inode.size, self.image.bytes(begin, len)?)
            .ok_or_else(|| corrupt("malformed indexes of a compressed file"))?;
        let stored = sizes.iter().map(|&size| u32::from(size)).sum::<u32>();
        if stored != inode.place {
            return Err(corrupt("wrong number of compressed blocks"));
        }
        let start = self.image.address(block)?;
        let bytes = u64::from(stored) * BLOCK as u64;
        self.check_run(start, bytes)?;
        Ok(Blocks::Compressed { start, sizes })
    }

    fn chunks(&self, inode: &Inode, at: u64) -> Result<Blocks> {
        let bits = (inode.place & 0x1f) as u8;
        if inode.place != format::CHUNK_INDEXES | u32::from(bits) || inode.size == 0 {
            return Err(corrupt("unknown chunk format"));
        }
        let chunk = (BLOCK as u64) << bits;
        let count = inode.size.div_ceil(chunk);
        let start =
            (at + (INODE_LEN + inode.xattr_len) as u64).next_multiple_of(CHUNK_INDEX_LEN as u64);
        let len = count
            .checked_mul(CHUNK_INDEX_LEN as u64)
            .ok_or_else(|| corrupt("chunk table out of range"))?;
        let mut table = Vec::new();
        for (i, index) in self
            .image
            .bytes(start, len)?
            .chunks_exact(CHUNK_INDEX_LEN)
            .enumerate()
        {
            let address = Address {
                device: u16_at(index, 2),
                block: u32_at(index, 4),
            };
            if address.block == format::NULL_BLOCK && address.device == 0 {
                table.push(None);
                continue;
            }
            self.check_run(address, chunk.min(inode.size - i as u64 * chunk))?;
            table.push(Some(address));
        }
        match table[..] {
            [Some(only)] => Ok(Blocks::Run(only)),
            _ => Ok(Blocks::Chunks {
                bits,
                table: table.into(),
            }),
        }
    }

    /// File contents lie in front of a layer's metadata, or in one of a merged image's devices.
    fn check_run(&self, start: Address, len: u64) -> Result<()> {
        let first = &self.image.first;
        let (low, high, devices) = match first.kind {
            ImageKind::Layer => (1, first.metadata_start, 0..=0),
            ImageKind::Merged => (1, format::NULL_BLOCK, 1..=first.devices),
        };
        let end = u64::from(start.block) + len.div_ceil(BLOCK as u64);
        if !devices.contains(&start.device) || start.block < low || end > u64::from(high) {
            return Err(corrupt("file contents outside their area"));
        }
        Ok(())
    }
}
