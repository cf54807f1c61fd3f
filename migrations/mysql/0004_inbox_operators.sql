-- The inbox's version 2: what operators did, and payloads that they changed. After 0003. For other names, as there.

-- One row for each payload that an operator put in the place of what came, which stays where it is.
CREATE TABLE IF NOT EXISTS `hapax_inbox_edits` (
    id         BIGINT   NOT NULL,
    time       BIGINT   NOT NULL,
    inbox      INT      NOT NULL,
    generation INT      NOT NULL,  -- the one that is worked with it, and those after
    who        VARCHAR(512) CHARACTER SET utf8mb4 COLLATE utf8mb4_bin NOT NULL,
    why        TEXT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin NOT NULL,
    payload    LONGBLOB NULL,
    PRIMARY KEY (id, generation)
) ENGINE = InnoDB ROW_FORMAT = DYNAMIC COMMENT = 'hapax inbox edits';

-- One row for each thing that an operator did.
CREATE TABLE IF NOT EXISTS `hapax_inbox_acts` (
    act     BIGINT     NOT NULL,  -- ascending in time
    id      BIGINT     NULL,      -- the message, if it was done to one
    time    BIGINT     NOT NULL,
    inbox   INT        NOT NULL,
    what    SMALLINT   NOT NULL,
    who     VARCHAR(512) CHARACTER SET utf8mb4 COLLATE utf8mb4_bin NOT NULL,
    why     TEXT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin NOT NULL,
    request BINARY(16) NULL,      -- digest of the caller's own id of it: done once
    detail  TEXT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin NULL,  -- what came of it
    PRIMARY KEY (inbox, act),
    UNIQUE (inbox, request),
    KEY id (id)
) ENGINE = InnoDB ROW_FORMAT = DYNAMIC COMMENT = 'hapax inbox acts';

UPDATE `hapax_schema` SET version = 2, time = CAST(TIMESTAMPDIFF(MICROSECOND, TIMESTAMP'1970-01-01 00:00:00', UTC_TIMESTAMP(3)) DIV 1000 AS SIGNED)
WHERE part = 'hapax_inbox' AND version = 1;
