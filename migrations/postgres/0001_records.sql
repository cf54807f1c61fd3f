-- One row for each message that hapax knows of. For another table name, replace "hapax_records".
-- No index but the primary key, and half of each page free: an update then stays in its page (HOT).
CREATE TABLE IF NOT EXISTS "hapax_records" (
    message_key bytea    NOT NULL PRIMARY KEY,  -- 16 bytes: digest of scope and identity
    fingerprint bytea    NOT NULL,              -- 16 bytes: digest of what the message says
    owner       bigint   NOT NULL,              -- who claimed last
    fence       bigint   NOT NULL,              -- number of the last claim
    time        bigint   NOT NULL,              -- ms since 1970: end of lease, due time, or when it became final
    attempts    integer  NOT NULL,              -- attempts begun
    state       smallint NOT NULL,              -- 0 processing, 1 failed, 2 succeeded, 3 succeeded late, 4 dead
    origin      bytea    NOT NULL,              -- partition (4 bytes), offset (8 bytes), topic
    result      bytea                           -- what the handler returned, if that is kept
) WITH (fillfactor = 50);
COMMENT ON TABLE "hapax_records" IS 'hapax schema 1';
