//! A file system's names and attributes in memory, and the rules by which tar entries change them.
//!
//! Nodes live in one vector and refer to each other by index: no recursion anywhere, so a path of two
//! thousand components costs heap and never stack.

use crate::error::{Code, Error, Result};
use crate::limits::Limits;
use crate::xattr::{self, Xattrs};
use std::collections::{btree_map::Entry, BTreeMap, HashMap};

/// Index of a node.
pub type Id = u32;
/// The root directory.
pub const ROOT: Id = 0;

/// Attributes that every inode has. `mode` holds the permission bits only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Meta {
    pub mode: u16,
    pub uid: u32,
    pub gid: u32,
    pub mtime: i64,
    pub mtime_nsec: u32,
}

impl Meta {
    /// Attributes of a directory that nothing describes.
    pub const INVENTED: Meta = Meta {
        mode: 0o755,
        uid: 0,
        gid: 0,
        mtime: 0,
        mtime_nsec: 0,
    };
}

/// Where a run of blocks begins: 0 is the image itself, N is layer N of a merged image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Address {
    pub device: u16,
    pub block: u32,
}

/// Contents of a regular file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Blocks {
    /// No bytes at all.
    Empty,
    /// One run.
    Run(Address),
    /// One place for every `4096 << bits` bytes; `None` is a hole.
    Chunks {
        bits: u8,
        table: Box<[Option<Address>]>,
    },
    /// Extents of [`crate::compress::EXTENT`] bytes, one behind the other; how many blocks each takes. As many
    /// as without compression: it is not compressed.
    Compressed { start: Address, sizes: Box<[u8]> },
}

#[derive(Debug, Default)]
pub struct Directory {
    pub children: BTreeMap<Box<[u8]>, Id>,
    /// The layer says what its attributes are; otherwise it was only named as somebody's parent.
    pub listed: bool,
    /// Hides what lower layers have in its place.
    pub opaque: bool,
}

#[derive(Debug)]
pub enum Kind {
    Directory(Directory),
    File {
        size: u64,
        blocks: Blocks,
    },
    Symlink(Box<[u8]>),
    Device {
        block: bool,
        major: u32,
        minor: u32,
    },
    Fifo,
    /// This name is gone from lower layers.
    Whiteout,
    /// Another name of this path in lower layers.
    HardLink(Box<[u8]>),
}

#[derive(Debug)]
pub struct Node {
    pub meta: Meta,
    /// Index into the tree's attribute sets; 0 is the empty set.
    pub xattrs: u32,
    pub kind: Kind,
}

impl Node {
    /// A node that tells the merge something and has no attributes of its own.
    fn marker(kind: Kind) -> Self {
        let meta = Meta {
            mode: 0,
            ..Meta::INVENTED
        };
        Node {
            meta,
            xattrs: 0,
            kind,
        }
    }
}

/// What a node costs beside its strings: the node, its slot in a map, the allocator.
const NODE_COST: u64 = 200;
/// The attribute area's length field ends at 256 KiB; the rest is for our own markers.
const XATTRS_MAX: u64 = (256 << 10) - (8 << 10);

#[derive(Debug)]
pub struct Tree {
    nodes: Vec<Node>,
    xattr_sets: Vec<Xattrs>,
    xattr_index: HashMap<Xattrs, u32>,
    limits: Limits,
    names: u64,
    held: u64,
}

impl Tree {
    /// A tree with nothing but an unlisted root.
    pub fn new(limits: Limits) -> Self {
        let root = Node {
            meta: Meta::INVENTED,
            xattrs: 0,
            kind: Kind::Directory(Directory::default()),
        };
        Tree {
            nodes: vec![root],
            xattr_sets: vec![Xattrs::new()],
            xattr_index: HashMap::from([(Xattrs::new(), 0)]),
            limits,
            names: 0,
            held: 0,
        }
    }

    pub fn node(&self, id: Id) -> &Node {
        &self.nodes[id as usize]
    }

    pub fn node_mut(&mut self, id: Id) -> &mut Node {
        &mut self.nodes[id as usize]
    }

    /// How many nodes were ever made; ids are smaller than this.
    pub fn len(&self) -> usize {
        self.nodes.len()
    }

    /// Never: there is always a root.
    pub fn is_empty(&self) -> bool {
        false
    }

    pub fn directory(&self, id: Id) -> Option<&Directory> {
        match &self.node(id).kind {
            Kind::Directory(directory) => Some(directory),
            _ => None,
        }
    }

    pub fn directory_mut(&mut self, id: Id) -> Option<&mut Directory> {
        match &mut self.node_mut(id).kind {
            Kind::Directory(directory) => Some(directory),
            _ => None,
        }
    }

    pub fn xattrs(&self, node: &Node) -> &Xattrs {
        &self.xattr_sets[node.xattrs as usize]
    }

    /// Keep an attribute set; equal sets are kept once.
    pub fn intern(&mut self, set: Xattrs) -> Result<u32> {
        if let Some(&index) = self.xattr_index.get(&set) {
            return Ok(index);
        }
        let len = xattr::encoded_len(&set) as u64;
        let limit = self.limits.max_xattrs.min(XATTRS_MAX);
        if len > limit {
            return Err(Error::new(
                Code::Xattrs,
                format!("extended attributes of {len} bytes (limit {limit})"),
            ));
        }
        self.hold(2 * len + NODE_COST)?;
        let index = self.xattr_sets.len() as u32;
        self.xattr_sets.push(set.clone());
        self.xattr_index.insert(set, index);
        Ok(index)
    }

    /// Account for bytes that stay in memory.
    pub fn hold(&mut self, bytes: u64) -> Result<()> {
        self.held = self.held.saturating_add(bytes);
        if self.held > self.limits.max_metadata {
            return Err(Error::new(
                Code::Metadata,
                format!(
                    "names and attributes exceed {} bytes",
                    self.limits.max_metadata
                ),
            ));
        }
        Ok(())
    }

    /// Add a node that has no name yet.
    pub fn push(&mut self, node: Node) -> Result<Id> {
        let extra = match &node.kind {
            Kind::Symlink(text) | Kind::HardLink(text) => text.len() as u64,
            _ => 0,
        };
        self.hold(NODE_COST + extra)?;
        self.count_name()?;
        let id = self.nodes.len() as Id;
        self.nodes.push(node);
        Ok(id)
    }

    fn count_name(&mut self) -> Result<()> {
        self.names += 1;
        if self.names > self.limits.max_entries {
            return Err(Error::new(
                Code::TooManyEntries,
                format!("more than {} entries", self.limits.max_entries),
            ));
        }
        Ok(())
    }

    /// Give a node a name, whatever had that name before.
    pub fn name(&mut self, parent: Id, name: &[u8], id: Id) -> Result<()> {
        self.hold(name.len() as u64)?;
        let Some(directory) = self.directory_mut(parent) else {
            return Err(Error::new(Code::BadPath, "parent is not a directory"));
        };
        match directory.children.entry(name.into()) {
            Entry::Occupied(mut slot) => *slot.get_mut() = id,
            Entry::Vacant(slot) => {
                slot.insert(id);
            }
        }
        Ok(())
    }

    pub fn child(&self, parent: Id, name: &[u8]) -> Option<Id> {
        self.directory(parent)?.children.get(name).copied()
    }

    /// Walk down without following symbolic links.
    pub fn lookup(&self, parts: &[&[u8]]) -> Option<Id> {
        parts.iter().try_fold(ROOT, |at, name| self.child(at, name))
    }

    /// The directory that holds the last of `parts`, made where it is missing.
    ///
    /// A parent that this layer had as anything but a directory becomes an empty directory. The tree itself
    /// reaches nothing through a symbolic link (O02): [`crate::follow`] has resolved those of tar entries.
    pub fn parent_of(&mut self, parts: &[&[u8]]) -> Result<Id> {
        let mut at = ROOT;
        for name in &parts[..parts.len().saturating_sub(1)] {
            at = match self.child(at, name) {
                Some(id) if self.directory(id).is_some() => id,
                replaced => {
                    let directory = Directory {
                        listed: replaced.is_some(),
                        opaque: replaced.is_some(),
                        ..Directory::default()
                    };
                    let id = self.push(Node {
                        meta: Meta::INVENTED,
                        xattrs: 0,
                        kind: Kind::Directory(directory),
                    })?;
                    self.name(at, name, id)?;
                    id
                }
            };
        }
        Ok(at)
    }

    /// A directory entry: merges with a directory, replaces anything else.
    pub fn add_directory(&mut self, parts: &[&[u8]], meta: Meta, xattrs: u32) -> Result<()> {
        let existing = self.lookup(parts);
        if let Some(id) = existing {
            if let Some(directory) = self.directory_mut(id) {
                directory.listed = true;
                let node = self.node_mut(id);
                node.meta = meta;
                node.xattrs = xattrs;
                return self.count_name();
            }
        }
        let directory = Directory {
            listed: true,
            // What stood here hid the lower layers; the directory in its place goes on doing so.
            opaque: existing.is_some(),
            ..Directory::default()
        };
        let id = self.push(Node {
            meta,
            xattrs,
            kind: Kind::Directory(directory),
        })?;
        let parent = self.parent_of(parts)?;
        self.name(parent, parts.last().copied().unwrap_or_default(), id)
    }

    /// Any other entry: replaces what was there, a whole directory too.
    pub fn add(&mut self, parts: &[&[u8]], node: Node) -> Result<Id> {
        let id = self.push(node)?;
        self.put(parts, id)?;
        Ok(id)
    }

    /// One more name for a node.
    pub fn link(&mut self, parts: &[&[u8]], id: Id) -> Result<()> {
        self.count_name()?;
        self.hold(NODE_COST)?;
        self.put(parts, id)
    }

    fn put(&mut self, parts: &[&[u8]], id: Id) -> Result<()> {
        let Some(name) = parts.last() else {
            return Err(Error::new(Code::BadPath, "the root must be a directory"));
        };
        let parent = self.parent_of(parts)?;
        self.name(parent, name, id)
    }

    /// A hard link: to this layer's file if it has one, else left for the merge to resolve.
    pub fn add_link(&mut self, parts: &[&[u8]], target: &[&[u8]]) -> Result<()> {
        let found = self.lookup(target);
        let id = match found.map(|id| (id, &self.node(id).kind)) {
            Some((_, Kind::Directory(directory))) if directory.listed => {
                return Err(Error::new(Code::BadLink, "hard link to a directory"));
            }
            None | Some((_, Kind::Directory(_) | Kind::Whiteout)) => {
                let path = target.join(&b'/').into_boxed_slice();
                return self
                    .add(parts, Node::marker(Kind::HardLink(path)))
                    .map(drop);
            }
            Some((id, _)) => id,
        };
        self.link(parts, id)
    }

    /// `.wh.NAME`: hides lower layers only, so an entry of this layer stays (image-spec, "Whiteouts").
    pub fn add_whiteout(&mut self, parents: &[&[u8]], name: &[u8]) -> Result<()> {
        let mut parts = parents.to_vec();
        parts.push(name);
        match self.lookup(&parts) {
            Some(id) => {
                self.count_name()?;
                if let Some(directory) = self.directory_mut(id) {
                    directory.opaque = true;
                    directory.listed = true;
                }
                Ok(())
            }
            None => self.add(&parts, Node::marker(Kind::Whiteout)).map(drop),
        }
    }

    /// `.wh..wh..opq`: the directory named by `parents` starts empty.
    pub fn add_opaque(&mut self, parents: &[&[u8]]) -> Result<()> {
        let mut inside = parents.to_vec();
        inside.push(b".");
        let id = self.parent_of(&inside)?;
        self.count_name()?;
        if let Some(directory) = self.directory_mut(id) {
            directory.opaque = true;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const META: Meta = Meta {
        mode: 0o700,
        uid: 1,
        gid: 2,
        mtime: 3,
        mtime_nsec: 4,
    };

    fn symlink() -> Node {
        Node {
            meta: META,
            xattrs: 0,
            kind: Kind::Symlink(b"/tmp/probe"[..].into()),
        }
    }

    fn tree() -> Tree {
        Tree::new(Limits::default())
    }

    #[test]
    fn o02_a_parent_that_is_a_symlink_becomes_a_directory() {
        let mut tree = tree();
        tree.add(&[b"etc"], symlink()).unwrap();
        tree.add(&[b"etc", b"passwd"], symlink()).unwrap();
        let etc = tree.directory(tree.lookup(&[b"etc"]).unwrap()).unwrap();
        assert!(etc.listed && etc.opaque && etc.children.len() == 1);
    }

    #[test]
    fn a_directory_over_a_directory_keeps_its_children() {
        let mut tree = tree();
        tree.add(&[b"a", b"b"], symlink()).unwrap();
        tree.add_directory(&[b"a"], META, 0).unwrap();
        let id = tree.lookup(&[b"a"]).unwrap();
        assert!(tree.lookup(&[b"a", b"b"]).is_some());
        assert_eq!(tree.node(id).meta, META);
        assert!(!tree.directory(id).unwrap().opaque);
    }

    #[test]
    fn a_file_over_a_directory_removes_it() {
        let mut tree = tree();
        tree.add(&[b"a", b"b"], symlink()).unwrap();
        tree.add(&[b"a"], symlink()).unwrap();
        assert!(tree.lookup(&[b"a", b"b"]).is_none());
    }

    #[test]
    fn whiteouts_do_not_touch_their_own_layer() {
        let mut tree = tree();
        tree.add(&[b"f"], symlink()).unwrap();
        tree.add_whiteout(&[], b"f").unwrap();
        let f = tree.lookup(&[b"f"]).unwrap();
        assert!(matches!(tree.node(f).kind, Kind::Symlink(_)));
        tree.add_whiteout(&[], b"d").unwrap();
        tree.add(&[b"d", b"x"], symlink()).unwrap();
        let d = tree.directory(tree.lookup(&[b"d"]).unwrap()).unwrap();
        assert!(d.opaque);
    }

    #[test]
    fn limits_hold() {
        let mut tree = Tree::new(Limits {
            max_entries: 10,
            ..Limits::default()
        });
        let deep = vec![&b"a"[..]; 11];
        assert_eq!(
            tree.add(&deep, symlink()).unwrap_err().code(),
            Some(Code::TooManyEntries)
        );
        let mut tree = Tree::new(Limits {
            max_metadata: 1000,
            ..Limits::default()
        });
        let error = (0..10).find_map(|i| tree.add(&[&[i]], symlink()).err());
        assert_eq!(error.unwrap().code(), Some(Code::Metadata));
    }
}
