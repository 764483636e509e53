//! Metadata of a tree as the end of an EROFS image.

use super::dirent::{self, Dirent};
use super::format::{self, FirstBlock, ImageKind, Inode, Layout, BLOCK, SLOT};
use super::layout::{listing, plan, written_xattrs, Placed, Plan};
use crate::blob::Blob;
use crate::error::{Code, Error, Result};
use crate::tree::{Address, Blocks, Kind, Node, Tree};
use crate::xattr;
use sha2::{Digest, Sha256};
use std::fs::File;
use std::os::unix::fs::FileExt;

/// A layer that a merged image points into.
pub struct Device {
    pub identity: [u8; 32],
    pub blocks: u32,
}

/// What was written.
#[derive(Debug)]
pub struct Written {
    pub blocks: u32,
    pub inodes: u64,
    pub chunk_indexes: u64,
    pub identity: [u8; 32],
}

/// How an image gets its identity.
pub enum Identity {
    Known([u8; 32]),
    /// From the digest of the file contents, together with the metadata's.
    OfContents([u8; 32]),
}

/// Write metadata from block `start` on, and the first block last: a file without it is not an image.
pub fn write(
    file: &File,
    tree: &Tree,
    start: u32,
    devices: &[Device],
    identity: Identity,
) -> Result<Written> {
    let plan = plan(tree)?;
    let table_blocks = (devices.len() * format::DEVICE_SLOT_LEN).div_ceil(BLOCK) as u32;
    let directory_start = u64::from(start) + u64::from(table_blocks);
    let meta_block = directory_start + u64::from(plan.directory_blocks);
    let blocks = meta_block + u64::from(plan.inode_blocks);
    let all = devices
        .iter()
        .fold(blocks, |sum, device| sum + u64::from(device.blocks));
    if all >= u64::from(u32::MAX) {
        return Err(Error::new(Code::TooLarge, "image exceeds 16 TiB"));
    }

    let mut writer = Writer {
        tree,
        plan: &plan,
        directory_start: directory_start as u32,
        mapped: mapped(devices, blocks as u32),
        out: Blob::new(file, start, true),
        scratch: Vec::new(),
        data: Vec::new(),
    };
    writer.devices(devices)?;
    for placed in &plan.inodes {
        writer.directory_blocks(placed)?;
    }
    let mut at = 0;
    for placed in &plan.inodes {
        writer.out.zeros(placed.nid * SLOT - at)?;
        at = placed.nid * SLOT + writer.inode(placed)?;
    }
    let (written, hash) = writer.out.finish()?;
    debug_assert_eq!(u64::from(written), blocks);
    let metadata_sha256 = hash.unwrap_or_default();

    let kind = if devices.is_empty() {
        ImageKind::Layer
    } else {
        ImageKind::Merged
    };
    let identity = match identity {
        Identity::Known(identity) => identity,
        Identity::OfContents(contents) => {
            Sha256::digest([contents, metadata_sha256].concat()).into()
        }
    };
    let mut feature_incompat = 0;
    if plan.chunk_indexes > 0 {
        feature_incompat |= format::INCOMPAT_CHUNKED_FILE;
    }
    if !devices.is_empty() {
        feature_incompat |= format::INCOMPAT_CHUNKED_FILE | format::INCOMPAT_DEVICE_TABLE;
    }
    if plan.compressed {
        feature_incompat |= format::INCOMPAT_ZERO_PADDING | format::INCOMPAT_COMPRESSION;
    }
    let mut uuid = [0; 16];
    uuid.copy_from_slice(&Sha256::digest([identity, metadata_sha256].concat())[..16]);
    // RFC 9562, version 8: bits of the maker's choice.
    uuid[6] = uuid[6] & 0x0f | 0x80;
    uuid[8] = uuid[8] & 0x3f | 0x80;
    let first = FirstBlock {
        kind,
        blocks: written,
        // The root is placed first.
        root_nid: 0,
        inodes: plan.inodes.len() as u64,
        meta_block: meta_block as u32,
        devices: devices.len() as u16,
        device_slot: if devices.is_empty() {
            0
        } else {
            (start as usize * BLOCK / format::DEVICE_SLOT_LEN) as u16
        },
        feature_incompat,
        uuid,
        metadata_start: start,
        metadata_sha256,
        identity,
    };
    file.write_all_at(&first.encode(), 0)?;
    Ok(Written {
        blocks: written,
        inodes: first.inodes,
        chunk_indexes: plan.chunk_indexes,
        identity,
    })
}

/// Where each device begins in the one address space that the image, which is device 0, and the layers behind
/// it make together.
fn mapped(devices: &[Device], image_blocks: u32) -> Vec<u32> {
    let mut all = vec![0];
    let mut at = image_blocks;
    for device in devices {
        all.push(at);
        at += device.blocks;
    }
    all
}

struct Writer<'a> {
    tree: &'a Tree,
    plan: &'a Plan,
    directory_start: u32,
    mapped: Vec<u32>,
    out: Blob<'a>,
    scratch: Vec<u8>,
    data: Vec<u8>,
}

impl Writer<'_> {
    /// The device table.
    fn devices(&mut self, devices: &[Device]) -> Result<()> {
        for (number, device) in devices.iter().enumerate() {
            let mut tag = [0; 64];
            for (pair, byte) in tag.chunks_exact_mut(2).zip(device.identity) {
                pair.copy_from_slice(format!("{byte:02x}").as_bytes());
            }
            self.out.write(&format::device_slot(
                &tag,
                device.blocks,
                self.mapped[number + 1],
            ))?;
        }
        self.out.pad()
    }

    /// Fill `self.data` with the contents of a directory or link.
    fn load(&mut self, placed: &Placed) {
        self.data.clear();
        match &self.tree.node(placed.id).kind {
            Kind::Directory(directory) => {
                let listing = listing(directory, placed.id, placed.parent);
                let entries: Vec<Dirent<'_>> = listing
                    .into_iter()
                    .map(|(name, id)| Dirent {
                        name,
                        nid: self.plan.placed(id).nid,
                        file_type: format::dirent_type(mode(self.tree.node(id))),
                    })
                    .collect();
                dirent::encode(&entries, &mut self.data);
            }
            Kind::Symlink(target) => self.data.extend_from_slice(target),
            _ => {}
        }
    }

    /// The blocks that do not stand beside the inode.
    fn directory_blocks(&mut self, placed: &Placed) -> Result<()> {
        let kind = &self.tree.node(placed.id).kind;
        if !matches!(kind, Kind::Directory(_) | Kind::Symlink(_)) {
            return Ok(());
        }
        let apart = match placed.layout {
            Layout::Inline => placed.size - placed.size % BLOCK as u64,
            _ => placed.size,
        };
        if apart == 0 {
            return Ok(());
        }
        self.load(placed);
        self.out.write(&self.data[..apart as usize])?;
        self.out.pad()
    }

    /// An inode with attributes and whatever stands beside it. Returns the bytes written.
    fn inode(&mut self, placed: &Placed) -> Result<u64> {
        let node = self.tree.node(placed.id);
        let place = match &node.kind {
            Kind::Directory(_) | Kind::Symlink(_) => self.directory_start + placed.blocks_at,
            Kind::Device { major, minor, .. } => format::encode_device(*major, *minor),
            Kind::File { .. } if placed.layout == Layout::Chunked => {
                format::CHUNK_INDEXES | u32::from(placed.chunk_bits)
            }
            Kind::File {
                blocks: Blocks::Run(address),
                ..
            } => address.block,
            Kind::File {
                blocks: Blocks::Compressed { sizes, .. },
                ..
            } => sizes.iter().map(|&size| u32::from(size)).sum(),
            _ => 0,
        };
        let inode = Inode {
            layout: placed.layout,
            xattr_len: placed.xattr_len,
            mode: mode(node),
            size: placed.size,
            place,
            number: self.plan.number(placed.id),
            uid: node.meta.uid,
            gid: node.meta.gid,
            mtime: node.meta.mtime,
            mtime_nsec: node.meta.mtime_nsec,
            links: placed.links,
        };
        self.scratch.clear();
        self.scratch.extend_from_slice(&inode.encode());
        xattr::encode(&written_xattrs(self.tree, placed.id), &mut self.scratch);
        match (&node.kind, placed.layout) {
            (Kind::File { blocks, .. }, Layout::Chunked) => {
                let aligned = self.scratch.len().next_multiple_of(format::CHUNK_INDEX_LEN);
                self.scratch.resize(aligned, 0);
                chunk_indexes(blocks, placed, &mut self.scratch);
            }
            (
                Kind::File {
                    size,
                    blocks: Blocks::Compressed { start, sizes },
                },
                _,
            ) => {
                let aligned = self
                    .scratch
                    .len()
                    .next_multiple_of(format::CLUSTER_INDEX_LEN);
                self.scratch.resize(aligned, 0);
                // These indexes have no room for a device: they count on through all of them.
                let block = self.mapped[usize::from(start.device)] + start.block;
                format::cluster_indexes(*size, block, sizes, &mut self.scratch);
            }
            (_, Layout::Inline) => {
                self.load(placed);
                let tail = (placed.size % BLOCK as u64) as usize;
                self.scratch
                    .extend_from_slice(&self.data[self.data.len() - tail..]);
            }
            _ => {}
        }
        self.out.write(&self.scratch)?;
        Ok(self.scratch.len() as u64)
    }
}

fn chunk_indexes(blocks: &Blocks, placed: &Placed, out: &mut Vec<u8>) {
    let mut push = |address: Option<Address>| {
        let (device, block) = match address {
            Some(address) => (address.device, address.block),
            None => (0, format::NULL_BLOCK),
        };
        out.extend_from_slice(&[0; 2]);
        out.extend_from_slice(&device.to_le_bytes());
        out.extend_from_slice(&block.to_le_bytes());
    };
    match blocks {
        Blocks::Empty | Blocks::Compressed { .. } => {}
        Blocks::Run(address) => {
            for chunk in 0..placed.chunks {
                push(Some(Address {
                    device: address.device,
                    block: address.block + (chunk << placed.chunk_bits) as u32,
                }));
            }
        }
        Blocks::Chunks { table, .. } => table.iter().copied().for_each(push),
    }
}

/// Type and permission bits of a node as it is written.
fn mode(node: &Node) -> u16 {
    let kind = match &node.kind {
        Kind::Directory(_) => format::DIRECTORY,
        Kind::File { .. } | Kind::HardLink(_) => format::REGULAR,
        Kind::Symlink(_) => format::SYMLINK,
        Kind::Device { block: true, .. } => format::BLOCK_DEVICE,
        Kind::Device { block: false, .. } | Kind::Whiteout => format::CHARACTER,
        Kind::Fifo => format::FIFO,
    };
    kind | node.meta.mode
}
