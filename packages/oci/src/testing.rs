//! What the tests of several modules need: tar archives, images and trees in a comparable form.

use crate::compress::{decompress, Encoding, EXTENT};
use crate::convert::read_tar;
use crate::erofs::read::Image;
use crate::erofs::write::{self, Identity};
use crate::error::Result;
use crate::limits::Limits;
use crate::tar::Reader;
use crate::tree::{Blocks, Id, Kind, Tree, ROOT};
use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::os::unix::fs::FileExt;

/// One tar header with a right checksum, and its data.
pub fn entry(kind: u8, name: &[u8], link: &[u8], data: &[u8]) -> Vec<u8> {
    let mut header = [0u8; 512];
    header[..name.len()].copy_from_slice(name);
    header[100..107].copy_from_slice(b"0000640");
    header[108..115].copy_from_slice(b"0001750");
    header[116..123].copy_from_slice(b"0000144");
    header[124..135].copy_from_slice(format!("{:011o}", data.len()).as_bytes());
    header[136..147].copy_from_slice(b"00000000007");
    header[156] = kind;
    header[157..157 + link.len()].copy_from_slice(link);
    header[257..265].copy_from_slice(b"ustar\x0000");
    seal(&mut header);
    let mut all = header.to_vec();
    all.extend_from_slice(data);
    all.resize(all.len().next_multiple_of(512), 0);
    all
}

/// Put the checksum of a changed header right.
pub fn seal(header: &mut [u8]) {
    header[148..156].fill(b' ');
    let sum: u32 = header[..512].iter().map(|&b| u32::from(b)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
}

/// A PAX extended header with these records.
pub fn pax(records: &[(&str, &[u8])]) -> Vec<u8> {
    let mut data = Vec::new();
    for (key, value) in records {
        let body = [b" ", key.as_bytes(), b"=", value, b"\n"].concat();
        let mut len = body.len() + 1;
        while len.to_string().len() + body.len() != len {
            len += 1;
        }
        data.extend_from_slice(len.to_string().as_bytes());
        data.extend_from_slice(&body);
    }
    entry(b'x', b"pax", b"", &data)
}

pub fn file(name: &[u8], data: &[u8]) -> Vec<u8> {
    entry(b'0', name, b"", data)
}

pub fn scratch() -> File {
    tempfile::tempfile().unwrap()
}

/// Convert entries into a layer file.
pub fn layer(entries: &[Vec<u8>]) -> Result<File> {
    layer_with(entries, &Limits::default())
}

pub fn layer_with(entries: &[Vec<u8>], limits: &Limits) -> Result<File> {
    encoded_layer(entries, Encoding::Plain, limits)
}

pub fn encoded_layer(entries: &[Vec<u8>], encoding: Encoding, limits: &Limits) -> Result<File> {
    let out = scratch();
    let tar = [entries.concat(), vec![0; 1024]].concat();
    let mut reader = Reader::new(&tar[..], limits.clone());
    let (tree, start, _) = read_tar(&mut reader, &out, encoding, limits)?;
    write::write(&out, &tree, start, &[], Identity::Known([7; 32]))?;
    Ok(out)
}

pub fn open(file: &File) -> Tree {
    Image::open(file).unwrap().tree().unwrap()
}

/// Every path with one line about it. `devices`: where file contents are (0 is the image itself).
pub fn describe(tree: &Tree, devices: &[&File]) -> BTreeMap<String, String> {
    let mut all = BTreeMap::new();
    let mut first_name: HashMap<Id, String> = HashMap::new();
    let mut pending = vec![(String::new(), ROOT)];
    while let Some((path, id)) = pending.pop() {
        let node = tree.node(id);
        let what = match &node.kind {
            Kind::Directory(directory) => {
                for (name, &child) in directory.children.iter().rev() {
                    let name = String::from_utf8_lossy(name);
                    pending.push((format!("{path}/{name}"), child));
                }
                match (directory.listed, directory.opaque) {
                    (true, false) => "dir".to_owned(),
                    (listed, opaque) => format!("dir listed={listed} opaque={opaque}"),
                }
            }
            Kind::File { size, blocks } => {
                let data = contents(*size, blocks, devices);
                match String::from_utf8(data) {
                    Ok(text) if text.len() < 40 => format!("file {text:?}"),
                    _ => format!("file of {size}"),
                }
            }
            other => format!("{other:?}"),
        };
        let same = match first_name.get(&id) {
            Some(first) => format!(" = {first}"),
            None => String::new(),
        };
        first_name.entry(id).or_insert_with(|| path.clone());
        let meta = node.meta;
        let line = format!(
            "{what} {:o} {}:{} {}.{} {:?}{same}",
            meta.mode,
            meta.uid,
            meta.gid,
            meta.mtime,
            meta.mtime_nsec,
            tree.xattrs(node)
        );
        all.insert(path, line);
    }
    all
}

/// Only what stands before the attributes: enough for most tests.
pub fn outline(tree: &Tree, devices: &[&File]) -> BTreeMap<String, String> {
    let mut all = describe(tree, devices);
    for line in all.values_mut() {
        let same = line.find(" = ").map(|at| line[at..].to_owned());
        let end = line
            .find(" 640 ")
            .or(line.find(" 755 "))
            .or(line.find(" 0 "))
            .unwrap_or(line.len());
        line.truncate(end);
        line.push_str(&same.unwrap_or_default());
    }
    all
}

pub fn contents(size: u64, blocks: &Blocks, devices: &[&File]) -> Vec<u8> {
    let mut data = vec![0; size as usize];
    let read = |data: &mut [u8], address: crate::tree::Address| {
        devices[address.device as usize]
            .read_exact_at(data, u64::from(address.block) * 4096)
            .unwrap();
    };
    match blocks {
        Blocks::Empty => {}
        Blocks::Run(address) => read(&mut data, *address),
        Blocks::Compressed { start, sizes } => {
            let mut block = start.block;
            for (extent, &blocks) in data.chunks_mut(EXTENT).zip(sizes) {
                let mut stored = vec![0; usize::from(blocks) * 4096];
                read(&mut stored, crate::tree::Address { block, ..*start });
                let len = extent.len();
                extent.copy_from_slice(&decompress(&stored, len).unwrap());
                block += u32::from(blocks);
            }
        }
        Blocks::Chunks { bits, table } => {
            for (chunk, address) in data.chunks_mut(4096 << bits).zip(table) {
                if let Some(address) = address {
                    read(chunk, *address);
                }
            }
        }
    }
    data
}
