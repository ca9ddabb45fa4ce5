-- Which log the views were folded from: the id of each partition's first record.
CREATE TABLE IF NOT EXISTS logs (
    stream       VARCHAR(32) NOT NULL,
    partition_no INT NOT NULL,
    first_record VARCHAR(64) NOT NULL,
    PRIMARY KEY (stream, partition_no)
) ENGINE = InnoDB DEFAULT CHARSET = utf8mb4 COLLATE = utf8mb4_bin;
