//! Any layers: merged, they are what a slow reading of the image specification makes of them.

use crate::draw::{Draw, START};
use crate::memory;
use crate::outline::{assert_same, outline, Outline, Path};
use microsandbox_oci_native::erofs::read::Image;
use microsandbox_oci_native::erofs::write::{self, Identity};
use microsandbox_oci_native::merge;
use microsandbox_oci_native::tree::{Kind, Node, Tree};
use std::collections::BTreeMap;
use std::fs::File;

/// What a path leads to: `file` tells the files apart, whose names may be many.
#[derive(Clone, Debug, PartialEq)]
struct Item {
    line: String,
    directory: bool,
    file: (usize, Path),
}

type Paths = BTreeMap<Path, Item>;

pub fn merge(data: &[u8]) {
    let mut draw = Draw(data);
    let mut files: Vec<File> = Vec::new();
    let mut model = Some(Paths::from([(
        Path::new(),
        Item {
            line: String::new(),
            directory: true,
            file: (0, Path::new()),
        },
    )]));
    for number in 1..=1 + draw.byte() % 4 {
        let tree = draw.tree(12);
        let file = memory();
        write::write(&file, &tree, START, &[], Identity::Known([number; 32])).expect("write");
        let read = Image::open(&file)
            .and_then(|image| image.tree())
            .expect("read");
        model = model.and_then(|lower| over(lower, &read, number.into()));
        files.push(file);
    }
    let out = memory();
    let merged = merge::merge(&files, &out, &mut |_| true);
    let (Ok(_), Some(model)) = (&merged, &model) else {
        assert_eq!(merged.is_ok(), model.is_some(), "{merged:?}");
        return;
    };
    let tree = Image::open(&out)
        .and_then(|image| image.tree())
        .expect("read the merged");
    let found = outline(&tree, line);
    let mut first: BTreeMap<&(usize, Path), &Path> = BTreeMap::new();
    let mut expected = Outline::new();
    for (path, item) in model {
        let same = first.get(&item.file).map(|&path| path.clone());
        first.entry(&item.file).or_insert(path);
        expected.insert(path.clone(), (item.line.clone(), same));
    }
    // The root is there whatever the layers say; nothing that they do not say is known of it.
    if expected[&Path::new()].0.is_empty() {
        expected.insert(Path::new(), found[&Path::new()].clone());
    }
    assert_same(&found, &expected);
}

/// What does not depend on where the contents are.
fn line(tree: &Tree, node: &Node) -> String {
    let kind = match &node.kind {
        Kind::Directory(_) => "directory".to_owned(),
        Kind::File { size, .. } => format!("file of {size}"),
        other => format!("{other:?}"),
    };
    format!("{kind} {:?} {:?}", node.meta, tree.xattrs(node))
}

/// One layer on top of what is below it; `None` if a hard link of it cannot be.
fn over(lower: Paths, layer: &Tree, number: usize) -> Option<Paths> {
    let own = outline(layer, line);
    let node = |path: &Path| {
        let parts: Vec<&[u8]> = path.iter().map(Vec::as_slice).collect();
        layer.lookup(&parts).map(|id| layer.node(id))
    };
    let target_of = |target: &[u8]| -> Path {
        target
            .split(|&b| b == b'/')
            .filter(|part| !part.is_empty() && part != b".")
            .map(<[u8]>::to_vec)
            .collect()
    };
    // A link is to what the path was before this layer, else to what the layer itself has there.
    let below = |target: &[u8]| lower.get(&target_of(target));
    let mut merged = lower.clone();
    for path in own.keys() {
        let node_here = node(path)?;
        let directory = match &node_here.kind {
            Kind::Directory(directory) => directory,
            Kind::HardLink(target) if below(target).is_some_and(|item| item.directory) => {
                return None
            }
            _ => continue,
        };
        let was = merged.get(path).cloned();
        if !was.as_ref().is_some_and(|item| item.directory) || directory.opaque {
            merged.retain(|other, _| !(other.starts_with(path) && other != path));
        }
        if directory.listed || !was.is_some_and(|item| item.directory) {
            let line = line(layer, node_here);
            let file = (number, path.clone());
            merged.insert(
                path.clone(),
                Item {
                    line,
                    directory: true,
                    file,
                },
            );
        }
    }
    for (path, (what, same)) in &own {
        let node_here = node(path)?;
        let (number, first, what) = match &node_here.kind {
            Kind::Directory(_) => continue,
            Kind::Whiteout => {
                merged.retain(|other, _| !other.starts_with(path));
                continue;
            }
            Kind::HardLink(target) => {
                let target = target_of(target);
                if let Some(item) = lower.get(&target) {
                    (item.file.0, item.file.1.clone(), item.line.clone())
                } else {
                    let other = node(&target)?;
                    match &other.kind {
                        // A link to a link: to what that one is in lower layers, if it is there.
                        Kind::HardLink(further) => {
                            let item = below(further)?;
                            (item.file.0, item.file.1.clone(), item.line.clone())
                        }
                        Kind::Directory(_) | Kind::Whiteout => return None,
                        _ => {
                            let first = own[&target].1.clone().unwrap_or(target);
                            (number, first, line(layer, other))
                        }
                    }
                }
            }
            _ => (number, same.clone().unwrap_or(path.clone()), what.clone()),
        };
        merged.retain(|other, _| !other.starts_with(path));
        merged.insert(
            path.clone(),
            Item {
                line: what,
                directory: false,
                file: (number, first),
            },
        );
    }
    Some(merged)
}
