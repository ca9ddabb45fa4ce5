-- Uploads without an outcome: the media worker's queue, beside media_outcomes. Not in the log: back it up.
--
-- due_ms: NULL while the job is queued; otherwise the end of its wait, or of the lease of the worker that processes it.
-- turn: authors take turns, see media_queue. reason, error: of the last failed try; '' before. interruptions counts the
-- tries that have begun and not ended; crashes, timeouts and missing count how the others failed. spent_ms: time that
-- failed tries have used of the upload's budget.
CREATE TABLE IF NOT EXISTS media_jobs (
    video_id      BIGINT NOT NULL PRIMARY KEY,
    author_id     BIGINT NOT NULL,
    event         MEDIUMTEXT NOT NULL,
    enqueued_ms   BIGINT NOT NULL,
    turn          BIGINT NOT NULL,
    due_ms        BIGINT NULL,
    worker        VARCHAR(64) NULL,
    started_ms    BIGINT NULL,
    tries         INT UNSIGNED NOT NULL DEFAULT 0,
    interruptions INT UNSIGNED NOT NULL DEFAULT 0,
    crashes       INT UNSIGNED NOT NULL DEFAULT 0,
    timeouts      INT UNSIGNED NOT NULL DEFAULT 0,
    missing       INT UNSIGNED NOT NULL DEFAULT 0,
    spent_ms      BIGINT NOT NULL DEFAULT 0,
    reason        VARCHAR(32) NOT NULL DEFAULT '',
    error         VARCHAR(255) NOT NULL DEFAULT '',
    KEY queue (due_ms, turn),
    KEY author (author_id, turn),
    KEY reason (reason, enqueued_ms)
) ENGINE = InnoDB DEFAULT CHARSET = utf8mb4 COLLATE = utf8mb4_bin;

-- The turn of the job that started last. A new job takes this turn, or the one after the last of its author.
CREATE TABLE IF NOT EXISTS media_queue (
    id   TINYINT NOT NULL PRIMARY KEY,
    turn BIGINT NOT NULL
) ENGINE = InnoDB DEFAULT CHARSET = utf8mb4 COLLATE = utf8mb4_bin;
INSERT IGNORE INTO media_queue (id, turn) VALUES (1, 0);
