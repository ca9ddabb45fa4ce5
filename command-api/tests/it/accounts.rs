//! Registration and login.

use axum::{body::Body, http::Request};
use futures::future::join_all;
use vidlog_contract::Code;
use vidlog_events::{Event, Stream, UserEvent};

use crate::support::{Answer, Call, World};

fn user_id(answer: &Answer) -> i64 {
    answer.even_if_stale()["user_id"].as_i64().unwrap()
}

fn token(answer: &Answer) -> &str {
    answer.body["token"].as_str().unwrap()
}

/// Asserts a failure with all response fields present.
fn fails(answer: &Answer, code: Code) {
    answer.fails(code);
    assert_eq!((answer.body["user_id"].as_i64(), token(answer)), (Some(0), ""), "{answer:?}");
}

#[tokio::test]
async fn registered_user_is_logged_and_can_log_in() {
    let (world, api) = World::with_api().await;
    let registered = api.register("Zoë 🎬").await;
    registered.ok();
    let id = user_id(&registered);
    assert!((1..1 << 53).contains(&id));
    assert_eq!(api.state.tokens.verify(token(&registered)), Ok(id));

    let [logged] = &world.log.read(Stream::Users).await[..] else { panic!("expected one event") };
    let Event::User(UserEvent::UserRegistered(event)) = &logged.envelope.event else { panic!() };
    assert_eq!((event.user_id.get(), event.name.reveal().as_str()), (id, "Zoë 🎬"));
    assert_eq!(logged.key, id.to_string());
    assert_eq!(logged.timestamp_ms, logged.envelope.time_ms);
    assert_eq!(logged.position(), registered.position());
    assert_eq!(world.marks(&format!("user:{id}")).await, [registered.position()]);
    assert_eq!(world.count("outbox").await, 0);

    for name in ["Zoë 🎬", "ZOË 🎬", "zoë 🎬", " Zoe\u{308}  🎬", "ｚｏë\u{a0}🎬\u{200b}"] {
        let answer = api.login(name, "secret").await;
        assert_eq!(user_id(&answer), id);
        assert_eq!(api.state.tokens.verify(token(&answer)), Ok(id));
    }
}

#[tokio::test]
async fn concurrent_registrations_of_a_name_have_one_winner() {
    let (world, api) = World::with_api().await;
    let spellings = ["ada", "Ada", "ａｄａ", " ada", "a\u{200b}DA"];
    let register = async |username| loop {
        let answer = api.register(username).await;
        // On a loaded machine some password hashes time out; the client retries.
        if answer.code() != Code::Unavailable.number() {
            return answer;
        }
        fails(&answer, Code::Unavailable);
    };
    let answers = join_all((0..50).map(|index| register(spellings[index % 5]))).await;
    let (won, lost): (Vec<_>, Vec<_>) = answers.iter().partition(|answer| answer.code() == 0);
    let [winner] = won[..] else { panic!("{} won", won.len()) };
    for answer in lost {
        fails(answer, Code::NameTaken);
    }
    assert_eq!(world.count("accounts").await, 1);
    assert_eq!(world.count("outbox").await, 0);
    let events = world.log.read(Stream::Users).await;
    assert_eq!(events.len(), 1);
    assert_eq!(events[0].key, user_id(winner).to_string());
}

#[tokio::test]
async fn failed_login_does_not_reveal_the_cause() {
    let (_world, api) = World::with_api().await;
    api.register("ada").await.ok();
    let wrong_password = api.login("ada", "Secret").await;
    let wrong_name = api.login("bob", "secret").await;
    fails(&wrong_password, Code::LoginFailed);
    fails(&wrong_name, Code::LoginFailed);
    assert_eq!(wrong_password.text, wrong_name.text);
}

#[tokio::test]
async fn invalid_input_fails_with_all_fields() {
    let (world, api) = World::with_api().await;
    let long = "x".repeat(33);
    for path in ["/douyin/user/register/", "/douyin/user/login/"] {
        for (username, password) in
            [("", "secret"), (long.as_str(), "secret"), ("ada", "1234"), ("ada", &long), ("a\0a", "secret")]
        {
            let call = Call::to(path).with("username", username).with("password", password);
            fails(&api.call(call).await, Code::InvalidParameter);
        }
        fails(&api.call(Call::to(path).with("username", "ada")).await, Code::InvalidParameter);
        let forged = Call::to(path).with("username", "ada").with("password", "secret").with("token", "x.y.z");
        fails(&api.call(forged).await, Code::Unauthenticated);
        let large = Request::post(path).header("content-length", 64 * 1024 + 1).body(Body::empty()).unwrap();
        fails(&api.send(large).await, Code::PayloadTooLarge);
    }
    assert_eq!(world.count("accounts").await, 0);
    assert_eq!(world.log.read(Stream::Users).await, []);
}

#[tokio::test]
async fn limits_count_characters_in_query_and_body() {
    let (_world, api) = World::with_api().await;
    api.register(&"🎬".repeat(32)).await.ok();
    let form = Request::post("/douyin/user/register")
        .header("content-type", "application/x-www-form-urlencoded")
        .body(Body::from("username=bob&password=secret"))
        .unwrap();
    api.send(form).await.ok();
    api.login("bob", "secret").await.ok();
}

#[tokio::test]
async fn retried_registration_returns_the_same_user() {
    let (world, api) = World::with_api().await;
    let register = |username: &str, password: &str| {
        let call = Call::to("/douyin/user/register/").with("username", username);
        api.call(call.with("password", password).key("retry-1"))
    };
    let first = register("ada", "secret").await;
    let again = register("ada", "secret").await;
    assert_eq!(user_id(&first), user_id(&again));
    assert_eq!(api.state.tokens.verify(token(&again)), Ok(user_id(&first)));

    // The key alone does not suffice.
    fails(&register("ada", "Secret").await, Code::NameTaken);
    fails(&register("bob", "secret").await, Code::InvalidParameter);
    fails(&api.register("ada").await, Code::NameTaken);
    assert_eq!(world.log.read(Stream::Users).await.len(), 1);

    // A day later the key can name another registration.
    let age = sqlx::query("UPDATE registration_keys SET created_ms = created_ms - 86400000");
    age.execute(&world.mysql).await.unwrap();
    register("bob", "secret").await.ok();
    fails(&register("ada", "secret").await, Code::NameTaken);
    assert_eq!(world.count("registration_keys").await, 1);
}
