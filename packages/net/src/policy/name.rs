//! A DNS name in the one form in which names are compared.

use std::fmt;

/// Lower case, no final dot, 1 to 253 bytes, labels of 1 to 63 letters, digits, `-` and `_`.
///
/// `_` is no host name character, but DNS has it in service names and clients do ask for them;
/// rules are held to LDH labels when they are parsed.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Name(Box<str>);

impl Name {
    /// None if `text` is no name: an address in any spelling that some resolver takes for one
    /// (decimal, octal, hexadecimal, shortened), a character outside of the alphabet, too long.
    pub fn parse(text: &str) -> Option<Name> {
        let text = text.strip_suffix('.').unwrap_or(text);
        if text.is_empty() || text.len() > 253 {
            return None;
        }
        if !text.split('.').all(is_label) || is_number(text) {
            return None;
        }
        Some(Name(text.to_ascii_lowercase().into_boxed_str()))
    }

    /// The same from bytes of the wire.
    pub fn from_bytes(bytes: &[u8]) -> Option<Name> {
        Name::parse(std::str::from_utf8(bytes).ok()?)
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether the name lies below `apex`, at any depth, `apex` itself not included.
    pub fn is_below(&self, apex: &Name) -> bool {
        self.0
            .strip_suffix(apex.as_str())
            .is_some_and(|rest| rest.ends_with('.'))
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

fn is_label(label: &str) -> bool {
    (1..=63).contains(&label.len())
        && !label.starts_with('-')
        && !label.ends_with('-')
        && label
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_')
}

/// Whether the last label is a number, which makes the whole an address to `inet_aton` and to
/// browsers (the WHATWG URL Standard, "ends in a number"). No top-level domain is one.
pub fn is_number(text: &str) -> bool {
    let text = text.strip_suffix('.').unwrap_or(text);
    let last = text.rsplit('.').next().unwrap_or_default();
    let hexadecimal = last
        .strip_prefix("0x")
        .or_else(|| last.strip_prefix("0X"))
        .is_some_and(|digits| digits.bytes().all(|byte| byte.is_ascii_hexdigit()));
    hexadecimal || (!last.is_empty() && last.bytes().all(|byte| byte.is_ascii_digit()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn one_form() {
        for text in ["Example.COM", "example.com.", "example.com"] {
            assert_eq!(Name::parse(text).expect(text).as_str(), "example.com");
        }
        for text in [
            "localhost",
            "_acme.example.com",
            "xn--bcher-kva.example",
            "3com.com",
        ] {
            assert!(Name::parse(text).is_some(), "{text}");
        }
    }

    #[test]
    fn n11_an_address_in_any_spelling_is_no_name() {
        for text in [
            "169.254.169.254",
            "2852039166",
            "0xa9fea9fe",
            "0XA9.0xfe.0xa9.0xfe",
            "0251.0376.0251.0376",
            "169.254.43518",
            "127.1",
            "1",
            "0x",
            "a.0x1",
            "::1",
            "[::1]",
            "fe80::1%eth0",
        ] {
            assert_eq!(Name::parse(text), None, "{text}");
            assert_eq!(Name::parse(&format!("{text}.")), None, "{text}.");
        }
    }

    #[test]
    fn what_is_no_name() {
        let long = format!("{}.com", "a".repeat(64));
        let whole = format!("{}com", "a.".repeat(126));
        for text in [
            "",
            ".",
            "..",
            ".com",
            "a..b",
            "a.com..",
            "-a.com",
            "a-.com",
            "a b.com",
            "a\0.com",
            "b\u{fc}cher.example",
            "*.com",
            "a/b",
            "a:1",
            "a@b",
            "a%2e.com",
            &long,
            &whole,
        ] {
            assert_eq!(Name::parse(text), None, "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn a_name_is_its_own_form(text in "\\PC{0,80}|[a-z0-9_.-]{0,80}") {
            if let Some(name) = Name::parse(&text) {
                prop_assert_eq!(Name::parse(name.as_str()), Some(name.clone()));
                prop_assert!(name.as_str().parse::<std::net::IpAddr>().is_err());
                prop_assert_eq!(name.as_str(), text.trim_end_matches('.').to_ascii_lowercase());
            }
        }
    }
}
