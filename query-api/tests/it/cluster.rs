//! Reads while a node of a Redis Cluster is down.

use redis::cmd;
use vidlog_query_api::QueryState;
use vidlog_rate_limits::{RateLimitConfig, RateLimiter};
use vidlog_test_support::{RedisCluster, until};

use crate::support::{Answer, Api, World, api_over};

/// The index of the node of a user's cards, and of its marks.
async fn nodes(cluster: &RedisCluster, world: &World, user: i64) -> (usize, usize) {
    let marks = world.keys.recent_writes(&format!("user:{user}"));
    (cluster.owner(&world.keys.user_card(user).name).await.1, cluster.owner(&marks.name).await.1)
}

async fn user(api: &Api, id: i64) -> Answer {
    api.get(&format!("/douyin/user/?user_id={id}")).await
}

#[tokio::test(flavor = "multi_thread")]
async fn node_that_is_down_affects_only_its_keys() {
    let mut cluster = RedisCluster::start().await;
    for index in 0..3 {
        let set = cmd("CONFIG").arg("SET").arg("cluster-require-full-coverage").arg("no").take();
        let _: String = cluster.node(index).server.query(&set).await;
    }
    let world = World::on_redis(cluster.url()).await;
    world.users(1..200).await;
    // The other nodes have to serve reads: the one of the generations stays up.
    let meta = cluster.owner(&world.keys.generations().name).await.1;
    let down = (meta + 1) % 3;
    let (mut unaffected, mut cards_down, mut marks_down) = (None, None, None);
    for id in 1..200 {
        let (cards, marks) = nodes(&cluster, &world, id).await;
        let case = match (cards == down, marks == down) {
            (false, false) => &mut unaffected,
            (true, false) => &mut cards_down,
            (false, true) => &mut marks_down,
            (true, true) => continue,
        };
        *case = Some(id);
    }
    let [unaffected, cards_down, marks_down] = [unaffected, cards_down, marks_down].map(Option::unwrap);
    let state = world.state();
    let state = QueryState { limits: RateLimiter::new(RateLimitConfig::off(), &state.models), ..state };
    let api = api_over(state);
    for id in [unaffected, cards_down, marks_down] {
        user(&api, id).await.ok();
    }

    cluster.node_mut(down).server.kill();
    until("the outage is noticed", async || user(&api, marks_down).await.is_stale()).await;
    for _ in 0..50 {
        user(&api, unaffected).await.ok();
        // There is no mark, so the tables include all that the reader expects.
        assert_eq!(user(&api, cards_down).await.ok()["user"]["name"], format!("user {cards_down}"));
        let answer = user(&api, marks_down).await;
        assert!(answer.is_stale());
        assert_eq!(answer.even_if_stale()["user"]["name"], format!("user {marks_down}"));
    }
}
