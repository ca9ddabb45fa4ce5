-- A view's checkpoints are a part of the view, in a table of its own: a generation that takes over brings its own.
-- record_key: '' for the partition itself, else a key whose records are folded apart from it.
CREATE TABLE IF NOT EXISTS checkpoints_users_table (
    stream       VARCHAR(32) NOT NULL,
    partition_no INT NOT NULL,
    record_key   VARCHAR(128) NOT NULL DEFAULT '',
    next_offset  BIGINT NOT NULL,
    PRIMARY KEY (stream, partition_no, record_key)
) ENGINE = InnoDB DEFAULT CHARSET = utf8mb4 COLLATE = utf8mb4_bin;
CREATE TABLE IF NOT EXISTS checkpoints_videos_table LIKE checkpoints_users_table;
CREATE TABLE IF NOT EXISTS checkpoints_comments_table LIKE checkpoints_users_table;
CREATE TABLE IF NOT EXISTS checkpoints_messages_table LIKE checkpoints_users_table;
CREATE TABLE IF NOT EXISTS checkpoints_likes_table LIKE checkpoints_users_table;
CREATE TABLE IF NOT EXISTS checkpoints_follows_table LIKE checkpoints_users_table;

-- Their one table of before; made once more so that this can be run again.
CREATE TABLE IF NOT EXISTS checkpoints (
    projection  VARCHAR(64) NOT NULL,
    stream      VARCHAR(32) NOT NULL,
    partition_no INT NOT NULL,
    next_offset BIGINT NOT NULL,
    PRIMARY KEY (projection, stream, partition_no)
) ENGINE = InnoDB DEFAULT CHARSET = utf8mb4 COLLATE = utf8mb4_bin;
INSERT IGNORE INTO checkpoints_users_table (stream, partition_no, next_offset)
    SELECT stream, partition_no, next_offset FROM checkpoints WHERE projection = 'users-table';
INSERT IGNORE INTO checkpoints_videos_table (stream, partition_no, next_offset)
    SELECT stream, partition_no, next_offset FROM checkpoints WHERE projection = 'videos-table';
INSERT IGNORE INTO checkpoints_comments_table (stream, partition_no, next_offset)
    SELECT stream, partition_no, next_offset FROM checkpoints WHERE projection = 'comments-table';
INSERT IGNORE INTO checkpoints_messages_table (stream, partition_no, next_offset)
    SELECT stream, partition_no, next_offset FROM checkpoints WHERE projection = 'messages-table';
INSERT IGNORE INTO checkpoints_likes_table (stream, partition_no, next_offset)
    SELECT stream, partition_no, next_offset FROM checkpoints WHERE projection = 'likes-table';
INSERT IGNORE INTO checkpoints_follows_table (stream, partition_no, next_offset)
    SELECT stream, partition_no, next_offset FROM checkpoints WHERE projection = 'follows-table';
DROP TABLE checkpoints;

-- What operators and rebuilds want of each projection; a row that is missing means the defaults.
-- held_until_ms: a rebuild asks for a moment of stillness until then. stopped: why the projection stopped itself.
CREATE TABLE IF NOT EXISTS projections (
    name          VARCHAR(64) NOT NULL PRIMARY KEY,
    generation    INT NOT NULL DEFAULT 1,
    paused        BOOLEAN NOT NULL DEFAULT FALSE,
    held_until_ms BIGINT NOT NULL DEFAULT 0,
    stopped       VARCHAR(1000) NULL
) ENGINE = InnoDB DEFAULT CHARSET = utf8mb4 COLLATE = utf8mb4_bin;
