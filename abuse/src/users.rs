//! Normal users, and what they experience.

use std::{
    net::SocketAddr,
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

use anyhow::Context;
use futures::future::join_all;
use reqwest::{Client, Method, RequestBuilder, header::CONNECTION};
use serde_json::Value;
use tokio::time::{MissedTickBehavior, interval};

use crate::source::{client, random_text, user_address};

const USERS: u8 = 4;
/// Between the calls of a user. Below the limits of calls of users and addresses over the whole run.
const CALL_INTERVAL: Duration = Duration::from_millis(50);
/// Every such call of a user is on a new connection, as a phone's that comes back to the app.
const CALLS_PER_CONNECTION: usize = 10;
const PASSWORD: &str = "correct-horse";

/// Normal users of the API.
pub(crate) struct Users {
    all: Vec<User>,
    video: Vec<u8>,
    uploads: AtomicU64,
    target: Target,
}

/// What attackers know about the users.
#[derive(Clone)]
pub(crate) struct Target {
    /// A user's name.
    pub(crate) username: String,
    /// A file that the API serves.
    pub(crate) media_path: String,
}

/// What users experienced in a phase.
#[derive(Default)]
pub(crate) struct Experience {
    /// The time of each call, ascending once the phase is over.
    pub(crate) times: Vec<Duration>,
    /// Each failed call: which, and how it failed.
    pub(crate) failures: Vec<String>,
}

struct User {
    base: String,
    client: Client,
    token: String,
    id: i64,
    video: i64,
    author: i64,
}

impl Users {
    /// Registers new users. The feed must have a video.
    pub(crate) async fn register(api: SocketAddr, video: Vec<u8>) -> anyhow::Result<Self> {
        let base = format!("http://{api}");
        let feed = call(client(user_address(1))?.get(format!("{base}/douyin/feed/")))
            .await
            .map_err(anyhow::Error::msg)?;
        let newest = &feed["video_list"][0];
        let media_path = newest["play_url"]
            .as_str()
            .and_then(|url| url.find("/static/").map(|start| url[start..].to_owned()));
        let (mut all, mut username) = (Vec::new(), String::new());
        for number in 1..=USERS {
            let client = client(user_address(number))?;
            username = format!("user-{}", random_text());
            let form = [("username", username.as_str()), ("password", PASSWORD)];
            let answer = call(client.post(format!("{base}/douyin/user/register/")).query(&form)).await;
            let answer = answer.map_err(anyhow::Error::msg).context("failed to register")?;
            all.push(User {
                base: base.clone(),
                client,
                token: answer["token"].as_str().context("no token")?.to_owned(),
                id: answer["user_id"].as_i64().context("no user id")?,
                video: newest["id"].as_i64().context("the feed is empty; add demo data first")?,
                author: newest["author"]["id"].as_i64().context("the video has no author")?,
            });
        }
        let target =
            Target { username, media_path: media_path.context("the video has no file of this server")? };
        Ok(Self { all, video, uploads: AtomicU64::new(0), target })
    }

    pub(crate) fn target(&self) -> Target {
        self.target.clone()
    }

    /// Bytes of all uploads so far.
    pub(crate) fn uploaded_bytes(&self) -> u64 {
        self.uploads.load(Ordering::Relaxed) * self.video.len() as u64
    }

    /// Uses the API for some time: all users call it one call after the other, and the first one publishes a video.
    pub(crate) async fn use_api(&self, time: Duration) -> Experience {
        let end = Instant::now() + time;
        let (mut experience, upload) =
            tokio::join!(join_all(self.all.iter().map(|user| user.use_api(end))), self.upload(time / 3));
        let mut total = Experience::default();
        for one in &mut experience {
            total.times.append(&mut one.times);
            total.failures.append(&mut one.failures);
        }
        total.failures.extend(upload.err());
        total.times.sort_unstable();
        total
    }

    async fn upload(&self, wait: Duration) -> Result<(), String> {
        tokio::time::sleep(wait).await;
        let [user, ..] = self.all.as_slice() else {
            return Ok(());
        };
        let boundary = random_text();
        let mut body = Vec::new();
        for (name, value) in [("token", user.token.as_str()), ("title", "beside attacks")] {
            let part =
                format!("--{boundary}\r\nContent-Disposition: form-data; name=\"{name}\"\r\n\r\n{value}\r\n");
            body.extend_from_slice(part.as_bytes());
        }
        let head =
            "Content-Disposition: form-data; name=\"data\"; filename=\"a.mp4\"\r\nContent-Type: video/mp4";
        body.extend_from_slice(format!("--{boundary}\r\n{head}\r\n\r\n").as_bytes());
        body.extend_from_slice(&self.video);
        body.extend_from_slice(format!("\r\n--{boundary}--\r\n").as_bytes());
        let request = user.client.post(format!("{}/douyin/publish/action/", user.base));
        let content_type = format!("multipart/form-data; boundary={boundary}");
        call(request.header("content-type", content_type).body(body))
            .await
            .map_err(|error| format!("publish/action: {error}"))?;
        self.uploads.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }
}

impl User {
    async fn use_api(&self, end: Instant) -> Experience {
        let mut experience = Experience::default();
        let mut ticks = interval(CALL_INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        for number in 0.. {
            ticks.tick().await;
            let began = Instant::now();
            if began >= end {
                break;
            }
            let (method, path, query) = self.step(number);
            let mut request =
                self.client.request(method, format!("{}/douyin/{path}/", self.base)).query(&query);
            if number % CALLS_PER_CONNECTION == 0 {
                request = request.header(CONNECTION, "close");
            }
            let outcome = call(request.query(&[("token", &self.token)])).await;
            experience.times.push(began.elapsed());
            experience.failures.extend(outcome.err().map(|error| format!("{path}: {error}")));
        }
        experience
    }

    /// The call with a number: what a user does in turn.
    fn step(&self, number: usize) -> (Method, &'static str, Vec<(&'static str, String)>) {
        const STEPS: usize = 10;
        let (round, step) = (number / STEPS, number % STEPS);
        let (video, author) = (("video_id", self.video.to_string()), self.author.to_string());
        let action = ("action_type", (1 + round % 2).to_string());
        match step {
            0 | 4 | 8 => (Method::GET, "feed", vec![]),
            1 => (Method::GET, "user", vec![("user_id", author)]),
            2 => (Method::POST, "favorite/action", vec![video, action]),
            3 => (Method::GET, "favorite/list", vec![("user_id", self.id.to_string())]),
            5 => (Method::GET, "comment/list", vec![video]),
            6 => (Method::GET, "publish/list", vec![("user_id", author)]),
            7 => (Method::POST, "relation/action", vec![("to_user_id", author), action]),
            _ => (Method::GET, "message/chat", vec![("to_user_id", author)]),
        }
    }
}

/// The answer to a call, or how it failed.
async fn call(request: RequestBuilder) -> Result<Value, String> {
    let response = request.send().await.map_err(|error| error.without_url().to_string())?;
    let status = response.status();
    let body = response.bytes().await.map_err(|error| error.without_url().to_string())?;
    let body: Value = serde_json::from_slice(&body).map_err(|error| format!("HTTP {status}: {error}"))?;
    if status.is_success() && body["status_code"] == 0 {
        Ok(body)
    } else {
        Err(format!("HTTP {status}, {} {}", body["status_code"], body["status_msg"]))
    }
}

impl Experience {
    /// The time within which a share of the calls was answered.
    pub(crate) fn percentile(&self, percent: usize) -> Duration {
        let index = (self.times.len() * percent / 100).min(self.times.len().saturating_sub(1));
        self.times.get(index).copied().unwrap_or_default()
    }
}
