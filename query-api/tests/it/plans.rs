//! The plan of every statement of the reads, on tables of 100,000 rows. See `vidlog_test_support::plans`.

use vidlog_read_models::Source;
use vidlog_redis_shards::Redis;
use vidlog_service_kit::mysql;
use vidlog_test_support::plans::{AUTHOR, CONVERSATION, FAN, FIRST_VIDEO, NOW, ROWS, Recorder, fill};

use crate::support::{UNREACHABLE_REDIS, World, api_over};

const EXEMPT: [(&str, &str); 1] = [(
    "SELECT video_id, COALESCE(like_count, 0) AS likes FROM videos",
    "the top list sorts the videos of a week",
)];

/// Pages of 1, 2 and 500 items, from the start and from the middle.
#[tokio::test]
async fn reads_from_the_tables_use_indexes() {
    let world = World::new().await;
    fill(&world.mysql).await;
    let recorder = Recorder::start(world.stores.mysql_url.reveal()).await;
    let mysql = mysql::open(world.stores.mysql_url.reveal(), 8).unwrap();
    let state = world.state_over(Redis::open(UNREACHABLE_REDIS).unwrap(), mysql);
    let models = state.models.clone();
    models.freshness.observe_projections();
    let api = api_over(state);
    let middle = NOW + ROWS / 2;
    let video = FIRST_VIDEO + ROWS / 4;
    for limit in [1, 2, 500] {
        for user in [AUTHOR, FAN] {
            let lists = [
                ("publish/list", video, video),
                ("favorite/list", middle, video),
                ("relation/follow/list", middle, ROWS / 2),
                ("relation/follower/list", middle, ROWS / 2),
                ("relation/friend/list", NOW + 50, 50),
            ];
            // The fan's friends are found among all that the fan follows.
            for (list, score, id) in
                lists.iter().filter(|(list, ..)| user == AUTHOR || !list.contains("friend"))
            {
                let path = format!("/douyin/{list}/?user_id={user}&limit={limit}");
                api.get_as(FAN, &path).await.even_if_stale();
                api.get_as(AUTHOR, &format!("{path}&cursor={score:016x}{id:016x}")).await.even_if_stale();
            }
        }
        let comments = format!("/douyin/comment/list/?video_id={FIRST_VIDEO}&limit={limit}");
        api.get(&comments).await.even_if_stale();
        api.get(&format!("{comments}&cursor={0:016x}{0:016x}", ROWS / 2)).await.even_if_stale();
        let chat = format!("/douyin/message/chat/?to_user_id={}&limit={limit}", CONVERSATION.0);
        api.get_as(CONVERSATION.1, &chat).await.even_if_stale();
        api.get_as(CONVERSATION.1, &format!("{chat}&pre_msg_time={middle}")).await.even_if_stale();
        api.get(&format!("/douyin/feed/top/?limit={limit}")).await.even_if_stale();
    }
    api.get_as(FAN, "/douyin/feed/").await.even_if_stale();
    api.get(&format!("/douyin/feed/?latest_time={middle}")).await.even_if_stale();
    api.get(&format!("/douyin/user/?user_id={AUTHOR}")).await.even_if_stale();
    models.comment_fact(FIRST_VIDEO, 7).await.unwrap().unwrap();
    models.video_fact(Source::Tables, FIRST_VIDEO).await.unwrap().unwrap();

    let sources =
        ["src", "../read-models/src"].map(|folder| format!("{}/{folder}", env!("CARGO_MANIFEST_DIR")));
    recorder.check(&world.mysql, &sources.each_ref().map(String::as_str), &EXEMPT).await;
}
