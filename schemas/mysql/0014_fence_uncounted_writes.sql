-- Fences the projectors of earlier versions, which change rows without their counts (0011_counts.sql): each of their transactions locks its
-- checkpoint first. Renaming waits for those that have locked one, and lets no other begin. A table is missing here if this
-- ran before.
SET @statement = IF(
    EXISTS (SELECT 1 FROM information_schema.tables
        WHERE table_schema = DATABASE() AND table_name = 'checkpoints_likes_table'),
    'RENAME TABLE checkpoints_likes_table TO checkpoints_likes_table_2',
    'DO 0'
);
PREPARE fence FROM @statement;
EXECUTE fence;
SET @statement = IF(
    EXISTS (SELECT 1 FROM information_schema.tables
        WHERE table_schema = DATABASE() AND table_name = 'checkpoints_follows_table'),
    'RENAME TABLE checkpoints_follows_table TO checkpoints_follows_table_2',
    'DO 0'
);
PREPARE fence FROM @statement;
EXECUTE fence;
SET @statement = IF(
    EXISTS (SELECT 1 FROM information_schema.tables
        WHERE table_schema = DATABASE() AND table_name = 'checkpoints_comments_table'),
    'RENAME TABLE checkpoints_comments_table TO checkpoints_comments_table_2',
    'DO 0'
);
PREPARE fence FROM @statement;
EXECUTE fence;
SET @statement = IF(
    EXISTS (SELECT 1 FROM information_schema.tables
        WHERE table_schema = DATABASE() AND table_name = 'checkpoints_videos_table'),
    'RENAME TABLE checkpoints_videos_table TO checkpoints_videos_table_2',
    'DO 0'
);
PREPARE fence FROM @statement;
EXECUTE fence;
DEALLOCATE PREPARE fence;

-- Counts the rows again, from nothing: an earlier projector may have changed some since the first count. In one transaction, so
-- that readers see the earlier counts until all new ones are there.
START TRANSACTION;
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
COMMIT;
