//! Random commands of a few users about a few videos, so that everything collides.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use anyhow::Context;
use rand::{RngExt, SeedableRng, rngs::StdRng, seq::IndexedRandom};
use reqwest::{Client, RequestBuilder};
use serde_json::Value;
use tokio::{task::JoinSet, time::sleep};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;
use vidlog_contract::Tokens;
use vidlog_service_kit::clock::Clock;

use crate::{
    ledger::{Command, Kind, Outcome, Place},
    system::{JWT_KEYS, System},
};

/// Callers at once.
const CLIENTS: u64 = 10;
/// Users that have an account.
const USERS: usize = 5;
/// Turns in which a caller acts as the same stranger.
const STRANGER_TURNS: usize = 15;
/// Between two commands of a caller, at most.
const PAUSE_MS: u64 = 50;
/// How long a caller waits for an answer: a little longer than command-api takes for one.
const PATIENCE: Duration = Duration::from_secs(6);
/// Attempts at a command whose outcome is unknown, of a caller that asks again.
const ATTEMPTS: u32 = 4;
/// The same of whoever has to have an answer.
const PERSISTENT: u32 = 40;
const RETRY: Duration = Duration::from_millis(300);

/// The callers, and what they know of each other.
pub(crate) struct Load {
    http: Client,
    base: String,
    tokens: Tokens,
    users: Vec<i64>,
    videos: Vec<i64>,
    /// Comments that were acknowledged: video, comment, and who wrote it.
    comments: Mutex<Vec<(i64, i64, i64)>>,
}

/// A command that a caller wants to give.
struct Wish {
    kind: Kind,
    caller: i64,
    path: &'static str,
    parameters: Vec<(&'static str, String)>,
}

impl Load {
    /// Callers of a system who know nobody yet.
    pub(crate) fn new(system: &System) -> anyhow::Result<Self> {
        let clock = Clock::system();
        Ok(Self {
            http: Client::builder().timeout(PATIENCE).build()?,
            base: system.base.clone(),
            tokens: Tokens::parse(JWT_KEYS, move || clock.now_ms())?,
            users: Vec::new(),
            videos: Vec::new(),
            comments: Mutex::default(),
        })
    }

    /// Registers the users.
    pub(crate) async fn register(&mut self) -> anyhow::Result<Vec<Command>> {
        let mut commands = Vec::new();
        for number in 0..USERS {
            // A failpoint may be in the way.
            let (command, answer) =
                self.carry_out(&registration(&format!("user {number}")), PERSISTENT).await?;
            commands.push(command);
            let id = answer.and_then(|answer| answer["user_id"].as_i64());
            self.users.push(id.context("a user can't register")?);
        }
        Ok(commands)
    }

    /// Everyone who has an account.
    pub(crate) fn users(&self) -> &[i64] {
        &self.users
    }

    /// Tells the callers of videos.
    pub(crate) fn show(&mut self, videos: Vec<i64>) {
        self.videos = videos;
    }

    /// Gives commands until it is stopped; returns them.
    pub(crate) async fn run(
        self: Arc<Self>,
        seed: u64,
        stop: CancellationToken,
    ) -> anyhow::Result<Vec<Command>> {
        let mut clients = JoinSet::new();
        for client in 0..CLIENTS {
            let rng = StdRng::seed_from_u64(seed * CLIENTS + client);
            clients.spawn(self.clone().client(client, rng, stop.clone()));
        }
        let mut commands = Vec::new();
        while let Some(given) = clients.join_next().await {
            commands.extend(given.context("a caller panicked")??);
        }
        Ok(commands)
    }

    async fn client(
        self: Arc<Self>,
        client: u64,
        mut rng: StdRng,
        stop: CancellationToken,
    ) -> anyhow::Result<Vec<Command>> {
        let mut commands = Vec::new();
        while !stop.is_cancelled() {
            let wish = self.wish(client, commands.len(), &mut rng);
            let attempts = if rng.random_bool(0.3) { ATTEMPTS } else { 1 };
            let (command, answer) = self.carry_out(&wish, attempts).await?;
            self.learn(&wish, answer.as_ref());
            // A system that is away answers at once; asking it without end would only take time from its return.
            let pause = if command.outcome == Outcome::Unknown {
                RETRY
            } else {
                Duration::from_millis(rng.random_range(0..PAUSE_MS))
            };
            commands.push(command);
            sleep(pause).await;
        }
        Ok(commands)
    }

    fn wish(&self, client: u64, turn: usize, rng: &mut StdRng) -> Wish {
        let caller = pick(&self.users, rng);
        let (video, other) = (pick(&self.videos, rng), pick(&self.users, rng));
        let stranger = Stranger::of(client, turn);
        let action = |done: bool| if done { "1" } else { "2" }.to_owned();
        let wish = |kind, path, parameters| Wish { kind, caller, path, parameters };
        match rng.random_range(0..100) {
            0..45 => {
                let is_strange = rng.random_bool(0.7);
                let (caller, video) =
                    if is_strange { (stranger.id, stranger.one_of(&self.videos)) } else { (caller, video) };
                let done = action(rng.random_bool(0.6));
                let like = [("video_id", video.to_string()), ("action_type", done)];
                Wish { caller, ..wish(Kind::Like, "/douyin/favorite/action/", like.into()) }
            }
            45..65 => {
                let is_strange = rng.random_bool(0.7);
                let (caller, other) =
                    if is_strange { (stranger.id, stranger.one_of(&self.users)) } else { (caller, other) };
                let done = action(rng.random_bool(0.6));
                let follow = [("to_user_id", other.to_string()), ("action_type", done)];
                Wish { caller, ..wish(Kind::Follow, "/douyin/relation/action/", follow.into()) }
            }
            65..80 => {
                let text = format!("comment {turn} of {client}");
                let post =
                    [("video_id", video.to_string()), ("action_type", action(true)), ("comment_text", text)];
                wish(Kind::Comment, "/douyin/comment/action/", post.into())
            }
            80..86 => {
                let comments = self.comments.lock().unwrap_or_else(PoisonError::into_inner);
                let (video, comment, caller) = comments.choose(rng).copied().unwrap_or((video, 1, caller));
                let deletion = [
                    ("video_id", video.to_string()),
                    ("action_type", action(false)),
                    ("comment_id", comment.to_string()),
                ];
                Wish { caller, ..wish(Kind::DeleteComment, "/douyin/comment/action/", deletion.into()) }
            }
            86..98 => {
                let content = format!("message {turn} of {client}");
                let message =
                    [("to_user_id", other.to_string()), ("action_type", action(true)), ("content", content)];
                wish(Kind::Message, "/douyin/message/action/", message.into())
            }
            _ => registration(&format!("user {client}-{turn}")),
        }
    }

    /// Remembers a comment, so that it can be deleted.
    fn learn(&self, wish: &Wish, answer: Option<&Value>) {
        let known = |answer: &Value| Some((wish.parameter("video_id")?, answer["comment"]["id"].as_i64()?));
        if wish.kind == Kind::Comment
            && let Some((video, comment)) = answer.and_then(known)
        {
            let comments = &mut self.comments.lock().unwrap_or_else(PoisonError::into_inner);
            comments.push((video, comment, wish.caller));
        }
    }

    /// Sends a command until its outcome is known, but not too often; returns the answer of success.
    async fn carry_out(&self, wish: &Wish, attempts: u32) -> anyhow::Result<(Command, Option<Value>)> {
        let mut command = Command {
            id: Uuid::now_v7().to_string(),
            kind: wish.kind,
            attempts: 0,
            outcome: Outcome::Unknown,
        };
        let mut answer = None;
        while command.outcome == Outcome::Unknown && command.attempts < attempts {
            if command.attempts > 0 {
                sleep(RETRY).await;
            }
            command.attempts += 1;
            let mut request = self
                .http
                .post(format!("{}{}", self.base, wish.path))
                .query(&wish.parameters)
                .header("x-request-id", &command.id);
            if wish.kind != Kind::Register {
                request = request.query(&[("token", self.tokens.sign(wish.caller)?)]);
            }
            if attempts > 1 {
                request = request.header("idempotency-key", &command.id);
            }
            (command.outcome, answer) = outcome(request).await;
        }
        Ok((command, answer))
    }
}

impl Wish {
    fn parameter(&self, name: &str) -> Option<i64> {
        self.parameters.iter().find(|(known, _)| *known == name)?.1.parse().ok()
    }
}

/// Someone without an account, who can like and follow nevertheless: one video and one user, again and again, and then
/// nothing any more. A later like would cover up that an earlier one was folded late.
struct Stranger {
    id: i64,
    taste: usize,
}

impl Stranger {
    fn of(client: u64, turn: usize) -> Self {
        let taste = turn / STRANGER_TURNS;
        let id = i64::try_from(taste as u64 * CLIENTS + client + 1).unwrap_or(1);
        Self { id, taste }
    }

    fn one_of(&self, ids: &[i64]) -> i64 {
        ids.get(self.taste % ids.len().max(1)).copied().unwrap_or(1)
    }
}

fn registration(name: &str) -> Wish {
    Wish {
        kind: Kind::Register,
        caller: 0,
        path: "/douyin/user/register/",
        parameters: vec![("username", name.to_owned()), ("password", "secret".to_owned())],
    }
}

async fn outcome(request: RequestBuilder) -> (Outcome, Option<Value>) {
    let Ok(response) = request.send().await else {
        return (Outcome::Unknown, None);
    };
    let status = response.status();
    let position = response
        .headers()
        .get("vidlog-position")
        .and_then(|value| value.to_str().ok())
        .and_then(Place::before);
    let body = response.text().await.ok().and_then(|text| serde_json::from_str::<Value>(&text).ok());
    let Some(body) = body.filter(|_| status == 200) else {
        return (Outcome::Unknown, None);
    };
    if body["status_code"] == 0 {
        (Outcome::Acknowledged(position), Some(body))
    } else {
        (Outcome::Refused, None)
    }
}

fn pick(ids: &[i64], rng: &mut StdRng) -> i64 {
    ids.choose(rng).copied().unwrap_or(1)
}
