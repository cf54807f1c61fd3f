//! The tables: made by many at once, brought up to date, refused where they are newer or damaged.

use futures_util::future::join_all;
use hapax::Inbox;
use hapax::identity::header;
use hapax::inbox::Accepted;

use crate::base::{Base, everywhere};
use crate::world::{World, message};

/// A file, as a user would run it, with other names.
fn migration<DB: Base>(file: &str, prefix: &str) -> String {
    let path = format!("{}/migrations/{}/{file}.sql", env!("CARGO_MANIFEST_DIR"), DB::KIND);
    std::fs::read_to_string(path).unwrap().replace("hapax_inbox", prefix)
}

async fn version<DB: Base>(world: &World<DB>) -> i64 {
    let text = format!("SELECT version FROM hapax_schema WHERE part = '{}'", world.prefix);
    DB::number(&mut world.session().await, &text).await.unwrap()
}

everywhere! {
async fn one_scope_has_one_inbox<DB>() {
    let world = World::<DB>::new().await;
    let made = join_all((0..8).map(async |_| world.inbox().await)).await;
    assert!(made.iter().all(|inbox| inbox.report().errors().count() == 0));
    world.builder().scope("tests", "another").build().await.unwrap();
    world.inbox().await;
    assert_eq!((world.count("_handlers", "1 = 1").await, world.count("_handlers", "inbox IN (1, 2)").await), (2, 2));
    assert_eq!(version(&world).await, 2);
    // The crate's own table has a row for each set of tables.
    let mut other = World::<DB>::new().await;
    other.prefix = format!("{}_o", world.prefix);
    other.inbox().await;
    assert_eq!(version(&other).await, 2);
}
}

everywhere! {
async fn old_tables_are_brought_up_to_date<DB>() {
    let world = World::<DB>::new().await;
    let mut conn = world.session().await;
    DB::run(&mut conn, &migration::<DB>("0003_inbox", &world.prefix)).await.unwrap();
    assert_eq!(version(&world).await, 1);
    // Something is in them, as the first version left it.
    let handlers = world.table("_handlers");
    let digest = if DB::KIND == "postgres" { "'\\x00000000000000000000000000000001'::bytea" } else { "x'00000000000000000000000000000001'" };
    let row = format!("INSERT INTO {handlers} (inbox, next_id, time, paused, scope_key, consumer_group, handler) VALUES (1, 1099511627777, 0, 0, {digest}, 'g', 'h')");
    DB::run(&mut conn, &row).await.unwrap();
    // Not where nobody may.
    let error = world.builder().without_schema_creation().build().await.unwrap_err();
    assert!(error.to_string().contains("is missing"), "{error}");
    assert_eq!(version(&world).await, 1);
    // By several at once.
    let made = join_all((0..4).map(async |_| world.inbox().await)).await;
    assert_eq!(version(&world).await, 2);
    assert_eq!((world.count("_handlers", "1 = 1").await, world.count("_edits", "1 = 1").await), (2, 0));
    let done = made[3].accept_batch(&[message(1, "k", 0, 0)]).await;
    assert!(matches!(done.outcomes[0], Ok(Accepted::New(id)) if id.0 > 2 << 40), "{done:?}");
    // And by hand, all of it, is as good: nothing is left to be made.
    let by_hand = World::<DB>::new().await;
    let mut conn = by_hand.session().await;
    for file in ["0003_inbox", "0004_inbox_operators", "0003_inbox", "0004_inbox_operators"] {
        DB::run(&mut conn, &migration::<DB>(file, &by_hand.prefix)).await.unwrap();
    }
    let windows = migration::<DB>("0002_windows", &by_hand.prefix).replace("hapax_windows", &by_hand.table("_windows"));
    DB::run(&mut conn, &windows).await.unwrap();
    DB::run(&mut conn, &migration::<DB>("0001_records", "x")).await.unwrap();
    let inbox = by_hand.builder().without_schema_creation().build().await.unwrap();
    assert!(inbox.accept_batch(&[message(1, "k", 0, 0)]).await.outcomes[0].is_ok());
}
}

everywhere! {
async fn newer_tables_are_refused<DB>() {
    let world = World::<DB>::new().await;
    world.inbox().await;
    let newer = format!("UPDATE hapax_schema SET version = 3 WHERE part = '{}'", world.prefix);
    DB::run(&mut world.session().await, &newer).await.unwrap();
    for builder in [world.builder(), world.builder().without_schema_creation()] {
        let said = builder.build().await.unwrap_err().to_string();
        assert!(said.contains("version 3") && said.contains("knows 2") && said.contains("Use the version of hapax"), "{said}");
    }
    assert_eq!(version(&world).await, 3);
}
}

everywhere! {
async fn missing_tables_are_named_and_prefixes_checked<DB>() {
    let world = World::<DB>::new().await;
    let said = world.builder().without_schema_creation().build().await.unwrap_err().to_string();
    assert!(said.contains("missing"), "{said}");
    for wrong in ["", "a b", "a;b", &"x".repeat(41), "a.b.c"] {
        assert!(world.builder().with_tables(wrong).build().await.is_err(), "{wrong}");
    }
    // A folder of tables is missing, and said to be.
    assert!(Inbox::builder(world.pool.clone()).identify(header("id")).build().await.is_err());
}
}

everywhere! {
async fn f44_damaged_tables_are_refused<DB>() {
    let changes: &[(&str, &str)] = match DB::KIND {
        "postgres" => &[
            ("ALTER TABLE {t} DROP CONSTRAINT {t}_message_key_key", "accepted twice"),
            ("ALTER TABLE {t}_handlers DROP CONSTRAINT {t}_handlers_scope_key_key", "two inboxes"),
            ("ALTER TABLE {t} ALTER message_key TYPE text USING encode(message_key, 'hex')", "does not hold bytes"),
            ("ALTER TABLE {t}_open DROP COLUMN alone", "alone"),
            ("DROP TABLE {t}_acts", "_acts"),
        ],
        "mysql" => &[
            ("ALTER TABLE {t} DROP INDEX message_key", "accepted twice"),
            ("ALTER TABLE {t} DROP INDEX message_key, ADD UNIQUE (message_key, id)", "accepted twice"),
            ("ALTER TABLE {t} MODIFY message_key CHAR(16) CHARACTER SET latin1 NOT NULL", "does not hold bytes"),
            ("ALTER TABLE {t}_open DROP COLUMN alone", "alone"),
            ("DROP TABLE {t}_acts", "_acts"),
        ],
        _ => &[
            ("ALTER TABLE {t}_open DROP COLUMN alone", "alone"),
            ("ALTER TABLE {t} DROP COLUMN headers", "headers"),
            ("DROP TABLE {t}_acts", "_acts"),
            ("DROP TABLE {t}; CREATE TABLE {t} (id INTEGER NOT NULL PRIMARY KEY, lane, log_offset, accepted, stamp, not_before, inbox, part, \
              generation, priority, form, message_key BLOB NOT NULL, fingerprint, topic, record_key, headers, payload)", "accepted twice"),
            ("DROP TABLE {t}; CREATE TABLE {t} (id INTEGER NOT NULL PRIMARY KEY, lane, log_offset, accepted, stamp, not_before, inbox, part, \
              generation, priority, form, message_key TEXT NOT NULL UNIQUE, fingerprint, topic, record_key, headers, payload)", "does not hold bytes"),
        ],
    };
    for (change, words) in changes {
        let world = World::<DB>::sized(2).await;
        world.inbox().await;
        DB::run(&mut world.session().await, &change.replace("{t}", &world.prefix)).await.unwrap();
        let said = world.builder().build().await.unwrap_err().to_string();
        assert!(said.contains(words), "{change}: {said}");
        assert!(world.builder().accept_unsafe_settings().build().await.is_ok(), "{change}");
    }
}
}
