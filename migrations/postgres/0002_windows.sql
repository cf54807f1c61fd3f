-- One row for each partition, or for each source that numbers its messages itself: its window. The table does not grow with messages:
-- 100 million through one partition leave one row, of about 90 bytes (170 where a consumer keeps a note; a few thousand where
-- many messages wait to be tried again). For another table name, replace "hapax_windows".
-- Every batch updates its row. No index but the primary key, and nine tenths of each page free: an update then stays in its page (HOT),
-- and the next one clears away what the last ones left.
CREATE TABLE IF NOT EXISTS "hapax_windows" (
    source bytea  NOT NULL PRIMARY KEY,  -- 16 bytes: digest of scope and partition, or of scope and source
    fence  bigint NOT NULL,              -- grows with every new owner of the partition
    next   bigint NOT NULL,              -- offset (or sequence) below which all is finished
    state  bytea  NOT NULL,              -- what is finished above it, and what has failed
    note   bytea,                        -- what the consumer keeps to know the topic again
    time   bigint NOT NULL               -- ms since 1970: when it last moved
) WITH (fillfactor = 10);
COMMENT ON TABLE "hapax_windows" IS 'hapax windows schema 1';
