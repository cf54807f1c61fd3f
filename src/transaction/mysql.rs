//! Transactions and windows in MySQL and MariaDB.

use std::fmt::Write as _;

use sqlx::mysql::{MySqlArguments, MySqlConnection, MySqlDatabaseError};
use sqlx::{Arguments, AssertSqlSafe, Error, SqlSafeStr};
use sqlx_core::transaction::TransactionManager;

use super::dialect::{Beginning, Manager, NEVER, Row, Shift, Source, Transact, hex};
use crate::store::mysql::{Mysql, OWNER};
use crate::store::sql::{Dialect, Field, Kind, TableName, owner_bits};

/// Rows of a statement that may meet several windows. Sizes are powers of two, so that few statements are kept prepared.
const SHIFT: &[Field] =
    &[("k", Kind::Digest), ("f", Kind::Int), ("n", Kind::Int), ("s", Kind::Blob), ("m", Kind::Blob)];
const KEYS: &[Field] = &[("k", Kind::Digest)];

fn quoted(table: &TableName) -> String {
    table.quoted(Mysql::QUOTE)
}

/// Sources for `VALUES`, each with the same other columns.
fn made(table: &TableName, sources: &[Source], fence: i64, clock: &str) -> Result<(String, MySqlArguments), Error> {
    let tuple = format!("(?, {fence}, {NEVER}, '', {clock})");
    let tuples = vec![tuple; sources.len()].join(", ");
    let mut arguments = MySqlArguments::default();
    sources.iter().try_for_each(|source| arguments.add(source.as_slice())).map_err(Error::Encode)?;
    Ok((format!("INSERT INTO {} (source, fence, next, state, time) VALUES {tuples}", quoted(table)), arguments))
}

impl Transact for Mysql {
    /// Four things are set for as long as the transaction lasts, in one round trip:
    ///
    /// - how long a statement waits, for rows (whole seconds are all there is) and for tables;
    /// - `autocommit = 0`. A deadlock rolls back the *whole* transaction (1213). Were autocommit on, whatever a handler that overlooks it
    ///   writes next would be committed statement by statement, without our rows. So it goes into another transaction, which is rolled back
    ///   when the savepoint turns out to be gone;
    /// - `completion_type = 0`. `CHAIN` would begin another transaction at each commit, which refuses to be told its isolation (1568), and `RELEASE`
    ///   would close the connection. Where somebody's commit, or a handler, has left such a transaction open, it is ended first;
    /// - `READ COMMITTED`. By default an insert that meets a duplicate locks the gap before it too: batches of random keys then stand in each
    ///   other's gaps, and may deadlock. And a snapshot of the whole batch would show its last message what was true before its first.
    async fn begin(&self, conn: &mut MySqlConnection, how: Beginning) -> Result<(), Error> {
        let seconds = how.patience.as_millis().div_ceil(1000).clamp(1, 1_000_000);
        let owner = how.owner.map(|owner| format!("SET {OWNER} = {}; ", owner_bits(owner))).unwrap_or_default();
        let set = match how.again {
            true => String::new(),
            false => format!(
                "SET @hapax_row_wait = @@SESSION.innodb_lock_wait_timeout, @hapax_wait = @@SESSION.lock_wait_timeout, \
                 @hapax_autocommit = @@SESSION.autocommit, @hapax_completion = @@SESSION.completion_type, \
                 SESSION innodb_lock_wait_timeout = LEAST(@@SESSION.innodb_lock_wait_timeout, {seconds}), \
                 SESSION lock_wait_timeout = LEAST(@@SESSION.lock_wait_timeout, {seconds}), \
                 SESSION completion_type = 0, SESSION autocommit = 0; "
            ),
        };
        let guard = how.guard();
        let text = format!(
            "{set}{owner}ROLLBACK AND NO CHAIN NO RELEASE; SET TRANSACTION ISOLATION LEVEL READ COMMITTED; START TRANSACTION{guard}"
        );
        Manager::<Self>::begin(conn, Some(AssertSqlSafe(text).into_sql_str())).await
    }

    async fn restore(&self, conn: &mut MySqlConnection) -> Result<(), Error> {
        // Turning autocommit on commits what is open: nothing may be.
        if Manager::<Self>::get_transaction_depth(conn) > 0 {
            return Err(Error::Protocol("a transaction is still open".into()));
        }
        let text = "SET SESSION innodb_lock_wait_timeout = @hapax_row_wait, SESSION lock_wait_timeout = @hapax_wait, \
                    SESSION completion_type = @hapax_completion, SESSION autocommit = @hapax_autocommit";
        sqlx::raw_sql(text).execute(conn).await.map(drop)
    }

    async fn plain(&self, conn: &mut MySqlConnection, text: &'static str) -> Result<(), Error> {
        sqlx::raw_sql(text).execute(conn).await.map(drop)
    }

    async fn raise(
        &self,
        conn: &mut MySqlConnection,
        table: &TableName,
        sources: &[Source],
    ) -> Result<Vec<Row>, Error> {
        if sources.is_empty() {
            return Ok(Vec::new());
        }
        let clock = self.clock();
        let (insert, arguments) = made(table, sources, 1, &clock)?;
        let text = format!("{insert} ON DUPLICATE KEY UPDATE fence = fence + 1, time = {clock}");
        sqlx::query_with(AssertSqlSafe(text), arguments).persistent(false).execute(&mut *conn).await?;
        self.load(conn, table, sources).await
    }

    async fn plant(&self, conn: &mut MySqlConnection, table: &TableName, sources: &[Source]) -> Result<(), Error> {
        if sources.is_empty() {
            return Ok(());
        }
        // Not INSERT IGNORE: it locks what stands in shared mode, and two that then lock the row for themselves deadlock.
        let (insert, arguments) = made(table, sources, 0, &self.clock())?;
        let text = format!("{insert} ON DUPLICATE KEY UPDATE fence = fence");
        sqlx::query_with(AssertSqlSafe(text), arguments).persistent(false).execute(conn).await.map(drop)
    }

    async fn load(&self, conn: &mut MySqlConnection, table: &TableName, sources: &[Source]) -> Result<Vec<Row>, Error> {
        if sources.is_empty() {
            return Ok(Vec::new());
        }
        let size = sources.len().next_power_of_two();
        // Joined from the keys on, one look-up each and in their order: a scan of a small table would wait for rows of others.
        let text = format!(
            "SELECT w.source, w.fence, w.next, w.state, w.note FROM {} AS u STRAIGHT_JOIN {} AS w ON w.source = u.k FOR UPDATE",
            Self::source(KEYS, 1, size),
            quoted(table),
        );
        let mut arguments = MySqlArguments::default();
        (0..size).try_for_each(|at| arguments.add(sources.get(at).map(<[u8; 16]>::as_slice))).map_err(Error::Encode)?;
        let rows = sqlx::query_with(AssertSqlSafe(text), arguments).fetch_all(conn).await?;
        rows.iter().map(Row::read).collect()
    }

    async fn shift(&self, conn: &mut MySqlConnection, table: &TableName, shifts: &[Shift]) -> Result<u64, Error> {
        let (table, clock) = (quoted(table), self.clock());
        let mut arguments = MySqlArguments::default();
        // sqlx asks for *found* rows: a row that is written as it was counts.
        let text = match shifts {
            [] => return Ok(0),
            [shift] => {
                let mut add = || {
                    arguments.add(shift.next)?;
                    arguments.add(shift.state.as_slice())?;
                    arguments.add(shift.note.as_deref())?;
                    arguments.add(shift.source.as_slice())?;
                    arguments.add(shift.fence)
                };
                add().map_err(Error::Encode)?;
                format!(
                    "UPDATE {table} SET next = ?, state = ?, note = COALESCE(?, note), time = {clock} \
                     WHERE source = ? AND fence = ?"
                )
            }
            shifts => {
                let size = shifts.len().next_power_of_two();
                // Rows of nulls meet nothing.
                let mut add = |shift: Option<&Shift>| {
                    arguments.add(shift.map(|shift| shift.source.as_slice()))?;
                    arguments.add(shift.map(|shift| shift.fence))?;
                    arguments.add(shift.map(|shift| shift.next))?;
                    arguments.add(shift.map(|shift| shift.state.as_slice()))?;
                    arguments.add(shift.and_then(|shift| shift.note.as_deref()))
                };
                (0..size).try_for_each(|at| add(shifts.get(at))).map_err(Error::Encode)?;
                format!(
                    "UPDATE {} AS u STRAIGHT_JOIN {table} AS w ON w.source = u.k AND w.fence = u.f \
                     SET w.next = u.n, w.state = u.s, w.note = COALESCE(u.m, w.note), w.time = {clock}",
                    Self::source(SHIFT, 1, size),
                )
            }
        };
        Ok(sqlx::query_with(AssertSqlSafe(text), arguments).execute(conn).await?.rows_affected())
    }

    async fn release_and_shift(
        &self,
        conn: &mut MySqlConnection,
        table: &TableName,
        shifts: &[Shift],
    ) -> Result<u64, Error> {
        let (table, clock) = (quoted(table), self.clock());
        let mut text = "RELEASE SAVEPOINT hapax_batch".to_owned();
        for shift in shifts {
            let note = shift.note.as_ref().map(|note| format!(", note = x'{}'", hex(note)));
            let _ = write!(
                text,
                "; UPDATE {table} SET next = {}, state = x'{}'{}, time = {clock} WHERE source = x'{}' AND fence = {}",
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
        let error = error.as_database_error().and_then(|error| error.try_downcast_ref::<MySqlDatabaseError>());
        // No such savepoint.
        error.is_some_and(|error| error.number() == 1305)
    }
}
