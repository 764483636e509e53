//! Where every inode of an image goes: decided before the first byte is written.

use super::dirent;
use super::format::{
    Layout, BLOCK, CHUNK_BITS_MAX, CHUNK_INDEX_LEN, CLUSTER_HEADER_LEN, CLUSTER_INDEX_LEN,
    INODE_LEN, SLOT,
};
use crate::error::{Code, Error, Result};
use crate::tree::{Blocks, Directory, Id, Kind, Tree, ROOT};
use crate::xattr::{self, Xattrs};
use std::borrow::Cow;

/// One inode and its place.
#[derive(Debug)]
pub struct Placed {
    pub id: Id,
    /// Parent directory; meaningful for directories.
    pub parent: Id,
    pub nid: u64,
    pub links: u32,
    pub layout: Layout,
    pub size: u64,
    pub xattr_len: usize,
    /// First data block of a directory or link, counted from the start of the directory blocks.
    pub blocks_at: u32,
    /// Exponent and number of chunk indexes.
    pub chunk_bits: u8,
    pub chunks: u64,
    /// Blocks of a compressed file's contents, each of which has an index.
    pub clusters: u64,
}

/// The whole image.
pub struct Plan {
    /// In the order of their nids.
    pub inodes: Vec<Placed>,
    /// Position in `inodes` by node; `u32::MAX` for nodes without a name.
    position: Vec<u32>,
    /// Blocks of directories and links that do not fit beside their inode.
    pub directory_blocks: u32,
    /// Blocks of the inode area.
    pub inode_blocks: u32,
    pub chunk_indexes: u64,
    /// There is a compressed file.
    pub compressed: bool,
}

impl Plan {
    pub fn placed(&self, id: Id) -> &Placed {
        &self.inodes[self.position[id as usize] as usize]
    }

    /// 32-bit inode number: position in the image, from 1.
    pub fn number(&self, id: Id) -> u32 {
        self.position[id as usize] + 1
    }
}

/// A directory's entries in order, with the two that every directory has.
pub fn listing(directory: &Directory, this: Id, parent: Id) -> Vec<(&[u8], Id)> {
    let children = directory.children.iter().map(|(name, &id)| (&**name, id));
    let mut all = Vec::with_capacity(directory.children.len() + 2);
    all.extend(children);
    for (name, id) in [(&b"."[..], this), (b"..", parent)] {
        let at = all.partition_point(|&(other, _)| other < name);
        all.insert(at, (name, id));
    }
    all
}

/// Attributes of a node as they are written: the layer's own and the markers that the merge reads.
pub fn written_xattrs(tree: &Tree, id: Id) -> Cow<'_, Xattrs> {
    let node = tree.node(id);
    let own = tree.xattrs(node);
    let mut marks: Vec<(&[u8], &[u8])> = Vec::new();
    match &node.kind {
        Kind::Directory(directory) => {
            if directory.opaque {
                marks.push((xattr::OPAQUE, b"y"));
            }
            if !directory.listed {
                marks.push((xattr::IMPLICIT, b"y"));
            }
        }
        Kind::HardLink(target) => marks.push((xattr::HARD_LINK, target)),
        _ => {}
    }
    if marks.is_empty() {
        return Cow::Borrowed(own);
    }
    let mut all = own.clone();
    for (name, value) in marks {
        all.insert(name.into(), value.into());
    }
    Cow::Owned(all)
}

/// Place every node that has a name.
///
/// Each directory is followed by what it holds: the order in which a directory tree is usually read. The
/// order depends on names alone, so equal trees become equal images.
pub fn plan(tree: &Tree) -> Result<Plan> {
    let mut planner = Planner {
        tree,
        plan: Plan {
            inodes: Vec::new(),
            position: vec![u32::MAX; tree.len()],
            directory_blocks: 0,
            inode_blocks: 0,
            chunk_indexes: 0,
            compressed: false,
        },
        at: 0,
    };
    planner.visit(ROOT, ROOT)?;
    let mut pending = vec![ROOT];
    while let Some(id) = pending.pop() {
        let Some(directory) = tree.directory(id) else {
            continue;
        };
        let first = pending.len();
        for &child in directory.children.values() {
            if planner.visit(child, id)? {
                pending.push(child);
            }
        }
        pending[first..].reverse();
    }
    planner.plan.inode_blocks = blocks(planner.at.div_ceil(BLOCK as u64))?;
    Ok(planner.plan)
}

struct Planner<'t> {
    tree: &'t Tree,
    plan: Plan,
    /// Next free byte of the inode area.
    at: u64,
}

impl Planner<'_> {
    /// One name was found for a node. Returns whether it is a directory.
    fn visit(&mut self, id: Id, parent: Id) -> Result<bool> {
        let is_directory = self.tree.directory(id).is_some();
        let position = self.plan.position[id as usize];
        if position != u32::MAX {
            if is_directory {
                return Err(Error::new(Code::BadLink, "directory with two names"));
            }
            self.plan.inodes[position as usize].links += 1;
            return Ok(false);
        }
        self.plan.position[id as usize] = self.plan.inodes.len() as u32;
        let placed = self.place(id, parent)?;
        self.plan.inodes.push(placed);
        Ok(is_directory)
    }

    fn place(&mut self, id: Id, parent: Id) -> Result<Placed> {
        let node = self.tree.node(id);
        let mut placed = Placed {
            id,
            parent,
            nid: 0,
            links: 1,
            layout: Layout::Plain,
            size: 0,
            xattr_len: xattr::encoded_len(&written_xattrs(self.tree, id)),
            blocks_at: 0,
            chunk_bits: 0,
            chunks: 0,
            clusters: 0,
        };
        match &node.kind {
            Kind::Directory(directory) => {
                let entries = listing(directory, id, parent);
                placed.size = dirent::size(entries.iter().map(|(name, _)| name.len()));
                let subdirectories = directory
                    .children
                    .values()
                    .filter(|&&child| self.tree.directory(child).is_some())
                    .count();
                placed.links = 2 + subdirectories as u32;
                self.place_inline(&mut placed)?;
            }
            Kind::Symlink(target) => {
                placed.size = target.len() as u64;
                self.place_inline(&mut placed)?;
            }
            Kind::File { size, blocks } => {
                placed.size = *size;
                match blocks {
                    Blocks::Empty => {}
                    Blocks::Run(address) if address.device == 0 => {}
                    Blocks::Run(_) => {
                        let bits = (0..CHUNK_BITS_MAX)
                            .find(|&bits| (BLOCK as u64) << bits >= *size)
                            .unwrap_or(CHUNK_BITS_MAX);
                        placed.chunk_bits = bits;
                        placed.chunks = size.div_ceil((BLOCK as u64) << bits);
                    }
                    Blocks::Chunks { bits, table } => {
                        placed.chunk_bits = *bits;
                        placed.chunks = table.len() as u64;
                    }
                    Blocks::Compressed { .. } => {
                        placed.layout = Layout::Compressed;
                        placed.clusters = size.div_ceil(BLOCK as u64);
                        self.plan.compressed = true;
                    }
                }
                if placed.chunks > 0 {
                    placed.layout = Layout::Chunked;
                    self.plan.chunk_indexes += placed.chunks;
                }
                self.place_at(&mut placed, 0);
            }
            Kind::Device { .. } | Kind::Fifo | Kind::Whiteout | Kind::HardLink(_) => {
                self.place_at(&mut placed, 0);
            }
        }
        Ok(placed)
    }

    /// Place an inode whose data is metadata: the last part beside it if one block can hold both.
    fn place_inline(&mut self, placed: &mut Placed) -> Result<()> {
        let tail = (placed.size % BLOCK as u64) as usize;
        let together = INODE_LEN + placed.xattr_len + tail;
        let room = BLOCK - (self.at % BLOCK as u64) as usize;
        let inline = tail > 0 && together <= BLOCK && (together <= room || together <= BLOCK / 2);
        let mut full = placed.size / BLOCK as u64;
        if inline {
            placed.layout = Layout::Inline;
            if together > room {
                self.at = self.at.next_multiple_of(BLOCK as u64);
            }
            self.place_at(placed, tail);
        } else {
            full += u64::from(tail > 0);
            self.place_at(placed, 0);
        }
        if full > 0 {
            placed.blocks_at = self.plan.directory_blocks;
            self.plan.directory_blocks =
                blocks(u64::from(self.plan.directory_blocks).saturating_add(full))?;
        }
        Ok(())
    }

    /// Take the next slot. An inode itself never spans two blocks.
    fn place_at(&mut self, placed: &mut Placed, tail: usize) {
        if self.at % BLOCK as u64 + INODE_LEN as u64 > BLOCK as u64 {
            self.at = self.at.next_multiple_of(BLOCK as u64);
        }
        placed.nid = self.at / SLOT;
        self.at += (INODE_LEN + placed.xattr_len + tail) as u64;
        if placed.chunks > 0 {
            self.at = self.at.next_multiple_of(CHUNK_INDEX_LEN as u64)
                + placed.chunks * CHUNK_INDEX_LEN as u64;
        }
        if placed.clusters > 0 {
            self.at = self.at.next_multiple_of(CLUSTER_INDEX_LEN as u64)
                + CLUSTER_HEADER_LEN as u64
                + placed.clusters * CLUSTER_INDEX_LEN as u64;
        }
        self.at = self.at.next_multiple_of(SLOT);
    }
}

fn blocks(count: u64) -> Result<u32> {
    u32::try_from(count).map_err(|_| Error::new(Code::TooLarge, "image exceeds 16 TiB"))
}
