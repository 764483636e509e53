//! Bytes as decisions, and decisions as a layer's tree.

use microsandbox_oci_native::limits::Limits;
use microsandbox_oci_native::tree::{Address, Blocks, Kind, Meta, Node, Tree};
use microsandbox_oci_native::xattr::{self, Xattrs};
use microsandbox_oci_native::Result;

/// Blocks that a drawn tree may say its files are in; the metadata follows them.
pub const FIRST: u32 = 1;
pub const START: u32 = FIRST + 4096;

/// Decisions, one after the other; all are 0 when the bytes are used up.
pub struct Draw<'a>(pub &'a [u8]);

impl<'a> Draw<'a> {
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn byte(&mut self) -> u8 {
        let Some((&first, rest)) = self.0.split_first() else {
            return 0;
        };
        self.0 = rest;
        first
    }

    fn number(&mut self) -> u64 {
        (0..8).fold(0, |value, _| value << 8 | u64::from(self.byte()))
    }

    /// Few names, so that entries collide, which is where the rules are; and some that fill a directory.
    fn name(&mut self) -> Vec<u8> {
        match self.byte() {
            n @ 0..=199 => vec![b"abcd"[usize::from(n) % 4]],
            n @ 200..=239 => format!("{n}").into_bytes(),
            n @ 240..=247 => vec![b'n'; usize::from(self.byte().max(2)) & !1 | usize::from(n & 1)],
            // Around the names that every directory has.
            248 => b"!".to_vec(),
            249 => b".a".to_vec(),
            250 => b"...".to_vec(),
            n => vec![n, self.byte() | 0x80],
        }
    }

    fn path(&mut self) -> Vec<Vec<u8>> {
        let depth = match self.byte() {
            n @ 0..=249 => usize::from(n) % 3 + 1,
            n => usize::from(n) % 32 + 1,
        };
        (0..depth).map(|_| self.name()).collect()
    }

    fn meta(&mut self) -> Meta {
        let mut meta = Meta {
            mode: u16::from(self.byte()) << 4 & 0o7777,
            ..Meta::INVENTED
        };
        if meta.mode & 0o400 != 0 {
            meta.uid = self.number() as u32;
            meta.gid = self.number() as u32;
            meta.mtime = self.number() as i64;
            meta.mtime_nsec = (self.number() % 1_000_000_000) as u32;
        }
        meta
    }

    fn xattrs(&mut self, tree: &mut Tree) -> Result<u32> {
        let mut set = Xattrs::new();
        let count = self.byte();
        if count > 40 {
            return Ok(0);
        }
        for _ in 0..count % 4 {
            let name: &[u8] = match self.byte() % 8 {
                0 => b"security.capability",
                1 => b"system.posix_acl_access",
                2 => b"trusted.overlay.opaque",
                3 => b"user.",
                4 => b"user.b",
                5 => b"com.apple.provenance",
                _ => b"user.a",
            };
            let size = match self.byte() {
                n @ 0..=250 => usize::from(n),
                n => usize::from(n) * 97,
            };
            xattr::insert(&mut set, name, &vec![self.byte(); size])?;
        }
        tree.intern(set)
    }

    fn blocks(&mut self) -> (u64, Blocks) {
        let block = |n: u8| Address {
            device: 0,
            block: FIRST + u32::from(n) % 8,
        };
        let kind = self.byte();
        if kind % 4 == 0 {
            return (0, Blocks::Empty);
        }
        if kind % 4 == 1 {
            let at = block(self.byte());
            let room = u64::from(START - at.block) * 4096;
            return (self.number() % room + 1, Blocks::Run(at));
        }
        let bits = self.byte() % 12;
        let count = u64::from(self.byte() % 40) + 1;
        let mut table: Box<[Option<Address>]> = (0..count)
            .map(|_| match self.byte() {
                0..=99 => None,
                n => Some(block(n)),
            })
            .collect();
        // Without a hole it might be one run, and is then read as that.
        table[usize::from(kind / 4) % table.len()] = None;
        let last = self.number() % (4096 << bits) + 1;
        let size = (count - 1) * (4096 << bits) + last;
        (size, Blocks::Chunks { bits, table })
    }

    fn kind(&mut self) -> Kind {
        match self.byte() % 8 {
            0 => Kind::Fifo,
            1 => Kind::Device {
                block: true,
                major: self.number() as u32 % 4096,
                minor: self.number() as u32 % (1 << 20),
            },
            2 => Kind::Symlink(vec![b't'; usize::from(self.byte()) * 16 + 1].into()),
            3 => Kind::Symlink(self.path().join(&b'/').into()),
            _ => {
                let (size, blocks) = self.blocks();
                Kind::File { size, blocks }
            }
        }
    }

    /// One entry of a layer; an error is one that an archive with such an entry would be refused with.
    fn entry(&mut self, tree: &mut Tree) -> Result<()> {
        let what = self.byte();
        let path = self.path();
        let parts: Vec<&[u8]> = path.iter().map(Vec::as_slice).collect();
        match what % 8 {
            0 | 1 => {
                let meta = self.meta();
                let xattrs = self.xattrs(tree)?;
                // Now and then the root, whose attributes an archive may give too.
                let parts = if what == 8 { &[] } else { &parts[..] };
                tree.add_directory(parts, meta, xattrs)
            }
            2 => {
                let target = self.path();
                let target: Vec<&[u8]> = target.iter().map(Vec::as_slice).collect();
                tree.add_link(&parts, &target)
            }
            3 => tree.add_whiteout(&parts[..parts.len() - 1], parts[parts.len() - 1]),
            4 if what < 64 => tree.add_opaque(&parts),
            5 if what > 250 => {
                // A directory of several blocks.
                let meta = self.meta();
                for number in 0..u32::from(self.byte()) * 4 {
                    let name = format!("{number:0>width$}", width = usize::from(what) / 8);
                    let mut inside = parts.clone();
                    inside.push(name.as_bytes());
                    let kind = Kind::Fifo;
                    tree.add(
                        &inside,
                        Node {
                            meta,
                            xattrs: 0,
                            kind,
                        },
                    )?;
                }
                Ok(())
            }
            _ => {
                let meta = self.meta();
                let xattrs = self.xattrs(tree)?;
                let kind = self.kind();
                tree.add(&parts, Node { meta, xattrs, kind }).map(drop)
            }
        }
    }

    /// A layer of at most `most` entries.
    pub fn tree(&mut self, most: usize) -> Tree {
        let mut tree = Tree::new(Limits::default());
        for _ in 0..most {
            if self.is_empty() {
                break;
            }
            // What is refused leaves the tree as an archive's reader would leave it: unused, but whole.
            let _ = self.entry(&mut tree);
        }
        tree
    }
}
