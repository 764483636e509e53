//! From a descriptor to uncompressed bytes: compression by magic, both digests, limits.
//!
//! Two threads: the caller's reads, hashes and decompresses; the other consumes. Decompression and what
//! follows it (hashing, parsing, writing) cost about the same, so this halves the time.

use crate::error::{Code, Error, Result};
use crate::limits::Limits;
use rustix::event::{poll, PollFd, PollFlags, Timespec};
use sha2::{Digest, Sha256};
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::sync::mpsc::{sync_channel, Receiver, Sender, SyncSender};
use std::time::{Duration, Instant};

const CHUNK: usize = 256 << 10;
/// Chunks on their way between the threads.
const DEPTH: usize = 8;
/// How often the observer is asked.
const INTERVAL: Duration = Duration::from_millis(100);

/// Called a few times per second with the bytes read so far; `false` ends the work.
pub type Observer<'a> = dyn FnMut(u64) -> bool + 'a;

/// Asks an [`Observer`], but not too often.
pub struct Watch<'a> {
    observer: &'a mut Observer<'a>,
    last: Option<Instant>,
}

impl<'a> Watch<'a> {
    pub fn new(observer: &'a mut Observer<'a>) -> Self {
        Watch {
            observer,
            last: None,
        }
    }

    pub fn check(&mut self, bytes: u64) -> Result<()> {
        if self.last.is_some_and(|last| last.elapsed() < INTERVAL) {
            return Ok(());
        }
        self.now(bytes)
    }

    pub fn now(&mut self, bytes: u64) -> Result<()> {
        self.last = Some(Instant::now());
        if (self.observer)(bytes) {
            Ok(())
        } else {
            Err(Error::Cancelled)
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    None,
    Gzip,
    Zstd,
}

impl Compression {
    pub fn as_str(self) -> &'static str {
        match self {
            Compression::None => "none",
            Compression::Gzip => "gzip",
            Compression::Zstd => "zstd",
        }
    }

    fn detect(start: &[u8]) -> Result<Self> {
        let unsupported = |name: &str| {
            Err(Error::new(
                Code::Unsupported,
                format!("layer is compressed with {name}; gzip, zstd and none are supported"),
            ))
        };
        match start {
            [0x1f, 0x8b, 8, ..] => Ok(Compression::Gzip),
            // A frame, or a skippable frame in front of one (RFC 8878, 3.1).
            [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => {
                Ok(Compression::Zstd)
            }
            [b'B', b'Z', b'h', b'1'..=b'9', 0x31, 0x41, ..] => unsupported("bzip2"),
            [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => unsupported("xz"),
            _ => Ok(Compression::None),
        }
    }
}

/// What went through.
#[derive(Debug)]
pub struct Summary {
    pub compression: Compression,
    pub compressed_size: u64,
    pub uncompressed_size: u64,
    /// SHA-256 of the bytes read, and of the bytes after decompression.
    pub digest: [u8; 32],
    pub diff_id: [u8; 32],
}

/// A file, or a pipe whose writer may be slow. A read that waits is interrupted now and then, signal or not: a
/// signal that comes just before the read, or is handled by another thread, interrupts nothing.
pub struct Patient<'a>(pub &'a File);

const PATIENCE: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 100_000_000,
};

impl Read for Patient<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match poll(&mut [PollFd::new(self.0, PollFlags::IN)], Some(&PATIENCE))? {
            0 => Err(io::ErrorKind::Interrupted.into()),
            _ => self.0.read(buffer),
        }
    }
}

/// Reads, hashes, counts and reports.
struct Counted<'w, 'a, R> {
    inner: R,
    hash: Sha256,
    bytes: u64,
    watch: &'w mut Watch<'a>,
    cancelled: bool,
}

impl<R: Read> Read for Counted<'_, '_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let result = loop {
            let result = self.inner.read(buffer);
            // A signal interrupts the read; its handler may want to end the work.
            let interrupted = matches!(&result, Err(e) if e.kind() == io::ErrorKind::Interrupted);
            let asked = if interrupted {
                self.watch.now(self.bytes)
            } else {
                self.watch.check(self.bytes)
            };
            if asked.is_err() {
                self.cancelled = true;
                return Err(io::Error::other("cancelled"));
            }
            if !interrupted {
                break result;
            }
        };
        let count = result?;
        self.hash.update(&buffer[..count]);
        self.bytes += count as u64;
        Ok(count)
    }
}

/// The consumer's end: a reader of uncompressed bytes that hashes them on the way.
pub struct Uncompressed {
    chunks: Receiver<Vec<u8>>,
    spent: Sender<Vec<u8>>,
    current: Vec<u8>,
    at: usize,
    hash: Option<Sha256>,
    ended: bool,
}

impl Read for Uncompressed {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let available = self.fill_buf()?;
        let count = available.len().min(buffer.len());
        buffer[..count].copy_from_slice(&available[..count]);
        self.consume(count);
        Ok(count)
    }
}

impl BufRead for Uncompressed {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        while self.at == self.current.len() && !self.ended {
            // An empty chunk is the end; a closed channel is a producer that failed.
            let next = self
                .chunks
                .recv()
                .map_err(|_| io::Error::other("producer failed"))?;
            self.ended = next.is_empty();
            if let Some(hash) = &mut self.hash {
                hash.update(&next);
            }
            // The producer may have finished and gone; then nobody needs the buffer.
            let _ = self.spent.send(std::mem::replace(&mut self.current, next));
            self.at = 0;
        }
        Ok(&self.current[self.at..])
    }

    fn consume(&mut self, count: usize) {
        self.at += count;
    }
}

/// Run `consume` over the uncompressed bytes of `source`.
///
/// `consume` must read to the end. Of two failures the producer's is reported: the consumer's is then
/// only its echo.
pub fn run<R, T, F>(
    source: R,
    limits: &Limits,
    observer: &mut Observer<'_>,
    consume: F,
) -> Result<(T, Summary)>
where
    R: Read,
    T: Send,
    F: FnOnce(&mut Uncompressed) -> Result<T> + Send,
{
    let mut observer = observer;
    let mut watch = Watch::new(&mut observer);
    let mut counted = Counted {
        inner: source,
        hash: Sha256::new(),
        bytes: 0,
        watch: &mut watch,
        cancelled: false,
    };
    let mut start = Vec::new();
    let began = (&mut counted).take(8).read_to_end(&mut start);
    if let Err(error) = began {
        return Err(if counted.cancelled {
            Error::Cancelled
        } else {
            error.into()
        });
    }
    let compression = Compression::detect(&start)?;

    let (chunk_sender, chunks) = sync_channel(DEPTH);
    let (spent, spent_receiver) = std::sync::mpsc::channel();
    let mut reader = Uncompressed {
        chunks,
        spent,
        current: Vec::new(),
        at: 0,
        // Without compression both digests are the same.
        hash: (compression != Compression::None).then(Sha256::new),
        ended: false,
    };
    let (produced, consumed) = std::thread::scope(|scope| {
        let consumer = scope.spawn(move || {
            let result = consume(&mut reader);
            // Dropping the receiver wakes a producer that waits for room.
            result.map(|value| (value, reader.hash.take()))
        });
        let produced = produce(
            &mut counted,
            &start,
            compression,
            limits,
            chunk_sender,
            &spent_receiver,
        );
        let consumed = match consumer.join() {
            Ok(result) => result,
            Err(panic) => std::panic::resume_unwind(panic),
        };
        (produced, consumed)
    });
    let uncompressed_size = match produced {
        Ok(Some(size)) => size,
        // The consumer hung up: it has the reason.
        Ok(None) => {
            return Err(consumed
                .err()
                .unwrap_or_else(|| Error::new(Code::Corrupt, "layer was not read to its end")))
        }
        Err(_) if counted.cancelled => return Err(Error::Cancelled),
        Err(error) => return Err(error),
    };
    let (value, hash) = consumed?;
    let bytes = counted.bytes;
    let digest: [u8; 32] = counted.hash.finalize().into();
    watch.now(bytes)?;
    let summary = Summary {
        compression,
        compressed_size: bytes,
        uncompressed_size,
        digest,
        diff_id: hash.map_or(digest, |hash| hash.finalize().into()),
    };
    Ok((value, summary))
}

/// Decompress everything; `None` if the consumer went away.
fn produce<R: Read>(
    counted: &mut Counted<'_, '_, R>,
    start: &[u8],
    compression: Compression,
    limits: &Limits,
    chunks: SyncSender<Vec<u8>>,
    spent: &Receiver<Vec<u8>>,
) -> Result<Option<u64>> {
    match compression {
        Compression::None => {
            let mut input = start.chain(&mut *counted);
            pump(&mut input, limits, chunks, spent, |input| {
                let (_, counted) = input.get_mut();
                (counted.bytes, counted.watch.check(counted.bytes))
            })
        }
        Compression::Gzip => {
            let input = BufReader::with_capacity(CHUNK, start.chain(&mut *counted));
            let mut decoder = flate2::bufread::MultiGzDecoder::new(input);
            pump(&mut decoder, limits, chunks, spent, |decoder| {
                let (_, counted) = decoder.get_mut().get_mut().get_mut();
                (counted.bytes, counted.watch.check(counted.bytes))
            })
        }
        Compression::Zstd => {
            let input = BufReader::with_capacity(CHUNK, start.chain(&mut *counted));
            let mut decoder = zstd::stream::read::Decoder::with_buffer(input)?;
            decoder.window_log_max(limits.max_window_log.clamp(10, 31) as u32)?;
            pump(&mut decoder, limits, chunks, spent, |decoder| {
                let (_, counted) = decoder.get_mut().get_mut().get_mut();
                (counted.bytes, counted.watch.check(counted.bytes))
            })
        }
    }
}

/// Move a reader's bytes into the channel. `watch` tells how many compressed bytes they came from.
fn pump<D: Read>(
    decoder: &mut D,
    limits: &Limits,
    chunks: SyncSender<Vec<u8>>,
    spent: &Receiver<Vec<u8>>,
    mut watch: impl FnMut(&mut D) -> (u64, Result<()>),
) -> Result<Option<u64>> {
    let mut total = 0u64;
    loop {
        let mut chunk = spent.try_recv().unwrap_or_default();
        chunk.resize(CHUNK, 0);
        let mut have = 0;
        while have < CHUNK {
            match decoder.read(&mut chunk[have..]).map_err(decode_error)? {
                0 => break,
                count => have += count,
            }
        }
        chunk.truncate(have);
        total += have as u64;
        let (compressed, asked) = watch(decoder);
        asked?;
        check_size(total, compressed, limits)?;
        if chunks.send(chunk).is_err() {
            return Ok(None);
        }
        if have == 0 {
            return Ok(Some(total));
        }
    }
}

/// O08: stop a decompression bomb while it is small.
fn check_size(total: u64, compressed: u64, limits: &Limits) -> Result<()> {
    if total > limits.max_size {
        return Err(Error::new(
            Code::TooLarge,
            format!("layer exceeds {} bytes uncompressed", limits.max_size),
        ));
    }
    if total > limits.ratio_floor && total / limits.max_ratio > compressed {
        return Err(Error::new(
            Code::Ratio,
            format!(
                "layer expands more than {}-fold ({compressed} bytes gave {total})",
                limits.max_ratio
            ),
        ));
    }
    Ok(())
}

fn decode_error(error: io::Error) -> Error {
    if error.raw_os_error().is_some() {
        return error.into();
    }
    let text = error.to_string();
    // libzstd's name for ZSTD_error_frameParameter_windowTooLarge; the crate passes on the text alone.
    if text.contains("requires too much memory") {
        return Error::new(Code::Window, "zstd window exceeds the limit");
    }
    match error.kind() {
        io::ErrorKind::UnexpectedEof => Error::new(Code::Truncated, "compressed stream ends early"),
        _ => Error::new(Code::Corrupt, format!("compressed stream: {text}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn gzip(data: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
        encoder.write_all(data).unwrap();
        encoder.finish().unwrap()
    }

    fn read(source: &[u8], limits: &Limits) -> Result<(Vec<u8>, Summary)> {
        run(source, limits, &mut |_| true, |input| {
            let mut data = Vec::new();
            input.read_to_end(&mut data)?;
            Ok(data)
        })
    }

    #[test]
    fn every_compression_gives_the_same_bytes_and_diff_id() {
        let data: Vec<u8> = (0..600_000u32)
            .flat_map(|i| (i / 7).to_le_bytes())
            .collect();
        let diff_id: [u8; 32] = Sha256::digest(&data).into();
        let half = data.len() / 2;
        let members = [gzip(&data[..half]), gzip(&data[half..])].concat();
        let frames = [
            &[0x50, 0x2a, 0x4d, 0x18, 3, 0, 0, 0, 1, 2, 3][..],
            &zstd::encode_all(&data[..half], 1).unwrap(),
            &zstd::encode_all(&data[half..], 1).unwrap(),
        ]
        .concat();
        for (source, compression) in [
            (data.clone(), Compression::None),
            (members, Compression::Gzip),
            (frames, Compression::Zstd),
        ] {
            let (read, summary) = read(&source, &Limits::default()).unwrap();
            assert!(read == data);
            assert_eq!(summary.compression, compression);
            assert_eq!(summary.diff_id, diff_id);
            assert_eq!(summary.digest, <[u8; 32]>::from(Sha256::digest(&source)));
            assert_eq!(summary.compressed_size, source.len() as u64);
            assert_eq!(summary.uncompressed_size, data.len() as u64);
        }
    }

    #[test]
    fn damage_is_told_apart() {
        let good = gzip(&[7; 100_000]);
        let code = |source: &[u8]| read(source, &Limits::default()).unwrap_err().code();
        assert_eq!(code(&good[..good.len() - 5]), Some(Code::Truncated));
        assert_eq!(
            code(&[&good[..], b"trailing garbage"].concat()),
            Some(Code::Corrupt)
        );
        let mut flipped = good.clone();
        let last = flipped.len() - 6;
        flipped[last] ^= 1;
        assert_eq!(code(&flipped), Some(Code::Corrupt));
        let frame = zstd::encode_all(&[7; 100_000][..], 1).unwrap();
        assert_eq!(code(&frame[..frame.len() - 1]), Some(Code::Truncated));
        assert_eq!(code(b"\xfd7zXZ\0\0\0\0"), Some(Code::Unsupported));
    }

    fn refused(source: &[u8], limits: &Limits) -> Option<Code> {
        let drain = |input: &mut Uncompressed| Ok(io::copy(input, &mut io::sink())?);
        run(source, limits, &mut |_| true, drain).err()?.code()
    }

    #[test]
    fn o08_bombs_are_stopped() {
        let limits = Limits {
            ratio_floor: 1 << 16,
            ..Limits::default()
        };
        let bomb = gzip(&vec![0; 1 << 20]);
        assert_eq!(refused(&bomb, &limits), Some(Code::Ratio));
        let members = gzip(&vec![0; 1 << 18]).repeat(8);
        assert_eq!(refused(&members, &limits), Some(Code::Ratio));
        let limits = Limits {
            max_size: 1 << 18,
            ..Limits::default()
        };
        assert_eq!(refused(&bomb, &limits), Some(Code::TooLarge));
        // A frame header that asks for a 2 GiB window (descriptor: exponent 21, mantissa 0).
        let window = [0x28, 0xb5, 0x2f, 0xfd, 0x00, 21 << 3, 1, 0, 0];
        assert_eq!(refused(&window, &Limits::default()), Some(Code::Window));
    }

    #[test]
    fn the_observer_can_stop_a_stream_that_never_ends() {
        let mut calls = 0;
        let result = run(
            io::repeat(1),
            &Limits::default(),
            &mut |_| {
                calls += 1;
                calls < 3
            },
            |input| Ok(io::copy(input, &mut io::sink())?),
        );
        assert!(matches!(result, Err(Error::Cancelled)));
    }

    #[test]
    fn a_consumer_that_fails_is_heard() {
        let result = run(
            io::repeat(1),
            &Limits::default(),
            &mut |_| true,
            |_| -> Result<()> { Err(Error::new(Code::BadHeader, "no")) },
        );
        assert_eq!(result.unwrap_err().code(), Some(Code::BadHeader));
    }
}
