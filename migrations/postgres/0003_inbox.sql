-- The inbox: messages that were taken from Kafka and are worked from here. Version 1 of its tables; 0004 makes it version 2.
-- For other names, replace `hapax_inbox` wherever it stands in quotes. Times are ms since 1970, by the server's clock, unless said otherwise.

-- Which version of its tables each part of hapax has.
CREATE TABLE IF NOT EXISTS "hapax_schema" (
    part    varchar(64) NOT NULL PRIMARY KEY,  -- what its tables' names begin with
    version bigint      NOT NULL,
    time    bigint      NOT NULL               -- when it became that
);
COMMENT ON TABLE "hapax_schema" IS 'hapax versions';

-- One row for each scope: consumer group and handler.
CREATE TABLE IF NOT EXISTS "hapax_inbox_handlers" (
    inbox          integer  NOT NULL PRIMARY KEY,  -- its number; ids begin at this number times 2^40
    next_id        bigint   NOT NULL,              -- the first id that nobody has drawn
    time           bigint   NOT NULL,              -- when it was made
    paused         smallint NOT NULL,              -- 1: nothing is taken
    scope_key      bytea    NOT NULL UNIQUE,       -- 16 bytes: digest of the scope
    consumer_group text     NOT NULL,
    handler        text     NOT NULL
) WITH (fillfactor = 50);
COMMENT ON TABLE "hapax_inbox_handlers" IS 'hapax inbox handlers';

-- One row for each message, as it came. Rows are added and taken away, and changed only where an operator erases.
-- A message without a row in "hapax_inbox_open" has succeeded.
CREATE TABLE IF NOT EXISTS "hapax_inbox" (
    id          bigint   NOT NULL PRIMARY KEY,  -- of all inboxes; ascending along each partition
    lane        bigint   NOT NULL,              -- digest of scope, topic and key: what is kept in order
    log_offset  bigint   NOT NULL,
    accepted    bigint   NOT NULL,              -- when it was taken in
    stamp       bigint,                         -- Kafka's time, ms since 1970
    not_before  bigint,                         -- when it may first be worked
    inbox       integer  NOT NULL,
    part        integer  NOT NULL,              -- partition
    generation  integer  NOT NULL,              -- 1; grows when an operator brings it back
    priority    smallint NOT NULL,              -- smaller is sooner
    form        smallint NOT NULL,              -- 0 as it came, 1 payload left out: in its topic, 2 erased, 3 edited: in the edits
    message_key bytea    NOT NULL UNIQUE,       -- 16 bytes: digest of scope and identity
    fingerprint bytea    NOT NULL,              -- 16 bytes: digest of what the message says
    topic       text     NOT NULL,
    record_key  bytea,                          -- Kafka's key
    headers     bytea,                          -- packed: for each, length and name, length and value
    payload     bytea
);
COMMENT ON TABLE "hapax_inbox" IS 'hapax inbox';

-- One row for each message that is not finished: as large as the backlog. Half of each page free: to take and to release changes run and
-- attempts alone, which no index knows of, and the row stays in its page (HOT).
CREATE TABLE IF NOT EXISTS "hapax_inbox_open" (
    id         bigint   NOT NULL,
    lane       bigint   NOT NULL,
    turn       bigint   NOT NULL,  -- smaller is sooner. Ready: priority. Waiting: when it is due; from 2^62 on: behind its lane. Dead: when it died
    run        bigint   NOT NULL,  -- whose hands it is in; 0: nobody's
    inbox      integer  NOT NULL,
    generation integer  NOT NULL,  -- grows when an operator brings it back
    attempts   integer  NOT NULL,  -- begun, of this generation
    lot        smallint NOT NULL,  -- 0 ready or being processed, 1 waiting (failed, or not before), 2 dead
    priority   smallint NOT NULL,
    alone      smallint NOT NULL,  -- 1: in a run of its own, since a run with it was lost
    PRIMARY KEY (inbox, lot, turn, id)
) WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 2000);
CREATE INDEX IF NOT EXISTS "hapax_inbox_open_lane" ON "hapax_inbox_open" (lane, id);
COMMENT ON TABLE "hapax_inbox_open" IS 'hapax inbox open';

-- One row for each run: messages that one worker took at once. It is their claim.
CREATE TABLE IF NOT EXISTS "hapax_inbox_runs" (
    run      bigint   NOT NULL,            -- its number, and the token: ascending in time, never used again
    began    bigint   NOT NULL,
    lease    bigint   NOT NULL,            -- until when
    ended    bigint,                       -- null: not yet
    low      bigint   NOT NULL,            -- the smallest id in it
    high     bigint   NOT NULL,            -- the largest
    inbox    integer  NOT NULL,
    messages integer  NOT NULL,            -- how many it took
    mark     integer  NOT NULL DEFAULT 0,  -- how far its transaction has come
    level    smallint NOT NULL,            -- 1: lease and token, 2: one transaction with the effects
    owner    text     NOT NULL,            -- the worker
    taken    bytea    NOT NULL,            -- packed: which messages
    done     bytea,                        -- packed: which of them it finished
    PRIMARY KEY (inbox, run)
) WITH (fillfactor = 70);
CREATE INDEX IF NOT EXISTS "hapax_inbox_runs_ended" ON "hapax_inbox_runs" (inbox, ended, lease);
COMMENT ON TABLE "hapax_inbox_runs" IS 'hapax inbox runs';

-- One row for each attempt that failed or was lost. Those that succeeded are listed by their runs.
CREATE TABLE IF NOT EXISTS "hapax_inbox_attempts" (
    id         bigint   NOT NULL,
    run        bigint   NOT NULL,
    began      bigint   NOT NULL,
    ended      bigint   NOT NULL,
    inbox      integer  NOT NULL,
    generation integer  NOT NULL,
    attempt    integer  NOT NULL,  -- from 1
    class      smallint NOT NULL,  -- 0 retryable, 1 fatal, 2 unavailable, 3 lost, 4 panic, 5 timeout, 6 skipped
    owner      text     NOT NULL,
    text       text     NOT NULL,  -- what the handler said, at most 1 KiB
    PRIMARY KEY (id, generation, attempt)
);
COMMENT ON TABLE "hapax_inbox_attempts" IS 'hapax inbox attempts';

INSERT INTO "hapax_schema" (part, version, time)
VALUES ('hapax_inbox', 1, (extract(epoch FROM clock_timestamp()) * 1000)::bigint) ON CONFLICT (part) DO NOTHING;
