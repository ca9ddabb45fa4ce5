-- Counts, so that no read counts rows. Each projection keeps the counts of its own rows, in the same transaction. A row
-- that is missing means zeros.
CREATE TABLE IF NOT EXISTS video_like_counts (
    video_id   BIGINT NOT NULL PRIMARY KEY,
    like_count BIGINT NOT NULL DEFAULT 0
) ENGINE = InnoDB DEFAULT CHARSET = utf8mb4 COLLATE = utf8mb4_bin;
-- total_favorited: the likes of the user's videos. favorite_count: the videos that the user likes.
CREATE TABLE IF NOT EXISTS user_like_counts (
    user_id         BIGINT NOT NULL PRIMARY KEY,
    total_favorited BIGINT NOT NULL DEFAULT 0,
    favorite_count  BIGINT NOT NULL DEFAULT 0
) ENGINE = InnoDB DEFAULT CHARSET = utf8mb4 COLLATE = utf8mb4_bin;
CREATE TABLE IF NOT EXISTS user_follow_counts (
    user_id        BIGINT NOT NULL PRIMARY KEY,
    follow_count   BIGINT NOT NULL DEFAULT 0,
    follower_count BIGINT NOT NULL DEFAULT 0
) ENGINE = InnoDB DEFAULT CHARSET = utf8mb4 COLLATE = utf8mb4_bin;
-- Without deleted comments.
CREATE TABLE IF NOT EXISTS video_comment_counts (
    video_id      BIGINT NOT NULL PRIMARY KEY,
    comment_count BIGINT NOT NULL DEFAULT 0
) ENGINE = InnoDB DEFAULT CHARSET = utf8mb4 COLLATE = utf8mb4_bin;
-- work_count: published videos. upload_count: videos in any state.
CREATE TABLE IF NOT EXISTS user_work_counts (
    user_id      BIGINT NOT NULL PRIMARY KEY,
    work_count   BIGINT NOT NULL DEFAULT 0,
    upload_count BIGINT NOT NULL DEFAULT 0
) ENGINE = InnoDB DEFAULT CHARSET = utf8mb4 COLLATE = utf8mb4_bin;

-- Counts the rows of before, from nothing, so that this can be run again. A projector of an older version must not run
-- meanwhile or later: it changes rows without their counts.
DELETE FROM video_like_counts;
DELETE FROM user_like_counts;
DELETE FROM user_follow_counts;
DELETE FROM video_comment_counts;
DELETE FROM user_work_counts;
INSERT INTO video_like_counts (video_id, like_count)
    SELECT video_id, COUNT(*) FROM likes GROUP BY video_id
    ON DUPLICATE KEY UPDATE like_count = VALUES(like_count);
INSERT INTO user_like_counts (user_id, total_favorited, favorite_count)
    SELECT author_id, COUNT(*), 0 FROM likes GROUP BY author_id
    ON DUPLICATE KEY UPDATE total_favorited = VALUES(total_favorited);
INSERT INTO user_like_counts (user_id, total_favorited, favorite_count)
    SELECT user_id, 0, COUNT(*) FROM likes GROUP BY user_id
    ON DUPLICATE KEY UPDATE favorite_count = VALUES(favorite_count);
INSERT INTO user_follow_counts (user_id, follow_count, follower_count)
    SELECT follower_id, COUNT(*), 0 FROM follows GROUP BY follower_id
    ON DUPLICATE KEY UPDATE follow_count = VALUES(follow_count);
INSERT INTO user_follow_counts (user_id, follow_count, follower_count)
    SELECT followee_id, 0, COUNT(*) FROM follows GROUP BY followee_id
    ON DUPLICATE KEY UPDATE follower_count = VALUES(follower_count);
INSERT INTO video_comment_counts (video_id, comment_count)
    SELECT video_id, COUNT(*) FROM comments WHERE NOT deleted GROUP BY video_id
    ON DUPLICATE KEY UPDATE comment_count = VALUES(comment_count);
INSERT INTO user_work_counts (user_id, work_count, upload_count)
    SELECT author_id, SUM(state = 1), COUNT(*) FROM videos GROUP BY author_id
    ON DUPLICATE KEY UPDATE work_count = VALUES(work_count), upload_count = VALUES(upload_count);

-- One place for all counts of an entity, to join with. Not of the read path: a video or user whose row is late has
-- counts already.
CREATE OR REPLACE VIEW video_stats AS
    SELECT videos.video_id, COALESCE(like_count, 0) AS like_count, COALESCE(comment_count, 0) AS comment_count
    FROM videos
    LEFT JOIN video_like_counts ON video_like_counts.video_id = videos.video_id
    LEFT JOIN video_comment_counts ON video_comment_counts.video_id = videos.video_id;
CREATE OR REPLACE VIEW user_stats AS
    SELECT users.user_id, COALESCE(follow_count, 0) AS follow_count, COALESCE(follower_count, 0) AS follower_count,
        COALESCE(total_favorited, 0) AS total_favorited, COALESCE(favorite_count, 0) AS favorite_count,
        COALESCE(work_count, 0) AS work_count, COALESCE(upload_count, 0) AS upload_count
    FROM users
    LEFT JOIN user_follow_counts ON user_follow_counts.user_id = users.user_id
    LEFT JOIN user_like_counts ON user_like_counts.user_id = users.user_id
    LEFT JOIN user_work_counts ON user_work_counts.user_id = users.user_id;

-- Lists in the order of an index: follows of a user by time, and published videos of an author. Neither server can
-- add an index only if it is missing, except by such a condition.
SET @statement = IF(
    EXISTS (SELECT 1 FROM information_schema.statistics WHERE table_schema = DATABASE() AND index_name = 'by_follower'),
    'DO 0',
    'ALTER TABLE follows ADD KEY by_follower (follower_id, followed_ms)'
);
PREPARE add_index FROM @statement;
EXECUTE add_index;
SET @statement = IF(
    EXISTS (SELECT 1 FROM information_schema.statistics WHERE table_schema = DATABASE() AND index_name = 'works'),
    'DO 0',
    'ALTER TABLE videos ADD KEY works (author_id, state)'
);
PREPARE add_index FROM @statement;
EXECUTE add_index;
DEALLOCATE PREPARE add_index;
