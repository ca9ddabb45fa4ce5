//! The writes of a Redis projection. Each is idempotent; `apply.lua` executes them.

use std::collections::{BTreeMap, BTreeSet};

use vidlog_schemas::keys::Key;

/// The field of a hash of parts that holds their sum; `apply.lua` writes it.
const TOTAL: &str = "total";

/// The writes of a batch, in the order of its records.
#[derive(Debug, Default, PartialEq)]
pub struct RedisWrites {
    offset: i64,
    writes: Vec<Write>,
    /// By hash and field. One part per video is enough, because its count is taken after the whole batch.
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
    /// Creates a hash if it does not exist.
    pub fn create_hash(&mut self, key: Key, fields: &[(&str, String)]) {
        self.push(key, "create_hash", flatten(fields));
    }

    /// Sets fields of a hash while one of its fields has a value.
    pub fn update_hash_while(&mut self, key: Key, condition: (&str, String), fields: &[(&str, String)]) {
        let mut arguments = flatten(&[condition]);
        arguments.extend(flatten(fields));
        self.push(key, "update_hash_while", arguments);
    }

    /// Adds a member to a ZSET if it does not contain it.
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
        self.with_other_key(other);
    }

    /// Adds a member to a ranking if it does not contain it. A ranking is a ZSET whose scores are a base plus the
    /// size of a SET on the same shard.
    pub fn rank(&mut self, ranking: Key, member: i64, base: i64, set: Key) {
        self.push(ranking, "rank", vec![base.to_string(), member.to_string()]);
        self.with_other_key(set);
    }

    /// Updates the score of a ranking's member, if it exists, to its base plus the current size of its SET. Bases are
    /// multiples of `step`, and every SET is smaller than `step`.
    pub fn update_rank(&mut self, ranking: Key, member: i64, step: i64, set: Key) {
        self.push(ranking, "update_rank", vec![step.to_string(), member.to_string()]);
        self.with_other_key(set);
    }

    /// Stores the size of a SET as one part of a total, in an entity's field of a hash on any shard. The hash's field
    /// `total` is the sum of its parts.
    pub fn set_part(&mut self, hash: Key, entity: i64, source: Key) {
        self.parts.insert((hash, entity.to_string()), (self.offset, source));
    }

    /// The members, or fields of hashes, that the writes may change.
    pub(crate) fn members(self) -> BTreeSet<(Key, String)> {
        let mut members: BTreeSet<_> = self.writes.into_iter().flat_map(Write::members).collect();
        for (hash, entity) in self.parts.into_keys() {
            members.insert((hash.clone(), TOTAL.to_owned()));
            members.insert((hash, entity));
        }
        members
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

    /// Sets the second key of the write that was pushed last.
    fn with_other_key(&mut self, other: Key) {
        if let Some(write) = self.writes.last_mut() {
            write.other = Some(other);
        }
    }
}

impl Write {
    /// The members, or fields of a hash, that the write may change.
    fn members(self) -> Vec<(Key, String)> {
        let fields = |from: usize| self.arguments.iter().skip(from).step_by(2);
        let members: Vec<&String> = match self.action {
            "create_hash" => fields(0).collect(),
            // After the condition.
            "update_hash_while" => fields(2).collect(),
            _ => self.arguments.last().into_iter().collect(),
        };
        members.into_iter().map(|member| (self.key.clone(), member.clone())).collect()
    }
}

impl Part {
    /// The write that returns the size of the set from its shard.
    pub(crate) fn count(&self) -> Write {
        Write {
            offset: self.offset,
            key: self.source.clone(),
            other: None,
            action: "count",
            arguments: Vec::new(),
        }
    }

    /// The write that stores the part.
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

#[cfg(test)]
mod tests {
    use vidlog_schemas::Keys;

    use super::*;

    #[test]
    fn members_of_every_write_are_listed() {
        let keys = Keys::new("n", 16);
        let mut writes = RedisWrites::default();
        writes.create_hash(keys.user_card(1), &[("name", "a".to_owned()), ("registered_ms", "7".to_owned())]);
        writes.update_hash_while(
            keys.video_card(1),
            ("state", "1".to_owned()),
            &[("state", "2".to_owned()), ("reason", "r".to_owned())],
        );
        writes.add_scored(keys.favorites(1), 2, 70);
        writes.remove_scored(keys.favorites(1), 3);
        writes.add_member(keys.likers(1), 4);
        writes.remove_member(keys.likers(1), 5);
        writes.add_member_unless_in(keys.comments(1), 6, keys.deleted_comments(1));
        writes.rank(keys.top_of_video(9), 9, 100, keys.top_likers(9));
        writes.update_rank(keys.top_of_video(10), 10, 100, keys.top_likers(10));
        writes.set_part(keys.favorited(1), 8, keys.likers(8));
        let expected = [
            (keys.user_card(1), "name"),
            (keys.user_card(1), "registered_ms"),
            (keys.video_card(1), "state"),
            (keys.video_card(1), "reason"),
            (keys.favorites(1), "2"),
            (keys.favorites(1), "3"),
            (keys.likers(1), "4"),
            (keys.likers(1), "5"),
            (keys.comments(1), "6"),
            (keys.top_of_video(9), "9"),
            (keys.top_of_video(10), "10"),
            (keys.favorited(1), "8"),
            (keys.favorited(1), "total"),
        ];
        assert_eq!(writes.members(), expected.map(|(key, member)| (key, member.to_owned())).into());
    }
}
