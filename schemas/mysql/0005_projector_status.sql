-- What the process that has a partition of a projection says of it, every two seconds; who has it last, says it last.
-- reported_ms by this server's clock. state: as `projectors status` shows it; why, last_error: in words for an operator.
CREATE TABLE IF NOT EXISTS projector_status (
    projection         VARCHAR(64) NOT NULL,
    stream             VARCHAR(32) NOT NULL,
    partition_no       INT NOT NULL,
    instance           VARCHAR(128) NOT NULL,
    generation         INT NOT NULL,
    state              VARCHAR(16) NOT NULL,
    why                VARCHAR(1000) NULL,
    records_per_second DOUBLE NOT NULL,
    last_error         VARCHAR(1000) NULL,
    last_error_ms      BIGINT NULL,
    reported_ms        BIGINT NOT NULL,
    PRIMARY KEY (projection, stream, partition_no)
) ENGINE = InnoDB DEFAULT CHARSET = utf8mb4 COLLATE = utf8mb4_bin;
