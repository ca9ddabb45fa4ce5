//! Derives the expected lines of the views from the log, without the projections' code.
//!
//! Each event is one change of one entity: a user, a video, a like, a follow, a comment or a message. The
//! changes are sorted by entity, each entity is folded by itself, and its state is written as lines. So only
//! one entity is in memory at a time, no matter how large the log is.

use std::fmt::Display;

use anyhow::Context;
use serde::{Deserialize, Serialize};
use vidlog_events::{
    CommentEvent, Envelope, Event, FollowEvent, LikeEvent, MessageEvent, UserEvent, VideoEvent,
};
use vidlog_projection_engine::view::Projection;
use vidlog_schemas::{
    Keys,
    keys::{Key, feed_week_of, top_score},
    projections::{self, Projection as Catalogued},
    rows::VideoState,
};

use crate::comparison::{LineKey, Lines, Sorter, digest};

/// Changes of the events so far. Add events of one entity in their order.
#[derive(Debug)]
pub struct Model {
    changes: Sorter,
    /// Number of changes so far.
    count: i64,
}

/// Entity that a change belongs to. Likes are ordered by author, then by video, so that they can be counted
/// in one pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Entity {
    User(i64),
    Video(i64),
    Like { author: i64, video: i64, user: i64 },
    Follow { follower: i64, followee: i64 },
    Comment { video: i64, comment: i64 },
    Message { low: i64, high: i64, message: i64 },
}

/// Change of an entity. Contains a digest instead of user-written text.
#[derive(Serialize, Deserialize)]
enum Change {
    Registered {
        name: String,
        time_ms: i64,
    },
    Uploaded {
        author: i64,
        title: String,
        time_ms: i64,
    },
    Decided(Outcome),
    /// A like or a follow.
    Linked {
        time_ms: i64,
    },
    Unlinked,
    Posted {
        user: i64,
        text: String,
        time_ms: i64,
    },
    Deleted,
    /// The count orders the messages of a conversation.
    Sent(Message, i64),
}

/// State of an entity after its changes.
enum State {
    User { name: String, registered_ms: i64 },
    Video { author: i64, title: String, uploaded_ms: i64, outcome: Option<Outcome> },
    Link { since_ms: i64 },
    Comment { user: i64, text: String, posted_ms: i64, is_deleted: bool },
    Message(Message, i64),
}

#[derive(Serialize, Deserialize)]
enum Outcome {
    Published { play_key: String, cover_key: String, published_ms: i64 },
    Rejected { reason: String },
}

#[derive(Serialize, Deserialize)]
struct Message {
    from: i64,
    to: i64,
    content: String,
    time_ms: i64,
}

impl Model {
    /// Creates a model without changes. Holds about the given number of bytes of changes in memory, the rest
    /// in a temporary file.
    pub const fn new(memory: usize) -> Self {
        Self { changes: Sorter::new(memory), count: 0 }
    }

    /// Adds the change of an event. Blocks when it writes to the temporary file.
    pub fn fold(&mut self, envelope: &Envelope) -> anyhow::Result<()> {
        let (entity, change) = change(&envelope.event, envelope.time_ms, self.count);
        let change = serde_json::to_vec(&change).context("failed to write a change")?;
        self.count += 1;
        self.changes.push(&entity.to_bytes(), &change);
        if self.changes.is_full() { self.changes.spill() } else { Ok(()) }
    }

    /// Returns the lines that the views of some projections should have, named as in the generations of the
    /// keys. Blocking.
    pub fn into_lines(self, projections: &[Projection], keys: &Keys, memory: usize) -> anyhow::Result<Lines> {
        let own = projections.iter().map(Projection::name).collect();
        let mut output = Output {
            lines: LineWriter { own, keys: keys.clone(), lines: Lines::new(memory) },
            ranking: Sorter::new(memory / 2),
            counts: Sorter::new(memory / 2),
            likes: LikeCounts::default(),
            messages: Sorter::new(memory / 2),
        };
        let mut last: Option<(Entity, Option<State>)> = None;
        for entry in self.changes.sorted()? {
            let (key, change) = entry?;
            let entity = Entity::from_bytes(&key).context("failed to read an entity")?;
            let change = serde_json::from_slice(&change).context("failed to read a change")?;
            if let Some((done, state)) = last.take_if(|(last, _)| *last != entity) {
                output.write(done, state)?;
            }
            apply(&mut last.get_or_insert((entity, None)).1, change);
        }
        if let Some((done, state)) = last {
            output.write(done, state)?;
        }
        output.finish()
    }
}

impl Entity {
    fn to_bytes(self) -> [u8; 25] {
        let (tag, numbers) = match self {
            Self::User(user) => (0, [user, 0, 0]),
            Self::Video(video) => (1, [video, 0, 0]),
            Self::Like { author, video, user } => (2, [author, video, user]),
            Self::Follow { follower, followee } => (3, [follower, followee, 0]),
            Self::Comment { video, comment } => (4, [video, comment, 0]),
            Self::Message { low, high, message } => (5, [low, high, message]),
        };
        let mut bytes = [tag; 25];
        for (place, number) in bytes[1..].as_chunks_mut().0.iter_mut().zip(numbers) {
            *place = number.to_be_bytes();
        }
        bytes
    }

    fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let (tag, numbers) = bytes.split_first()?;
        let [a, b, c] = numbers.as_chunks().0.try_into().ok()?;
        let [a, b, c] = [a, b, c].map(i64::from_be_bytes);
        Some(match tag {
            0 => Self::User(a),
            1 => Self::Video(a),
            2 => Self::Like { author: a, video: b, user: c },
            3 => Self::Follow { follower: a, followee: b },
            4 => Self::Comment { video: a, comment: b },
            5 => Self::Message { low: a, high: b, message: c },
            _ => return None,
        })
    }
}

/// Returns the entity and the change of an event. The count is the number of changes before it.
fn change(event: &Event, time_ms: i64, count: i64) -> (Entity, Change) {
    match event {
        Event::User(UserEvent::UserRegistered(event)) => {
            let name = digest(event.name.reveal());
            (Entity::User(event.user_id.get()), Change::Registered { name, time_ms })
        }
        Event::Video(event) => video_change(event, time_ms),
        Event::Like(event) => {
            let (author, video, user, change) = match event {
                LikeEvent::VideoLiked(event) => {
                    (event.author_id, event.video_id, event.user_id, Change::Linked { time_ms })
                }
                LikeEvent::VideoUnliked(event) => {
                    (event.author_id, event.video_id, event.user_id, Change::Unlinked)
                }
            };
            (Entity::Like { author: author.get(), video: video.get(), user: user.get() }, change)
        }
        Event::Follow(event) => {
            let (follower, followee, change) = match event {
                FollowEvent::UserFollowed(event) => {
                    (event.follower_id, event.followee_id, Change::Linked { time_ms })
                }
                FollowEvent::UserUnfollowed(event) => {
                    (event.follower_id, event.followee_id, Change::Unlinked)
                }
            };
            (Entity::Follow { follower: follower.get(), followee: followee.get() }, change)
        }
        Event::Comment(event) => {
            let (video, comment, change) = match event {
                CommentEvent::CommentPosted(event) => {
                    let (user, text) = (event.user_id.get(), digest(event.text.reveal()));
                    (event.video_id, event.comment_id, Change::Posted { user, text, time_ms })
                }
                CommentEvent::CommentDeleted(event) => (event.video_id, event.comment_id, Change::Deleted),
            };
            (Entity::Comment { video: video.get(), comment: comment.get() }, change)
        }
        Event::Message(MessageEvent::MessageSent(event)) => {
            let (from, to) = (event.from_user_id.get(), event.to_user_id.get());
            let message = Message { from, to, content: digest(event.content.reveal()), time_ms };
            let (low, high) = (from.min(to), from.max(to));
            (Entity::Message { low, high, message: event.message_id.get() }, Change::Sent(message, count))
        }
    }
}

fn video_change(event: &VideoEvent, time_ms: i64) -> (Entity, Change) {
    let (video, change) = match event {
        VideoEvent::VideoUploaded(event) => {
            let (author, title) = (event.author_id.get(), digest(event.title.reveal()));
            (event.video_id, Change::Uploaded { author, title, time_ms })
        }
        VideoEvent::VideoPublished(event) => {
            let outcome = Outcome::Published {
                play_key: event.play_key.clone(),
                cover_key: event.cover_key.clone(),
                published_ms: event.published_ms,
            };
            (event.video_id, Change::Decided(outcome))
        }
        VideoEvent::VideoRejected(event) => {
            (event.video_id, Change::Decided(Outcome::Rejected { reason: digest(&event.reason) }))
        }
    };
    (Entity::Video(video.get()), change)
}

/// Folds a change into an entity's state.
fn apply(state: &mut Option<State>, change: Change) {
    match change {
        Change::Registered { name, time_ms } => {
            state.get_or_insert(State::User { name, registered_ms: time_ms });
        }
        Change::Uploaded { author, title, time_ms } => {
            state.get_or_insert(State::Video { author, title, uploaded_ms: time_ms, outcome: None });
        }
        Change::Decided(first) => {
            if let Some(State::Video { outcome, .. }) = state {
                outcome.get_or_insert(first);
            }
        }
        Change::Linked { time_ms } => {
            state.get_or_insert(State::Link { since_ms: time_ms });
        }
        Change::Unlinked => *state = None,
        Change::Posted { user, text, time_ms } => {
            state.get_or_insert(State::Comment { user, text, posted_ms: time_ms, is_deleted: false });
        }
        Change::Deleted => {
            // A deletion is final, even of a comment that does not exist yet.
            let (user, posted_ms) = match state {
                Some(State::Comment { user, posted_ms, .. }) => (*user, *posted_ms),
                _ => (0, 0),
            };
            *state = Some(State::Comment { user, text: digest(""), posted_ms, is_deleted: true });
        }
        Change::Sent(message, count) => {
            state.get_or_insert(State::Message(message, count));
        }
    }
}

/// Writes the lines of entities, which arrive in order.
struct Output {
    lines: LineWriter,
    likes: LikeCounts,
    /// Increments of the counts in MySQL: each row that is counted.
    counts: Sorter,
    /// Inputs of each video's rank: its week of publication, and its likes.
    ranking: Sorter,
    /// The messages by conversation, in the order of the log.
    messages: Sorter,
}

impl Output {
    fn write(&mut self, entity: Entity, state: Option<State>) -> anyhow::Result<()> {
        let lines = &mut self.lines;
        match (entity, state) {
            (Entity::User(user), Some(State::User { name, registered_ms })) => {
                let fields = [("name", name.as_str()), ("registered_ms", &registered_ms.to_string())];
                for (field, value) in fields {
                    lines.member(&projections::USER_CARDS, |keys| keys.user_card(user), field, value)?;
                }
                lines.row(&projections::USERS_TABLE, "users", &[user], || format!("{name} {registered_ms}"))
            }
            (Entity::Video(video), Some(State::Video { author, title, uploaded_ms, outcome })) => {
                lines.video(video, (author, &title, uploaded_ms), outcome.as_ref())?;
                let is_published = matches!(outcome, Some(Outcome::Published { .. }));
                self.count(&OF_AUTHORS, author, [i64::from(is_published), 1])?;
                match outcome {
                    Some(Outcome::Published { published_ms, .. }) => {
                        rank(&mut self.ranking, video, &RankPart::Week(feed_week_of(published_ms)))
                    }
                    Some(Outcome::Rejected { .. }) | None => Ok(()),
                }
            }
            (Entity::Like { author, video, user }, link) => {
                self.likes.add(lines, (author, video), link.is_some())?;
                let Some(State::Link { since_ms }) = link else {
                    return Ok(());
                };
                rank(&mut self.ranking, video, &RankPart::Like)?;
                self.count(&OF_VIDEO_LIKES, video, [1, 0])?;
                self.count(&OF_USER_LIKES, author, [1, 0])?;
                self.count(&OF_USER_LIKES, user, [0, 1])?;
                let lines = &mut self.lines;
                lines.member(&projections::TOP_VIDEOS, |keys| keys.top_likers(video), user, "")?;
                lines.member(&projections::LIKES, |keys| keys.likers(video), user, "")?;
                lines.member(
                    &projections::LIKES,
                    |keys| keys.favorites(user),
                    video,
                    &since_ms.to_string(),
                )?;
                lines.row(&projections::LIKES_TABLE, "likes", &[video, user], || {
                    format!("{author} {since_ms}")
                })
            }
            (Entity::Follow { follower, followee }, Some(State::Link { since_ms })) => {
                let since = since_ms.to_string();
                self.count(&OF_FOLLOWS, follower, [1, 0])?;
                self.count(&OF_FOLLOWS, followee, [0, 1])?;
                let lines = &mut self.lines;
                lines.member(&projections::FOLLOWS, |keys| keys.following(follower), followee, &since)?;
                lines.member(&projections::FOLLOWS, |keys| keys.followers(followee), follower, &since)?;
                lines.row(&projections::FOLLOWS_TABLE, "follows", &[follower, followee], || since)
            }
            (
                Entity::Comment { video, comment },
                Some(State::Comment { user, text, posted_ms, is_deleted }),
            ) => {
                self.count(&OF_COMMENTS, video, [i64::from(!is_deleted), 0])?;
                let lines = &mut self.lines;
                let key = |keys: &Keys| {
                    if is_deleted { keys.deleted_comments(video) } else { keys.comments(video) }
                };
                lines.member(&projections::COMMENT_COUNTS, key, comment, "")?;
                lines.row(&projections::COMMENTS_TABLE, "comments", &[video, comment], || {
                    format!("{user} {text} {posted_ms} {is_deleted}")
                })
            }
            (Entity::Message { low, high, message: id }, Some(State::Message(message, count))) => {
                let key: Vec<u8> = [low, high, count].into_iter().flat_map(i64::to_be_bytes).collect();
                self.messages.push(&key, &serde_json::to_vec(&(low, high, id, message))?);
                if self.messages.is_full() { self.messages.spill() } else { Ok(()) }
            }
            _ => Ok(()),
        }
    }

    /// Adds to the counts of an entity.
    fn count(&mut self, counts: &Counts, id: i64, by: [i64; 2]) -> anyhow::Result<()> {
        if !self.lines.own.contains(&counts.projection.name) {
            return Ok(());
        }
        let key = [&[counts.number], id.to_be_bytes().as_slice()].concat();
        self.counts.push(&key, by.map(i64::to_be_bytes).as_flattened());
        if self.counts.is_full() { self.counts.spill() } else { Ok(()) }
    }

    fn finish(mut self) -> anyhow::Result<Lines> {
        self.likes.finish(&mut self.lines)?;
        let lines = &mut self.lines;
        write_ranking(lines, self.ranking)?;
        write_counts(lines, self.counts)?;
        let table = &projections::MESSAGES_TABLE;
        let mut last: Option<((i64, i64), i64)> = None;
        for entry in self.messages.sorted()? {
            let (_, message) = entry?;
            let (low, high, id, message): (i64, i64, i64, Message) = serde_json::from_slice(&message)?;
            let Message { from, to, content, time_ms } = message;
            let before = last.filter(|(conversation, _)| *conversation == (low, high));
            let create_ms = before.map_or(time_ms, |(_, last_ms)| time_ms.max(last_ms + 1));
            last = Some(((low, high), create_ms));
            lines
                .row(table, "messages", &[low, high, create_ms], || format!("{id} {from} {to} {content}"))?;
            // The last one of a conversation stays.
            lines
                .row(table, "conversations", &[low, high], || format!("{id} {from} {content} {create_ms}"))?;
        }
        Ok(self.lines.lines)
    }
}

/// A table of counts.
struct Counts {
    projection: Catalogued,
    table: &'static str,
    /// The number of counts in a row, at most two.
    columns: usize,
    /// Its place in [`COUNTS`].
    number: u8,
}

const OF_VIDEO_LIKES: Counts =
    Counts { projection: projections::LIKES_TABLE, table: "video_like_counts", columns: 1, number: 0 };
const OF_USER_LIKES: Counts =
    Counts { projection: projections::LIKES_TABLE, table: "user_like_counts", columns: 2, number: 1 };
const OF_FOLLOWS: Counts =
    Counts { projection: projections::FOLLOWS_TABLE, table: "user_follow_counts", columns: 2, number: 2 };
const OF_COMMENTS: Counts =
    Counts { projection: projections::COMMENTS_TABLE, table: "video_comment_counts", columns: 1, number: 3 };
const OF_AUTHORS: Counts =
    Counts { projection: projections::VIDEOS_TABLE, table: "user_work_counts", columns: 2, number: 4 };
const COUNTS: [Counts; 5] = [OF_VIDEO_LIKES, OF_USER_LIKES, OF_FOLLOWS, OF_COMMENTS, OF_AUTHORS];

/// Writes the rows of counts that are not all zero.
fn write_counts(lines: &mut LineWriter, increments: Sorter) -> anyhow::Result<()> {
    let mut write = |key: &[u8], [first, second]: [i64; 2]| {
        let (number, id) = key.split_first().context("failed to read counts")?;
        let counts = COUNTS.get(usize::from(*number)).context("failed to read counts")?;
        let id = i64::from_be_bytes(id.try_into().context("failed to read the id of counts")?);
        if (first, second) == (0, 0) {
            return Ok(());
        }
        lines.row(&counts.projection, counts.table, &[id], || {
            if counts.columns == 1 { first.to_string() } else { format!("{first} {second}") }
        })
    };
    let mut last: Option<(Vec<u8>, [i64; 2])> = None;
    for entry in increments.sorted()? {
        let (key, by) = entry?;
        if let Some((key, sums)) = last.take_if(|(last, _)| *last != key) {
            write(&key, sums)?;
        }
        let (_, sums) = last.get_or_insert((key, [0; 2]));
        for (sum, by) in sums.iter_mut().zip(by.as_chunks().0) {
            *sum += i64::from_be_bytes(*by);
        }
    }
    last.map_or(Ok(()), |(key, sums)| write(&key, sums))
}

/// Input of a video's rank.
#[derive(Serialize, Deserialize)]
enum RankPart {
    Week(i64),
    Like,
}

fn rank(ranking: &mut Sorter, video: i64, part: &RankPart) -> anyhow::Result<()> {
    ranking.push(&video.to_be_bytes(), &serde_json::to_vec(part)?);
    if ranking.is_full() { ranking.spill() } else { Ok(()) }
}

/// Writes the rank of each published video.
fn write_ranking(lines: &mut LineWriter, ranking: Sorter) -> anyhow::Result<()> {
    let mut last: Option<(i64, Option<i64>, i64)> = None;
    for entry in ranking.sorted()? {
        let (key, part) = entry?;
        let video = i64::from_be_bytes(key.as_slice().try_into().context("failed to read a video")?);
        if let Some(done) = last.take_if(|(last, ..)| *last != video) {
            lines.rank(done)?;
        }
        let (_, week, likes) = last.get_or_insert((video, None, 0));
        match serde_json::from_slice(&part)? {
            RankPart::Week(published) => *week = Some(published),
            RankPart::Like => *likes += 1,
        }
    }
    last.map_or(Ok(()), |done| lines.rank(done))
}

/// Writes the lines of some projections' views, and drops the others.
struct LineWriter {
    /// The names of the projections.
    own: Vec<&'static str>,
    keys: Keys,
    lines: Lines,
}

impl LineWriter {
    /// A member of a Redis key.
    fn member(
        &mut self,
        projection: &Catalogued,
        key: impl FnOnce(&Keys) -> Key,
        member: impl Display,
        content: &str,
    ) -> anyhow::Result<()> {
        if self.own.contains(&projection.name) {
            self.lines.set(&LineKey::member(&key(&self.keys).name, member.to_string()), content);
        }
        self.lines.spill_if_full()
    }

    /// A row of a table.
    fn row(
        &mut self,
        projection: &Catalogued,
        table: &str,
        primary_key: &[i64],
        content: impl FnOnce() -> String,
    ) -> anyhow::Result<()> {
        if self.own.contains(&projection.name) {
            self.lines.set(&LineKey::row(table, primary_key), &content());
        }
        self.lines.spill_if_full()
    }

    /// The rank of a video, if it is published.
    fn rank(&mut self, (video, week, likes): (i64, Option<i64>, i64)) -> anyhow::Result<()> {
        let Some(week) = week else {
            return Ok(());
        };
        let score = top_score(week, likes).to_string();
        self.member(&projections::TOP_VIDEOS, |keys| keys.top_of_video(video), video, &score)
    }

    fn video(
        &mut self,
        video: i64,
        (author, title, uploaded_ms): (i64, &str, i64),
        outcome: Option<&Outcome>,
    ) -> anyhow::Result<()> {
        let mut card = vec![("author", author.to_string()), ("title", title.to_owned())];
        let (mut state, mut play, mut cover, mut published, mut why) =
            (VideoState::Processing, "", "", 0, digest(""));
        match outcome {
            None => {}
            Some(Outcome::Published { play_key, cover_key, published_ms }) => {
                (state, play, cover, published) = (VideoState::Published, play_key, cover_key, *published_ms);
                card.extend([
                    ("play_key", play_key.clone()),
                    ("cover_key", cover_key.clone()),
                    ("published_ms", published_ms.to_string()),
                ]);
                let week = feed_week_of(published);
                let (feed, works) = (&projections::FEED, &projections::WORKS);
                self.member(feed, |keys| keys.feed_week(week), video, &published.to_string())?;
                self.member(feed, Keys::feed_weeks, week, &week.to_string())?;
                self.member(works, |keys| keys.works(author), video, &video.to_string())?;
            }
            Some(Outcome::Rejected { reason }) => {
                (state, why) = (VideoState::Rejected, reason.clone());
                card.push(("reason", reason.clone()));
            }
        }
        card.push(("state", state.number().to_string()));
        for (field, value) in card {
            self.member(&projections::VIDEO_CARDS, |keys| keys.video_card(video), field, &value)?;
        }
        self.member(&projections::WORKS, |keys| keys.uploads(author), video, &video.to_string())?;
        self.row(&projections::VIDEOS_TABLE, "videos", &[video], || {
            let state = state.number();
            format!("{author} {title} {state} {uploaded_ms} {published} {play} {cover} {why}")
        })
    }
}

/// Counts the likes of each video and each author. An author whose likes are all withdrawn keeps a total of
/// zero.
#[derive(Default)]
struct LikeCounts {
    /// Author and video.
    current: Option<(i64, i64)>,
    of_video: i64,
    of_author: i64,
}

impl LikeCounts {
    fn add(&mut self, lines: &mut LineWriter, next: (i64, i64), is_liked: bool) -> anyhow::Result<()> {
        if let Some((author, video)) = self.current
            && (author, video) != next
        {
            self.write_video(lines, author, video)?;
            if author != next.0 {
                self.write_author(lines, author)?;
            }
        }
        self.current = Some(next);
        self.of_video += i64::from(is_liked);
        Ok(())
    }

    fn finish(&mut self, lines: &mut LineWriter) -> anyhow::Result<()> {
        let Some((author, video)) = self.current else {
            return Ok(());
        };
        self.write_video(lines, author, video)?;
        self.write_author(lines, author)
    }

    fn write_video(&mut self, lines: &mut LineWriter, author: i64, video: i64) -> anyhow::Result<()> {
        let count = std::mem::take(&mut self.of_video);
        self.of_author += count;
        if count == 0 {
            return Ok(());
        }
        lines.member(&projections::LIKES, |keys| keys.favorited(author), video, &count.to_string())
    }

    fn write_author(&mut self, lines: &mut LineWriter, author: i64) -> anyhow::Result<()> {
        let total = std::mem::take(&mut self.of_author);
        lines.member(&projections::LIKES, |keys| keys.favorited(author), "total", &total.to_string())
    }
}
