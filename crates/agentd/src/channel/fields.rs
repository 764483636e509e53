//! Typed reading of requests: a missing or wrongly typed key is an error of the stream.

use super::msgpack::{Map, Value};

/// What is wrong with a request; becomes the message of an `invalid_request`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Invalid(pub String);

impl Invalid {
    pub fn new(what: impl Into<String>) -> Invalid {
        Invalid(what.into())
    }
}

/// A value that can be read from a payload.
pub trait Field<'a>: Sized {
    /// The word for the expected type in error messages.
    const EXPECTED: &'static str;
    fn read(value: &'a Value) -> Option<Self>;
}

impl<'a> Field<'a> for bool {
    const EXPECTED: &'static str = "a boolean";
    fn read(value: &'a Value) -> Option<bool> {
        match value {
            Value::Bool(flag) => Some(*flag),
            _ => None,
        }
    }
}

impl<'a> Field<'a> for u64 {
    const EXPECTED: &'static str = "an unsigned integer";
    fn read(value: &'a Value) -> Option<u64> {
        match value {
            Value::Int(number) => u64::try_from(*number).ok(),
            _ => None,
        }
    }
}

impl<'a> Field<'a> for &'a str {
    const EXPECTED: &'static str = "a string";
    fn read(value: &'a Value) -> Option<&'a str> {
        match value {
            Value::Str(text) => Some(text),
            _ => None,
        }
    }
}

impl<'a> Field<'a> for &'a [u8] {
    const EXPECTED: &'static str = "bytes";
    fn read(value: &'a Value) -> Option<&'a [u8]> {
        match value {
            Value::Bin(bytes) => Some(bytes),
            _ => None,
        }
    }
}

impl<'a> Field<'a> for &'a [Value] {
    const EXPECTED: &'static str = "an array";
    fn read(value: &'a Value) -> Option<&'a [Value]> {
        match value {
            Value::Array(items) => Some(items),
            _ => None,
        }
    }
}

impl<'a> Field<'a> for &'a Map {
    const EXPECTED: &'static str = "a map";
    fn read(value: &'a Value) -> Option<&'a Map> {
        match value {
            Value::Map(map) => Some(map),
            _ => None,
        }
    }
}

/// nil is `None`.
impl<'a, T: Field<'a>> Field<'a> for Option<T> {
    const EXPECTED: &'static str = T::EXPECTED;
    fn read(value: &'a Value) -> Option<Option<T>> {
        match value {
            Value::Nil => Some(None),
            other => T::read(other).map(Some),
        }
    }
}

/// Every item of one type.
impl<'a, T: Field<'a>> Field<'a> for Vec<T> {
    const EXPECTED: &'static str = "an array of equal items";
    fn read(value: &'a Value) -> Option<Vec<T>> {
        <&[Value]>::read(value)?.iter().map(T::read).collect()
    }
}

impl Map {
    /// The value of `key`, which must be there and of type `T`.
    pub fn field<'a, T: Field<'a>>(&'a self, key: &str) -> Result<T, Invalid> {
        let Some(value) = self.get(key) else {
            return Err(Invalid(format!("`{key}` is missing")));
        };
        T::read(value).ok_or_else(|| Invalid(format!("`{key}` is not {}", T::EXPECTED)))
    }
}
