//! Parked keys: a record of the key could not be folded, so it and all later ones wait in the dead letters.

use std::{collections::BTreeMap, fmt, str::FromStr};

use crate::log::RecordKey;

/// Maximum length of a stored message, in characters.
const MESSAGE_LENGTH: usize = 200;

/// Why a record is among the dead letters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Class {
    /// It cannot be decoded.
    Undecodable,
    /// The store rejects its content.
    Unfoldable,
    /// It waits behind an earlier record of its key.
    Behind,
    /// An operator discarded it.
    Discarded,
}

impl Class {
    const ALL: [Self; 4] = [Self::Undecodable, Self::Unfoldable, Self::Behind, Self::Discarded];

    /// The name in headers, stores and metrics.
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
        found.ok_or_else(|| format!("unknown dead-letter class {name:?}"))
    }
}

/// Why a record could not be folded.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Failure {
    /// The class.
    pub class: Class,
    /// The message, without the record's values.
    pub message: String,
}

impl Failure {
    /// Creates a failure. Truncates the message to 200 characters and replaces control characters.
    pub fn new(class: Class, message: &str) -> Self {
        let printable = |character: char| if character.is_control() { ' ' } else { character };
        Self { class, message: message.chars().take(MESSAGE_LENGTH).map(printable).collect() }
    }
}

/// A parked key.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ParkedKey {
    /// The offset of the record that could not be folded. It and every later one of the key wait.
    pub first: i64,
    /// The offset of the last waiting record.
    pub last: i64,
    /// The number of waiting records.
    pub waiting: i64,
    /// The failure of the first record.
    pub failure: Failure,
}

impl ParkedKey {
    /// Encodes the value in Redis.
    pub(super) fn encode(&self) -> String {
        let Self { first, last, waiting, failure: Failure { class, message } } = self;
        format!("{first}:{last}:{waiting}:{class}:{message}")
    }

    /// Decodes the value in Redis.
    pub(super) fn decode(stored: &str) -> Option<Self> {
        let mut parts = stored.splitn(5, ':');
        let mut number = || parts.next()?.parse::<i64>().ok();
        let (first, last, waiting) = (number()?, number()?, number()?);
        let class = parts.next()?.parse().ok()?;
        Some(Self { first, last, waiting, failure: Failure::new(class, parts.next()?) })
    }
}

/// The parked keys of a partition.
pub type Parked = BTreeMap<RecordKey, ParkedKey>;

/// A change that a batch makes to a parked key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// Parks the key.
    Park(ParkedKey),
    /// Adds waiting records to a key that is parked.
    Extend {
        /// The offset of the last one.
        last: i64,
        /// The number of added records.
        more: i64,
    },
}

/// The changes that a batch makes to a partition's parked keys.
pub type Changes = BTreeMap<RecordKey, Change>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_redis_holds_of_a_parked_key_is_read_back() {
        let failure = Failure::new(Class::Undecodable, "the payload: it is not one");
        let parked = ParkedKey { first: 7, last: 9, waiting: 2, failure };
        assert_eq!(ParkedKey::decode(&parked.encode()), Some(parked));
    }
}
