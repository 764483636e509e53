//! Layers into one tree, by the rules of the OCI image specification ("Applying Changesets").

use crate::erofs::read::Image;
use crate::erofs::write::{self, Device, Identity, Written};
use crate::error::{Code, Error, Result};
use crate::limits::Limits;
use crate::source::{Observer, Watch};
use crate::tree::{Address, Blocks, Directory, Id, Kind, Meta, Node, Tree, ROOT};
use sha2::{Digest, Sha256};
use std::collections::HashMap;
use std::fs::File;

/// What a merge wrote, and how large the layers are.
#[derive(Debug)]
pub struct Merged {
    pub written: Written,
    pub layer_blocks: Vec<u32>,
}

/// Far more than any tool produces (Docker stops at 127); keeps device numbers in 16 bits.
const LAYERS_MAX: usize = 4096;

/// Merge layer files, lowest first, into the empty file `out`.
pub fn merge(layers: &[File], out: &File, observer: &mut Observer<'_>) -> Result<Merged> {
    if layers.is_empty() || layers.len() > LAYERS_MAX {
        return Err(Error::new(
            Code::Unsupported,
            format!("{} layers; 1 to {LAYERS_MAX} can be merged", layers.len()),
        ));
    }
    let mut observer = observer;
    let mut watch = Watch::new(&mut observer);
    let mut merged = Tree::new(Limits {
        max_entries: u32::MAX.into(),
        max_metadata: u64::MAX,
        max_xattrs: u64::MAX,
        ..Limits::default()
    });
    let mut identity = Sha256::new();
    let mut devices = Vec::new();
    for (index, layer) in layers.iter().enumerate() {
        watch.now(index as u64)?;
        let image = Image::open(layer)?;
        if image.first.kind != crate::erofs::format::ImageKind::Layer {
            return Err(Error::new(Code::Corrupt, "not a layer but a merged image"));
        }
        apply(&mut merged, &image.tree()?, index as u16 + 1)?;
        identity.update(image.first.identity);
        devices.push(Device {
            identity: image.first.identity,
            blocks: image.first.blocks,
        });
    }
    let written = write::write(
        out,
        &merged,
        1,
        &devices,
        Identity::Known(identity.finalize().into()),
    )?;
    watch.now(layers.len() as u64)?;
    Ok(Merged {
        written,
        layer_blocks: devices.iter().map(|device| device.blocks).collect(),
    })
}

/// Put one layer on top of what is merged so far.
pub fn apply(merged: &mut Tree, layer: &Tree, device: u16) -> Result<()> {
    let mut apply = Apply {
        links: HashMap::new(),
        imported: HashMap::new(),
        merged,
        layer,
        device,
    };
    apply.resolve_links()?;
    apply.directory_over(ROOT, Some(ROOT), ROOT)?;
    let mut pending = vec![(ROOT, ROOT)];
    while let Some((upper, into)) = pending.pop() {
        apply.children(upper, into, &mut pending)?;
    }
    Ok(())
}

struct Apply<'a> {
    merged: &'a mut Tree,
    layer: &'a Tree,
    device: u16,
    /// Hard links to lower layers: node of the layer to node of the merged tree.
    links: HashMap<Id, Id>,
    /// Nodes of the layer that have a counterpart already: their other names share it.
    imported: HashMap<Id, Id>,
}

impl Apply<'_> {
    /// Find the targets of hard links in the lower layers as they were before this one: a layer that
    /// renames a file removes the old name and links the new one.
    fn resolve_links(&mut self) -> Result<()> {
        for id in 0..self.layer.len() as Id {
            let Kind::HardLink(target) = &self.layer.node(id).kind else {
                continue;
            };
            let parts = crate::path::components(target, u64::MAX)?;
            let Some(found) = self.merged.lookup(&parts) else {
                continue;
            };
            if self.merged.directory(found).is_some() {
                return Err(Error::new(Code::BadLink, "hard link to a directory").at(target));
            }
            self.links.insert(id, found);
        }
        Ok(())
    }

    fn children(&mut self, upper: Id, into: Id, pending: &mut Vec<(Id, Id)>) -> Result<()> {
        let Some(directory) = self.layer.directory(upper) else {
            return Ok(());
        };
        for (name, &id) in &directory.children {
            match &self.layer.node(id).kind {
                Kind::Whiteout => {
                    if let Some(directory) = self.merged.directory_mut(into) {
                        directory.children.remove(name);
                    }
                }
                Kind::Directory(_) => {
                    let lower = self
                        .merged
                        .child(into, name)
                        .filter(|&lower| self.merged.directory(lower).is_some());
                    let made = self.directory_over(id, lower, into)?;
                    if lower != Some(made) {
                        self.merged.name(into, name, made)?;
                    }
                    pending.push((id, made));
                }
                _ => {
                    let made = self.import(id, name)?;
                    self.merged.name(into, name, made)?;
                }
            }
        }
        Ok(())
    }

    /// The merged directory for one of the layer's: an existing one changed, or a new one.
    fn directory_over(&mut self, upper: Id, lower: Option<Id>, _into: Id) -> Result<Id> {
        let node = self.layer.node(upper);
        let (listed, opaque) = self
            .layer
            .directory(upper)
            .map_or((true, false), |d| (d.listed, d.opaque));
        let meta = node.meta;
        let xattrs = self.merged.intern(self.layer.xattrs(node).clone())?;
        let Some(id) = lower else {
            return self.merged.push(Node {
                meta,
                xattrs,
                kind: Kind::Directory(Directory {
                    listed: true,
                    ..Directory::default()
                }),
            });
        };
        let target = self.merged.node_mut(id);
        // A directory that the layer only passes through keeps what a lower layer said about it.
        if listed {
            target.meta = meta;
            target.xattrs = xattrs;
        }
        if let Some(directory) = self.merged.directory_mut(id) {
            directory.listed = true;
            if opaque {
                directory.children.clear();
            }
        }
        Ok(id)
    }

    fn import(&mut self, id: Id, name: &[u8]) -> Result<Id> {
        let id = self.follow(id, name)?;
        let id = match id {
            Target::Lower(lower) => return Ok(lower),
            Target::Own(id) => id,
        };
        if let Some(&made) = self.imported.get(&id) {
            return Ok(made);
        }
        let node = self.layer.node(id);
        let xattrs = self.merged.intern(self.layer.xattrs(node).clone())?;
        let kind = match &node.kind {
            Kind::File { size, blocks } => Kind::File {
                size: *size,
                blocks: on_device(blocks, self.device),
            },
            Kind::Symlink(target) => Kind::Symlink(target.clone()),
            Kind::Device {
                block,
                major,
                minor,
            } => Kind::Device {
                block: *block,
                major: *major,
                minor: *minor,
            },
            Kind::Fifo => Kind::Fifo,
            Kind::Directory(_) | Kind::Whiteout | Kind::HardLink(_) => {
                return Err(Error::new(Code::BadLink, "hard link leads to no file").at(name));
            }
        };
        let meta: Meta = node.meta;
        let made = self.merged.push(Node { meta, xattrs, kind })?;
        self.imported.insert(id, made);
        Ok(made)
    }

    /// What a node of the layer stands for. A link without a target in lower layers may still have one
    /// that its own layer listed later.
    fn follow(&self, id: Id, name: &[u8]) -> Result<Target> {
        if let Some(&lower) = self.links.get(&id) {
            return Ok(Target::Lower(lower));
        }
        let Kind::HardLink(target) = &self.layer.node(id).kind else {
            return Ok(Target::Own(id));
        };
        let parts = crate::path::components(target, u64::MAX)?;
        match self.layer.lookup(&parts) {
            Some(own) if own != id => match self.links.get(&own) {
                Some(&lower) => Ok(Target::Lower(lower)),
                None => Ok(Target::Own(own)),
            },
            _ => Err(Error::new(
                Code::BadLink,
                format!(
                    "hard link to {}, which does not exist",
                    crate::error::printable(target)
                ),
            )
            .at(name)),
        }
    }
}

enum Target {
    Lower(Id),
    Own(Id),
}

fn on_device(blocks: &Blocks, device: u16) -> Blocks {
    let place = |address: Address| Address { device, ..address };
    match blocks {
        Blocks::Empty => Blocks::Empty,
        Blocks::Run(address) => Blocks::Run(place(*address)),
        Blocks::Chunks { bits, table } => Blocks::Chunks {
            bits: *bits,
            table: table.iter().map(|slot| slot.map(place)).collect(),
        },
    }
}
