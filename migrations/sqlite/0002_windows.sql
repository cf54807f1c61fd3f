-- One row for each partition, or for each source that numbers its messages itself: its window. The table does not grow with messages:
-- 100 million through one partition leave one row, of about 45 bytes (125 where a consumer keeps a note; a few thousand where
-- many messages wait to be tried again). For another table name, replace "hapax_windows".
CREATE TABLE IF NOT EXISTS "hapax_windows" ( -- hapax windows schema 1
    source BLOB    NOT NULL PRIMARY KEY,  -- 16 bytes: digest of scope and partition, or of scope and source
    fence  INTEGER NOT NULL,              -- grows with every new owner of the partition
    next   INTEGER NOT NULL,              -- offset (or sequence) below which all is finished
    state  BLOB    NOT NULL,              -- what is finished above it, and what has failed
    note   BLOB,                          -- what the consumer keeps to know the topic again
    time   INTEGER NOT NULL               -- ms since 1970: when it last moved
) WITHOUT ROWID;
