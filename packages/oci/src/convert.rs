//! A tar stream into a layer file.

use crate::blob::{Blob, Sparse};
use crate::compress::{Compressor, Encoding, EXTENT};
use crate::erofs::format::{self, BLOCK};
use crate::erofs::write::{self, Identity};
use crate::error::{Code, Error, Result};
use crate::follow::follow;
use crate::limits::Limits;
use crate::path::{components, marker, Marker};
use crate::source::{self, Observer, Summary};
use crate::tar::{Entry, EntryKind, Reader};
use crate::tree::{Address, Blocks, Kind, Node, Tree};
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
    encoding: Encoding,
    limits: &Limits,
    observer: &mut Observer<'_>,
) -> Result<Converted> {
    let ((tree, start, entries), summary) = source::run(source, limits, observer, |input| {
        let mut reader = Reader::new(&mut *input, limits.clone());
        let result = read_tar(&mut reader, out, encoding, limits)?;
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
    encoding: Encoding,
    limits: &Limits,
) -> Result<(Tree, u32, u64)> {
    let mut layer = Layer {
        tree: Tree::new(limits.clone()),
        blob: Blob::new(out, 1, false),
        compressor: (encoding == Encoding::Lz4).then(Compressor::default),
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
    compressor: Option<Compressor>,
    limits: &'a Limits,
}

impl Layer<'_> {
    fn add<R: BufRead>(&mut self, entry: Entry, reader: &mut Reader<R>) -> Result<()> {
        let parts = components(&entry.path, self.limits.max_path)?;
        let mut space = Vec::new();
        let parts = self.follow(parts, &mut space)?;
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
            let mut space = Vec::new();
            let target = self
                .follow(target, &mut space)
                .map_err(|error| link_error(error, "hard link target"))?;
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

    /// Where `parts` lead when links of this layer are followed. `space` holds the names if they differ.
    fn follow<'p>(&self, parts: Vec<&'p [u8]>, space: &'p mut Vec<u8>) -> Result<Vec<&'p [u8]>> {
        let max_path = self.limits.max_path;
        let Some(path) = follow(&self.tree, &parts, max_path)? else {
            return Ok(parts);
        };
        *space = path;
        // Link targets are checked here for the first time: until now they were only text.
        components(space, max_path).map_err(|error| link_error(error, "through a symbolic link"))
    }

    fn file<R: BufRead>(
        &mut self,
        size: u64,
        extents: Option<&[crate::blob::Extent]>,
        reader: &mut Reader<R>,
    ) -> Result<Kind> {
        let start = self.blob.block()?;
        let first = Address {
            device: 0,
            block: start,
        };
        // What fits into one block cannot become smaller.
        let compressor = self.compressor.as_mut().filter(|_| size > BLOCK as u64);
        let blocks = match (extents, compressor) {
            (None, Some(compressor)) => {
                self.tree.hold(size / EXTENT as u64)?;
                while let data @ [_, ..] = reader.data()? {
                    compressor.write(&mut self.blob, data)?;
                    let len = data.len();
                    reader.consume(len);
                }
                compressor.finish(&mut self.blob, first)?
            }
            (None, None) => {
                while let data @ [_, ..] = reader.data()? {
                    self.blob.write(data)?;
                    let len = data.len();
                    reader.consume(len);
                }
                self.blob.pad()?;
                match size {
                    0 => Blocks::Empty,
                    _ => Blocks::Run(first),
                }
            }
            // What has holes is small already, and its chunks may lie anywhere.
            (Some(extents), _) => {
                let mut sparse = Sparse::new(size, extents, start, |cost| self.tree.hold(cost))?;
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{
        contents, describe, entry, file, layer, layer_with, open, outline, pax, seal,
    };
    use proptest::prelude::*;

    fn refused(entries: &[Vec<u8>]) -> Option<Code> {
        layer(entries).err().and_then(|error| error.code())
    }

    #[test]
    fn attributes_survive() {
        let records = pax(&[
            ("mtime", b"-1.25"),
            ("uid", b"4294967294"),
            ("SCHILY.xattr.security.capability", b"\x01\0\xff"),
            ("path", b"d/\xff\xfe"),
        ]);
        let image = layer(&[records, file(b"ignored", b"hi")]).unwrap();
        let all = describe(&open(&image), &[&image]);
        let line = &all["/d/\u{fffd}\u{fffd}"];
        assert!(
            line.starts_with("file \"hi\" 640 4294967294:100 -2.750000000 {"),
            "{line}"
        );
    }

    #[test]
    fn later_entries_win() {
        let image = layer(&[
            file(b"a", b"1"),
            entry(b'1', b"b", b"a", b""),
            file(b"a", b"2"),
        ])
        .unwrap();
        let all = outline(&open(&image), &[&image]);
        assert_eq!(all["/a"], "file \"2\"");
        assert_eq!(all["/b"], "file \"1\"");
    }

    #[test]
    fn markers_survive_in_the_layer() {
        let image = layer(&[
            file(b".wh.gone", b""),
            entry(b'1', b"link", b"lower/file", b""),
            file(b"d/.wh..wh..opq", b""),
        ])
        .unwrap();
        let all = outline(&open(&image), &[&image]);
        assert_eq!(all["/gone"], "Whiteout");
        assert!(all["/link"].starts_with("HardLink("));
        assert_eq!(all["/d"], "dir listed=false opaque=true");
    }

    /// What a layer of these entries holds, without its root.
    fn held(entries: &[Vec<u8>]) -> Vec<(String, String)> {
        let image = layer(entries).unwrap();
        let all = outline(&open(&image), &[&image]);
        all.into_iter().skip(1).collect()
    }

    fn symlink_to(name: &[u8], target: &[u8]) -> Vec<u8> {
        entry(b'2', name, target, b"")
    }

    fn dir(name: &[u8]) -> Vec<u8> {
        entry(b'5', name, b"", b"")
    }

    fn expect(entries: &[Vec<u8>], lines: &[(&str, &str)]) {
        let lines: Vec<_> = lines
            .iter()
            .map(|&(path, line)| (path.to_owned(), line.to_owned()))
            .collect();
        assert_eq!(held(entries), lines);
    }

    fn link_line(target: &[u8]) -> String {
        format!("{:?}", Kind::Symlink(target.into()))
    }

    #[test]
    fn parents_that_are_links_of_the_layer_are_followed() {
        expect(
            &[
                dir(b"usr/bin"),
                symlink_to(b"bin", b"usr/bin"),
                symlink_to(b"sbin", b"/bin"),
                file(b"bin/sh", b"1"),
                file(b"sbin/.wh.gone", b""),
                dir(b"sbin/sub"),
                entry(b'1', b"hard", b"sbin/sh", b""),
                entry(b'1', b"sbin/lower", b"bin/missing", b""),
                entry(b'1', b"link", b"bin", b""),
            ],
            &[
                ("/bin", &link_line(b"usr/bin")),
                ("/hard", "file \"1\""),
                ("/link", &format!("{} = /bin", link_line(b"usr/bin"))),
                ("/sbin", &link_line(b"/bin")),
                ("/usr", "dir listed=false opaque=false"),
                ("/usr/bin", "dir"),
                ("/usr/bin/gone", "Whiteout"),
                (
                    "/usr/bin/lower",
                    &format!("{:?}", Kind::HardLink(b"usr/bin/missing"[..].into())),
                ),
                ("/usr/bin/sh", "file \"1\" = /hard"),
                ("/usr/bin/sub", "dir"),
            ],
        );
    }

    #[test]
    fn an_opaque_marker_behind_a_link_is_about_its_target() {
        expect(
            &[
                dir(b"t"),
                symlink_to(b"l", b"t"),
                file(b"l/.wh..wh..opq", b""),
            ],
            &[
                ("/l", &link_line(b"t")),
                ("/t", "dir listed=true opaque=true"),
            ],
        );
    }

    #[test]
    fn a_link_to_what_the_layer_does_not_have_makes_parents_without_attributes() {
        let late = [
            symlink_to(b"bin", b"usr/bin"),
            file(b"bin/sh", b"1"),
            dir(b"usr/bin"),
        ];
        expect(
            &late,
            &[
                ("/bin", &link_line(b"usr/bin")),
                ("/usr", "dir listed=false opaque=false"),
                ("/usr/bin", "dir"),
                ("/usr/bin/sh", "file \"1\""),
            ],
        );
        expect(
            &late[..2],
            &[
                ("/bin", &link_line(b"usr/bin")),
                ("/usr", "dir listed=false opaque=false"),
                ("/usr/bin", "dir listed=false opaque=false"),
                ("/usr/bin/sh", "file \"1\""),
            ],
        );
    }

    #[test]
    fn an_entry_replaces_a_link_of_its_own_name() {
        expect(
            &[
                dir(b"t"),
                symlink_to(b"a", b"t"),
                symlink_to(b"b", b"t"),
                symlink_to(b"c", b"t"),
                dir(b"a"),
                file(b"b", b"1"),
                file(b"c/x", b"2"),
                dir(b"c"),
                file(b"c/y", b"3"),
            ],
            &[
                ("/a", "dir listed=true opaque=true"),
                ("/b", "file \"1\""),
                ("/c", "dir listed=true opaque=true"),
                ("/c/y", "file \"3\""),
                ("/t", "dir"),
                ("/t/x", "file \"2\""),
            ],
        );
    }

    #[test]
    fn names_that_links_lead_to_are_checked() {
        let through = |target: &[u8]| {
            let name = pax(&[("linkpath", target)]);
            refused(&[name, symlink_to(b"l", b"ignored"), file(b"l/name", b"")])
        };
        assert_eq!(through(b"l"), Some(Code::BadPath));
        assert_eq!(through(b".wh.a"), Some(Code::BadPath));
        assert_eq!(through(&[b'a'; 256]), Some(Code::PathTooLong));
        assert_eq!(through(&b"a/".repeat(2047)), Some(Code::PathTooLong));
        assert_eq!(through(b"../../etc"), None);
        let circle = [
            symlink_to(b"a", b"b"),
            symlink_to(b"b", b"a"),
            entry(b'1', b"h", b"a/x", b""),
        ];
        assert_eq!(refused(&circle), Some(Code::BadPath));
    }

    #[test]
    fn o01_paths_that_leave_the_root_are_refused() {
        for name in [&b"../../etc/cron.d/x"[..], b"a/../../b", b"..", b"a/.."] {
            assert_eq!(refused(&[file(name, b"")]), Some(Code::BadPath));
            assert_eq!(
                refused(&[entry(b'1', b"l", name, b"")]),
                Some(Code::BadPath)
            );
        }
        assert!(layer(&[file(b"/abs/path", b"")]).is_ok());
    }

    #[test]
    fn o09_contradictions_are_refused() {
        let mut negative = file(b"f", b"");
        negative[124..136].fill(0xff);
        seal(&mut negative);
        assert_eq!(refused(&[negative]), Some(Code::BadHeader));

        let size = pax(&[("size", b"512")]);
        assert_eq!(
            refused(&[size, file(b"f", b"12345")]),
            Some(Code::BadHeader)
        );

        let mut long = entry(b'L', b"long", b"", b"");
        long[124..135].copy_from_slice(b"10000000000");
        seal(&mut long);
        assert_eq!(refused(&[long]), Some(Code::HeaderTooLarge));

        let sparse = pax(&[
            ("GNU.sparse.major", b"0"),
            ("GNU.sparse.size", b"9223372036854775807"),
            ("GNU.sparse.map", b"0,1"),
        ]);
        assert_eq!(refused(&[sparse, file(b"f", b"1")]), Some(Code::TooLarge));

        let mut mode = file(b"f", b"");
        mode[100] = b'x';
        seal(&mut mode);
        assert_eq!(refused(&[mode]), Some(Code::BadHeader));
        assert_eq!(
            refused(&[entry(b'M', b"f", b"", b"")]),
            Some(Code::Unsupported)
        );
        assert_eq!(refused(&[entry(b'2', b"f", b"", b"")]), Some(Code::BadLink));
    }

    #[test]
    fn chains_of_extended_headers_add_up() {
        let chain = |kind: u8| -> Vec<Vec<u8>> {
            let mut one = pax(&[("comment", &[b'c'; 40_000])]);
            one[156] = kind;
            seal(&mut one);
            let mut all = vec![one; 30];
            all.push(file(b"f", b""));
            all
        };
        assert_eq!(refused(&chain(b'x')), Some(Code::HeaderTooLarge));
        assert_eq!(refused(&chain(b'g')), Some(Code::HeaderTooLarge));
        let mut global = pax(&[("SCHILY.xattr.user.a", b"1")]);
        global[156] = b'g';
        seal(&mut global);
        assert_eq!(refused(&[global, file(b"f", b"")]), Some(Code::Unsupported));
    }

    #[test]
    fn a_small_sparse_file_of_a_terabyte_costs_little() {
        let sparse = pax(&[
            ("GNU.sparse.size", b"1099511627776"),
            ("GNU.sparse.map", b"549755813888,1"),
        ]);
        let image = layer(&[sparse, file(b"f", b"x")]).unwrap();
        let first = crate::erofs::read::first_block(&image).unwrap();
        assert!(first.blocks - first.metadata_start < 1000, "{first:?}");
    }

    #[test]
    fn o13_a_truncated_stream_is_noticed() {
        let whole = file(b"f", &[1; 1000]);
        for len in [1, 511, 513, 1023, 1535] {
            assert_eq!(
                Reader::new(&whole[..len], Limits::default())
                    .next_entry()
                    .and_then(|_| read_all(&whole[..len]))
                    .unwrap_err()
                    .code(),
                Some(Code::Truncated),
                "{len}"
            );
        }
    }

    fn read_all(tar: &[u8]) -> Result<u64> {
        let limits = Limits::default();
        let out = crate::testing::scratch();
        read_tar(
            &mut Reader::new(tar, limits.clone()),
            &out,
            Encoding::Plain,
            &limits,
        )
        .map(|(_, _, count)| count)
    }

    #[test]
    fn sparse_files_keep_their_holes() {
        let sparse = pax(&[
            ("GNU.sparse.size", b"1048576"),
            ("GNU.sparse.numblocks", b"2"),
            ("GNU.sparse.offset", b"4000"),
            ("GNU.sparse.numbytes", b"200"),
            ("GNU.sparse.offset", b"1048575"),
            ("GNU.sparse.numbytes", b"1"),
        ]);
        let image = layer(&[sparse, file(b"f", &[7; 201]), file(b"g", b"after")]).unwrap();
        let tree = open(&image);
        let id = tree.lookup(&[b"f"]).unwrap();
        let Kind::File { size, blocks } = &tree.node(id).kind else {
            panic!("not a file");
        };
        let data = contents(*size, blocks, &[&image]);
        let expected = |i: usize| (4000..4200).contains(&i) || i == 1048575;
        assert!(data
            .iter()
            .enumerate()
            .all(|(i, &b)| b == if expected(i) { 7 } else { 0 }));
        assert!(matches!(blocks, Blocks::Chunks { .. }));
        assert!(image.metadata().unwrap().len() < 100_000);
        assert_eq!(outline(&tree, &[&image])["/g"], "file \"after\"");
    }

    #[test]
    fn limits_are_errors_with_a_name() {
        let many: Vec<_> = (0..50)
            .map(|i| file(format!("{i}").as_bytes(), b""))
            .collect();
        let code = |limits: Limits| layer_with(&many, &limits).unwrap_err().code();
        assert_eq!(
            code(Limits {
                max_entries: 20,
                ..Limits::default()
            }),
            Some(Code::TooManyEntries)
        );
        assert_eq!(
            code(Limits {
                max_metadata: 2000,
                ..Limits::default()
            }),
            Some(Code::Metadata)
        );
    }

    /// A small alphabet of names makes entries collide, which is where the rules are.
    fn any_entry() -> impl Strategy<Value = Vec<u8>> {
        let name = proptest::collection::vec(
            prop_oneof!["a", "b", "\\.wh\\.a", "\\.wh\\.\\.wh\\.\\.opq"],
            1..4,
        )
        .prop_map(|parts| parts.join("/").into_bytes());
        // Enough links that entries often lie behind them.
        let kind = proptest::sample::select(&b"00122234556"[..]);
        let link = prop_oneof![
            name.clone(),
            "/?(a|b|\\.\\.)(/(a|b|\\.\\.)){0,2}".prop_map(String::into_bytes),
        ];
        (
            kind,
            name,
            link,
            proptest::collection::vec(any::<u8>(), 0..9000),
        )
            .prop_map(|(kind, name, link, data)| match kind {
                b'0' => entry(kind, &name, b"", &data),
                b'1' | b'2' => entry(kind, &name, &link, b""),
                _ => entry(kind, &name, b"", b""),
            })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]

        #[test]
        fn what_is_written_is_read_back(entries in proptest::collection::vec(any_entry(), 0..12)) {
            let limits = Limits::default();
            let out = crate::testing::scratch();
            let tar = entries.concat();
            let mut reader = Reader::new(&tar[..], limits.clone());
            if let Ok((tree, start, _)) = read_tar(&mut reader, &out, Encoding::Lz4, &limits) {
                write::write(&out, &tree, start, &[], Identity::Known([0; 32])).unwrap();
                prop_assert_eq!(describe(&open(&out), &[&out]), describe(&tree, &[&out]));
            }
        }

        #[test]
        fn hostile_streams_end_in_an_error_or_a_layer(
            entries in proptest::collection::vec(any_entry(), 1..4),
            flips in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..20),
        ) {
            let mut tar = entries.concat();
            for (at, value) in flips {
                let at = at.index(tar.len());
                tar[at] = value;
                if at % 512 < 500 && tar[at / 512 * 512 + 257..].starts_with(b"ustar") {
                    seal(&mut tar[at / 512 * 512..]);
                }
            }
            let _ = read_all(&tar);
        }
    }
}
