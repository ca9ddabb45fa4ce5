//! The commands of one call: which are unfinished, and where each goes next.

use std::{
    collections::{BTreeMap, HashMap, HashSet, hash_map::Entry},
    sync::Arc,
};

use redis::{Cmd, ErrorKind, Pipeline, RedisError, RedisResult, ServerErrorKind, Value, cmd};

use super::{
    address::Endpoint,
    slot_map::{self, Node, SlotMap},
};

/// The commands of a call with their replies so far.
pub(crate) struct PendingCommands<'a> {
    commands: Vec<PendingCommand<'a>>,
}

struct PendingCommand<'a> {
    command: &'a Cmd,
    keys: Vec<&'a [u8]>,
    slot: u16,
    route: Route,
    reply: Option<Value>,
}

/// Where a command is sent.
#[derive(Clone)]
enum Route {
    /// To the owner of its slot.
    Owner,
    /// To the node that imports its slot, preceded by `ASKING`.
    Ask(Arc<Node>),
}

/// The commands that go to one node in one pipeline.
pub(crate) struct Batch<'a> {
    node: Arc<Node>,
    is_asking: bool,
    indices: Vec<usize>,
    commands: Vec<&'a Cmd>,
}

/// A `MOVED` or `ASK` reply: the command was not executed, and another node should get it.
pub(crate) struct Redirection {
    pub(crate) index: usize,
    pub(crate) to: Endpoint,
    /// The slot, if all of it has moved (`MOVED`).
    pub(crate) moved_slot: Option<u16>,
}

impl<'a> PendingCommands<'a> {
    pub(crate) fn new(commands: &'a [Cmd]) -> RedisResult<Self> {
        let pending = |command| {
            let keys = slot_map::keys(command)?;
            let slot = keys.first().map_or(0, |key| slot_map::slot(key));
            Ok(PendingCommand { command, keys, slot, route: Route::Owner, reply: None })
        };
        Ok(Self { commands: commands.iter().map(pending).collect::<RedisResult<_>>()? })
    }

    /// Groups the unfinished commands by node.
    ///
    /// Commands of one slot stay in order: from the first whose route differs from its predecessor's, they wait for
    /// the next round.
    pub(crate) fn batches(&self, slots: &SlotMap) -> RedisResult<Vec<Batch<'a>>> {
        let mut batches: BTreeMap<(&Endpoint, bool), Batch<'a>> = BTreeMap::new();
        let mut routes: HashMap<u16, Option<(&Endpoint, bool)>> = HashMap::new();
        for (index, command) in
            self.commands.iter().enumerate().filter(|(_, command)| command.reply.is_none())
        {
            let (node, is_asking) = match &command.route {
                Route::Owner => (slots.owner(command.slot)?, false),
                Route::Ask(node) => (node, true),
            };
            let route = (&node.endpoint, is_asking);
            match routes.entry(command.slot) {
                Entry::Vacant(entry) => _ = entry.insert(Some(route)),
                Entry::Occupied(entry) if *entry.get() == Some(route) => {}
                Entry::Occupied(mut entry) => {
                    entry.insert(None);
                    continue;
                }
            }
            let batch = batches.entry(route).or_insert_with(|| Batch {
                node: Arc::clone(node),
                is_asking,
                indices: Vec::new(),
                commands: Vec::new(),
            });
            batch.indices.push(index);
            batch.commands.push(command.command);
        }
        Ok(batches.into_values().collect())
    }

    /// Stores the replies to a batch and returns its redirections.
    pub(crate) fn store_replies(
        &mut self,
        batch: &Batch<'_>,
        replies: Vec<Value>,
    ) -> RedisResult<Vec<Redirection>> {
        if replies.len() != batch.indices.len() {
            return Err((
                ErrorKind::UnexpectedReturnType,
                "the number of replies differs from that of commands",
            )
                .into());
        }
        let mut redirections = Vec::new();
        let mut redirected_keys = HashSet::new();
        for (index, reply) in batch.indices.iter().copied().zip(replies) {
            let Some(command) = self.commands.get_mut(index) else { continue };
            match parse_redirection(index, &reply, &batch.node.endpoint) {
                Some(redirection) => {
                    redirected_keys.extend(command.keys.iter().copied());
                    redirections.push(redirection);
                }
                // The node got the slot between the two: following the redirection would reorder them.
                None if command.keys.iter().any(|key| redirected_keys.contains(key)) => {
                    return Err(
                        (ErrorKind::Server(ServerErrorKind::TryAgain), "the slot has just moved").into()
                    );
                }
                None => command.reply = Some(reply),
            }
        }
        Ok(redirections)
    }

    /// Changes the route of a redirected command.
    pub(crate) fn redirect(&mut self, redirection: &Redirection, to: Arc<Node>) {
        if let Some(command) = self.commands.get_mut(redirection.index) {
            command.route = if redirection.moved_slot.is_some() { Route::Owner } else { Route::Ask(to) };
        }
    }

    pub(crate) fn are_finished(&self) -> bool {
        self.commands.iter().all(|command| command.reply.is_some())
    }

    /// The replies, or the first error among them.
    pub(crate) fn into_replies(self) -> RedisResult<Vec<Value>> {
        self.commands.into_iter().map(|command| command.reply.unwrap_or(Value::Nil).extract_error()).collect()
    }
}

impl Batch<'_> {
    /// Sends the commands and returns their replies.
    ///
    /// Pipelines `ASKING` before each command of an ask batch: it affects only the next command, and the connection
    /// is shared.
    pub(crate) async fn send(self) -> (Self, RedisResult<Vec<Value>>) {
        let mut pipeline = Pipeline::with_capacity(self.commands.len() * 2);
        for command in &self.commands {
            if self.is_asking {
                pipeline.add_command(cmd("ASKING"));
            }
            pipeline.add_command((*command).clone());
        }
        let mut replies = self.node.connection.replies(&pipeline).await;
        if self.is_asking {
            replies = replies.map(|replies| replies.into_iter().skip(1).step_by(2).collect());
        }
        (self, replies)
    }
}

fn parse_redirection(index: usize, reply: &Value, replying: &Endpoint) -> Option<Redirection> {
    let Value::ServerError(error) = reply else { return None };
    let error = RedisError::from(error.clone());
    let (to, slot) = error.redirect_node()?;
    let moved_slot = (error.kind() == ServerErrorKind::Moved.into()).then_some(slot);
    Some(Redirection { index, to: Endpoint::parse(to, replying)?, moved_slot })
}

#[cfg(test)]
mod tests {
    use redis::parse_redis_value;

    use super::*;
    use crate::{address::Address, connection::Connection};

    #[tokio::test]
    async fn reordering_about_any_key_of_a_script_fails_the_call() {
        let Address::Single(info) = Address::parse("redis://127.0.0.1:1/").unwrap() else {
            panic!("a cluster")
        };
        let endpoint = Endpoint { host: "127.0.0.1".to_owned(), port: 1 };
        let node = Arc::new(Node { endpoint, connection: Connection::open(info).unwrap() });
        let mut slots = SlotMap::empty();
        slots.assign(0, slot_map::SLOTS - 1, &node);
        let commands = [
            cmd("EVALSHA").arg("sha").arg(2).arg("{a}1").arg("{a}2").take(),
            cmd("GET").arg("{a}3").take(),
            cmd("GET").arg("{a}2").take(),
        ];
        let mut pending = PendingCommands::new(&commands).unwrap();
        let batch = pending.batches(&slots).unwrap().pop().unwrap();
        let ask = || parse_redis_value(b"-ASK 1 127.0.0.1:2\r\n").unwrap();
        let redirections = pending.store_replies(&batch, vec![ask(), Value::Nil, ask()]).unwrap();
        assert_eq!(redirections.len(), 2, "the key of the command in between is another");

        let mut pending = PendingCommands::new(&commands).unwrap();
        let batch = pending.batches(&slots).unwrap().pop().unwrap();
        let error = pending.store_replies(&batch, vec![ask(), Value::Nil, Value::Nil]).err().unwrap();
        assert_eq!(error.kind(), ErrorKind::Server(ServerErrorKind::TryAgain));
    }
}
