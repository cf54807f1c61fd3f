//! Whose fault it is when the database refuses: a message is given up for what is wrong with itself, and for nothing else.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use hapax::consumer::Consumer;
use hapax::inbox::{AcceptBatch, AcceptError, Accepted, Oversize};
use hapax::message::Parts;
use hapax::{DeadLetter, Inbox, Retry};
use sqlx::postgres::PgPoolOptions;
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions};
use sqlx::{MySql, Pool, Postgres, Sqlite};
use tokio_util::sync::CancellationToken;

use crate::base::{Base, Site, everywhere, everywhere_served};
use crate::support::{Kafka, PATIENCE, Record, ThrowawayMariadb, eventually, unique};
use crate::world::{World, message};

fn batch(from: i64, to: i64) -> Vec<Parts> {
    (from..to).map(|id| message(id, "k", 0, id)).collect()
}

fn all_new(done: &AcceptBatch) -> bool {
    done.outcomes.iter().all(|outcome| matches!(outcome, Ok(Accepted::New(_))))
}

/// Refused as a whole: the message is not to blame, and what is wrong is named.
fn is_refused(done: &AcceptBatch, cure: &str) {
    for outcome in &done.outcomes {
        let Err(error @ AcceptError::Database(_)) = outcome else { panic!("{outcome:?}") };
        assert!(!error.is_retryable() && error.to_string().contains(cure), "{error}");
    }
    assert!(done.commits.is_empty());
}

async fn alter<DB: Base>(world: &World<DB>, text: &str) {
    DB::run(&mut world.session().await, text).await.unwrap();
}

everywhere! {
async fn f44_a_missing_table_is_nobodys_fault<DB>() {
    let world = World::<DB>::new().await;
    let inbox = world.inbox().await;
    assert!(all_new(&inbox.accept_batch(&batch(0, 5)).await));
    let (open, away) = (world.table("_open"), world.table("_away"));
    alter(&world, &format!("ALTER TABLE {open} RENAME TO {away}")).await;
    for _ in 0..3 {
        is_refused(&inbox.accept_batch(&batch(5, 20)).await, "table is missing");
    }
    alter(&world, &format!("ALTER TABLE {away} RENAME TO {open}")).await;
    assert!(all_new(&inbox.accept_batch(&batch(5, 20)).await));
    assert_eq!((world.count("", "1 = 1").await, world.count("_open", "1 = 1").await), (20, 20));
}
}

everywhere! {
async fn ids_that_are_drawn_twice_are_nobodys_fault<DB>() {
    let world = World::<DB>::new().await;
    assert!(all_new(&world.inbox().await.accept_batch(&batch(0, 20)).await));
    // As if this table alone came out of a backup.
    let back = format!("UPDATE {} SET next_id = next_id - 16384", world.table("_handlers"));
    alter(&world, &back).await;
    let inbox = world.inbox().await;
    for _ in 0..2 {
        is_refused(&inbox.accept_batch(&batch(20, 30)).await, "set next_id above");
    }
    assert_eq!((world.count("", "1 = 1").await, world.count("_open", "1 = 1").await), (20, 20));
    alter(&world, &format!("UPDATE {} SET next_id = next_id + 100000", world.table("_handlers"))).await;
    assert!(all_new(&world.inbox().await.accept_batch(&batch(20, 30)).await));
    assert_eq!(world.count("_open", "1 = 1").await, 30);
    // What comes again under ids of messages that were handled opens none of them.
    alter(&world, &format!("DELETE FROM {}", world.table("_open"))).await;
    alter(&world, &back).await;
    let again: Vec<_> = (20..30).map(|id| message(id, "k", 1, id)).collect();
    let done = world.inbox().await.accept_batch(&again).await;
    assert!(!done.outcomes.iter().any(|outcome| matches!(outcome, Ok(Accepted::New(_)))), "{done:?}");
    assert_eq!((world.count("", "1 = 1").await, world.count("_open", "1 = 1").await), (30, 0));
}
}

everywhere_served! {
async fn f34_a_table_that_somebody_locks_is_nobodys_fault<DB>() {
    let world = World::<DB>::new().await;
    let inbox = world.builder().lock_timeout(Duration::from_millis(300)).build().await.unwrap();
    assert!(all_new(&inbox.accept_batch(&batch(0, 5)).await));
    let mut other = world.session().await;
    let open = world.table("_open");
    let (lock, unlock) = match DB::KIND {
        "mysql" => (format!("LOCK TABLES {open} WRITE"), "UNLOCK TABLES"),
        _ => (format!("BEGIN; LOCK TABLE {open} IN ACCESS EXCLUSIVE MODE"), "COMMIT"),
    };
    DB::run(&mut other, &lock).await.unwrap();
    let held = inbox.accept_batch(&batch(5, 8)).await;
    let busy = |outcome: &Result<_, AcceptError>| matches!(outcome, Err(error @ AcceptError::Busy { .. }) if error.is_retryable());
    assert!(held.outcomes.iter().all(busy), "{held:?}");
    DB::run(&mut other, unlock).await.unwrap();
    assert!(all_new(&inbox.accept_batch(&batch(5, 8)).await));
    assert_eq!(world.count("_open", "1 = 1").await, 8);
}
}

everywhere_served! {
async fn a_check_of_the_tables_owner_is_about_one_message<DB>() {
    let world = World::<DB>::new().await;
    let inbox = world.inbox().await;
    let table = world.table("");
    alter(&world, &format!("ALTER TABLE {table} ADD CONSTRAINT {table}_short CHECK (length(payload) < 100)")).await;
    // Each of a key of its own: nothing waits behind it.
    let mut messages: Vec<_> = (0..40).map(|id| message(id, &format!("k{id}"), 0, id)).collect();
    messages[17] = message(17, "k17", 0, 17).payload(vec![7_u8; 100]);
    // The others are there at once; it stays unfinished, however often it is handed in.
    for turn in 0..3 {
        let done = inbox.accept_batch(&messages).await;
        for (at, outcome) in done.outcomes.iter().enumerate() {
            match outcome {
                Err(error @ AcceptError::Unfit { .. }) if at == 17 => assert!(!error.is_retryable(), "{error}"),
                Ok(Accepted::New(_)) if at != 17 && turn == 0 => {}
                Ok(Accepted::Redelivered) if at != 17 && turn > 0 => {}
                other => panic!("{at}, {turn}: {other:?}"),
            }
        }
        assert_eq!(done.commits[0].offset, 17);
    }
    let drop = if DB::KIND == "mysql" { "DROP CONSTRAINT" } else { "DROP CONSTRAINT IF EXISTS" };
    alter(&world, &format!("ALTER TABLE {table} {drop} {table}_short")).await;
    let done = inbox.accept_batch(&messages).await;
    assert!(done.outcomes.iter().all(Result::is_ok), "{done:?}");
    assert_eq!(done.commits[0].offset, 40);
    assert_eq!((world.count("", "1 = 1").await, world.count("_open", "1 = 1").await), (40, 40));
}
}

/// With a pool of one connection, so that what is set for it holds.
async fn alone<DB: Base>() -> (World<DB>, Inbox<DB>) {
    let mut world = World::<DB>::new().await;
    world.pool = DB::pool(&world.site, 1).await;
    let inbox = world.builder().store_patience(Duration::from_millis(500)).build().await.unwrap();
    assert!(all_new(&inbox.accept_batch(&batch(0, 5)).await));
    (world, inbox)
}

async fn set<DB: Base>(pool: &Pool<DB>, text: &str) {
    DB::run(&mut *pool.acquire().await.unwrap(), text).await.unwrap();
}

/// What is set for the only connection of a pool, and for those that may follow it.
struct Setting(Arc<Mutex<String>>);

impl Setting {
    async fn change(&self, pool: &Pool<Sqlite>, text: &str) {
        text.clone_into(&mut self.0.lock().unwrap());
        set(pool, text).await;
    }
}

async fn embedded(text: &str) -> (World<Sqlite>, Setting) {
    let mut world = World::<Sqlite>::new().await;
    let setting = Arc::new(Mutex::new(text.to_owned()));
    let options = SqliteConnectOptions::new().filename(&world.site.url).journal_mode(SqliteJournalMode::Wal);
    let now = Arc::clone(&setting);
    let pool = SqlitePoolOptions::new().max_connections(1).after_connect(move |conn, _| {
        let text = now.lock().unwrap().clone();
        Box::pin(async move { Sqlite::run(conn, &text).await.map(drop) })
    });
    world.pool = pool.connect_with(options).await.unwrap();
    (world, Setting(setting))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f35_a_connection_to_a_server_that_became_read_only_is_left() {
    let (world, inbox) = alone::<Postgres>().await;
    set(&world.pool, "SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY").await;
    assert!(all_new(&inbox.accept_batch(&batch(5, 9)).await));
    let (world, inbox) = alone::<MySql>().await;
    set(&world.pool, "SET SESSION TRANSACTION READ ONLY").await;
    assert!(all_new(&inbox.accept_batch(&batch(5, 9)).await));
    assert_eq!(world.count("_open", "1 = 1").await, 9);
    let (world, setting) = embedded("PRAGMA query_only = 0").await;
    let inbox = world.inbox().await;
    assert!(all_new(&inbox.accept_batch(&batch(0, 5)).await));
    setting.change(&world.pool, "PRAGMA query_only = 1").await;
    is_refused(&inbox.accept_batch(&batch(5, 9)).await, "read-only");
    setting.change(&world.pool, "PRAGMA query_only = 0").await;
    assert!(all_new(&inbox.accept_batch(&batch(5, 9)).await));
    assert_eq!(world.count("_open", "1 = 1").await, 9);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_is_waited_for() {
    let (world, setting) = embedded("PRAGMA max_page_count = 1000000").await;
    let inbox = world.builder().store_patience(Duration::from_millis(500)).build().await.unwrap();
    assert!(all_new(&inbox.accept_batch(&batch(0, 5)).await));
    // No page more than there are.
    setting.change(&world.pool, "PRAGMA max_page_count = 1").await;
    let wide: Vec<_> = (5..9).map(|id| message(id, "k", 0, id).payload(vec![7_u8; 50_000])).collect();
    let done = inbox.accept_batch(&wide).await;
    for outcome in &done.outcomes {
        let Err(error @ AcceptError::Database(_)) = outcome else { panic!("{outcome:?}") };
        assert!(error.is_retryable() && error.to_string().contains("disk is full"), "{error}");
    }
    setting.change(&world.pool, "PRAGMA max_page_count = 1000000").await;
    assert!(all_new(&inbox.accept_batch(&wide).await));
    assert_eq!(world.count("_open", "1 = 1").await, 9);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_right_that_is_missing_is_nobodys_fault() {
    let world = World::<Postgres>::new().await;
    assert!(all_new(&world.inbox().await.accept_batch(&batch(0, 5)).await));
    let role = unique("r");
    let all = ["", "_open", "_handlers", "_runs", "_attempts", "_edits", "_acts", "_windows"]
        .map(|end| world.table(end))
        .join(", ");
    alter(&world, &format!("CREATE ROLE {role}; GRANT pg_read_all_data TO {role}; GRANT ALL ON {all} TO {role}; REVOKE INSERT ON {} FROM {role}", world.table("_open")))
        .await;
    let as_role = format!("SET ROLE {role}");
    let one = PgPoolOptions::new().max_connections(2).after_connect(move |conn, _| {
        let as_role = as_role.clone();
        Box::pin(async move { Postgres::run(conn, &as_role).await.map(drop) })
    });
    let one = one.connect(&world.site.url).await.unwrap();
    let inbox = world.builder_over(&one).without_schema_creation().build().await.unwrap();
    for _ in 0..2 {
        is_refused(&inbox.accept_batch(&batch(5, 20)).await, "lacks a right");
    }
    alter(&world, &format!("GRANT INSERT ON {} TO {role}", world.table("_open"))).await;
    assert!(all_new(&inbox.accept_batch(&batch(5, 20)).await));
    assert_eq!(world.count("_open", "1 = 1").await, 20);
    drop(inbox);
    one.close().await;
    alter(&world, &format!("DROP OWNED BY {role}; DROP ROLE {role}")).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_consumer_stops_for_a_missing_table_and_writes_no_letter() {
    let world = World::<Postgres>::new().await;
    let kafka = Kafka::real();
    let (topic, group) = (unique("inbox"), unique("g"));
    let letters = format!("{topic}.dead");
    kafka.create_topic(&topic, 1).await;
    kafka.create_topic(&letters, 1).await;
    let records: Vec<_> = (0..30)
        .map(|id: i64| Record::to(&topic).partition(0).key("k").payload("x").header("id", id.to_string()))
        .collect();
    kafka.produce(&records).await;
    let consumer = || {
        Consumer::new(kafka.consumer_config(&group))
            .topics([topic.as_str()])
            .retry(Retry::fixed(Duration::from_millis(10)).attempts(3))
            .dead_letter(DeadLetter::topic(&letters))
            .commit_every(Duration::from_millis(100))
    };
    let inbox = world.inbox().await;
    let (open, away) = (world.table("_open"), world.table("_away"));
    alter(&world, &format!("ALTER TABLE {open} RENAME TO {away}")).await;
    let stopped = consumer().run(inbox.accept(), CancellationToken::new());
    let error = tokio::time::timeout(PATIENCE, stopped).await.expect("it stops by itself").unwrap_err();
    assert!(error.to_string().contains("table is missing"), "{error}");
    assert_eq!(kafka.watermarks(&letters, 0).await.1, 0);
    alter(&world, &format!("ALTER TABLE {away} RENAME TO {open}")).await;
    let stop = CancellationToken::new();
    let inbox = world.inbox().await;
    let running = tokio::spawn(consumer().run(inbox.accept(), stop.clone()));
    eventually(PATIENCE, "its commits", async || kafka.committed(&group, &topic, 0).await == Some(30)).await;
    stop.cancel();
    running.await.unwrap().unwrap();
    assert_eq!((world.count("", "1 = 1").await, world.count("_open", "1 = 1").await), (30, 30));
    assert_eq!(kafka.watermarks(&letters, 0).await.1, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_packet_cannot_hold_is_split_or_said() {
    let server = ThrowawayMariadb::start(&[("max-allowed-packet", "1048576")]);
    let mut world = World::<MySql>::new().await;
    world.site = Site::at(server.url());
    world.pool = MySql::pool(&world.site, 4).await;
    let wide = |id: i64, bytes: usize| message(id, &format!("k{id}"), 0, id).payload(vec![7_u8; bytes]);
    let inbox = world.builder().largest_payload(8 << 20, Oversize::Reject).build().await.unwrap();
    // Together larger than a packet, each by itself smaller; the last one as large as may be.
    let mut fits: Vec<_> = (0..6).map(|id| wide(id, 300_000)).collect();
    fits.push(wide(6, (1 << 20) - 2_000));
    assert!(all_new(&inbox.accept_batch(&fits).await));
    let too_large = [wide(7, 10), wide(8, 2 << 20), wide(9, 10), message(10, "k", 0, 10).key(vec![7_u8; 2 << 20])];
    let done = inbox.accept_batch(&too_large).await;
    assert!(done.outcomes[0].is_ok() && done.outcomes[2].is_ok(), "{done:?}");
    for at in [1, 3] {
        let Err(error @ AcceptError::NoRoom { bytes, most, .. }) = &done.outcomes[at] else {
            panic!("{:?}", done.outcomes[at])
        };
        assert!(*bytes > 2 << 20 && *most < 1 << 20 && !error.is_retryable());
        assert!(error.to_string().contains("max_allowed_packet"), "{error}");
    }
    assert_eq!(done.commits[0].offset, 8);
    assert_eq!(inbox.accept_counts().refused, 2);
    let easy = world.builder().largest_payload(8 << 20, Oversize::LeaveOut).build().await.unwrap();
    let done = easy.accept_batch(&too_large).await;
    assert!(matches!(done.outcomes[1], Ok(Accepted::New(_))), "{done:?}");
    assert!(matches!(done.outcomes[3], Err(AcceptError::NoRoom { .. })), "{done:?}");
    assert_eq!(world.count("", "form = 1 AND payload IS NULL AND log_offset = 8").await, 1);
    assert_eq!(world.count("", "1 = 1").await, 10);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn columns_that_would_cut_values_are_found_at_the_start() {
    let world = World::<MySql>::new().await;
    drop(world.inbox().await);
    alter(&world, &format!("ALTER TABLE {} MODIFY payload BLOB NULL", world.table(""))).await;
    let error = world.builder().build().await.unwrap_err();
    assert!(error.to_string().contains("LONGBLOB"), "{error}");
}

everywhere! {
async fn f29_zeros_are_kept_where_they_may_stand<DB>() {
    let world = World::<DB>::new().await;
    let inbox = world.inbox().await;
    let odd = Parts::new("orders").at(0, 0).header("id", "a\0b").header("na\0me", "va\0lue").key("k\0").payload("\0\0");
    let topic = Parts::new("or\0ders").at(0, 0).header("id", "c");
    let like = Parts::new("orders").at(0, 1).header("id", "a").payload("x");
    let done = inbox.accept_batch(&[odd, topic, like]).await;
    assert!(matches!(done.outcomes[0], Ok(Accepted::New(_))) && matches!(done.outcomes[2], Ok(Accepted::New(_))), "{done:?}");
    let Err(error @ AcceptError::Topic { .. }) = &done.outcomes[1] else { panic!("{done:?}") };
    assert!(!error.is_retryable());
    assert_eq!(world.count("", "LENGTH(record_key) = 2 AND LENGTH(payload) = 2").await, 1);
    let shown = inbox.list(hapax::inbox::State::ALL).limit(1).await.unwrap();
    let shown = inbox.show(shown[0].id).await.unwrap().unwrap();
    let wanted = [("id".to_owned(), Some(b"a\0b".to_vec())), ("na\0me".to_owned(), Some(b"va\0lue".to_vec()))];
    assert_eq!((shown.headers.as_slice(), shown.key.as_deref()), (wanted.as_slice(), Some(&b"k\0"[..])));
}
}
