//! Record keys as text, for MySQL columns and Redis fields.

use std::fmt;

use vidlog_schemas::hash::fnv1a;

/// Maximum length of the text, in bytes. A digest replaces a longer one.
const KEY_LENGTH: usize = 100;

/// A record's key as text, which fits a MySQL column and a Redis field. Different keys have different texts, except
/// that digests of long keys may collide; such keys are parked together, which is harmless.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RecordKey(String);

impl RecordKey {
    /// Converts the key of a record. All records without a key share one.
    pub fn of(key: Option<&[u8]>) -> Self {
        let Some(key) = key else {
            return Self("%none".to_owned());
        };
        if key.is_empty() {
            return Self("%empty".to_owned());
        }
        let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.:".contains(&byte);
        let escape = |byte: &u8| {
            if is_plain(*byte) { char::from(*byte).to_string() } else { format!("%{byte:02x}") }
        };
        let mut text: String = key.iter().map(escape).collect();
        if text.len() > KEY_LENGTH {
            text = format!("%long{:016x}", fnv1a(key));
        }
        Self(text)
    }

    /// Creates a key from its displayed or stored text.
    pub fn from_text(text: &str) -> Self {
        Self(text.to_owned())
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for RecordKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn different_keys_are_different_texts_that_fit() {
        let keys: [Option<&[u8]>; 7] =
            [None, Some(b""), Some(b"%none"), Some(b"1"), Some(b"1 2"), Some(b"1%202"), Some(&[255; 4000])];
        let mut texts: Vec<_> = keys.into_iter().map(RecordKey::of).collect();
        assert_eq!(texts[3].as_str(), "1");
        assert!(texts.iter().all(|text| !text.as_str().is_empty() && text.as_str().len() <= KEY_LENGTH));
        texts.sort();
        texts.dedup();
        assert_eq!(texts.len(), keys.len());
    }
}
