-- Outbox entries that could not be appended because the entry is at fault, not the log. The relay tries such an entry
-- again at retry_ms. Delete the row to have it tried at once; delete it and the outbox entry to give the event up.
CREATE TABLE IF NOT EXISTS outbox_failures (
    id       BIGINT NOT NULL PRIMARY KEY,
    failure  VARCHAR(255) NOT NULL,
    attempts INT NOT NULL,
    retry_ms BIGINT NOT NULL
) ENGINE = InnoDB DEFAULT CHARSET = utf8mb4 COLLATE = utf8mb4_bin;
