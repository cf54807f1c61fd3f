//! What each database does in its own way to the queue.
//!
//! Statements are built as text and sent as such: what is in them are numbers, and bytes as hexadecimal digits. So each is planned for the very
//! rows it names, needs one round trip, and several go in one. Payloads are read by prepared statements.

use std::fmt::Write as _;

use sqlx::Pool;

use super::listen::Listener;
use crate::inbox::message::Content;
use crate::inbox::tables::Tables;
use crate::store::sql::Conn;
use crate::transaction::Transact;

/// A row of numbers, as it was asked for.
pub(crate) type Numbers = Vec<Option<i64>>;

/// A run as it stands in its table.
#[derive(Clone, Debug)]
pub(crate) struct RunRow {
    pub(crate) run: i64,
    pub(crate) began: i64,
    pub(crate) ended: Option<i64>,
    pub(crate) mark: i64,
    pub(crate) owner: String,
    pub(crate) taken: Vec<u8>,
    pub(crate) done: Vec<u8>,
}

/// The columns of [`RunRow`].
pub(crate) const RUN: &str = "run, began, ended, mark, owner, taken, done";

/// A free row of the ready lot, as numbers (turn, id, lane, generation, attempts, alone), and its message.
pub(crate) type Offered = ([i64; 6], Content);

/// Its numbers.
pub(crate) const OFFERED: &str = "o.turn, o.id, o.lane, o.generation, o.attempts, o.alone";

/// An edited payload: id, generation, payload.
pub(crate) type Edited = (i64, i64, Option<Vec<u8>>);

/// Statements, and how they are run. All run inside a transaction.
pub(crate) trait Sql: Transact {
    /// The clock in milliseconds, as an expression.
    const CLOCK_MS: &'static str;
    /// What a transaction of the queue's own begins with.
    const PRELUDE: &'static str = "";
    /// Behind a read: locks its rows, and waits for whoever holds them.
    const LOCK_ROWS: &'static str = " FOR UPDATE";
    /// Behind an insert: leaves alone what stands. Before it, where that is how it is said.
    const INSERT_NEW: (&'static str, &'static str) = ("INSERT", " ON CONFLICT DO NOTHING");
    /// Behind an insert of attempts: the latest counts.
    const KEEP_LATEST: &'static str = " ON CONFLICT (id, generation, attempt) DO UPDATE SET run = excluded.run, \
        began = excluded.began, ended = excluded.ended, class = excluded.class, owner = excluded.owner, text = excluded.text";

    /// Behind the table of what is open: rows are looked up by their lane, whatever the statistics say of a table that was empty a moment ago.
    const BY_LANE: &'static str = "";

    /// Whether an index is read backwards from one row's place. Otherwise all of a lane is read for each of its rows.
    const LOOKS_BACK: bool = true;

    /// Behind a read: locks its rows, and leaves out those that somebody holds. Where that is not to be had: nothing.
    fn skip_locked(&self) -> &'static str {
        " FOR UPDATE SKIP LOCKED"
    }

    /// Whether the database does not know what (Self::skip_locked) said. It is not said again.
    fn cannot_skip(&self, _error: &sqlx::Error) -> bool {
        false
    }

    /// Bytes.
    fn quoted_bytes(bytes: &[u8]) -> String {
        format!("x'{}'", hex(bytes))
    }

    /// Text, of which it is known that it holds no zero.
    fn quoted_text(text: &str) -> String;

    /// Bytes with others behind them.
    fn appended(column: &str, bytes: &[u8]) -> String;

    /// Rows of numbers as a table; of one row at least.
    fn row_table(names: &[&str], rows: &[Vec<i64>]) -> String;

    /// An update of `open AS o` by rows that are joined to it.
    fn update_joined(open: &str, set: &str, rows: &str, on: &str) -> String {
        format!("UPDATE {open} AS o SET {set} FROM {rows} AS u WHERE {on}")
    }

    /// What is due becomes ready: at most so many.
    fn promoting(&self, open: &str, inbox: i32, now: i64, most: usize) -> String {
        let skip = self.skip_locked();
        format!(
            "UPDATE {open} AS o SET lot = 0, turn = o.priority FROM (SELECT turn, id FROM {open} \
             WHERE inbox = {inbox} AND lot = 1 AND turn <= {now} ORDER BY turn, id LIMIT {most}{skip}) AS d \
             WHERE o.inbox = {inbox} AND o.lot = 1 AND o.turn = d.turn AND o.id = d.id"
        )
    }

    /// Runs statements, and says how many rows they changed, all of them together.
    fn send(&self, conn: &mut Conn<Self>, text: String) -> impl Future<Output = Result<u64, sqlx::Error>> + Send;

    /// Reads so many numbers a row.
    fn read_numbers(
        &self,
        conn: &mut Conn<Self>,
        text: String,
        columns: usize,
    ) -> impl Future<Output = Result<Vec<Numbers>, sqlx::Error>> + Send;

    /// Reads the columns [`RUN`].
    fn read_runs(
        &self,
        conn: &mut Conn<Self>,
        text: String,
    ) -> impl Future<Output = Result<Vec<RunRow>, sqlx::Error>> + Send;

    /// Reads free rows of the ready lot behind a place, in order, at most so many, with locks that others leave out; and with each its message,
    /// which is not locked.
    fn read_free(
        &self,
        conn: &mut Conn<Self>,
        tables: &Tables,
        inbox: i32,
        behind: Place,
        most: i64,
    ) -> impl Future<Output = Result<Vec<Offered>, sqlx::Error>> + Send;

    /// What stands behind a place.
    fn behind(place: Place) -> String {
        format!("(turn, id) > ({}, {})", place.turn, place.id)
    }

    /// Changes a row that is to be changed, and sets the savepoint under which handlers run. Says how many it changed.
    fn hold(&self, conn: &mut Conn<Self>, update: String) -> impl Future<Output = Result<u64, sqlx::Error>> + Send {
        async move { self.send(conn, update + "; SAVEPOINT hapax_handler").await }
    }

    /// Reads messages, in any order. Their attempt is still to be said.
    fn read_wide(
        &self,
        conn: &mut Conn<Self>,
        tables: &Tables,
        ids: &[i64],
    ) -> impl Future<Output = Result<Vec<Content>, sqlx::Error>> + Send;

    /// Reads id, generation and payload.
    fn read_edited(
        &self,
        conn: &mut Conn<Self>,
        text: String,
    ) -> impl Future<Output = Result<Vec<Edited>, sqlx::Error>> + Send;

    /// Tells those who listen, when the transaction commits.
    fn notice(_channel: &str) -> Option<String> {
        None
    }

    /// Hears [`notice`](Self::notice)s.
    fn ear(_pool: &Pool<Self::Db>, _channel: String) -> Listener {
        Listener::deaf()
    }
}

/// What [`Sql`] asks for that is written alike for each client.
macro_rules! asked {
    ($conn:ty, $row:ty) => {
        async fn send(&self, conn: &mut $conn, text: String) -> Result<u64, sqlx::Error> {
            Ok(sqlx::raw_sql(sqlx::AssertSqlSafe(text)).execute(conn).await?.rows_affected())
        }

        async fn read_numbers(
            &self,
            conn: &mut $conn,
            text: String,
            columns: usize,
        ) -> Result<Vec<$crate::inbox::queue::dialect::Numbers>, sqlx::Error> {
            use sqlx::Row as _;
            let rows = sqlx::raw_sql(sqlx::AssertSqlSafe(text)).fetch_all(conn).await?;
            rows.iter().map(|row| (0..columns).map(|at| row.try_get_unchecked(at)).collect()).collect()
        }

        async fn read_runs(
            &self,
            conn: &mut $conn,
            text: String,
        ) -> Result<Vec<$crate::inbox::queue::dialect::RunRow>, sqlx::Error> {
            use sqlx::Row as _;
            let rows = sqlx::raw_sql(sqlx::AssertSqlSafe(text)).fetch_all(conn).await?;
            let read = |row: &$row| {
                Ok($crate::inbox::queue::dialect::RunRow {
                    run: row.try_get_unchecked(0)?,
                    began: row.try_get_unchecked(1)?,
                    ended: row.try_get_unchecked(2)?,
                    mark: row.try_get_unchecked(3)?,
                    owner: row.try_get_unchecked(4)?,
                    taken: row.try_get_unchecked(5)?,
                    done: row.try_get_unchecked::<Option<Vec<u8>>, _>(6)?.unwrap_or_default(),
                })
            };
            rows.iter().map(read).collect()
        }

        async fn read_edited(
            &self,
            conn: &mut $conn,
            text: String,
        ) -> Result<Vec<crate::inbox::queue::dialect::Edited>, sqlx::Error> {
            use sqlx::Row as _;
            let rows = sqlx::raw_sql(sqlx::AssertSqlSafe(text)).fetch_all(conn).await?;
            let read =
                |row: &$row| Ok((row.try_get_unchecked(0)?, row.try_get_unchecked(1)?, row.try_get_unchecked(2)?));
            rows.iter().map(read).collect()
        }
    };
}

/// Reads rows of `COLUMNS`.
macro_rules! contents {
    ($rows:expr) => {{
        let mut topic = std::sync::Arc::from("");
        $rows.iter().map(|row| $crate::inbox::message::Content::read(row, 0, &mut topic)).collect()
    }};
}

pub(super) use {asked, contents};

pub(super) use crate::transaction::hex;

/// Asks for columns of free rows behind a place, called `o`, and of their messages, called `m`; at most so many: the place's two numbers and that one
/// are to be bound here.
#[cfg(any(feature = "postgres", feature = "sqlite"))]
pub(super) fn free(tables: &Tables, inbox: i32, columns: &str, [turn, id, most]: [&str; 3]) -> String {
    format!(
        "SELECT {columns} FROM {} AS o LEFT JOIN {} AS m ON m.id = o.id WHERE o.inbox = {inbox} AND o.lot = 0 AND o.run = 0 \
         AND (o.turn, o.id) > ({turn}, {id}) ORDER BY o.turn, o.id LIMIT {most}",
        tables.open, tables.messages
    )
}

/// `(1, 2), (3, 4)`
pub(super) fn tuples(rows: &[Vec<i64>]) -> String {
    let mut text = String::new();
    for (number, row) in rows.iter().enumerate() {
        text.push_str(if number == 0 { "(" } else { ", (" });
        text.push_str(&numbers(row.iter().copied()));
        text.push(')');
    }
    text
}

/// `1, 2, 3`
pub(super) fn numbers(all: impl Iterator<Item = i64>) -> String {
    let mut text = String::new();
    for (number, one) in all.enumerate() {
        let _ = write!(text, "{}{one}", if number == 0 { "" } else { "," });
    }
    text
}

/// Where a row of a lot stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Place {
    pub(crate) turn: i64,
    pub(crate) id: i64,
}

impl Place {
    /// Before all rows. Its numbers can be written with their signs in every database.
    pub(crate) const BEGINNING: Self = Self { turn: -i64::MAX, id: -i64::MAX };
}

/// Ranges up to this number are named one by one.
const RANGES: usize = 16;

/// A condition on turn and id that meets these rows alone. Where they stand side by side, as they do in a queue, it names ranges, so that
/// it is short and there is but one good way to find them.
pub(super) fn which(places: &[Place]) -> String {
    let mut places = places.to_vec();
    places.sort_unstable();
    places.dedup();
    let (Some(low), Some(high)) = (places.first(), places.last()) else { return "1 = 0".into() };
    // An index is read by one range: this one. What follows only picks.
    let mut text =
        format!("((turn, id) >= ({}, {}) AND (turn, id) <= ({}, {}) AND (", low.turn, low.id, high.turn, high.id);
    for (number, turn) in places.chunk_by(|a, b| a.turn == b.turn).enumerate() {
        let or = if number == 0 { "" } else { " OR " };
        let [first, ..] = turn else { continue };
        let _ = write!(text, "{or}(turn = {} AND ", first.turn);
        among(&mut text, &turn.iter().map(|place| place.id).collect::<Vec<_>>());
        text.push(')');
    }
    text.push_str("))");
    text
}

/// The same for ascending ids.
pub(crate) fn among(text: &mut String, ids: &[i64]) {
    let ranges: Vec<&[i64]> = ids.chunk_by(|a, b| a.checked_add(1) == Some(*b)).collect();
    if ranges.len() > RANGES {
        let _ = write!(text, "id IN ({})", numbers(ids.iter().copied()));
        return;
    }
    text.push('(');
    for (number, range) in ranges.iter().enumerate() {
        let ([first, ..], [.., last]) = (range, range) else { continue };
        let or = if number == 0 { "" } else { " OR " };
        let _ = write!(text, "{or}id BETWEEN {first} AND {last}");
    }
    text.push(')');
}

#[cfg(test)]
mod tests {
    use super::{Place, which};

    #[test]
    fn rows_side_by_side_are_a_range() {
        let place = |turn, id| Place { turn, id };
        assert_eq!(
            which(&[place(1, 3), place(1, 2), place(1, 4)]),
            "((turn, id) >= (1, 2) AND (turn, id) <= (1, 4) AND ((turn = 1 AND (id BETWEEN 2 AND 4))))"
        );
        assert_eq!(
            which(&[place(1, 3), place(0, 9), place(1, 5)]),
            "((turn, id) >= (0, 9) AND (turn, id) <= (1, 5) AND \
             ((turn = 0 AND (id BETWEEN 9 AND 9)) OR (turn = 1 AND (id BETWEEN 3 AND 3 OR id BETWEEN 5 AND 5))))"
        );
        let sparse: Vec<Place> = (0..17).map(|n| place(7, n * 2)).collect();
        assert!(which(&sparse).contains(" AND ((turn = 7 AND id IN (0,2,4,"));
        assert_eq!(which(&[]), "1 = 0");
    }
}
