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

/// Merge layer files, lowest first, into the empty file `out`, whatever that costs.
pub fn merge(layers: &[File], out: &File, observer: &mut Observer<'_>) -> Result<Merged> {
    let limits = Limits {
        max_entries: u32::MAX.into(),
        max_metadata: u64::MAX,
        ..Limits::default()
    };
    merge_within(layers, out, &limits, observer)
}

/// The same for layers of a stranger: many that are within the limits of one are not yet an image that is.
///
/// Of `limits`, `max_entries` and `max_metadata` count, and what upper layers hide or replace counts too: it
/// is in memory until the end.
pub fn merge_within(
    layers: &[File],
    out: &File,
    limits: &Limits,
    observer: &mut Observer<'_>,
) -> Result<Merged> {
    if layers.is_empty() || layers.len() > LAYERS_MAX {
        return Err(Error::new(
            Code::Unsupported,
            format!("{} layers; 1 to {LAYERS_MAX} can be merged", layers.len()),
        ));
    }
    let mut observer = observer;
    let mut watch = Watch::new(&mut observer);
    let mut merged = Tree::new(Limits {
        max_xattrs: u64::MAX,
        ..limits.clone()
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
        Blocks::Compressed { start, sizes } => Blocks::Compressed {
            start: place(*start),
            sizes: sizes.clone(),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{describe, entry, file, layer, open, outline, pax, scratch};
    use std::collections::BTreeMap;

    fn merged(layers: &[Vec<Vec<u8>>]) -> Result<BTreeMap<String, String>> {
        let files: Vec<File> = layers
            .iter()
            .map(|entries| layer(entries))
            .collect::<Result<_>>()?;
        let out = scratch();
        merge(&files, &out, &mut |_| true)?;
        let mut devices = vec![&out];
        devices.extend(&files);
        Ok(outline(&open(&out), &devices))
    }

    fn dir(name: &[u8]) -> Vec<u8> {
        entry(b'5', name, b"", b"")
    }

    fn check(layers: &[Vec<Vec<u8>>], expected: &[(&str, &str)]) {
        let mut result = merged(layers).unwrap();
        result.remove("");
        let expected: BTreeMap<_, _> = expected
            .iter()
            .map(|(path, line)| (path.to_string(), line.to_string()))
            .collect();
        assert_eq!(result, expected);
    }

    #[test]
    fn whiteouts_and_opaque_directories() {
        check(
            &[
                vec![
                    dir(b"a"),
                    file(b"a/x", b"1"),
                    file(b"a/y", b"2"),
                    dir(b"b"),
                    file(b"b/z", b"3"),
                ],
                vec![
                    file(b"a/.wh.x", b""),
                    file(b"b/.wh..wh..opq", b""),
                    file(b"b/new", b"4"),
                ],
            ],
            &[
                ("/a", "dir"),
                ("/a/y", "file \"2\""),
                ("/b", "dir"),
                ("/b/new", "file \"4\""),
            ],
        );
    }

    #[test]
    fn o02_a_directory_replaces_a_symlink_of_a_lower_layer() {
        check(
            &[
                vec![entry(b'2', b"etc", b"/tmp/probe", b"")],
                vec![file(b"etc/passwd", b"x")],
            ],
            &[("/etc", "dir"), ("/etc/passwd", "file \"x\"")],
        );
    }

    #[test]
    fn o04_an_opaque_marker_over_a_symlink_or_file() {
        check(
            &[
                vec![
                    entry(b'2', b"l", b"t", b""),
                    file(b"f", b"1"),
                    dir(b"t"),
                    file(b"t/kept", b"2"),
                ],
                vec![file(b"l/.wh..wh..opq", b""), file(b"f/.wh..wh..opq", b"")],
            ],
            &[
                ("/l", "dir"),
                ("/f", "dir"),
                ("/t", "dir"),
                ("/t/kept", "file \"2\""),
            ],
        );
    }

    #[test]
    fn o07_types_replace_each_other() {
        check(
            &[
                vec![
                    entry(b'2', b"symlink-file", b"x", b""),
                    file(b"file-dir", b"1"),
                    dir(b"dir-file"),
                    file(b"dir-file/gone", b"2"),
                    dir(b"dir-dir"),
                    file(b"dir-dir/kept", b"3"),
                ],
                vec![
                    file(b"symlink-file", b"4"),
                    dir(b"file-dir"),
                    file(b"dir-file", b"5"),
                    dir(b"dir-dir"),
                ],
            ],
            &[
                ("/symlink-file", "file \"4\""),
                ("/file-dir", "dir"),
                ("/dir-file", "file \"5\""),
                ("/dir-dir", "dir"),
                ("/dir-dir/kept", "file \"3\""),
            ],
        );
    }

    #[test]
    fn hard_links_reach_into_lower_layers() {
        check(
            &[
                vec![dir(b"d"), file(b"d/old", b"data")],
                vec![file(b"unrelated", b"")],
                // A rename, as a layer says it: the target is whited out before it is linked.
                vec![
                    file(b"d/.wh.old", b""),
                    entry(b'1', b"d/new", b"d/old", b""),
                    entry(b'1', b"again", b"d/new", b""),
                ],
            ],
            &[
                ("/again", "file \"data\""),
                ("/d", "dir"),
                ("/d/new", "file \"data\" = /again"),
                ("/unrelated", "file \"\""),
            ],
        );
    }

    #[test]
    fn hard_links_that_lead_nowhere_are_refused() {
        for entries in [
            vec![entry(b'1', b"a", b"missing", b"")],
            vec![entry(b'1', b"a", b"b", b""), entry(b'1', b"b", b"a", b"")],
            vec![entry(b'1', b"a", b"d", b""), dir(b"d")],
            vec![entry(b'1', b"a", b"a", b"")],
            vec![dir(b"d"), entry(b'1', b"a", b"d", b"")],
            vec![entry(b'1', b"a", b"w", b""), file(b".wh.w", b"")],
        ] {
            assert_eq!(merged(&[entries]).unwrap_err().code(), Some(Code::BadLink));
        }
        let below = vec![dir(b"d")];
        let link = vec![entry(b'1', b"a", b"d", b"")];
        assert_eq!(
            merged(&[below, link]).unwrap_err().code(),
            Some(Code::BadLink)
        );
    }

    #[test]
    fn a_link_may_come_before_its_target() {
        check(
            &[vec![entry(b'1', b"b", b"a", b""), file(b"a", b"1")]],
            &[("/a", "file \"1\""), ("/b", "file \"1\" = /a")],
        );
    }

    #[test]
    fn unlisted_parents_keep_lower_attributes() {
        let sticky = pax(&[("mtime", b"5.000000005"), ("SCHILY.xattr.user.k", b"v")]);
        let files = [
            layer(&[sticky, dir(b"tmp")]).unwrap(),
            layer(&[file(b"tmp/f", b"")]).unwrap(),
        ];
        let out = scratch();
        merge(&files, &out, &mut |_| true).unwrap();
        let all = describe(&open(&out), &[&out, &files[0], &files[1]]);
        assert!(
            all["/tmp"].starts_with("dir 640 1000:100 5.5 {"),
            "{}",
            all["/tmp"]
        );
        assert!(all[""].starts_with("dir 755 0:0 0.0 {}"), "{}", all[""]);
    }

    #[test]
    fn o09_layers_add_up() {
        let files: Vec<File> = (0..5)
            .map(|n| layer(&[dir(b"d"), file(format!("d/{n}").as_bytes(), b"1")]).unwrap())
            .collect();
        let code = |limits: Limits| {
            let merged = merge_within(&files, &scratch(), &limits, &mut |_| true);
            merged.err().and_then(|error| error.code())
        };
        let entries = |max_entries| Limits {
            max_entries,
            ..Limits::default()
        };
        assert_eq!(code(entries(5)), Some(Code::TooManyEntries));
        assert_eq!(code(entries(6)), None);
        let few = Limits {
            max_metadata: 1000,
            ..Limits::default()
        };
        assert_eq!(code(few), Some(Code::Metadata));
    }

    #[test]
    fn the_same_layers_give_the_same_bytes() {
        let make = || {
            let files = [layer(&[dir(b"a"), file(b"a/b", b"1")]).unwrap()];
            let out = scratch();
            merge(&files, &out, &mut |_| true).unwrap();
            crate::check::sha256(&out, &mut |_| true).unwrap()
        };
        assert_eq!(make(), make());
    }

    #[test]
    fn o17_a_damaged_layer_is_never_merged() {
        use std::os::unix::fs::FileExt;
        let good = layer(&[dir(b"a"), file(b"a/b", b"1")]).unwrap();
        let len = good.metadata().unwrap().len();
        let start = Image::open(&good).unwrap().first.metadata_start;
        for at in (0..4096).chain(u64::from(start) * 4096..len).step_by(97) {
            let mut byte = [0];
            good.read_exact_at(&mut byte, at).unwrap();
            good.write_all_at(&[byte[0] ^ 4], at).unwrap();
            assert!(Image::open(&good).is_err(), "byte {at}");
            good.write_all_at(&byte, at).unwrap();
        }
        good.set_len(len - 4096).unwrap();
        assert_eq!(
            Image::open(&good).err().unwrap().code(),
            Some(Code::Truncated)
        );
        good.set_len(10).unwrap();
        assert_eq!(
            Image::open(&good).err().unwrap().code(),
            Some(Code::Truncated)
        );
    }
}
