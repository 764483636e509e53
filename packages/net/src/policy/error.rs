//! Why a policy cannot be what was written.

use std::fmt;

/// One line that names the text, what was seen in it, and what to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PolicyError {
    pub message: String,
    pub hint: String,
}

impl PolicyError {
    pub fn new(message: impl Into<String>, hint: impl Into<String>) -> PolicyError {
        PolicyError {
            message: message.into(),
            hint: hint.into(),
        }
    }
}

impl fmt::Display for PolicyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.message, self.hint)
    }
}

impl std::error::Error for PolicyError {}

/// `text` in quotes on one line, however long it is and whatever it holds.
pub fn quoted(text: &str) -> String {
    let mut shown: String = text.chars().take(80).flat_map(char::escape_debug).collect();
    if text.chars().nth(80).is_some() {
        shown.push_str("...");
    }
    format!("'{shown}'")
}
