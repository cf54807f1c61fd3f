//! Settings of a SQLite database that break promises.

use sqlx::sqlite::SqliteConnection;
use sqlx::{AssertSqlSafe, Error, Row};

use crate::store::Report;
use crate::store::sql::{Layout, TableName};

const REMAKE: &str = "Make the table with ensure_schema() or the file in migrations/.";

pub(super) async fn inspect(
    conn: &mut SqliteConnection,
    layout: Layout,
    table: &TableName,
    report: &mut Report,
) -> Result<(), Error> {
    columns(conn, layout, table, report).await?;
    unique(conn, layout, table, report).await
}

pub(super) async fn settings(conn: &mut SqliteConnection, table: &TableName, report: &mut Report) -> Result<(), Error> {
    let schema = table.schema().unwrap_or("main");
    let synchronous: i64 = pragma(conn, &format!("\"{schema}\".synchronous")).await?.try_get(0)?;
    if synchronous == 0 {
        report.error(
            "synchronous",
            "it is OFF: a power cut may destroy the database.",
            "Set it to NORMAL, or to FULL where power may fail and an effect may not repeat.",
        );
    }
    let journal: String = pragma(conn, &format!("\"{schema}\".journal_mode")).await?.try_get(0)?;
    match journal.to_ascii_lowercase().as_str() {
        "wal" => {}
        "off" => report.error(
            "journal_mode",
            "it is OFF: a crash in the middle of a write destroys the database.",
            "Set it to WAL.",
        ),
        "memory" => {
            let file: String = sqlx::query_scalar(AssertSqlSafe(
                "SELECT coalesce(file, '') FROM pragma_database_list WHERE name = ?1".to_owned(),
            ))
            .bind(schema.to_owned())
            .fetch_optional(&mut *conn)
            .await?
            .unwrap_or_default();
            if file.is_empty() {
                report.warning(
                    "memory",
                    "the database lives in memory: a restart handles everything again (L0).",
                    "Open a file where that matters.",
                );
            } else {
                report.error(
                    "journal_mode",
                    "it is MEMORY: a crash in the middle of a write destroys the database.",
                    "Set it to WAL.",
                );
            }
        }
        other => report.warning(
            "journal_mode",
            format!("it is {other}: readers and the writer wait for each other."),
            "Set it to WAL.",
        ),
    }
    let busy: i64 = pragma(conn, "busy_timeout").await?.try_get(0)?;
    if busy == 0 {
        report.warning(
            "busy_timeout",
            "it is 0: every statement that meets another writer fails at once.",
            "Set it to a second or more.",
        );
    }
    let read_only: i64 = pragma(conn, "query_only").await?.try_get(0)?;
    if read_only != 0 {
        report.error("query_only", "it is on: nothing can be claimed.", "Set it off.");
    }
    Ok(())
}

/// Name and type.
const fn wanted(layout: Layout) -> &'static [(&'static str, &'static str)] {
    match layout {
        Layout::Records => &[
            ("message_key", "BLOB"),
            ("fingerprint", "BLOB"),
            ("state", "INTEGER"),
            ("attempts", "INTEGER"),
            ("owner", "INTEGER"),
            ("fence", "INTEGER"),
            ("time", "INTEGER"),
            ("origin", "BLOB"),
            ("result", "BLOB"),
        ],
        Layout::Windows => &[
            ("source", "BLOB"),
            ("fence", "INTEGER"),
            ("next", "INTEGER"),
            ("state", "BLOB"),
            ("note", "BLOB"),
            ("time", "INTEGER"),
        ],
    }
}

async fn columns(
    conn: &mut SqliteConnection,
    layout: Layout,
    table: &TableName,
    report: &mut Report,
) -> Result<(), Error> {
    let rows = sqlx::query("SELECT name, upper(type), \"notnull\" FROM pragma_table_info(?1, ?2)")
        .bind(table.table().to_owned())
        .bind(table.schema().unwrap_or("main").to_owned())
        .fetch_all(&mut *conn)
        .await?;
    if rows.is_empty() {
        return Ok(());
    }
    for &(name, wanted) in wanted(layout) {
        let mut found = None;
        for row in &rows {
            if row.try_get::<String, _>(0)? == name {
                found = Some(row.try_get::<String, _>(1)?);
            }
        }
        match found {
            Some(found) if found == wanted => {}
            Some(found) => {
                report.error("columns", format!("column {name} of {table} is {found}, and not {wanted}."), REMAKE);
            }
            None => report.error("columns", format!("column {name} of {table} is missing."), REMAKE),
        }
    }
    Ok(())
}

/// F44: without a unique index on the key alone, everybody's claim is granted.
async fn unique(
    conn: &mut SqliteConnection,
    layout: Layout,
    table: &TableName,
    report: &mut Report,
) -> Result<(), Error> {
    let key = layout.key();
    let found: i64 = sqlx::query_scalar(AssertSqlSafe(format!(
        "SELECT EXISTS (SELECT 1 FROM pragma_index_list(?1, ?2) AS i WHERE i.\"unique\" = 1 AND i.partial = 0 AND \
         (SELECT group_concat(coalesce(c.name, '?')) FROM pragma_index_info(i.name, ?2) AS c) = '{key}') \
         OR NOT EXISTS (SELECT 1 FROM pragma_table_info(?1, ?2))",
    )))
    .bind(table.table().to_owned())
    .bind(table.schema().unwrap_or("main").to_owned())
    .fetch_one(conn)
    .await?;
    if found == 0 {
        report.error(
            "unique_index",
            format!("no unique index stands on {key} of {table} alone: {}.", layout.danger()),
            REMAKE,
        );
    }
    Ok(())
}

async fn pragma(conn: &mut SqliteConnection, name: &str) -> Result<sqlx::sqlite::SqliteRow, Error> {
    sqlx::query(AssertSqlSafe(format!("PRAGMA {name}"))).fetch_one(conn).await
}
