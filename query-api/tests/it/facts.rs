use vidlog_read_models::{CommentFact, Source, VideoFact};
use vidlog_schemas::rows::VideoState;

use crate::support::{NOW, World};

#[tokio::test]
async fn both_stores_return_the_same_facts() {
    let world = World::new().await;
    world.user(1).await;
    world.published(100, 1, NOW).await;
    world.unpublished(101, 1, VideoState::Processing).await;
    let models = world.state().models;
    for source in [Source::Views, Source::Tables] {
        assert!(models.user_exists(source, 1).await.unwrap());
        assert!(!models.user_exists(source, 2).await.unwrap());
        let fact = |state| Some(VideoFact { author_id: 1, state });
        assert_eq!(models.video_fact(source, 100).await.unwrap(), fact(VideoState::Published));
        assert_eq!(models.video_fact(source, 101).await.unwrap(), fact(VideoState::Processing));
        assert_eq!(models.video_fact(source, 102).await.unwrap(), None);
    }
}

#[tokio::test]
async fn deleted_comment_still_has_a_fact() {
    let world = World::new().await;
    world.comment(7, 100, 1).await;
    world.comment(8, 100, 2).await;
    world.delete_comment(8, 100).await;
    let models = world.state().models;
    let existing = CommentFact { user_id: 1, deleted: false };
    let deleted = CommentFact { user_id: 2, deleted: true };
    assert_eq!(models.comment_fact(100, 7).await.unwrap(), Some(existing));
    assert_eq!(models.comment_fact(100, 8).await.unwrap(), Some(deleted));
    assert_eq!(models.comment_fact(101, 7).await.unwrap(), None, "of another video");
}

#[tokio::test]
async fn results_follow_the_order_of_repeated_ids() {
    let world = World::new().await;
    world.users([1, 2]).await;
    world.published(100, 1, NOW).await;
    let models = world.state().models;
    for source in [Source::Views, Source::Tables] {
        let users = models.users(source, None, &[2, 9, 1, 2]).await.unwrap();
        let ids: Vec<_> = users.iter().map(|user| user.as_ref().map(|user| user.id)).collect();
        assert_eq!(ids, [Some(2), None, Some(1), Some(2)]);
        let videos = models.videos(source, Some(2), &[999, 100, 100]).await.unwrap();
        let ids: Vec<_> = videos.iter().map(|video| video.as_ref().map(|video| video.id)).collect();
        assert_eq!(ids, [None, Some(100), Some(100)]);
        assert!(models.users(source, Some(1), &[]).await.unwrap().is_empty());
        assert!(models.videos(source, Some(1), &[]).await.unwrap().is_empty());
    }
}
