//! The commands of a call, and where each is to go next.

use std::{
    collections::{BTreeMap, HashMap, HashSet, hash_map::Entry},
    sync::Arc,
};

use redis::{Cmd, ErrorKind, Pipeline, RedisError, RedisResult, ServerErrorKind, Value, cmd};

use super::super::{
    address::Endpoint,
    slots::{self, Member, Slots},
};

/// The commands of a call.
pub(super) struct Errands<'a> {
    all: Vec<Errand<'a>>,
}

/// A command with what came of it.
struct Errand<'a> {
    command: &'a Cmd,
    key: &'a [u8],
    slot: u16,
    way: Way,
    answer: Option<Value>,
}

/// To whom a command goes.
#[derive(Clone)]
enum Way {
    /// To whom has the slot.
    Owner,
    /// To whom is about to get the slot, as the one that has it said.
    Asking(Arc<Member>),
}

/// What goes to one node in one go.
pub(super) struct Batch<'a> {
    member: Arc<Member>,
    is_asking: bool,
    errands: Vec<usize>,
    commands: Vec<&'a Cmd>,
}

/// A command that a node did not carry out, as another one should.
pub(super) struct Redirect {
    pub(super) errand: usize,
    pub(super) to: Endpoint,
    /// The slot, if it has moved and not only this key of it.
    pub(super) moved_slot: Option<u16>,
}

impl<'a> Errands<'a> {
    pub(super) fn new(commands: &'a [Cmd]) -> RedisResult<Self> {
        let errand = |command| {
            let key = slots::key(command)?;
            Ok(Errand { command, key, slot: slots::slot(key), way: Way::Owner, answer: None })
        };
        Ok(Self { all: commands.iter().map(errand).collect::<RedisResult<_>>()? })
    }

    /// What is to be sent now. Commands of one slot stay in order: where their ways part, the later ones wait.
    pub(super) fn batches(&self, slots: &Slots) -> RedisResult<Vec<Batch<'a>>> {
        let mut batches: BTreeMap<(&Endpoint, bool), Batch<'a>> = BTreeMap::new();
        let mut ways: HashMap<u16, Option<(&Endpoint, bool)>> = HashMap::new();
        for (at, errand) in self.all.iter().enumerate().filter(|(_, errand)| errand.answer.is_none()) {
            let (member, is_asking) = match &errand.way {
                Way::Owner => (slots.owner(errand.slot)?, false),
                Way::Asking(member) => (member, true),
            };
            let way = (&member.endpoint, is_asking);
            match ways.entry(errand.slot) {
                Entry::Vacant(entry) => _ = entry.insert(Some(way)),
                Entry::Occupied(entry) if *entry.get() == Some(way) => {}
                Entry::Occupied(mut entry) => {
                    entry.insert(None);
                    continue;
                }
            }
            let batch = batches.entry(way).or_insert_with(|| Batch {
                member: Arc::clone(member),
                is_asking,
                errands: Vec::new(),
                commands: Vec::new(),
            });
            batch.errands.push(at);
            batch.commands.push(errand.command);
        }
        Ok(batches.into_values().collect())
    }

    /// Takes the answers to a batch, and tells which of its commands are to go elsewhere.
    pub(super) fn take(&mut self, batch: &Batch<'_>, answers: Vec<Value>) -> RedisResult<Vec<Redirect>> {
        if answers.len() != batch.errands.len() {
            return Err((ErrorKind::UnexpectedReturnType, "a node answered too little or too much").into());
        }
        let mut redirects = Vec::new();
        let mut not_carried_out = HashSet::new();
        for (at, answer) in batch.errands.iter().copied().zip(answers) {
            let Some(errand) = self.all.get_mut(at) else { continue };
            match redirect(at, &answer, &batch.member.endpoint) {
                Some(redirect) => {
                    not_carried_out.insert(errand.key);
                    redirects.push(redirect);
                }
                // The node got the slot between the two: sent on now, the first would come second.
                None if not_carried_out.contains(errand.key) => {
                    return Err(
                        (ErrorKind::Server(ServerErrorKind::TryAgain), "the slot has just moved").into()
                    );
                }
                None => errand.answer = Some(answer),
            }
        }
        Ok(redirects)
    }

    /// Sends a command on.
    pub(super) fn send_on(&mut self, errand: usize, to: Arc<Member>, is_asking: bool) {
        if let Some(errand) = self.all.get_mut(errand) {
            errand.way = if is_asking { Way::Asking(to) } else { Way::Owner };
        }
    }

    pub(super) fn are_done(&self) -> bool {
        self.all.iter().all(|errand| errand.answer.is_some())
    }

    /// The answers, or the first error among them.
    pub(super) fn into_answers(self) -> RedisResult<Vec<Value>> {
        self.all.into_iter().map(|errand| errand.answer.unwrap_or(Value::Nil).extract_error()).collect()
    }
}

impl Batch<'_> {
    /// Sends the commands. That the node is asked, before it has the slot, is said in one go with each of them: the
    /// connection is shared, and the word is good for the next command, whosever that is.
    pub(super) async fn send(self) -> (Self, RedisResult<Vec<Value>>) {
        let mut pipeline = Pipeline::with_capacity(self.commands.len() * 2);
        for command in &self.commands {
            if self.is_asking {
                pipeline.add_command(cmd("ASKING"));
            }
            pipeline.add_command((*command).clone());
        }
        let mut answers = self.member.node.answers(&pipeline).await;
        if self.is_asking {
            answers = answers.map(|answers| answers.into_iter().skip(1).step_by(2).collect());
        }
        (self, answers)
    }
}

fn redirect(errand: usize, answer: &Value, answering: &Endpoint) -> Option<Redirect> {
    let Value::ServerError(error) = answer else { return None };
    let error = RedisError::from(error.clone());
    let (to, slot) = error.redirect_node()?;
    let moved_slot = (error.kind() == ServerErrorKind::Moved.into()).then_some(slot);
    Some(Redirect { errand, to: Endpoint::parse(to, answering)?, moved_slot })
}
