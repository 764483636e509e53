//! The body of an HTTP/1 message: where it ends, and nothing else of it.

use super::http::Body;

#[derive(Debug)]
pub enum BodyReader {
    /// That many bytes are still to come.
    Length(u64),
    /// The line with a chunk's length, as far as it came.
    ChunkLength(Vec<u8>),
    /// That many bytes of a chunk, its CRLF not included.
    Chunk(u64),
    /// That many bytes of the CRLF after a chunk were seen.
    ChunkEnd(u8),
    /// A line after the last chunk: its bytes so far.
    Trailer(Vec<u8>),
}

/// What one piece of a body led to.
enum Next {
    Same,
    State(BodyReader),
    End,
}

impl BodyReader {
    /// None: there is no body.
    pub fn new(body: Body) -> Option<BodyReader> {
        match body {
            Body::None | Body::Length(0) => None,
            Body::Length(length) => Some(BodyReader::Length(length)),
            Body::Chunked => Some(BodyReader::ChunkLength(Vec::new())),
        }
    }

    /// How many bytes were read, at least one, and whether the body ends with them; or why its end is open to
    /// opinion.
    pub fn feed(&mut self, bytes: &[u8]) -> (usize, Result<bool, &'static str>) {
        let Some(first) = bytes.first() else {
            return (0, Ok(false));
        };
        let free = usize::try_from(self.free()).unwrap_or(usize::MAX);
        if free > 0 {
            let taken = free.min(bytes.len());
            return (taken, Ok(self.skip(taken as u64)));
        }
        let ended = self.step(*first).map(|next| match next {
            Next::Same => false,
            Next::State(state) => {
                *self = state;
                false
            }
            Next::End => true,
        });
        (1, ended)
    }

    /// How many of the next bytes are of the body itself.
    pub fn free(&self) -> u64 {
        match self {
            BodyReader::Length(left) | BodyReader::Chunk(left) => *left,
            _ => 0,
        }
    }

    /// So many of them went by. True if the body ends with them.
    pub fn skip(&mut self, count: u64) -> bool {
        match self {
            BodyReader::Length(left) => {
                *left = left.saturating_sub(count);
                *left == 0
            }
            BodyReader::Chunk(left) => {
                *left = left.saturating_sub(count);
                if *left == 0 {
                    *self = BodyReader::ChunkEnd(0);
                }
                false
            }
            _ => false,
        }
    }

    fn step(&mut self, byte: u8) -> Result<Next, &'static str> {
        match self {
            BodyReader::Length(_) | BodyReader::Chunk(_) => Ok(Next::Same),
            BodyReader::ChunkEnd(seen) => match (*seen, byte) {
                (0, b'\r') => Ok(Next::State(BodyReader::ChunkEnd(1))),
                (1, b'\n') => Ok(Next::State(BodyReader::ChunkLength(Vec::new()))),
                _ => Err("a chunk without its end"),
            },
            BodyReader::ChunkLength(line) => {
                line.push(byte);
                match line.as_slice() {
                    [digits @ .., b'\r', b'\n'] => chunk(digits).map(Next::State),
                    // 16 digits; chunk extensions, which nobody uses, are not read.
                    line if line.len() > 18 => Err("a chunk's length too long"),
                    _ => Ok(Next::Same),
                }
            }
            BodyReader::Trailer(line) => {
                line.push(byte);
                match line.as_slice() {
                    [b'\r', b'\n'] => Ok(Next::End),
                    // Trailers could restate what was decided; hardly any client sends them.
                    [b'\r'] => Ok(Next::Same),
                    _ => Err("fields after the last chunk"),
                }
            }
        }
    }
}

fn chunk(digits: &[u8]) -> Result<BodyReader, &'static str> {
    let hexadecimal = (1..=16).contains(&digits.len()) && digits.iter().all(u8::is_ascii_hexdigit);
    let text = std::str::from_utf8(digits).ok().filter(|_| hexadecimal);
    match text.and_then(|text| u64::from_str_radix(text, 16).ok()) {
        Some(0) => Ok(BodyReader::Trailer(Vec::new())),
        Some(length) => Ok(BodyReader::Chunk(length)),
        None => Err("a chunk's length that is no number"),
    }
}
