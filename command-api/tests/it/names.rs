//! User names that look the same, and accounts of versions that compared names without case only.

use sqlx::AssertSqlSafe;
use vidlog_command_api::{
    accounts::appearances::{Colliding, Comparison, colliding, compare, normalize_all},
    colliding_names,
    username::username_key,
};
use vidlog_contract::Code;

use crate::support::{Answer, Api, World, until};

/// Creates an account as an instance of the earlier version does.
async fn earlier_account(world: &World, user_id: i64, name: &str, password_hash: &str) {
    let insert = "INSERT INTO accounts (user_id, username, username_key, password_hash, created_ms) VALUES (?, ?, ?, ?, 0)";
    let insert = sqlx::query(insert).bind(user_id).bind(name).bind(username_key(name).into_bytes());
    insert.bind(password_hash).execute(&world.mysql).await.unwrap();
}

/// The hash of "secret", which [`Api::register`] uses.
async fn password_hash(world: &World, api: &Api) -> String {
    api.register("hash").await.ok();
    let select = sqlx::query_scalar("SELECT password_hash FROM accounts WHERE username = 'hash'");
    select.fetch_one(&world.mysql).await.unwrap()
}

async fn user_of(api: &Api, name: &str) -> Option<i64> {
    let answer = api.login(name, "secret").await;
    answer.body["user_id"].as_i64().filter(|id| *id > 0)
}

#[track_caller]
fn is_taken(answer: &Answer) {
    answer.fails(Code::NameTaken);
}

#[tokio::test]
async fn names_that_look_the_same_are_taken() {
    let (world, api) = World::with_api().await;
    api.register(" Ada  Lovelace").await.ok();
    for name in [
        "ada lovelace",
        "ＡＤＡ lovelace",
        "Ada\u{3000}Lovelace ",
        "A\u{ad}da Lovelace",
        "ada\u{2800}lovelace",
    ] {
        is_taken(&api.register(name).await);
    }
    let name: String =
        sqlx::query_scalar("SELECT username FROM accounts").fetch_one(&world.mysql).await.unwrap();
    assert_eq!(name, " Ada  Lovelace", "displayed as typed");
    for name in ["Ada", "adalovelace", "ада lovelace"] {
        api.register(name).await.ok();
    }
}

#[tokio::test]
async fn invalid_names_are_refused_and_can_still_log_in() {
    let (world, api) = World::with_api().await;
    let hash = password_hash(&world, &api).await;
    for (user, name) in (1..).zip(["a\tb", "\u{202e}eve", "\u{200b}", "x\u{7}"]) {
        api.register(name).await.fails(Code::InvalidParameter);
        earlier_account(&world, user, name, &hash).await;
        assert_eq!(user_of(&api, name).await, Some(user), "{name:?}");
    }
    // The name of an account is taken, whether it is valid or not.
    is_taken(&api.register("\u{202e}EVE").await);
}

#[tokio::test]
async fn colliding_accounts_log_in_with_their_own_names() {
    let (world, api) = World::with_api().await;
    let hash = password_hash(&world, &api).await;
    for (user, name) in [(3, "ada"), (4, "Ada "), (5, "ＡＤＡ"), (6, "bob")] {
        earlier_account(&world, user, name, &hash).await;
    }
    normalize_all(&world.mysql).await.unwrap();
    assert_eq!(normalize_all(&world.mysql).await.unwrap(), 0);
    for (name, user) in
        [("ada", 3), ("ADA", 3), ("Ada ", 4), ("ada ", 4), ("ａｄａ", 5), (" ada", 3), (" Bob", 6)]
    {
        assert_eq!(user_of(&api, name).await, Some(user), "{name:?}");
    }
    is_taken(&api.register("  ada").await);
    let listed = colliding(&world.mysql).await.unwrap();
    let account = |user_id, username: &str| Colliding {
        appearance: "ada".to_owned(),
        user_id,
        username: username.to_owned(),
        has_appearance: user_id == 3,
    };
    assert_eq!(listed, [account(3, "ada"), account(4, "Ada "), account(5, "ＡＤＡ")]);
    let text = colliding_names::list(&world.stores).await.unwrap();
    assert_eq!(text.lines().count(), 4, "{text}");
}

#[tokio::test]
async fn account_of_an_earlier_instance_takes_its_name_at_once() {
    let (world, api) = World::with_api().await;
    let hash = password_hash(&world, &api).await;
    earlier_account(&world, 3, "Ada ", &hash).await;
    // Before or after it is normalized in the background.
    assert_eq!(user_of(&api, "ada ").await, Some(3));
    is_taken(&api.register("ada").await);
    until("the name is normalized", async || user_of(&api, "ａｄａ").await == Some(3)).await;
    is_taken(&api.register("ada").await);
}

#[tokio::test]
async fn new_names_are_compared_before_accounts_are_normalized() {
    let world = World::new().await;
    vidlog_schemas::MIGRATOR.run(&world.mysql).await.unwrap();
    earlier_account(&world, 1, "Ada ", "x").await;
    assert_eq!(compare(&world.mysql, "ａda").await.unwrap(), Comparison::Taken);
    assert_eq!(compare(&world.mysql, "bob").await.unwrap(), Comparison::Free);
    for user in 2..=1001 {
        earlier_account(&world, user, &format!("user {user}"), "x").await;
    }
    assert_eq!(compare(&world.mysql, "bob").await.unwrap(), Comparison::Unknown);
    normalize_all(&world.mysql).await.unwrap();
    assert_eq!(compare(&world.mysql, "bob").await.unwrap(), Comparison::Free);
}

#[tokio::test]
async fn several_instances_normalize_at_once() {
    let world = World::new().await;
    vidlog_schemas::MIGRATOR.run(&world.mysql).await.unwrap();
    for user in 0..1200 {
        let name = ["字", " 字", "\u{200b}字"][user / 400].to_owned() + &(user % 400).to_string();
        earlier_account(&world, i64::try_from(user + 1).unwrap(), &name, "x").await;
    }
    let run = || async {
        // A deadlock or a timeout is retried, as in the background.
        while normalize_all(&world.mysql).await.is_err() {}
    };
    tokio::join!(run(), run(), run(), run());
    let count = async |condition: &str| -> i64 {
        let select = format!("SELECT COUNT(*) FROM accounts WHERE {condition}");
        sqlx::query_scalar(AssertSqlSafe(select)).fetch_one(&world.mysql).await.unwrap()
    };
    assert_eq!(count("appearance IS NULL").await, 0);
    assert_eq!(count("collision = 0 AND user_id <= 400").await, 400, "the oldest has the appearance");
    assert_eq!(count("collision = user_id AND user_id > 400").await, 800);
}
