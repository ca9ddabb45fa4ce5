//! The writes that a Redis projection can make. Each is harmless to repeat, and `apply.lua` knows how it is done.

use std::collections::{BTreeMap, BTreeSet};

use vidlog_schemas::keys::Key;

/// The writes of a batch, in the order of its records.
#[derive(Debug, Default, PartialEq)]
pub struct RedisWrites {
    offset: i64,
    writes: Vec<Write>,
    /// By hash and field: one part a video is enough for a batch, as it is the count after the whole batch.
    parts: BTreeMap<(Key, String), (i64, Key)>,
}

/// One write to one shard.
#[derive(Debug, PartialEq)]
pub(crate) struct Write {
    pub(crate) offset: i64,
    pub(crate) key: Key,
    /// A second key, on the same shard; its index becomes the last argument.
    pub(crate) other: Option<Key>,
    pub(crate) action: &'static str,
    pub(crate) arguments: Vec<String>,
}

/// A part of a total: the size of a set on one shard, to be kept in a hash on another.
#[derive(Debug, PartialEq)]
pub(crate) struct Part {
    offset: i64,
    hash: Key,
    field: String,
    pub(crate) source: Key,
}

impl RedisWrites {
    /// Creates a hash, unless it is there.
    pub fn create_hash(&mut self, key: Key, fields: &[(&str, String)]) {
        self.push(key, "create_hash", flatten(fields));
    }

    /// Sets fields of a hash while one of its fields has a value.
    pub fn update_hash_while(&mut self, key: Key, condition: (&str, String), fields: &[(&str, String)]) {
        let mut arguments = flatten(&[condition]);
        arguments.extend(flatten(fields));
        self.push(key, "update_hash_while", arguments);
    }

    /// Adds a member to a ZSET, unless it is there.
    pub fn add_scored(&mut self, key: Key, member: i64, score: i64) {
        self.push(key, "add_scored", vec![score.to_string(), member.to_string()]);
    }

    /// Removes a member from a ZSET.
    pub fn remove_scored(&mut self, key: Key, member: i64) {
        self.push(key, "remove_scored", vec![member.to_string()]);
    }

    /// Adds a member to a SET.
    pub fn add_member(&mut self, key: Key, member: i64) {
        self.push(key, "add_member", vec![member.to_string()]);
    }

    /// Removes a member from a SET.
    pub fn remove_member(&mut self, key: Key, member: i64) {
        self.push(key, "remove_member", vec![member.to_string()]);
    }

    /// Adds a member to a SET, unless another SET on the same shard has it.
    pub fn add_member_unless_in(&mut self, key: Key, member: i64, other: Key) {
        self.push(key, "add_member_unless_in", vec![member.to_string()]);
        if let Some(write) = self.writes.last_mut() {
            write.other = Some(other);
        }
    }

    /// Keeps the size of a SET as one part of a total: in a hash, on whatever shard, under the field of an entity.
    /// The hash's field `total` is the sum of its parts.
    pub fn set_part(&mut self, hash: Key, entity: i64, source: Key) {
        self.parts.insert((hash, entity.to_string()), (self.offset, source));
    }

    /// The keys that are written to.
    pub(crate) fn keys(self) -> BTreeSet<Key> {
        let parts = self.parts.into_keys().map(|(hash, _)| hash);
        self.writes.into_iter().map(|write| write.key).chain(parts).collect()
    }

    /// Sets the offset of the record that the next writes belong to.
    pub(crate) const fn set_offset(&mut self, offset: i64) {
        self.offset = offset;
    }

    /// The writes, and the parts that follow from them.
    pub(crate) fn into_stages(self) -> (Vec<Write>, Vec<Part>) {
        let part = |((hash, field), (offset, source))| Part { offset, hash, field, source };
        (self.writes, self.parts.into_iter().map(part).collect())
    }

    fn push(&mut self, key: Key, action: &'static str, arguments: Vec<String>) {
        self.writes.push(Write { offset: self.offset, key, other: None, action, arguments });
    }
}

impl Part {
    /// Asks the set's shard for its size.
    pub(crate) fn count(&self) -> Write {
        Write {
            offset: self.offset,
            key: self.source.clone(),
            other: None,
            action: "count",
            arguments: Vec::new(),
        }
    }

    /// Writes the part.
    pub(crate) fn write(self, count: i64) -> Write {
        Write {
            offset: self.offset,
            key: self.hash,
            other: None,
            action: "set_part",
            arguments: vec![self.field, count.to_string()],
        }
    }
}

fn flatten(fields: &[(&str, String)]) -> Vec<String> {
    fields.iter().flat_map(|(field, value)| [(*field).to_owned(), value.clone()]).collect()
}
