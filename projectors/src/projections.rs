//! All projections: the only list of them in this crate.

mod comment_counts;
mod comments_table;
mod counts;
mod feed;
mod follows;
mod follows_table;
mod likes;
mod likes_table;
mod membership;
mod messages_table;
mod top_videos;
mod user_cards;
mod users_table;
mod video_cards;
mod videos_table;
mod works;

use vidlog_events::Stream;
use vidlog_projection_engine::view::{Fold, Projection};
use vidlog_schemas::projections as catalogue;

/// All projections.
pub const ALL: [Projection; 14] = [
    Projection { catalogued: catalogue::FEED, fold: Fold::Redis(feed::project) },
    Projection { catalogued: catalogue::WORKS, fold: Fold::Redis(works::project) },
    Projection { catalogued: catalogue::VIDEO_CARDS, fold: Fold::Redis(video_cards::project) },
    Projection { catalogued: catalogue::USER_CARDS, fold: Fold::Redis(user_cards::project) },
    Projection { catalogued: catalogue::LIKES, fold: Fold::Redis(likes::project) },
    Projection { catalogued: catalogue::FOLLOWS, fold: Fold::Redis(follows::project) },
    Projection { catalogued: catalogue::COMMENT_COUNTS, fold: Fold::Redis(comment_counts::project) },
    Projection { catalogued: catalogue::TOP_VIDEOS, fold: Fold::Redis(top_videos::project) },
    Projection { catalogued: catalogue::USERS_TABLE, fold: Fold::MySql(users_table::apply) },
    Projection { catalogued: catalogue::VIDEOS_TABLE, fold: Fold::MySql(videos_table::apply) },
    Projection { catalogued: catalogue::COMMENTS_TABLE, fold: Fold::MySql(comments_table::apply) },
    Projection { catalogued: catalogue::MESSAGES_TABLE, fold: Fold::MySql(messages_table::apply) },
    Projection { catalogued: catalogue::LIKES_TABLE, fold: Fold::MySql(likes_table::apply) },
    Projection { catalogued: catalogue::FOLLOWS_TABLE, fold: Fold::MySql(follows_table::apply) },
];

/// Returns the streams that some projections fold.
pub fn streams(projections: &[Projection]) -> Vec<Stream> {
    let is_folded =
        |stream: &Stream| projections.iter().any(|projection| projection.streams().any(|own| own == *stream));
    Stream::ALL.into_iter().filter(is_folded).collect()
}

/// Finds a projection by name.
pub fn find(name: &str) -> Option<Projection> {
    ALL.into_iter().find(|projection| projection.name() == name)
}

/// Parses the name of a projection; the error is for a user of the command line.
pub fn parse(name: &str) -> Result<Projection, String> {
    find(name).ok_or_else(|| format!("unknown projection {name:?}; `projectors list` lists them"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_catalogued_projection_is_here_once() {
        let names: Vec<_> = ALL.iter().map(|projection| projection.catalogued).collect();
        assert_eq!(names, catalogue::ALL);
    }

    #[test]
    fn every_projection_folds_streams_that_exist() {
        for projection in ALL {
            assert_eq!(projection.streams().count(), projection.catalogued.streams.len());
        }
    }
}
