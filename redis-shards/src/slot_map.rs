//! Which node of a cluster has which slot, and which slot a command is about.

use std::{collections::BTreeMap, sync::Arc};

use redis::{Arg, Cmd, ErrorKind, RedisError, RedisResult, ServerErrorKind, Value, from_redis_value};

use super::{address::Endpoint, node::Node};

/// Slots of every cluster.
pub(super) const SLOTS: u16 = 16384;

/// A node of the cluster.
pub(super) struct Member {
    pub(super) endpoint: Endpoint,
    pub(super) node: Node,
}

/// Where the slots are, as far as is known.
#[derive(Clone)]
pub(super) struct Slots {
    owners: Vec<Option<Arc<Member>>>,
    /// The owners, and nodes that slots are on the way to.
    members: BTreeMap<Endpoint, Arc<Member>>,
}

/// Consecutive slots with their primary.
pub(super) struct Range {
    pub(super) first: u16,
    pub(super) last: u16,
    pub(super) owner: Endpoint,
}

impl Slots {
    /// Nothing is known.
    pub(super) fn unknown() -> Self {
        Self { owners: vec![None; usize::from(SLOTS)], members: BTreeMap::new() }
    }

    /// Who has a slot.
    pub(super) fn owner(&self, slot: u16) -> RedisResult<&Arc<Member>> {
        self.owners
            .get(usize::from(slot))
            .and_then(Option::as_ref)
            .ok_or_else(|| (ErrorKind::Server(ServerErrorKind::ClusterDown), "no node has the slot").into())
    }

    /// Notes that a node has some slots.
    pub(super) fn assign(&mut self, first: u16, last: u16, member: &Arc<Member>) {
        let slots = usize::from(first)..=usize::from(last);
        if let Some(owners) = self.owners.get_mut(slots) {
            owners.fill(Some(Arc::clone(member)));
        }
        self.add(member);
    }

    /// Notes that there is a node.
    pub(super) fn add(&mut self, member: &Arc<Member>) {
        self.members.insert(member.endpoint.clone(), Arc::clone(member));
    }

    /// The node at an endpoint, if it is known.
    pub(super) fn member(&self, endpoint: &Endpoint) -> Option<&Arc<Member>> {
        self.members.get(endpoint)
    }

    /// All nodes that are known to have slots, or to get some.
    pub(super) fn members(&self) -> impl Iterator<Item = &Arc<Member>> {
        self.members.values()
    }
}

/// Reads what a node answered to `CLUSTER SLOTS`.
pub(super) fn read_ranges(answer: Value, answering: &Endpoint) -> RedisResult<Vec<Range>> {
    let mut ranges = Vec::new();
    for range in from_redis_value::<Vec<Vec<Value>>>(answer)? {
        let mut range = range.into_iter();
        let (Some(first), Some(last), Some(primary)) = (range.next(), range.next(), range.next()) else {
            return Err(unreadable());
        };
        let mut primary = from_redis_value::<Vec<Value>>(primary)?.into_iter();
        let (Some(host), Some(port)) = (primary.next(), primary.next()) else {
            return Err(unreadable());
        };
        let host = match from_redis_value::<Option<String>>(host)?.as_deref() {
            // Whoever answered does not know under which name it is reached: under that which it was.
            None | Some("") => answering.host.clone(),
            // Nor does it know where that node is; those that have its slots as redirects will tell.
            Some("?") => continue,
            Some(host) => host.to_owned(),
        };
        ranges.push(Range {
            first: from_redis_value(first)?,
            last: from_redis_value(last)?,
            owner: Endpoint { host, port: from_redis_value(port)? },
        });
    }
    Ok(ranges)
}

fn unreadable() -> RedisError {
    (ErrorKind::UnexpectedReturnType, "the slots of the cluster can't be read").into()
}

/// Whether a command is for every primary, as it is about no key.
pub(super) fn is_for_all(command: &Cmd) -> bool {
    matches!(argument(command, 0), Some(b"PING" | b"SCRIPT"))
}

/// The first key of a command: all of its keys are on the same slot, or the cluster refuses it.
pub(super) fn key(command: &Cmd) -> RedisResult<&[u8]> {
    let at = match argument(command, 0) {
        Some(b"EVAL" | b"EVALSHA") => 3,
        // Commands that tell the number of their keys first.
        Some(b"SINTERCARD" | b"ZDIFF" | b"ZINTER" | b"ZINTERCARD" | b"ZUNION") => 2,
        _ => 1,
    };
    argument(command, at).ok_or_else(|| (ErrorKind::Client, "a command about no key can't be routed").into())
}

/// The slot of a key: of what stands in its braces, if anything does.
pub(super) fn slot(key: &[u8]) -> u16 {
    let tag = key.iter().position(|byte| *byte == b'{').and_then(|open| {
        let rest = key.get(open + 1..)?;
        rest.get(..rest.iter().position(|byte| *byte == b'}')?)
    });
    crc16(tag.filter(|tag| !tag.is_empty()).unwrap_or(key)) % SLOTS
}

/// CRC-16/XMODEM, as the specification of Redis Cluster has it.
fn crc16(bytes: &[u8]) -> u16 {
    bytes.iter().fold(0, |sum, byte| {
        (0..8).fold(sum ^ (u16::from(*byte) << 8), |sum: u16, _| {
            if sum & 0x8000 == 0 { sum << 1 } else { (sum << 1) ^ 0x1021 }
        })
    })
}

fn argument(command: &Cmd, at: usize) -> Option<&[u8]> {
    match command.args_iter().nth(at)? {
        Arg::Simple(argument) => Some(argument),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use redis::cmd;

    use super::*;

    #[test]
    fn slots_are_those_of_the_specification() {
        assert_eq!(crc16(b"123456789"), 0x31C3);
        assert_eq!(slot(b"foo"), 12182);
        assert_eq!(slot(b"n:{foo}:user:1"), 12182);
        assert_eq!(slot(b"{}foo"), crc16(b"{}foo") % SLOTS, "an empty tag is none");
        assert_eq!(slot(b"foo{"), crc16(b"foo{") % SLOTS);
    }

    #[test]
    fn a_command_goes_to_its_first_key() {
        let of = |command: &mut Cmd| key(command).map(<[u8]>::to_vec).ok();
        assert_eq!(of(cmd("HGET").arg("a").arg("b")).as_deref(), Some(&b"a"[..]));
        assert_eq!(of(cmd("EVALSHA").arg("sha").arg(2).arg("a").arg("b")).as_deref(), Some(&b"a"[..]));
        assert_eq!(of(cmd("ZINTER").arg(2).arg("a").arg("b")).as_deref(), Some(&b"a"[..]));
        assert_eq!(of(&mut cmd("DBSIZE")), None);
        assert!(is_for_all(cmd("SCRIPT").arg("LOAD")));
    }

    #[test]
    fn a_node_may_not_know_its_own_name() {
        let text = |text: &str| Value::BulkString(text.as_bytes().to_vec());
        let range = |host: Value| {
            Value::Array(vec![Value::Int(0), Value::Int(9), Value::Array(vec![host, Value::Int(7000)])])
        };
        let answer =
            Value::Array(vec![range(text("")), range(Value::Nil), range(text("?")), range(text("b"))]);
        let ranges = read_ranges(answer, &Endpoint { host: "a".to_owned(), port: 1 }).unwrap();
        let owners: Vec<_> = ranges.iter().map(|range| range.owner.to_string()).collect();
        assert_eq!(owners, ["a:7000", "a:7000", "b:7000"]);
    }
}
