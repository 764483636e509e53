//! What is fuzzed: each target takes any bytes and panics if a promise does not hold for them.

mod draw;
mod image;
mod layer;
mod merge;
mod outline;
mod stream;
mod tree;

pub use image::image;
pub use layer::layer;
pub use merge::merge;
pub use stream::stream;
pub use tree::tree;

use microsandbox_fuzz::Target;
use std::fs::File;

/// All of them.
pub const TARGETS: [Target; 5] = [
    ("layer", layer),
    ("stream", stream),
    ("image", image),
    ("tree", tree),
    ("merge", merge),
];

/// Texts that tar archives and compressed streams are told by.
pub const TEXTS: [&[u8]; 17] = [
    b"ustar\x0000",
    b"ustar  \0",
    b".wh.",
    b".wh..wh..opq",
    b"/",
    b"..",
    b"\0\0\0\0\0\0\0\0",
    b"77777777777",
    b"GNU.sparse.map=",
    b"GNU.sparse.size=",
    b"SCHILY.xattr.user.a=",
    b"size=",
    b"path=",
    b"linkpath=",
    b"mtime=-1.5",
    b"\x1f\x8b\x08",
    b"\x28\xb5\x2f\xfd",
];

/// An empty file without a name.
fn memory() -> File {
    rustix::fs::memfd_create("fuzz", rustix::fs::MemfdFlags::CLOEXEC)
        .expect("memfd")
        .into()
}
