//! What the log says: plain maps, folded one event at a time, and the lines that the views should have of them.

use std::collections::{BTreeMap, BTreeSet};

use vidlog_events::{
    CommentEvent, Envelope, Event, FollowEvent, LikeEvent, MessageEvent, UserEvent, VideoEvent,
};
use vidlog_schemas::{
    Keys,
    keys::{Key, feed_week_of},
    rows::VideoState,
};

use super::{Lines, digest};

/// The state that the events so far come to. Events of one key have to come in their order.
#[derive(Debug, Default)]
pub struct Model {
    users: BTreeMap<i64, (String, i64)>,
    videos: BTreeMap<i64, Video>,
    /// Video and user → author and time.
    likes: BTreeMap<(i64, i64), (i64, i64)>,
    /// Authors whose videos were ever liked: their totals stay when they are zero again.
    liked_authors: BTreeSet<i64>,
    /// Follower and followee → time.
    follows: BTreeMap<(i64, i64), i64>,
    /// Video and comment → writer, text, time, or nothing more once it is deleted.
    comments: BTreeMap<(i64, i64), Comment>,
    /// Conversation → messages in order.
    conversations: BTreeMap<(i64, i64), Vec<Message>>,
    messages: BTreeSet<i64>,
}

#[derive(Debug)]
struct Video {
    author: i64,
    title: String,
    uploaded_ms: i64,
    outcome: Outcome,
}

#[derive(Debug)]
enum Outcome {
    Processing,
    Published { play_key: String, cover_key: String, published_ms: i64 },
    Rejected { reason: String },
}

#[derive(Debug)]
struct Comment {
    user: i64,
    text: String,
    posted_ms: i64,
    deleted: bool,
}

#[derive(Debug)]
struct Message {
    id: i64,
    from: i64,
    to: i64,
    content: String,
    create_ms: i64,
}

impl Model {
    /// Takes an event in.
    pub fn fold(&mut self, envelope: &Envelope) {
        let time = envelope.time_ms;
        match &envelope.event {
            Event::User(UserEvent::UserRegistered(event)) => {
                self.users.entry(event.user_id.get()).or_insert((event.name.reveal().clone(), time));
            }
            Event::Video(event) => self.fold_video(event, time),
            Event::Like(event) => self.fold_like(event, time),
            Event::Follow(FollowEvent::UserFollowed(event)) => {
                self.follows.entry((event.follower_id.get(), event.followee_id.get())).or_insert(time);
            }
            Event::Follow(FollowEvent::UserUnfollowed(event)) => {
                self.follows.remove(&(event.follower_id.get(), event.followee_id.get()));
            }
            Event::Comment(event) => self.fold_comment(event, time),
            Event::Message(event) => self.fold_message(event, time),
        }
    }

    /// The lines that the views of a namespace should have.
    pub fn lines(&self, keys: &Keys) -> Lines {
        let mut lines = Lines::new();
        self.user_lines(keys, &mut lines);
        self.video_lines(keys, &mut lines);
        self.like_lines(keys, &mut lines);
        self.follow_lines(keys, &mut lines);
        self.comment_lines(keys, &mut lines);
        self.message_lines(&mut lines);
        lines
    }

    fn fold_video(&mut self, event: &VideoEvent, time: i64) {
        match event {
            VideoEvent::VideoUploaded(event) => {
                self.videos.entry(event.video_id.get()).or_insert_with(|| Video {
                    author: event.author_id.get(),
                    title: event.title.reveal().clone(),
                    uploaded_ms: time,
                    outcome: Outcome::Processing,
                });
            }
            VideoEvent::VideoPublished(event) => self.decide(
                event.video_id.get(),
                Outcome::Published {
                    play_key: event.play_key.clone(),
                    cover_key: event.cover_key.clone(),
                    published_ms: event.published_ms,
                },
            ),
            VideoEvent::VideoRejected(event) => {
                self.decide(event.video_id.get(), Outcome::Rejected { reason: event.reason.clone() });
            }
        }
    }

    fn decide(&mut self, video: i64, outcome: Outcome) {
        if let Some(Video { outcome: current @ Outcome::Processing, .. }) = self.videos.get_mut(&video) {
            *current = outcome;
        }
    }

    fn fold_like(&mut self, event: &LikeEvent, time: i64) {
        match event {
            LikeEvent::VideoLiked(event) => {
                self.liked_authors.insert(event.author_id.get());
                let pair = (event.video_id.get(), event.user_id.get());
                self.likes.entry(pair).or_insert((event.author_id.get(), time));
            }
            LikeEvent::VideoUnliked(event) => {
                self.liked_authors.insert(event.author_id.get());
                self.likes.remove(&(event.video_id.get(), event.user_id.get()));
            }
        }
    }

    fn fold_comment(&mut self, event: &CommentEvent, time: i64) {
        match event {
            CommentEvent::CommentPosted(event) => {
                self.comments.entry((event.video_id.get(), event.comment_id.get())).or_insert_with(|| {
                    Comment {
                        user: event.user_id.get(),
                        text: event.text.reveal().clone(),
                        posted_ms: time,
                        deleted: false,
                    }
                });
            }
            CommentEvent::CommentDeleted(event) => {
                // A deletion is final, even of a comment that was not there yet.
                let never_posted = Comment { user: 0, text: String::new(), posted_ms: 0, deleted: true };
                let id = (event.video_id.get(), event.comment_id.get());
                let comment = self.comments.entry(id).or_insert(never_posted);
                comment.deleted = true;
                comment.text.clear();
            }
        }
    }

    fn fold_message(&mut self, event: &MessageEvent, time: i64) {
        let MessageEvent::MessageSent(event) = event;
        if !self.messages.insert(event.message_id.get()) {
            return;
        }
        let (from, to) = (event.from_user_id.get(), event.to_user_id.get());
        let messages = self.conversations.entry((from.min(to), from.max(to))).or_default();
        let create_ms = messages.last().map_or(time, |last| time.max(last.create_ms + 1));
        let content = event.content.reveal().clone();
        messages.push(Message { id: event.message_id.get(), from, to, content, create_ms });
    }

    fn user_lines(&self, keys: &Keys, lines: &mut Lines) {
        for (user, (name, registered_ms)) in &self.users {
            let name = digest(name);
            set(
                lines,
                keys.user_card(*user),
                &[format!("name={name}"), format!("registered_ms={registered_ms}")],
            );
            lines.insert(format!("users/{user}"), format!("{name} {registered_ms}"));
        }
    }

    fn video_lines(&self, keys: &Keys, lines: &mut Lines) {
        let mut sets: BTreeMap<Key, Vec<String>> = BTreeMap::new();
        for (id, video) in &self.videos {
            let (author, title) = (video.author, digest(&video.title));
            let (mut state, mut play, mut cover, mut published, mut reason) =
                (VideoState::Processing, "", "", 0, String::new());
            let mut card = vec![format!("author={author}"), format!("title={title}")];
            match &video.outcome {
                Outcome::Processing => {}
                Outcome::Published { play_key, cover_key, published_ms } => {
                    (state, play, cover, published) =
                        (VideoState::Published, play_key, cover_key, *published_ms);
                    card.extend([
                        format!("play_key={play_key}"),
                        format!("cover_key={cover_key}"),
                        format!("published_ms={published_ms}"),
                    ]);
                    let week = feed_week_of(published);
                    sets.entry(keys.feed_week(week)).or_default().push(format!("{id}={published}"));
                    sets.entry(keys.feed_weeks()).or_default().push(format!("{week}={week}"));
                    sets.entry(keys.works(author)).or_default().push(format!("{id}={id}"));
                }
                Outcome::Rejected { reason: why } => {
                    (state, reason) = (VideoState::Rejected, digest(why));
                    card.push(format!("reason={reason}"));
                }
            }
            card.push(format!("state={}", state.number()));
            set(lines, keys.video_card(*id), &card);
            sets.entry(keys.uploads(author)).or_default().push(format!("{id}={id}"));
            if reason.is_empty() {
                reason = digest("");
            }
            lines.insert(
                format!("videos/{id}"),
                format!(
                    "{author} {title} {} {} {published} {play} {cover} {reason}",
                    state.number(),
                    video.uploaded_ms
                ),
            );
        }
        set_all(lines, sets);
    }

    fn like_lines(&self, keys: &Keys, lines: &mut Lines) {
        let mut sets: BTreeMap<Key, Vec<String>> = BTreeMap::new();
        let mut totals: BTreeMap<i64, BTreeMap<i64, i64>> = BTreeMap::new();
        for author in &self.liked_authors {
            totals.entry(*author).or_default();
        }
        for ((video, user), (author, time)) in &self.likes {
            sets.entry(keys.likers(*video)).or_default().push(user.to_string());
            sets.entry(keys.favorites(*user)).or_default().push(format!("{video}={time}"));
            *totals.entry(*author).or_default().entry(*video).or_default() += 1;
            lines.insert(format!("likes/{video}/{user}"), format!("{author} {time}"));
        }
        for (author, videos) in totals {
            let total: i64 = videos.values().sum();
            let mut parts: Vec<_> = videos.iter().map(|(video, count)| format!("{video}={count}")).collect();
            parts.push(format!("total={total}"));
            sets.insert(keys.favorited(author), parts);
        }
        set_all(lines, sets);
    }

    fn follow_lines(&self, keys: &Keys, lines: &mut Lines) {
        let mut sets: BTreeMap<Key, Vec<String>> = BTreeMap::new();
        for ((follower, followee), time) in &self.follows {
            sets.entry(keys.following(*follower)).or_default().push(format!("{followee}={time}"));
            sets.entry(keys.followers(*followee)).or_default().push(format!("{follower}={time}"));
            lines.insert(format!("follows/{follower}/{followee}"), time.to_string());
        }
        set_all(lines, sets);
    }

    fn comment_lines(&self, keys: &Keys, lines: &mut Lines) {
        let mut sets: BTreeMap<Key, Vec<String>> = BTreeMap::new();
        for ((video, id), comment) in &self.comments {
            let key = if comment.deleted { keys.deleted_comments(*video) } else { keys.comments(*video) };
            sets.entry(key).or_default().push(id.to_string());
            let Comment { user, text, posted_ms, deleted } = comment;
            lines.insert(
                format!("comments/{video}/{id}"),
                format!("{user} {} {posted_ms} {deleted}", digest(text)),
            );
        }
        set_all(lines, sets);
    }

    fn message_lines(&self, lines: &mut Lines) {
        for ((low, high), messages) in &self.conversations {
            for Message { id, from, to, content, create_ms } in messages {
                let content = digest(content);
                lines.insert(
                    format!("messages/{low}/{high}/{create_ms}"),
                    format!("{id} {from} {to} {content}"),
                );
                lines.insert(
                    format!("conversations/{low}/{high}"),
                    format!("{id} {from} {content} {create_ms}"),
                );
            }
        }
    }
}

fn set_all(lines: &mut Lines, sets: BTreeMap<Key, Vec<String>>) {
    for (key, members) in sets {
        set(lines, key, &members);
    }
}

/// A Redis key's line: its members, in order, each once.
fn set(lines: &mut Lines, key: Key, members: &[String]) {
    let members: BTreeSet<&String> = members.iter().collect();
    lines.insert(key.name, members.into_iter().cloned().collect::<Vec<_>>().join(" "));
}
