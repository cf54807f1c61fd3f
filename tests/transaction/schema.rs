//! The two tables: made once by many, recognised, refused where they are not ours, and the same as in `migrations/`.

use futures_util::future::join_all;
use hapax::Done;
use hapax::identity::{Identify as _, header, position};
use sqlx::MySql;

use crate::base::{Base, Site, Tables, everywhere, message};
use crate::support::ThrowawayMariadb;
use crate::{once, tune};

/// The file of a table, as a user would run it, with other names.
fn migration(database: &str, tables: &Tables) -> String {
    let file = |name: &str| {
        let path = format!("{}/migrations/{database}/{name}.sql", env!("CARGO_MANIFEST_DIR"));
        std::fs::read_to_string(path).unwrap()
    };
    let records = file("0001_records").replace("hapax_records", &tables.records);
    let windows = file("0002_windows").replace("hapax_windows", &tables.windows);
    format!("{records}\n{windows}")
}

/// A table as the database itself describes it, under another name.
async fn described<DB: Base>(conn: &mut DB::Connection, table: &str) -> String {
    let text = match DB::KIND {
        "postgres" => format!(
            "SELECT string_agg(format('%s %s %s', attname, format_type(atttypid, atttypmod), attnotnull), ', ' ORDER BY attnum) \
             || (SELECT format(' | %s | %s | ', reloptions, obj_description(oid, 'pg_class')) || string_agg(indexdef, ';') \
                 FROM pg_class JOIN pg_indexes ON tablename = relname WHERE relname = '{table}' GROUP BY oid, reloptions) \
             FROM pg_attribute WHERE attrelid = '{table}'::regclass AND attnum > 0"
        ),
        "mysql" => format!(
            "SELECT CAST(CONCAT((SELECT CONCAT_WS(' ', engine, row_format, table_comment) FROM information_schema.tables \
             WHERE table_schema = DATABASE() AND table_name = '{table}'), ' | ', \
             GROUP_CONCAT(CONCAT_WS(' ', column_name, column_type, is_nullable, column_key) ORDER BY ordinal_position)) AS CHAR) \
             FROM information_schema.columns WHERE table_schema = DATABASE() AND table_name = '{table}'"
        ),
        _ => format!("SELECT sql FROM sqlite_schema WHERE name = '{table}'"),
    };
    DB::text(conn, &text).await.unwrap().replace(table, "TABLE")
}

everywhere! {
    async fn many_make_the_tables_at_once_and_they_are_those_of_the_migrations<DB>() {
        let site = DB::site();
        let pool = DB::pool(&site, 8).await;
        let mut conn = DB::session(&site).await;
        let made = Tables::make::<DB>(&mut conn).await;
        join_all((0..8).map(async |_| once(&pool, &made, position().and_then(header("id"))).await)).await;
        let by_hand = Tables::make::<DB>(&mut conn).await;
        DB::run(&mut conn, &migration(DB::KIND, &by_hand)).await.unwrap();
        for (one, other) in [(&made.records, &by_hand.records), (&made.windows, &by_hand.windows)] {
            let (one, other) = (described::<DB>(&mut conn, one).await, described::<DB>(&mut conn, other).await);
            assert_eq!(one, other);
        }
        // Either is good, and stays as it is.
        for tables in [&made, &by_hand] {
            let once = once(&pool, tables, position().and_then(header("id"))).await;
            assert_eq!(once.report().errors().count(), 0, "{:?}", once.report());
            let done = once
                .handle(&message(1, 0, 1), async |conn: &mut DB::Connection| DB::effect(conn, &tables.effects, 1).await)
                .await;
            assert!(matches!(done.unwrap(), Done::Handled(())));
            tables.judge::<DB>(&mut conn, 1..2).await;
        }
    }
}

everywhere! {
    async fn tables_that_are_newer_or_somebody_elses_are_refused<DB>() {
        let site = DB::site();
        let pool = DB::pool(&site, 2).await;
        let mut conn = DB::session(&site).await;
        let good = Tables::make::<DB>(&mut conn).await;
        drop(once(&pool, &good, position().and_then(header("id"))).await);
        let marks = [("hapax schema 1", "hapax windows schema 1")];
        for (which, mark) in [("records", marks[0].0), ("windows", marks[0].1)] {
            for (text, words) in [
                (mark.replace('1', "2"), "knows 1"),
                ("orders of 2024".to_owned(), "did not make"),
                // One of ours, but the other one.
                (if which == "records" { marks[0].1 } else { marks[0].0 }.to_owned(), "did not make"),
            ] {
                let tables = Tables::make::<DB>(&mut conn).await;
                let sql = migration(DB::KIND, &tables);
                let name = if which == "records" { &tables.records } else { &tables.windows };
                // The comment of this table only.
                let (start, end) = match which {
                    "records" => (0, sql.find("-- One row for each partition").unwrap()),
                    _ => (sql.find("-- One row for each partition").unwrap(), sql.len()),
                };
                let sql = format!("{}{}{}", &sql[..start], sql[start..end].replace(mark, &text), &sql[end..]);
                DB::run(&mut conn, &sql).await.unwrap();
                let error = tune(&pool, &tables, position().and_then(header("id"))).build().await.unwrap_err();
                let said = error.to_string();
                assert!(said.contains(words) && said.contains(name.as_str()), "{which}, {text}: {said}");
            }
        }
        // The names the wrong way round.
        let turned = Tables { records: good.windows.clone(), windows: good.records.clone(), effects: good.effects };
        let error = tune(&pool, &turned, position().and_then(header("id"))).build().await.unwrap_err();
        assert!(error.to_string().contains("did not make"), "{error}");
    }
}

everywhere! {
    async fn a_damaged_table_of_windows_is_refused<DB>() {
        let site = DB::site();
        let pool = DB::pool(&site, 2).await;
        let mut conn = DB::session(&site).await;
        let changes: &[(&str, &str)] = match DB::KIND {
            "postgres" => &[
                ("ALTER TABLE {t} DROP COLUMN note", "column note"),
                ("ALTER TABLE {t} ALTER fence TYPE integer", "column fence"),
                ("ALTER TABLE {t} DROP CONSTRAINT {t}_pkey; ALTER TABLE {t} ALTER source SET NOT NULL", "two windows"),
                ("ALTER TABLE {t} SET UNLOGGED", "unlogged"),
            ],
            "mysql" => &[
                ("ALTER TABLE {t} DROP COLUMN note", "column note"),
                ("ALTER TABLE {t} MODIFY fence INT NOT NULL", "column fence"),
                ("ALTER TABLE {t} DROP PRIMARY KEY", "two windows"),
                ("ALTER TABLE {t} ENGINE = MyISAM", "InnoDB"),
                ("ALTER TABLE {t} MODIFY source VARCHAR(16) NOT NULL", "collation"),
            ],
            _ => &[
                ("ALTER TABLE {t} DROP COLUMN note", "column note"),
                (
                    "DROP TABLE {t}; CREATE TABLE {t} (/* hapax windows schema 1 */ source BLOB NOT NULL, fence INTEGER NOT NULL, \
                     next INTEGER NOT NULL, state BLOB NOT NULL, note BLOB, time INTEGER NOT NULL)",
                    "two windows",
                ),
            ],
        };
        for (change, words) in changes {
            let tables = Tables::make::<DB>(&mut conn).await;
            DB::run(&mut conn, &migration(DB::KIND, &tables)).await.unwrap();
            DB::run(&mut conn, &change.replace("{t}", &tables.windows)).await.unwrap();
            let error = tune(&pool, &tables, position()).build().await.unwrap_err();
            assert!(error.to_string().contains(words), "{change}: {error}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_binary_log_of_statements_is_named() {
    let server = ThrowawayMariadb::start(&[("log-bin", "b"), ("server-id", "1"), ("binlog-format", "STATEMENT")]);
    let site = Site::at(server.url());
    let pool = MySql::pool(&site, 2).await;
    let tables = Tables::make::<MySql>(&mut MySql::session(&site).await).await;
    let once = once(&pool, &tables, header("id")).await;
    assert!(once.report().names("binlog_format"), "{:?}", once.report());
    let effect = async |conn: &mut sqlx::MySqlConnection| MySql::effect(conn, &tables.effects, 1).await;
    let refused = once.handle(&message(1, 0, 1), effect).await.unwrap_err();
    assert!(refused.to_string().contains("1665"), "{refused}");
}
