//! `Vidlog-Stale` of reads whose projections are paused, stopped or far behind.

use vidlog_query_api::QueryState;
use vidlog_service_kit::mysql;
use vidlog_test_support::{Condition, Link, Proxy, until};

use crate::support::{Api, NOW, World, api_over};

const FEED: &str = "feed/";
const TOP: &str = "feed/top/";
const USER: &str = "user/?user_id=1";
const WORKS: &str = "publish/list/?user_id=1";
const FAVORITES: &str = "favorite/list/?user_id=1";
const COMMENTS: &str = "comment/list/?video_id=100";
const FOLLOWERS: &str = "relation/follower/list/?user_id=1";
const FRIENDS: &str = "relation/friend/list/?user_id=1";
const CHAT: &str = "message/chat/?to_user_id=1";
const ALL: [&str; 9] = [FEED, TOP, USER, WORKS, FAVORITES, COMMENTS, FOLLOWERS, FRIENDS, CHAT];

/// Read models with a user and a video, and an API that observes the projections.
async fn setup() -> (World, Api) {
    let world = World::new().await;
    world.users([1, 2]).await;
    world.published(100, 1, NOW).await;
    let api = observing(world.state());
    (world, api)
}

fn observing(state: QueryState) -> Api {
    state.models.freshness.observe_projections();
    api_over(state)
}

async fn execute(world: &World, sql: &'static str) {
    sqlx::query(sql).execute(&world.mysql).await.unwrap();
}

async fn is_stale(api: &Api, path: &str) -> bool {
    let answer = api.get_as(2, &format!("/douyin/{path}")).await;
    let is_stale = answer.is_stale();
    answer.even_if_stale();
    is_stale
}

async fn until_stale(api: &Api, path: &str) {
    until("the read is stale", async || is_stale(api, path).await).await;
}

async fn until_current(api: &Api, path: &str) {
    until("the read is current", async || !is_stale(api, path).await).await;
}

async fn stale_reads(api: &Api) -> Vec<&'static str> {
    let mut stale = Vec::new();
    for path in ALL {
        if is_stale(api, path).await {
            stale.push(path);
        }
    }
    stale
}

#[tokio::test]
async fn pause_affects_exactly_the_reads_of_the_projection() {
    let (world, api) = setup().await;
    assert_eq!(stale_reads(&api).await, [""; 0]);
    for (projection, expected) in [
        ("feed", vec![FEED]),
        ("top-videos", vec![TOP]),
        ("works", vec![FEED, TOP, USER, WORKS, FAVORITES, COMMENTS, FOLLOWERS, FRIENDS]),
        ("video-cards", vec![FEED, TOP, WORKS, FAVORITES, COMMENTS]),
        ("user-cards", ALL.to_vec()),
        ("likes", vec![FEED, TOP, USER, WORKS, FAVORITES, COMMENTS, FOLLOWERS, FRIENDS]),
        ("comment-counts", vec![FEED, TOP, WORKS, FAVORITES]),
        ("comments-table", vec![COMMENTS]),
        ("messages-table", vec![FRIENDS, CHAT]),
    ] {
        let pause = "REPLACE INTO projections (name, paused) VALUES (?, TRUE)";
        sqlx::query(pause).bind(projection).execute(&world.mysql).await.unwrap();
        until_stale(&api, expected[0]).await;
        assert_eq!(stale_reads(&api).await, expected, "{projection}");
        execute(&world, "UPDATE projections SET paused = FALSE").await;
        until_current(&api, expected[0]).await;
    }
    // Tables whose views serve the reads do not matter.
    execute(&world, "REPLACE INTO projections (name, paused) VALUES ('likes-table', TRUE), ('feed', TRUE)")
        .await;
    until_stale(&api, FEED).await;
    assert_eq!(stale_reads(&api).await, [FEED]);
}

#[tokio::test]
async fn pause_is_observed_without_lags() {
    let (world, api) = setup().await;
    execute(&world, "DROP TABLE projection_lags").await;
    execute(&world, "INSERT INTO projections (name, paused) VALUES ('likes', TRUE)").await;
    until_stale(&api, USER).await;
}

#[tokio::test]
async fn stopped_projection_makes_its_reads_stale() {
    let (world, api) = setup().await;
    execute(&world, "INSERT INTO projections (name, stopped) VALUES ('likes', 'too many failures')").await;
    until_stale(&api, USER).await;
    assert!(!is_stale(&api, CHAT).await);
    execute(&world, "UPDATE projections SET stopped = NULL").await;
    until_current(&api, USER).await;
}

#[tokio::test]
async fn missing_entity_of_a_paused_projection_is_unavailable() {
    let (world, api) = setup().await;
    execute(&world, "INSERT INTO projections (name, paused) VALUES ('user-cards', TRUE)").await;
    until_stale(&api, USER).await;
    let answer = api.get("/douyin/user/?user_id=9").await;
    assert_eq!((answer.status.as_u16(), answer.code()), (503, 10009));
}

#[tokio::test]
async fn projection_behind_its_marks_makes_its_reads_stale() {
    let (world, api) = setup().await;
    execute(
        &world,
        "INSERT INTO projection_lags VALUES ('likes', UNIX_TIMESTAMP() * 1000 - 660000),
             ('feed', UNIX_TIMESTAMP() * 1000 - 300000)",
    )
    .await;
    until_stale(&api, USER).await;
    assert!(!is_stale(&api, CHAT).await);
    execute(&world, "UPDATE projection_lags SET folded_until_ms = UNIX_TIMESTAMP() * 1000").await;
    until_current(&api, FEED).await;
}

/// No projector publishes any more, and MySQL, which would tell, is unreachable, too.
#[tokio::test]
async fn projection_of_unknown_lag_becomes_stale() {
    let world = World::new().await;
    world.users([1, 2]).await;
    // 12 s before the lag is longer than marks live.
    execute(&world, "INSERT INTO projection_lags VALUES ('likes', UNIX_TIMESTAMP() * 1000 - 558000)").await;
    execute(&world, "INSERT INTO projections (name, paused) VALUES ('feed', TRUE)").await;
    let link = Link::open();
    let url = world.stores.mysql_url.reveal();
    let (before, rest) = url.rsplit_once('@').unwrap();
    let (server, database) = rest.split_once('/').unwrap();
    let proxy = Proxy::over("127.0.0.1:0", server, link.clone()).await.unwrap();
    let pool = mysql::open_for_reads(&format!("{before}@{}/{database}", proxy.address), 4).unwrap();
    let api = observing(world.state_over(world.redis.clone(), pool));
    until_stale(&api, FEED).await;
    link.set(Condition::Cut);
    until_stale(&api, USER).await;
    assert!(is_stale(&api, FEED).await, "the last known state counts");
}
