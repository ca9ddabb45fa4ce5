//! Parked keys: those of which a record could not be folded, so that their records wait in the dead letters.

use std::{collections::BTreeMap, fmt, str::FromStr};

use crate::log::RecordKey;

/// Characters of a message that are kept.
const MESSAGE_LENGTH: usize = 200;

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
    pub(super) fn encode(&self) -> String {
        let Self { first, last, waiting, failure: Failure { class, message } } = self;
        format!("{first}:{last}:{waiting}:{class}:{message}")
    }

    /// From what Redis holds.
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
    fn what_redis_holds_of_a_parked_key_is_read_back() {
        let failure = Failure::new(Class::Undecodable, "the payload: it is not one");
        let parked = ParkedKey { first: 7, last: 9, waiting: 2, failure };
        assert_eq!(ParkedKey::decode(&parked.encode()), Some(parked));
    }
}
