//! A tar stream into a layer file.

use crate::blob::{Blob, Sparse};
use crate::erofs::format;
use crate::erofs::write::{self, Identity};
use crate::error::{Code, Error, Result};
use crate::limits::Limits;
use crate::path::{components, marker, Marker};
use crate::source::{self, Observer, Summary};
use crate::tar::{Entry, EntryKind, Reader};
use crate::tree::{Blocks, Kind, Node, Tree};
use std::fs::File;
use std::io::{BufRead, Read};

/// A converted layer.
#[derive(Debug)]
pub struct Converted {
    pub summary: Summary,
    pub entries: u64,
    pub blocks: u32,
}

/// Convert `source` into the empty file `out`.
pub fn convert(
    source: impl Read,
    out: &File,
    limits: &Limits,
    observer: &mut Observer<'_>,
) -> Result<Converted> {
    let ((tree, start, entries), summary) = source::run(source, limits, observer, |input| {
        let mut reader = Reader::new(&mut *input, limits.clone());
        let result = read_tar(&mut reader, out, limits)?;
        reader.drain()?;
        Ok(result)
    })?;
    let identity = Identity::Known(summary.diff_id);
    let written = write::write(out, &tree, start, &[], identity)?;
    Ok(Converted {
        summary,
        entries,
        blocks: written.blocks,
    })
}

/// File contents into `out`, everything else into a tree. Returns it with the next free block and the
/// number of entries.
pub fn read_tar<R: BufRead>(
    reader: &mut Reader<R>,
    out: &File,
    limits: &Limits,
) -> Result<(Tree, u32, u64)> {
    let mut layer = Layer {
        tree: Tree::new(limits.clone()),
        blob: Blob::new(out, 1, false),
        limits,
    };
    let mut entries = 0;
    while let Some(entry) = reader.next_entry()? {
        entries += 1;
        let path = entry.path.clone();
        layer.add(entry, reader).map_err(|error| error.at(&path))?;
    }
    let (blocks, _) = layer.blob.finish()?;
    Ok((layer.tree, blocks, entries))
}

struct Layer<'a> {
    tree: Tree,
    blob: Blob<'a>,
    limits: &'a Limits,
}

impl Layer<'_> {
    fn add<R: BufRead>(&mut self, entry: Entry, reader: &mut Reader<R>) -> Result<()> {
        let parts = components(&entry.path, self.limits.max_path)?;
        match marker(&parts)? {
            Marker::None => {}
            Marker::Ignored => return Ok(()),
            Marker::Opaque => return self.tree.add_opaque(&parts[..parts.len() - 1]),
            Marker::Whiteout(name) => {
                return self.tree.add_whiteout(&parts[..parts.len() - 1], name)
            }
        }
        if let EntryKind::HardLink = entry.kind {
            let target = components(&entry.link, self.limits.max_path)
                .map_err(|error| link_error(error, "hard link target"))?;
            if target.is_empty() {
                return Err(Error::new(Code::BadLink, "hard link to a directory"));
            }
            return self.tree.add_link(&parts, &target);
        }
        let xattrs = self.tree.intern(entry.xattrs)?;
        let meta = entry.meta;
        let kind = match entry.kind {
            EntryKind::Directory => return self.tree.add_directory(&parts, meta, xattrs),
            EntryKind::File if parts.is_empty() => {
                return Err(Error::new(Code::BadPath, "the root must be a directory"));
            }
            EntryKind::File => self.file(entry.size, entry.extents.as_deref(), reader)?,
            EntryKind::Symlink => Kind::Symlink(symlink(entry.link, self.limits)?),
            EntryKind::Device {
                block,
                major,
                minor,
            } => device(block, major, minor)?,
            EntryKind::Fifo => Kind::Fifo,
            EntryKind::HardLink => return Ok(()),
        };
        self.tree.add(&parts, Node { meta, xattrs, kind }).map(drop)
    }

    fn file<R: BufRead>(
        &mut self,
        size: u64,
        extents: Option<&[crate::blob::Extent]>,
        reader: &mut Reader<R>,
    ) -> Result<Kind> {
        let start = self.blob.block()?;
        let blocks = match extents {
            None => {
                loop {
                    let data = reader.data()?;
                    let len = data.len();
                    if len == 0 {
                        break;
                    }
                    self.blob.write(data)?;
                    reader.consume(len);
                }
                self.blob.pad()?;
                match size {
                    0 => Blocks::Empty,
                    _ => Blocks::Run(crate::tree::Address {
                        device: 0,
                        block: start,
                    }),
                }
            }
            Some(extents) => {
                let mut sparse = Sparse::new(size, extents, start)?;
                self.tree.hold(sparse.cost())?;
                for extent in extents {
                    let mut left = extent.len;
                    while left > 0 {
                        let data = reader.data()?;
                        if data.is_empty() {
                            return Err(Error::new(
                                Code::BadHeader,
                                "sparse map exceeds its entry",
                            ));
                        }
                        let len = left.min(data.len() as u64) as usize;
                        let offset = extent.offset + extent.len - left;
                        sparse.write(&mut self.blob, offset, &data[..len])?;
                        reader.consume(len);
                        left -= len as u64;
                    }
                }
                sparse.finish(&mut self.blob)?
            }
        };
        Ok(Kind::File { size, blocks })
    }
}

fn link_error(error: Error, what: &str) -> Error {
    Error::new(
        error.code().unwrap_or(Code::BadLink),
        format!("{what}: {error}"),
    )
}

fn symlink(target: Vec<u8>, limits: &Limits) -> Result<Box<[u8]>> {
    // The kernel reads a link target into one page, with a NUL behind it.
    let limit = limits.max_path.min(format::BLOCK as u64 - 1);
    if target.len() as u64 > limit {
        return Err(Error::new(
            Code::PathTooLong,
            format!("link target of {} bytes (limit {limit})", target.len()),
        ));
    }
    if target.is_empty() || target.contains(&0) {
        return Err(Error::new(Code::BadLink, "malformed link target"));
    }
    Ok(target.into())
}

/// A device node. A character device 0:0 is how overlayfs spells a whiteout, and so do we.
pub fn device(block: bool, major: u32, minor: u32) -> Result<Kind> {
    if major > format::MAJOR_MAX || minor > format::MINOR_MAX {
        return Err(Error::new(
            Code::BadHeader,
            format!("device number {major}:{minor} out of range"),
        ));
    }
    Ok(match (block, major, minor) {
        (false, 0, 0) => Kind::Whiteout,
        _ => Kind::Device {
            block,
            major,
            minor,
        },
    })
}
