//! Settings of a MySQL or MariaDB server and table that break promises.

use std::collections::HashMap;

use sqlx::mysql::MySqlConnection;
use sqlx::{AssertSqlSafe, Error, Row};

use crate::store::Report;
use crate::store::sql::{Layout, TableName};

const REMAKE: &str = "Make the table with ensure_schema() or the file in migrations/.";

pub(super) async fn inspect(
    conn: &mut MySqlConnection,
    layout: Layout,
    table: &TableName,
    report: &mut Report,
) -> Result<(), Error> {
    if engine(conn, table, report).await? {
        columns(conn, layout, table, report).await?;
        unique(conn, layout, table, report).await?;
    }
    Ok(())
}

pub(super) async fn settings(conn: &mut MySqlConnection, report: &mut Report) -> Result<(), Error> {
    let rows = sqlx::query(
        "SHOW SESSION VARIABLES WHERE Variable_name IN ('read_only', 'super_read_only', 'transaction_read_only', 'tx_read_only', \
         'sql_mode', 'autocommit', 'innodb_flush_log_at_trx_commit', 'sync_binlog', 'log_bin', \
         'binlog_format', 'innodb_doublewrite')",
    )
    .fetch_all(conn)
    .await?;
    let mut found = HashMap::new();
    for row in &rows {
        found.insert(row.try_get::<String, _>(0)?, row.try_get::<String, _>(1)?);
    }
    let value = |name: &str| found.get(name).map_or("", String::as_str);
    let on = |name: &str| matches!(value(name), "ON" | "1");
    if ["read_only", "super_read_only"].into_iter().any(on) {
        report.error(
            "read_only",
            "the server is read-only, as replicas are: nothing can be claimed, and what it shows may be old.",
            "Connect to the primary.",
        );
    }
    if ["transaction_read_only", "tx_read_only"].into_iter().any(on) {
        report.error("transaction_read_only", "transactions are read-only: nothing can be claimed.", "Set it off.");
    }
    if !["STRICT_ALL_TABLES", "STRICT_TRANS_TABLES"].iter().any(|mode| value("sql_mode").contains(mode)) {
        report.error(
            "sql_mode",
            "it is not strict: wrong values are bent until they fit.",
            "Add STRICT_TRANS_TABLES to sql_mode of the pool's connections.",
        );
    }
    if !on("autocommit") {
        report.error(
            "autocommit",
            "it is off: claims stay in an open transaction that nobody ends.",
            "Leave autocommit on for the pool's connections.",
        );
    }
    if value("innodb_flush_log_at_trx_commit") != "1" {
        report.warning(
            "innodb_flush_log_at_trx_commit",
            format!(
                "it is {}: the last second of claims and successes may be lost when the server or its machine crashes.",
                value("innodb_flush_log_at_trx_commit")
            ),
            "Set it to 1.",
        );
    }
    if on("log_bin") && value("sync_binlog") == "0" {
        report.warning(
            "sync_binlog",
            "it is 0: after a crash of the machine, a replica that takes over may have forgotten the last claims.",
            "Set it to 1 where a replica may take over.",
        );
    }
    if on("log_bin") && value("binlog_format") == "STATEMENT" {
        report.warning(
            "binlog_format",
            "it is STATEMENT: transactions at READ COMMITTED, as level L2 uses them, may write nothing.",
            "Set it to ROW or MIXED.",
        );
    }
    if value("innodb_doublewrite") == "OFF" {
        report.warning(
            "innodb_doublewrite",
            "it is off: a crash of the machine may leave torn pages.",
            "Leave it on, unless the file system never tears pages.",
        );
    }
    Ok(())
}

/// Whether the table is there.
async fn engine(conn: &mut MySqlConnection, table: &TableName, report: &mut Report) -> Result<bool, Error> {
    let engine: Option<Option<String>> = sqlx::query_scalar(
        "SELECT CAST(engine AS CHAR) FROM information_schema.tables \
         WHERE table_schema = COALESCE(?, DATABASE()) AND table_name = ?",
    )
    .bind(table.schema().map(str::to_owned))
    .bind(table.table().to_owned())
    .fetch_optional(conn)
    .await?;
    if let Some(engine) = &engine {
        let engine = engine.as_deref().unwrap_or("none");
        if !engine.eq_ignore_ascii_case("InnoDB") {
            report.error(
                "engine",
                format!("the engine of {table} is {engine}: only InnoDB writes it safely."),
                "ALTER TABLE … ENGINE = InnoDB.",
            );
        }
    }
    Ok(engine.is_some())
}

/// Name, type, and whether it may be null.
const fn wanted(layout: Layout) -> &'static [(&'static str, &'static str, bool)] {
    match layout {
        Layout::Records => &[
            ("message_key", "binary(16)", false),
            ("fingerprint", "binary(16)", false),
            ("owner", "bigint", false),
            ("fence", "bigint", false),
            ("time", "bigint", false),
            ("attempts", "int unsigned", false),
            ("state", "tinyint unsigned", false),
            ("origin", "varbinary(261)", false),
            ("result", "longblob", true),
        ],
        Layout::Windows => &[
            ("source", "binary(16)", false),
            ("fence", "bigint", false),
            ("next", "bigint", false),
            ("state", "mediumblob", false),
            ("note", "blob", true),
            ("time", "bigint", false),
        ],
    }
}

async fn columns(
    conn: &mut MySqlConnection,
    layout: Layout,
    table: &TableName,
    report: &mut Report,
) -> Result<(), Error> {
    let rows = sqlx::query(
        "SELECT CAST(column_name AS CHAR), CAST(column_type AS CHAR), CAST(is_nullable AS CHAR), CAST(collation_name AS CHAR) \
         FROM information_schema.columns WHERE table_schema = COALESCE(?, DATABASE()) AND table_name = ?",
    )
    .bind(table.schema().map(str::to_owned))
    .bind(table.table().to_owned())
    .fetch_all(conn)
    .await?;
    for &(name, wanted, nullable) in wanted(layout) {
        let mut found = None;
        for row in &rows {
            if row.try_get::<String, _>(0)?.eq_ignore_ascii_case(name) {
                let null = row.try_get::<String, _>(2)? == "YES";
                found = Some((plain(&row.try_get::<String, _>(1)?), null, row.try_get::<Option<String>, _>(3)?));
            }
        }
        match found {
            None => report.error("columns", format!("column {name} of {table} is missing."), REMAKE),
            // F28: text takes keys for equal that differ in case, accents, blanks, or after the last letter that fits.
            Some((kind, _, Some(collation))) => report.error(
                "collation",
                format!(
                    "column {name} of {table} is {kind} with collation {collation}: keys that differ may be taken for \
                     the same."
                ),
                "Make it binary, as ensure_schema() and the file in migrations/ do.",
            ),
            Some((kind, null, None)) if kind != wanted || null != nullable => {
                let words = |null| if null { "" } else { " not null" };
                let (null, nullable) = (words(null), words(nullable));
                let problem = format!("column {name} of {table} is {kind}{null}, and not {wanted}{nullable}.");
                report.error("columns", problem, REMAKE);
            }
            Some(_) => {}
        }
    }
    Ok(())
}

/// A type without the display width that older servers show.
fn plain(kind: &str) -> String {
    let kind = kind.to_ascii_lowercase();
    match kind.split_once('(') {
        Some((name, rest)) if name.ends_with("int") => {
            format!("{name}{}", rest.split_once(')').map_or("", |(_, after)| after))
        }
        _ => kind,
    }
}

/// F44: without a unique index on the key alone, everybody's claim is granted.
async fn unique(
    conn: &mut MySqlConnection,
    layout: Layout,
    table: &TableName,
    report: &mut Report,
) -> Result<(), Error> {
    let key = layout.key();
    let found: Option<i64> = sqlx::query_scalar(AssertSqlSafe(format!(
        "SELECT CAST(1 AS SIGNED) FROM information_schema.statistics \
         WHERE table_schema = COALESCE(?, DATABASE()) AND table_name = ? AND non_unique = 0 \
         GROUP BY index_name HAVING COUNT(*) = 1 AND MAX(column_name) = '{key}' AND COUNT(sub_part) = 0 LIMIT 1",
    )))
    .bind(table.schema().map(str::to_owned))
    .bind(table.table().to_owned())
    .fetch_optional(conn)
    .await?;
    if found.is_none() {
        report.error(
            "unique_index",
            format!("no unique index stands on {key} of {table} alone: {}.", layout.danger()),
            REMAKE,
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #[test]
    fn display_widths_are_nothing() {
        assert_eq!(super::plain("bigint(20)"), "bigint");
        assert_eq!(super::plain("INT(10) UNSIGNED"), "int unsigned");
        assert_eq!(super::plain("int unsigned"), "int unsigned");
        assert_eq!(super::plain("binary(16)"), "binary(16)");
    }
}
