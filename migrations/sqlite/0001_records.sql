-- One row for each message that hapax knows of. For another table name, replace "hapax_records".
CREATE TABLE IF NOT EXISTS "hapax_records" ( -- hapax schema 1
    message_key BLOB    NOT NULL PRIMARY KEY,  -- 16 bytes: digest of scope and identity
    fingerprint BLOB    NOT NULL,              -- 16 bytes: digest of what the message says
    state       INTEGER NOT NULL,              -- 0 processing, 1 failed, 2 succeeded, 3 succeeded late, 4 dead
    attempts    INTEGER NOT NULL,              -- attempts begun
    owner       INTEGER NOT NULL,              -- who claimed last
    fence       INTEGER NOT NULL,              -- number of the last claim
    time        INTEGER NOT NULL,              -- ms since 1970: end of lease, due time, or when it became final
    origin      BLOB    NOT NULL,              -- partition (4 bytes), offset (8 bytes), topic
    result      BLOB                           -- what the handler returned, if that is kept
) WITHOUT ROWID;
