//! Settings of a PostgreSQL server and table that break promises.

use sqlx::postgres::PgConnection;
use sqlx::{AssertSqlSafe, Error, Row};

use crate::store::Report;
use crate::store::sql::Layout;

const REMAKE: &str = "Make the table with ensure_schema() or the file in migrations/.";

pub(super) async fn inspect(
    conn: &mut PgConnection,
    layout: Layout,
    table: &str,
    report: &mut Report,
) -> Result<(), Error> {
    let there: bool = sqlx::query_scalar("SELECT to_regclass($1) IS NOT NULL")
        .bind(table)
        .persistent(false)
        .fetch_one(&mut *conn)
        .await?;
    if there {
        relation(conn, layout, table, report).await?;
        columns(conn, layout, table, report).await?;
        rights(conn, layout, table, report).await?;
    }
    Ok(())
}

pub(super) async fn settings(conn: &mut PgConnection, report: &mut Report) -> Result<(), Error> {
    let row = sqlx::query(
        "SELECT pg_is_in_recovery(), current_setting('transaction_read_only'), current_setting('synchronous_commit'), \
         current_setting('fsync'), current_setting('full_page_writes'), current_setting('default_transaction_isolation'), \
         (SELECT setting::bigint FROM pg_settings WHERE name = 'statement_timeout'), \
         current_setting('synchronous_standby_names')",
    )
    .persistent(false)
    .fetch_one(conn)
    .await?;
    if row.try_get(0)? {
        report.error(
            "replica",
            "the server is a standby: it cannot be written to, and what it shows is old.",
            "Connect to the primary.",
        );
    } else if row.try_get::<String, _>(1)? == "on" {
        report.error(
            "default_transaction_read_only",
            "transactions are read-only: nothing can be claimed.",
            "Set default_transaction_read_only = off for this user and database, or connect to the primary.",
        );
    }
    let commit: String = row.try_get(2)?;
    let standbys: String = row.try_get(7)?;
    match commit.as_str() {
        "off" => report.error(
            "synchronous_commit",
            "it is off: claims and successes that were acknowledged are lost when the server crashes.",
            "Set synchronous_commit = on for this user and database.",
        ),
        "local" if !standbys.is_empty() => report.warning(
            "synchronous_commit",
            "it is local: a failover to a synchronous standby may forget what was acknowledged.",
            "Set synchronous_commit = on for this user and database.",
        ),
        _ => {}
    }
    if row.try_get::<String, _>(3)? == "off" {
        report.error("fsync", "it is off: a crash of the machine may destroy the database.", "Set fsync = on.");
    }
    if row.try_get::<String, _>(4)? == "off" {
        report.warning(
            "full_page_writes",
            "it is off: a crash of the machine may leave torn pages.",
            "Set full_page_writes = on, unless the file system never tears pages.",
        );
    }
    let isolation: String = row.try_get(5)?;
    if isolation != "read committed" {
        report.warning(
            "default_transaction_isolation",
            format!("it is {isolation}: statements that meet a concurrent one fail and are repeated."),
            "Set default_transaction_isolation = 'read committed' for this user and database.",
        );
    }
    let timeout: i64 = row.try_get(6)?;
    if (1..1000).contains(&timeout) {
        report.warning(
            "statement_timeout",
            format!("it is {timeout} ms: a batch may be cut off before it is done."),
            "Set statement_timeout to several seconds for this user, or to 0.",
        );
    }
    Ok(())
}

async fn relation(conn: &mut PgConnection, layout: Layout, table: &str, report: &mut Report) -> Result<(), Error> {
    let key = layout.key();
    let row = sqlx::query(AssertSqlSafe(format!(
        "SELECT c.relpersistence::text, EXISTS (SELECT 1 FROM pg_index AS i JOIN pg_attribute AS a ON a.attrelid = i.indrelid \
         AND a.attnum = i.indkey[0] WHERE i.indrelid = c.oid AND i.indisunique AND i.indisvalid AND i.indimmediate \
         AND i.indpred IS NULL AND i.indnkeyatts = 1 AND a.attname = '{key}') \
         FROM pg_class AS c WHERE c.oid = to_regclass($1)",
    )))
    .bind(table)
    .persistent(false)
    .fetch_one(conn)
    .await?;
    if row.try_get::<String, _>(0)? != "p" {
        report.error(
            "unlogged",
            format!("the table {table} is unlogged or temporary: it is emptied when the server crashes."),
            "Make it permanent: ALTER TABLE … SET LOGGED.",
        );
    }
    if !row.try_get::<bool, _>(1)? {
        report.error(
            "unique_index",
            format!("no unique index stands on {key} of {table} alone: {}.", layout.danger()),
            REMAKE,
        );
    }
    Ok(())
}

/// Name, type, and whether it is never null.
const fn wanted(layout: Layout) -> &'static [(&'static str, &'static str, bool)] {
    match layout {
        Layout::Records => &[
            ("message_key", "bytea", true),
            ("fingerprint", "bytea", true),
            ("owner", "bigint", true),
            ("fence", "bigint", true),
            ("time", "bigint", true),
            ("attempts", "integer", true),
            ("state", "smallint", true),
            ("origin", "bytea", true),
            ("result", "bytea", false),
        ],
        Layout::Windows => &[
            ("source", "bytea", true),
            ("fence", "bigint", true),
            ("next", "bigint", true),
            ("state", "bytea", true),
            ("note", "bytea", false),
            ("time", "bigint", true),
        ],
    }
}

async fn columns(conn: &mut PgConnection, layout: Layout, table: &str, report: &mut Report) -> Result<(), Error> {
    let rows = sqlx::query(
        "SELECT attname::text, format_type(atttypid, atttypmod), attnotnull FROM pg_attribute \
         WHERE attrelid = to_regclass($1) AND attnum > 0 AND NOT attisdropped",
    )
    .bind(table)
    .persistent(false)
    .fetch_all(conn)
    .await?;
    let mut found = Vec::with_capacity(rows.len());
    for row in &rows {
        found.push((row.try_get::<String, _>(0)?, row.try_get::<String, _>(1)?, row.try_get::<bool, _>(2)?));
    }
    for &(name, wanted, filled) in wanted(layout) {
        match found.iter().find(|(column, ..)| column == name) {
            Some((_, kind, not_null)) if kind == wanted && *not_null == filled => {}
            Some((_, kind, not_null)) => {
                let null = if *not_null { " NOT NULL" } else { "" };
                let filled = if filled { " NOT NULL" } else { "" };
                let problem = format!("column {name} of {table} is {kind}{null}, and not {wanted}{filled}.");
                report.error("columns", problem, REMAKE);
            }
            None => report.error("columns", format!("column {name} of {table} is missing."), REMAKE),
        }
    }
    Ok(())
}

async fn rights(conn: &mut PgConnection, layout: Layout, table: &str, report: &mut Report) -> Result<(), Error> {
    let row = sqlx::query(
        "SELECT has_table_privilege(to_regclass($1), 'SELECT') AND has_table_privilege(to_regclass($1), 'INSERT') \
         AND has_table_privilege(to_regclass($1), 'UPDATE'), has_table_privilege(to_regclass($1), 'DELETE')",
    )
    .bind(table)
    .persistent(false)
    .fetch_one(conn)
    .await?;
    if !row.try_get::<bool, _>(0)? {
        let problem = format!("the user may not read and write the table {table}.");
        report.error("rights", problem, "Grant SELECT, INSERT and UPDATE on it.");
    }
    // Windows are never deleted.
    if layout == Layout::Records && !row.try_get::<bool, _>(1)? {
        report.warning("rights", "the user may not delete: purge() will fail.", "Grant DELETE on the table.");
    }
    Ok(())
}
