-- appearance: the name in the form in which names that look the same are equal (command-api/src/username.rs). NULL until
-- command-api has normalized the name of an account of an earlier version. UTF-8 as bytes, at most 33 for each of 64
-- characters.
-- collision: 0 for the account that has the appearance. The user's id for other accounts with it, of earlier versions.
-- So the unique key lets one new account have an appearance, and keeps all accounts of before.
SET @statement = IF(
    EXISTS (
        SELECT 1 FROM information_schema.columns
        WHERE table_schema = DATABASE() AND table_name = 'accounts' AND column_name = 'appearance'
    ),
    'DO 0',
    'ALTER TABLE accounts
        ADD COLUMN appearance VARBINARY(2112) NULL,
        ADD COLUMN collision BIGINT NOT NULL DEFAULT 0,
        ADD UNIQUE KEY appearance (appearance, collision)'
);
PREPARE add_columns FROM @statement;
EXECUTE add_columns;
DEALLOCATE PREPARE add_columns;
