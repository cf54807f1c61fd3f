//! The queue in SQLite. One transaction writes at a time: that is lock enough.

use sqlx::sqlite::{SqliteConnection, SqliteRow};
use sqlx::{AssertSqlSafe, Error};

use super::dialect::{Offered, Place, Sql, among, asked, contents, free, hex, offered, tuples};
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

    async fn hold(&self, conn: &mut SqliteConnection, update: String) -> Result<u64, Error> {
        // What is counted as changed after a savepoint is what was changed before it: so the rows are.
        let text = format!("{update} RETURNING 1; SAVEPOINT hapax_handler");
        Ok(sqlx::raw_sql(AssertSqlSafe(text)).fetch_all(conn).await?.len() as u64)
    }

    async fn read_free(
        &self,
        conn: &mut SqliteConnection,
        tables: &Tables,
        inbox: i32,
        behind: Place,
        most: i64,
    ) -> Result<Vec<Offered>, Error> {
        let text = free(tables, inbox, ["?", "?", "?"]);
        let query = sqlx::query(AssertSqlSafe(text)).bind(behind.turn).bind(behind.id).bind(most);
        offered!(query.fetch_all(conn).await?, SqliteRow)
    }

    async fn read_wide(
        &self,
        conn: &mut SqliteConnection,
        tables: &Tables,
        ids: &[i64],
    ) -> Result<Vec<Content>, Error> {
        let mut text = format!("SELECT {COLUMNS} FROM {} AS m WHERE ", tables.messages);
        among(&mut text, ids);
        contents!(sqlx::raw_sql(AssertSqlSafe(text)).fetch_all(conn).await?)
    }
}
