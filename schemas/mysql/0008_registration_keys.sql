-- The idempotency key of a registration, as a hash: a retry with the key and the password gets the account that the
-- first attempt created. Written with the account, so nothing is stored for a registration that fails.
CREATE TABLE IF NOT EXISTS registration_keys (
    user_id         BIGINT NOT NULL PRIMARY KEY,
    idempotency_key BINARY(16) NOT NULL,
    created_ms      BIGINT NOT NULL,
    UNIQUE KEY idempotency_key (idempotency_key)
) ENGINE = InnoDB DEFAULT CHARSET = utf8mb4 COLLATE = utf8mb4_bin;
