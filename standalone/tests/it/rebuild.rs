//! Rebuilds of views under reads and writes.

use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};

use futures::future::join_all;
use tokio::sync::Notify;
use vidlog_projectors::{
    projections,
    rebuild::{IfDifferent, Rebuild},
};

use crate::{
    app::App,
    client::{User, id, list, ok},
};

/// Views of both stores that the reads below use.
const REBUILT: [&str; 3] = ["feed", "likes", "comments-table"];

/// Reads in a loop and asserts that each response includes the writes that were visible before the request.
struct Reader<'a> {
    user: &'a User<'a>,
    author: i64,
    video: i64,
    likes: AtomicI64,
    comments: AtomicI64,
}

impl Reader<'_> {
    /// Writes one like and one comment; each is visible to its author immediately.
    async fn write(&self, user: &User<'_>) {
        ok(user.like(self.video).await);
        let likes = self.likes.load(Ordering::SeqCst) + 1;
        assert!(self.favorite_count(user).await >= likes, "the like is visible to its author");
        // A write that one reader has seen is visible to all later reads.
        self.likes.fetch_add(1, Ordering::SeqCst);
        ok(self.user.comment(self.video, "first!").await);
        self.comments.fetch_add(1, Ordering::SeqCst);
    }

    async fn favorite_count(&self, viewer: &User<'_>) -> i64 {
        let feed = ok(fresh(viewer, "/douyin/feed/", &[]).await);
        let videos = list(&feed, "video_list");
        id(&videos.iter().find(|shown| shown["id"] == self.video).unwrap()["favorite_count"])
    }

    async fn read(&self) {
        let (likes, comments) = (self.likes.load(Ordering::SeqCst), self.comments.load(Ordering::SeqCst));
        assert!(self.favorite_count(self.user).await >= likes, "no count decreases");
        let author = self.author.to_string();
        let card = ok(fresh(self.user, "/douyin/user/", &[("user_id", &author)]).await);
        assert!(id(&card["user"]["total_favorited"]) >= likes, "no total decreases");
        assert_eq!(card["user"]["follower_count"], 1);
        let video = self.video.to_string();
        let shown = ok(fresh(self.user, "/douyin/comment/list/", &[("video_id", &video)]).await);
        let shown = i64::try_from(list(&shown, "comment_list").len()).unwrap();
        assert!(shown >= comments.min(500), "no comment disappears");
    }
}

/// Reads until a response is not stale: reads wait up to 2 s for writes of their caller, and a cutover holds the view
/// for less. A busy machine may exceed that, but not several times in a row.
async fn fresh(user: &User<'_>, path: &str, params: &[(&str, &str)]) -> serde_json::Value {
    let params = [params, &[("token", &*user.token)]].concat();
    for _ in 0..4 {
        let response = user.app.http.get(user.app.url(path)).query(&params).send().await.unwrap();
        assert_eq!(response.status(), 200, "{path}");
        if !response.headers().contains_key("vidlog-stale") {
            return serde_json::from_str(&response.text().await.unwrap()).unwrap();
        }
    }
    panic!("{path} stays stale");
}

#[tokio::test(flavor = "multi_thread")]
async fn reads_never_fail_or_go_back_during_rebuilds() {
    let app = App::start().await;
    let (ada, bob) = (app.register("ada").await, app.register("bob").await);
    let video = ada.publish("rebuilt").await;
    ok(bob.follow(ada.id).await);
    let reader =
        Reader { user: &bob, author: ada.id, video, likes: AtomicI64::new(0), comments: AtomicI64::new(0) };

    let ended = AtomicBool::new(false);
    let has_read = Notify::new();
    let reading = async {
        while !ended.load(Ordering::Relaxed) {
            reader.read().await;
            has_read.notify_one();
        }
    };
    let writing = async {
        for id in 1.. {
            reader.write(&app.unregistered_user(id)).await;
            if ended.load(Ordering::Relaxed) {
                return;
            }
            // One write per read, since reads slow down as the comment list grows.
            has_read.notified().await;
        }
    };
    let rebuilding = async {
        let outcomes = join_all(REBUILT.map(async |name| {
            let projection = projections::find(name).unwrap();
            let rebuild = Rebuild::begin(&app.log, &app.stores, projection).await.unwrap();
            (name, rebuild.run(IfDifferent::Keep).await.unwrap())
        }));
        let outcomes = outcomes.await;
        ended.store(true, Ordering::Relaxed);
        outcomes
    };
    let (outcomes, (), ()) = tokio::join!(rebuilding, reading, writing);
    for (name, outcome) in outcomes {
        assert!(outcome.differences.is_empty(), "{name}: {:#?}", outcome.differences);
        assert_eq!(outcome.generation, (1, 2), "{name}");
    }
    assert!(reader.likes.load(Ordering::SeqCst) > 0, "writes continue during the rebuilds");
    app.assert_views_equal_the_log().await;
}
