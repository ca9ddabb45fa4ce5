//! The rules of the client contract, one test each.

use reqwest::{Method, multipart};
use serde_json::{Value, json};

use crate::{
    app::{App, mp4, until},
    client::{User, failure, id, ids, list, ok, send, text},
};

const INVALID: i64 = 10_001;
const UNAUTHENTICATED: i64 = 10_002;
const FORBIDDEN: i64 = 10_003;
const NOT_FOUND: i64 = 10_004;

#[tokio::test]
async fn paths_accept_slashes_and_reject_wrong_methods() {
    let app = App::start().await;
    let gets = [
        "feed",
        "user",
        "publish/list",
        "favorite/list",
        "comment/list",
        "relation/follow/list",
        "relation/follower/list",
        "relation/friend/list",
        "message/chat",
    ];
    let posts = [
        "user/register",
        "user/login",
        "publish/action",
        "favorite/action",
        "comment/action",
        "relation/action",
        "message/action",
    ];
    let method = |method: Method, path: &str| app.http.request(method, app.url(&format!("/douyin/{path}")));
    for path in gets {
        let (bare, slash) =
            (send(method(Method::GET, path)).await, send(method(Method::GET, &format!("{path}/"))).await);
        assert_eq!(bare["status_code"], slash["status_code"], "{path}");
        assert_eq!(method(Method::POST, path).send().await.unwrap().status(), 405, "{path}");
    }
    for path in posts {
        let (bare, slash) =
            (send(method(Method::POST, path)).await, send(method(Method::POST, &format!("{path}/"))).await);
        assert_eq!(bare, slash, "{path}");
        failure(&bare);
        assert_eq!(method(Method::GET, path).send().await.unwrap().status(), 405, "{path}");
    }
    let unknown = method(Method::GET, "nothing").send().await.unwrap();
    assert_eq!(unknown.status(), 404);
    let body: Value = serde_json::from_str(&unknown.text().await.unwrap()).unwrap();
    failure(&body);
}

#[tokio::test]
async fn query_parameters_take_precedence_over_the_form() {
    let app = App::start().await;
    let ada = app.register("ada").await;
    let (one, other) = (app.register("one").await, app.register("other").await);
    let follow = |query: &str, form: &str| {
        let request = app.http.post(app.url(&format!("/douyin/relation/action/?{query}")));
        send(request.header("content-type", "application/x-www-form-urlencoded").body(form.to_owned()))
    };
    let (token, first, second) = (&ada.token, one.id, other.id);
    ok(follow("", &format!("token={token}&to_user_id={first}&action_type=1&unknown=x")).await);
    ok(follow(
        &format!("to_user_id={second}&to_user_id=0&action_type=1"),
        &format!("token={token}&to_user_id=0"),
    )
    .await);
    let followed = ada.list_of("/douyin/relation/follow/list/", ada.id, "user_list").await;
    assert_eq!(ids(&followed), [second, first], "latest first");

    // A GET's body is ignored; a bearer token counts where there is no parameter.
    let get = app.http.get(app.url(&format!("/douyin/user/?user_id={first}"))).body("user_id=0");
    assert_eq!(ok(send(get).await)["user"]["id"], first);
    let bearer = app.http.get(app.url("/douyin/user/")).bearer_auth(token);
    assert_eq!(ok(send(bearer).await)["user"]["id"], ada.id);
    let both = app.http.get(app.url(&format!("/douyin/user/?token={token}"))).bearer_auth("nonsense");
    assert_eq!(ok(send(both).await)["user"]["id"], ada.id);

    // A client that holds numbers in doubles sends ids in exponent notation.
    let exponent = format!("{:e}", one.id_text().parse::<f64>().unwrap());
    assert_eq!(ok(app.get("/douyin/user/", &[("user_id", &exponent)]).await)["user"]["id"], first);
    for wrong in ["1.5e0", "-1", "0", "9007199254740992", "1e400", "abc", "NaN"] {
        assert_eq!(failure(&app.get("/douyin/user/", &[("user_id", wrong)]).await), INVALID, "{wrong}");
    }
}

#[tokio::test]
async fn reads_work_anonymously_but_reject_invalid_tokens() {
    let app = App::start().await;
    let ada = app.register("ada").await;
    let ada_id = ada.id_text();
    let readable =
        ["feed", "user", "publish/list", "favorite/list", "relation/follow/list", "relation/follower/list"];
    for path in readable {
        let path = format!("/douyin/{path}/");
        ok(app.get(&path, &[("user_id", &ada_id)]).await);
        ok(app.get(&path, &[("user_id", &ada_id), ("token", "")]).await);
        assert_eq!(
            failure(&app.get(&path, &[("user_id", &ada_id), ("token", "x.y.z")]).await),
            UNAUTHENTICATED
        );
    }
    // Without a user id a list is that of the caller. Without a caller, or for an unknown user, it is an error.
    assert_eq!(failure(&app.get("/douyin/publish/list/", &[]).await), INVALID);
    assert_eq!(ok(ada.get("/douyin/publish/list/", &[]).await)["video_list"], json!([]));
    for path in &readable[1..] {
        assert_eq!(
            failure(&app.get(&format!("/douyin/{path}/"), &[("user_id", "12345")]).await),
            NOT_FOUND,
            "{path}"
        );
    }
    for (path, params) in [
        ("favorite/action", vec![("video_id", "1"), ("action_type", "1")]),
        ("comment/action", vec![("video_id", "1"), ("action_type", "1"), ("comment_text", "x")]),
        ("relation/action", vec![("to_user_id", ada_id.as_str()), ("action_type", "1")]),
        ("message/action", vec![("to_user_id", ada_id.as_str()), ("action_type", "1"), ("content", "x")]),
    ] {
        assert_eq!(failure(&app.post(&format!("/douyin/{path}/"), &params).await), UNAUTHENTICATED, "{path}");
    }
    for path in ["relation/friend/list", "message/chat"] {
        let body =
            app.get(&format!("/douyin/{path}/"), &[("user_id", &ada_id), ("to_user_id", &ada_id)]).await;
        assert_eq!(failure(&body), UNAUTHENTICATED, "{path}");
    }
}

#[tokio::test]
async fn commands_reject_invalid_input() {
    let app = App::start().await;
    let (ada, bob, eve) = (app.register("ada").await, app.register("bob").await, app.register("eve").await);
    let video = ada.publish("checked").await;

    assert_eq!(failure(&bob.like(12345).await), NOT_FOUND);
    assert_eq!(failure(&bob.comment(12345, "x").await), NOT_FOUND);
    assert_eq!(failure(&bob.follow(12345).await), NOT_FOUND);
    assert_eq!(failure(&bob.message(12345, "x").await), NOT_FOUND);
    assert_eq!(failure(&bob.follow(bob.id).await), INVALID);
    assert_eq!(failure(&bob.message(bob.id, "x").await), INVALID);
    let video_id = video.to_string();
    let odd = bob.post("/douyin/favorite/action/", &[("video_id", &video_id), ("action_type", "3")]).await;
    assert_eq!(failure(&odd), INVALID);

    // Limits count characters, not bytes.
    let (longest, too_long) = ("影".repeat(255), "影".repeat(256));
    let comment = ok(bob.comment(video, &longest).await)["comment"].clone();
    assert_eq!(text(&comment["content"]), longest);
    for wrong in [too_long.as_str(), "", "nul\0"] {
        assert_eq!(failure(&bob.comment(video, wrong).await), INVALID);
        assert_eq!(failure(&bob.message(ada.id, wrong).await), INVALID);
    }
    let date = text(&comment["create_date"]);
    assert!(date.len() == 5 && date.as_bytes()[2] == b'-', "{date}");

    // Only the author of the comment or of the video can delete it, once.
    let comment = id(&comment["id"]);
    assert_eq!(failure(&eve.delete_comment(video, comment).await), FORBIDDEN);
    ok(bob.delete_comment(video, comment).await);
    assert_eq!(failure(&bob.delete_comment(video, comment).await), NOT_FOUND);

    for (name, password) in
        [("", "secret"), ("x", "1234"), (&*"n".repeat(33), "secret"), ("x", &*"p".repeat(33))]
    {
        for path in ["register", "login"] {
            let body = app
                .post(&format!("/douyin/user/{path}/"), &[("username", name), ("password", password)])
                .await;
            failure(&body);
            assert_eq!((&body["user_id"], &body["token"]), (&json!(0), &json!("")), "{path} {name}");
        }
    }
}

#[tokio::test]
async fn chat_polling_returns_each_message_once() {
    let app = App::start().await;
    let (ada, bob) = (app.register("ada").await, app.register("bob").await);
    for turn in 0..5 {
        ok(ada.message(bob.id, &format!("a{turn}")).await);
        ok(bob.message(ada.id, &format!("b{turn}")).await);
    }
    let history = ada.chat(bob.id, "").await;
    let contents: Vec<_> = history.iter().map(|message| text(&message["content"])).collect();
    assert_eq!(
        contents,
        ["a0", "b0", "a1", "b1", "a2", "b2", "a3", "b3", "a4", "b4"],
        "oldest first, both directions"
    );
    let times: Vec<_> = history.iter().map(|message| id(&message["create_time"])).collect();
    assert!(times.is_sorted_by(|one, next| one < next), "{times:?}");
    assert_eq!((&history[0]["from_user_id"], &history[0]["to_user_id"]), (&json!(ada.id), &json!(bob.id)));
    for whole in ["0", "x"] {
        assert_eq!(ada.chat(bob.id, whole).await, history);
    }

    // Polling returns messages of the peer that are strictly later.
    let since = ada.chat(bob.id, &times[4].to_string()).await;
    let contents: Vec<_> = since.iter().map(|message| text(&message["content"])).collect();
    assert_eq!(contents, ["b2", "b3", "b4"]);
    assert!(ada.chat(bob.id, &times[9].to_string()).await.is_empty());
    assert!(ada.chat(bob.id, "99999999999999").await.is_empty(), "the clock of the phone is ahead");
    ok(bob.message(ada.id, "b5").await);
    let received = ada.chat(bob.id, &times[9].to_string()).await;
    assert_eq!((received.len(), text(&received[0]["content"])), (1, "b5"));
}

#[tokio::test]
async fn lists_are_paged_only_with_a_limit() {
    let app = App::start().await;
    let ada = app.register("ada").await;
    for follower in 1..=25 {
        ok(app.unregistered_user(follower).follow(ada.id).await);
    }
    let page = async |cursor: &str| {
        let params = [("user_id", &*ada.id_text()), ("limit", "10"), ("cursor", cursor)];
        ok(app.get("/douyin/relation/follower/list/", &params).await)
    };
    let whole = ok(app.get("/douyin/relation/follower/list/", &[("user_id", &ada.id_text())]).await);
    assert!(whole.get("next_cursor").is_none());
    // Unregistered users have no card, so the list omits them; pages count follows.
    let (mut cursor, mut pages) = (String::new(), 0);
    loop {
        let page = page(&cursor).await;
        pages += 1;
        match page.get("next_cursor") {
            Some(next) => text(next).clone_into(&mut cursor),
            None => break,
        }
    }
    assert_eq!(pages, 3);
    for wrong in ["0", "1001", "x"] {
        let body = ada.get("/douyin/relation/follower/list/", &[("limit", wrong)]).await;
        assert_eq!(failure(&body), INVALID, "{wrong}");
    }
}

#[tokio::test]
async fn owner_sees_upload_immediately_and_its_rejection() {
    let app = App::start().await;
    let (ada, bob) = (app.register("ada").await, app.register("bob").await);
    ok(ada.upload("no video at all", b"just some text, not a video").await);
    let work = ada.works().await.remove(0);
    assert!(
        text(&work["play_url"]).starts_with("http://") && text(&work["cover_url"]).starts_with("http://")
    );
    assert_eq!(ada.card(ada.id).await["work_count"], 1);
    assert_eq!(bob.card(ada.id).await["work_count"], 0);
    assert!(bob.list_of("/douyin/publish/list/", ada.id, "video_list").await.is_empty());

    until("the upload is rejected", async || ada.works().await[0]["state"] == "rejected").await;
    let work = ada.works().await.remove(0);
    assert!(!text(&work["state_reason"]).is_empty());
    assert_eq!(ada.card(ada.id).await["work_count"], 1, "the owner still sees it, with the reason");
    assert_eq!(failure(&bob.like(id(&work["id"])).await), NOT_FOUND);
    assert_eq!(ok(app.get("/douyin/feed/", &[]).await)["video_list"], json!([]));

    for (title, file) in [("", mp4()), (&*"t".repeat(121), mp4()), ("empty", &[])] {
        let body = ada.upload(title, file).await;
        assert_eq!(body["status_code"], INVALID, "{title}: {body}");
    }
    let anonymous = User { app: &app, id: 0, name: String::new(), token: String::new() };
    assert_eq!(failure(&anonymous.upload("whose?", mp4()).await), UNAUTHENTICATED);
    assert_eq!(ada.works().await.len(), 1);
}

#[tokio::test]
async fn oversized_bodies_are_rejected() {
    let app = App::start().await;
    let ada = app.register("ada").await;
    let url = app.url(&format!("/douyin/message/action/?token={}", ada.token));
    let large = app
        .http
        .post(url)
        .header("content-type", "application/x-www-form-urlencoded")
        .body("x".repeat(65 * 1024 + 1));
    let response = large.send().await.unwrap();
    assert_eq!(response.status(), 413);
    let body: Value = serde_json::from_str(&response.text().await.unwrap()).unwrap();
    failure(&body);

    // `Content-Length` suffices: the body is never sent.
    let part = multipart::Part::bytes(vec![0; 64]).file_name("x.mp4");
    let form = multipart::Form::new().part("data", part);
    let boundary = form.boundary().to_owned();
    let response = app
        .http
        .post(app.url(&format!("/douyin/publish/action/?token={}", ada.token)))
        .header("content-type", format!("multipart/form-data; boundary={boundary}"))
        .header("content-length", (300_u64 << 20).to_string())
        .body(reqwest::Body::wrap_stream(futures::stream::pending::<Result<Vec<u8>, std::io::Error>>()))
        .send()
        .await
        .unwrap();
    assert_eq!(response.status(), 413);
}

#[tokio::test]
async fn latest_time_accepts_seconds_milliseconds_and_garbage() {
    let app = App::start().await;
    let video = app.register("ada").await.publish("timed").await;
    let feed = async |latest: &str| {
        ids(&list(&ok(app.get("/douyin/feed/", &[("latest_time", latest)]).await), "video_list"))
    };
    for now in ["", "0", "x", "99999999999999", "4102444800"] {
        assert_eq!(feed(now).await, [video], "{now}");
    }
    assert!(feed("1000000000").await.is_empty(), "seconds");
    assert!(feed("1000000000000").await.is_empty(), "milliseconds");
}
