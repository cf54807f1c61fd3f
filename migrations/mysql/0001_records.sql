-- One row for each message that hapax knows of. For another table name, replace `hapax_records`.
-- Binary columns only: a text column would take keys that differ for the same.
CREATE TABLE IF NOT EXISTS `hapax_records` (
    message_key BINARY(16)       NOT NULL PRIMARY KEY,  -- digest of scope and identity
    fingerprint BINARY(16)       NOT NULL,              -- digest of what the message says
    owner       BIGINT           NOT NULL,              -- who claimed last
    fence       BIGINT           NOT NULL,              -- number of the last claim
    time        BIGINT           NOT NULL,              -- ms since 1970: end of lease, due time, or when it became final
    attempts    INT UNSIGNED     NOT NULL,              -- attempts begun
    state       TINYINT UNSIGNED NOT NULL,              -- 0 processing, 1 failed, 2 succeeded, 3 succeeded late, 4 dead
    origin      VARBINARY(261)   NOT NULL,              -- partition (4 bytes), offset (8 bytes), topic
    result      LONGBLOB             NULL               -- what the handler returned, if that is kept
) ENGINE = InnoDB ROW_FORMAT = DYNAMIC COMMENT = 'hapax schema 1';
