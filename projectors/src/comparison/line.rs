//! One line of a view: its key and its content.

use std::{borrow::Cow, fmt};

use vidlog_schemas::hash::fnv1a;

/// Separates the name of a Redis key from the member, and the name of a table from the primary key.
const SEPARATOR: u8 = 0;

/// A line: a member of a Redis key with its score or value, or a row of a table with its columns.
pub type Line = (LineKey, String);

/// Identifies a line of a view: a member of a Redis key, or a row of a table.
///
/// The bytes order the lines of a key by member, and the rows of a table as its primary key does.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LineKey(Vec<u8>);

impl LineKey {
    /// A member of a set or sorted set, or a field of a hash. The key's name is that of the first generation.
    pub fn member(key: &str, member: impl AsRef<[u8]>) -> Self {
        let member = member.as_ref();
        let mut bytes = Vec::with_capacity(key.len() + member.len() + 2);
        bytes.push(b'k');
        bytes.extend_from_slice(key.as_bytes());
        bytes.push(SEPARATOR);
        bytes.extend_from_slice(member);
        Self(bytes)
    }

    /// A row of a table, by its primary key.
    pub fn row(table: &str, primary_key: &[i64]) -> Self {
        let mut bytes = Vec::with_capacity(table.len() + 8 * primary_key.len() + 2);
        bytes.push(b't');
        bytes.extend_from_slice(table.as_bytes());
        bytes.push(SEPARATOR);
        for part in primary_key {
            // With the sign flipped, the order of the bytes is the order of the numbers.
            bytes.extend_from_slice(&(part.cast_unsigned() ^ (1 << 63)).to_be_bytes());
        }
        Self(bytes)
    }

    pub(super) const fn from_bytes(bytes: Vec<u8>) -> Self {
        Self(bytes)
    }

    pub(super) fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// Returns the Redis key and the member; `None` for a row.
    pub fn redis(&self) -> Option<(Cow<'_, str>, &[u8])> {
        let (kind, rest) = self.0.split_first()?;
        let at = rest.iter().position(|byte| *byte == SEPARATOR)?;
        let (name, member) = rest.split_at(at);
        (*kind == b'k').then(|| (String::from_utf8_lossy(name), member.get(1..).unwrap_or_default()))
    }

    /// Returns whether two lines are members of one Redis key, or the same row.
    pub fn is_of_same_name(&self, other: &Self) -> bool {
        match (self.redis(), other.redis()) {
            (Some((own, _)), Some((other, _))) => own == other,
            _ => self == other,
        }
    }
}

/// The Redis key without the member, or `table/1/2`.
impl fmt::Display for LineKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some((name, _)) = self.redis() {
            return f.write_str(&name);
        }
        let rest = self.0.get(1..).unwrap_or_default();
        let at = rest.iter().position(|byte| *byte == SEPARATOR).unwrap_or(rest.len());
        let (table, parts) = rest.split_at(at);
        f.write_str(&String::from_utf8_lossy(table))?;
        for part in parts.get(1..).unwrap_or_default().as_chunks().0 {
            write!(f, "/{}", (u64::from_be_bytes(*part) ^ (1 << 63)).cast_signed())?;
        }
        Ok(())
    }
}

/// Returns the digest that replaces user-written text in a line: its length in bytes and its 64-bit FNV-1a
/// hash.
pub fn digest(text: &str) -> String {
    format!("#{}:{:016x}", text.len(), fnv1a(text.as_bytes()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn rows_are_ordered_by_primary_key(a in any::<[i64; 2]>(), b in any::<[i64; 2]>()) {
            prop_assert_eq!(LineKey::row("likes", &a).cmp(&LineKey::row("likes", &b)), a.cmp(&b));
            prop_assert_eq!(LineKey::row("likes", &a).to_string(), format!("likes/{}/{}", a[0], a[1]));
        }
    }

    #[test]
    fn members_of_a_key_are_adjacent() {
        let of_longer = LineKey::member("n:{s01}:likers:10", "1");
        let (first, last) =
            (LineKey::member("n:{s01}:likers:1", "1"), LineKey::member("n:{s01}:likers:1", "9"));
        assert!(first < last && last < of_longer);
        assert!(first.is_of_same_name(&last) && !last.is_of_same_name(&of_longer));
        assert_eq!(last.redis(), Some(("n:{s01}:likers:1".into(), b"9".as_slice())));
        assert_eq!(last.to_string(), "n:{s01}:likers:1");
        assert_eq!(LineKey::row("likes", &[1]).redis(), None);
    }
}
