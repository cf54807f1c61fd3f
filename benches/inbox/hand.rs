//! A queue by hand: one table, with the index that it needs.

use sqlx::{AssertSqlSafe, MySql, MySqlConnection, PgConnection, Postgres, Sqlite, SqliteConnection};

use crate::PAYLOAD;
use crate::database::Base;

/// A message by hand.
type Pulled = (i64, Vec<u8>, i32, i64, Option<i64>, Option<Vec<u8>>, Option<Vec<u8>>, Option<Vec<u8>>);

const COLUMNS: &str = "id, topic, part, log_offset, stamp, record_key, headers, payload";

#[allow(async_fn_in_trait, reason = "nobody spawns them")]
pub trait Hand: Base {
    /// Makes the table, and so many messages in it.
    fn filled(messages: usize) -> String;

    /// So many succeeded messages in the inbox's tables, whose number is 1.
    fn grown(messages: usize) -> String;

    async fn script(conn: &mut Self::Connection, sql: String) -> sqlx::Result<()>;

    /// The next messages, locked.
    async fn pull(conn: &mut Self::Connection, most: usize) -> sqlx::Result<Vec<Pulled>>;

    /// They are done.
    async fn mark(conn: &mut Self::Connection, ids: &[i64]) -> sqlx::Result<u64>;
}

impl Hand for Postgres {
    fn filled(messages: usize) -> String {
        format!(
            "CREATE TABLE queue (id bigint PRIMARY KEY, state smallint NOT NULL, done bigint, topic text NOT NULL, part integer NOT NULL,
               log_offset bigint NOT NULL, stamp bigint, record_key bytea, headers bytea, payload bytea);
             CREATE INDEX queue_open ON queue (id) WHERE state = 0;
             INSERT INTO queue SELECT n, 0, NULL, 'orders', 0, n, 1, decode('6b65', 'hex'), decode(repeat('68', 40), 'hex'), decode(repeat('07', {PAYLOAD}), 'hex')
               FROM generate_series(1, {messages}) AS n;"
        )
    }

    fn grown(messages: usize) -> String {
        format!(
            "INSERT INTO hapax_inbox (id, lane, log_offset, accepted, stamp, inbox, part, generation, priority, form, message_key, fingerprint, topic,
               record_key, headers, payload) SELECT (1::bigint << 40) + (1::bigint << 39) + n, n, n, 1, 1, 1, 0, 1, 0, 0, decode(md5(n::text), 'hex'),
               decode(md5(n::text), 'hex'), 'orders', decode('6b65', 'hex'), decode(repeat('68', 40), 'hex'), decode(repeat('07', {PAYLOAD}), 'hex') FROM generate_series(1, {messages}) AS n"
        )
    }

    async fn script(conn: &mut PgConnection, sql: String) -> sqlx::Result<()> {
        sqlx::raw_sql(AssertSqlSafe(sql)).execute(conn).await.map(drop)
    }

    async fn pull(conn: &mut PgConnection, most: usize) -> sqlx::Result<Vec<Pulled>> {
        let sql = format!(
            "SELECT id, convert_to(topic, 'UTF8'), part, log_offset, stamp, record_key, headers, payload FROM queue \
             WHERE state = 0 ORDER BY id LIMIT {most} FOR UPDATE SKIP LOCKED"
        );
        sqlx::query_as(AssertSqlSafe(sql)).fetch_all(conn).await
    }

    async fn mark(conn: &mut PgConnection, ids: &[i64]) -> sqlx::Result<u64> {
        let sql = "UPDATE queue SET state = 1, done = (extract(epoch FROM clock_timestamp()) * 1000)::bigint WHERE id = ANY ($1)";
        Ok(sqlx::query(sql).bind(ids).execute(conn).await?.rows_affected())
    }
}

/// Placeholders for so many.
fn marks(ids: usize) -> String {
    let mut text = "?,".repeat(ids);
    text.pop();
    text
}

impl Hand for MySql {
    fn filled(messages: usize) -> String {
        format!(
            "CREATE TABLE queue (id BIGINT PRIMARY KEY, state SMALLINT NOT NULL, done BIGINT, topic VARBINARY(249) NOT NULL, part INT NOT NULL,
               log_offset BIGINT NOT NULL, stamp BIGINT, record_key LONGBLOB, headers LONGBLOB, payload LONGBLOB, KEY open (state, id)) ENGINE = InnoDB;
             INSERT INTO queue SELECT seq, 0, NULL, 'orders', 0, seq, 1, 'ke', repeat('h', 40), repeat('p', {PAYLOAD}) FROM seq_1_to_{messages};"
        )
    }

    fn grown(messages: usize) -> String {
        format!(
            "INSERT INTO hapax_inbox (id, lane, log_offset, accepted, stamp, inbox, part, generation, priority, form, message_key, fingerprint, topic,
               record_key, headers, payload) SELECT (1 << 40) + (1 << 39) + seq, seq, seq, 1, 1, 1, 0, 1, 0, 0, unhex(md5(seq)), unhex(md5(seq)), 'orders',
               'ke', repeat('h', 40), repeat('p', {PAYLOAD}) FROM seq_1_to_{messages}"
        )
    }

    async fn script(conn: &mut MySqlConnection, sql: String) -> sqlx::Result<()> {
        sqlx::raw_sql(AssertSqlSafe(sql)).execute(conn).await.map(drop)
    }

    async fn pull(conn: &mut MySqlConnection, most: usize) -> sqlx::Result<Vec<Pulled>> {
        let sql =
            format!("SELECT {COLUMNS} FROM queue WHERE state = 0 ORDER BY id LIMIT {most} FOR UPDATE SKIP LOCKED");
        sqlx::query_as(AssertSqlSafe(sql)).fetch_all(conn).await
    }

    async fn mark(conn: &mut MySqlConnection, ids: &[i64]) -> sqlx::Result<u64> {
        let sql =
            format!("UPDATE queue SET state = 1, done = UNIX_TIMESTAMP() * 1000 WHERE id IN ({})", marks(ids.len()));
        let query = ids.iter().fold(sqlx::query(AssertSqlSafe(sql)), |query, id| query.bind(id));
        Ok(query.execute(conn).await?.rows_affected())
    }
}

impl Hand for Sqlite {
    fn filled(messages: usize) -> String {
        format!(
            "CREATE TABLE queue (id INTEGER PRIMARY KEY, state INTEGER NOT NULL, done INTEGER, topic BLOB NOT NULL, part INTEGER NOT NULL,
               log_offset INTEGER NOT NULL, stamp INTEGER, record_key BLOB, headers BLOB, payload BLOB);
             CREATE INDEX queue_open ON queue (id) WHERE state = 0;
             WITH RECURSIVE up (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM up WHERE n < {messages})
               INSERT INTO queue SELECT n, 0, NULL, x'6f7264657273', 0, n, 1, x'6b65', zeroblob(40), zeroblob({PAYLOAD}) FROM up;"
        )
    }

    fn grown(messages: usize) -> String {
        format!(
            "INSERT INTO hapax_inbox (id, lane, log_offset, accepted, stamp, inbox, part, generation, priority, form, message_key, fingerprint, topic,
               record_key, headers, payload) WITH RECURSIVE up (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM up WHERE n < {messages})
               SELECT (1 << 40) + (1 << 39) + n, n, n, 1, 1, 1, 0, 1, 0, 0, randomblob(16), randomblob(16), 'orders', x'6b65', zeroblob(40), zeroblob({PAYLOAD}) FROM up"
        )
    }

    async fn script(conn: &mut SqliteConnection, sql: String) -> sqlx::Result<()> {
        sqlx::raw_sql(AssertSqlSafe(sql)).execute(conn).await.map(drop)
    }

    async fn pull(conn: &mut SqliteConnection, most: usize) -> sqlx::Result<Vec<Pulled>> {
        let sql = format!("SELECT {COLUMNS} FROM queue WHERE state = 0 ORDER BY id LIMIT {most}");
        sqlx::query_as(AssertSqlSafe(sql)).fetch_all(conn).await
    }

    async fn mark(conn: &mut SqliteConnection, ids: &[i64]) -> sqlx::Result<u64> {
        let sql = format!("UPDATE queue SET state = 1, done = unixepoch() * 1000 WHERE id IN ({})", marks(ids.len()));
        let query = ids.iter().fold(sqlx::query(AssertSqlSafe(sql)), |query, id| query.bind(id));
        Ok(query.execute(conn).await?.rows_affected())
    }
}
