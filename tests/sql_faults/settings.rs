//! Clocks, settings, schemas, rights, names, and what `check()` says of them.

use std::time::Duration;

use hapax::record::{ClaimOutcome, Fence, State};
use hapax::store::{Batch, DedupStore, Retention, StoreErrorKind};

use crate::common::{HOUR, SUCCESS, asks, claim_one, granted, is_acquired, key, settle_one, sighting, terms};
use crate::servers::{Kind, Throwaway, Tune, both, errors};
use crate::support::{net, random, unique};

both! {
    async fn f14_only_the_servers_clock_counts(kind: Kind) {
        let (store, table) = kind.fresh().await;
        // The same server, seen through sessions whose clock is an hour ahead of it: of this process's clock, too.
        let ahead = match kind {
            Kind::Postgres => {
                let schema = unique("ahead");
                let mut session = kind.session(&kind.url()).await;
                session.run(&format!("CREATE SCHEMA {schema}")).await;
                session
                    .run(&format!(
                        "CREATE FUNCTION {schema}.clock_timestamp() RETURNS timestamptz LANGUAGE sql \
                         AS $$ SELECT pg_catalog.clock_timestamp() + interval '1 hour' $$"
                    ))
                    .await;
                Box::leak(format!("SET search_path = {schema}, pg_catalog, public").into_boxed_str())
            }
            Kind::Mariadb => "SET timestamp = UNIX_TIMESTAMP() + 3600",
        };
        let ahead = kind.pooled(&kind.url(), &table, 2, ahead).await;
        let set = random();
        let minute = Duration::from_secs(60);

        // All in the hour ahead: a lease of a minute is a minute, whatever this process's clock says.
        granted(&claim_one(&*ahead, &terms(1, minute), &sighting(set, 1)).await);
        match claim_one(&*ahead, &terms(2, minute), &sighting(set, 1)).await {
            ClaimOutcome::InFlight { remaining } => assert!(remaining <= minute, "{remaining:?}"),
            other => panic!("{other:?}"),
        }
        // Claimed an hour ago by the clock ahead: run out there, and not here.
        granted(&claim_one(&*store, &terms(1, minute), &sighting(set, 2)).await);
        assert!(!is_acquired(&claim_one(&*store, &terms(2, minute), &sighting(set, 2)).await));
        assert!(granted(&claim_one(&*ahead, &terms(2, minute), &sighting(set, 2)).await).took_over);
        // And the other way round: it lasts an hour and a minute here.
        match claim_one(&*store, &terms(3, minute), &sighting(set, 1)).await {
            ClaimOutcome::InFlight { remaining } => assert!(remaining > minute * 50, "{remaining:?}"),
            other => panic!("{other:?}"),
        }
        // What a success was settled at is the server's time, too.
        let grant = granted(&claim_one(&*ahead, &terms(4, minute), &sighting(set, 3)).await);
        settle_one(&*ahead, &sighting(set, 3), grant, SUCCESS).await;
        let grant = granted(&claim_one(&*store, &terms(4, minute), &sighting(set, 4)).await);
        settle_one(&*store, &sighting(set, 4), grant, SUCCESS).await;
        let keys: Batch<_> = [key(set, 3), key(set, 4)].into_iter().collect();
        let times: std::collections::HashMap<_, _> =
            keys.keys().zip(store.get(&keys).await.unwrap().into_iter().map(|record| record.unwrap().state.time())).collect();
        let apart = times[&key(set, 3)] - times[&key(set, 4)];
        assert!((3_000_000..3_700_000).contains(&apart), "{apart}");
    }
}

both! {
    async fn f28_keys_that_text_columns_confuse_are_kept_apart(kind: Kind) {
        let (store, _) = kind.fresh().await;
        let salt = u32::try_from(random() % u64::from(u32::MAX)).unwrap().to_be_bytes();
        let key = |text: &[u8]| {
            let mut bytes = [0; 16];
            bytes[..text.len()].copy_from_slice(text);
            // Every run has keys of its own, in the middle: beginnings and ends are what text columns trip over.
            bytes[6..10].copy_from_slice(&salt);
            bytes
        };
        let end = |text: &[u8]| {
            let mut bytes = key(b"");
            bytes[16 - text.len()..].copy_from_slice(text);
            bytes
        };
        let vectors = [
            // Letters of two cases.
            key(b"Order"),
            key(b"order"),
            // A blank, a zero or nothing at the end.
            end(b"x "),
            end(b"x\0"),
            end(b"\0x"),
            // Accents, in two encodings, and without.
            key("\u{e9}t\u{e9}".as_bytes()),
            key("e\u{301}t".as_bytes()),
            key(b"ete"),
            // One prefix.
            end(b"longer"),
            end(b"longes"),
            // Nothing, and what is no text at all.
            key(b""),
            key(&[0xff, 0xfe, 0x80]),
            key(b"';--\""),
        ];
        let asks: Batch<_> = vectors
            .iter()
            .map(|bytes| {
                let mut sighting = sighting(0, 0);
                sighting.key = hapax::identity::Key::from_bytes(*bytes);
                hapax::store::Ask::from(sighting)
            })
            .collect();
        assert_eq!(asks.len(), vectors.len());
        let outcomes = store.claim(&terms(1, HOUR), &asks).await.unwrap();
        assert!(outcomes.iter().all(|outcome| is_acquired(outcome) && granted(outcome).token.fence == Fence::FIRST));
        let outcomes = store.claim(&terms(2, HOUR), &asks).await.unwrap();
        assert!(!outcomes.iter().any(is_acquired));
    }
}

#[tokio::test]
async fn f28_a_key_column_of_text_is_refused() {
    let kind = Kind::Mariadb;
    let mut session = kind.session(&kind.url()).await;
    for (column, finding) in [
        ("VARCHAR(16) CHARACTER SET utf8mb4 NOT NULL", "collation"),
        ("CHAR(16) CHARACTER SET latin1 COLLATE latin1_bin NOT NULL", "collation"),
        ("VARBINARY(8) NOT NULL", "columns"),
        ("BINARY(16) NULL DEFAULT NULL", "columns"),
    ] {
        let (store, table) = kind.fresh().await;
        assert_eq!(errors(&store.check().await.unwrap()), Vec::<&str>::new());
        session
            .run(&format!(
                "ALTER TABLE {table} DROP PRIMARY KEY, MODIFY message_key {column}, ADD UNIQUE (message_key)"
            ))
            .await;
        let report = store.check().await.unwrap();
        assert_eq!(errors(&report), [finding], "{column}: {report:?}");
    }
}

both! {
    async fn f35_a_read_only_server_claims_nothing_and_is_named(kind: Kind) {
        let (_, table) = kind.fresh().await;
        let begin = match kind {
            Kind::Postgres => "SET default_transaction_read_only = on",
            Kind::Mariadb => "SET SESSION TRANSACTION READ ONLY",
        };
        let store = kind.pooled(&kind.url(), &table, 2, begin).await;
        let report = store.check().await.unwrap();
        let wanted =
            if kind == Kind::Postgres { "default_transaction_read_only" } else { "transaction_read_only" };
        assert_eq!(errors(&report), [wanted], "{report:?}");
        let error = store.claim(&terms(1, HOUR), &asks(random(), 0..5)).await.unwrap_err();
        assert!(error.is_retryable(), "a failover may be under way: {error}");
        assert!(error.to_string().contains("primary"), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn f35_a_standby_is_named() {
    let kind = Kind::Postgres;
    let Throwaway::Postgres(mut server) = kind.throwaway(&[]) else { unreachable!() };
    let store = kind.open(&server.url(), "r", Tune::default()).await.unwrap();
    store.ensure_schema().await.unwrap();
    server.stop();
    std::fs::write(server.folder().join("db/standby.signal"), "").unwrap();
    server.restart();
    let report = store.check().await.unwrap();
    assert_eq!(errors(&report), ["replica"], "{report:?}");
    let error = store.claim(&terms(1, HOUR), &asks(random(), 0..5)).await.unwrap_err();
    assert!(error.is_retryable() && error.to_string().contains("read-only"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn f35_a_read_only_mariadb_is_named() {
    let kind = Kind::Mariadb;
    let mut server = kind.throwaway(&[]);
    kind.open(&server.url(), "r", Tune::default()).await.unwrap().ensure_schema().await.unwrap();
    let mut session = kind.session(&server.url()).await;
    session.run("CREATE USER plain IDENTIFIED BY 'plain'").await;
    session.run("GRANT SELECT, INSERT, UPDATE, DELETE ON hapax.* TO plain").await;
    session.run("SET GLOBAL read_only = 1").await;
    let url = server.url();
    let (_, host, _) = net::split_url(&url);
    let store = kind.open(&format!("mysql://plain:plain@{host}/hapax"), "r", Tune::default()).await.unwrap();
    let report = store.check().await.unwrap();
    assert_eq!(errors(&report), ["read_only"], "{report:?}");
    let error = store.claim(&terms(1, HOUR), &asks(random(), 0..5)).await.unwrap_err();
    assert!(error.is_retryable() && error.to_string().contains("read-only"), "{error}");
    // The failover is over.
    session.run("SET GLOBAL read_only = 0").await;
    assert!(store.claim(&terms(1, HOUR), &asks(random(), 0..5)).await.unwrap().iter().all(is_acquired));
    server.stop();
}

#[tokio::test]
async fn f18_commits_that_do_not_wait_for_the_disk_are_named() {
    let kind = Kind::Postgres;
    let (_, table) = kind.fresh().await;
    for (begin, wanted) in [
        ("SET synchronous_commit = off", &["synchronous_commit"][..]),
        ("SET synchronous_commit = local", &[]),
        ("SET synchronous_commit = on", &[]),
    ] {
        let store = kind.pooled(&kind.url(), &table, 1, begin).await;
        let report = store.check().await.unwrap();
        assert_eq!(errors(&report), wanted, "{begin}: {report:?}");
    }
    let server = kind.throwaway(&[("fsync", "off"), ("synchronous_commit", "off"), ("full_page_writes", "off")]);
    let store = kind.open(&server.url(), "r", Tune::default()).await.unwrap();
    store.ensure_schema().await.unwrap();
    let report = store.check().await.unwrap();
    assert_eq!(errors(&report), ["synchronous_commit", "fsync"], "{report:?}");
    assert!(report.names("full_page_writes"));
    let server = Kind::Mariadb.throwaway(&[("innodb-flush-log-at-trx-commit", "2"), ("innodb-doublewrite", "0")]);
    let store = Kind::Mariadb.open(&server.url(), "r", Tune::default()).await.unwrap();
    store.ensure_schema().await.unwrap();
    let report = store.check().await.unwrap();
    assert_eq!(errors(&report), Vec::<&str>::new(), "{report:?}");
    let warnings: Vec<_> = report.warnings().map(|finding| finding.setting).collect();
    assert_eq!(warnings, ["innodb_flush_log_at_trx_commit", "innodb_doublewrite"]);
}

both! {
    async fn f44_a_table_without_a_unique_key_is_refused(kind: Kind) {
        let mut session = kind.session(&kind.url()).await;
        let (store, table) = kind.fresh().await;
        assert_eq!(errors(&store.check().await.unwrap()), Vec::<&str>::new());
        let alone = "unique_index";
        let changes: &[&str] = match kind {
            Kind::Postgres => &[
                "ALTER TABLE {t} DROP CONSTRAINT {t}_pkey; ALTER TABLE {t} ALTER message_key SET NOT NULL",
                "CREATE INDEX ON {t} (message_key)",
                "CREATE UNIQUE INDEX ON {t} (message_key) WHERE state = 0",
                "CREATE UNIQUE INDEX ON {t} (message_key, owner)",
                "CREATE UNIQUE INDEX ON {t} (owner, message_key)",
                "ALTER TABLE {t} ADD CONSTRAINT {t}_late UNIQUE (message_key) DEFERRABLE",
            ],
            Kind::Mariadb => &[
                "ALTER TABLE {t} DROP PRIMARY KEY",
                "ALTER TABLE {t} ADD INDEX (message_key)",
                "ALTER TABLE {t} ADD UNIQUE (message_key, owner)",
                "ALTER TABLE {t} ADD UNIQUE (message_key(15))",
            ],
        };
        for change in changes {
            session.run(&change.replace("{t}", &table)).await;
            let report = store.check().await.unwrap();
            assert_eq!(errors(&report), [alone], "{change}: {report:?}");
        }
        let cure = match kind {
            Kind::Postgres => "ALTER TABLE {t} DROP CONSTRAINT {t}_late; CREATE UNIQUE INDEX ON {t} (message_key)",
            Kind::Mariadb => "ALTER TABLE {t} ADD UNIQUE (message_key)",
        };
        session.run(&cure.replace("{t}", &table)).await;
        assert_eq!(errors(&store.check().await.unwrap()), Vec::<&str>::new());
    }
}

both! {
    async fn f44_wrong_columns_and_tables_are_refused(kind: Kind) {
        let mut session = kind.session(&kind.url()).await;
        let changes: &[(&str, &str)] = match kind {
            Kind::Postgres => &[
                ("ALTER TABLE {t} DROP COLUMN origin", "columns"),
                ("ALTER TABLE {t} ALTER fence TYPE integer", "columns"),
                ("ALTER TABLE {t} ALTER fingerprint DROP NOT NULL", "columns"),
                ("ALTER TABLE {t} SET UNLOGGED", "unlogged"),
            ],
            Kind::Mariadb => &[
                ("ALTER TABLE {t} DROP COLUMN origin", "columns"),
                ("ALTER TABLE {t} MODIFY fence INT NOT NULL", "columns"),
                ("ALTER TABLE {t} ENGINE = MyISAM", "engine"),
            ],
        };
        for (change, finding) in changes {
            let (store, table) = kind.fresh().await;
            session.run(&change.replace("{t}", &table)).await;
            let report = store.check().await.unwrap();
            assert_eq!(errors(&report), [*finding], "{change}: {report:?}");
        }
    }
}

#[tokio::test]
async fn a_mysql_pool_that_bends_values_or_commits_nothing_is_refused() {
    let kind = Kind::Mariadb;
    let (_, table) = kind.fresh().await;
    for (begin, finding) in [("SET sql_mode = ''", "sql_mode"), ("SET autocommit = 0", "autocommit")] {
        let report = kind.pooled(&kind.url(), &table, 1, begin).await.check().await.unwrap();
        assert_eq!(errors(&report), [finding], "{report:?}");
    }
}

both! {
    async fn f45_two_applications_share_a_table_and_both_handle(kind: Kind) {
        use hapax::identity::{Identity, Scope};
        let (store, _) = kind.fresh().await;
        let id = Identity::text(&unique("m")).unwrap();
        let scopes = [("billing", "charge"), ("shipping", "charge"), ("billing", "mail")];
        for (owner, (group, handler)) in (0_u64..).zip(scopes) {
            let mut message = sighting(1, 1);
            message.key = Scope::new(group, handler).unwrap().key(&id, "orders");
            let grant = granted(&claim_one(&*store, &terms(owner, HOUR), &message).await);
            assert_eq!((grant.attempt, grant.took_over), (1, false));
            settle_one(&*store, &message, grant, SUCCESS).await;
            let again = claim_one(&*store, &terms(9, HOUR), &message).await;
            assert!(matches!(again, ClaimOutcome::Duplicate { .. }));
        }
    }
}

both! {
    async fn schemas_are_made_once_by_many_and_never_over_somebody_elses(kind: Kind) {
        let table = unique("r");
        let stores = futures_util::future::join_all((0..8).map(|_| kind.open_again(&table))).await;
        let made = futures_util::future::join_all(stores.iter().map(|store| store.ensure_schema())).await;
        made.into_iter().for_each(Result::unwrap);
        stores[0].ensure_schema().await.unwrap();
        assert!(is_acquired(&claim_one(&*stores[3], &terms(1, HOUR), &sighting(1, 1)).await));

        let mut session = kind.session(&kind.url()).await;
        let comment = |text: &str| match kind {
            Kind::Postgres => format!("COMMENT ON TABLE {table} IS '{text}'"),
            Kind::Mariadb => format!("ALTER TABLE {table} COMMENT = '{text}'"),
        };
        for (text, words) in [("hapax schema 2", "knows 1"), ("orders", "did not make"), ("", "did not make")] {
            session.run(&comment(text)).await;
            let error = stores[0].ensure_schema().await.unwrap_err();
            assert_eq!(error.kind(), StoreErrorKind::Refused);
            assert!(error.to_string().contains(words), "{error}");
            assert_eq!(errors(&stores[0].check().await.unwrap()), ["table"]);
        }
        session.run(&comment("ours: hapax schema 1")).await;
        stores[0].ensure_schema().await.unwrap();

        // Before the table is there: a sentence with the cure.
        let store = kind.open_again(&unique("missing")).await;
        let error = store.claim(&terms(1, HOUR), &asks(1, 0..2)).await.unwrap_err();
        assert_eq!(error.kind(), StoreErrorKind::Refused);
        assert!(error.to_string().contains("ensure_schema()"), "{error}");
        assert_eq!(errors(&store.check().await.unwrap()), ["table"]);
    }
}

impl Kind {
    async fn open_again(self, table: &str) -> std::sync::Arc<dyn DedupStore> {
        self.open(&self.url(), table, Tune::default()).await.unwrap()
    }
}

both! {
    async fn names_of_tables_are_checked_and_schemas_are_used(kind: Kind) {
        for hostile in ["", "a-b", "a b", "r; DROP TABLE r", "r\"; --", "r`", "1r", "a.b.c", "r\0", &"x".repeat(64)] {
            let error = kind.open(&kind.url(), hostile, Tune::default()).await.unwrap_err();
            assert_eq!(error.kind(), StoreErrorKind::Refused, "{hostile:?}: {error}");
        }
        // Reserved words are names like any other.
        let schema = unique("s");
        let mut session = kind.session(&kind.url()).await;
        let made = if kind == Kind::Postgres { "SCHEMA" } else { "DATABASE" };
        session.run(&format!("CREATE {made} {schema}")).await;
        let store = kind.open_again(&format!("{schema}.select")).await;
        store.ensure_schema().await.unwrap();
        assert_eq!(errors(&store.check().await.unwrap()), Vec::<&str>::new());
        assert!(store.claim(&terms(1, HOUR), &asks(1, 0..600)).await.unwrap().iter().all(is_acquired));
        let quoted = if kind == Kind::Postgres { "\"select\"" } else { "`select`" };
        assert_eq!(session.number(&format!("SELECT count(*) FROM {schema}.{quoted}")).await, 600);
        drop(store);
        session.run(&format!("DROP {made} {schema}{}", if kind == Kind::Postgres { " CASCADE" } else { "" })).await;
    }
}

both! {
    async fn least_rights_are_enough_and_missing_ones_are_named(kind: Kind) {
        // Not every user may make users: the throw-away servers' may.
        let server = kind.throwaway(&[]);
        let own = server.url();
        kind.open(&own, "records", Tune::default()).await.unwrap().ensure_schema().await.unwrap();
        let mut session = kind.session(&own).await;
        let (create, grant) = match kind {
            Kind::Postgres => (
                "CREATE ROLE plain LOGIN PASSWORD 'plain'",
                "GRANT SELECT, INSERT, UPDATE ON records TO plain",
            ),
            Kind::Mariadb => (
                "CREATE USER plain IDENTIFIED BY 'plain'; GRANT SELECT ON hapax.records TO plain",
                "GRANT INSERT, UPDATE ON hapax.records TO plain",
            ),
        };
        session.run(create).await;
        let (before, host, after) = net::split_url(&own);
        let scheme = before.split_once("://").unwrap().0;
        let url = format!("{scheme}://plain:plain@{host}{after}");
        let store = kind.open(&url, "records", Tune::default()).await.unwrap();
        let error = store.claim(&terms(1, HOUR), &asks(1, 0..2)).await.unwrap_err();
        assert_eq!(error.kind(), StoreErrorKind::Refused, "{error}");
        assert!(error.to_string().contains("grant"), "{error}");
        session.run(grant).await;
        store.ensure_schema().await.unwrap();
        assert_eq!(errors(&store.check().await.unwrap()), Vec::<&str>::new());
        let set = random();
        let grant = granted(&claim_one(&*store, &terms(1, HOUR), &sighting(set, 1)).await);
        settle_one(&*store, &sighting(set, 1), grant, SUCCESS).await;
        assert!(matches!(claim_one(&*store, &terms(2, HOUR), &sighting(set, 1)).await, ClaimOutcome::Duplicate { .. }));
        // It may neither make a table nor delete, and is told so.
        let other = kind.open(&url, "others", Tune::default()).await.unwrap();
        assert_eq!(other.ensure_schema().await.unwrap_err().kind(), StoreErrorKind::Refused);
        session.run("UPDATE records SET time = 0").await;
        let error = store.purge(10).await.unwrap_err();
        assert_eq!(error.kind(), StoreErrorKind::Refused, "{error}");
    }
}

both! {
    async fn purging_forgets_what_is_past_retention_and_nothing_else(kind: Kind) {
        let (store, table) = kind.fresh().await;
        let set = random();
        let batch = asks(set, 0..900);
        let grants = store.claim(&terms(1, HOUR), &batch).await.unwrap();
        let settles: Batch<_> = batch
            .items()
            .iter()
            .zip(&grants)
            .map(|(ask, grant)| {
                let verdict = match ask.sighting.origin.offset % 4 {
                    0 | 1 => SUCCESS,
                    2 => hapax::record::Verdict::Dead,
                    _ => hapax::record::Verdict::Failed { retry_in: Duration::ZERO, max_attempts: 9.try_into().unwrap() },
                };
                crate::common::settle(&ask.sighting, granted(grant), verdict)
            })
            .collect();
        store.settle(&settles).await.unwrap();
        // Some successes are two hours old by the server's clock.
        let mut session = kind.session(&kind.url()).await;
        session.run(&format!("UPDATE {table} SET time = time - 7200000 WHERE state <> 2 OR message_key < {}", kind.literal(key_half()))).await;
        let old = session.number(&format!("SELECT count(*) FROM {table} WHERE state = 2 AND message_key < {}", kind.literal(key_half()))).await;
        assert!(old > 50);

        let keep = Retention::default().succeeded(HOUR).dead(HOUR * 3).unsettled(HOUR * 3);
        let tune = Tune { retention: Some(keep), ..Tune::default() };
        let purger = kind.open(&kind.url(), &table, tune).await.unwrap();
        assert_eq!(purger.retention(), keep);
        assert_eq!(purger.purge(0).await.unwrap().removed, 0);
        let mut removed = 0;
        let mut calls = 0;
        loop {
            let purged = purger.purge(40).await.unwrap();
            assert!(purged.removed <= 40);
            removed += purged.removed;
            calls += 1;
            assert!(calls < 200);
            if !purged.more {
                break;
            }
        }
        assert_eq!(i64::try_from(removed).unwrap(), old);
        assert_eq!(session.number(&format!("SELECT count(*) FROM {table}")).await, 900 - old);
        assert_eq!(session.number(&format!("SELECT count(*) FROM {table} WHERE state <> 2")).await, 450);
        // Again, from the beginning: nothing is left to remove, and what is old now goes.
        let purged = purger.purge(1000).await.unwrap();
        assert_eq!((purged.removed, purged.more), (0, false));
        session.run(&format!("UPDATE {table} SET time = time - 14400000 WHERE state <> 2")).await;
        let purged = purger.purge(1000).await.unwrap();
        assert_eq!((purged.removed, purged.more), (450, false));
        // Forgotten is new again.
        let outcomes = store.claim(&terms(2, HOUR), &batch).await.unwrap();
        assert_eq!(outcomes.iter().filter(|outcome| is_acquired(outcome)).count(), 450 + removed);
    }
}

fn key_half() -> hapax::identity::Key {
    hapax::identity::Key::from_bytes([0x80; 16])
}

#[tokio::test]
async fn postgres_looks_records_up_however_the_table_grew() {
    let kind = Kind::Postgres;
    let (store, table) = kind.fresh().await;
    let set = random();
    // Statements are prepared while the table is empty.
    for round in 0..30 {
        let batch = asks(set, round * 400..round * 400 + 400);
        let grants = store.claim(&terms(1, HOUR), &batch).await.unwrap();
        let settles: Batch<_> = batch
            .items()
            .iter()
            .zip(&grants)
            .map(|(ask, grant)| crate::common::settle(&ask.sighting, granted(grant), SUCCESS))
            .collect();
        store.settle(&settles).await.unwrap();
        assert!(!store.claim(&terms(2, HOUR), &batch).await.unwrap().iter().any(is_acquired));
    }
    let keys: Batch<_> = (0..20).map(|number| key(set, number)).collect();
    assert!(
        store
            .get(&keys)
            .await
            .unwrap()
            .into_iter()
            .all(|record| matches!(record.unwrap().state, State::Succeeded { .. }))
    );
    drop(store);
    let mut session = kind.session(&kind.url()).await;
    let statistics = format!("SELECT coalesce(seq_tup_read, 0) FROM pg_stat_user_tables WHERE relname = '{table}'");
    // Servers write statistics when a connection has been idle for a moment, or ends.
    crate::support::eventually(crate::support::PATIENCE, "statistics are written", async || {
        session.number(&format!("SELECT n_tup_upd FROM pg_stat_user_tables WHERE relname = '{table}'")).await >= 12_000
    })
    .await;
    let read = session.number(&statistics).await;
    assert!(read < 12_000, "{read} rows were read by scans of the whole table");
    let hot = session.number(&format!("SELECT n_tup_hot_upd FROM pg_stat_user_tables WHERE relname = '{table}'")).await;
    assert!(hot > 11_000, "{hot} of 12,000 updates stayed in their page");
}

#[tokio::test]
async fn a_pooler_that_mixes_sessions_is_named() {
    let kind = Kind::Postgres;
    let (store, table) = kind.fresh().await;
    // What PgBouncer's pool_mode=transaction makes of a statement that is prepared: another client's stands under its name.
    let mut session = kind.session(&kind.url()).await;
    session
        .run(&format!(
            "CREATE FUNCTION {table}_says() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN \
             RAISE EXCEPTION 'prepared statement \"sqlx_s_1\" already exists' USING ERRCODE = '42P05'; END $$; \
             CREATE TRIGGER says BEFORE INSERT ON {table} FOR EACH STATEMENT EXECUTE FUNCTION {table}_says()"
        ))
        .await;
    let error = store.claim(&terms(1, HOUR), &asks(random(), 0..3)).await.unwrap_err();
    assert_eq!(error.kind(), StoreErrorKind::Refused, "asking again does not help");
    assert!(error.to_string().contains("pooler"), "{error}");
}

#[tokio::test]
async fn a_right_to_make_the_table_that_is_missing_is_named() {
    let kind = Kind::Postgres;
    let (user, schema) = (unique("weak"), unique("closed"));
    let mut session = kind.session(&kind.url()).await;
    session
        .run(&format!(
            "CREATE SCHEMA {schema}; CREATE USER {user} PASSWORD 'weak'; GRANT USAGE ON SCHEMA {schema} TO {user}"
        ))
        .await;
    let url = kind.url();
    let (_, place) = url.split_once('@').unwrap();
    let store =
        kind.open(&format!("postgres://{user}:weak@{place}"), &format!("{schema}.r"), Tune::default()).await.unwrap();
    let error = store.ensure_schema().await.unwrap_err();
    assert_eq!(error.kind(), StoreErrorKind::Refused);
    assert!(error.to_string().contains("CREATE on its schema"), "{error}");
    assert!(!error.to_string().contains("weak@"), "{error}");
    session.run(&format!("DROP SCHEMA {schema}; DROP USER {user}")).await;
}
