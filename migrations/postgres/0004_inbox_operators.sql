-- The inbox's version 2: what operators did, and payloads that they changed. After 0003. For other names, as there.

-- One row for each payload that an operator put in the place of what came, which stays where it is.
CREATE TABLE IF NOT EXISTS "hapax_inbox_edits" (
    id         bigint  NOT NULL,
    time       bigint  NOT NULL,
    inbox      integer NOT NULL,
    generation integer NOT NULL,  -- the one that is worked with it, and those after
    who        text    NOT NULL,
    why        text    NOT NULL,
    payload    bytea,
    PRIMARY KEY (id, generation)
);
COMMENT ON TABLE "hapax_inbox_edits" IS 'hapax inbox edits';

-- One row for each thing that an operator did.
CREATE TABLE IF NOT EXISTS "hapax_inbox_acts" (
    act     bigint   NOT NULL,  -- ascending in time
    id      bigint,             -- the message, if it was done to one
    time    bigint   NOT NULL,
    inbox   integer  NOT NULL,
    what    smallint NOT NULL,
    who     text     NOT NULL,
    why     text     NOT NULL,
    request bytea,              -- digest of the caller's own id of it: done once
    detail  text,               -- what came of it
    PRIMARY KEY (inbox, act),
    UNIQUE (inbox, request)
);
CREATE INDEX IF NOT EXISTS "hapax_inbox_acts_id" ON "hapax_inbox_acts" (id) WHERE id IS NOT NULL;
COMMENT ON TABLE "hapax_inbox_acts" IS 'hapax inbox acts';

UPDATE "hapax_schema" SET version = 2, time = (extract(epoch FROM clock_timestamp()) * 1000)::bigint
WHERE part = 'hapax_inbox' AND version = 1;
