//! EROFS images: the part of the format that container layers need.
//!
//! The layout is documented in the kernel tree, `Documentation/filesystems/erofs.rst` and
//! `fs/erofs/erofs_fs.h`. Ours, in blocks of 4096 bytes: the superblock with our label; a device table
//! (merged images) or file contents (layers); directory blocks that do not fit beside their inode; inodes.

pub mod dirent;
pub mod format;
pub mod layout;
pub mod read;
pub mod write;
