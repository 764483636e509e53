//! Parents of tar entries that are symbolic links of the same layer.
//!
//! A builder that records names as a process used them writes `bin -> usr/bin` and then `bin/sh`. Whoever
//! unpacks the layer into a directory (GNU tar, Docker, containerd) follows the link on the way to
//! `usr/bin/sh`, and so do we; only that the way leads through names in memory, never through the host's
//! file system. Links are followed as by a process whose root the layer is: an absolute target starts at
//! the layer's root, and `..` ends there.
//!
//! Links of lower layers are not followed: a layer is converted once for all images that use it, whatever
//! they have below it. A directory in place of a lower layer's link replaces it, as with Docker's overlay2
//! (O02).

use crate::error::{Code, Error, Result};
use crate::tree::{Id, Kind, Tree, ROOT};

/// Links on the way to one entry. As many as Linux follows (MAXSYMLINKS).
const LINKS_MAX: u32 = 40;

/// The path that `path` leads to when links among its parents are followed; `None` if there are none.
///
/// The last component is an entry's own name and stays as it is. The result is what an archive without
/// the links would have said, and has to be checked like any other name.
///
/// What a link leads to need not be in the layer (yet): its directory may come later in the same archive,
/// or be in a lower layer only. Then names are taken as they are, and the tree makes directories of them
/// that say nothing about attributes, so those of the other entry or the lower layer hold. containerd
/// does likewise; Docker and GNU tar refuse such a layer. The alternative, a directory in the link's place,
/// would hide everything that lower layers have behind the link, and make the result depend on the order
/// of entries.
pub fn follow(tree: &Tree, path: &[&[u8]], max_path: u64) -> Result<Option<Vec<u8>>> {
    let Some((last, parents)) = path.split_last() else {
        return Ok(None);
    };
    if !has_link(tree, parents) {
        return Ok(None);
    }
    // The way so far, free of links. No node: the layer has nothing there, or no directory above it.
    let mut walked: Vec<(&[u8], Option<Id>)> = Vec::new();
    // What is left, its beginning last.
    let mut ahead: Vec<&[u8]> = parents.iter().rev().copied().collect();
    let mut links = 0;
    let mut followed = 0;
    while let Some(name) = ahead.pop() {
        match name {
            b"" | b"." => continue,
            b".." => {
                walked.pop();
                continue;
            }
            _ => {}
        }
        let above = walked.last().map_or(Some(ROOT), |&(_, id)| id);
        let id = above.and_then(|above| tree.child(above, name));
        let Some(Kind::Symlink(target)) = id.map(|id| &tree.node(id).kind) else {
            walked.push((name, id));
            continue;
        };
        links += 1;
        if links > LINKS_MAX {
            return Err(Error::new(
                Code::BadPath,
                format!("more than {LINKS_MAX} symbolic links on the way"),
            ));
        }
        // Bounds what one entry can cost: an archive may repeat it a million times.
        followed += target.len() as u64;
        if followed > max_path {
            return Err(Error::new(
                Code::PathTooLong,
                format!("symbolic links on the way exceed {max_path} bytes"),
            ));
        }
        if target.starts_with(b"/") {
            walked.clear();
        }
        ahead.extend(target.rsplit(|&b| b == b'/'));
    }
    let mut names: Vec<&[u8]> = walked.into_iter().map(|(name, _)| name).collect();
    names.push(last);
    Ok(Some(names.join(&b'/')))
}

/// Whether a walk down `parents` meets a link. Hardly any does, and this costs no allocation.
fn has_link(tree: &Tree, parents: &[&[u8]]) -> bool {
    let mut at = ROOT;
    for name in parents {
        match tree.child(at, name) {
            Some(id) if matches!(tree.node(id).kind, Kind::Symlink(_)) => return true,
            Some(id) => at = id,
            None => return false,
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::Limits;
    use crate::path::components;
    use crate::tree::{Meta, Node};
    use proptest::prelude::*;
    use rustix::fs::{Mode, OFlags, ResolveFlags};
    use rustix::io::Errno;
    use std::os::fd::AsRawFd;
    use std::path::Path;

    const MAX: u64 = 4095;

    fn parts(path: &str) -> Vec<&[u8]> {
        components(path.as_bytes(), MAX).unwrap()
    }

    /// A tree with these links, `("name", "target")`, and directories, whose target is empty.
    fn tree(nodes: &[(&str, &str)]) -> Tree {
        let mut tree = Tree::new(Limits::default());
        for &(name, target) in nodes {
            if target.is_empty() {
                tree.add_directory(&parts(name), Meta::INVENTED, 0).unwrap();
                continue;
            }
            let link = Node {
                meta: Meta::INVENTED,
                xattrs: 0,
                kind: Kind::Symlink(target.as_bytes().into()),
            };
            tree.add(&parts(name), link).unwrap();
        }
        tree
    }

    fn code(tree: &Tree, path: &str) -> Option<Code> {
        follow(tree, &parts(path), MAX).unwrap_err().code()
    }

    #[test]
    fn links_lead_within_the_layer() {
        let tree = tree(&[
            ("usr/bin", ""),
            ("usr/lib", "../opt/./lib//"),
            ("opt/lib", ""),
            ("bin", "usr/bin"),
            ("sbin", "/bin"),
            ("root", "/"),
            ("up", "../../../.."),
            ("usr/here", "."),
            ("deep/er/out", "../../usr"),
            ("later", "not/yet"),
            ("undone", "not/../usr/bin"),
        ]);
        for (path, expected) in [
            ("bin/sh", "usr/bin/sh"),
            ("sbin/a/b", "usr/bin/a/b"),
            ("usr/lib/x", "opt/lib/x"),
            ("root/bin/x", "usr/bin/x"),
            ("up/up/up/x", "x"),
            ("usr/here/here/bin/x", "usr/bin/x"),
            ("deep/er/out/lib/x", "opt/lib/x"),
            ("later/x", "not/yet/x"),
            ("undone/x", "usr/bin/x"),
            ("bin/.wh.x", "usr/bin/.wh.x"),
        ] {
            let found = follow(&tree, &parts(path), MAX).unwrap().unwrap();
            assert_eq!(String::from_utf8(found).unwrap(), expected, "{path}");
        }
        // Its own name is never followed, and what has no links is not touched.
        for path in ["bin", "usr/lib", "usr/bin/sh", "missing/bin/x", "root", "/"] {
            assert_eq!(follow(&tree, &parts(path), MAX).unwrap(), None, "{path}");
        }
    }

    #[test]
    fn chains_end_at_forty_links() {
        let names: Vec<(String, String)> = (0..41)
            .map(|i| (format!("l{i}"), format!("l{}", i + 1)))
            .collect();
        let nodes: Vec<_> = names
            .iter()
            .map(|(a, b)| (a.as_str(), b.as_str()))
            .collect();
        let chain = tree(&nodes);
        assert_eq!(
            follow(&chain, &parts("l1/x"), MAX).unwrap().unwrap(),
            b"l41/x"
        );
        assert_eq!(code(&chain, "l0/x"), Some(Code::BadPath));
        let circle = tree(&[("a", "b"), ("b", "a"), ("self", "self"), ("in", "in/in")]);
        for path in ["a/x", "self/x", "in/x"] {
            assert_eq!(code(&circle, path), Some(Code::BadPath));
        }
    }

    #[test]
    fn the_length_of_the_way_is_bounded() {
        let winding = "./".repeat(1500);
        let long = tree(&[("a", &winding), ("b", &winding)]);
        assert_eq!(follow(&long, &parts("a/x"), MAX).unwrap().unwrap(), b"x");
        assert_eq!(code(&long, "a/b/x"), Some(Code::PathTooLong));
    }

    /// Where the kernel thinks that a directory is, if `root` were the root directory.
    fn kernel(root: &Path, path: &str) -> rustix::io::Result<String> {
        let at = std::fs::File::open(root).unwrap();
        let found = rustix::fs::openat2(
            &at,
            path,
            OFlags::PATH | OFlags::CLOEXEC,
            Mode::empty(),
            ResolveFlags::IN_ROOT,
        )?;
        let found = std::fs::read_link(format!("/proc/self/fd/{}", found.as_raw_fd())).unwrap();
        let found = found.strip_prefix(root).unwrap();
        Ok(found.to_str().unwrap().to_owned())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(300))]

        #[test]
        fn the_kernel_agrees(
            links in proptest::collection::vec(("[abc]", "[abc]", "/?([abc]|\\.\\.)(/([abc]|\\.\\.?)){0,3}"), 1..8),
            path in "[abc](/[abc]){0,4}",
        ) {
            let held = tempfile::tempdir().unwrap();
            let root = held.path().canonicalize().unwrap();
            let mut tree = Tree::new(Limits::default());
            for (directory, name, target) in links {
                // Some links at the top and some one level down, wherever there is room.
                let place = if name == "a" { name } else { format!("{directory}/{name}") };
                let names = parts(&place);
                let taken = |names: &[&[u8]]| tree.lookup(names).map(|id| tree.directory(id).is_some());
                if taken(&names).is_some() || taken(&names[..names.len() - 1]) == Some(false) {
                    continue;
                }
                let file = root.join(&place);
                std::fs::create_dir_all(file.parent().unwrap()).unwrap();
                std::os::unix::fs::symlink(&target, &file).unwrap();
                let kind = Kind::Symlink(target.as_bytes().into());
                let node = Node { meta: Meta::INVENTED, xattrs: 0, kind };
                tree.add(&names, node).unwrap();
            }
            let below = format!("{path}/x");
            let ours = follow(&tree, &parts(&below), MAX);
            match kernel(&root, &path) {
                Ok(at) => {
                    let ours = ours.unwrap().unwrap_or(below.into_bytes());
                    prop_assert_eq!(String::from_utf8(ours).unwrap(), parts_join(&at));
                }
                Err(Errno::LOOP) => {
                    prop_assert_eq!(ours.unwrap_err().code(), Some(Code::BadPath));
                }
                // Where there is nothing the kernel ends, and ours goes on: to a path without links.
                Err(Errno::NOENT) => {
                    if let Ok(Some(found)) = ours {
                        let names = components(&found, MAX).unwrap();
                        prop_assert!(!has_link(&tree, &names[..names.len() - 1]));
                    }
                }
                // Old kernels, and containers that know no such call.
                Err(Errno::NOSYS | Errno::PERM) => {}
                Err(other) => prop_assert!(false, "{other}"),
            }
        }
    }

    fn parts_join(directory: &str) -> String {
        match directory {
            "" => "x".to_owned(),
            _ => format!("{directory}/x"),
        }
    }
}
