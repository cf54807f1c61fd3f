//! Transactions and windows in SQLite.

use std::fmt::Write as _;

use sqlx::sqlite::{SqliteArguments, SqliteConnection};
use sqlx::{Arguments, AssertSqlSafe, Error, SqlSafeStr};
use sqlx_core::transaction::TransactionManager;

use super::dialect::{Beginning, Manager, NEVER, Row, Shift, Source, Transact, hex};
use crate::store::sql::{Dialect, TableName};
use crate::store::sqlite::Sqlite;

const COLUMNS: &str = "source, fence, next, state, note";

fn quoted(table: &TableName) -> String {
    table.quoted(Sqlite::QUOTE)
}

/// So many tuples. Sizes are powers of two, so that few statements are kept prepared.
fn tuples(tuple: &str, size: usize) -> String {
    vec![tuple; size].join(", ")
}

fn size(len: usize) -> usize {
    len.next_power_of_two()
}

/// Sources for so many tuples; nulls, which meet nothing, where there are more.
fn bound(sources: &[Source], size: usize) -> Result<SqliteArguments, Error> {
    let mut arguments = SqliteArguments::default();
    (0..size)
        .try_for_each(|at| arguments.add(sources.get(at).map(<[u8; 16]>::as_slice).map(<[u8]>::to_vec)))
        .map_err(Error::Encode)?;
    Ok(arguments)
}

impl Transact for Sqlite {
    const ONE_WRITER: bool = true;
    // A page that stood when a savepoint was set is copied before it changes, and records change a page for each message.
    const GUARDS_LATE: bool = true;

    /// The write lock is taken at once: a transaction that read first could not get it while another one writes, and would fail without
    /// waiting. How long it waits is the pool's own `busy_timeout`: the whole file is locked, so nothing else could go on meanwhile.
    async fn begin(&self, conn: &mut SqliteConnection, how: Beginning) -> Result<(), Error> {
        let text = if how.guarded { "BEGIN IMMEDIATE; SAVEPOINT hapax_batch" } else { "BEGIN IMMEDIATE" };
        Manager::<Self>::begin(conn, Some(text.into_sql_str())).await
    }

    async fn plain(&self, conn: &mut SqliteConnection, text: &'static str) -> Result<(), Error> {
        sqlx::raw_sql(text).execute(conn).await.map(drop)
    }

    async fn raise(
        &self,
        conn: &mut SqliteConnection,
        table: &TableName,
        sources: &[Source],
    ) -> Result<Vec<Row>, Error> {
        if sources.is_empty() {
            return Ok(Vec::new());
        }
        let (table, clock) = (quoted(table), self.clock());
        let values = tuples(&format!("(?, 1, {NEVER}, x'', {clock})"), sources.len());
        let text = format!(
            "INSERT INTO {table} AS w (source, fence, next, state, time) VALUES {values} \
             ON CONFLICT (source) DO UPDATE SET fence = w.fence + 1, time = excluded.time RETURNING {COLUMNS}"
        );
        let arguments = bound(sources, sources.len())?;
        let rows = sqlx::query_with(AssertSqlSafe(text), arguments).persistent(false).fetch_all(conn).await?;
        rows.iter().map(Row::read).collect()
    }

    async fn plant(&self, conn: &mut SqliteConnection, table: &TableName, sources: &[Source]) -> Result<(), Error> {
        if sources.is_empty() {
            return Ok(());
        }
        let (table, clock) = (quoted(table), self.clock());
        let values = tuples(&format!("(?, 0, {NEVER}, x'', {clock})"), sources.len());
        let text = format!(
            "INSERT INTO {table} (source, fence, next, state, time) VALUES {values} ON CONFLICT (source) DO NOTHING"
        );
        let arguments = bound(sources, sources.len())?;
        sqlx::query_with(AssertSqlSafe(text), arguments).persistent(false).execute(conn).await.map(drop)
    }

    async fn load(
        &self,
        conn: &mut SqliteConnection,
        table: &TableName,
        sources: &[Source],
    ) -> Result<Vec<Row>, Error> {
        if sources.is_empty() {
            return Ok(Vec::new());
        }
        // Nobody else writes until the transaction ends: that is lock enough.
        let size = size(sources.len());
        let text = format!("SELECT {COLUMNS} FROM {} WHERE source IN ({})", quoted(table), tuples("?", size));
        let rows = sqlx::query_with(AssertSqlSafe(text), bound(sources, size)?).fetch_all(conn).await?;
        rows.iter().map(Row::read).collect()
    }

    async fn shift(&self, conn: &mut SqliteConnection, table: &TableName, shifts: &[Shift]) -> Result<u64, Error> {
        if shifts.is_empty() {
            return Ok(0);
        }
        let size = size(shifts.len());
        let text = format!(
            "WITH u (k, f, n, s, m) AS (VALUES {}) \
             UPDATE {} AS w SET next = u.n, state = u.s, note = coalesce(u.m, w.note), time = {} \
             FROM u WHERE w.source = u.k AND w.fence = u.f",
            tuples("(?, ?, ?, ?, ?)", size),
            quoted(table),
            self.clock(),
        );
        let mut arguments = SqliteArguments::default();
        let mut add = |shift: Option<&Shift>| {
            arguments.add(shift.map(|shift| shift.source.to_vec()))?;
            arguments.add(shift.map(|shift| shift.fence))?;
            arguments.add(shift.map(|shift| shift.next))?;
            arguments.add(shift.map(|shift| shift.state.clone()))?;
            arguments.add(shift.and_then(|shift| shift.note.clone()))
        };
        (0..size).try_for_each(|at| add(shifts.get(at))).map_err(Error::Encode)?;
        Ok(sqlx::query_with(AssertSqlSafe(text), arguments).execute(conn).await?.rows_affected())
    }

    async fn release_and_shift(
        &self,
        conn: &mut SqliteConnection,
        table: &TableName,
        shifts: &[Shift],
    ) -> Result<u64, Error> {
        let (table, clock) = (quoted(table), self.clock());
        // What is counted as changed after a release is what was changed before it: so the rows are.
        if let [shift] = shifts {
            let text = format!(
                "RELEASE SAVEPOINT hapax_batch; UPDATE {table} SET next = ?1, state = ?2, note = coalesce(?3, note), time = {clock} \
                 WHERE source = ?4 AND fence = ?5 RETURNING 1"
            );
            let mut arguments = SqliteArguments::default();
            let mut add = || {
                arguments.add(shift.next)?;
                arguments.add(shift.state.clone())?;
                arguments.add(shift.note.clone())?;
                arguments.add(shift.source.to_vec())?;
                arguments.add(shift.fence)
            };
            add().map_err(Error::Encode)?;
            return Ok(sqlx::query_with(AssertSqlSafe(text), arguments).fetch_all(conn).await?.len() as u64);
        }
        let mut text = "RELEASE SAVEPOINT hapax_batch".to_owned();
        for shift in shifts {
            let note = shift.note.as_ref().map(|note| format!(", note = x'{}'", hex(note)));
            let _ = write!(
                text,
                "; UPDATE {table} SET next = {}, state = x'{}'{}, time = {clock} \
                 WHERE source = x'{}' AND fence = {} RETURNING 1",
                shift.next,
                hex(&shift.state),
                note.unwrap_or_default(),
                hex(&shift.source),
                shift.fence,
            );
        }
        Ok(sqlx::raw_sql(AssertSqlSafe(text)).fetch_all(conn).await?.len() as u64)
    }

    fn is_unguarded(&self, error: &Error) -> bool {
        error.as_database_error().is_some_and(|error| error.message().starts_with("no such savepoint"))
    }
}

#[cfg(test)]
mod tests {
    use sqlx::sqlite::{SqliteConnectOptions, SqlitePoolOptions};

    use super::super::contract;
    use crate::store::sqlite::Sqlite;

    #[tokio::test]
    async fn windows_are_kept() {
        let options = SqliteConnectOptions::new().in_memory(true);
        let pool = SqlitePoolOptions::new().max_connections(1).connect_with(options).await.unwrap();
        contract::holds(Sqlite, pool, "windows").await;
    }
}
