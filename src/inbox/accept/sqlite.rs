//! Taking messages in, in SQLite.

use std::time::{SystemTime, UNIX_EPOCH};

use sqlx::error::DatabaseError;
use sqlx::sqlite::{SqliteArguments, SqliteConnection};
use sqlx::{Arguments, AssertSqlSafe, Error, Row as _};

use super::blame;
use super::dialect::{LOOK, ROWS, Row, Sql, Stands, by_question_marks, inserted, parts, stands, tuples};
use crate::inbox::queue::among;
use crate::inbox::tables::Tables;
use crate::record::{Origin, millis};
use crate::store::sqlite::Sqlite;

impl Sqlite {
    /// What a row says of when it was accepted, and with which value: its clock is this machine's.
    #[allow(clippy::unused_async, reason = "others ask the server")]
    async fn accepted(&self, _: &mut SqliteConnection) -> Result<(&'static str, Option<i64>), Error> {
        Ok(("?", Some(SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, millis))))
    }
}

impl Sql for Sqlite {
    // SQLITE_MAX_LENGTH, of a value and of a row, unless it was built with less.
    const TAKES: usize = 1_000_000_000;

    fn is_own(error: &dyn DatabaseError) -> bool {
        // "NOT NULL constraint failed: table.column"
        let fills = error.message().rsplit('.').next().is_some_and(blame::may_be_null);
        let code = error.code().and_then(|code| code.parse().ok());
        code.is_some_and(|code| blame::sqlite(code) && (code != 1299 || fills))
    }

    // A statement that is undone where it fails keeps a copy of each page that it changes. A batch of which one fails is rolled back as a whole.
    by_question_marks!(
        SqliteConnection,
        SqliteArguments,
        "INSERT OR FAIL",
        " ON CONFLICT (message_key) DO NOTHING",
        "INSERT OR FAIL"
    );
}
