//! The load generator: random commands of a few users about a few videos, so that commands conflict.

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
    ledger::{Command, Kind, LogPosition, Outcome},
    system::{JWT_KEYS, System},
};

/// Concurrent callers.
const CLIENTS: u64 = 10;
/// Registered users.
const USERS: usize = 5;
/// Turns in which a caller acts as the same unregistered user.
const TURNS_PER_UNREGISTERED_USER: usize = 15;
/// The longest pause between two commands of a caller.
const MAX_PAUSE_MS: u64 = 50;
/// Timeout of a request: a little longer than command-api's own.
const TIMEOUT: Duration = Duration::from_secs(6);
/// Attempts at a command with an unknown outcome, of a caller that retries.
const ATTEMPTS: u32 = 4;
/// Attempts at a command that must succeed before the load starts.
const SETUP_ATTEMPTS: u32 = 40;
const RETRY_INTERVAL: Duration = Duration::from_millis(300);

/// The callers and the entities that they use.
pub(crate) struct LoadGenerator {
    http: Client,
    base: String,
    tokens: Tokens,
    users: Vec<i64>,
    videos: Vec<i64>,
    /// Acknowledged comments: video, comment and author.
    comments: Mutex<Vec<(i64, i64, i64)>>,
}

/// A command before it is sent.
struct Request {
    kind: Kind,
    caller: i64,
    path: &'static str,
    parameters: Vec<(&'static str, String)>,
}

impl LoadGenerator {
    /// Callers of a system without users and videos.
    pub(crate) fn new(system: &System) -> anyhow::Result<Self> {
        let clock = Clock::system();
        Ok(Self {
            http: Client::builder().timeout(TIMEOUT).build()?,
            base: system.base.clone(),
            tokens: Tokens::parse(JWT_KEYS, move || clock.now_ms())?,
            users: Vec::new(),
            videos: Vec::new(),
            comments: Mutex::default(),
        })
    }

    /// Registers the users; returns the commands.
    pub(crate) async fn register(&mut self) -> anyhow::Result<Vec<Command>> {
        let mut commands = Vec::new();
        for number in 0..USERS {
            // A failpoint may abort command-api meanwhile.
            let (command, answer) =
                self.send(&registration(&format!("user {number}")), SETUP_ATTEMPTS).await?;
            commands.push(command);
            let id = answer.and_then(|answer| answer["user_id"].as_i64());
            self.users.push(id.context("failed to register a user")?);
        }
        Ok(commands)
    }

    /// The ids of the registered users.
    pub(crate) fn users(&self) -> &[i64] {
        &self.users
    }

    /// Sets the videos that callers like and comment on.
    pub(crate) fn set_videos(&mut self, videos: Vec<i64>) {
        self.videos = videos;
    }

    /// Sends commands until stopped; returns them.
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
        while let Some(sent) = clients.join_next().await {
            commands.extend(sent.context("a caller panicked")??);
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
            let request = self.next_request(client, commands.len(), &mut rng);
            let attempts = if rng.random_bool(0.3) { ATTEMPTS } else { 1 };
            let (command, answer) = self.send(&request, attempts).await?;
            self.remember_comment(&request, answer.as_ref());
            // A system that is down refuses at once; sending without pauses would only delay its restart.
            let pause = if command.outcome == Outcome::Unknown {
                RETRY_INTERVAL
            } else {
                Duration::from_millis(rng.random_range(0..MAX_PAUSE_MS))
            };
            commands.push(command);
            sleep(pause).await;
        }
        Ok(commands)
    }

    fn next_request(&self, client: u64, turn: usize, rng: &mut StdRng) -> Request {
        let caller = pick(&self.users, rng);
        let (video, other) = (pick(&self.videos, rng), pick(&self.users, rng));
        let unregistered = UnregisteredUser::of(client, turn);
        let action = |does: bool| if does { "1" } else { "2" }.to_owned();
        let request = |kind, path, parameters| Request { kind, caller, path, parameters };
        match rng.random_range(0..100) {
            0..45 => {
                let is_unregistered = rng.random_bool(0.7);
                let (caller, video) = if is_unregistered {
                    (unregistered.id, unregistered.one_of(&self.videos))
                } else {
                    (caller, video)
                };
                let action_type = action(rng.random_bool(0.6));
                let like = [("video_id", video.to_string()), ("action_type", action_type)];
                Request { caller, ..request(Kind::Like, "/douyin/favorite/action/", like.into()) }
            }
            45..65 => {
                let is_unregistered = rng.random_bool(0.7);
                let (caller, other) = if is_unregistered {
                    (unregistered.id, unregistered.one_of(&self.users))
                } else {
                    (caller, other)
                };
                let action_type = action(rng.random_bool(0.6));
                let follow = [("to_user_id", other.to_string()), ("action_type", action_type)];
                Request { caller, ..request(Kind::Follow, "/douyin/relation/action/", follow.into()) }
            }
            65..80 => {
                let text = format!("comment {turn} of {client}");
                let post =
                    [("video_id", video.to_string()), ("action_type", action(true)), ("comment_text", text)];
                request(Kind::Comment, "/douyin/comment/action/", post.into())
            }
            80..86 => {
                let comments = self.comments.lock().unwrap_or_else(PoisonError::into_inner);
                let (video, comment, caller) = comments.choose(rng).copied().unwrap_or((video, 1, caller));
                let deletion = [
                    ("video_id", video.to_string()),
                    ("action_type", action(false)),
                    ("comment_id", comment.to_string()),
                ];
                Request { caller, ..request(Kind::DeleteComment, "/douyin/comment/action/", deletion.into()) }
            }
            86..98 => {
                let content = format!("message {turn} of {client}");
                let message =
                    [("to_user_id", other.to_string()), ("action_type", action(true)), ("content", content)];
                request(Kind::Message, "/douyin/message/action/", message.into())
            }
            _ => registration(&format!("user {client}-{turn}")),
        }
    }

    /// Remembers a comment, so that a later command can delete it.
    fn remember_comment(&self, request: &Request, answer: Option<&Value>) {
        let ids = |answer: &Value| Some((request.parameter("video_id")?, answer["comment"]["id"].as_i64()?));
        if request.kind == Kind::Comment
            && let Some((video, comment)) = answer.and_then(ids)
        {
            let comments = &mut self.comments.lock().unwrap_or_else(PoisonError::into_inner);
            comments.push((video, comment, request.caller));
        }
    }

    /// Sends a command until its outcome is known, with limited attempts; returns the answer of a success.
    async fn send(&self, request: &Request, attempts: u32) -> anyhow::Result<(Command, Option<Value>)> {
        let mut command = Command {
            id: Uuid::now_v7().to_string(),
            kind: request.kind,
            attempts: 0,
            outcome: Outcome::Unknown,
        };
        let mut answer = None;
        while command.outcome == Outcome::Unknown && command.attempts < attempts {
            if command.attempts > 0 {
                sleep(RETRY_INTERVAL).await;
            }
            command.attempts += 1;
            let mut http = self
                .http
                .post(format!("{}{}", self.base, request.path))
                .query(&request.parameters)
                .header("x-request-id", &command.id);
            if request.kind != Kind::Register {
                http = http.query(&[("token", self.tokens.sign(request.caller)?)]);
            }
            if attempts > 1 {
                http = http.header("idempotency-key", &command.id);
            }
            (command.outcome, answer) = outcome(http).await;
        }
        Ok((command, answer))
    }
}

impl Request {
    fn parameter(&self, name: &str) -> Option<i64> {
        self.parameters.iter().find(|(key, _)| *key == name)?.1.parse().ok()
    }
}

/// A caller without an account, which can like and follow nevertheless: it likes and follows one video and one user
/// repeatedly, then nothing, because a later like would hide that an earlier one was folded late.
struct UnregisteredUser {
    id: i64,
    number: usize,
}

impl UnregisteredUser {
    fn of(client: u64, turn: usize) -> Self {
        let number = turn / TURNS_PER_UNREGISTERED_USER;
        let id = i64::try_from(number as u64 * CLIENTS + client + 1).unwrap_or(1);
        Self { id, number }
    }

    fn one_of(&self, ids: &[i64]) -> i64 {
        ids.get(self.number % ids.len().max(1)).copied().unwrap_or(1)
    }
}

fn registration(name: &str) -> Request {
    Request {
        kind: Kind::Register,
        caller: 0,
        path: "/douyin/user/register/",
        parameters: vec![("username", name.to_owned()), ("password", "secret".to_owned())],
    }
}

async fn outcome(http: RequestBuilder) -> (Outcome, Option<Value>) {
    let Ok(response) = http.send().await else {
        return (Outcome::Unknown, None);
    };
    let status = response.status();
    let position = response
        .headers()
        .get("vidlog-position")
        .and_then(|value| value.to_str().ok())
        .and_then(LogPosition::before);
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
