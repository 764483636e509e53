//! A tree of files as a stream of records; `docs/files.md` is the specification.
//!
//! Names are single components and directories are entered and left, so that a stream cannot say
//! where it goes. The peer's records are checked here, whatever the host is trusted with.

use std::io::{self, BufReader, BufWriter, Read, Write};

/// Content in one record.
pub const BYTES_MAX: usize = 1 << 17;
/// A name of 255 bytes, a link's target of 4,095, and the fixed part.
const ENTRY_MAX: usize = 8192;
const FIXED: usize = 34;
/// Kind and length.
pub const HEADER: usize = 5;

/// A name that is one component below the directory it is in.
pub fn is_name(name: &[u8]) -> bool {
    !matches!(name, b"" | b"." | b"..")
        && name.len() <= 255
        && !name.iter().any(|byte| matches!(byte, 0 | b'/'))
}

/// What is known of a file. `name` is empty for the one that is copied: the receiver names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// With the bits of the type.
    pub mode: u32,
    pub seconds: i64,
    pub nanoseconds: u32,
    pub size: u64,
    pub uid: u32,
    pub gid: u32,
    pub name: Vec<u8>,
    /// Of a symbolic link.
    pub target: Vec<u8>,
}

impl Entry {
    pub fn of(found: &libc::stat, name: &[u8]) -> Entry {
        Entry {
            mode: found.st_mode,
            seconds: found.st_mtime,
            nanoseconds: u32::try_from(found.st_mtime_nsec).unwrap_or(0),
            size: u64::try_from(found.st_size).unwrap_or(0),
            uid: found.st_uid,
            gid: found.st_gid,
            name: name.to_vec(),
            target: Vec::new(),
        }
    }
}

#[derive(Debug, PartialEq, Eq)]
pub enum Record {
    /// A directory: what follows is in it, until `Up`.
    Directory(Entry),
    Up,
    /// A regular file: its content follows, until `FileEnd`.
    File(Entry),
    /// Content that `Reader::bytes` has.
    Bytes,
    /// Zeros that need no space.
    Hole(u64),
    FileEnd,
    Link(Entry),
    /// Something that cannot be copied: a device, a FIFO, a socket, a file system of the kernel's.
    Skipped(Entry),
    /// One line of a listing.
    Item(Entry),
    /// The last record: the tree is complete.
    End,
}

pub struct Writer<W: Write> {
    out: BufWriter<W>,
}

impl<W: Write> Writer<W> {
    pub fn new(out: W) -> Writer<W> {
        Writer {
            out: BufWriter::with_capacity(64 << 10, out),
        }
    }

    pub fn write(&mut self, record: &Record) -> io::Result<()> {
        match record {
            Record::Directory(entry) => self.entry(b'D', entry),
            Record::File(entry) => self.entry(b'F', entry),
            Record::Link(entry) => self.entry(b'L', entry),
            Record::Skipped(entry) => self.entry(b'S', entry),
            Record::Item(entry) => self.entry(b'I', entry),
            Record::Hole(size) => self.raw(b'H', &size.to_be_bytes()),
            Record::Up => self.raw(b'U', &[]),
            Record::FileEnd => self.raw(b'E', &[]),
            Record::End => {
                self.raw(b'Z', &[])?;
                self.out.flush()
            }
            // Content has a call of its own.
            Record::Bytes => Err(io::ErrorKind::InvalidInput.into()),
        }
    }

    /// Content of the file, at most `BYTES_MAX`, after `HEADER` bytes of room: with one write
    /// of both, nobody is woken for the header alone.
    pub fn content(&mut self, room_and_bytes: &mut [u8]) -> io::Result<()> {
        let length = room_and_bytes.len() - HEADER;
        room_and_bytes[..HEADER].copy_from_slice(&header(b'B', length));
        self.out.write_all(room_and_bytes)
    }

    fn entry(&mut self, kind: u8, entry: &Entry) -> io::Result<()> {
        let mut payload = Vec::with_capacity(FIXED + entry.name.len() + entry.target.len());
        payload.extend(entry.mode.to_be_bytes());
        payload.extend(entry.seconds.to_be_bytes());
        payload.extend(entry.nanoseconds.to_be_bytes());
        payload.extend(entry.size.to_be_bytes());
        payload.extend(entry.uid.to_be_bytes());
        payload.extend(entry.gid.to_be_bytes());
        // The kernel's names have at most 255 bytes.
        payload.extend((entry.name.len() as u16).to_be_bytes());
        payload.extend(&entry.name);
        payload.extend(&entry.target);
        self.raw(kind, &payload)
    }

    fn raw(&mut self, kind: u8, payload: &[u8]) -> io::Result<()> {
        self.out.write_all(&header(kind, payload.len()))?;
        self.out.write_all(payload)
    }
}

/// `length` is within the limits of its kind, and these within 32 bits.
fn header(kind: u8, length: usize) -> [u8; HEADER] {
    let [a, b, c, d] = (length as u32).to_be_bytes();
    [kind, a, b, c, d]
}

pub struct Reader<R: Read> {
    input: BufReader<R>,
    bytes: Vec<u8>,
}

impl<R: Read> Reader<R> {
    pub fn new(input: R) -> Reader<R> {
        Reader {
            input: BufReader::with_capacity(64 << 10, input),
            bytes: Vec::new(),
        }
    }

    /// The content that the last record had.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The next record. An error of kind `InvalidData` if it is none, `UnexpectedEof` if the stream
    /// has ended before its end.
    pub fn next(&mut self) -> io::Result<Record> {
        let mut header = [0; HEADER];
        self.input.read_exact(&mut header)?;
        let [kind, a, b, c, d] = header;
        let length = u32::from_be_bytes([a, b, c, d]) as usize;
        let limits = match kind {
            b'D' | b'F' | b'L' | b'S' | b'I' => FIXED..=ENTRY_MAX,
            b'B' => 1..=BYTES_MAX,
            b'H' => 8..=8,
            b'U' | b'E' | b'Z' => 0..=0,
            _ => return Err(malformed("an unknown record")),
        };
        if !limits.contains(&length) {
            return Err(malformed("a record of a wrong length"));
        }
        self.bytes.resize(length, 0);
        self.input.read_exact(&mut self.bytes)?;
        Ok(match kind {
            b'D' => Record::Directory(self.entry()?),
            b'F' => Record::File(self.entry()?),
            b'L' => Record::Link(self.entry()?),
            b'S' => Record::Skipped(self.entry()?),
            b'I' => Record::Item(self.entry()?),
            b'B' => Record::Bytes,
            b'H' => Record::Hole(u64::from_be_bytes(self.fixed(0)?)),
            b'U' => Record::Up,
            b'E' => Record::FileEnd,
            _ => Record::End,
        })
    }

    fn entry(&self) -> io::Result<Entry> {
        let length = usize::from(u16::from_be_bytes(self.fixed(32)?));
        let rest = &self.bytes[FIXED..];
        if length > rest.len() {
            return Err(malformed("a name that is longer than its record"));
        }
        let (name, target) = rest.split_at(length);
        if !name.is_empty() && !is_name(name) {
            return Err(malformed("a name that is none"));
        }
        if target.contains(&0) {
            return Err(malformed("a link's target with a NUL byte"));
        }
        Ok(Entry {
            mode: u32::from_be_bytes(self.fixed(0)?),
            seconds: i64::from_be_bytes(self.fixed(4)?),
            nanoseconds: u32::from_be_bytes(self.fixed(12)?),
            size: u64::from_be_bytes(self.fixed(16)?),
            uid: u32::from_be_bytes(self.fixed(24)?),
            gid: u32::from_be_bytes(self.fixed(28)?),
            name: name.to_vec(),
            target: target.to_vec(),
        })
    }

    fn fixed<const N: usize>(&self, offset: usize) -> io::Result<[u8; N]> {
        self.bytes
            .get(offset..offset + N)
            .and_then(|part| part.try_into().ok())
            .ok_or_else(|| malformed("a record that is too short"))
    }
}

pub fn malformed(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("in the stream: {what}"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)] // A failed test should say where.
    use super::*;
    use proptest::prelude::*;

    fn entry(name: &[u8], target: &[u8]) -> Entry {
        Entry {
            mode: 0o100644,
            seconds: -5,
            nanoseconds: 7,
            size: 9,
            uid: 1,
            gid: 2,
            name: name.to_vec(),
            target: target.to_vec(),
        }
    }

    #[test]
    fn what_is_written_is_read() {
        let records = [
            Record::Directory(entry(b"", b"")),
            Record::File(entry(b"a\nb", b"")),
            Record::Hole(1 << 40),
            Record::FileEnd,
            Record::Link(entry(b"l", b"../../x")),
            Record::Skipped(entry(b"s", b"")),
            Record::Item(entry(b"i", b"")),
            Record::Up,
            Record::End,
        ];
        let mut stream = Vec::new();
        let mut writer = Writer::new(&mut stream);
        for record in &records {
            writer.write(record).unwrap();
        }
        drop(writer);
        let mut reader = Reader::new(stream.as_slice());
        for record in records {
            assert_eq!(reader.next().unwrap(), record);
        }
        assert_eq!(
            reader.next().unwrap_err().kind(),
            io::ErrorKind::UnexpectedEof
        );
    }

    #[test]
    fn hostile_names_are_refused() {
        for name in [&b"."[..], b"..", b"a/b", b"/", b"a\0", &[b'x'; 256]] {
            let mut stream = Vec::new();
            let mut writer = Writer::new(&mut stream);
            writer.write(&Record::File(entry(name, b""))).unwrap();
            drop(writer);
            let error = Reader::new(stream.as_slice()).next().unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidData, "{name:?}");
        }
    }

    proptest! {
        #[test]
        fn no_stream_makes_the_reader_panic(stream: Vec<u8>) {
            let mut reader = Reader::new(stream.as_slice());
            while reader.next().is_ok() {}
        }

        #[test]
        fn no_entry_makes_the_reader_panic(kind in prop::sample::select(b"DFLSIBHUEZ".to_vec()), payload: Vec<u8>) {
            let mut stream = vec![kind];
            stream.extend((payload.len() as u32).to_be_bytes());
            stream.extend(payload);
            let _ = Reader::new(stream.as_slice()).next();
        }
    }
}
