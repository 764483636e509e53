//! The restricted MessagePack of control payloads: a strict decoder and an encoder.
//!
//! Written here rather than taken from a crate because nearly everything a general decoder does
//! is forbidden: floats, extensions, non-string keys, depth, and trailing bytes.

use std::collections::HashSet;

use super::error::{Code, ProtocolError};

/// Levels of nesting; the top map is level 1.
pub const DEPTH_MAX: usize = 8;
/// Objects in one payload: every map, array, key and scalar, the top map included.
pub const OBJECTS_MAX: usize = 65_536;

/// One value of a control payload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Value {
    Nil,
    Bool(bool),
    /// -2^63 .. 2^64-1; the wider type spares every reader a second variant.
    Int(i128),
    Str(String),
    Bin(Vec<u8>),
    Array(Vec<Value>),
    Map(Map),
}

/// A map in the order of the wire; keys occur once.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Map(Vec<(String, Value)>);

impl Map {
    pub fn new() -> Map {
        Map::default()
    }

    /// Adds an entry; the caller does not use a key twice.
    pub fn with(mut self, key: &str, value: impl Into<Value>) -> Map {
        self.0.push((key.to_owned(), value.into()));
        self
    }

    pub fn get(&self, key: &str) -> Option<&Value> {
        self.0.iter().find(|(k, _)| k == key).map(|(_, v)| v)
    }

    pub fn iter(&self) -> impl Iterator<Item = (&str, &Value)> {
        self.0.iter().map(|(k, v)| (k.as_str(), v))
    }
}

impl From<bool> for Value {
    fn from(value: bool) -> Value {
        Value::Bool(value)
    }
}

impl From<u64> for Value {
    fn from(value: u64) -> Value {
        Value::Int(value.into())
    }
}

impl From<i64> for Value {
    fn from(value: i64) -> Value {
        Value::Int(value.into())
    }
}

impl From<&str> for Value {
    fn from(value: &str) -> Value {
        Value::Str(value.to_owned())
    }
}

impl From<Map> for Value {
    fn from(value: Map) -> Value {
        Value::Map(value)
    }
}

/// Reads one payload: a map and nothing after it.
pub fn decode(bytes: &[u8]) -> Result<Map, ProtocolError> {
    let mut reader = Reader { bytes, objects: 0 };
    let value = reader.value(1)?;
    if !reader.bytes.is_empty() {
        return Err(refuse("bytes after the map"));
    }
    match value {
        Value::Map(map) => Ok(map),
        _ => Err(refuse("not a map")),
    }
}

fn refuse(message: &str) -> ProtocolError {
    ProtocolError::new(Code::Payload, message)
}

struct Reader<'a> {
    bytes: &'a [u8],
    objects: usize,
}

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8], ProtocolError> {
        if count > self.bytes.len() {
            return Err(refuse("truncated"));
        }
        let (head, tail) = self.bytes.split_at(count);
        self.bytes = tail;
        Ok(head)
    }

    /// A big-endian unsigned integer of `width` bytes, at most 8.
    fn uint(&mut self, width: usize) -> Result<u64, ProtocolError> {
        Ok(self
            .take(width)?
            .iter()
            .fold(0, |sum, byte| (sum << 8) | u64::from(*byte)))
    }

    fn length(&mut self, width: usize) -> Result<usize, ProtocolError> {
        usize::try_from(self.uint(width)?).map_err(|_| refuse("truncated"))
    }

    fn text(&mut self, length: usize) -> Result<String, ProtocolError> {
        let bytes = self.take(length)?;
        match std::str::from_utf8(bytes) {
            Ok(text) => Ok(text.to_owned()),
            Err(_) => Err(refuse("invalid UTF-8")),
        }
    }

    fn key(&mut self) -> Result<String, ProtocolError> {
        self.count()?;
        let length = match self.uint(1)? as u8 {
            tag @ 0xa0..=0xbf => usize::from(tag & 0x1f),
            0xd9 => self.length(1)?,
            0xda => self.length(2)?,
            0xdb => self.length(4)?,
            _ => return Err(refuse("a key is not a string")),
        };
        self.text(length)
    }

    fn count(&mut self) -> Result<(), ProtocolError> {
        self.objects += 1;
        if self.objects > OBJECTS_MAX {
            return Err(refuse("too many values"));
        }
        Ok(())
    }

    fn value(&mut self, level: usize) -> Result<Value, ProtocolError> {
        self.count()?;
        let tag = self.uint(1)? as u8;
        Ok(match tag {
            0x00..=0x7f => Value::Int(tag.into()),
            0x80..=0x8f => self.map(usize::from(tag & 0x0f), level)?,
            0x90..=0x9f => self.array(usize::from(tag & 0x0f), level)?,
            0xa0..=0xbf => Value::Str(self.text(usize::from(tag & 0x1f))?),
            0xc0 => Value::Nil,
            0xc2 => Value::Bool(false),
            0xc3 => Value::Bool(true),
            0xc4..=0xc6 => {
                let length = self.length(1 << (tag - 0xc4))?;
                Value::Bin(self.take(length)?.to_vec())
            }
            0xcc..=0xcf => Value::Int(self.uint(1 << (tag - 0xcc))?.into()),
            0xd0 => Value::Int((self.uint(1)? as i8).into()),
            0xd1 => Value::Int((self.uint(2)? as i16).into()),
            0xd2 => Value::Int((self.uint(4)? as i32).into()),
            0xd3 => Value::Int((self.uint(8)? as i64).into()),
            0xd9..=0xdb => {
                let length = self.length(1 << (tag - 0xd9))?;
                Value::Str(self.text(length)?)
            }
            0xdc | 0xdd => {
                let count = self.length(2 << (tag - 0xdc))?;
                self.array(count, level)?
            }
            0xde | 0xdf => {
                let count = self.length(2 << (tag - 0xde))?;
                self.map(count, level)?
            }
            0xe0..=0xff => Value::Int((tag as i8).into()),
            0xc1 | 0xc7..=0xcb | 0xd4..=0xd8 => {
                return Err(refuse("a type that is not allowed"));
            }
        })
    }

    /// Refuses what cannot fit before anything is allocated for it: the count is the peer's word.
    /// An item is at least one byte and one object, an entry of a map two of each.
    fn container(&self, count: usize, each: usize, level: usize) -> Result<(), ProtocolError> {
        if level > DEPTH_MAX {
            return Err(refuse("nested too deeply"));
        }
        let least = count.saturating_mul(each);
        if least > OBJECTS_MAX - self.objects {
            return Err(refuse("too many values"));
        }
        if least > self.bytes.len() {
            return Err(refuse("truncated"));
        }
        Ok(())
    }

    fn array(&mut self, count: usize, level: usize) -> Result<Value, ProtocolError> {
        self.container(count, 1, level)?;
        let mut items = Vec::with_capacity(count);
        for _ in 0..count {
            items.push(self.value(level + 1)?);
        }
        Ok(Value::Array(items))
    }

    fn map(&mut self, count: usize, level: usize) -> Result<Value, ProtocolError> {
        self.container(count, 2, level)?;
        let mut entries = Vec::with_capacity(count);
        for _ in 0..count {
            entries.push((self.key()?, self.value(level + 1)?));
        }
        let mut seen = HashSet::with_capacity(count);
        if !entries.iter().all(|(key, _)| seen.insert(key.as_str())) {
            return Err(refuse("a key occurs twice"));
        }
        Ok(Value::Map(Map(entries)))
    }
}

/// The bytes of one payload, each value in its shortest form.
pub fn encode(map: &Map) -> Vec<u8> {
    let mut out = Vec::new();
    put_map(map, &mut out);
    out
}

fn put_map(map: &Map, out: &mut Vec<u8>) {
    put_length(map.0.len(), [0x80, 15], [0, 0xde, 0xdf], out);
    for (key, value) in &map.0 {
        put_text(key, out);
        put(value, out);
    }
}

fn put(value: &Value, out: &mut Vec<u8>) {
    match value {
        Value::Nil => out.push(0xc0),
        Value::Bool(value) => out.push(0xc2 + u8::from(*value)),
        Value::Int(value) => put_int(*value, out),
        Value::Str(text) => put_text(text, out),
        Value::Bin(bytes) => {
            put_length(bytes.len(), [0, 0], [0xc4, 0xc5, 0xc6], out);
            out.extend_from_slice(bytes);
        }
        Value::Array(items) => {
            put_length(items.len(), [0x90, 15], [0, 0xdc, 0xdd], out);
            items.iter().for_each(|item| put(item, out));
        }
        Value::Map(map) => put_map(map, out),
    }
}

fn put_text(text: &str, out: &mut Vec<u8>) {
    put_length(text.len(), [0xa0, 31], [0xd9, 0xda, 0xdb], out);
    out.extend_from_slice(text.as_bytes());
}

/// `fixed` is the tag and the largest length of the form with the length inside the tag (none for
/// bin); `tags` are those with one, two and four bytes of length, 0 where there is no such form.
fn put_length(length: usize, fixed: [u8; 2], tags: [u8; 3], out: &mut Vec<u8>) {
    if fixed[0] != 0 && length <= usize::from(fixed[1]) {
        out.push(fixed[0] | length as u8);
    } else if tags[0] != 0 && length <= 0xff {
        out.extend_from_slice(&[tags[0], length as u8]);
    } else if length <= 0xffff {
        out.push(tags[1]);
        out.extend_from_slice(&(length as u16).to_be_bytes());
    } else {
        out.push(tags[2]);
        out.extend_from_slice(&(length as u32).to_be_bytes());
    }
}

fn put_int(value: i128, out: &mut Vec<u8>) {
    // Values outside -2^63 .. 2^64-1 cannot come from `decode` and are never built.
    match value {
        0..=0x7f => out.push(value as u8),
        0x80..=0xff => out.extend_from_slice(&[0xcc, value as u8]),
        0x100..=0xffff => {
            out.push(0xcd);
            out.extend_from_slice(&(value as u16).to_be_bytes());
        }
        0x1_0000..=0xffff_ffff => {
            out.push(0xce);
            out.extend_from_slice(&(value as u32).to_be_bytes());
        }
        0x1_0000_0000.. => {
            out.push(0xcf);
            out.extend_from_slice(&(value as u64).to_be_bytes());
        }
        -0x20..=-1 => out.push(value as i8 as u8),
        -0x80..=-0x21 => out.extend_from_slice(&[0xd0, value as i8 as u8]),
        -0x8000..=-0x81 => {
            out.push(0xd1);
            out.extend_from_slice(&(value as i16).to_be_bytes());
        }
        -0x8000_0000..=-0x8001 => {
            out.push(0xd2);
            out.extend_from_slice(&(value as i32).to_be_bytes());
        }
        _ => {
            out.push(0xd3);
            out.extend_from_slice(&(value as i64).to_be_bytes());
        }
    }
}
