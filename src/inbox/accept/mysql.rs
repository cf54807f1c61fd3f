//! Taking messages in, in MySQL and MariaDB.

use sqlx::error::DatabaseError;
use sqlx::mysql::{MySqlArguments, MySqlConnection, MySqlDatabaseError};
use sqlx::{Arguments, AssertSqlSafe, Error, Row as _};

use super::blame;
use super::dialect::{LOOK, ROWS, Row, Sql, Stands, by_question_marks, inserted, parts, stands, tuples};
use crate::inbox::queue::among;
use crate::inbox::tables::Tables;
use crate::record::Origin;
use crate::store::mysql::Mysql;
use crate::store::sql::TableName;
use crate::transaction::Transact;

impl Mysql {
    /// What a row says of when it was accepted.
    async fn accepted(&self, conn: &mut MySqlConnection) -> Result<(&'static str, Option<i64>), Error> {
        let text = format!("SET @hapax_now = {}", self.clock());
        sqlx::raw_sql(AssertSqlSafe(text)).execute(conn).await?;
        Ok(("@hapax_now", None))
    }
}

impl Sql for Mysql {
    // LONGBLOB takes more; a packet does not.
    const TAKES: usize = 1 << 30;
    const ASK_ROOM: Option<&'static str> = Some("SELECT CAST(@@SESSION.max_allowed_packet AS SIGNED)");
    const MORE_ROOM: &'static str = "raise the server's max_allowed_packet, or choose `Oversize::LeaveOut`";

    fn is_own(error: &dyn DatabaseError) -> bool {
        error.try_downcast_ref::<MySqlDatabaseError>().is_some_and(|error| blame::mysql(error.number()))
    }

    fn roomy(messages: &TableName) -> Option<String> {
        Some(format!(
            "SELECT CAST(COUNT(*) AS SIGNED) FROM information_schema.columns WHERE table_schema = {} AND table_name = '{}' \
             AND column_name IN ('record_key', 'headers', 'payload') AND data_type = 'longblob'",
            messages.schema().map_or_else(|| "DATABASE()".to_owned(), |schema| format!("'{schema}'")),
            messages.table(),
        ))
    }

    // `IGNORE` counts what it inserted and nothing else, whereas sqlx asks for *found* rows, which makes `ON DUPLICATE KEY UPDATE` count what
    // stood too. It passes over what it cannot insert: whatever is missing then is inserted without it, which says why.
    async fn insert_strictly(
        &self,
        conn: &mut MySqlConnection,
        tables: &Tables,
        inbox: i32,
        rows: &[&Row<'_>],
        longest: usize,
    ) -> Result<(), Error> {
        let inserted: Result<u64, Error> =
            async { inserted!(self, conn, (tables, inbox), rows, longest, MySqlArguments, ("INSERT", "")) }.await;
        inserted.map(drop)
    }

    by_question_marks!(MySqlConnection, MySqlArguments, "INSERT IGNORE", "", "INSERT");
}
