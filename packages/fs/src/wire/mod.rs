//! The FUSE protocol as bytes: requests of a guest's kernel, parsed, and replies, written.
//!
//! Layouts, numbers and flags are those of `include/uapi/linux/fuse.h`, protocol 7.31 and newer, little-endian.
//! Nothing here panics or makes a system call, whatever the bytes are.

pub mod name;
pub mod reply;
pub mod request;

/// The version that is spoken; a newer guest comes down to it.
pub const MAJOR: u32 = 7;
pub const MINOR: u32 = 38;
/// Older guests have shorter structures, and none of ours is that old.
pub const OLDEST_MINOR: u32 = 31;
/// From here on (Linux 5.17) close(2) writes back what is dirty, and reports how that went, without FLUSH.
pub const FLUSHES_ITSELF: u32 = 36;

pub const IN_HEADER: usize = 40;
pub const OUT_HEADER: usize = 16;
/// Most bytes of one READ or WRITE.
pub const MAX_DATA: u32 = 1 << 20;
/// Pages of 4096 bytes in it.
pub const MAX_PAGES: u16 = (MAX_DATA >> 12) as u16;
/// The longest message: a WRITE.
pub const MAX_MESSAGE: usize = IN_HEADER + 40 + MAX_DATA as usize;
/// The value of an extended attribute, and the list of their names: XATTR_SIZE_MAX of Linux.
pub const MAX_ATTRIBUTE: usize = 64 << 10;

pub const ROOT: u64 = 1;

/// Flags of INIT.
pub mod init {
    pub const ASYNC_READ: u32 = 1 << 0;
    pub const ATOMIC_O_TRUNC: u32 = 1 << 3;
    pub const BIG_WRITES: u32 = 1 << 5;
    pub const AUTO_INVAL_DATA: u32 = 1 << 12;
    pub const DO_READDIRPLUS: u32 = 1 << 13;
    pub const READDIRPLUS_AUTO: u32 = 1 << 14;
    pub const ASYNC_DIO: u32 = 1 << 15;
    pub const WRITEBACK_CACHE: u32 = 1 << 16;
    pub const PARALLEL_DIROPS: u32 = 1 << 18;
    pub const MAX_PAGES: u32 = 1 << 22;
    pub const CACHE_SYMLINKS: u32 = 1 << 23;
    pub const HANDLE_KILLPRIV_V2: u32 = 1 << 28;
}

/// Which fields of SETATTR count.
pub mod valid {
    pub const MODE: u32 = 1 << 0;
    pub const UID: u32 = 1 << 1;
    pub const GID: u32 = 1 << 2;
    pub const SIZE: u32 = 1 << 3;
    pub const ATIME: u32 = 1 << 4;
    pub const MTIME: u32 = 1 << 5;
    pub const FH: u32 = 1 << 6;
    pub const ATIME_NOW: u32 = 1 << 7;
    pub const MTIME_NOW: u32 = 1 << 8;
    pub const CTIME: u32 = 1 << 10;
    pub const KILL_SUIDGID: u32 = 1 << 11;
}

/// In the last two bytes of a request's header, which the kernel leaves 0: whoever carries messages wants the attributes of the
/// directory too, before the answer. The kernel asks for them next, as it believes them no more.
pub const WITH_DIRECTORY: u16 = 1;
/// The error of a message that is no answer, with the number 0: a node and its `struct fuse_attr_out`.
pub const DIRECTORY: i32 = 0x4d53_4244;

/// GETATTR has a handle.
pub const GETATTR_FH: u32 = 1;
/// OPEN and CREATE are to take the set-id bits away.
pub const OPEN_KILL_SUIDGID: u32 = 1;
/// WRITE comes from the page cache, at its own offset even if the file was opened to append.
pub const WRITE_CACHE: u32 = 1;
/// WRITE is to take the set-id bits away.
pub const WRITE_KILL_SUIDGID: u32 = 1 << 2;
/// FSYNC is for data only.
pub const FSYNC_FDATASYNC: u32 = 1;
/// The guest drops no pages at open.
pub const FOPEN_KEEP_CACHE: u32 = 1 << 1;
/// The guest may keep the names of a directory.
pub const FOPEN_CACHE_DIR: u32 = 1 << 3;
/// The guest keeps no pages at all.
pub const FOPEN_DIRECT_IO: u32 = 1 << 0;
