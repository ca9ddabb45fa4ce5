//! Views are folded anew while phones read and write.

use std::{
    sync::atomic::{AtomicBool, AtomicI64, Ordering},
    time::Duration,
};

use futures::future::join_all;
use tokio::time::sleep;
use vidlog_projectors::{
    projections,
    rebuild::{IfDifferent, Rebuild},
};

use crate::{
    app::App,
    client::{User, id, list, ok},
};

/// Views of both stores that the reads below are made of.
const REBUILT: [&str; 3] = ["feed", "likes", "comments-table"];

/// Reads as fast as answers come, each of which has to be as new as what anyone had seen before it was asked for.
struct Reader<'a> {
    user: &'a User<'a>,
    author: i64,
    video: i64,
    likes: AtomicI64,
    comments: AtomicI64,
}

impl Reader<'_> {
    /// One like and one comment, each seen at once by who wrote it.
    async fn write(&self, stranger: &User<'_>) {
        ok(stranger.like(self.video).await);
        let likes = self.likes.load(Ordering::SeqCst) + 1;
        assert!(self.favorite_count(stranger).await >= likes, "its own like is seen");
        // What one has seen, all see from then on.
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
        assert!(self.favorite_count(self.user).await >= likes, "no count goes back");
        let author = self.author.to_string();
        let card = ok(fresh(self.user, "/douyin/user/", &[("user_id", &author)]).await);
        assert!(id(&card["user"]["total_favorited"]) >= likes, "no total goes back");
        assert_eq!(card["user"]["follower_count"], 1);
        let video = self.video.to_string();
        let shown = ok(fresh(self.user, "/douyin/comment/list/", &[("video_id", &video)]).await);
        let shown = i64::try_from(list(&shown, "comment_list").len()).unwrap();
        assert!(shown >= comments.min(500), "no comment goes");
    }
}

/// A read that succeeds, and is not said to be stale: the answer waits for what its reader wrote, for 2 s, and a view is held
/// for less. On a machine that is busy with other tests that may take longer, but not several times as long.
async fn fresh(user: &User<'_>, path: &str, params: &[(&str, &str)]) -> serde_json::Value {
    let params = [params, &[("token", &*user.token)]].concat();
    for _ in 0..4 {
        let answer = user.app.http.get(user.app.url(path)).query(&params).send().await.unwrap();
        assert_eq!(answer.status(), 200, "{path}");
        if !answer.headers().contains_key("vidlog-stale") {
            return serde_json::from_str(&answer.text().await.unwrap()).unwrap();
        }
    }
    panic!("{path} stays stale");
}

#[tokio::test(flavor = "multi_thread")]
async fn no_read_fails_or_goes_back_while_views_are_rebuilt() {
    let app = App::start().await;
    let (ada, bob) = (app.register("ada").await, app.register("bob").await);
    let video = ada.publish("rebuilt").await;
    ok(bob.follow(ada.id).await);
    let reader =
        Reader { user: &bob, author: ada.id, video, likes: AtomicI64::new(0), comments: AtomicI64::new(0) };

    let ended = AtomicBool::new(false);
    let reading = async {
        while !ended.load(Ordering::Relaxed) {
            reader.read().await;
        }
    };
    let writing = async {
        for stranger in 1.. {
            reader.write(&app.stranger(stranger)).await;
            if ended.load(Ordering::Relaxed) {
                return;
            }
            // A pace that a comment list of one page bears.
            sleep(Duration::from_millis(50)).await;
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
    assert!(reader.likes.load(Ordering::SeqCst) > 0, "writes went on meanwhile");
    app.assert_views_equal_the_log().await;
}
