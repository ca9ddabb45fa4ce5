//! The main user journey, which the public test suite of the client checks as well.

use serde_json::json;

use crate::{
    app::App,
    client::{failure, id, ids, list, ok, text},
};

#[tokio::test]
async fn two_users_use_every_feature() {
    let app = App::start().await;
    let (ada, bob) = (app.register("ada").await, app.register("bob").await);

    // Ada publishes; Bob finds it in the feed, without and with a token.
    let video = ada.publish("my first video").await;
    let feed = ok(app.get("/douyin/feed/", &[]).await);
    assert_eq!(ids(&list(&feed, "video_list")), [video]);
    assert!(id(&feed["next_time"]) > 0);
    let seen = list(&ok(bob.get("/douyin/feed/", &[]).await), "video_list").remove(0);
    assert_eq!((&seen["author"]["id"], &seen["title"]), (&json!(ada.id), &json!("my first video")));
    assert_eq!(seen["is_favorite"], false);
    for (url, kind) in [(&seen["play_url"], "video/mp4"), (&seen["cover_url"], "image/jpeg")] {
        let media = app.http.get(text(url)).send().await.unwrap();
        assert_eq!((media.status().as_u16(), media.headers()["content-type"].to_str().unwrap()), (200, kind));
        assert!(media.bytes().await.unwrap().len() > 500);
    }

    // Bob likes it twice, which counts once; both users see it immediately.
    ok(bob.like(video).await);
    ok(bob.like(video).await);
    let seen = list(&ok(bob.get("/douyin/feed/", &[]).await), "video_list").remove(0);
    assert_eq!((&seen["favorite_count"], &seen["is_favorite"]), (&json!(1), &json!(true)));
    let top = list(&ok(bob.get("/douyin/feed/top/", &[]).await), "video_list");
    assert_eq!((ids(&top), &top[0]["favorite_count"]), (vec![video], &json!(1)));
    assert_eq!(ids(&bob.list_of("/douyin/favorite/list/", bob.id, "video_list").await), [video]);
    assert_eq!(bob.card(bob.id).await["favorite_count"], 1);
    assert_eq!(ada.card(ada.id).await["total_favorited"], 1);

    // Bob comments; Ada replies and deletes Bob's comment.
    let posted = ok(bob.comment(video, "lovely 🎬 <b>").await);
    let comment = &posted["comment"];
    assert_eq!((text(&comment["content"]), &comment["user"]["id"]), ("lovely 🎬 <b>", &json!(bob.id)));
    assert_eq!(comment["user"]["name"], bob.name);
    let reply = ok(ada.comment(video, "thanks").await);
    let comments = list(
        &ok(app.get("/douyin/comment/list/", &[("video_id", &video.to_string())]).await),
        "comment_list",
    );
    assert_eq!(ids(&comments), [id(&reply["comment"]["id"]), id(&comment["id"])], "newest first");
    ok(ada.delete_comment(video, id(&comment["id"])).await);
    let feed = ok(ada.get("/douyin/feed/", &[]).await);
    assert_eq!(list(&feed, "video_list")[0]["comment_count"], 1);

    // They follow each other, and are friends.
    ok(bob.follow(ada.id).await);
    assert_eq!(ids(&ada.list_of("/douyin/relation/follower/list/", ada.id, "user_list").await), [bob.id]);
    assert!(ada.list_of("/douyin/relation/friend/list/", ada.id, "user_list").await.is_empty());
    ok(ada.follow(bob.id).await);
    assert_eq!(ids(&bob.list_of("/douyin/relation/follow/list/", bob.id, "user_list").await), [ada.id]);
    let card = bob.card(ada.id).await;
    assert_eq!(
        (&card["is_follow"], &card["follow_count"], &card["follower_count"]),
        (&json!(true), &json!(1), &json!(1))
    );

    // They chat.
    ok(bob.message(ada.id, "hello Ada").await);
    let received = ada.chat(bob.id, "0").await;
    assert_eq!((received.len(), text(&received[0]["content"])), (1, "hello Ada"));
    ok(ada.message(bob.id, "hello Bob").await);
    let friend = ada.list_of("/douyin/relation/friend/list/", ada.id, "user_list").await.remove(0);
    assert_eq!((text(&friend["message"]), &friend["msgType"]), ("hello Bob", &json!(1)));
    let friend = bob.list_of("/douyin/relation/friend/list/", bob.id, "user_list").await.remove(0);
    assert_eq!((text(&friend["message"]), &friend["msgType"]), ("hello Bob", &json!(0)));

    // They undo the like and the follow.
    ok(bob.unlike(video).await);
    ok(bob.unfollow(ada.id).await);
    let card = ada.card(ada.id).await;
    assert_eq!(
        (&card["total_favorited"], &card["follower_count"], &card["work_count"]),
        (&json!(0), &json!(0), &json!(1))
    );
    app.assert_views_equal_the_log().await;
}

#[tokio::test]
async fn login_needs_the_password_and_names_are_unique() {
    let app = App::start().await;
    let ada = app.register("Ada").await;
    let login = async |name: &str, password: &str| {
        app.post("/douyin/user/login/", &[("username", name), ("password", password)]).await
    };
    let body = ok(login(&ada.name, "secret").await);
    assert_eq!(body["user_id"], ada.id);
    assert_eq!(app.get("/douyin/user/", &[("token", text(&body["token"]))]).await["user"]["name"], ada.name);

    let wrong_password = login(&ada.name, "secret2").await;
    let wrong_name = login("unknown", "secret").await;
    assert_eq!(wrong_password, wrong_name, "the response does not reveal which was wrong");
    assert_eq!((&wrong_name["user_id"], &wrong_name["token"]), (&json!(0), &json!("")));

    let taken = app
        .post("/douyin/user/register/", &[("username", &ada.name.to_uppercase()), ("password", "other")])
        .await;
    assert_eq!((&taken["user_id"], &taken["token"]), (&json!(0), &json!("")));
    failure(&taken);
}
