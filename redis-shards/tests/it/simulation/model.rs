//! The model: which node owns which slot and key, what it replies to a command, and a history of all commands.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write,
};

use rand::{RngExt, SeedableRng, rngs::StdRng, seq::IndexedRandom};

/// Primaries. Node `n + SHARDS` is at first the replica of node `n`.
pub(super) const SHARDS: usize = 3;
const SLOTS: u16 = 16384;
/// Keys in each slot that is used.
const KEYS_OF_SLOT: usize = 4;

/// The state of the cluster.
pub(super) struct Model {
    pub(super) nodes: Vec<Node>,
    owners: Vec<usize>,
    /// Slots on the move, with the importing node.
    migrations: BTreeMap<u16, usize>,
    /// Whether the cluster refuses all commands while a primary is down.
    requires_full_coverage: bool,
    faults: Faults,
    rng: StdRng,
    /// The number of changes of ownership so far.
    pub(super) epoch: u64,
    pub(super) history: Vec<Arrival>,
    pub(super) failovers: usize,
    /// How often a node sent its slot map.
    pub(super) slot_map_replies: usize,
}

/// How likely faults are, of each command.
#[derive(Clone, Copy)]
struct Faults {
    topology_change: f64,
    broken_connection: f64,
}

pub(super) struct Node {
    pub(super) port: u16,
    pub(super) is_up: bool,
    /// Incremented to break all connections to the node.
    pub(super) incarnation: u64,
    role: Role,
    config_epoch: u64,
    keys: BTreeSet<String>,
    /// Scripts that the node loaded.
    scripts: BTreeSet<String>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Role {
    /// Since this epoch.
    Primary {
        since: u64,
    },
    Replica,
}

/// A command that reached a node.
#[derive(Clone, Debug)]
pub(super) struct Arrival {
    pub(super) id: String,
    pub(super) node: usize,
    /// Whether `ASKING` was effective for it.
    pub(super) is_asking: bool,
    pub(super) outcome: Outcome,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    Executed,
    Moved,
    Ask(usize),
    /// `TRYAGAIN` or `CLUSTERDOWN`.
    Refused,
    /// The connection broke before the reply.
    ReplyLost {
        executed: bool,
    },
}

impl Outcome {
    pub(super) fn is_executed(self) -> bool {
        matches!(self, Self::Executed | Self::ReplyLost { executed: true })
    }
}

/// What a node does in response to a command.
pub(super) enum Response {
    Reply(Vec<u8>),
    BreakConnection,
}

impl Model {
    pub(super) fn new(seed: u64, ports: &[u16]) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let role = |index| if index < SHARDS { Role::Primary { since: 0 } } else { Role::Replica };
        let node = |(index, port): (usize, &u16)| Node {
            port: *port,
            is_up: true,
            incarnation: 0,
            role: role(index),
            config_epoch: index as u64,
            keys: BTreeSet::new(),
            scripts: BTreeSet::new(),
        };
        let mut model = Self {
            nodes: ports.iter().enumerate().map(node).collect(),
            owners: (0..usize::from(SLOTS)).map(|slot| slot * SHARDS / usize::from(SLOTS)).collect(),
            migrations: BTreeMap::new(),
            requires_full_coverage: rng.random_bool(0.5),
            faults: Faults {
                topology_change: *[0.02, 0.1, 0.4].choose(&mut rng).unwrap(),
                broken_connection: *[0.0, 0.01, 0.05].choose(&mut rng).unwrap(),
            },
            rng,
            epoch: ports.len() as u64,
            history: Vec::new(),
            failovers: 0,
            slot_map_replies: 0,
        };
        for key in all_keys() {
            if model.rng.random_bool(0.7) {
                let owner = model.owner(slot(&key));
                model.nodes[owner].keys.insert(key);
            }
        }
        model
    }

    /// Ends all faults and finishes all migrations.
    pub(super) fn heal(&mut self) {
        self.faults = Faults { topology_change: 0.0, broken_connection: 0.0 };
        for slot in self.migrations.keys().copied().collect::<Vec<_>>() {
            self.finish_migration(slot);
        }
        for node in &mut self.nodes {
            node.is_up = true;
        }
    }

    /// Ends all faults, and stops a primary that has no successor.
    pub(super) fn stop_for_good(&mut self, node: usize) {
        self.heal();
        self.requires_full_coverage = false;
        self.nodes[node].is_up = false;
        self.nodes[node].incarnation += 1;
    }

    /// Whether a node has the slot of a key.
    pub(super) fn owns(&self, node: usize, key: &str) -> bool {
        self.owner(slot(key)) == node
    }

    /// All keys that exist.
    pub(super) fn existing_keys(&self) -> BTreeSet<String> {
        self.primaries().flat_map(|node| self.nodes[node].keys.iter().cloned()).collect()
    }

    /// Nodes that have been primaries since an epoch and have not loaded a script.
    pub(super) fn primaries_without(&self, script: &str, since: u64) -> Vec<usize> {
        let is_affected = |node: &usize| {
            let node = &self.nodes[*node];
            matches!(node.role, Role::Primary { since: promoted } if promoted <= since)
                && !node.scripts.contains(script)
        };
        self.primaries().filter(is_affected).collect()
    }

    /// Handles a command that arrived at a node. `is_asking` is the flag of its connection.
    pub(super) fn handle(&mut self, node: usize, is_asking: &mut bool, command: &[String]) -> Response {
        let words: Vec<&str> = command.iter().map(String::as_str).collect();
        let was_asking = std::mem::take(is_asking);
        match words.as_slice() {
            ["ASKING"] => {
                *is_asking = true;
                simple("OK")
            }
            ["PING"] => simple("PONG"),
            ["SCRIPT", "LOAD", script] => {
                self.change_topology();
                self.nodes[node].scripts.insert((*script).to_owned());
                bulk(script)
            }
            ["CLUSTER", "INFO"] => {
                bulk(&format!("cluster_state:{}", if self.is_down() { "fail" } else { "ok" }))
            }
            ["CLUSTER", "SLOTS"] => {
                self.slot_map_replies += 1;
                Response::Reply(self.cluster_slots())
            }
            ["CLUSTER", "NODES"] => bulk(&self.cluster_nodes(node)),
            ["SCAN", cursor, ..] => self.scan(node, cursor),
            ["APPEND", key, id] => self.data_command(node, was_asking, &[key], id),
            ["EVALSHA", _, "2", first, second, id] => {
                self.data_command(node, was_asking, &[first, second], id)
            }
            // What the client sends when it connects.
            ["CLIENT", ..] => simple("OK"),
            _ => panic!("the simulation does not implement {words:?}"),
        }
    }

    fn data_command(&mut self, node: usize, is_asking: bool, keys: &[&str], id: &str) -> Response {
        self.change_topology();
        if !self.nodes[node].is_up {
            return Response::BreakConnection;
        }
        let (mut outcome, response) = self.route(node, is_asking, keys);
        let is_broken = self.rng.random_bool(self.faults.broken_connection);
        if is_broken {
            let executed = outcome == Outcome::Executed && self.rng.random_bool(0.5);
            outcome = Outcome::ReplyLost { executed };
        }
        if outcome.is_executed() {
            self.nodes[node].keys.extend(keys.iter().map(|key| (*key).to_owned()));
        }
        self.history.push(Arrival { id: id.to_owned(), node, is_asking, outcome });
        if is_broken { Response::BreakConnection } else { response.unwrap_or_else(|| bulk(id)) }
    }

    /// Decides as `getNodeByQuery` in Redis' `cluster.c` does. The response is `None` if the command is executed.
    fn route(&self, node: usize, is_asking: bool, keys: &[&str]) -> (Outcome, Option<Response>) {
        let slot = slot(keys[0]);
        let owner = self.owner(slot);
        let migrating_to = self.migrations.get(&slot).copied();
        let missing = keys.iter().filter(|key| !self.nodes[node].keys.contains(**key)).count();
        let refuse =
            |error: &str| (Outcome::Refused, Some(Response::Reply(format!("-{error}\r\n").into_bytes())));
        let redirect = |kind, to: usize| {
            Some(Response::Reply(
                format!("-{kind} {slot} 127.0.0.1:{}\r\n", self.nodes[to].port).into_bytes(),
            ))
        };
        if self.is_down() {
            return refuse("CLUSTERDOWN The cluster is down");
        }
        if owner == node {
            return match migrating_to {
                Some(to) if missing == keys.len() => (Outcome::Ask(to), redirect("ASK", to)),
                Some(_) if missing > 0 => refuse("TRYAGAIN Multiple keys request during rehashing of slot"),
                _ => (Outcome::Executed, None),
            };
        }
        if migrating_to == Some(node) && is_asking {
            return if keys.len() > 1 && missing > 0 {
                refuse("TRYAGAIN Multiple keys request during rehashing of slot")
            } else {
                (Outcome::Executed, None)
            };
        }
        (Outcome::Moved, redirect("MOVED", owner))
    }

    /// Changes the topology at random, with the probability of the case.
    pub(super) fn change_topology(&mut self) {
        if !self.rng.random_bool(self.faults.topology_change) {
            return;
        }
        let slot = slot(&random_key(&mut self.rng));
        match self.rng.random_range(0..16) {
            0..=3 => self.start_migration(slot),
            4..=7 => self.migrate_key(slot),
            8 | 9 => self.finish_migration(slot),
            10 | 11 => self.cancel_migration(slot),
            12 => self.fail_over(),
            13 => self.stop_node(),
            14 => self.start_node(),
            _ => {
                let node = self.rng.random_range(0..self.nodes.len());
                self.nodes[node].incarnation += 1;
            }
        }
        // No outage outlasts the case.
        if self.rng.random_bool(0.3) {
            self.start_node();
        }
    }

    fn start_migration(&mut self, slot: u16) {
        let owner = self.owner(slot);
        let targets: Vec<_> = self.primaries().filter(|node| *node != owner).collect();
        let to = *targets.choose(&mut self.rng).unwrap();
        self.migrations.entry(slot).or_insert(to);
    }

    fn migrate_key(&mut self, slot: u16) {
        let Some(to) = self.migrations.get(&slot).copied() else { return };
        let keys: Vec<_> = self.keys_in_slot(self.owner(slot), slot);
        if let Some(key) = keys.choose(&mut self.rng) {
            let owner = self.owner(slot);
            self.nodes[owner].keys.remove(key);
            self.nodes[to].keys.insert(key.clone());
        }
    }

    fn finish_migration(&mut self, slot: u16) {
        let Some(to) = self.migrations.remove(&slot) else { return };
        let from = self.owner(slot);
        self.move_keys(from, to, slot);
        self.owners[usize::from(slot)] = to;
        self.bump_config_epoch(to);
    }

    fn cancel_migration(&mut self, slot: u16) {
        let Some(to) = self.migrations.remove(&slot) else { return };
        self.move_keys(to, self.owner(slot), slot);
    }

    /// Promotes the replica of a primary, which restarts as a replica or stays down.
    fn fail_over(&mut self) {
        let primaries: Vec<_> = self.primaries().collect();
        let old = *primaries.choose(&mut self.rng).unwrap();
        let new = (old + SHARDS) % self.nodes.len();
        if !self.nodes[new].is_up {
            return;
        }
        let affected: Vec<_> = self.migrations.iter().map(|(slot, to)| (*slot, *to)).collect();
        for (slot, to) in affected {
            if to == old {
                self.cancel_migration(slot);
            } else if self.owner(slot) == old {
                self.finish_migration(slot);
            }
        }
        self.nodes[new].keys = std::mem::take(&mut self.nodes[old].keys);
        self.nodes[old].role = Role::Replica;
        for owner in self.owners.iter_mut().filter(|owner| **owner == old) {
            *owner = new;
        }
        self.bump_config_epoch(new);
        self.nodes[new].role = Role::Primary { since: self.epoch };
        if self.rng.random_bool(0.5) {
            self.nodes[old].is_up = false;
            self.nodes[old].incarnation += 1;
        }
        self.failovers += 1;
    }

    /// Stops a node. Its keys survive the restart.
    fn stop_node(&mut self) {
        let node = self.rng.random_range(0..self.nodes.len());
        self.nodes[node].is_up = false;
        self.nodes[node].incarnation += 1;
    }

    fn start_node(&mut self) {
        if let Some(node) = self.nodes.iter_mut().find(|node| !node.is_up) {
            node.is_up = true;
        }
    }

    fn move_keys(&mut self, from: usize, to: usize, slot: u16) {
        for key in self.keys_in_slot(from, slot) {
            self.nodes[from].keys.remove(&key);
            self.nodes[to].keys.insert(key);
        }
    }

    fn keys_in_slot(&self, node: usize, of: u16) -> Vec<String> {
        self.nodes[node].keys.iter().filter(|key| slot(key) == of).cloned().collect()
    }

    fn bump_config_epoch(&mut self, node: usize) {
        self.epoch += 1;
        self.nodes[node].config_epoch = self.epoch;
    }

    fn owner(&self, slot: u16) -> usize {
        self.owners[usize::from(slot)]
    }

    fn primaries(&self) -> impl Iterator<Item = usize> {
        (0..self.nodes.len()).filter(|node| self.nodes[*node].role != Role::Replica)
    }

    fn is_down(&self) -> bool {
        self.requires_full_coverage && self.primaries().any(|node| !self.nodes[node].is_up)
    }

    /// Consecutive slots of one owner.
    fn ranges(&self) -> Vec<(usize, usize, usize)> {
        let mut ranges: Vec<(usize, usize, usize)> = Vec::new();
        for (slot, owner) in self.owners.iter().enumerate() {
            match ranges.last_mut() {
                Some((_, last, of)) if of == owner => *last = slot,
                _ => ranges.push((slot, slot, *owner)),
            }
        }
        ranges
    }

    fn cluster_slots(&self) -> Vec<u8> {
        let ranges = self.ranges();
        let mut reply = format!("*{}\r\n", ranges.len());
        for (first, last, owner) in ranges {
            let port = self.nodes[owner].port;
            write!(reply, "*3\r\n:{first}\r\n:{last}\r\n").unwrap();
            write!(reply, "*3\r\n$9\r\n127.0.0.1\r\n:{port}\r\n$1\r\n{owner}\r\n").unwrap();
        }
        reply.into_bytes()
    }

    fn cluster_nodes(&self, node: usize) -> String {
        let mut line =
            format!("{node} 127.0.0.1:0@0 myself - 0 0 {} connected", self.nodes[node].config_epoch);
        for (first, last, _) in self.ranges().into_iter().filter(|(.., owner)| *owner == node) {
            write!(line, " {first}-{last}").unwrap();
        }
        for (slot, to) in &self.migrations {
            match self.owner(*slot) {
                owner if owner == node => write!(line, " [{slot}->-{to}]").unwrap(),
                owner if *to == node => write!(line, " [{slot}-<-{owner}]").unwrap(),
                _ => {}
            }
        }
        line
    }

    /// Two pages: cursor 0 returns the keys of even length, cursor 1 the others.
    fn scan(&mut self, node: usize, cursor: &str) -> Response {
        self.change_topology();
        let (parity, next) = if cursor == "0" { (0, 1) } else { (1, 0) };
        let keys: Vec<_> = self.nodes[node].keys.iter().filter(|key| key.len() % 2 == parity).collect();
        let mut reply = format!("*2\r\n$1\r\n{next}\r\n*{}\r\n", keys.len());
        for key in keys {
            write!(reply, "${}\r\n{key}\r\n", key.len()).unwrap();
        }
        Response::Reply(reply.into_bytes())
    }
}

/// The keys of the simulation: some in each of a few slots.
pub(super) fn all_keys() -> Vec<String> {
    let key = |slot, at| format!("{{{slot}}}{}", "k".repeat(at + 1));
    (0..5).flat_map(|slot| (0..KEYS_OF_SLOT).map(move |at| key(slot, at))).collect()
}

/// A random key, half of the time one of the first slot.
pub(super) fn random_key(rng: &mut StdRng) -> String {
    let keys = all_keys();
    let keys = if rng.random_bool(0.5) { &keys[..KEYS_OF_SLOT] } else { &keys };
    keys.choose(rng).unwrap().clone()
}

/// The slot of a key with a hash tag of one character.
pub(super) fn slot(key: &str) -> u16 {
    // CRC-16/XMODEM, bit by bit.
    let mut crc = u16::from(key.as_bytes()[1]) << 8;
    for _ in 0..8 {
        crc = if crc & 0x8000 == 0 { crc << 1 } else { (crc << 1) ^ 0x1021 };
    }
    crc % SLOTS
}

fn simple(text: &str) -> Response {
    Response::Reply(format!("+{text}\r\n").into_bytes())
}

fn bulk(text: &str) -> Response {
    Response::Reply(format!("${}\r\n{text}\r\n", text.len()).into_bytes())
}
