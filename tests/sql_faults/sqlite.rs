//! SQLite: one file, many openers.

use std::sync::Arc;
use std::time::Duration;

use hapax::record::{ClaimOutcome, Fence, State};
use hapax::store::{Batch, DedupStore, Retention, SqliteStore, StoreErrorKind};
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous};
use sqlx::{ConnectOptions, Executor, SqliteConnection};

use crate::agree::agree;
use crate::common::{HOUR, SUCCESS, asks, claim_one, granted, is_acquired, key, settle, settle_one, sighting, terms};
use crate::support::random;

async fn session(path: &std::path::Path) -> SqliteConnection {
    SqliteConnectOptions::new().filename(path).create_if_missing(true).connect().await.unwrap()
}

fn errors(report: &hapax::store::Report) -> Vec<&'static str> {
    report.errors().map(|finding| finding.setting).collect()
}

async fn made(path: &std::path::Path) -> SqliteStore {
    let store = SqliteStore::open(path).await.unwrap();
    store.ensure_schema().await.unwrap();
    store
}

#[tokio::test]
async fn sqlite_agrees_with_memory() {
    let folder = tempfile::tempdir().unwrap();
    agree(&made(&folder.path().join("records.db")).await, 150).await;
    let memory = SqliteStore::connect("sqlite::memory:").await.unwrap();
    memory.ensure_schema().await.unwrap();
    agree(&memory, 100).await;
    // A pool of the user's.
    let path = folder.path().join("pooled.db");
    let options = SqliteConnectOptions::new().filename(&path).create_if_missing(true);
    let pool = SqlitePoolOptions::new().max_connections(3);
    let pooled = SqliteStore::new(pool.connect_with(options.journal_mode(SqliteJournalMode::Wal)).await.unwrap());
    pooled.ensure_schema().await.unwrap();
    agree(&pooled, 60).await;
}

#[tokio::test]
async fn a_database_of_utf_16_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("utf16.db");
    session(&path).await.execute("PRAGMA encoding = 'UTF-16le'; CREATE TABLE theirs (a TEXT)").await.unwrap();
    let store = SqliteStore::open(&path).await.unwrap();
    let error = store.ensure_schema().await.unwrap_err();
    assert!(error.kind() == StoreErrorKind::Refused && error.to_string().contains("UTF-16"), "{error}");
    assert_eq!(errors(&store.check().await.unwrap()), ["table"]);
}

#[tokio::test]
async fn sqlite_opens_paths_and_urls() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a b%c?.db");
    made(&path).await;
    assert!(path.exists());
    let plain = folder.path().join("plain.db");
    let plain_name = plain.to_str().unwrap();
    for url in
        [format!("sqlite:{plain_name}"), format!("sqlite://{plain_name}"), format!("sqlite:{plain_name}?mode=rwc")]
    {
        SqliteStore::connect(&url).await.unwrap().ensure_schema().await.unwrap();
        assert!(plain.exists(), "{url}");
    }
    for wrong in ["", "sqlite:", "postgres://x", "records.db"] {
        assert_eq!(SqliteStore::connect(wrong).await.unwrap_err().kind(), StoreErrorKind::Refused, "{wrong}");
    }
    let nowhere = SqliteStore::open(folder.path().join("no/such/folder.db")).await.unwrap_err();
    assert_eq!(nowhere.kind(), StoreErrorKind::Refused, "{nowhere}");
    let missing = SqliteStore::connect(&format!("sqlite:{plain_name}x?mode=rw")).await.unwrap_err();
    assert_eq!(missing.kind(), StoreErrorKind::Refused, "{missing}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn f30_one_winner_for_each_message_over_many_openers_of_a_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = Arc::new(folder.path().join("records.db"));
    let set = random();
    let racers: Vec<_> = (0..5_u64)
        .map(|owner| {
            let path = Arc::clone(&path);
            tokio::spawn(async move {
                // All make the table, all at once.
                let store = SqliteStore::open(&*path).await.unwrap().with_lock_timeout(Duration::from_secs(60));
                store.ensure_schema().await.unwrap();
                let mut won = Vec::new();
                for round in 0..20 {
                    let batch = asks(set, round * 20..round * 20 + 40);
                    for (ask, outcome) in
                        batch.items().iter().zip(store.claim(&terms(owner, HOUR), &batch).await.unwrap())
                    {
                        if let ClaimOutcome::Acquired(grant) = outcome {
                            assert_eq!(grant.token.fence, Fence::FIRST);
                            won.push((ask.sighting.key, owner));
                        }
                    }
                }
                won.sort();
                won.dedup();
                won
            })
        })
        .collect();
    let mut won = Vec::new();
    for racer in racers {
        won.extend(racer.await.unwrap());
    }
    won.sort();
    assert_eq!(won.len(), 420, "every message has one winner");
    won.dedup_by_key(|(key, _)| *key);
    assert_eq!(won.len(), 420, "and only one");
}

#[tokio::test(flavor = "multi_thread")]
async fn f06_a_locked_file_claims_nothing_and_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("records.db");
    let store = made(&path).await.with_lock_timeout(Duration::from_millis(50));
    let mut other = session(&path).await;
    other.execute("BEGIN IMMEDIATE").await.unwrap();
    let batch = asks(random(), 0..10);
    let error = store.claim(&terms(1, HOUR), &batch).await.unwrap_err();
    assert!(error.is_retryable() && error.to_string().contains("locked"), "{error}");
    // Longer patience outlasts a short transaction.
    let patient = store.clone().with_lock_timeout(Duration::from_secs(60));
    let waiting = {
        let batch = batch.clone();
        tokio::spawn(async move { patient.claim(&terms(1, HOUR), &batch).await })
    };
    tokio::time::sleep(Duration::from_millis(100)).await;
    other.execute("COMMIT").await.unwrap();
    assert!(waiting.await.unwrap().unwrap().iter().all(is_acquired));
}

#[tokio::test]
async fn what_was_settled_is_there_when_the_file_is_opened_again() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("records.db");
    let set = random();
    let batch = asks(set, 0..700);
    let store = made(&path).await;
    let grants = store.claim(&terms(1, HOUR), &batch).await.unwrap();
    let settles: Batch<_> =
        batch.items().iter().zip(&grants).map(|(ask, grant)| settle(&ask.sighting, granted(grant), SUCCESS)).collect();
    store.settle(&settles).await.unwrap();
    drop(store);
    let store = made(&path).await;
    let outcomes = store.claim(&terms(2, HOUR), &batch).await.unwrap();
    assert!(outcomes.iter().all(|outcome| matches!(outcome, ClaimOutcome::Duplicate { .. })));
}

#[tokio::test]
async fn f14_leases_are_counted_by_the_databases_clock() {
    let store = SqliteStore::open(":memory:").await.unwrap();
    store.ensure_schema().await.unwrap();
    let minute = Duration::from_secs(60);
    granted(&claim_one(&store, &terms(1, minute), &sighting(1, 1)).await);
    match claim_one(&store, &terms(2, minute), &sighting(1, 1)).await {
        ClaimOutcome::InFlight { remaining } => assert!(remaining <= minute && remaining > minute / 2, "{remaining:?}"),
        other => panic!("{other:?}"),
    }
    let record = store.get(&Batch::one(key(1, 1))).await.unwrap().remove(0).unwrap();
    let State::Processing { until } = record.state else { panic!("{record:?}") };
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_millis();
    let ahead = i128::from(until) - i128::try_from(now).unwrap();
    assert!((30_000..=60_500).contains(&ahead), "{ahead} ms");
}

#[tokio::test]
async fn unsafe_settings_of_sqlite_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("records.db");
    let store = made(&path).await;
    let report = store.check().await.unwrap();
    assert_eq!(report.findings(), [], "{report:?}");
    let options = |path: &std::path::Path| SqliteConnectOptions::new().filename(path).create_if_missing(true);
    let plain = |name: &str| folder.path().join(name);
    for (options, wanted) in [
        (options(&path).synchronous(SqliteSynchronous::Off), "synchronous"),
        (options(&path).pragma("query_only", "1"), "query_only"),
        (options(&plain("off.db")).journal_mode(SqliteJournalMode::Off), "journal_mode"),
        (options(&plain("memory.db")).journal_mode(SqliteJournalMode::Memory), "journal_mode"),
    ] {
        let pool = SqlitePoolOptions::new().max_connections(1).connect_with(options).await.unwrap();
        let store = SqliteStore::new(pool);
        store.ensure_schema().await.unwrap();
        let report = store.check().await.unwrap();
        assert_eq!(errors(&report), [wanted], "{report:?}");
    }
    let pool = SqlitePoolOptions::new().max_connections(1);
    let deleting = options(&plain("delete.db")).journal_mode(SqliteJournalMode::Delete).busy_timeout(Duration::ZERO);
    let store = SqliteStore::new(pool.connect_with(deleting).await.unwrap());
    store.ensure_schema().await.unwrap();
    let report = store.check().await.unwrap();
    let warnings: Vec<_> = report.warnings().map(|finding| finding.setting).collect();
    assert_eq!((errors(&report), warnings), (vec![], vec!["journal_mode", "busy_timeout"]), "{report:?}");
    let memory = SqliteStore::open(":memory:").await.unwrap();
    memory.ensure_schema().await.unwrap();
    let report = memory.check().await.unwrap();
    assert!(errors(&report).is_empty() && report.names("memory"), "{report:?}");
}

#[tokio::test]
async fn f44_a_sqlite_table_that_is_not_as_it_should_be_is_refused() {
    let columns = "fingerprint BLOB NOT NULL, state INTEGER NOT NULL, attempts INTEGER NOT NULL, owner INTEGER NOT NULL, \
                   fence INTEGER NOT NULL, time INTEGER NOT NULL, origin BLOB NOT NULL, result BLOB";
    for (table, after, wanted) in [
        (format!("/* hapax schema 1 */ message_key BLOB NOT NULL, {columns}"), "", "unique_index"),
        (
            format!("/* hapax schema 1 */ message_key BLOB NOT NULL, {columns}"),
            "CREATE UNIQUE INDEX i ON hapax_records (message_key) WHERE state = 0",
            "unique_index",
        ),
        (
            format!("/* hapax schema 1 */ message_key BLOB NOT NULL, {columns}, UNIQUE (message_key, owner)"),
            "",
            "unique_index",
        ),
        (format!("/* hapax schema 1 */ message_key TEXT NOT NULL PRIMARY KEY, {columns}"), "", "columns"),
        (format!("/* hapax schema 2 */ message_key BLOB NOT NULL PRIMARY KEY, {columns}"), "", "table"),
        (format!("message_key BLOB NOT NULL PRIMARY KEY, {columns}"), "", "table"),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("records.db");
        let sql = format!("CREATE TABLE hapax_records ({table}); {after}");
        session(&path).await.execute(sqlx::AssertSqlSafe(sql.clone())).await.unwrap();
        let store = SqliteStore::open(&path).await.unwrap();
        let report = store.check().await.unwrap();
        assert_eq!(errors(&report), [wanted], "{sql}: {report:?}");
        assert_eq!(store.ensure_schema().await.is_err(), wanted == "table", "{sql}");
    }
    let folder = tempfile::tempdir().unwrap();
    let store = SqliteStore::open(folder.path().join("empty.db")).await.unwrap();
    assert_eq!(errors(&store.check().await.unwrap()), ["table"]);
    let error = store.claim(&terms(1, HOUR), &asks(1, 0..2)).await.unwrap_err();
    assert!(error.kind() == StoreErrorKind::Refused && error.to_string().contains("ensure_schema()"), "{error}");
}

#[tokio::test]
async fn sqlite_names_of_tables_are_checked_and_two_share_a_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("records.db");
    let store = made(&path).await;
    for hostile in ["", "a b", "r\"; DROP TABLE hapax_records; --", "a.b.c", "1a"] {
        assert_eq!(store.clone().with_table(hostile).unwrap_err().kind(), StoreErrorKind::Refused);
    }
    let other = store.clone().with_table("main.select").unwrap();
    other.ensure_schema().await.unwrap();
    assert!(errors(&other.check().await.unwrap()).is_empty());
    granted(&claim_one(&store, &terms(1, HOUR), &sighting(1, 1)).await);
    granted(&claim_one(&other, &terms(2, HOUR), &sighting(1, 1)).await);
}

#[tokio::test]
async fn purging_sqlite_forgets_what_is_past_retention_and_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("records.db");
    let store = made(&path).await.with_retention(Retention::default().succeeded(HOUR));
    let set = random();
    for number in 0..200 {
        let grant = granted(&claim_one(&store, &terms(1, HOUR), &sighting(set, number)).await);
        if number % 2 == 0 {
            settle_one(&store, &sighting(set, number), grant, SUCCESS).await;
        }
    }
    let mut session = session(&path).await;
    session.execute("UPDATE hapax_records SET time = time - 7200000").await.unwrap();
    for number in 300..320 {
        let grant = granted(&claim_one(&store, &terms(1, HOUR), &sighting(set, number)).await);
        settle_one(&store, &sighting(set, number), grant, SUCCESS).await;
    }
    let mut removed = 0;
    loop {
        let purged = store.purge(30).await.unwrap();
        assert!(purged.removed <= 30);
        removed += purged.removed;
        if !purged.more {
            break;
        }
    }
    assert_eq!(removed, 100);
    let left: i64 = sqlx::query_scalar("SELECT count(*) FROM hapax_records").fetch_one(&mut session).await.unwrap();
    assert_eq!(left, 120);
}
