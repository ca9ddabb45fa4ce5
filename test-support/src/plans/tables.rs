//! Tables of at least 100,000 rows, with an author whom everyone follows and a fan who likes and follows everything.

use sqlx::{Executor, MySqlPool};

/// The number of rows of each table, at least.
pub const ROWS: i64 = 100_000;
/// An author with half of the videos, all likes and all followers, who follows 100 of them.
pub const AUTHOR: i64 = 1;
/// A user who likes every video, follows everyone, and wrote all comments.
pub const FAN: i64 = 2;
/// The author's first video, which everyone likes, and which has all comments. The others follow.
pub const FIRST_VIDEO: i64 = 1_000_001;
/// The two users of the conversation that has all messages.
pub const CONVERSATION: (i64, i64) = (AUTHOR, FAN);
/// The time of the first row, in milliseconds.
pub const NOW: i64 = 1_700_000_000_000;

/// `n` is 1 to 100,000.
const FILL: &str = "
    CREATE TEMPORARY TABLE digits (d INT PRIMARY KEY);
    INSERT INTO digits VALUES (0), (1), (2), (3), (4), (5), (6), (7), (8), (9);
    CREATE TABLE numbers (n BIGINT PRIMARY KEY);
    INSERT INTO numbers SELECT d + 1 FROM digits;
    INSERT INTO numbers SELECT n + 10 FROM numbers;
    INSERT INTO numbers SELECT n + 20 FROM numbers;
    INSERT INTO numbers SELECT n + 40 FROM numbers WHERE n <= 40;
    INSERT INTO numbers SELECT n + 80 FROM numbers WHERE n <= 20;
    DROP TEMPORARY TABLE digits;
    INSERT INTO numbers SELECT a.n + 100 * b.n FROM numbers AS a CROSS JOIN numbers AS b WHERE b.n < 100;
    INSERT INTO numbers SELECT a.n + 10000 * b.n FROM numbers AS a CROSS JOIN numbers AS b WHERE b.n < 10;

    INSERT INTO users SELECT n, CONCAT('user ', n), 1700000000000 FROM numbers;
    INSERT INTO accounts SELECT n, CONCAT('user ', n), CONCAT('user ', n), 'hash', 1700000000000, CONCAT('user ', n), 0
        FROM numbers;
    INSERT INTO videos SELECT 1000000 + n, IF(n <= 50000, 1, n), 'title', IF(n % 10 = 0, 0, 1), 1700000000000,
        IF(n % 10 = 0, 0, 1700000000000 + n), 'play', 'cover', '' FROM numbers;
    INSERT INTO likes SELECT 1000001, n, 1, 1700000000000 + n FROM numbers;
    INSERT INTO likes SELECT 1000000 + n, 2, IF(n <= 50000, 1, n), 1700000000000 + n FROM numbers WHERE n > 1;
    INSERT INTO follows SELECT n, 1, 1700000000000 + n FROM numbers WHERE n > 1;
    INSERT INTO follows SELECT 2, n, 1700000000000 + n FROM numbers WHERE n > 2;
    INSERT INTO follows SELECT 1, n, 1700000000000 + n FROM numbers WHERE n BETWEEN 2 AND 101;
    INSERT INTO comments SELECT 1000001, n, 2, 'text', 1700000000000 + n, n % 2 FROM numbers;
    INSERT INTO messages SELECT 1, 2, 1700000000000 + n, n, 1 + n % 2, 2 - n % 2, 'text' FROM numbers;
    INSERT INTO conversations SELECT 1, n, n, 1, 'text', 1700000000000 + n FROM numbers WHERE n > 1;
    INSERT INTO media_outcomes SELECT 1000000 + n, '{}', TRUE FROM numbers;
    INSERT INTO outbox SELECT n, '{}', 1700000000000 FROM numbers;
    INSERT INTO registration_keys SELECT n, UNHEX(MD5(n)), 1700000000000 FROM numbers;
    INSERT INTO publish_times SELECT 1700000000000 + 10 * n FROM numbers;
    INSERT INTO media_jobs (video_id, author_id, event, enqueued_ms, turn, due_ms, worker, reason)
        SELECT 2000000 + n, IF(n <= 50000, 1, n), '{}', 1700000000000, n, IF(n % 10 = 0, 1700000000000 + n, NULL),
            IF(n % 100 = 0, 'a worker', NULL), IF(n % 10 = 0, 'missing', '') FROM numbers;
    INSERT INTO video_like_counts SELECT video_id, COUNT(*) FROM likes GROUP BY video_id;
    INSERT INTO user_like_counts SELECT author_id, COUNT(*), 0 FROM likes GROUP BY author_id;
    INSERT INTO user_follow_counts SELECT followee_id, 0, COUNT(*) FROM follows GROUP BY followee_id;
    INSERT INTO video_comment_counts SELECT 1000000 + n, IF(n = 1, 50000, 0) FROM numbers;
    INSERT INTO user_work_counts SELECT author_id, COUNT(*), COUNT(*) FROM videos GROUP BY author_id;
    ANALYZE TABLE users, accounts, videos, likes, follows, comments, messages, conversations, media_outcomes, outbox,
        registration_keys, publish_times, media_jobs, video_like_counts, user_like_counts, user_follow_counts, video_comment_counts, user_work_counts;
    DROP TABLE numbers;
";

/// Fills the tables, by statements on whole sets.
pub async fn fill(pool: &MySqlPool) {
    pool.execute(sqlx::raw_sql(FILL)).await.unwrap();
}
