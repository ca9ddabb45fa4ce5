//! Calls of the script that writes a batch and the position of one shard.

use std::{collections::BTreeMap, sync::LazyLock};

use redis::{Cmd, Script, Value, cmd, from_redis_value};
use vidlog_schemas::keys::Key;

use crate::{
    store::{Change, Changes, StoreError},
    view::writes::Write,
};

/// The script's source.
pub(super) const SOURCE: &str = include_str!("apply.lua");
static SCRIPT: LazyLock<Script> = LazyLock::new(|| Script::new(SOURCE));

/// A call of the script.
pub(super) struct Call {
    keys: Vec<String>,
    indexes: BTreeMap<String, usize>,
    arguments: Vec<String>,
    changes: Vec<String>,
    writes: Vec<String>,
}

/// The script's reply.
pub(super) struct ScriptReply {
    /// The position of the shard.
    pub(super) stored: i64,
    /// The sizes of the sets that were counted, in the order of the calls.
    pub(super) counts: Vec<i64>,
}

impl Call {
    /// A call without writes, which moves a field of a checkpoint from an expected position to the next one.
    pub(super) fn new(checkpoint: Key, field: &str, expected: i64, next: i64) -> Self {
        Self {
            keys: vec![checkpoint.name],
            indexes: BTreeMap::new(),
            arguments: vec![field.to_owned(), expected.to_string(), next.to_string()],
            changes: Vec::new(),
            writes: Vec::new(),
        }
    }

    /// Adds changes of the parked keys in a hash, which is the second key.
    pub(super) fn park(&mut self, hash: &Key, field: &str, changes: &Changes) {
        self.keys.push(hash.name.clone());
        self.changes.push(changes.len().to_string());
        for (key, change) in changes {
            let field = format!("{field}:{key}");
            match change {
                Change::Park(parked) => self.changes.extend(["park".to_owned(), field, parked.encode()]),
                Change::Extend { last, more } => {
                    self.changes.extend(["extend".to_owned(), field, last.to_string(), more.to_string()]);
                }
            }
        }
    }

    /// Adds writes.
    pub(super) fn write(&mut self, writes: &[Write]) {
        for write in writes {
            let key = self.index_of(&write.key);
            let mut arguments = write.arguments.clone();
            if let Some(other) = &write.other {
                arguments.push(self.index_of(other).to_string());
            }
            self.writes.extend([
                write.action.to_owned(),
                write.offset.to_string(),
                key.to_string(),
                arguments.len().to_string(),
            ]);
            self.writes.append(&mut arguments);
        }
    }

    fn index_of(&mut self, key: &Key) -> usize {
        if let Some(index) = self.indexes.get(&key.name) {
            return *index;
        }
        self.keys.push(key.name.clone());
        self.indexes.insert(key.name.clone(), self.keys.len());
        self.keys.len()
    }

    /// The command.
    pub(super) fn command(self) -> Cmd {
        let changes = if self.changes.is_empty() { vec!["0".to_owned()] } else { self.changes };
        let mut command = cmd("EVALSHA");
        command.arg(SCRIPT.get_hash()).arg(self.keys.len()).arg(self.keys);
        command.arg(self.arguments).arg(changes).arg(self.writes).take()
    }
}

impl ScriptReply {
    /// Decodes the script's reply.
    pub(super) fn decode(value: Value) -> Result<Self, StoreError> {
        let numbers: Vec<i64> =
            from_redis_value(value).map_err(|error| StoreError::retry(error.to_string()))?;
        match numbers.as_slice() {
            [1, stored, counts @ ..] => Ok(Self { stored: *stored, counts: counts.to_vec() }),
            [0, stored] => Err(StoreError::Behind { stored: *stored }),
            [2, stored] => Err(StoreError::Moved { stored: *stored }),
            [3, _] => Err(StoreError::ParkedKeysChanged),
            _ => Err(StoreError::retry("Redis returned an unexpected script result")),
        }
    }
}
