-- One row for each partition, or for each source that numbers its messages itself: its window. The table does not grow with messages:
-- 100 million through one partition leave one row, of about 65 bytes (145 where a consumer keeps a note; a few thousand where
-- many messages wait to be tried again). For another table name, replace `hapax_windows`.
-- Binary columns only: a text column would take sources that differ for the same.
CREATE TABLE IF NOT EXISTS `hapax_windows` (
    source BINARY(16) NOT NULL PRIMARY KEY,  -- digest of scope and partition, or of scope and source
    fence  BIGINT     NOT NULL,              -- grows with every new owner of the partition
    next   BIGINT     NOT NULL,              -- offset (or sequence) below which all is finished
    state  MEDIUMBLOB NOT NULL,              -- what is finished above it, and what has failed
    note   BLOB           NULL,              -- what the consumer keeps to know the topic again
    time   BIGINT     NOT NULL               -- ms since 1970: when it last moved
) ENGINE = InnoDB ROW_FORMAT = DYNAMIC COMMENT = 'hapax windows schema 1';
