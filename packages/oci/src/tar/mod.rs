//! A streaming tar reader for hostile input: strict, bounded, and of one opinion.
//!
//! Wherever two tar readers are known to disagree about where an entry ends or what it is called (PAX size
//! against header size, data behind entries that have none, lone zero blocks) this one either does what Go's
//! `archive/tar` does, since images are written and read with that, or refuses.

pub mod header;
pub mod pax;
pub mod sparse;
pub mod write;

use crate::blob::Extent;
use crate::error::{Code, Error, Result};
use crate::limits::Limits;
use crate::tree::Meta;
use crate::xattr::Xattrs;
use header::{Header, BLOCK};
use pax::Pax;
use std::io::{self, BufRead};

/// What an entry is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EntryKind {
    File,
    Directory,
    Symlink,
    HardLink,
    Device { block: bool, major: u32, minor: u32 },
    Fifo,
}

/// One entry, without its data.
#[derive(Debug)]
pub struct Entry {
    /// As written; not yet checked.
    pub path: Vec<u8>,
    pub kind: EntryKind,
    /// Target of a symbolic or hard link.
    pub link: Vec<u8>,
    pub meta: Meta,
    pub xattrs: Xattrs,
    /// Logical bytes.
    pub size: u64,
    /// Where the stored bytes belong, if the file is sparse.
    pub extents: Option<Vec<Extent>>,
}

/// Largest number in a header's size field of eleven octal digits.
const OCTAL_SIZE_MAX: u64 = (1 << 33) - 1;

pub struct Reader<R> {
    input: R,
    limits: Limits,
    globals: Pax,
    /// Bytes of the current entry's data that are still in the stream, and the padding behind them.
    left: u64,
    padding: u64,
    /// Bytes of extended headers in front of the current entry.
    extended: u64,
    done: bool,
}

impl<R: BufRead> Reader<R> {
    pub fn new(input: R, limits: Limits) -> Self {
        Reader {
            input,
            limits,
            globals: Pax::default(),
            left: 0,
            padding: 0,
            extended: 0,
            done: false,
        }
    }

    /// The next entry, or `None` after the last. What is left of the previous entry's data is skipped.
    pub fn next_entry(&mut self) -> Result<Option<Entry>> {
        if self.done {
            return Ok(None);
        }
        self.skip()?;
        let mut pax = self.globals.clone();
        let (mut long_name, mut long_link) = (None, None);
        self.extended = 0;
        loop {
            let Some(block) = self.block()? else {
                // Writers that leave out the end marker exist; the layer's digest says if it is complete.
                return self.end(pax, long_name.is_some() || long_link.is_some());
            };
            if block == [0; BLOCK] {
                match self.block()? {
                    Some(second) if second != [0; BLOCK] => {
                        return Err(Error::new(Code::BadHeader, "data after a lone zero block"));
                    }
                    _ => return self.end(pax, long_name.is_some() || long_link.is_some()),
                }
            }
            let header = Header::parse(&block)?;
            match header.kind() {
                b'x' => {
                    let records = self.record(header.size()?)?;
                    pax.apply(&records, false)?;
                }
                b'g' => {
                    let records = self.record(header.size()?)?;
                    self.globals.apply(&records, true)?;
                    pax.apply(&records, true)?;
                }
                b'L' => long_name = Some(pax::gnu_long_name(&self.record(header.size()?)?)),
                b'K' => long_link = Some(pax::gnu_long_name(&self.record(header.size()?)?)),
                // A volume label is about the archive.
                b'V' => {
                    self.set_data(header.size()?)?;
                    self.skip()?;
                }
                _ => {
                    let path = pax
                        .path
                        .take()
                        .or(long_name)
                        .unwrap_or_else(|| header.path());
                    let link = pax
                        .link
                        .take()
                        .or(long_link)
                        .unwrap_or_else(|| header.link().to_vec());
                    let blame = path.clone();
                    return self
                        .entry(&header, pax, path, link)
                        .map(Some)
                        .map_err(|error| error.at(&blame));
                }
            }
        }
    }

    /// Bytes of the current entry's data; empty at its end.
    pub fn data(&mut self) -> Result<&[u8]> {
        if self.left == 0 {
            return Ok(&[]);
        }
        let available = self.input.fill_buf().map_err(read_error)?;
        if available.is_empty() {
            return Err(truncated());
        }
        let len = self.left.min(available.len() as u64) as usize;
        Ok(&available[..len])
    }

    /// Mark bytes that [`Reader::data`] returned as read.
    pub fn consume(&mut self, count: usize) {
        self.left -= count as u64;
        self.input.consume(count);
    }

    /// Read to the end of the stream: its digest covers what stands behind the end marker too.
    pub fn drain(&mut self) -> Result<()> {
        loop {
            let len = self.input.fill_buf().map_err(read_error)?.len();
            if len == 0 {
                return Ok(());
            }
            self.input.consume(len);
        }
    }

    fn end(&mut self, pax: Pax, names: bool) -> Result<Option<Entry>> {
        if names || pax.path.is_some() || pax.link.is_some() || pax.size.is_some() {
            return Err(Error::new(
                Code::Truncated,
                "extended header without an entry behind it",
            ));
        }
        self.done = true;
        Ok(None)
    }

    fn set_data(&mut self, size: u64) -> Result<()> {
        if size > self.limits.max_size {
            return Err(Error::new(
                Code::TooLarge,
                format!("entry of {size} bytes (limit {})", self.limits.max_size),
            ));
        }
        self.left = size;
        self.padding = size.next_multiple_of(BLOCK as u64) - size;
        Ok(())
    }

    fn skip(&mut self) -> Result<()> {
        let mut count = self.left + self.padding;
        while count > 0 {
            let len = self.input.fill_buf().map_err(read_error)?.len();
            if len == 0 {
                return Err(truncated());
            }
            let now = count.min(len as u64);
            self.input.consume(now as usize);
            count -= now;
        }
        (self.left, self.padding) = (0, 0);
        Ok(())
    }

    /// One header block; `None` at the end of the stream.
    fn block(&mut self) -> Result<Option<[u8; BLOCK]>> {
        let mut block = [0; BLOCK];
        let mut have = 0;
        while have < BLOCK {
            let available = self.input.fill_buf().map_err(read_error)?;
            if available.is_empty() {
                return if have == 0 {
                    Ok(None)
                } else {
                    Err(truncated())
                };
            }
            let now = available.len().min(BLOCK - have);
            block[have..have + now].copy_from_slice(&available[..now]);
            self.input.consume(now);
            have += now;
        }
        Ok(Some(block))
    }

    /// The body of an extended header.
    fn record(&mut self, size: u64) -> Result<Vec<u8>> {
        // All of one entry's together: a chain of headers adds up in memory like a single one.
        self.extended = self.extended.saturating_add(size);
        if self.extended > self.limits.max_header {
            return Err(Error::new(
                Code::HeaderTooLarge,
                format!(
                    "extended headers of {} bytes (limit {})",
                    self.extended, self.limits.max_header
                ),
            ));
        }
        self.set_data(size)?;
        let mut record = Vec::new();
        while self.left > 0 {
            let data = self.data()?;
            let len = data.len();
            record.extend_from_slice(data);
            self.consume(len);
        }
        self.skip()?;
        Ok(record)
    }

    fn entry(
        &mut self,
        header: &Header<'_>,
        pax: Pax,
        path: Vec<u8>,
        link: Vec<u8>,
    ) -> Result<Entry> {
        let kind = kind(header, &path)?;
        let meta = meta(header, &pax)?;
        let mut size = 0;
        let mut extents = None;
        if kind == EntryKind::File {
            let stored = data_size(header, &pax)?;
            self.set_data(stored)?;
            size = stored;
            if header.kind() == b'S' {
                (size, extents) = self.old_sparse(header, stored)?;
            } else if pax.sparse.is_used() {
                (size, extents) = self.pax_sparse(&pax, stored)?;
            }
            if size > self.limits.max_file_size {
                return Err(Error::new(
                    Code::TooLarge,
                    format!("file of {size} bytes (limit {})", self.limits.max_file_size),
                ));
            }
        }
        let path = match (extents.is_some(), pax.sparse.name) {
            (true, Some(name)) => name,
            _ => path,
        };
        Ok(Entry {
            path,
            kind,
            link,
            meta,
            xattrs: pax.xattrs,
            size,
            extents,
        })
    }

    fn old_sparse(
        &mut self,
        header: &Header<'_>,
        stored: u64,
    ) -> Result<(u64, Option<Vec<Extent>>)> {
        let (fields, mut extended, size) = header.gnu_sparse()?;
        let mut numbers = Vec::new();
        let mut more = sparse::gnu_entries(fields, &mut numbers)?;
        let mut read = 0;
        while extended {
            read += BLOCK as u64;
            self.check_map(read)?;
            // These blocks stand between header and data and are not part of the size.
            let block = self.block()?.ok_or_else(truncated)?;
            if more {
                more = sparse::gnu_entries(&block[..504], &mut numbers)?;
            }
            extended = block[504] != 0;
        }
        Ok((size, Some(sparse::check(&numbers, size, stored)?)))
    }

    fn pax_sparse(&mut self, pax: &Pax, stored: u64) -> Result<(u64, Option<Vec<Extent>>)> {
        let keys = &pax.sparse;
        let missing = || Error::new(Code::BadHeader, "sparse file without a size");
        let size = keys.size.ok_or_else(missing)?;
        match (keys.major.unwrap_or(0), keys.minor.unwrap_or(0)) {
            (0, _) => {
                let numbers = keys.map.as_ref().unwrap_or(&keys.pairs);
                Ok((size, Some(sparse::check(numbers, size, stored)?)))
            }
            (1, 0) => {
                let mut parser = sparse::MapParser::default();
                let mut read = 0;
                loop {
                    read += BLOCK as u64;
                    self.check_map(read)?;
                    if self.left < BLOCK as u64 {
                        return Err(Error::new(Code::BadHeader, "sparse map exceeds its entry"));
                    }
                    let block = self.block()?.ok_or_else(truncated)?;
                    self.left -= BLOCK as u64;
                    if parser.feed(&block)? {
                        break;
                    }
                }
                let extents = sparse::check(&parser.numbers, size, self.left)?;
                Ok((size, Some(extents)))
            }
            (major, minor) => Err(Error::new(
                Code::Unsupported,
                format!("GNU sparse format {major}.{minor}"),
            )),
        }
    }

    fn check_map(&self, read: u64) -> Result<()> {
        if read > self.limits.max_header {
            return Err(Error::new(
                Code::HeaderTooLarge,
                format!("sparse map exceeds {} bytes", self.limits.max_header),
            ));
        }
        Ok(())
    }
}

fn kind(header: &Header<'_>, path: &[u8]) -> Result<EntryKind> {
    Ok(match header.kind() {
        // v7 marked directories by their name alone.
        0 if path.ends_with(b"/") => EntryKind::Directory,
        b'0' | 0 | b'7' | b'S' => EntryKind::File,
        b'1' => EntryKind::HardLink,
        b'2' => EntryKind::Symlink,
        b'3' | b'4' => {
            let (major, minor) = header.device()?;
            let bad = |_| Error::new(Code::BadHeader, "device number out of range");
            EntryKind::Device {
                block: header.kind() == b'4',
                major: u32::try_from(major).map_err(bad)?,
                minor: u32::try_from(minor).map_err(bad)?,
            }
        }
        b'5' => EntryKind::Directory,
        b'6' => EntryKind::Fifo,
        other => {
            return Err(Error::new(
                Code::Unsupported,
                format!("tar entry of type {:?}", char::from(other)),
            ))
        }
    })
}

fn meta(header: &Header<'_>, pax: &Pax) -> Result<Meta> {
    let owner = |pax: Option<u64>, field: Result<i64>| -> Result<u32> {
        let value = match pax {
            Some(value) => i128::from(value),
            None => i128::from(field?),
        };
        u32::try_from(value).map_err(|_| Error::new(Code::BadHeader, "owner out of range"))
    };
    let (mtime, mtime_nsec) = match pax.mtime {
        Some(time) => time,
        None => (header.mtime()?, 0),
    };
    Ok(Meta {
        mode: (header.mode()? & 0o7777) as u16,
        uid: owner(pax.uid, header.uid())?,
        gid: owner(pax.gid, header.gid())?,
        mtime,
        mtime_nsec,
    })
}

/// Bytes of data behind the header.
///
/// O09: a PAX size is there for what eleven octal digits cannot say. One that merely contradicts the
/// header would let two readers see two different archives in one stream.
fn data_size(header: &Header<'_>, pax: &Pax) -> Result<u64> {
    let field = header.size()?;
    match pax.size {
        Some(size) if size != field && size <= OCTAL_SIZE_MAX => Err(Error::new(
            Code::BadHeader,
            format!("PAX size {size} contradicts the header's {field}"),
        )),
        Some(size) => Ok(size),
        None => Ok(field),
    }
}

fn truncated() -> Error {
    Error::new(Code::Truncated, "tar stream ends inside an entry")
}

fn read_error(error: io::Error) -> Error {
    Error::Io(error)
}
