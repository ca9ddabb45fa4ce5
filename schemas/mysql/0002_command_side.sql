-- The command side's own state: not in the log, not rebuilt from it. Back it up.

-- username_key is the name without case: names are unique regardless of case. Bytes, as text would be padded with
-- spaces to compare it.
CREATE TABLE IF NOT EXISTS accounts (
    user_id       BIGINT NOT NULL PRIMARY KEY,
    username      VARCHAR(64) NOT NULL,
    username_key  VARBINARY(512) NOT NULL,
    password_hash VARCHAR(255) NOT NULL,
    created_ms    BIGINT NOT NULL,
    UNIQUE KEY username (username_key)
) ENGINE = InnoDB DEFAULT CHARSET = utf8mb4 COLLATE = utf8mb4_bin;

-- Events that must be in the log because of a row written in the same transaction; deleted once acknowledged.
CREATE TABLE IF NOT EXISTS outbox (
    id         BIGINT NOT NULL AUTO_INCREMENT PRIMARY KEY,
    event      MEDIUMTEXT NOT NULL,
    created_ms BIGINT NOT NULL
) ENGINE = InnoDB DEFAULT CHARSET = utf8mb4 COLLATE = utf8mb4_bin;

-- Which instance makes ids with which node number, and up to which millisecond it may.
CREATE TABLE IF NOT EXISTS node_leases (
    node       INT NOT NULL PRIMARY KEY,
    holder     VARCHAR(64) NOT NULL,
    expires_ms BIGINT NOT NULL
) ENGINE = InnoDB DEFAULT CHARSET = utf8mb4 COLLATE = utf8mb4_bin;

-- The last publish time given out: every video has one of its own.
CREATE TABLE IF NOT EXISTS publish_clock (
    id      TINYINT NOT NULL PRIMARY KEY,
    last_ms BIGINT NOT NULL
) ENGINE = InnoDB DEFAULT CHARSET = utf8mb4 COLLATE = utf8mb4_bin;
INSERT IGNORE INTO publish_clock (id, last_ms) VALUES (1, 0);

-- What the media worker decided about an upload: decided once, appended until acknowledged.
CREATE TABLE IF NOT EXISTS media_outcomes (
    video_id BIGINT NOT NULL PRIMARY KEY,
    event    MEDIUMTEXT NOT NULL,
    appended BOOLEAN NOT NULL
) ENGINE = InnoDB DEFAULT CHARSET = utf8mb4 COLLATE = utf8mb4_bin;
