//! Read your writes.
//!
//! A command keeps the position of its event for a short time: as a mark of the writer, and of what was written to.
//! A read by that user, or of that entity, finds the mark and waits until the projections that it reads have passed
//! it. Everyone else pays for one more key in the first round trip.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use axum::{
    http::{HeaderMap, HeaderName, HeaderValue},
    response::{IntoResponse, Response},
};
use metrics::{counter, histogram};
use redis::cmd;
use tokio::{
    sync::Semaphore,
    time::{Instant, sleep, timeout},
};
use vidlog_contract::ApiError;
use vidlog_schemas::{Keys, projections::Projection};

use crate::{
    error::{ReadError, Store},
    generation_cache::Heard,
    metrics::{FALLBACK_READS, FRESHNESS_TIMEOUTS, FRESHNESS_WAIT_SECONDS, FRESHNESS_WAITS},
    position::{Position, Scope},
    stores::{Source, Views},
};

/// In an answer: the position of the event that a command appended. In a request: positions to wait for.
pub const POSITION_HEADER: HeaderName = HeaderName::from_static("vidlog-position");
/// In an answer: `true` where it may lack writes that the reader could expect to see.
pub const STALE_HEADER: HeaderName = HeaderName::from_static("vidlog-stale");

/// How long a mark is kept: longer than a projection is away for a restart or an upgrade.
const MARK_LIFETIME_MS: i64 = 600_000;
/// How long a read waits: with the read itself still well within the five seconds that the client waits.
const MAX_WAIT: Duration = Duration::from_secs(2);
/// Reads that wait at once. More are answered as they are, and said to be stale: whoever asks for a position that will
/// never come must not take the place of others.
const MAX_WAITING: usize = 256;
/// Generations that a read follows. A second is only heard of by replies that overtake each other.
const MAX_SWITCHES: usize = 4;
const FIRST_PAUSE: Duration = Duration::from_millis(2);
const LONGEST_PAUSE: Duration = Duration::from_millis(25);

/// The positions that a request names in its headers.
pub fn client_positions(headers: &HeaderMap) -> Result<Vec<Position>, ApiError> {
    let Some(header) = headers.get(POSITION_HEADER) else { return Ok(Vec::new()) };
    let text = header.to_str().map_err(|_| ApiError::invalid("Vidlog-Position is not text"))?;
    Position::parse_list(text).map_err(|error| ApiError::invalid(format!("Vidlog-Position: {error}")))
}

/// Keeps marks, and waits for them. Clones share the connection.
#[derive(Clone)]
pub struct Freshness {
    keys: Keys,
    views: Views,
    waiting: Arc<Semaphore>,
}

/// What a read must see.
#[derive(Clone, Debug)]
pub struct FreshnessRequirement {
    /// Whose marks count: the caller, and what is read.
    pub scopes: Vec<Scope>,
    /// The projections that are read. A mark of a stream that none of them folds is not waited for.
    pub projections: &'static [Projection],
    /// Positions that the reader itself named.
    pub client_positions: Vec<Position>,
}

/// Something that was read, and whether it may lack what the reader could expect to see.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fresh<T> {
    /// What was read.
    pub value: T,
    /// Whether a wait ran out, or freshness can't be known, or a view is not complete.
    pub stale: bool,
}

impl<T> Fresh<T> {
    /// The same with another value.
    pub fn map<U>(self, change: impl FnOnce(T) -> U) -> Fresh<U> {
        Fresh { value: change(self.value), stale: self.stale }
    }
}

impl<T> Fresh<Option<T>> {
    /// The value, such as a "user", or why there is none: what a stale read lacks may well exist.
    pub fn require(self, what: &str) -> Result<Fresh<T>, ApiError> {
        match self.value {
            Some(value) => Ok(Fresh { value, stale: self.stale }),
            None if self.stale => Err(ApiError::unavailable(format!(
                "whether there is such a {what} can't be known right now; try again in a moment"
            ))),
            None => Err(ApiError::not_found(what)),
        }
    }
}

impl<T: IntoResponse> IntoResponse for Fresh<T> {
    fn into_response(self) -> Response {
        let mut response = self.value.into_response();
        if self.stale {
            response.headers_mut().insert(STALE_HEADER, HeaderValue::from_static("true"));
        }
        response
    }
}

/// What a read waits for: of each projection, by the field of its progress, the offset that must be reached.
type Awaited = Vec<(Projection, BTreeMap<String, i64>)>;

impl Freshness {
    pub(crate) fn new(keys: Keys, views: Views) -> Self {
        Self { keys, views, waiting: Arc::new(Semaphore::new(MAX_WAITING)) }
    }

    /// Marks a write, before it is answered.
    pub async fn record(&self, scopes: &[Scope], position: Position) -> Result<(), ReadError> {
        let mut commands = Vec::with_capacity(2 * scopes.len());
        for scope in scopes {
            let key = self.keys.recent_writes(&scope.to_string());
            commands
                .push(cmd("ZADD").arg(&key).arg("GT").arg(position.next_offset).arg(position.field()).take());
            commands.push(cmd("PEXPIRE").arg(&key).arg(MARK_LIFETIME_MS).take());
        }
        self.views.pipeline(&commands).await.map(drop)
    }

    /// Reads what is at least as new as the marks.
    ///
    /// The marks are fetched while the read goes on. If there are any, the read is repeated once they are passed:
    /// that they are passed by now says nothing about a read that began before. While Redis is away, or one of its
    /// views is not complete, the read is asked for from the tables.
    pub async fn read<T, F, Reading>(
        &self,
        need: FreshnessRequirement,
        read: F,
    ) -> Result<Fresh<T>, ReadError>
    where
        F: Fn(Source) -> Reading,
        Reading: Future<Output = Result<T, ReadError>>,
    {
        let (awaited, first) = tokio::join!(self.awaited(&need), self.read_views(need.projections, &read));
        let (answer, stale) = match (awaited, first) {
            // There is nothing to wait for: the tables do not get newer with the views.
            (_, Ok(None)) => (Ok(None), true),
            (Ok(awaited), first) if awaited.is_empty() => (first, false),
            (Ok(awaited), _) => {
                let passed = self.wait(&awaited).await;
                (self.read_views(need.projections, &read).await, !passed)
            }
            (Err(error), first) if error.is_unavailable(Store::Redis) => (first, true),
            (Err(error), _) => return Err(error),
        };
        match answer {
            Ok(Some(value)) => return Ok(Fresh { value, stale }),
            Ok(None) => {}
            Err(error) if error.is_unavailable(Store::Redis) => {}
            Err(error) => return Err(error),
        }
        counter!(FALLBACK_READS).increment(1);
        Ok(Fresh { value: read(Source::Tables).await?, stale: true })
    }

    /// Reads from the live generation of the views; `None` if one of them is not complete.
    async fn read_views<T, F, Reading>(
        &self,
        projections: &[Projection],
        read: &F,
    ) -> Result<Option<T>, ReadError>
    where
        F: Fn(Source) -> Reading,
        Reading: Future<Output = Result<T, ReadError>>,
    {
        let live = self.views.live();
        for _ in 0..MAX_SWITCHES {
            let known = live.known(projections);
            let answer = read(Source::Views).await;
            match live.heard_since(&known) {
                Heard::Nothing => return answer.map(Some),
                Heard::Switch => {}
                Heard::Loss => break,
            }
        }
        Ok(None)
    }

    async fn awaited(&self, need: &FreshnessRequirement) -> Result<Awaited, ReadError> {
        let commands: Vec<_> = need
            .scopes
            .iter()
            .map(|scope| self.keys.recent_writes(&scope.to_string()))
            .map(|key| cmd("ZRANGE").arg(key).arg(0).arg(-1).arg("WITHSCORES").take())
            .collect();
        let mut replies = self.views.pipeline(&commands).await?;
        let mut positions = need.client_positions.clone();
        for _ in &commands {
            let marks: Vec<(String, i64)> = replies.take()?;
            positions
                .extend(marks.into_iter().filter_map(|(field, offset)| Position::of_field(&field, offset)));
        }
        let of_projection = |projection: &Projection| {
            let mut fields = BTreeMap::new();
            for position in positions.iter().filter(|position| projection.streams.contains(&position.stream))
            {
                let offset = fields.entry(position.field()).or_default();
                *offset = position.next_offset.max(*offset);
            }
            (*projection, fields)
        };
        Ok(need.projections.iter().map(of_projection).filter(|(_, fields)| !fields.is_empty()).collect())
    }

    /// Waits until everything awaited is passed. `false` if that took too long, or can't be known.
    async fn wait(&self, awaited: &Awaited) -> bool {
        counter!(FRESHNESS_WAITS).increment(1);
        let began = Instant::now();
        let passed = match self.waiting.try_acquire() {
            Ok(_place) => timeout(MAX_WAIT, self.poll(awaited)).await.unwrap_or(false),
            Err(_) => self.is_passed(awaited).await.unwrap_or(false),
        };
        histogram!(FRESHNESS_WAIT_SECONDS).record(began.elapsed());
        if !passed {
            counter!(FRESHNESS_TIMEOUTS).increment(1);
        }
        passed
    }

    async fn poll(&self, awaited: &Awaited) -> bool {
        let mut pause = FIRST_PAUSE;
        loop {
            match self.is_passed(awaited).await {
                Ok(true) => return true,
                Ok(false) => sleep(pause).await,
                Err(_) => return false,
            }
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    async fn is_passed(&self, awaited: &Awaited) -> Result<bool, ReadError> {
        // Of the generation that is live by now: another one's progress stands still.
        let commands: Vec<_> = awaited
            .iter()
            .map(|(projection, fields)| (self.keys.progress(projection), fields.keys().collect::<Vec<_>>()))
            .map(|(key, fields)| cmd("HMGET").arg(key).arg(fields).take())
            .collect();
        let mut replies = self.views.pipeline(&commands).await?;
        for (_, fields) in awaited {
            let progress: Vec<Option<i64>> = replies.take()?;
            if progress.iter().zip(fields.values()).any(|(progress, offset)| progress.unwrap_or(0) < *offset)
            {
                return Ok(false);
            }
        }
        Ok(true)
    }
}
