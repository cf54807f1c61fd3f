-- The inbox's version 2: what operators did, and payloads that they changed. After 0003. For other names, as there.

-- One row for each payload that an operator put in the place of what came, which stays where it is.
CREATE TABLE IF NOT EXISTS "hapax_inbox_edits" ( -- hapax inbox edits
    id         INTEGER NOT NULL,
    time       INTEGER NOT NULL,
    inbox      INTEGER NOT NULL,
    generation INTEGER NOT NULL,  -- the one that is worked with it, and those after
    who        TEXT    NOT NULL,
    why        TEXT    NOT NULL,
    payload    BLOB,
    PRIMARY KEY (id, generation)
) WITHOUT ROWID;

-- One row for each thing that an operator did.
CREATE TABLE IF NOT EXISTS "hapax_inbox_acts" ( -- hapax inbox acts
    act     INTEGER NOT NULL,  -- ascending in time
    id      INTEGER,           -- the message, if it was done to one
    time    INTEGER NOT NULL,
    inbox   INTEGER NOT NULL,
    what    INTEGER NOT NULL,
    who     TEXT    NOT NULL,
    why     TEXT    NOT NULL,
    request BLOB,              -- digest of the caller's own id of it: done once
    detail  TEXT,              -- what came of it
    PRIMARY KEY (inbox, act),
    UNIQUE (inbox, request)
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS "hapax_inbox_acts_id" ON "hapax_inbox_acts" (id) WHERE id IS NOT NULL;

UPDATE "hapax_schema" SET version = 2, time = CAST(unixepoch('subsec') * 1000 AS INTEGER)
WHERE part = 'hapax_inbox' AND version = 1;
