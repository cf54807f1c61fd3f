-- The inbox: messages that were taken from Kafka and are worked from here. Version 1 of its tables; 0004 makes it version 2.
-- For other names, replace `hapax_inbox` wherever it stands in quotes. Times are ms since 1970, by this machine's clock, unless said otherwise.

-- Which version of its tables each part of hapax has.
CREATE TABLE IF NOT EXISTS "hapax_schema" ( -- hapax versions
    part    TEXT    NOT NULL PRIMARY KEY,  -- what its tables' names begin with
    version INTEGER NOT NULL,
    time    INTEGER NOT NULL               -- when it became that
) WITHOUT ROWID;

-- One row for each scope: consumer group and handler.
CREATE TABLE IF NOT EXISTS "hapax_inbox_handlers" ( -- hapax inbox handlers
    inbox          INTEGER NOT NULL PRIMARY KEY,  -- its number; ids begin at this number times 2^40
    next_id        INTEGER NOT NULL,              -- the first id that nobody has drawn
    time           INTEGER NOT NULL,              -- when it was made
    paused         INTEGER NOT NULL,              -- 1: nothing is taken
    scope_key      BLOB    NOT NULL UNIQUE,       -- 16 bytes: digest of the scope
    consumer_group TEXT    NOT NULL,
    handler        TEXT    NOT NULL
) WITHOUT ROWID;

-- One row for each message, as it came. Rows are added and taken away, and changed only where an operator erases.
-- A message without a row in "hapax_inbox_open" has succeeded.
CREATE TABLE IF NOT EXISTS "hapax_inbox" ( -- hapax inbox
    id          INTEGER NOT NULL PRIMARY KEY,  -- of all inboxes; ascending along each partition
    lane        INTEGER NOT NULL,              -- digest of scope, topic and key: what is kept in order
    log_offset  INTEGER NOT NULL,
    accepted    INTEGER NOT NULL,              -- when it was taken in
    stamp       INTEGER,                       -- Kafka's time, ms since 1970
    not_before  INTEGER,                       -- when it may first be worked
    inbox       INTEGER NOT NULL,
    part        INTEGER NOT NULL,              -- partition
    generation  INTEGER NOT NULL,              -- 1; grows when an operator brings it back
    priority    INTEGER NOT NULL,              -- smaller is sooner
    form        INTEGER NOT NULL,              -- 0 as it came, 1 payload left out: in its topic, 2 erased, 3 edited: in the edits
    message_key BLOB    NOT NULL UNIQUE,       -- 16 bytes: digest of scope and identity
    fingerprint BLOB    NOT NULL,              -- 16 bytes: digest of what the message says
    topic       TEXT    NOT NULL,
    record_key  BLOB,                          -- Kafka's key
    headers     BLOB,                          -- packed: for each, length and name, length and value
    payload     BLOB
);

-- One row for each message that is not finished: as large as the backlog. To take and to release changes run and
-- attempts alone, which no index knows of.
CREATE TABLE IF NOT EXISTS "hapax_inbox_open" ( -- hapax inbox open
    id         INTEGER NOT NULL,
    lane       INTEGER NOT NULL,
    turn       INTEGER NOT NULL,  -- smaller is sooner. Ready: priority. Waiting: when it is due; from 2^62 on: behind its lane. Dead: when it died
    run        INTEGER NOT NULL,  -- whose hands it is in; 0: nobody's
    inbox      INTEGER NOT NULL,
    generation INTEGER NOT NULL,  -- grows when an operator brings it back
    attempts   INTEGER NOT NULL,  -- begun, of this generation
    lot        INTEGER NOT NULL,  -- 0 ready or being processed, 1 waiting (failed, or not before), 2 dead
    priority   INTEGER NOT NULL,
    alone      INTEGER NOT NULL,  -- 1: in a run of its own, since a run with it was lost
    PRIMARY KEY (inbox, lot, turn, id)
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS "hapax_inbox_open_lane" ON "hapax_inbox_open" (lane, id);

-- One row for each run: messages that one worker took at once. It is their claim.
CREATE TABLE IF NOT EXISTS "hapax_inbox_runs" ( -- hapax inbox runs
    run      INTEGER NOT NULL,            -- its number, and the token: ascending in time, never used again
    began    INTEGER NOT NULL,
    lease    INTEGER NOT NULL,            -- until when
    ended    INTEGER,                     -- null: not yet
    low      INTEGER NOT NULL,            -- the smallest id in it
    high     INTEGER NOT NULL,            -- the largest
    inbox    INTEGER NOT NULL,
    messages INTEGER NOT NULL,            -- how many it took
    mark     INTEGER NOT NULL DEFAULT 0,  -- how far its transaction has come
    level    INTEGER NOT NULL,            -- 1: lease and token, 2: one transaction with the effects
    owner    TEXT    NOT NULL,            -- the worker
    taken    BLOB    NOT NULL,            -- packed: which messages
    done     BLOB,                        -- packed: which of them it finished
    PRIMARY KEY (inbox, run)
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS "hapax_inbox_runs_ended" ON "hapax_inbox_runs" (inbox, ended, lease);

-- One row for each attempt that failed or was lost. Those that succeeded are listed by their runs.
CREATE TABLE IF NOT EXISTS "hapax_inbox_attempts" ( -- hapax inbox attempts
    id         INTEGER NOT NULL,
    run        INTEGER NOT NULL,
    began      INTEGER NOT NULL,
    ended      INTEGER NOT NULL,
    inbox      INTEGER NOT NULL,
    generation INTEGER NOT NULL,
    attempt    INTEGER NOT NULL,  -- from 1
    class      INTEGER NOT NULL,  -- 0 retryable, 1 fatal, 2 unavailable, 3 lost, 4 panic, 5 timeout, 6 skipped
    owner      TEXT    NOT NULL,
    text       TEXT    NOT NULL,  -- what the handler said, at most 1 KiB
    PRIMARY KEY (id, generation, attempt)
) WITHOUT ROWID;

INSERT INTO "hapax_schema" (part, version, time)
VALUES ('hapax_inbox', 1, CAST(unixepoch('subsec') * 1000 AS INTEGER)) ON CONFLICT (part) DO NOTHING;
