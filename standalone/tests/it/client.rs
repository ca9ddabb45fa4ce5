//! Calls of the mobile client.

use reqwest::{RequestBuilder, Response, multipart};
use serde_json::Value;
use tokio::time::timeout;
use uuid::Uuid;
use vidlog_test_support::Call;

use crate::app::{App, DEADLINE, mp4, tokens, until};

/// A user of the app.
pub(crate) struct User<'a> {
    pub(crate) app: &'a App,
    pub(crate) id: i64,
    pub(crate) name: String,
    pub(crate) token: String,
}

type Params<'a> = &'a [(&'a str, &'a str)];

impl App {
    /// Sends a GET, and again while the response is marked stale, as it may be on a busy machine.
    pub(crate) async fn get(&self, path: &str, params: Params<'_>) -> Value {
        let fresh = async {
            loop {
                let response = self.http.get(self.url(path)).query(params).send().await.unwrap();
                if !response.headers().contains_key("vidlog-stale") {
                    return body(response).await;
                }
            }
        };
        timeout(DEADLINE, fresh).await.unwrap_or_else(|_| panic!("{path} stays stale"))
    }

    pub(crate) async fn post(&self, path: &str, params: Params<'_>) -> Value {
        send(self.http.post(self.url(path)).query(params)).await
    }

    pub(crate) async fn call(&self, call: Call) -> Value {
        send(self.http.post(self.url(call.path())).query(call.parameters())).await
    }

    /// Returns a user with a valid token and without an account, which is cheaper and can like and follow.
    pub(crate) fn unregistered_user(&self, id: i64) -> User<'_> {
        User { app: self, id, name: String::new(), token: tokens().sign(id).unwrap() }
    }

    /// Registers a user with a unique name that starts with the given one.
    pub(crate) async fn register(&self, name: &str) -> User<'_> {
        let name = format!("{name}-{}", &Uuid::new_v4().simple().to_string()[..12]);
        let registered = ok(self.call(Call::register(&name, "secret")).await);
        User { app: self, id: id(&registered["user_id"]), name, token: text(&registered["token"]).to_owned() }
    }
}

impl User<'_> {
    pub(crate) fn id_text(&self) -> String {
        self.id.to_string()
    }

    /// Sends a GET with the token.
    pub(crate) async fn get(&self, path: &str, params: Params<'_>) -> Value {
        self.app.get(path, &[params, &[("token", &self.token)]].concat()).await
    }

    /// Sends a POST with the token.
    pub(crate) async fn post(&self, path: &str, params: Params<'_>) -> Value {
        self.app.post(path, &[params, &[("token", &self.token)]].concat()).await
    }

    /// Sends a call with the token.
    pub(crate) async fn call(&self, call: Call) -> Value {
        self.app.call(call.with("token", &self.token)).await
    }

    pub(crate) async fn like(&self, video: i64) -> Value {
        self.call(Call::favorite(video, 1)).await
    }

    pub(crate) async fn unlike(&self, video: i64) -> Value {
        self.call(Call::favorite(video, 2)).await
    }

    pub(crate) async fn follow(&self, user: i64) -> Value {
        self.call(Call::relation(user, 1)).await
    }

    pub(crate) async fn unfollow(&self, user: i64) -> Value {
        self.call(Call::relation(user, 2)).await
    }

    pub(crate) async fn comment(&self, video: i64, comment: &str) -> Value {
        self.call(Call::comment(video, comment)).await
    }

    pub(crate) async fn delete_comment(&self, video: i64, comment: i64) -> Value {
        self.call(Call::delete_comment(video, comment)).await
    }

    pub(crate) async fn message(&self, to: i64, content: &str) -> Value {
        self.call(Call::message(to, content)).await
    }

    pub(crate) async fn chat(&self, with: i64, pre_msg_time: &str) -> Vec<Value> {
        let params = [("to_user_id", &*with.to_string()), ("pre_msg_time", pre_msg_time)];
        list(&ok(self.get("/douyin/message/chat/", &params).await), "message_list")
    }

    /// Returns a list about a user, as this user sees it.
    pub(crate) async fn list_of(&self, path: &str, user: i64, name: &str) -> Vec<Value> {
        list(&ok(self.get(path, &[("user_id", &user.to_string())]).await), name)
    }

    /// Returns the card of a user, as this user sees it.
    pub(crate) async fn card(&self, user: i64) -> Value {
        ok(self.get("/douyin/user/", &[("user_id", &user.to_string())]).await)["user"].clone()
    }

    pub(crate) async fn works(&self) -> Vec<Value> {
        self.list_of("/douyin/publish/list/", self.id, "video_list").await
    }

    pub(crate) async fn upload(&self, title: &str, bytes: &[u8]) -> Value {
        let form = multipart::Form::new()
            .part("data", multipart::Part::bytes(bytes.to_vec()).file_name("video.mp4"))
            .text("token", self.token.clone())
            .text("title", title.to_owned());
        send(self.app.http.post(self.app.url("/douyin/publish/action/")).multipart(form)).await
    }

    /// Uploads a real video and waits until everyone can see it; returns its id.
    pub(crate) async fn publish(&self, title: &str) -> i64 {
        ok(self.upload(title, mp4()).await);
        let works = self.works().await;
        let video = id(&works[0]["id"]);
        assert_eq!(works[0]["title"], title, "the owner sees the upload at once");
        until("the video is published", async || {
            self.works().await.iter().any(|work| work["id"] == video && work["state"] == "published")
        })
        .await;
        video
    }
}

/// Sends a request; returns the body of the response, which must be HTTP 200 and JSON.
pub(crate) async fn send(request: RequestBuilder) -> Value {
    body(request.send().await.unwrap()).await
}

async fn body(response: Response) -> Value {
    assert_eq!(response.headers()["content-type"], "application/json");
    let status = response.status();
    let body: Value = serde_json::from_str(&response.text().await.unwrap()).unwrap();
    assert_eq!(status, 200, "{body}");
    assert!(body["status_code"].is_number() && body["status_msg"].is_string(), "{body}");
    body
}

/// Returns the body, which must be a success.
pub(crate) fn ok(body: Value) -> Value {
    assert_eq!(body["status_code"], 0, "{body}");
    body
}

/// Returns the status code of the body, which must be a failure with a message.
pub(crate) fn failure(body: &Value) -> i64 {
    assert_ne!(body["status_code"], 0, "{body}");
    assert!(!text(&body["status_msg"]).is_empty());
    id(&body["status_code"])
}

pub(crate) fn id(value: &Value) -> i64 {
    value.as_i64().unwrap_or_else(|| panic!("{value} is not a number"))
}

pub(crate) fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_else(|| panic!("{value} is not a text"))
}

/// Returns a list in the body, which must not be null.
pub(crate) fn list(body: &Value, name: &str) -> Vec<Value> {
    body[name].as_array().unwrap_or_else(|| panic!("{name} of {body} is not a list")).clone()
}

/// Returns the id of every item.
pub(crate) fn ids(items: &[Value]) -> Vec<i64> {
    items.iter().map(|item| id(&item["id"])).collect()
}
