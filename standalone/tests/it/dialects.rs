//! The ways in which public clients of the API send parameters and tokens. One file per client dialect.

mod empty_bodies;
mod json_bodies;
mod multipart_forms;
mod other_origin;
mod urlencoded_forms;

use reqwest::RequestBuilder;
use uuid::Uuid;

use crate::{
    app::App,
    client::{User, id, ids, ok, send, text},
};

/// Adds the parameters and the token to a POST. The token is empty before registration.
type Dialect = fn(post: RequestBuilder, parameters: &[(&str, &str)], token: &str) -> RequestBuilder;

/// Registers, logs in and runs each command of the contract in a dialect.
async fn run_every_command(dialect: Dialect) {
    let app = App::start().await;
    let ada = app.register("ada").await;
    let video = ada.publish("a video").await;
    let (video_id, ada_id) = (video.to_string(), ada.id_text());
    let post = async |path: &str, parameters: &[(&str, &str)], token: &str| {
        ok(send(dialect(app.http.post(app.url(path)), parameters, token)).await)
    };

    let name = format!("bob-{}", &Uuid::new_v4().simple().to_string()[..12]);
    let credentials = [("username", &*name), ("password", "12345")];
    post("/douyin/user/register/", &credentials, "").await;
    let login = post("/douyin/user/login/", &credentials, "").await;
    let token = text(&login["token"]).to_owned();
    let bob = User { app: &app, id: id(&login["user_id"]), name, token: token.clone() };

    post("/douyin/favorite/action/", &[("video_id", &video_id), ("action_type", "1")], &token).await;
    assert_eq!(ids(&bob.list_of("/douyin/favorite/list/", bob.id, "video_list").await), [video]);
    let comment =
        [("video_id", &*video_id), ("action_type", "1"), ("comment_text", "a & b = \"字\" 😀\n+ c%20")];
    let posted = post("/douyin/comment/action/", &comment, &token).await;
    assert_eq!(text(&posted["comment"]["content"]), comment[2].1);
    let comment_id = id(&posted["comment"]["id"]).to_string();
    let delete = [("video_id", &*video_id), ("action_type", "2"), ("comment_id", &comment_id)];
    post("/douyin/comment/action/", &delete, &token).await;
    // A client that holds ids in doubles sends them in exponent notation.
    let to_user_id = format!("{:e}", ada.id).replace('e', "e+");
    let follow = [("to_user_id", &*to_user_id), ("action_type", "1")];
    post("/douyin/relation/action/", &follow, &token).await;
    assert_eq!(ids(&ada.list_of("/douyin/relation/follower/list/", ada.id, "user_list").await), [bob.id]);
    // Without action_type.
    post("/douyin/message/action/", &[("to_user_id", &ada_id), ("content", "hello")], &token).await;
    let chat = ada.chat(bob.id, "0").await;
    assert_eq!((chat.len(), text(&chat[0]["content"])), (1, "hello"));
}
