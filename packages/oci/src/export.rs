//! A merged image as one tar stream: what a guest sees, with nothing of the layers that made it.
//!
//! Entries come in the order of their names, a directory before what is in it, and the first name of a file
//! before its other names, which are hard links to it. The same image always gives the same bytes.

use crate::blob::Extent;
use crate::compress::{decompress, EXTENT};
use crate::erofs::format::{ImageKind, BLOCK};
use crate::erofs::read::Image;
use crate::error::{Code, Error, Result};
use crate::source::{Observer, Watch};
use crate::tar::write::{self, Data, Entry};
use crate::tree::{Address, Blocks, Id, Kind, Tree, ROOT};
use crate::xattr::Xattrs;
use std::collections::HashMap;
use std::fs::File;
use std::os::unix::fs::FileExt;

/// Bytes that are handed on at once.
const PIECE: usize = 1 << 20;

/// Takes the archive, piece by piece.
pub type Output<'a> = dyn FnMut(&[u8]) -> Result<()> + 'a;

/// Write the tree of the merged image `metadata`, whose file contents are in `layers`, lowest first. The observer
/// is told how many bytes of the archive were written.
///
/// What stays in memory is the tree, without any contents.
pub fn export(
    metadata: &File,
    layers: &[File],
    out: &mut Output<'_>,
    observer: &mut Observer<'_>,
) -> Result<()> {
    let image = Image::open(metadata)?;
    if image.first.kind != ImageKind::Merged || usize::from(image.first.devices) != layers.len() {
        return Err(Error::new(
            Code::Corrupt,
            format!("not the merged image of {} layers", layers.len()),
        ));
    }
    let tree = image.tree()?;
    drop(image);
    let mut observer = observer;
    let mut archive = Archive {
        layers,
        out,
        watch: Watch::new(&mut observer),
        buffer: Vec::with_capacity(PIECE),
        written: 0,
    };
    let several = with_several_names(&tree);
    let mut first_names: HashMap<Id, Box<[u8]>> = HashMap::new();
    archive.add(&tree, ROOT, b"./", None)?;
    let mut path = Vec::new();
    let mut levels = Vec::new();
    if let Some(root) = tree.directory(ROOT) {
        levels.push((0, root.children.iter()));
    }
    while let Some((parent, rest)) = levels.last_mut() {
        path.truncate(*parent);
        let Some((name, &id)) = rest.next() else {
            levels.pop();
            continue;
        };
        path.extend_from_slice(name);
        let directory = tree.directory(id);
        if directory.is_some() {
            path.push(b'/');
        }
        let first = first_names.get(&id).map(|first| &**first);
        archive
            .add(&tree, id, &path, first)
            .map_err(|error| error.at(&path))?;
        if first.is_none() && several[id as usize] {
            first_names.insert(id, path.clone().into());
        }
        if let Some(directory) = directory {
            levels.push((path.len(), directory.children.iter()));
        }
    }
    write::end(&mut archive.buffer);
    archive.flush()?;
    archive.watch.now(archive.written)
}

/// Of each node, whether there are several names for it.
fn with_several_names(tree: &Tree) -> Vec<bool> {
    let mut named = vec![false; tree.len()];
    let mut several = named.clone();
    for id in 0..tree.len() as Id {
        for &child in tree.directory(id).iter().flat_map(|d| d.children.values()) {
            several[child as usize] = named[child as usize];
            named[child as usize] = true;
        }
    }
    several
}

struct Archive<'a, 'w> {
    layers: &'a [File],
    out: &'a mut Output<'w>,
    watch: Watch<'a>,
    buffer: Vec<u8>,
    written: u64,
}

impl Archive<'_, '_> {
    /// One entry with its data. `first`: the name under which this node is in the archive already.
    fn add(&mut self, tree: &Tree, id: Id, path: &[u8], first: Option<&[u8]>) -> Result<()> {
        let node = tree.node(id);
        let none = Xattrs::new();
        let mut extents = Vec::new();
        let mut entry = Entry {
            path,
            kind: b'0',
            link: b"",
            meta: node.meta,
            xattrs: tree.xattrs(node),
            device: (0, 0),
            data: Data::None,
        };
        match (first, &node.kind) {
            (Some(first), _) => {
                // What the file is was said under its first name.
                (entry.kind, entry.link, entry.xattrs) = (b'1', first, &none);
            }
            (None, Kind::Directory(_)) => entry.kind = b'5',
            (None, Kind::File { size, blocks }) => {
                extents = stored(*size, blocks);
                let sum: u64 = extents.iter().map(|extent| extent.len).sum();
                entry.data = if sum < *size {
                    Data::Sparse {
                        size: *size,
                        extents: &extents,
                    }
                } else {
                    Data::Whole(*size)
                };
            }
            (None, Kind::Symlink(target)) => (entry.kind, entry.link) = (b'2', target),
            (
                None,
                Kind::Device {
                    block,
                    major,
                    minor,
                },
            ) => {
                entry.kind = if *block { b'4' } else { b'3' };
                entry.device = (*major, *minor);
            }
            (None, Kind::Fifo) => entry.kind = b'6',
            (None, Kind::Whiteout | Kind::HardLink(_)) => {
                return Err(Error::new(Code::Corrupt, "layer marker in a merged image"));
            }
        }
        write::begin(&entry, &mut self.buffer);
        if let (None, Kind::File { size, blocks }) = (first, &node.kind) {
            let mut sum = 0;
            for extent in &extents {
                match blocks {
                    Blocks::Compressed { start, sizes } => {
                        self.decompressed(*size, *start, sizes)?
                    }
                    _ => self.contents(blocks, extent)?,
                }
                sum += extent.len;
            }
            write::pad(&mut self.buffer, sum);
        }
        if self.buffer.len() >= PIECE {
            self.flush()?;
        }
        self.watch.check(self.written)
    }

    /// The bytes of one extent of a file.
    fn contents(&mut self, blocks: &Blocks, extent: &Extent) -> Result<()> {
        let (mut at, end) = (extent.offset, extent.offset + extent.len);
        while at < end {
            let (address, run) = place(blocks, at, end).ok_or_else(|| damaged("a hole"))?;
            let mut position = u64::from(address.block) * BLOCK as u64 + (at - run.offset);
            let stop = end.min(run.offset + run.len);
            let layer = layer_of(self.layers, address)?;
            while at < stop {
                if self.buffer.len() >= PIECE {
                    self.flush()?;
                }
                let now = (stop - at).min((PIECE - self.buffer.len()) as u64);
                let begin = self.buffer.len();
                self.buffer.resize(begin + now as usize, 0);
                read(layer, &mut self.buffer[begin..], position)?;
                position += now;
                at += now;
            }
        }
        Ok(())
    }

    /// All bytes of a file that is compressed.
    fn decompressed(&mut self, size: u64, start: Address, sizes: &[u8]) -> Result<()> {
        let layer = layer_of(self.layers, start)?;
        let mut position = u64::from(start.block) * BLOCK as u64;
        let mut left = size;
        for blocks in sizes {
            let mut stored = vec![0; usize::from(*blocks) * BLOCK];
            read(layer, &mut stored, position)?;
            let len = left.min(EXTENT as u64);
            self.buffer.extend(decompress(&stored, len as usize)?);
            if self.buffer.len() >= PIECE {
                self.flush()?;
            }
            position += stored.len() as u64;
            left -= len;
        }
        match left {
            0 => Ok(()),
            _ => Err(damaged("their end too early")),
        }
    }

    fn flush(&mut self) -> Result<()> {
        (self.out)(&self.buffer)?;
        self.written += self.buffer.len() as u64;
        self.buffer.clear();
        self.watch.check(self.written)
    }
}

fn layer_of(layers: &[File], address: Address) -> Result<&File> {
    address
        .device
        .checked_sub(1)
        .and_then(|index| layers.get(usize::from(index)))
        .ok_or_else(|| damaged("a layer that is not there"))
}

fn read(layer: &File, data: &mut [u8], position: u64) -> Result<()> {
    layer
        .read_exact_at(data, position)
        .map_err(|error| damaged(&format!("what cannot be read ({error})")))
}

fn damaged(what: &str) -> Error {
    Error::new(Code::Corrupt, format!("file contents lead to {what}"))
}

/// The parts of a file that are not holes, neighbours joined.
fn stored(size: u64, blocks: &Blocks) -> Vec<Extent> {
    let mut extents: Vec<Extent> = Vec::new();
    match blocks {
        Blocks::Empty => {}
        Blocks::Run(_) | Blocks::Compressed { .. } => extents.push(Extent {
            offset: 0,
            len: size,
        }),
        Blocks::Chunks { bits, table } => {
            let chunk = (BLOCK as u64) << bits;
            for (index, _) in table.iter().enumerate().filter(|(_, slot)| slot.is_some()) {
                let offset = index as u64 * chunk;
                let len = chunk.min(size - offset);
                match extents.last_mut() {
                    Some(last) if last.offset + last.len == offset => last.len += len,
                    _ => extents.push(Extent { offset, len }),
                }
            }
        }
    }
    extents
}

/// Where the byte at `at` of a file that ends at `end` is stored: the address, and the part that begins there.
fn place(blocks: &Blocks, at: u64, end: u64) -> Option<(Address, Extent)> {
    match blocks {
        // What is compressed has no byte in a place of its own.
        Blocks::Empty | Blocks::Compressed { .. } => None,
        Blocks::Run(address) => Some((
            *address,
            Extent {
                offset: 0,
                len: end,
            },
        )),
        Blocks::Chunks { bits, table } => {
            let chunk = (BLOCK as u64) << bits;
            let index = at / chunk;
            let address = (*table.get(usize::try_from(index).ok()?)?)?;
            let extent = Extent {
                offset: index * chunk,
                len: chunk,
            };
            Some((address, extent))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compress::Encoding;
    use crate::limits::Limits;
    use crate::merge::merge;
    use crate::testing::{describe, encoded_layer, entry, file, layer, open, pax, scratch};

    /// The archive of these layers, and the merged tree described.
    fn exported(layers: &[Vec<Vec<u8>>]) -> (Vec<u8>, Vec<String>) {
        exported_from(layers, Encoding::Plain)
    }

    fn exported_from(layers: &[Vec<Vec<u8>>], encoding: Encoding) -> (Vec<u8>, Vec<String>) {
        let files: Vec<File> = layers
            .iter()
            .map(|entries| encoded_layer(entries, encoding, &Limits::default()).unwrap())
            .collect();
        let merged = scratch();
        merge(&files, &merged, &mut |_| true).unwrap();
        let mut archive = Vec::new();
        export(
            &merged,
            &files,
            &mut |piece| {
                archive.extend_from_slice(piece);
                Ok(())
            },
            &mut |_| true,
        )
        .unwrap();
        let devices: Vec<&File> = std::iter::once(&merged).chain(&files).collect();
        (archive, lines(&open(&merged), &devices))
    }

    fn lines(tree: &Tree, devices: &[&File]) -> Vec<String> {
        describe(tree, devices)
            .into_iter()
            .map(|(path, line)| format!("{path} {line}"))
            .collect()
    }

    fn sparse(name: &str, size: u64, map: &str, data: &[u8]) -> Vec<Vec<u8>> {
        let mut stored = map.as_bytes().to_vec();
        stored.resize(512, 0);
        stored.extend_from_slice(data);
        vec![
            pax(&[
                ("GNU.sparse.major", b"1"),
                ("GNU.sparse.minor", b"0"),
                ("GNU.sparse.name", name.as_bytes()),
                ("GNU.sparse.realsize", size.to_string().as_bytes()),
            ]),
            file(b"placeholder", &stored),
        ]
    }

    #[test]
    fn an_archive_loaded_again_is_the_same_tree() {
        let long_name = [&b"long/"[..], &[b'n'; 200]].concat();
        let mut lower = vec![
            entry(b'5', b"d", b"", b""),
            pax(&[
                ("mtime", b"-1.25"),
                ("uid", b"4000000000"),
                ("SCHILY.xattr.security.capability", b"\x01\0\0\x02\n=\0"),
                ("LIBARCHIVE.xattr.user.a%3Db", b"AQID"),
            ]),
            file(b"d/f", &[7; 5000]),
            file(b"d/gone", b"x"),
            entry(b'2', b"link", b"d/f", b""),
            entry(b'6', b"fifo", b"", b""),
            pax(&[("path", &long_name)]),
            file(b"cut", b"1"),
        ];
        lower.extend(sparse("holes", 1 << 20, "1\n8192\n4\n", b"data"));
        lower.extend(sparse("only-a-hole", 70_000, "0\n", b""));
        let upper = vec![
            file(b"d/.wh.gone", b""),
            entry(b'1', b"a-second-name", b"d/f", b""),
            file(b"big", &[1; 3 << 20]),
        ];
        let layers = [lower, upper];
        let (archive, expected) = exported(&layers);
        // Whatever form the contents are kept in.
        assert_eq!(
            exported_from(&layers, Encoding::Lz4),
            (archive.clone(), expected.clone())
        );
        let (again, found) = exported(&[vec![archive[..archive.len() - 1024].to_vec()]]);
        assert_eq!(found, expected);
        assert_eq!(again, archive);
    }

    #[test]
    fn holes_stay_holes() {
        let (archive, _) = exported(&[sparse("s", 1 << 30, "1\n536870912\n4\n", b"data")]);
        assert!(archive.len() < 1 << 20, "{}", archive.len());
    }

    #[test]
    fn a_layer_that_is_cut_off_is_named() {
        let files = [layer(&[file(b"f", &[1; 9000])]).unwrap()];
        let merged = scratch();
        merge(&files, &merged, &mut |_| true).unwrap();
        files[0].set_len(4096).unwrap();
        let error = export(&merged, &files, &mut |_| Ok(()), &mut |_| true).unwrap_err();
        assert_eq!(error.code(), Some(Code::Corrupt));
        assert!(error.to_string().starts_with("f: "), "{error}");
        assert!(export(&merged, &[], &mut |_| Ok(()), &mut |_| true).is_err());
    }

    #[test]
    fn a_failing_output_ends_it() {
        let files = [layer(&[file(b"f", &[1; 3 << 20])]).unwrap()];
        let merged = scratch();
        merge(&files, &merged, &mut |_| true).unwrap();
        let mut pieces = 0;
        let failed = export(
            &merged,
            &files,
            &mut |_| {
                pieces += 1;
                Err(Error::Cancelled)
            },
            &mut |_| true,
        );
        assert!(matches!(failed, Err(Error::Cancelled)));
        assert_eq!(pieces, 1);
    }
}
