//! Random calls, and the checks of their results against the history of the model.

use std::collections::{BTreeMap, BTreeSet};

use rand::{RngExt, rngs::StdRng, seq::IndexedRandom};
use redis::{Cmd, RedisError, ServerErrorKind, Value, cmd, from_redis_value};
use vidlog_redis_shards::Redis;

use super::{
    model::{Arrival, Outcome, all_keys, random_key, slot},
    server::Server,
};

/// A call with its result.
pub(super) struct Call {
    pub(super) number: String,
    /// Empty if the call is not about keys.
    commands: Vec<Command>,
    pub(super) result: Result<(), RedisError>,
    /// A guarantee that the result itself violates.
    violation: Option<String>,
}

struct Command {
    id: String,
    keys: Vec<String>,
}

impl Command {
    fn random(rng: &mut StdRng, id: String) -> Self {
        let first = random_key(rng);
        let neighbors: Vec<_> =
            all_keys().into_iter().filter(|key| *key != first && slot(key) == slot(&first)).collect();
        let mut keys = vec![first];
        if rng.random_bool(0.4) {
            keys.push(neighbors.choose(rng).unwrap().clone());
        }
        Self { id, keys }
    }

    fn to_cmd(&self) -> Cmd {
        match self.keys.as_slice() {
            [key] => cmd("APPEND").arg(key).arg(&self.id).take(),
            keys => cmd("EVALSHA").arg("sha").arg(keys.len()).arg(keys).arg(&self.id).take(),
        }
    }
}

/// Makes a random call.
pub(super) async fn call(server: &Server, redis: &Redis, rng: &mut StdRng, number: &str) -> Call {
    match rng.random_range(0..10) {
        0 => load_script(server, redis, number).await,
        1 => scan(server, redis, number).await,
        _ => {
            let count = rng.random_range(1..=8);
            let commands = (0..count).map(|at| Command::random(rng, format!("{number}.{at}"))).collect();
            send(redis, number, commands).await
        }
    }
}

/// Whether calls about every key, to all primaries, and a scan succeed.
pub(super) async fn covers_everything(server: &Server, redis: &Redis, attempt: usize) -> bool {
    let number = format!("recovery.{attempt}");
    let command = |(at, key)| Command { id: format!("{number}.{at}"), keys: vec![key] };
    let commands = all_keys().into_iter().enumerate().map(command).collect();
    let calls = [
        send(redis, &number, commands).await,
        load_script(server, redis, &number).await,
        scan(server, redis, &number).await,
    ];
    calls.iter().all(|call| call.result.is_ok() && call.violation.is_none())
}

async fn send(redis: &Redis, number: &str, commands: Vec<Command>) -> Call {
    let sent: Vec<_> = commands.iter().map(Command::to_cmd).collect();
    let result = redis.pipeline(&sent).await;
    let violation = result.as_ref().ok().and_then(|replies| wrong_replies(&commands, replies));
    Call { number: number.to_owned(), commands, result: result.map(drop), violation }
}

fn wrong_replies(commands: &[Command], replies: &[Value]) -> Option<String> {
    let ids: Vec<_> = commands.iter().map(|command| command.id.clone()).collect();
    let got: Vec<String> = replies.iter().cloned().map(|reply| from_redis_value(reply).unwrap()).collect();
    (ids != got).then(|| format!("replies to {ids:?} are {got:?}"))
}

async fn load_script(server: &Server, redis: &Redis, number: &str) -> Call {
    let since = server.model().epoch;
    let result = redis.query::<String>(cmd("SCRIPT").arg("LOAD").arg(number)).await.map(drop);
    let missing = server.model().primaries_without(number, since);
    let violation = (result.is_ok() && !missing.is_empty())
        .then(|| format!("{number} succeeded without the primaries {missing:?}"));
    Call { number: number.to_owned(), commands: Vec::new(), result, violation }
}

async fn scan(server: &Server, redis: &Redis, number: &str) -> Call {
    let existing = server.model().existing_keys();
    let mut names = BTreeSet::new();
    let mut scan = redis.scan("*", 10);
    let result = loop {
        match scan.next().await {
            Ok(Some(page)) => names.extend(page),
            Ok(None) => break Ok(()),
            Err(error) => break Err(error),
        }
    };
    let missing: Vec<_> = existing.difference(&names).collect();
    let violation =
        (result.is_ok() && !missing.is_empty()).then(|| format!("{number}: no {missing:?} in a scan"));
    Call { number: number.to_owned(), commands: Vec::new(), result, violation }
}

/// Checks one call: its result, its error, that its commands were executed if it succeeded, and in which order.
pub(super) fn check_call(call: &Call, history: &[Arrival]) -> Option<String> {
    if call.violation.is_some() {
        return call.violation.clone();
    }
    if let Err(error) = &call.result {
        let expected = [ServerErrorKind::ClusterDown, ServerErrorKind::TryAgain].map(Into::into);
        if !error.is_io_error() && !expected.contains(&error.kind()) {
            return Some(format!("{}: unexpected {error}", call.number));
        }
    }
    let executed = |command: &Command| {
        history.iter().position(|arrival| arrival.id == command.id && arrival.outcome.is_executed())
    };
    let mut latest: BTreeMap<&str, usize> = BTreeMap::new();
    for command in &call.commands {
        let Some(at) = executed(command) else {
            if call.result.is_ok() {
                return Some(format!("{} succeeded without being executed", command.id));
            }
            continue;
        };
        for key in &command.keys {
            if latest.insert(key, at).is_some_and(|earlier| earlier > at) {
                return Some(format!("{} was executed before an earlier command about {key}", command.id));
            }
        }
    }
    None
}

/// Checks each command: it is sent again only after a redirection, and `ASKING` is effective for it alone.
pub(super) fn check_commands(history: &[Arrival]) -> Vec<String> {
    let mut violations = Vec::new();
    let mut previous: BTreeMap<&str, &Arrival> = BTreeMap::new();
    for arrival in history {
        let before = previous.insert(&arrival.id, arrival).map(|before| before.outcome);
        let id = &arrival.id;
        match before {
            None | Some(Outcome::Moved) if arrival.is_asking => {
                violations.push(format!("{id} was sent with ASKING without an ASK"));
            }
            Some(Outcome::Ask(to)) if !arrival.is_asking || arrival.node != to => {
                violations.push(format!("{id} did not follow an ASK to node {to}: {arrival:?}"));
            }
            None | Some(Outcome::Moved | Outcome::Ask(_)) => {}
            Some(outcome) => violations.push(format!("{id} was sent again after {outcome:?}")),
        }
    }
    violations
}
