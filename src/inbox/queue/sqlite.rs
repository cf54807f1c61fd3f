//! The queue in SQLite. One transaction writes at a time: that is lock enough.

use sqlx::sqlite::{SqliteConnection, SqliteRow};
use sqlx::{AssertSqlSafe, Error};

use super::dialect::{Sql, among, asked, hex, tuples};
use crate::inbox::message::{COLUMNS, Content};
use crate::inbox::tables::Tables;
use crate::store::sqlite::Sqlite;

impl Sql for Sqlite {
    const CLOCK_MS: &'static str = "CAST(unixepoch('subsec') * 1000 AS INTEGER)";
    const LOCK_ROWS: &'static str = "";

    fn skip_locked(&self) -> &'static str {
        ""
    }

    fn quoted_text(text: &str) -> String {
        format!("CAST(x'{}' AS TEXT)", hex(text.as_bytes()))
    }

    fn appended(column: &str, bytes: &[u8]) -> String {
        // What is joined counts as text, whatever its bytes are.
        format!("CAST(coalesce({column}, x'') || {} AS BLOB)", Self::quoted_bytes(bytes))
    }

    fn row_table(names: &[&str], rows: &[Vec<i64>]) -> String {
        let named: Vec<String> =
            names.iter().enumerate().map(|(at, name)| format!("column{} AS {name}", at + 1)).collect();
        format!("(SELECT {} FROM (VALUES {}))", named.join(", "), tuples(rows))
    }

    asked!(SqliteConnection, SqliteRow);

    async fn read_wide(
        &self,
        conn: &mut SqliteConnection,
        tables: &Tables,
        ids: &[i64],
    ) -> Result<Vec<Content>, Error> {
        let mut text = format!("SELECT {COLUMNS} FROM {} WHERE ", tables.messages);
        among(&mut text, ids);
        let rows = sqlx::raw_sql(AssertSqlSafe(text)).fetch_all(conn).await?;
        rows.iter().map(|row| Content::read(row, 0, 0)).collect()
    }
}
