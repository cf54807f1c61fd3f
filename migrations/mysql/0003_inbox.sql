-- The inbox: messages that were taken from Kafka and are worked from here. Version 1 of its tables; 0004 makes it version 2.
-- For other names, replace `hapax_inbox` wherever it stands in quotes. Times are ms since 1970, by the server's clock, unless said otherwise.

-- Which version of its tables each part of hapax has.
CREATE TABLE IF NOT EXISTS `hapax_schema` (
    part    VARCHAR(64) CHARACTER SET ascii COLLATE ascii_bin NOT NULL PRIMARY KEY,  -- what its tables' names begin with
    version BIGINT NOT NULL,
    time    BIGINT NOT NULL  -- when it became that
) ENGINE = InnoDB ROW_FORMAT = DYNAMIC COMMENT = 'hapax versions';

-- One row for each scope: consumer group and handler.
CREATE TABLE IF NOT EXISTS `hapax_inbox_handlers` (
    inbox          INT        NOT NULL PRIMARY KEY,  -- its number; ids begin at this number times 2^40
    next_id        BIGINT     NOT NULL,              -- the first id that nobody has drawn
    time           BIGINT     NOT NULL,              -- when it was made
    paused         SMALLINT   NOT NULL,              -- 1: nothing is taken
    scope_key      BINARY(16) NOT NULL UNIQUE,       -- 16 bytes: digest of the scope
    consumer_group VARCHAR(512) CHARACTER SET utf8mb4 COLLATE utf8mb4_bin NOT NULL,
    handler        VARCHAR(512) CHARACTER SET utf8mb4 COLLATE utf8mb4_bin NOT NULL
) ENGINE = InnoDB ROW_FORMAT = DYNAMIC COMMENT = 'hapax inbox handlers';

-- One row for each message, as it came. Rows are added and taken away, and changed only where an operator erases.
-- A message without a row in `hapax_inbox_open` has succeeded.
CREATE TABLE IF NOT EXISTS `hapax_inbox` (
    id          BIGINT     NOT NULL PRIMARY KEY,  -- of all inboxes; ascending along each partition
    lane        BIGINT     NOT NULL,              -- digest of scope, topic and key: what is kept in order
    log_offset  BIGINT     NOT NULL,
    accepted    BIGINT     NOT NULL,              -- when it was taken in
    stamp       BIGINT     NULL,                  -- Kafka's time, ms since 1970
    not_before  BIGINT     NULL,                  -- when it may first be worked
    inbox       INT        NOT NULL,
    part        INT        NOT NULL,              -- partition
    generation  INT        NOT NULL,              -- 1; grows when an operator brings it back
    priority    SMALLINT   NOT NULL,              -- smaller is sooner
    form        SMALLINT   NOT NULL,              -- 0 as it came, 1 payload left out: in its topic, 2 erased, 3 edited: in the edits
    message_key BINARY(16) NOT NULL UNIQUE,       -- 16 bytes: digest of scope and identity
    fingerprint BINARY(16) NOT NULL,              -- 16 bytes: digest of what the message says
    topic       VARCHAR(255) CHARACTER SET utf8mb4 COLLATE utf8mb4_bin NOT NULL,
    record_key  LONGBLOB   NULL,                  -- Kafka's key
    headers     LONGBLOB   NULL,                  -- packed: for each, length and name, length and value
    payload     LONGBLOB   NULL
) ENGINE = InnoDB ROW_FORMAT = DYNAMIC COMMENT = 'hapax inbox';

-- One row for each message that is not finished: as large as the backlog. To take and to release changes run and
-- attempts alone, which no index knows of.
CREATE TABLE IF NOT EXISTS `hapax_inbox_open` (
    id         BIGINT   NOT NULL,
    lane       BIGINT   NOT NULL,
    turn       BIGINT   NOT NULL,  -- smaller is sooner. Ready: priority. Waiting: when it is due; from 2^62 on: behind its lane. Dead: when it died
    run        BIGINT   NOT NULL,  -- whose hands it is in; 0: nobody's
    inbox      INT      NOT NULL,
    generation INT      NOT NULL,  -- grows when an operator brings it back
    attempts   INT      NOT NULL,  -- begun, of this generation
    lot        SMALLINT NOT NULL,  -- 0 ready or being processed, 1 waiting (failed, or not before), 2 dead
    priority   SMALLINT NOT NULL,
    alone      SMALLINT NOT NULL,  -- 1: in a run of its own, since a run with it was lost
    PRIMARY KEY (inbox, lot, turn, id),
    KEY lane (lane, id)
) ENGINE = InnoDB ROW_FORMAT = DYNAMIC COMMENT = 'hapax inbox open';

-- One row for each run: messages that one worker took at once. It is their claim.
CREATE TABLE IF NOT EXISTS `hapax_inbox_runs` (
    run      BIGINT   NOT NULL,            -- its number, and the token: ascending in time, never used again
    began    BIGINT   NOT NULL,
    lease    BIGINT   NOT NULL,            -- until when
    ended    BIGINT   NULL,                -- null: not yet
    low      BIGINT   NOT NULL,            -- the smallest id in it
    high     BIGINT   NOT NULL,            -- the largest
    inbox    INT      NOT NULL,
    messages INT      NOT NULL,            -- how many it took
    mark     INT      NOT NULL DEFAULT 0,  -- how far its transaction has come
    level    SMALLINT NOT NULL,            -- 1: lease and token, 2: one transaction with the effects
    owner    VARCHAR(512) CHARACTER SET utf8mb4 COLLATE utf8mb4_bin NOT NULL,  -- the worker
    taken    LONGBLOB NOT NULL,            -- packed: which messages
    done     LONGBLOB NULL,                -- packed: which of them it finished
    PRIMARY KEY (inbox, run),
    KEY ended (inbox, ended, lease)
) ENGINE = InnoDB ROW_FORMAT = DYNAMIC COMMENT = 'hapax inbox runs';

-- One row for each attempt that failed or was lost. Those that succeeded are listed by their runs.
CREATE TABLE IF NOT EXISTS `hapax_inbox_attempts` (
    id         BIGINT   NOT NULL,
    run        BIGINT   NOT NULL,
    began      BIGINT   NOT NULL,
    ended      BIGINT   NOT NULL,
    inbox      INT      NOT NULL,
    generation INT      NOT NULL,
    attempt    INT      NOT NULL,  -- from 1
    class      SMALLINT NOT NULL,  -- 0 retryable, 1 fatal, 2 unavailable, 3 lost, 4 panic, 5 timeout, 6 skipped
    owner      VARCHAR(512) CHARACTER SET utf8mb4 COLLATE utf8mb4_bin NOT NULL,
    text       TEXT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin NOT NULL,  -- what the handler said, at most 1 KiB
    PRIMARY KEY (id, generation, attempt)
) ENGINE = InnoDB ROW_FORMAT = DYNAMIC COMMENT = 'hapax inbox attempts';

INSERT INTO `hapax_schema` (part, version, time)
VALUES ('hapax_inbox', 1, CAST(TIMESTAMPDIFF(MICROSECOND, TIMESTAMP'1970-01-01 00:00:00', UTC_TIMESTAMP(3)) DIV 1000 AS SIGNED)) ON DUPLICATE KEY UPDATE version = version;
