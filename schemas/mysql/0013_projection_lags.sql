-- Up to when each projection has folded the log: all records that were written before folded_until_ms, by this server's
-- clock. Projectors write it, also for projections that no process runs; readers derive from it whether a view is stale.
CREATE TABLE IF NOT EXISTS projection_lags (
    projection      VARCHAR(64) NOT NULL PRIMARY KEY,
    folded_until_ms BIGINT NOT NULL
) ENGINE = InnoDB DEFAULT CHARSET = utf8mb4 COLLATE = utf8mb4_bin;
