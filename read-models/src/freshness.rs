//! Read-your-writes.
//!
//! A command records the position of its event, for a short time, as a mark of each scope that it concerns: the writer
//! and the entities written to. A read of such a scope finds the mark and waits until the projections that it reads have
//! reached the position. Other reads pay for one more key in the first round trip.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use axum::{
    http::{HeaderMap, HeaderName, HeaderValue},
    response::{IntoResponse, Response},
};
use metrics::{counter, histogram};
use redis::{Cmd, cmd};
use tokio::{
    sync::Semaphore,
    time::{Instant, sleep, timeout},
};
use vidlog_contract::ApiError;
use vidlog_schemas::{
    Keys,
    projections::{self, Projection, View},
};

use crate::{
    error::{ReadError, Store},
    generation_cache::Change,
    metrics::{FALLBACK_READS, FRESHNESS_TIMEOUTS, FRESHNESS_WAIT_SECONDS, FRESHNESS_WAITS},
    position::{Position, Scope},
    staleness::{MARK_LIFETIME, Staleness},
    stores::{Source, Views},
};

/// In a response: the position of the event that a command appended. In a request: positions to wait for.
pub const POSITION_HEADER: HeaderName = HeaderName::from_static("vidlog-position");
/// In a response: `true` if it may lack writes that the reader expects.
pub const STALE_HEADER: HeaderName = HeaderName::from_static("vidlog-stale");

/// The longest wait of a read. With the read itself it stays within the client's timeout of 5 s.
const MAX_WAIT: Duration = Duration::from_secs(2);
/// The most concurrent waits for marks. Further reads check once and respond as stale, so waits cannot hold all
/// connections.
const MAX_WAITS: usize = 256;
/// The most concurrent waits for positions that clients sent. Of its own, so that they cannot take those for marks.
const MAX_CLIENT_WAITS: usize = 64;
/// The most attempts of a read whose generation changes. More than one change needs concurrent replies out of order.
const MAX_ATTEMPTS: usize = 4;
const FIRST_PAUSE: Duration = Duration::from_millis(2);
const LONGEST_PAUSE: Duration = Duration::from_millis(25);

/// Parses the positions of a request's `Vidlog-Position` header.
pub fn client_positions(headers: &HeaderMap) -> Result<Vec<Position>, ApiError> {
    let Some(header) = headers.get(POSITION_HEADER) else { return Ok(Vec::new()) };
    let text = header.to_str().map_err(|_| ApiError::invalid("Vidlog-Position is not text"))?;
    Position::parse_list(text).map_err(|error| ApiError::invalid(format!("Vidlog-Position: {error}")))
}

/// Records marks and waits for them. Clones share the connection.
#[derive(Clone)]
pub struct Freshness {
    keys: Keys,
    views: Views,
    staleness: Staleness,
    wait_permits: Arc<Semaphore>,
    client_wait_permits: Arc<Semaphore>,
}

/// The writes that a read must include.
#[derive(Clone, Debug)]
pub struct FreshnessRequirement {
    /// The scopes whose marks the read waits for: the caller and the entities that it reads.
    pub scopes: Vec<Scope>,
    /// The projections that the read uses. Marks of streams that none of them folds do not matter, nor the lag of others.
    pub projections: &'static [Projection],
    /// The positions that the client sent. Those that no command was answered with are not waited for.
    pub client_positions: Vec<Position>,
}

/// The value of a read, and whether it is stale.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fresh<T> {
    /// The value.
    pub value: T,
    /// Whether the value may lack a write that the reader expects: a wait timed out, a projection of the read is paused,
    /// stopped or far behind, the client sent an unknown position, the marks are unavailable, or a view is incomplete.
    pub stale: bool,
}

impl<T> Fresh<T> {
    /// Maps the value.
    pub fn map<U>(self, change: impl FnOnce(T) -> U) -> Fresh<U> {
        Fresh { value: change(self.value), stale: self.stale }
    }
}

impl<T> Fresh<Option<T>> {
    /// Returns the value, or the error of a missing entity, such as "user". What a stale read lacks may exist, so its
    /// error is "unavailable".
    pub fn require(self, entity: &str) -> Result<Fresh<T>, ApiError> {
        match self.value {
            Some(value) => Ok(Fresh { value, stale: self.stale }),
            None if self.stale => Err(ApiError::unavailable(format!(
                "the {entity} is not visible yet or does not exist; try again in a moment"
            ))),
            None => Err(ApiError::not_found(entity)),
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

/// The offsets that a read waits for: per projection, by the field of its progress.
type Targets = Vec<(Projection, BTreeMap<String, i64>)>;

/// What a read waits for: positions in the streams of its projections.
struct Wanted {
    marks: Vec<Position>,
    client: Vec<Position>,
    /// Whether the client sent a position that Redis does not know to be issued: it is forged, older than this data of
    /// Redis, or was not recorded.
    has_unknown: bool,
}

impl Wanted {
    fn is_empty(&self) -> bool {
        self.marks.is_empty() && self.client.is_empty()
    }
}

/// The result of a read of the views.
enum ViewRead<T> {
    /// The value, and whether it includes all that the read waited for.
    Done(T, bool),
    /// A view is incomplete. Redis may have lost marks, too.
    Incomplete,
    /// Redis, or the node of a key that the read needs, is unavailable.
    Unavailable,
}

impl Freshness {
    pub(crate) fn new(keys: Keys, views: Views, staleness: Staleness) -> Self {
        Self {
            keys,
            views,
            staleness,
            wait_permits: Arc::new(Semaphore::new(MAX_WAITS)),
            client_wait_permits: Arc::new(Semaphore::new(MAX_CLIENT_WAITS)),
        }
    }

    /// Starts to observe which projections are stale. Each process that reads does this once; without it, they count as
    /// current for the lifetime of a mark.
    pub fn observe_projections(&self) {
        self.staleness.start();
    }

    /// Records a write as a mark of each scope, and its position as issued, before the command responds.
    pub async fn record(&self, scopes: &[Scope], position: Position) -> Result<(), ReadError> {
        let issued = self.keys.issued(&position.field());
        let issued = cmd("ZADD").arg(issued).arg("GT").arg(position.next_offset).arg(position.field()).take();
        let commands: Vec<_> = [issued].into_iter().chain(self.marks(scopes, position)).collect();
        self.views.pipeline(&commands).await.map(drop)
    }

    /// Records a mark of each scope at a position that no client has been given.
    pub async fn mark(&self, scopes: &[Scope], position: Position) -> Result<(), ReadError> {
        let commands: Vec<_> = self.marks(scopes, position).collect();
        self.views.pipeline(&commands).await.map(drop)
    }

    fn marks(&self, scopes: &[Scope], position: Position) -> impl Iterator<Item = Cmd> {
        scopes.iter().flat_map(move |scope| {
            let key = self.keys.recent_writes(&scope.to_string());
            let mark = cmd("ZADD").arg(&key).arg("GT").arg(position.next_offset).arg(position.field()).take();
            [mark, cmd("EXPIRE").arg(&key).arg(MARK_LIFETIME.as_secs()).take()]
        })
    }

    /// Runs a read so that it includes the required writes.
    ///
    /// Fetches the marks concurrently with the read. If there are any, waits until the projections have reached them and
    /// repeats the read, because the first one may have started before. Reads from the tables while a node of Redis that
    /// the read needs is unavailable or a view is incomplete; never combines the two.
    pub async fn read<T, F, Reading>(
        &self,
        requirement: FreshnessRequirement,
        read: F,
    ) -> Result<Fresh<T>, ReadError>
    where
        F: Fn(Source) -> Reading,
        Reading: Future<Output = Result<T, ReadError>>,
    {
        let used = requirement.projections;
        let before = self.views.generations().snapshot(used);
        let (wanted, first) = tokio::join!(self.wanted(&requirement), self.read_views(used, &read));
        let wanted = match wanted {
            Ok(wanted) => Some(wanted),
            Err(error) if error.is_unavailable(Store::Redis) => None,
            Err(error) => return Err(error),
        };
        let has_unknown = wanted.as_ref().is_none_or(|wanted| wanted.has_unknown);
        let is_available = match self.read_again(used, wanted.as_ref(), first, &read).await? {
            ViewRead::Done(value, is_reached) => {
                let stale = !is_reached || has_unknown || self.staleness.is_any_stale(used);
                return Ok(Fresh { value, stale });
            }
            ViewRead::Incomplete => false,
            // Redis may have answered without marks because it had just lost them.
            ViewRead::Unavailable => self.views.generations().change_since(&before) != Change::Incomplete,
        };
        counter!(FALLBACK_READS).increment(1);
        let tables = tables(used);
        let is_reached = match wanted {
            Some(wanted) if is_available => self.wait_all(&tables, &wanted).await,
            _ => false,
        };
        let value = read(Source::Tables).await?;
        let stale = !is_reached || has_unknown || self.staleness.is_any_stale(&tables);
        Ok(Fresh { value, stale })
    }

    /// Waits for what is wanted, if anything is, and then repeats the first read of the views.
    async fn read_again<T, F, Reading>(
        &self,
        used: &[Projection],
        wanted: Option<&Wanted>,
        first: Result<Option<T>, ReadError>,
        read: &F,
    ) -> Result<ViewRead<T>, ReadError>
    where
        F: Fn(Source) -> Reading,
        Reading: Future<Output = Result<T, ReadError>>,
    {
        let mut result = first;
        let mut is_reached = true;
        if let (Ok(Some(_)), Some(wanted)) = (&result, wanted)
            && !wanted.is_empty()
        {
            is_reached = self.wait_all(used, wanted).await;
            result = self.read_views(used, read).await;
        }
        match result {
            Ok(Some(value)) => Ok(ViewRead::Done(value, is_reached)),
            Ok(None) => Ok(ViewRead::Incomplete),
            Err(error) if error.is_unavailable(Store::Redis) => Ok(ViewRead::Unavailable),
            Err(error) => Err(error),
        }
    }

    /// Reads from the live generation of the views; `None` if one of them is incomplete.
    async fn read_views<T, F, Reading>(
        &self,
        projections: &[Projection],
        read: &F,
    ) -> Result<Option<T>, ReadError>
    where
        F: Fn(Source) -> Reading,
        Reading: Future<Output = Result<T, ReadError>>,
    {
        let generations = self.views.generations();
        for _ in 0..MAX_ATTEMPTS {
            let snapshot = generations.snapshot(projections);
            let result = read(Source::Views).await;
            match generations.change_since(&snapshot) {
                Change::None => return result.map(Some),
                Change::Generation => {}
                Change::Incomplete => break,
            }
        }
        Ok(None)
    }

    /// Reads the marks, and returns what to wait for.
    async fn wanted(&self, requirement: &FreshnessRequirement) -> Result<Wanted, ReadError> {
        let is_folded = |position: &&Position| {
            requirement.projections.iter().any(|projection| projection.streams.contains(&position.stream))
        };
        let sent: Vec<_> = requirement.client_positions.iter().filter(is_folded).copied().collect();
        let marks = requirement.scopes.iter().map(|scope| {
            let key = self.keys.recent_writes(&scope.to_string());
            cmd("ZRANGE").arg(key).arg(0).arg(-1).arg("WITHSCORES").take()
        });
        let issued = sent.iter().map(Position::field).map(|field| {
            let key = self.keys.issued(&field);
            cmd("ZSCORE").arg(key).arg(field).take()
        });
        let mut replies = self.views.pipeline(&marks.chain(issued).collect::<Vec<_>>()).await?;

        let mut marks = Vec::new();
        for _ in &requirement.scopes {
            let fields: Vec<(String, i64)> = replies.take()?;
            let positions =
                fields.into_iter().filter_map(|(field, offset)| Position::from_field(&field, offset));
            marks.extend(positions.filter(|position| is_folded(&position)));
        }
        let (mut client, mut has_unknown) = (Vec::new(), false);
        for position in sent {
            let issued: Option<i64> = replies.take()?;
            if issued.is_none_or(|issued| position.next_offset > issued) {
                has_unknown = true;
            } else if !marks.iter().any(|mark| mark.includes(position)) {
                client.push(position);
            }
        }
        Ok(Wanted { marks, client, has_unknown })
    }

    /// Waits until some projections have reached all that is wanted. Returns `false` on a timeout.
    async fn wait_all(&self, projections: &[Projection], wanted: &Wanted) -> bool {
        let (marks, client) = (targets(projections, &wanted.marks), targets(projections, &wanted.client));
        let (marks, client) = tokio::join!(
            self.wait(&marks, &self.wait_permits),
            self.wait(&client, &self.client_wait_permits),
        );
        marks && client
    }

    /// Waits until all targets are reached. Returns `false` on a timeout, or if Redis is unavailable.
    async fn wait(&self, targets: &Targets, permits: &Semaphore) -> bool {
        if targets.is_empty() {
            return true;
        }
        counter!(FRESHNESS_WAITS).increment(1);
        let start = Instant::now();
        let reached = match permits.try_acquire() {
            Ok(_permit) => timeout(MAX_WAIT, self.poll(targets)).await.unwrap_or(false),
            Err(_) => self.is_reached(targets).await.unwrap_or(false),
        };
        histogram!(FRESHNESS_WAIT_SECONDS).record(start.elapsed());
        if !reached {
            counter!(FRESHNESS_TIMEOUTS).increment(1);
        }
        reached
    }

    async fn poll(&self, targets: &Targets) -> bool {
        let mut pause = FIRST_PAUSE;
        loop {
            match self.is_reached(targets).await {
                Ok(true) => return true,
                Ok(false) => sleep(pause).await,
                Err(_) => return false,
            }
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    async fn is_reached(&self, targets: &Targets) -> Result<bool, ReadError> {
        // The keys are of the generation that is live now; the progress of an old one no longer changes.
        let commands: Vec<_> = targets
            .iter()
            .map(|(projection, fields)| (self.keys.progress(projection), fields.keys().collect::<Vec<_>>()))
            .map(|(key, fields)| cmd("HMGET").arg(key).arg(fields).take())
            .collect();
        let mut replies = self.views.pipeline(&commands).await?;
        for (_, fields) in targets {
            let progress: Vec<Option<i64>> = replies.take()?;
            if progress.iter().zip(fields.values()).any(|(progress, offset)| progress.unwrap_or(0) < *offset)
            {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

/// Returns the offsets that each projection must reach: those of the streams that it folds.
fn targets(projections: &[Projection], positions: &[Position]) -> Targets {
    let of_projection = |projection: &Projection| {
        let mut fields = BTreeMap::new();
        for position in positions.iter().filter(|position| projection.streams.contains(&position.stream)) {
            let offset = fields.entry(position.field()).or_default();
            *offset = position.next_offset.max(*offset);
        }
        (*projection, fields)
    };
    projections.iter().map(of_projection).filter(|(_, fields)| !fields.is_empty()).collect()
}

/// Returns the projections whose tables serve a read instead of its views: those that fold the same streams.
fn tables(used: &[Projection]) -> Vec<Projection> {
    let is_used = |stream: &&str| used.iter().any(|projection| projection.streams.contains(stream));
    let all = projections::ALL.iter().filter(|projection| matches!(projection.view, View::MySql(_)));
    all.filter(|projection| projection.streams.iter().any(is_used)).copied().collect()
}

#[cfg(test)]
mod tests {
    use vidlog_schemas::projections::{FEED, LIKES, LIKES_TABLE, MESSAGES_TABLE, TOP_VIDEOS, VIDEOS_TABLE};

    use super::*;

    #[test]
    fn tables_of_views_fold_their_streams() {
        assert_eq!(tables(&[FEED]), [VIDEOS_TABLE]);
        assert_eq!(tables(&[LIKES, MESSAGES_TABLE]), [MESSAGES_TABLE, LIKES_TABLE]);
        assert_eq!(tables(&[TOP_VIDEOS]), [VIDEOS_TABLE, LIKES_TABLE]);
    }
}
