//! The queue in MySQL and MariaDB.

use std::fmt::Write as _;
use std::sync::atomic::{AtomicBool, Ordering};

use sqlx::mysql::{MySqlConnection, MySqlDatabaseError, MySqlRow};
use sqlx::{AssertSqlSafe, Error, Row as _};

use super::dialect::{OFFERED, Offered, Place, Sql, among, asked, contents, hex, numbers};
use crate::inbox::message::{COLUMNS, Content};
use crate::inbox::tables::Tables;
use crate::store::mysql::Mysql;

/// Whether a server was met that knows no `SKIP LOCKED`: MySQL 5.7, MariaDB before 10.6. What is read without locks is written under conditions
/// all the same, so this is for the whole process: it costs others some repeated tries, and nothing else.
static OLD: AtomicBool = AtomicBool::new(false);

impl Sql for Mysql {
    const CLOCK_MS: &'static str =
        "CAST(TIMESTAMPDIFF(MICROSECOND, TIMESTAMP'1970-01-01 00:00:00', UTC_TIMESTAMP(3)) DIV 1000 AS SIGNED)";
    const INSERT_NEW: (&'static str, &'static str) = ("INSERT IGNORE", "");
    const KEEP_LATEST: &'static str = " ON DUPLICATE KEY UPDATE run = VALUES(run), began = VALUES(began), ended = VALUES(ended), \
        class = VALUES(class), owner = VALUES(owner), text = VALUES(text)";

    const BY_LANE: &'static str = " FORCE INDEX (lane)";

    const LOOKS_BACK: bool = false;

    fn skip_locked(&self) -> &'static str {
        if OLD.load(Ordering::Relaxed) { "" } else { " FOR UPDATE SKIP LOCKED" }
    }

    fn cannot_skip(&self, error: &Error) -> bool {
        let number = match error {
            Error::Database(said) => {
                said.try_downcast_ref::<MySqlDatabaseError>().map_or(0, MySqlDatabaseError::number)
            }
            _ => 0,
        };
        // A syntax error.
        number == 1064 && !OLD.swap(true, Ordering::Relaxed)
    }

    fn quoted_text(text: &str) -> String {
        format!("CONVERT(x'{}' USING utf8mb4)", hex(text.as_bytes()))
    }

    fn appended(column: &str, bytes: &[u8]) -> String {
        format!("CONCAT(COALESCE({column}, ''), {})", Self::quoted_bytes(bytes))
    }

    fn row_table(names: &[&str], rows: &[Vec<i64>]) -> String {
        let mut text = String::from("(");
        for (number, row) in rows.iter().enumerate() {
            text.push_str(if number == 0 { "SELECT " } else { " UNION ALL SELECT " });
            if number > 0 {
                text.push_str(&numbers(row.iter().copied()));
                continue;
            }
            for (at, (name, value)) in names.iter().zip(row).enumerate() {
                let comma = if at == 0 { "" } else { ", " };
                // The first row says of which type they are.
                let _ = write!(text, "{comma}CAST({value} AS SIGNED) AS {name}");
            }
        }
        text.push(')');
        text
    }

    fn update_joined(open: &str, set: &str, rows: &str, on: &str) -> String {
        format!("UPDATE {rows} AS u STRAIGHT_JOIN {open} AS o ON {on} SET {set}")
    }

    fn promoting(&self, open: &str, inbox: i32, now: i64, most: usize) -> String {
        format!(
            "UPDATE {open} SET lot = 0, turn = priority WHERE inbox = {inbox} AND lot = 1 AND turn <= {now} \
             ORDER BY turn, id LIMIT {most}"
        )
    }

    asked!(MySqlConnection, MySqlRow);

    /// One after the other: MariaDB knows no lock of one table's rows alone, and messages are not a worker's to lock.
    async fn read_free(
        &self,
        conn: &mut MySqlConnection,
        tables: &Tables,
        inbox: i32,
        behind: Place,
        most: i64,
    ) -> Result<Vec<Offered>, Error> {
        let behind = match behind {
            Place::BEGINNING => String::new(),
            behind => format!(" AND {}", Self::behind(behind)),
        };
        let text = format!(
            "SELECT {OFFERED} FROM {} AS o WHERE inbox = {inbox} AND lot = 0 AND run = 0{behind} ORDER BY turn, id LIMIT {most}{}",
            tables.open,
            self.skip_locked()
        );
        let rows = sqlx::raw_sql(AssertSqlSafe(text)).fetch_all(&mut *conn).await?;
        let mut offered: Vec<[i64; 6]> = Vec::with_capacity(rows.len());
        for row in &rows {
            let mut numbers = [0; 6];
            for (at, number) in numbers.iter_mut().enumerate() {
                *number = row.try_get_unchecked(at)?;
            }
            offered.push(numbers);
        }
        let mut ids: Vec<i64> = offered.iter().map(|[_, id, ..]| *id).collect();
        if ids.is_empty() {
            return Ok(Vec::new());
        }
        ids.sort_unstable();
        let mut wide: Vec<Option<Content>> = self.read_wide(conn, tables, &ids).await?.into_iter().map(Some).collect();
        wide.sort_unstable_by_key(|wide| wide.as_ref().map(|wide| wide.id));
        let ids: Vec<i64> = wide.iter().flatten().map(|wide| wide.id.0).collect();
        let mut message = |id: i64| wide.get_mut(ids.binary_search(&id).ok()?)?.take();
        let gone = || Error::Decode("a message is gone whose row is open".into());
        offered.into_iter().map(|numbers| Ok((numbers, message(numbers[1]).ok_or_else(gone)?))).collect()
    }

    fn behind(place: Place) -> String {
        // A comparison of pairs is no range to it.
        format!("(turn = {0} AND id > {1} OR turn > {0})", place.turn, place.id)
    }

    async fn read_wide(&self, conn: &mut MySqlConnection, tables: &Tables, ids: &[i64]) -> Result<Vec<Content>, Error> {
        let mut text = format!("SELECT {COLUMNS} FROM {} AS m WHERE ", tables.messages);
        among(&mut text, ids);
        contents!(sqlx::raw_sql(AssertSqlSafe(text)).fetch_all(conn).await?)
    }
}
