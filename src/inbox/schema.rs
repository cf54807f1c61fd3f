//! Making the inbox's tables, bringing old ones up to date, and refusing what is newer.

use std::future::Future;

use sqlx::{AssertSqlSafe, Pool};

use super::accept;
use super::tables::{PREFIX, Tables, VERSIONS};
use crate::store::sql::{Conn, Dialect, Engine, Fault, Marker, TableName};
use crate::store::{Report, StoreError};
use crate::transaction::sealed::Sealed;
use crate::transaction::{Transact, sorted};

/// The version of the tables that this crate writes and reads.
pub(crate) const VERSION: i64 = 2;

const OPERATION: &str = "make the inbox's tables";

/// What each database does in its own way to its tables.
pub(crate) trait Sql: Transact {
    /// The files that make each version from the one before, in order.
    const FILES: [&'static str; VERSION as usize];
    /// Whether an index is named with its schema and its table without, instead of the other way round.
    const INDEX_HAS_SCHEMA: bool;

    /// The type of 64-bit numbers, in a `CAST`.
    const BIG: &'static str;

    /// The first and the last words of an insert that leaves alone what stands.
    const UNLESS_THERE: (&'static str, &'static str);

    /// Bytes as text: the placeholder of a value by its number.
    fn text(number: usize) -> String;

    /// Counts indexes over this column of a table alone that let no two rows share it, whatever they hold. The table is named twice: quoted, and by
    /// its schema and itself.
    fn unique(quoted: &str, name: &TableName, column: &str) -> String;

    /// Counts columns of this name that hold bytes, and compare them as bytes.
    fn binary(quoted: &str, name: &TableName, column: &str) -> String;

    /// Whole 64-bit numbers: the first column of each row. Values are bytes, in the order of their placeholders.
    fn numbers(
        &self,
        conn: &mut Conn<Self>,
        text: String,
        values: &[&[u8]],
    ) -> impl Future<Output = Result<Vec<i64>, sqlx::Error>> + Send;

    /// Runs a statement; says how many rows it changed.
    fn execute_with(
        &self,
        conn: &mut Conn<Self>,
        text: String,
        values: &[&[u8]],
    ) -> impl Future<Output = Result<u64, sqlx::Error>> + Send;
}

macro_rules! schema {
    ($dialect:ty, $db:ident, $conn:ty, $folder:literal, $index:literal, $big:literal, $text:literal, $unless:expr, $unique:expr, $binary:expr) => {
        impl Sql for $dialect {
            const FILES: [&'static str; VERSION as usize] = [
                include_str!(concat!("../../migrations/", $folder, "/0003_inbox.sql")),
                include_str!(concat!("../../migrations/", $folder, "/0004_inbox_operators.sql")),
            ];
            const INDEX_HAS_SCHEMA: bool = $index;
            const BIG: &'static str = $big;
            const UNLESS_THERE: (&'static str, &'static str) = $unless;

            fn text(number: usize) -> String {
                format!($text, number)
            }

            fn unique(quoted: &str, name: &TableName, column: &str) -> String {
                let text: fn(&str, &TableName, &str) -> String = $unique;
                text(quoted, name, column)
            }

            fn binary(quoted: &str, name: &TableName, column: &str) -> String {
                let text: fn(&str, &TableName, &str) -> String = $binary;
                text(quoted, name, column)
            }

            async fn numbers(&self, conn: &mut $conn, text: String, values: &[&[u8]]) -> Result<Vec<i64>, sqlx::Error> {
                let query = sqlx::query_scalar::<sqlx::$db, i64>(AssertSqlSafe(text)).persistent(false);
                let query = values.iter().fold(query, |query, value| query.bind(value.to_vec()));
                query.fetch_all(conn).await
            }

            async fn execute_with(&self, conn: &mut $conn, text: String, values: &[&[u8]]) -> Result<u64, sqlx::Error> {
                let query = sqlx::query::<sqlx::$db>(AssertSqlSafe(text)).persistent(false);
                let query = values.iter().fold(query, |query, value| query.bind(value.to_vec()));
                Ok(query.execute(conn).await?.rows_affected())
            }
        }
    };
}

#[cfg(feature = "postgres")]
schema!(
    crate::store::postgres::Postgres,
    Postgres,
    sqlx::PgConnection,
    "postgres",
    false,
    "bigint",
    "convert_from(${}, 'UTF8')",
    ("INSERT", " ON CONFLICT DO NOTHING"),
    |quoted, _, column| format!(
        "SELECT count(*) FROM pg_index AS i JOIN pg_attribute AS a ON a.attrelid = i.indrelid AND a.attnum = i.indkey[0] \
         WHERE i.indrelid = to_regclass('{quoted}') AND i.indisunique AND i.indisvalid AND i.indimmediate AND i.indpred IS NULL \
         AND i.indnkeyatts = 1 AND a.attname = '{column}'"
    ),
    |quoted, _, column| format!(
        "SELECT count(*) FROM pg_attribute WHERE attrelid = to_regclass('{quoted}') AND attname = '{column}' \
         AND NOT attisdropped AND atttypid = 'bytea'::regtype"
    )
);
#[cfg(feature = "mysql")]
schema!(
    crate::store::mysql::Mysql,
    MySql,
    sqlx::MySqlConnection,
    "mysql",
    false,
    "SIGNED",
    "CONVERT(? USING utf8mb4) /* {} */",
    ("INSERT IGNORE", ""),
    |_, name, column| format!(
        "SELECT CAST(COUNT(*) AS SIGNED) FROM (SELECT index_name FROM information_schema.statistics WHERE table_schema = {} AND table_name = '{}' \
         AND non_unique = 0 GROUP BY index_name HAVING COUNT(*) = 1 AND MAX(column_name) = '{column}' AND MAX(sub_part) IS NULL) AS i",
        name.schema().map_or_else(|| "DATABASE()".to_owned(), |schema| format!("'{schema}'")),
        name.table(),
    ),
    |_, name, column| format!(
        "SELECT CAST(COUNT(*) AS SIGNED) FROM information_schema.columns WHERE table_schema = {} AND table_name = '{}' \
         AND column_name = '{column}' AND data_type IN ('binary', 'varbinary')",
        name.schema().map_or_else(|| "DATABASE()".to_owned(), |schema| format!("'{schema}'")),
        name.table(),
    )
);
#[cfg(feature = "sqlite")]
schema!(
    crate::store::sqlite::Sqlite,
    Sqlite,
    sqlx::SqliteConnection,
    "sqlite",
    true,
    "INTEGER",
    "CAST(?{} AS TEXT)",
    ("INSERT", " ON CONFLICT DO NOTHING"),
    // A rowid table's own number has no index.
    |_, name, column| format!(
        "SELECT (SELECT COUNT(*) FROM pragma_index_list('{t}', '{s}') AS l WHERE l.\"unique\" = 1 AND l.partial = 0 \
         AND (SELECT group_concat(i.name) FROM pragma_index_info(l.name, '{s}') AS i) = '{column}') \
         + (SELECT COUNT(*) FROM pragma_table_info('{t}', '{s}') AS c WHERE c.pk = 1 AND c.name = '{column}' \
            AND (SELECT MAX(o.pk) FROM pragma_table_info('{t}', '{s}') AS o) = 1)",
        t = name.table(),
        s = name.schema().unwrap_or("main"),
    ),
    |_, name, column| format!(
        "SELECT COUNT(*) FROM pragma_table_info('{}', '{}') WHERE name = '{column}' AND upper(type) = 'BLOB'",
        name.table(),
        name.schema().unwrap_or("main"),
    )
);

/// A file with the names that are wanted in it.
fn named<D: Sql>(file: &str, tables: &Tables) -> String {
    let quote = D::QUOTE;
    let (plain, whole) = (TableName::plain(tables.prefix.table()), &tables.prefix);
    // Both without their closing quote: what follows is the rest of a name.
    let open = |name: &TableName| name.quoted(quote).trim_end_matches(quote).to_owned();
    let (index, on) = if D::INDEX_HAS_SCHEMA { (whole, &plain) } else { (&plain, whole) };
    let name = format!("{quote}{PREFIX}");
    let (index, on, whole) = (open(index), open(on), open(whole));
    let mut text = String::with_capacity(file.len() + 512);
    for line in file.split_inclusive('\n') {
        let line = match line.strip_prefix("CREATE INDEX IF NOT EXISTS ").and_then(|line| line.split_once(" ON ")) {
            Some((named, rest)) => {
                format!("CREATE INDEX IF NOT EXISTS {} ON {}", named.replace(&name, &index), rest.replace(&name, &on))
            }
            None => line.replace(&name, &whole),
        };
        text.push_str(&line);
    }
    text.replace(&format!("{quote}{VERSIONS}{quote}"), &tables.versions)
        .replace(&format!("'{PREFIX}'"), &format!("'{}'", tables.prefix.table()))
}

/// Makes the tables where they are missing, and brings old ones up to date; refuses newer ones. Safe when several do so at once.
pub(crate) async fn ensure<DB: Sealed>(
    engine: &Engine<DB::Dialect>,
    pool: &Pool<DB>,
    tables: &Tables,
) -> Result<(), StoreError> {
    let mut found = version::<DB>(engine, pool, tables).await?.unwrap_or(0);
    // Each file is run once, or once more by another process, which changes nothing.
    while let Some(file) = usize::try_from(found).ok().and_then(|at| DB::Dialect::FILES.get(at)) {
        engine.script(&named::<DB::Dialect>(file, tables)).await?;
        let now = version::<DB>(engine, pool, tables).await?.unwrap_or(0);
        if now <= found {
            let text = format!("the file that makes version {} of the tables {} did not.", found + 1, tables.prefix);
            return Err(StoreError::corrupt(DB::Dialect::NAME, OPERATION, text));
        }
        tracing::info!(tables = %tables.prefix, version = now, "made the inbox's tables");
        found = now;
    }
    match judge(Some(found), tables) {
        None => Ok(()),
        Some((problem, cure)) => Err(StoreError::refused(DB::Dialect::NAME, OPERATION, format!("{problem} {cure}"))),
    }
}

/// What is wrong with the version of the tables, and the cure.
pub(crate) fn judge(found: Option<i64>, tables: &Tables) -> Option<(String, &'static str)> {
    let prefix = &tables.prefix;
    match found {
        Some(VERSION) => None,
        None | Some(..=0) => Some((
            format!("the tables {prefix} are missing."),
            "Let build() make them, or run the files 0003 and 0004 in migrations/.",
        )),
        Some(older @ ..VERSION) => Some((
            format!("the tables {prefix} have version {older}, and this version of hapax needs {VERSION}."),
            "Let build() bring them up to date, or run the newer files in migrations/.",
        )),
        Some(newer) => Some((
            format!("the tables {prefix} have version {newer}, and this version of hapax knows {VERSION}."),
            "Use the version of hapax that made them, or a newer one.",
        )),
    }
}

/// The version that the tables have; `None` if there are none.
pub(crate) async fn version<DB: Sealed>(
    engine: &Engine<DB::Dialect>,
    pool: &Pool<DB>,
    tables: &Tables,
) -> Result<Option<i64>, StoreError> {
    if engine.marker(&tables.prefix.beside(VERSIONS)).await? == Marker::Absent {
        return Ok(None);
    }
    let fault = |error: &sqlx::Error| sorted::<DB::Dialect>(error).error(DB::Dialect::NAME, OPERATION);
    let part = tables.prefix.table();
    let big = DB::Dialect::BIG;
    let text = format!("SELECT CAST(version AS {big}) FROM {} WHERE part = '{part}'", tables.versions);
    let mut conn = pool.acquire().await.map_err(|error| fault(&error))?;
    let found = DB::DIALECT.numbers(&mut conn, text, &[]).await.map_err(|error| fault(&error))?;
    Ok(found.first().copied())
}

/// What each table must have: the columns that are read and written.
const COLUMNS: [(&str, &str); 7] = [
    ("_handlers", "inbox, next_id, time, paused, scope_key, consumer_group, handler"),
    (
        "",
        "id, lane, log_offset, accepted, stamp, not_before, inbox, part, generation, priority, form, message_key, fingerprint, topic, \
         record_key, headers, payload",
    ),
    ("_open", "id, lane, turn, run, inbox, generation, attempts, lot, priority, alone"),
    ("_runs", "run, began, lease, ended, low, high, inbox, messages, mark, level, owner, taken, done"),
    ("_attempts", "id, run, began, ended, inbox, generation, attempt, class, owner, text"),
    ("_edits", "id, time, inbox, generation, who, why, payload"),
    ("_acts", "act, id, time, inbox, what, who, why, request, detail"),
];

/// Columns that no two rows may share, and what happens where two do; all but the ids are digests.
const UNIQUE: [(&str, &str, &str); 3] = [
    ("", "message_key", "one message could be accepted twice"),
    ("", "id", "two messages could have one id"),
    ("_handlers", "scope_key", "one scope could have two inboxes"),
];

const REMAKE: &str = "Make the tables with build() or the files in migrations/.";

/// Looks for what is wrong with the tables.
pub(crate) async fn examine<DB: Sealed>(pool: &Pool<DB>, tables: &Tables) -> Result<Report, StoreError> {
    const OPERATION: &str = "check the inbox's tables";
    let fault = |error: &sqlx::Error| sorted::<DB::Dialect>(error);
    let failed = |fault: Fault| fault.error(DB::Dialect::NAME, OPERATION);
    let mut report = Report::new();
    let mut conn = pool.acquire().await.map_err(|error| failed(fault(&error)))?;
    for (end, columns) in COLUMNS {
        let name = tables.prefix.with_end(end);
        let text = format!("SELECT {columns} FROM {} WHERE 1 = 0", name.quoted(DB::Dialect::QUOTE));
        match DB::DIALECT.execute_with(&mut conn, text, &[]).await.map_err(|error| fault(&error)) {
            Ok(_) => {}
            Err(Fault::Refused(said)) => {
                report.error("columns", format!("the table {name} is not as it should be: {said}"), REMAKE);
            }
            Err(fault) => return Err(failed(fault)),
        }
    }
    let messages = tables.prefix.with_end("");
    if let Some(text) = <DB::Dialect as accept::Sql>::roomy(&messages) {
        let found = DB::DIALECT.numbers(&mut conn, text, &[]).await.map_err(|error| failed(fault(&error)))?;
        if found.first().is_none_or(|count| *count < 3) {
            let problem = format!(
                "record_key, headers and payload of {messages} are not all LONGBLOB: longer values would be cut without a word."
            );
            report.error("columns", problem, REMAKE);
        }
    }
    for (end, column, danger) in UNIQUE {
        let name = tables.prefix.with_end(end);
        let quoted = name.quoted(DB::Dialect::QUOTE);
        let unique = DB::Dialect::unique(&quoted, &name, column);
        let found = DB::DIALECT.numbers(&mut conn, unique, &[]).await.map_err(|error| failed(fault(&error)))?;
        if found.first().is_none_or(|count| *count == 0) {
            let problem = format!("no unique index stands on {column} of {name} alone: {danger}.");
            report.error("unique_index", problem, REMAKE);
        }
        if column == "id" {
            continue;
        }
        let binary = DB::Dialect::binary(&quoted, &name, column);
        let found = DB::DIALECT.numbers(&mut conn, binary, &[]).await.map_err(|error| failed(fault(&error)))?;
        if found.first().is_none_or(|count| *count == 0) {
            let problem = format!(
                "column {column} of {name} does not hold bytes: digests that differ could be taken for the same."
            );
            report.error("columns", problem, REMAKE);
        }
    }
    Ok(report)
}
