//! MySQL's text and decoding.

use std::time::Duration;

use sqlx::error::DatabaseError;
use sqlx::mysql::{MySqlConnection, MySqlDatabaseError, MySqlRow};
use sqlx::{AssertSqlSafe, Error, Row};

use super::{bind, check};
use crate::store::Report;
use crate::store::sql::{Call, Dialect, Expr, Fault, Field, Join, Kind, Layout, Marker, Reading, TableName, reading};

/// MySQL and MariaDB.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Mysql;

/// Where a transaction keeps its owner, which is another one each time: a text with a number in it would be prepared anew for each batch, and
/// as many values as a batch has take longer to prepare than to write.
pub(crate) const OWNER: &str = "@hapax_owner";

/// State and attempts, which each database keeps in types of its own.
fn numbers(row: &MySqlRow) -> Result<(i64, i64), Error> {
    Ok((row.try_get::<u8, _>(3)?.into(), row.try_get::<u32, _>(4)?.into()))
}

impl Dialect for Mysql {
    type Db = sqlx::MySql;
    const NAME: &'static str = "mysql";
    const QUOTE: char = '`';
    const GREATEST: &'static str = "greatest";
    const LARGEST: usize = bind::LARGEST;
    const SURVIVES_CANCEL: bool = false;
    const LOCKS_ROWS: bool = true;

    fn schema(layout: Layout) -> &'static str {
        match layout {
            Layout::Records => include_str!("../../../migrations/mysql/0001_records.sql"),
            Layout::Windows => include_str!("../../../migrations/mysql/0002_windows.sql"),
        }
    }

    fn now(&self, _patience: Duration) -> String {
        // Not UNIX_TIMESTAMP(): it goes through the session's time zone, where an hour may come twice.
        "CAST(TIMESTAMPDIFF(MICROSECOND, TIMESTAMP'1970-01-01 00:00:00', UTC_TIMESTAMP(3)) DIV 1000 AS SIGNED)".into()
    }

    fn placeholder(_number: usize, _kind: Kind) -> String {
        "?".into()
    }

    fn source(fields: &[Field], _first: usize, size: usize) -> String {
        bind::source(fields, size)
    }

    fn among(_first: usize, size: usize) -> String {
        format!("IN ({})", bind::repeat("?", size))
    }

    fn insert(
        table: &str,
        columns: &[&str],
        exprs: &[Expr],
        _fields: &[Field],
        _scalars: usize,
        now: &str,
        size: usize,
    ) -> String {
        let tuple: Vec<String> = exprs
            .iter()
            .map(|expr| match expr {
                Expr::Const(text) => (*text).to_owned(),
                Expr::Field(_) => "?".to_owned(),
                Expr::Scalar(number) => bind::token(*number),
                Expr::Now => now.to_owned(),
                Expr::NowAndScalar(number) => format!("{now} + {}", bind::token(*number)),
                Expr::Owner(_) => OWNER.to_owned(),
            })
            .collect();
        // IGNORE counts what it inserted and nothing else, whereas sqlx asks for *found* rows, which makes ON DUPLICATE KEY
        // UPDATE count the duplicates too. IGNORE would also let wrong values through as warnings: none are, since every
        // value is of fixed width or bounded, and none is null.
        let tuples = bind::repeat(&format!("({})", tuple.join(",")), size);
        format!("INSERT IGNORE INTO {table} ({}) VALUES {tuples}", columns.join(", "))
    }

    fn update(table: &str, join: &Join<'_>, size: usize) -> String {
        let set: Vec<String> = join.set.iter().map(|(column, value)| format!("h.{column} = {value}")).collect();
        // In the batch's order: keys ascend, so that two batches do not wait for each other.
        format!(
            "UPDATE {} AS u STRAIGHT_JOIN {table} AS h ON h.message_key = u.k AND {} SET {}",
            Self::source(join.fields, 1, size),
            join.on,
            set.join(", "),
        )
    }

    fn update_alike(table: &str, set: &[(&'static str, String)], on: &str, first: usize, size: usize) -> String {
        let set: Vec<String> = set.iter().map(|(column, value)| format!("{column} = {value}")).collect();
        let among = Self::among(first, size);
        format!(
            "UPDATE {table} SET {} WHERE {on} AND message_key {among} AND CONCAT(message_key, fingerprint) {among}",
            set.join(", "),
        )
    }

    fn read(table: &str, now: &str, size: usize) -> String {
        format!(
            "SELECT c.now, h.message_key, h.fingerprint, h.state, h.attempts, h.owner, h.fence, h.time, h.origin, h.result \
             FROM (SELECT {now} AS now) AS c LEFT JOIN {table} AS h ON h.message_key {}",
            Self::among(1, size)
        )
    }

    fn step(rows: usize) -> (usize, usize) {
        bind::step(rows)
    }

    async fn greet(&self, conn: &mut MySqlConnection, patience: Duration) -> Result<(), Error> {
        let seconds = patience.as_millis().div_ceil(1000).clamp(1, 1_000_000);
        let text = format!(
            "SET SESSION sql_mode = CONCAT(@@sql_mode, ',STRICT_ALL_TABLES'), SESSION autocommit = 1, \
             SESSION innodb_lock_wait_timeout = {seconds}"
        );
        sqlx::raw_sql(AssertSqlSafe(text)).execute(conn).await.map(drop)
    }

    async fn execute(&self, conn: &mut MySqlConnection, call: Call<'_>) -> Result<u64, Error> {
        let arguments = bind::arguments(&call)?;
        let text = bind::written(&call);
        Ok(sqlx::query_with(AssertSqlSafe(text), arguments).execute(conn).await?.rows_affected())
    }

    async fn fetch(&self, conn: &mut MySqlConnection, call: Call<'_>) -> Result<Option<Reading>, Error> {
        let arguments = bind::arguments(&call)?;
        let rows = sqlx::query_with(AssertSqlSafe(call.text), arguments).fetch_all(conn).await?;
        reading(&rows, numbers)
    }

    async fn keys(&self, conn: &mut MySqlConnection, call: Call<'_>) -> Result<Vec<Vec<u8>>, Error> {
        let arguments = bind::arguments(&call)?;
        let rows = sqlx::query_with(AssertSqlSafe(call.text), arguments).fetch_all(conn).await?;
        rows.iter().map(|row| row.try_get(0)).collect()
    }

    async fn marker(&self, conn: &mut MySqlConnection, table: &TableName) -> Result<Marker, Error> {
        let row = sqlx::query(
            "SELECT CAST(table_comment AS CHAR) FROM information_schema.tables \
             WHERE table_schema = COALESCE(?, DATABASE()) AND table_name = ?",
        )
        .bind(table.schema().map(str::to_owned))
        .bind(table.table().to_owned())
        .fetch_optional(conn)
        .await?;
        row.map_or(Ok(Marker::Absent), |row| Ok(Marker::Says(row.try_get(0)?)))
    }

    async fn create(&self, conn: &mut MySqlConnection, text: String) -> Result<(), Error> {
        sqlx::raw_sql(AssertSqlSafe(text)).execute(conn).await.map(drop)
    }

    async fn settings(&self, conn: &mut MySqlConnection, _table: &TableName, report: &mut Report) -> Result<(), Error> {
        check::settings(conn, report).await
    }

    async fn inspect(
        &self,
        conn: &mut MySqlConnection,
        layout: Layout,
        table: &TableName,
        report: &mut Report,
    ) -> Result<(), Error> {
        check::inspect(conn, layout, table, report).await
    }

    fn fault(error: &dyn DatabaseError) -> Fault {
        let number = error.try_downcast_ref::<MySqlDatabaseError>().map_or(0, MySqlDatabaseError::number);
        let said = error.message();
        match number {
            // The last words of a server that goes away, of one that was told to drop us, and of the network.
            1053 | 1077 | 1079 | 1080 | 1152 | 1158..=1161 | 1927 | 2006 | 2013 | 3169 | 4031 => {
                Fault::Broken("the server ended the connection.".into())
            }
            1290 | 1792 | 1836 => Fault::Broken(
                "the server is read-only: a replica, or a primary that was one a moment ago. Connect to the primary."
                    .into(),
            ),
            1243 | 1615 => Fault::Broken("a prepared statement was lost.".into()),
            1020 | 1180 | 1213 | 1614 => Fault::Contended("others kept writing the same records.".into()),
            1205 => Fault::Locked("somebody's open transaction kept a record locked.".into()),
            1040 | 1129 | 1203 | 1226 => Fault::Unavailable("the server has no connection to spare.".into()),
            1047 => Fault::Unavailable("the cluster's node is not ready.".into()),
            1461 => Fault::Unavailable(
                "the server keeps no more prepared statements: raise max_prepared_stmt_count.".into(),
            ),
            1317 | 1969 | 3024 => {
                Fault::Unavailable("the server cancelled the statement: its time limit, or an operator.".into())
            }
            1021 | 1037 | 1038 | 1041 | 1114 | 1135 | 1206 => {
                Fault::Unavailable(format!("it is out of room ({said})."))
            }
            1146 => Fault::Refused("the table is missing: run ensure_schema(), or the file in migrations/.".into()),
            1044 | 1142 | 1143 | 1227 | 1370 => {
                Fault::Refused(
                    "the user lacks a right: grant SELECT, INSERT, UPDATE and DELETE on the table; to make it, CREATE, or run the file in \
                     migrations/ as somebody who may."
                        .into(),
                )
            }
            1045 | 1698 => Fault::Refused("the server does not know that user and password.".into()),
            1049 => Fault::Refused("the database is missing: create it first.".into()),
            // Errors of the server's own files: a full disk, a temporary table that somebody deleted.
            1..=999 | 1004..=1006 | 1024..=1026 | 1030 => {
                Fault::Unavailable(format!("it has trouble with its files ({said})."))
            }
            1034 | 1194 | 1712 => Fault::Corrupt(format!("the table is damaged ({said}).")),
            other => Fault::Refused(format!(
                "it said: {said} ({other}). Run check() to see whether the table is as it should be."
            )),
        }
    }
}
