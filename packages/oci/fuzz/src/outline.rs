//! A tree by its paths, in a form that can be compared.

use microsandbox_oci_native::tree::{Id, Kind, Node, Tree, ROOT};
use std::collections::{BTreeMap, HashMap};

pub type Path = Vec<Vec<u8>>;

pub type Outline = BTreeMap<Path, (String, Option<Path>)>;

/// Every path with what is there, and with the first other path of the same node.
pub fn outline(tree: &Tree, line: impl Fn(&Tree, &Node) -> String) -> Outline {
    let mut all = BTreeMap::new();
    let mut first: HashMap<Id, Path> = HashMap::new();
    let mut pending = vec![(Path::new(), ROOT)];
    while let Some((path, id)) = pending.pop() {
        let node = tree.node(id);
        let same = first.get(&id).cloned();
        if same.is_none() {
            first.insert(id, path.clone());
        }
        if let Kind::Directory(directory) = &node.kind {
            for (name, &child) in directory.children.iter().rev() {
                let mut inside = path.clone();
                inside.push(name.to_vec());
                pending.push((inside, child));
            }
        }
        all.insert(path, (line(tree, node), same));
    }
    all
}

/// All that is known about a node.
pub fn whole(tree: &Tree, node: &Node) -> String {
    let kind = match &node.kind {
        Kind::Directory(directory) => {
            format!("directory {} {}", directory.listed, directory.opaque)
        }
        other => format!("{other:?}"),
    };
    format!("{kind} {:?} {:?}", node.meta, tree.xattrs(node))
}

/// Panic with the paths in which the two differ.
pub fn assert_same(found: &Outline, expected: &Outline) {
    let paths = found.keys().chain(expected.keys());
    for path in paths.filter(|&path| found.get(path) != expected.get(path)) {
        let name: Vec<_> = path
            .iter()
            .map(|name| name.escape_ascii().to_string())
            .collect();
        eprintln!("/{}:", name.join("/"));
        eprintln!("  found    {:?}", found.get(path));
        eprintln!("  expected {:?}", expected.get(path));
    }
    assert!(found == expected);
}
