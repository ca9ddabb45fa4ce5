//! The slots of a cluster: which node owns which, and which slot and keys a command concerns.

use std::{collections::BTreeMap, sync::Arc};

use redis::{Arg, Cmd, ErrorKind, RedisError, RedisResult, ServerErrorKind, Value, from_redis_value};

use super::{address::Endpoint, connection::Connection};

/// Number of slots of every cluster.
pub(crate) const SLOTS: u16 = 16384;

/// A node of the cluster.
pub(crate) struct Node {
    pub(crate) endpoint: Endpoint,
    pub(crate) connection: Connection,
}

/// The cached owner of each slot.
#[derive(Clone)]
pub(crate) struct SlotMap {
    owners: Vec<Option<Arc<Node>>>,
    /// The owners, and the nodes that slots are migrating to.
    nodes: BTreeMap<Endpoint, Arc<Node>>,
}

/// Consecutive slots of one primary.
pub(crate) struct SlotRange {
    pub(crate) first: u16,
    pub(crate) last: u16,
    pub(crate) owner: Endpoint,
}

impl SlotMap {
    /// A map without owners and nodes.
    pub(crate) fn empty() -> Self {
        Self { owners: vec![None; usize::from(SLOTS)], nodes: BTreeMap::new() }
    }

    /// The owner of a slot.
    pub(crate) fn owner(&self, slot: u16) -> RedisResult<&Arc<Node>> {
        self.owners
            .get(usize::from(slot))
            .and_then(Option::as_ref)
            .ok_or_else(|| (ErrorKind::Server(ServerErrorKind::ClusterDown), "no node owns the slot").into())
    }

    /// Sets the owner of a range of slots.
    pub(crate) fn assign(&mut self, first: u16, last: u16, node: &Arc<Node>) {
        let slots = usize::from(first)..=usize::from(last);
        if let Some(owners) = self.owners.get_mut(slots) {
            owners.fill(Some(Arc::clone(node)));
        }
        self.add(node);
    }

    /// Adds a node that need not own a slot.
    pub(crate) fn add(&mut self, node: &Arc<Node>) {
        self.nodes.insert(node.endpoint.clone(), Arc::clone(node));
    }

    /// The node at an endpoint.
    pub(crate) fn node(&self, endpoint: &Endpoint) -> Option<&Arc<Node>> {
        self.nodes.get(endpoint)
    }

    /// All nodes that own slots or import some.
    pub(crate) fn nodes(&self) -> impl Iterator<Item = &Arc<Node>> {
        self.nodes.values()
    }
}

/// Parses a reply to `CLUSTER SLOTS`.
pub(crate) fn parse_slots(reply: Value, replying: &Endpoint) -> RedisResult<Vec<SlotRange>> {
    let mut ranges = Vec::new();
    for range in from_redis_value::<Vec<Vec<Value>>>(reply)? {
        let mut range = range.into_iter();
        let (Some(first), Some(last), Some(primary)) = (range.next(), range.next(), range.next()) else {
            return Err(malformed());
        };
        let mut primary = from_redis_value::<Vec<Value>>(primary)?.into_iter();
        let (Some(host), Some(port)) = (primary.next(), primary.next()) else {
            return Err(malformed());
        };
        let host = match from_redis_value::<Option<String>>(host)?.as_deref() {
            // The replying node does not know its own host name; clients use the one that they connected to.
            None | Some("") => replying.host.clone(),
            // The replying node does not know the host of that primary; redirections to it will name it.
            Some("?") => continue,
            Some(host) => host.to_owned(),
        };
        ranges.push(SlotRange {
            first: from_redis_value(first)?,
            last: from_redis_value(last)?,
            owner: Endpoint { host, port: from_redis_value(port)? },
        });
    }
    Ok(ranges)
}

fn malformed() -> RedisError {
    (ErrorKind::UnexpectedReturnType, "malformed reply to CLUSTER SLOTS").into()
}

/// Whether a command has no key and concerns every primary.
pub(crate) fn targets_all_primaries(command: &Cmd) -> bool {
    matches!(argument(command, 0), Some(b"PING" | b"SCRIPT"))
}

/// The keys of a command, at least one. They share a slot, or the cluster refuses the command.
pub(crate) fn keys(command: &Cmd) -> RedisResult<Vec<&[u8]>> {
    let (first, count) = match argument(command, 0) {
        Some(b"EVAL" | b"EVALSHA") => (3, numkeys(command, 2)?),
        Some(b"SINTERCARD" | b"ZDIFF" | b"ZINTER" | b"ZINTERCARD" | b"ZUNION") => (2, numkeys(command, 1)?),
        Some(b"DEL" | b"EXISTS" | b"MGET" | b"TOUCH" | b"UNLINK") => (1, usize::MAX),
        _ => (1, 1),
    };
    let keys: Vec<_> = command.args_iter().skip(first).take(count).filter_map(simple).collect();
    if keys.is_empty() {
        return Err((ErrorKind::Client, "a command without a key has no slot").into());
    }
    Ok(keys)
}

fn numkeys(command: &Cmd, at: usize) -> RedisResult<usize> {
    argument(command, at)
        .and_then(|count| std::str::from_utf8(count).ok()?.parse().ok())
        .ok_or_else(|| (ErrorKind::Client, "the number of keys is not a number").into())
}

/// The slot of a key: that of the text between its first braces, if there is any.
pub(crate) fn slot(key: &[u8]) -> u16 {
    let tag = key.iter().position(|byte| *byte == b'{').and_then(|open| {
        let rest = key.get(open + 1..)?;
        rest.get(..rest.iter().position(|byte| *byte == b'}')?)
    });
    crc16(tag.filter(|tag| !tag.is_empty()).unwrap_or(key)) % SLOTS
}

/// CRC-16/XMODEM, as the specification of Redis Cluster defines it.
fn crc16(bytes: &[u8]) -> u16 {
    bytes.iter().fold(0, |sum, byte| {
        (0..8).fold(sum ^ (u16::from(*byte) << 8), |sum: u16, _| {
            if sum & 0x8000 == 0 { sum << 1 } else { (sum << 1) ^ 0x1021 }
        })
    })
}

fn argument(command: &Cmd, at: usize) -> Option<&[u8]> {
    command.args_iter().nth(at).and_then(simple)
}

#[expect(clippy::needless_pass_by_value, reason = "the signature that filter_map needs")]
fn simple(argument: Arg<&[u8]>) -> Option<&[u8]> {
    match argument {
        Arg::Simple(argument) => Some(argument),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use redis::cmd;

    use super::*;

    #[test]
    fn slots_match_the_specification() {
        assert_eq!(crc16(b"123456789"), 0x31C3);
        assert_eq!(slot(b"foo"), 12182);
        assert_eq!(slot(b"n:{foo}:user:1"), 12182);
        assert_eq!(slot(b"{}foo"), crc16(b"{}foo") % SLOTS, "an empty tag is none");
        assert_eq!(slot(b"foo{"), crc16(b"foo{") % SLOTS);
    }

    #[test]
    fn keys_of_a_command_are_found() {
        let of = |command: &mut Cmd| {
            let keys = keys(command).unwrap_or_default();
            keys.into_iter().map(|key| String::from_utf8_lossy(key).into_owned()).collect::<Vec<_>>()
        };
        assert_eq!(of(cmd("HGET").arg("a").arg("b")), ["a"]);
        assert_eq!(of(cmd("EVALSHA").arg("sha").arg(2).arg("a").arg("b").arg("c")), ["a", "b"]);
        assert_eq!(of(cmd("ZINTER").arg(2).arg("a").arg("b").arg("LIMIT").arg(1)), ["a", "b"]);
        assert_eq!(of(cmd("UNLINK").arg("a").arg("b")), ["a", "b"]);
        assert!(of(&mut cmd("DBSIZE")).is_empty());
        assert!(of(cmd("EVAL").arg("return 1").arg(0)).is_empty());
        assert!(targets_all_primaries(cmd("SCRIPT").arg("LOAD")));
    }

    #[test]
    fn missing_host_is_that_of_the_replying_node() {
        let text = |text: &str| Value::BulkString(text.as_bytes().to_vec());
        let range = |host: Value| {
            Value::Array(vec![Value::Int(0), Value::Int(9), Value::Array(vec![host, Value::Int(7000)])])
        };
        let reply =
            Value::Array(vec![range(text("")), range(Value::Nil), range(text("?")), range(text("b"))]);
        let ranges = parse_slots(reply, &Endpoint { host: "a".to_owned(), port: 1 }).unwrap();
        let owners: Vec<_> = ranges.iter().map(|range| range.owner.to_string()).collect();
        assert_eq!(owners, ["a:7000", "a:7000", "b:7000"]);
    }
}
