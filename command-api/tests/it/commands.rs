//! Commands and the events that they append.

use vidlog_contract::Code;
use vidlog_events::{CommentEvent, Event, FollowEvent, LikeEvent, MessageEvent, Stream};
use vidlog_schemas::{projections, rows::VideoState};

use crate::support::{Answer, Api, Call, LoggedEvent, World};

const ANN: i64 = 101;
const BOB: i64 = 102;
const EVE: i64 = 103;
const UNKNOWN: i64 = 999;
const VIDEO: i64 = 201;
const DRAFT: i64 = 202;
const REJECTED: i64 = 203;

/// Users Ann, Bob and Eve; Ann has a published, a processing and a rejected video.
async fn setup() -> (World, Api) {
    let (world, api) = World::with_api().await;
    world.users(&[ANN, BOB, EVE]).await;
    world.video(VIDEO, ANN, VideoState::Published).await;
    world.video(DRAFT, ANN, VideoState::Processing).await;
    world.video(REJECTED, ANN, VideoState::Rejected).await;
    (world, api)
}

/// The only event of a stream, whose position the answer carries.
async fn the_event(world: &World, stream: Stream, answer: &Answer) -> LoggedEvent {
    let mut events = world.log.read(stream).await;
    assert_eq!(events.len(), 1, "{events:?}");
    let event = events.remove(0);
    assert_eq!(event.position(), answer.position());
    assert_eq!(event.timestamp_ms, event.envelope.time_ms);
    event
}

#[tokio::test]
async fn like_event_carries_the_author() {
    let (world, api) = setup().await;
    let answer = api.like(BOB, VIDEO, 1).await;
    assert_eq!(answer.ok(), serde_json::json!({"status_code": 0, "status_msg": "ok"}));
    let logged = the_event(&world, Stream::Likes, &answer).await;
    let Event::Like(LikeEvent::VideoLiked(like)) = &logged.envelope.event else { panic!() };
    assert_eq!((like.video_id.get(), like.user_id.get(), like.author_id.get()), (VIDEO, BOB, ANN));
    assert_eq!(logged.key, VIDEO.to_string());
    for scope in [format!("user:{BOB}"), format!("user:{ANN}"), format!("video:{VIDEO}")] {
        assert_eq!(world.marks(&scope).await, [answer.position()], "{scope}");
    }
}

#[tokio::test]
async fn texts_keep_line_breaks_and_refuse_other_controls() {
    let (world, api) = setup().await;
    for text in ["a\u{7}", "\u{1b}[31mred", "a\u{85}b"] {
        api.comment(BOB, VIDEO, text).await.fails(Code::InvalidParameter);
        api.write(BOB, ANN, text).await.fails(Code::InvalidParameter);
    }
    assert_eq!(world.log.read_all().await, []);
    let text = "line 1\r\nline 2\n\tend ";
    let answer = api.comment(BOB, VIDEO, text).await;
    assert_eq!(answer.ok()["comment"]["content"], text);
    let logged = the_event(&world, Stream::Comments, &answer).await;
    let Event::Comment(CommentEvent::CommentPosted(posted)) = &logged.envelope.event else { panic!() };
    assert_eq!(posted.text.reveal(), text);
    let answer = api.write(BOB, ANN, text).await;
    let logged = the_event(&world, Stream::Messages, &answer).await;
    let Event::Message(MessageEvent::MessageSent(sent)) = &logged.envelope.event else { panic!() };
    assert_eq!(sent.content.reveal(), text);
}

#[tokio::test]
async fn unlike_without_a_like_is_appended() {
    let (world, api) = setup().await;
    let answer = api.like(BOB, VIDEO, 2).await;
    answer.ok();
    let logged = the_event(&world, Stream::Likes, &answer).await;
    assert!(matches!(logged.envelope.event, Event::Like(LikeEvent::VideoUnliked(_))));
}

#[tokio::test]
async fn repeated_likes_and_follows_are_appended() {
    let (world, api) = setup().await;
    for _ in 0..3 {
        api.like(BOB, VIDEO, 1).await.ok();
        api.follow(BOB, ANN, 1).await.ok();
    }
    assert_eq!(world.log.read(Stream::Likes).await.len(), 3);
    assert_eq!(world.log.read(Stream::Follows).await.len(), 3);
}

#[tokio::test]
async fn unpublished_video_rejects_likes_and_comments() {
    let (world, api) = setup().await;
    for (user, video) in [(BOB, DRAFT), (ANN, DRAFT), (BOB, REJECTED), (ANN, REJECTED), (BOB, UNKNOWN)] {
        api.like(user, video, 1).await.fails(Code::NotFound);
        api.like(user, video, 2).await.fails(Code::NotFound);
        api.comment(user, video, "nice").await.fails(Code::NotFound);
    }
    assert_eq!(world.log.read_all().await, []);
}

#[tokio::test]
async fn follow_events_are_keyed_by_follower() {
    let (world, api) = setup().await;
    let followed = api.follow(BOB, ANN, 1).await;
    let unfollowed = api.follow(BOB, ANN, 2).await;
    let events = world.log.read(Stream::Follows).await;
    let Event::Follow(FollowEvent::UserFollowed(follow)) = &events[0].envelope.event else { panic!() };
    assert_eq!((follow.follower_id.get(), follow.followee_id.get()), (BOB, ANN));
    assert!(matches!(events[1].envelope.event, Event::Follow(FollowEvent::UserUnfollowed(_))));
    assert!(events.iter().all(|event| event.key == BOB.to_string()));
    followed.ok();
    unfollowed.ok();
    for scope in [format!("user:{BOB}"), format!("user:{ANN}")] {
        assert_eq!(world.marks(&scope).await, [unfollowed.position()]);
    }

    api.follow(BOB, BOB, 1).await.fails(Code::InvalidParameter);
    api.follow(BOB, UNKNOWN, 1).await.fails(Code::NotFound);
    api.follow(BOB, ANN, 3).await.fails(Code::InvalidParameter);
    assert_eq!(world.log.read(Stream::Follows).await.len(), 2);
}

#[tokio::test]
async fn comment_response_equals_the_read_model() {
    let (world, api) = setup().await;
    let text = "Zoë: \"très bien\" 🎬";
    let answer = api.comment(BOB, VIDEO, text).await;
    let logged = the_event(&world, Stream::Comments, &answer).await;
    let Event::Comment(CommentEvent::CommentPosted(posted)) = &logged.envelope.event else { panic!() };
    assert_eq!((posted.video_id.get(), posted.user_id.get()), (VIDEO, BOB));
    assert_eq!(posted.text.reveal(), text);
    assert_eq!(logged.key, VIDEO.to_string());

    let body = answer.ok();
    let comment = &body["comment"];
    assert_eq!(comment["id"].as_i64(), Some(posted.comment_id.get()));
    assert_eq!(comment["content"], text);
    assert_eq!((&comment["user"]["id"], &comment["user"]["name"]), (&BOB.into(), &"user 102".into()));
    let date = comment["create_date"].as_str().unwrap();
    assert!(date.len() == 5 && date.as_bytes()[2] == b'-', "{date}");

    api.comment(BOB, VIDEO, "").await.fails(Code::InvalidParameter);
    api.comment(BOB, VIDEO, &"x".repeat(256)).await.fails(Code::InvalidParameter);
}

#[tokio::test]
async fn only_either_author_can_delete_a_comment() {
    let (world, api) = setup().await;
    world.comment(301, VIDEO, BOB).await;
    world.comment(302, VIDEO, BOB).await;
    api.delete_comment(EVE, VIDEO, 301).await.fails(Code::Forbidden);
    api.delete_comment(BOB, VIDEO, 303).await.fails(Code::NotFound);
    api.delete_comment(BOB, DRAFT, 301).await.fails(Code::NotFound);
    assert_eq!(world.log.read(Stream::Comments).await, []);

    let deleted = api.delete_comment(BOB, VIDEO, 301).await;
    assert_eq!(deleted.ok(), serde_json::json!({"status_code": 0, "status_msg": "ok"}));
    world.passed(projections::COMMENTS_TABLE, &deleted.position()).await;
    let by_author = api.delete_comment(ANN, VIDEO, 302).await;
    by_author.ok();
    let events = world.log.read(Stream::Comments).await;
    let deleted: Vec<_> = events
        .iter()
        .map(|event| match &event.envelope.event {
            Event::Comment(CommentEvent::CommentDeleted(event)) => {
                (event.comment_id.get(), event.video_id.get(), event.deleted_by.get())
            }
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(deleted, [(301, VIDEO, BOB), (302, VIDEO, ANN)]);

    world.passed(projections::COMMENTS_TABLE, &by_author.position()).await;
    let update = sqlx::query("UPDATE comments SET deleted = TRUE WHERE comment_id = 302");
    update.execute(&world.mysql).await.unwrap();
    api.delete_comment(ANN, VIDEO, 302).await.fails(Code::NotFound);
}

#[tokio::test]
async fn unfolded_comment_is_unavailable_not_missing() {
    let (world, api) = setup().await;
    let answer = api.comment(BOB, VIDEO, "nice").await;
    let comment = answer.ok()["comment"]["id"].as_i64().unwrap();
    // No projector runs here, so the wait for the caller's own comment times out.
    api.delete_comment(BOB, VIDEO, comment).await.fails(Code::Unavailable);
    world.comment(comment, VIDEO, BOB).await;
    world.passed(projections::COMMENTS_TABLE, &answer.position()).await;
    api.delete_comment(BOB, VIDEO, comment).await.ok();
}

#[tokio::test]
async fn message_events_are_keyed_by_conversation() {
    let (world, api) = setup().await;
    let answer = api.write(BOB, ANN, "salut 🎬").await;
    answer.ok();
    let logged = the_event(&world, Stream::Messages, &answer).await;
    let Event::Message(MessageEvent::MessageSent(sent)) = &logged.envelope.event else { panic!() };
    assert_eq!((sent.from_user_id.get(), sent.to_user_id.get()), (BOB, ANN));
    assert_eq!(sent.content.reveal(), "salut 🎬");
    assert_eq!(logged.key, format!("{ANN}-{BOB}"));
    for scope in [format!("user:{BOB}"), format!("user:{ANN}"), format!("conversation:{ANN}-{BOB}")] {
        assert_eq!(world.marks(&scope).await, [answer.position()], "{scope}");
    }

    api.write(BOB, BOB, "me").await.fails(Code::InvalidParameter);
    api.write(BOB, UNKNOWN, "you").await.fails(Code::NotFound);
    api.write(BOB, ANN, &"x".repeat(256)).await.fails(Code::InvalidParameter);
    let undo = Call::to("/douyin/message/action/").with("to_user_id", ANN).with("action_type", 2);
    api.call_as(BOB, undo.with("content", "x")).await.fails(Code::InvalidParameter);
    assert_eq!(world.log.read(Stream::Messages).await.len(), 1);
}

#[tokio::test]
async fn every_command_requires_a_valid_token() {
    let (world, api) = setup().await;
    for path in ["favorite", "relation", "comment", "message"] {
        let call = || {
            Call::to(&format!("/douyin/{path}/action/"))
                .with("video_id", VIDEO)
                .with("to_user_id", ANN)
                .with("action_type", 1)
                .with("comment_text", "x")
                .with("content", "x")
        };
        api.call(call()).await.fails(Code::Unauthenticated);
        api.call(call().with("token", "")).await.fails(Code::Unauthenticated);
        api.call(call().with("token", "a.b.c")).await.fails(Code::Unauthenticated);
        let token = api.state.tokens.sign(BOB).unwrap();
        let (signed, _) = token.rsplit_once('.').unwrap();
        api.call(call().with("token", format!("{signed}.AAAA"))).await.fails(Code::Unauthenticated);
        api.call(call().header("authorization", &format!("Bearer {token}"))).await.ok();
    }
    assert_eq!(world.log.read_all().await.len(), 4);
}

#[tokio::test]
async fn event_carries_request_id_and_trace() {
    let (world, api) = setup().await;
    let trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    let like = || Call::to("/douyin/favorite/action/").with("video_id", VIDEO).with("action_type", 1);
    let valid = api.call_as(BOB, like().header("x-request-id", "req-7").header("traceparent", trace)).await;
    assert_eq!(valid.headers["x-request-id"], "req-7");
    let logged = the_event(&world, Stream::Likes, &valid).await.envelope;
    assert_eq!(logged.correlation_id.as_deref(), Some("req-7"));
    assert_eq!(logged.traceparent.as_deref(), Some(trace));
    assert_eq!(logged.id.get_version_num(), 7);

    let invalid = api.call_as(BOB, like().header("traceparent", "nonsense")).await;
    let made = invalid.headers["x-request-id"].to_str().unwrap().to_owned();
    let events = world.log.read(Stream::Likes).await;
    let last = &events.last().unwrap().envelope;
    assert_eq!((last.correlation_id.as_ref(), last.traceparent.as_ref()), (Some(&made), None));
    assert_ne!(last.id, logged.id);
}
