//! Transactions and windows in PostgreSQL.

use std::fmt::Write as _;
use std::time::Duration;

use sqlx::postgres::{PgArguments, PgConnection};
use sqlx::{Arguments, AssertSqlSafe, Error, SqlSafeStr};
use sqlx_core::transaction::TransactionManager;

use super::dialect::{Beginning, Manager, NEVER, Row, Shift, Source, Transact, hex};
use crate::store::postgres::Postgres;
use crate::store::sql::{Dialect, TableName};

const COLUMNS: &str = "source, fence, next, state, note";

fn millis(time: Duration) -> i32 {
    i32::try_from(time.as_millis()).unwrap_or(i32::MAX).max(1)
}

fn quoted(table: &TableName) -> String {
    table.quoted(Postgres::QUOTE)
}

fn bound(sources: &[Source]) -> Result<PgArguments, Error> {
    let mut arguments = PgArguments::default();
    arguments.add(sources.iter().map(<[u8; 16]>::as_slice).collect::<Vec<_>>()).map_err(Error::Encode)?;
    Ok(arguments)
}

impl Transact for Postgres {
    // Without the store's wait for locks, which would last until the transaction ends.
    fn clock(&self) -> String {
        "(SELECT (extract(epoch FROM clock_timestamp()) * 1000)::bigint)".into()
    }

    const ROLLS_BACK: bool = false;

    async fn begin(&self, conn: &mut PgConnection, how: Beginning) -> Result<(), Error> {
        // One message, one round trip; the settings end with the transaction.
        // Our own statements may wait for a lock besides.
        let longest =
            how.longest.map(|longest| longest.saturating_add(how.patience).saturating_add(Duration::from_secs(1)));
        let longest = longest.map(|longest| format!("; SET LOCAL statement_timeout = {}", millis(longest)));
        let text = format!(
            "BEGIN; SET LOCAL lock_timeout = {}{}{}",
            millis(how.patience),
            longest.unwrap_or_default(),
            how.guard()
        );
        Manager::<Self>::begin(conn, Some(AssertSqlSafe(text).into_sql_str())).await
    }

    async fn plain(&self, conn: &mut PgConnection, text: &'static str) -> Result<(), Error> {
        sqlx::raw_sql(text).execute(conn).await.map(drop)
    }

    async fn raise(&self, conn: &mut PgConnection, table: &TableName, sources: &[Source]) -> Result<Vec<Row>, Error> {
        let (table, clock) = (quoted(table), self.clock());
        let text = format!(
            "INSERT INTO {table} AS w (source, fence, next, state, time) \
             SELECT s, 1, {NEVER}, ''::bytea, {clock} FROM unnest($1::bytea[]) AS s \
             ON CONFLICT (source) DO UPDATE SET fence = w.fence + 1, time = excluded.time RETURNING {COLUMNS}"
        );
        let rows = sqlx::query_with(AssertSqlSafe(text), bound(sources)?).persistent(false).fetch_all(conn).await?;
        rows.iter().map(Row::read).collect()
    }

    async fn plant(&self, conn: &mut PgConnection, table: &TableName, sources: &[Source]) -> Result<(), Error> {
        let (table, clock) = (quoted(table), self.clock());
        let text = format!(
            "INSERT INTO {table} (source, fence, next, state, time) \
             SELECT s, 0, {NEVER}, ''::bytea, {clock} FROM unnest($1::bytea[]) AS s ON CONFLICT (source) DO NOTHING"
        );
        sqlx::query_with(AssertSqlSafe(text), bound(sources)?).execute(conn).await.map(drop)
    }

    async fn load(&self, conn: &mut PgConnection, table: &TableName, sources: &[Source]) -> Result<Vec<Row>, Error> {
        let table = quoted(table);
        let text = format!("SELECT {COLUMNS} FROM {table} WHERE source = ANY ($1::bytea[]) ORDER BY source FOR UPDATE");
        let rows = sqlx::query_with(AssertSqlSafe(text), bound(sources)?).fetch_all(conn).await?;
        rows.iter().map(Row::read).collect()
    }

    async fn shift(&self, conn: &mut PgConnection, table: &TableName, shifts: &[Shift]) -> Result<u64, Error> {
        let (table, clock) = (quoted(table), self.clock());
        let text = format!(
            "UPDATE {table} AS w SET next = u.n, state = u.s, note = coalesce(u.m, w.note), time = {clock} \
             FROM unnest($1::bytea[], $2::bigint[], $3::bigint[], $4::bytea[], $5::bytea[]) AS u (k, f, n, s, m) \
             WHERE w.source = u.k AND w.fence = u.f"
        );
        let mut arguments = bound(&shifts.iter().map(|shift| shift.source).collect::<Vec<_>>())?;
        let mut add = || {
            arguments.add(shifts.iter().map(|shift| shift.fence).collect::<Vec<_>>())?;
            arguments.add(shifts.iter().map(|shift| shift.next).collect::<Vec<_>>())?;
            arguments.add(shifts.iter().map(|shift| shift.state.as_slice()).collect::<Vec<_>>())?;
            arguments.add(shifts.iter().map(|shift| shift.note.as_deref()).collect::<Vec<_>>())
        };
        add().map_err(Error::Encode)?;
        Ok(sqlx::query_with(AssertSqlSafe(text), arguments).execute(conn).await?.rows_affected())
    }

    async fn release_and_shift(
        &self,
        conn: &mut PgConnection,
        table: &TableName,
        shifts: &[Shift],
    ) -> Result<u64, Error> {
        let (table, clock) = (quoted(table), self.clock());
        let mut text = "RELEASE SAVEPOINT hapax_batch".to_owned();
        for shift in shifts {
            let note = shift.note.as_ref().map(|note| format!(", note = decode('{}', 'hex')", hex(note)));
            let _ = write!(
                text,
                "; UPDATE {table} SET next = {}, state = decode('{}', 'hex'){}, time = {clock} \
                 WHERE source = decode('{}', 'hex') AND fence = {}",
                shift.next,
                hex(&shift.state),
                note.unwrap_or_default(),
                hex(&shift.source),
                shift.fence,
            );
        }
        Ok(sqlx::raw_sql(AssertSqlSafe(text)).execute(conn).await?.rows_affected())
    }

    fn is_unguarded(&self, error: &Error) -> bool {
        // No such savepoint, no transaction, one that can only be rolled back.
        let code = error.as_database_error().and_then(|error| error.code());
        code.is_some_and(|code| matches!(&*code, "3B001" | "25P01" | "25P02"))
    }
}
