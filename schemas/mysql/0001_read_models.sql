-- Read models: folded from the log, rebuilt from it at any time.
-- Text is compared byte by byte (utf8mb4_bin) and kept as it was typed. Times are milliseconds since 1970, UTC.

-- How far each projection is: written in the transaction that writes the rows.
CREATE TABLE IF NOT EXISTS checkpoints (
    projection  VARCHAR(64) NOT NULL,
    stream      VARCHAR(32) NOT NULL,
    partition_no INT NOT NULL,
    next_offset BIGINT NOT NULL,
    PRIMARY KEY (projection, stream, partition_no)
) ENGINE = InnoDB DEFAULT CHARSET = utf8mb4 COLLATE = utf8mb4_bin;

CREATE TABLE IF NOT EXISTS users (
    user_id       BIGINT NOT NULL PRIMARY KEY,
    name          VARCHAR(64) NOT NULL,
    registered_ms BIGINT NOT NULL
) ENGINE = InnoDB DEFAULT CHARSET = utf8mb4 COLLATE = utf8mb4_bin;

-- state: 0 processing, 1 published, 2 rejected.
CREATE TABLE IF NOT EXISTS videos (
    video_id     BIGINT NOT NULL PRIMARY KEY,
    author_id    BIGINT NOT NULL,
    title        VARCHAR(255) NOT NULL,
    state        TINYINT NOT NULL,
    uploaded_ms  BIGINT NOT NULL,
    published_ms BIGINT NOT NULL,
    play_key     VARCHAR(255) NOT NULL,
    cover_key    VARCHAR(255) NOT NULL,
    reason       VARCHAR(255) NOT NULL,
    KEY author (author_id, video_id),
    KEY feed (state, published_ms)
) ENGINE = InnoDB DEFAULT CHARSET = utf8mb4 COLLATE = utf8mb4_bin;

CREATE TABLE IF NOT EXISTS comments (
    video_id   BIGINT NOT NULL,
    comment_id BIGINT NOT NULL,
    user_id    BIGINT NOT NULL,
    text       VARCHAR(255) NOT NULL,
    posted_ms  BIGINT NOT NULL,
    deleted    BOOLEAN NOT NULL,
    PRIMARY KEY (video_id, comment_id)
) ENGINE = InnoDB DEFAULT CHARSET = utf8mb4 COLLATE = utf8mb4_bin;

-- One row a conversation: its newest message, from which the next create_ms follows.
CREATE TABLE IF NOT EXISTS conversations (
    low_id          BIGINT NOT NULL,
    high_id         BIGINT NOT NULL,
    last_message_id BIGINT NOT NULL,
    last_from_id    BIGINT NOT NULL,
    last_content    VARCHAR(255) NOT NULL,
    last_ms         BIGINT NOT NULL,
    PRIMARY KEY (low_id, high_id)
) ENGINE = InnoDB DEFAULT CHARSET = utf8mb4 COLLATE = utf8mb4_bin;

CREATE TABLE IF NOT EXISTS messages (
    low_id       BIGINT NOT NULL,
    high_id      BIGINT NOT NULL,
    create_ms    BIGINT NOT NULL,
    message_id   BIGINT NOT NULL,
    from_user_id BIGINT NOT NULL,
    to_user_id   BIGINT NOT NULL,
    content      VARCHAR(255) NOT NULL,
    PRIMARY KEY (low_id, high_id, create_ms),
    UNIQUE KEY message (message_id)
) ENGINE = InnoDB DEFAULT CHARSET = utf8mb4 COLLATE = utf8mb4_bin;

CREATE TABLE IF NOT EXISTS likes (
    video_id  BIGINT NOT NULL,
    user_id   BIGINT NOT NULL,
    author_id BIGINT NOT NULL,
    liked_ms  BIGINT NOT NULL,
    PRIMARY KEY (video_id, user_id),
    KEY by_user (user_id, liked_ms),
    KEY by_author (author_id)
) ENGINE = InnoDB DEFAULT CHARSET = utf8mb4 COLLATE = utf8mb4_bin;

CREATE TABLE IF NOT EXISTS follows (
    follower_id BIGINT NOT NULL,
    followee_id BIGINT NOT NULL,
    followed_ms BIGINT NOT NULL,
    PRIMARY KEY (follower_id, followee_id),
    KEY by_followee (followee_id, followed_ms)
) ENGINE = InnoDB DEFAULT CHARSET = utf8mb4 COLLATE = utf8mb4_bin;
