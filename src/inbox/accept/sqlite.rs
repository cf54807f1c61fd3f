//! Taking messages in, in SQLite.

use sqlx::error::DatabaseError;
use sqlx::sqlite::{SqliteArguments, SqliteConnection};
use sqlx::{Arguments, AssertSqlSafe, Error, Row as _};

use super::blame;
use super::dialect::{LOOK, ROWS, Row, Sql, Stands, by_question_marks, inserted, parts, stands, tuples};
use crate::inbox::tables::Tables;
use crate::record::Origin;
use crate::store::sqlite::Sqlite;
use crate::transaction::Transact;

impl Sql for Sqlite {
    // SQLITE_MAX_LENGTH, of a value and of a row, unless it was built with less.
    const TAKES: usize = 1_000_000_000;

    fn is_own(error: &dyn DatabaseError) -> bool {
        error.code().and_then(|code| code.parse().ok()).is_some_and(blame::sqlite)
    }

    by_question_marks!(SqliteConnection, SqliteArguments, "INSERT", " ON CONFLICT (message_key) DO NOTHING");
}
