-- Which keys of a partition are parked: their records, from the first that could not be folded to the last that came
-- since, wait in the dead letters. A part of the view, as its checkpoints are, and written with them.
CREATE TABLE IF NOT EXISTS parked_users_table (
    stream       VARCHAR(32) NOT NULL,
    partition_no INT NOT NULL,
    record_key   VARCHAR(128) NOT NULL,
    first_offset BIGINT NOT NULL,
    last_offset  BIGINT NOT NULL,
    waiting      BIGINT NOT NULL,
    class        VARCHAR(16) NOT NULL,
    message      VARCHAR(255) NOT NULL,
    PRIMARY KEY (stream, partition_no, record_key)
) ENGINE = InnoDB DEFAULT CHARSET = utf8mb4 COLLATE = utf8mb4_bin;
CREATE TABLE IF NOT EXISTS parked_videos_table LIKE parked_users_table;
CREATE TABLE IF NOT EXISTS parked_comments_table LIKE parked_users_table;
CREATE TABLE IF NOT EXISTS parked_messages_table LIKE parked_users_table;
CREATE TABLE IF NOT EXISTS parked_likes_table LIKE parked_users_table;
CREATE TABLE IF NOT EXISTS parked_follows_table LIKE parked_users_table;
