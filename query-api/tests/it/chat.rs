use serde_json::json;

use crate::support::{Api, NOW, World, all_pages};

const CHAT: &str = "/douyin/message/chat/?to_user_id=2";

/// A conversation of 1 and 2, who write alternately, 1 first, one message per millisecond.
async fn conversation(messages: i64) -> World {
    let world = World::new().await;
    world.users([1, 2, 3]).await;
    for number in 0..messages {
        let (from, to) = if number % 2 == 0 { (1, 2) } else { (2, 1) };
        world.message(from, to, NOW + number).await;
    }
    world.message(3, 1, NOW).await;
    world
}

async fn since(api: &Api, time: impl ToString) -> Vec<i64> {
    api.get_as(1, &format!("{CHAT}&pre_msg_time={}", time.to_string())).await.ids("message_list")
}

#[tokio::test]
async fn history_has_both_directions_oldest_first() {
    let world = conversation(4).await;
    let api = world.api();
    for time in ["", "0", "abc"] {
        assert_eq!(since(&api, time).await, [NOW, NOW + 1, NOW + 2, NOW + 3], "{time}");
    }
    let body = api.get_as(1, CHAT).await.ok();
    assert_eq!(
        body["message_list"][1],
        json!({"id": NOW + 1, "to_user_id": 1, "from_user_id": 2, "content": format!("message {}", NOW + 1), "create_time": NOW + 1})
    );
}

#[tokio::test]
async fn poll_returns_only_later_messages_of_the_peer() {
    let world = conversation(6).await;
    let api = world.api();
    assert_eq!(since(&api, NOW).await, [NOW + 1, NOW + 3, NOW + 5]);
    assert_eq!(since(&api, NOW + 3).await, [NOW + 5]);
    assert_eq!(since(&api, NOW + 5).await, [0_i64; 0]);
    assert_eq!(since(&api, NOW + 1_000_000_000).await, [0_i64; 0], "a phone whose clock is ahead");
    assert_eq!(since(&api, NOW / 1000 - 1).await, [NOW + 1, NOW + 3, NOW + 5], "seconds");
}

#[tokio::test]
async fn polling_returns_each_message_once() {
    let world = conversation(0).await;
    let api = world.api();
    let mut seen = Vec::new();
    let mut last = 1;
    for round in 0..20 {
        for number in 0..=round % 3 {
            world.message(2, 1, NOW + round * 10 + number).await;
        }
        seen.extend(since(&api, last).await);
        last = *seen.last().unwrap();
    }
    let expected: Vec<_> =
        (0..20).flat_map(|round| (0..=round % 3).map(move |number| NOW + round * 10 + number)).collect();
    assert_eq!(seen, expected);
}

#[tokio::test]
async fn long_history_is_cut_but_new_messages_are_not() {
    let world = conversation(2100).await;
    let api = world.api();
    let history = api.get_as(1, CHAT).await.ids("message_list");
    assert_eq!((history.len(), history[0], history[999]), (1000, NOW + 1100, NOW + 2099));
    let first = since(&api, NOW).await;
    assert_eq!((first.len(), first[0]), (1000, NOW + 1));
    let rest = since(&api, first[999]).await;
    assert_eq!((rest.len(), rest[0]), (50, NOW + 2001));
}

#[tokio::test]
async fn pages_go_back_in_history_and_forward_in_polls() {
    let world = conversation(25).await;
    let api = world.api();
    let mut pages = Vec::new();
    let page = async |cursor: Option<String>| {
        let answer = api.get_as(1, &format!("{CHAT}&limit=10&cursor={}", cursor.unwrap_or_default())).await;
        pages.push(answer.body["message_list"].as_array().unwrap().len());
        answer
    };
    let seen = all_pages("message_list", page, async || {}).await;
    assert_eq!(pages, [10, 10, 5]);
    let expected: Vec<_> = (15..25).chain(5..15).chain(0..5).map(|number| NOW + number).collect();
    assert_eq!(seen, expected);

    let page = async |cursor: Option<String>| {
        let cursor = cursor.unwrap_or_default();
        api.get_as(1, &format!("{CHAT}&pre_msg_time={NOW}&limit=5&cursor={cursor}")).await
    };
    let news: Vec<_> = (1..25).step_by(2).map(|number| NOW + number).collect();
    assert_eq!(all_pages("message_list", page, async || {}).await, news);
}

#[tokio::test]
async fn chat_needs_a_caller_and_a_peer() {
    let world = conversation(0).await;
    assert_eq!(world.api().get(CHAT).await.code(), 10002);
    assert_eq!(world.api().get_as(1, "/douyin/message/chat/").await.code(), 10001);
    assert_eq!(world.api().get_as(1, CHAT).await.ok()["message_list"], json!([]));
}
