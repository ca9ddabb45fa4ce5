-- Every publish time that was given out: unique, no matter what clocks do (ADR 0006).
CREATE TABLE IF NOT EXISTS publish_times (
    published_ms BIGINT NOT NULL PRIMARY KEY
) ENGINE = InnoDB DEFAULT CHARSET = utf8mb4 COLLATE = utf8mb4_bin;

INSERT IGNORE INTO publish_times (published_ms)
SELECT published_ms FROM (
    SELECT CAST(JSON_UNQUOTE(JSON_EXTRACT(JSON_UNQUOTE(JSON_EXTRACT(event, '$.value')), '$.published_ms')) AS SIGNED)
        AS published_ms
    FROM media_outcomes
) decided
WHERE published_ms IS NOT NULL;
