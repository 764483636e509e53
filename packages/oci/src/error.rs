//! The one error type of this crate.

use std::fmt;
use std::io;

pub type Result<T> = std::result::Result<T, Error>;

/// What is wrong with an input. Each is one word for programs; the message is for people.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Code {
    BadPath,
    BadLink,
    BadHeader,
    Truncated,
    Corrupt,
    Unsupported,
    Changed,
    TooManyEntries,
    TooLarge,
    Ratio,
    Window,
    PathTooLong,
    Xattrs,
    HeaderTooLarge,
    Metadata,
}

impl Code {
    /// The word for programs.
    pub fn as_str(self) -> &'static str {
        match self {
            Code::BadPath => "bad_path",
            Code::BadLink => "bad_link",
            Code::BadHeader => "bad_header",
            Code::Truncated => "truncated",
            Code::Corrupt => "corrupt",
            Code::Unsupported => "unsupported",
            Code::Changed => "changed",
            Code::TooManyEntries => "too_many_entries",
            Code::TooLarge => "too_large",
            Code::Ratio => "ratio",
            Code::Window => "window",
            Code::PathTooLong => "path_too_long",
            Code::Xattrs => "xattrs",
            Code::HeaderTooLarge => "header_too_large",
            Code::Metadata => "metadata",
        }
    }
}

/// Why a call failed.
#[derive(Debug)]
pub enum Error {
    /// The input is unusable.
    Layer(Box<LayerError>),
    /// The operating system refused something.
    Io(io::Error),
    /// The observer asked to stop.
    Cancelled,
}

/// An unusable input: what, where, and in words.
#[derive(Debug)]
pub struct LayerError {
    pub code: Code,
    pub entry: Option<String>,
    pub message: String,
}

impl Error {
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Error::Layer(Box::new(LayerError {
            code,
            entry: None,
            message: message.into(),
        }))
    }

    /// Name the entry to blame, unless one is named already.
    pub fn at(mut self, path: &[u8]) -> Self {
        if let Error::Layer(layer) = &mut self {
            if layer.entry.is_none() {
                layer.entry = Some(printable(path));
            }
        }
        self
    }

    /// The code, when the input is to blame.
    pub fn code(&self) -> Option<Code> {
        match self {
            Error::Layer(layer) => Some(layer.code),
            _ => None,
        }
    }
}

impl From<io::Error> for Error {
    fn from(error: io::Error) -> Self {
        Error::Io(error)
    }
}

impl From<rustix::io::Errno> for Error {
    fn from(errno: rustix::io::Errno) -> Self {
        Error::Io(errno.into())
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Layer(layer) => match &layer.entry {
                Some(entry) => write!(f, "{entry}: {}", layer.message),
                None => f.write_str(&layer.message),
            },
            Error::Io(error) => error.fmt(f),
            Error::Cancelled => f.write_str("cancelled"),
        }
    }
}

impl std::error::Error for Error {}

/// A path as one line of text: whatever could move a cursor or fail to decode becomes `\xNN`.
pub fn printable(path: &[u8]) -> String {
    const LONGEST: usize = 200;
    let mut text = String::new();
    for chunk in path[..path.len().min(LONGEST)].utf8_chunks() {
        for c in chunk.valid().chars() {
            if c.is_control() || c == '\\' || ('\u{200b}'..='\u{206f}').contains(&c) {
                let mut bytes = [0; 4];
                for b in c.encode_utf8(&mut bytes).bytes() {
                    text.push_str(&format!("\\x{b:02x}"));
                }
            } else {
                text.push(c);
            }
        }
        for b in chunk.invalid() {
            text.push_str(&format!("\\x{b:02x}"));
        }
    }
    if path.len() > LONGEST {
        text.push('…');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_shown_without_control_characters() {
        assert_eq!(printable(b"a/\x1b[31m\xff"), "a/\\x1b[31m\\xff");
        assert_eq!(printable("ü\u{202e}".as_bytes()), "ü\\xe2\\x80\\xae");
        assert!(printable(&[b'a'; 5000]).len() < 250);
    }
}
