//! What a guest's kernel asks: `parse` checks every size and every name before anything is done with them.

use super::name::Name;
use super::{IN_HEADER, MAX_ATTRIBUTE, MAX_DATA, MAX_MESSAGE, WITH_DIRECTORY};
use rustix::io::Errno;
use std::ffi::CStr;

/// The message is none: its transport has lost its place, or who speaks is not a FUSE client. The mount ends.
#[derive(Debug, PartialEq, Eq)]
pub struct Malformed(pub &'static str);

impl std::fmt::Display for Malformed {
    fn fmt(&self, to: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(to, "no FUSE message: {}", self.0)
    }
}

impl std::error::Error for Malformed {}

/// Who asks, and of which node.
#[derive(Clone, Copy, Debug)]
pub struct Header {
    pub opcode: u32,
    pub unique: u64,
    pub node: u64,
    pub uid: u32,
    pub gid: u32,
    /// `WITH_DIRECTORY`.
    pub with_directory: bool,
}

/// An access or modification time: seconds and nanoseconds, or `None` for now.
pub type Time = Option<(i64, u32)>;

#[derive(Debug)]
pub struct SetAttributes {
    pub handle: Option<u64>,
    pub mode: Option<u32>,
    pub uid: Option<u32>,
    pub gid: Option<u32>,
    pub size: Option<u64>,
    pub accessed: Option<Time>,
    pub modified: Option<Time>,
    /// The times of what was written back, as the guest's kernel has kept them.
    pub written_back: bool,
    pub kill: bool,
}

/// Numbers of bytes and offsets fit in an `i64` together.
#[derive(Debug)]
#[rustfmt::skip]
pub enum Operation<'a> {
    Init { major: u32, minor: u32, flags: u32 },
    Destroy,
    Interrupt,
    Lookup { name: Name<'a> },
    Forget { lookups: u64 },
    /// Pairs of a node and its lookups, 16 bytes each.
    BatchForget { pairs: &'a [u8] },
    GetAttributes { handle: Option<u64> },
    SetAttributes(SetAttributes),
    ReadLink,
    SymLink { name: Name<'a>, target: &'a CStr },
    MakeNode { name: Name<'a>, mode: u32, device: u32 },
    MakeDirectory { name: Name<'a>, mode: u32 },
    Unlink { name: Name<'a> },
    RemoveDirectory { name: Name<'a> },
    Rename { name: Name<'a>, to: u64, new: Name<'a>, flags: u32 },
    Link { node: u64, name: Name<'a> },
    Open { flags: u32, kill: bool },
    Create { name: Name<'a>, flags: u32, mode: u32, kill: bool },
    Read { handle: u64, offset: u64, size: u32 },
    Write { handle: u64, offset: u64, data: &'a [u8], flags: u32 },
    StatFs,
    Release { handle: u64 },
    Sync { handle: u64, data_only: bool },
    Flush,
    SetAttribute { name: &'a CStr, value: &'a [u8], flags: u32 },
    GetAttribute { name: &'a CStr, size: u32 },
    ListAttributes { size: u32 },
    RemoveAttribute { name: &'a CStr },
    OpenDirectory,
    ReadDirectory { handle: u64, offset: u64, size: u32, plus: bool },
    ReleaseDirectory { handle: u64 },
    SyncDirectory { handle: u64 },
    Access { mask: u32 },
    Allocate { handle: u64, offset: u64, length: u64, mode: u32 },
    Seek { handle: u64, offset: u64, whence: u32 },
    Copy { handle: u64, offset: u64, node: u64, to: u64, at: u64, length: u64 },
}

impl Operation<'_> {
    /// Whether it changes what is shared, whatever else it says. OPEN and ACCESS are looked at by themselves.
    pub fn writes(&self) -> bool {
        use Operation::*;
        matches!(
            self,
            SetAttributes(_)
                | SymLink { .. }
                | MakeNode { .. }
                | MakeDirectory { .. }
                | Unlink { .. }
                | RemoveDirectory { .. }
                | Rename { .. }
                | Link { .. }
                | Create { .. }
                | Write { .. }
                | SetAttribute { .. }
                | RemoveAttribute { .. }
                | Allocate { .. }
                | Copy { .. }
        )
    }

    /// Whether an entry is answered to it, of a name that it makes.
    pub fn enters(&self) -> bool {
        use Operation::*;
        matches!(
            self,
            SymLink { .. } | MakeNode { .. } | MakeDirectory { .. } | Link { .. } | Create { .. }
        )
    }

    /// Whether it changes the names of the directory that it is about.
    pub fn renames(&self) -> bool {
        use Operation::*;
        self.enters() || matches!(self, Unlink { .. } | RemoveDirectory { .. } | Rename { .. })
    }

    /// Whether nothing is answered to it.
    pub fn silent(opcode: u32) -> bool {
        // FORGET, INTERRUPT, BATCH_FORGET.
        matches!(opcode, 2 | 36 | 42)
    }

    /// Whether it may come without a number, and then is not answered. No program waits for RELEASE and RELEASEDIR: who
    /// carries messages may tell the guest's kernel at once that they are done.
    pub fn unnumbered(opcode: u32) -> bool {
        matches!(opcode, 18 | 29)
    }
}

/// Cuts a whole message into its header and the rest.
pub fn header(message: &[u8]) -> Result<(Header, &[u8]), Malformed> {
    if message.len() > MAX_MESSAGE {
        return Err(Malformed("longer than any request"));
    }
    let mut fields = Fields(message);
    let short = |_| Malformed("shorter than a header");
    let length = fields.u32().map_err(short)?;
    let mut header = Header {
        opcode: fields.u32().map_err(short)?,
        unique: fields.u64().map_err(short)?,
        node: fields.u64().map_err(short)?,
        uid: fields.u32().map_err(short)?,
        gid: fields.u32().map_err(short)?,
        with_directory: false,
    };
    fields.skip(4).map_err(short)?;
    header.with_directory = fields.u32().map_err(short)? >> 16 == u32::from(WITH_DIRECTORY);
    if length as usize != message.len() {
        return Err(Malformed("its length is not that of the message"));
    }
    // A reply to it would be a notification, with the error as its code.
    let without = Operation::silent(header.opcode) || Operation::unnumbered(header.opcode);
    if header.unique == 0 && !without {
        return Err(Malformed("its number is 0"));
    }
    Ok((header, &message[IN_HEADER..]))
}

/// Whether a message, which is not shorter than a header, has an answer.
pub fn answered(message: &[u8]) -> bool {
    let word = |at: usize| message[at..at + 4].try_into().map(u32::from_le_bytes);
    let numbered = message[8..16].iter().any(|byte| *byte != 0);
    numbered && !word(4).is_ok_and(Operation::silent)
}

/// What is asked. ENOSYS for what is not served, EINVAL or ENAMETOOLONG for what is not a request.
pub fn operation<'a>(header: &Header, body: &'a [u8]) -> Result<Operation<'a>, Errno> {
    let mut fields = Fields(body);
    let operation = fields.operation(header.opcode)?;
    match fields.0 {
        [] => Ok(operation),
        _ => Err(Errno::INVAL),
    }
}

struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8], Errno> {
        let (taken, rest) = self.0.split_at_checked(count).ok_or(Errno::INVAL)?;
        self.0 = rest;
        Ok(taken)
    }

    fn skip(&mut self, count: usize) -> Result<(), Errno> {
        self.take(count).map(drop)
    }

    fn rest(&mut self) -> &'a [u8] {
        std::mem::take(&mut self.0)
    }

    fn u32(&mut self) -> Result<u32, Errno> {
        let bytes = self.take(4)?;
        Ok(u32::from_le_bytes(bytes.try_into().expect("four bytes")))
    }

    fn u64(&mut self) -> Result<u64, Errno> {
        let bytes = self.take(8)?;
        Ok(u64::from_le_bytes(bytes.try_into().expect("eight bytes")))
    }

    /// A place in a file and a number of bytes from there.
    fn range(&mut self) -> Result<(u64, u64), Errno> {
        let (offset, length) = (self.u64()?, self.u64()?);
        match offset.checked_add(length) {
            Some(end) if i64::try_from(end).is_ok() => Ok((offset, length)),
            _ => Err(Errno::INVAL),
        }
    }

    fn text(&mut self) -> Result<&'a CStr, Errno> {
        let text = CStr::from_bytes_until_nul(self.0).map_err(|_| Errno::INVAL)?;
        self.skip(text.count_bytes() + 1)?;
        Ok(text)
    }

    /// The last name of a message: all that is left, so that an embedded NUL is seen (F03).
    fn last_name(&mut self) -> Result<Name<'a>, Errno> {
        Name::new(self.rest())
    }

    /// A name that another text follows.
    fn name(&mut self) -> Result<Name<'a>, Errno> {
        Name::new(self.text()?.to_bytes_with_nul())
    }

    fn attribute(&mut self) -> Result<&'a CStr, Errno> {
        let name = self.text()?;
        match name.count_bytes() {
            0 => Err(Errno::INVAL),
            1..=255 => Ok(name),
            _ => Err(Errno::RANGE),
        }
    }

    #[rustfmt::skip]
    fn operation(&mut self, opcode: u32) -> Result<Operation<'a>, Errno> {
        use Operation::*;
        Ok(match opcode {
            1 => Lookup { name: self.last_name()? },
            2 => Forget { lookups: self.u64()? },
            3 => {
                let (flags, _, handle) = (self.u32()?, self.u32()?, self.u64()?);
                GetAttributes { handle: (flags & super::GETATTR_FH != 0).then_some(handle) }
            }
            4 => SetAttributes(self.set_attributes()?),
            5 => ReadLink,
            6 => {
                let (name, target) = (self.name()?, self.text()?);
                if target.is_empty() {
                    return Err(Errno::NOENT);
                }
                SymLink { name, target }
            }
            8 => {
                let (mode, device) = (self.u32()?, self.u32()?);
                self.skip(8)?;
                MakeNode { name: self.last_name()?, mode, device }
            }
            9 => {
                let (mode, _) = (self.u32()?, self.u32()?);
                MakeDirectory { name: self.last_name()?, mode }
            }
            10 => Unlink { name: self.last_name()? },
            11 => RemoveDirectory { name: self.last_name()? },
            12 => {
                let to = self.u64()?;
                Rename { to, name: self.name()?, new: self.last_name()?, flags: 0 }
            }
            13 => Link { node: self.u64()?, name: self.last_name()? },
            14 => {
                let (flags, extra) = (self.u32()?, self.u32()?);
                Open { flags, kill: extra & super::OPEN_KILL_SUIDGID != 0 }
            }
            15 => {
                let (handle, offset, size) = (self.u64()?, self.u64()?, self.u32()?);
                self.skip(20)?;
                bounded(offset, size)?;
                Read { handle, offset, size }
            }
            16 => {
                let (handle, offset, size, flags) = (self.u64()?, self.u64()?, self.u32()?, self.u32()?);
                self.skip(16)?;
                bounded(offset, size)?;
                let data = self.rest();
                if data.len() != size as usize {
                    return Err(Errno::INVAL);
                }
                Write { handle, offset, data, flags }
            }
            17 => StatFs,
            18 => Release { handle: self.release()? },
            20 => {
                let (handle, flags, _) = (self.u64()?, self.u32()?, self.u32()?);
                Sync { handle, data_only: flags & super::FSYNC_FDATASYNC != 0 }
            }
            21 => {
                let (size, flags) = (self.u32()?, self.u32()?);
                let (name, value) = (self.attribute()?, self.rest());
                if value.len() != size as usize {
                    return Err(Errno::INVAL);
                }
                if value.len() > MAX_ATTRIBUTE {
                    return Err(Errno::TOOBIG);
                }
                SetAttribute { name, value, flags }
            }
            22 => {
                let (size, _) = (self.u32()?, self.u32()?);
                GetAttribute { size, name: self.attribute()? }
            }
            23 => {
                let (size, _) = (self.u32()?, self.u32()?);
                ListAttributes { size }
            }
            24 => RemoveAttribute { name: self.attribute()? },
            25 => {
                self.skip(24)?;
                Flush
            }
            26 => {
                let (major, minor, _, flags) = (self.u32()?, self.u32()?, self.u32()?, self.u32()?);
                // Structures of newer minors are longer.
                self.rest();
                Init { major, minor, flags }
            }
            27 => {
                self.skip(8)?;
                OpenDirectory
            }
            28 | 44 => {
                let (handle, offset, size) = (self.u64()?, self.u64()?, self.u32()?);
                self.skip(20)?;
                // A place in a directory is any number: that of the end may be the largest.
                bounded(0, size)?;
                bounded(offset, 0)?;
                ReadDirectory { handle, offset, size, plus: opcode == 44 }
            }
            29 => ReleaseDirectory { handle: self.release()? },
            30 => {
                let handle = self.u64()?;
                self.skip(8)?;
                SyncDirectory { handle }
            }
            34 => {
                let (mask, _) = (self.u32()?, self.u32()?);
                Access { mask }
            }
            35 => {
                let (flags, mode, _, extra) = (self.u32()?, self.u32()?, self.u32()?, self.u32()?);
                Create { name: self.last_name()?, flags, mode, kill: extra & super::OPEN_KILL_SUIDGID != 0 }
            }
            36 => {
                self.skip(8)?;
                Interrupt
            }
            38 => Destroy,
            42 => {
                let (count, _) = (self.u32()?, self.u32()?);
                let pairs = self.rest();
                if pairs.len() as u64 != u64::from(count) * 16 {
                    return Err(Errno::INVAL);
                }
                BatchForget { pairs }
            }
            43 => {
                let handle = self.u64()?;
                let (offset, length) = self.range()?;
                let (mode, _) = (self.u32()?, self.u32()?);
                Allocate { handle, offset, length, mode }
            }
            45 => {
                let (to, flags, _) = (self.u64()?, self.u32()?, self.u32()?);
                Rename { to, name: self.name()?, new: self.last_name()?, flags }
            }
            46 => {
                let (handle, offset, whence, _) = (self.u64()?, self.u64()?, self.u32()?, self.u32()?);
                bounded(offset, 0)?;
                Seek { handle, offset, whence }
            }
            47 => {
                let (handle, offset, node, to) = (self.u64()?, self.u64()?, self.u64()?, self.u64()?);
                let (at, length) = self.range()?;
                let flags = self.u64()?;
                if flags != 0 || offset.checked_add(length).is_none_or(|end| i64::try_from(end).is_err()) {
                    return Err(Errno::INVAL);
                }
                Copy { handle, offset, node, to, at, length }
            }
            _ => return Err(Errno::NOSYS),
        })
    }

    fn release(&mut self) -> Result<u64, Errno> {
        let handle = self.u64()?;
        self.skip(16)?;
        Ok(handle)
    }

    fn set_attributes(&mut self) -> Result<SetAttributes, Errno> {
        use super::valid;
        let (set, _) = (self.u32()?, self.u32()?);
        let (handle, size, _) = (self.u64()?, self.u64()?, self.u64()?);
        let (accessed, modified, _) = (self.u64()?, self.u64()?, self.u64()?);
        let (accessed_ns, modified_ns, _) = (self.u32()?, self.u32()?, self.u32()?);
        let (mode, _, uid, gid, _) = (
            self.u32()?,
            self.u32()?,
            self.u32()?,
            self.u32()?,
            self.u32()?,
        );
        let has = |bit: u32| set & bit != 0;
        let time = |given, now, seconds: u64, nanoseconds: u32| match (has(given), has(now)) {
            (_, true) => Ok(Some(None)),
            (true, _) if nanoseconds >= 1_000_000_000 => Err(Errno::INVAL),
            // Negative before 1970.
            (true, _) => Ok(Some(Some((seconds as i64, nanoseconds)))),
            _ => Ok(None),
        };
        if has(valid::SIZE) {
            bounded(size, 0)?;
        }
        Ok(SetAttributes {
            handle: has(valid::FH).then_some(handle),
            mode: has(valid::MODE).then_some(mode),
            uid: has(valid::UID).then_some(uid),
            gid: has(valid::GID).then_some(gid),
            size: has(valid::SIZE).then_some(size),
            accessed: time(valid::ATIME, valid::ATIME_NOW, accessed, accessed_ns)?,
            modified: time(valid::MTIME, valid::MTIME_NOW, modified, modified_ns)?,
            // `fuse_flush_times` sets these and nothing else, of the file that it has open.
            written_back: set == valid::FH | valid::MTIME | valid::CTIME,
            kill: has(valid::KILL_SUIDGID),
        })
    }
}

fn bounded(offset: u64, size: u32) -> Result<(), Errno> {
    let end = offset.checked_add(u64::from(size)).ok_or(Errno::INVAL)?;
    match size <= MAX_DATA && i64::try_from(end).is_ok() {
        true => Ok(()),
        false => Err(Errno::INVAL),
    }
}
