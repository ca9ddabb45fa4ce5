//! Parked keys: those of which a record could not be folded, so that their records wait in the dead letters.

use std::{collections::BTreeMap, fmt, str::FromStr};

/// Bytes of a key that are kept as they are; what is longer is told apart by a digest.
const KEY_LENGTH: usize = 100;
/// Characters of a message that are kept.
const MESSAGE_LENGTH: usize = 200;

/// A record's key as text: it fits into a column and a field, and different keys are different texts. (Keys longer than
/// 100 bytes may share one, which only makes them wait for each other.)
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RecordKey(String);

impl RecordKey {
    /// The key of a record; one without a key waits with the others that have none.
    pub fn of(key: Option<&[u8]>) -> Self {
        let Some(key) = key else {
            return Self("%none".to_owned());
        };
        if key.is_empty() {
            return Self("%empty".to_owned());
        }
        let kept = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.:".contains(&byte);
        let shown = |byte: &u8| {
            if kept(*byte) { char::from(*byte).to_string() } else { format!("%{byte:02x}") }
        };
        let mut text: String = key.iter().map(shown).collect();
        if text.len() > KEY_LENGTH {
            // FNV-1a, 64 bits.
            let digest = key.iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
                (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
            });
            text = format!("%long{digest:016x}");
        }
        Self(text)
    }

    /// A key as it was shown, or stored.
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

/// Why a record is among the dead letters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Class {
    /// It can't be decoded.
    Undecodable,
    /// The store can't take what it says.
    Unfoldable,
    /// It waits behind an earlier record of its key.
    Behind,
    /// An operator decided that it is to be passed over.
    Discarded,
}

impl Class {
    const ALL: [Self; 4] = [Self::Undecodable, Self::Unfoldable, Self::Behind, Self::Discarded];

    /// Its name, in headers, stores and metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Undecodable => "undecodable",
            Self::Unfoldable => "unfoldable",
            Self::Behind => "behind",
            Self::Discarded => "discarded",
        }
    }
}

impl fmt::Display for Class {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Class {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let found = Self::ALL.into_iter().find(|class| class.name() == name);
        found.ok_or_else(|| format!("there is no class {name:?} of dead letters"))
    }
}

/// Why a record could not be folded.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Failure {
    /// The kind of it.
    pub class: Class,
    /// In words, without the record's values.
    pub message: String,
}

impl Failure {
    /// A failure; the message is cut to what a store keeps.
    pub fn new(class: Class, message: &str) -> Self {
        let printable = |character: char| if character.is_control() { ' ' } else { character };
        Self { class, message: message.chars().take(MESSAGE_LENGTH).map(printable).collect() }
    }
}

/// A parked key.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ParkedKey {
    /// The record that could not be folded. It and every later one of the key wait.
    pub first: i64,
    /// The last one that waits.
    pub last: i64,
    /// How many wait.
    pub waiting: i64,
    /// What was wrong with the first.
    pub failure: Failure,
}

impl ParkedKey {
    /// As Redis holds it.
    pub(super) fn stored(&self) -> String {
        let Self { first, last, waiting, failure: Failure { class, message } } = self;
        format!("{first}:{last}:{waiting}:{class}:{message}")
    }

    /// From what Redis holds.
    pub(super) fn read(stored: &str) -> Option<Self> {
        let mut parts = stored.splitn(5, ':');
        let mut number = || parts.next()?.parse::<i64>().ok();
        let (first, last, waiting) = (number()?, number()?, number()?);
        let class = parts.next()?.parse().ok()?;
        Some(Self { first, last, waiting, failure: Failure::new(class, parts.next()?) })
    }
}

/// The parked keys of a partition.
pub type Parked = BTreeMap<RecordKey, ParkedKey>;

/// What a batch changes of a parked key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// The key is parked from now on.
    Park(ParkedKey),
    /// More records wait behind a key that is parked.
    Extend {
        /// The last of them.
        last: i64,
        /// How many they are.
        more: i64,
    },
}

/// What a batch changes of a partition's parked keys.
pub type Changes = BTreeMap<RecordKey, Change>;

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

    #[test]
    fn what_redis_holds_of_a_parked_key_is_read_back() {
        let failure = Failure::new(Class::Undecodable, "the payload: it is not one");
        let parked = ParkedKey { first: 7, last: 9, waiting: 2, failure };
        assert_eq!(ParkedKey::read(&parked.stored()), Some(parked));
    }
}
