//! The queue in MySQL and MariaDB.

use std::fmt::Write as _;
use std::sync::atomic::{AtomicBool, Ordering};

use sqlx::mysql::{MySqlConnection, MySqlDatabaseError, MySqlRow};
use sqlx::{AssertSqlSafe, Error};

use super::dialect::{Sql, among, asked, hex, numbers};
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

    async fn read_wide(&self, conn: &mut MySqlConnection, tables: &Tables, ids: &[i64]) -> Result<Vec<Content>, Error> {
        let mut text = format!("SELECT {COLUMNS} FROM {} WHERE ", tables.messages);
        among(&mut text, ids);
        let rows = sqlx::raw_sql(AssertSqlSafe(text)).fetch_all(conn).await?;
        rows.iter().map(|row| Content::read(row, 0, 0)).collect()
    }
}
