//! Messages that are taken in: by the inbox, and by hand into one table that has what a hand-writer needs: a unique identity, and an index by which
//! open work is found.

use std::time::Instant;

use hapax::Inbox;
use hapax::identity::header;
use hapax::message::{MessageView as _, Parts};
use sqlx::mysql::MySqlArguments;
use sqlx::sqlite::SqliteArguments;
use sqlx::{
    Arguments as _, AssertSqlSafe, Connection as _, MySql, MySqlConnection, PgConnection, Postgres, Sqlite,
    SqliteConnection,
};

use crate::data::{BATCH, expect};
use crate::database::Place;
use crate::figures::{Bar, Failure, Figures, Run, Side};
use crate::hand::Hand;
use crate::{PAYLOAD, uuid};

pub async fn measure<B: Taking>(figures: &mut Figures) -> Result<(), Failure> {
    let (messages, grown) = (figures.args.number("messages"), figures.args.number("grown"));
    let least = if B::WORD == "sqlite" { 0.6 } else { 0.8 };
    let name = |what: &str| format!("{}_{what}", B::WORD);
    let side = async |side| match side {
        Side::Ours => ours::<B>(messages, 0).await,
        Side::Bare => by_hand::<B>(messages).await,
    };
    figures.measure(&name("accept"), Bar::Ratio(least), side).await?;
    let side = async |side| ours::<B>(messages, if side == Side::Ours { grown } else { 0 }).await;
    figures.measure(&name("accept_grown"), Bar::Ratio(0.7), side).await?;
    bytes::<B>(figures, messages / 2).await
}

/// Poll batches, each with ids of their own, from offset 0 on.
fn fresh(messages: usize) -> Vec<Vec<Parts>> {
    let payload = vec![7_u8; PAYLOAD];
    let message = |n: usize| {
        let message = Parts::new("orders").at(0, n as i64).timestamp(1).key(format!("key {}", n % 1000));
        message.payload(payload.clone()).header("message-id", uuid(n))
    };
    (0..messages).step_by(BATCH).map(|first| (first..messages.min(first + BATCH)).map(message).collect()).collect()
}

async fn ours<B: Hand>(messages: usize, grown: usize) -> Result<Run, Failure> {
    let place = Place::<B>::new().await?;
    let run = ours_in(&place, messages, grown).await?;
    place.close().await?;
    Ok(run)
}

async fn ours_in<B: Hand>(place: &Place<B>, messages: usize, grown: usize) -> Result<Run, Failure> {
    let inbox = Inbox::builder(place.pool.clone()).scope("bench", "accept").identify(header("message-id"));
    let inbox = inbox.build().await?;
    if grown > 0 {
        B::script(&mut *place.pool.acquire().await?, B::grown(grown)).await?;
    }
    let batches = fresh(messages + BATCH);
    // The first takes the partition, and draws ids.
    let mut started = Instant::now();
    for (number, batch) in batches.iter().enumerate() {
        if number == 1 {
            started = Instant::now();
        }
        let accepted = inbox.accept_batch(batch).await;
        expect("accepted messages", accepted.outcomes.iter().filter(|one| one.is_ok()).count(), batch.len())?;
    }
    let took = started.elapsed();
    expect("messages", place.number("SELECT COUNT(*) FROM hapax_inbox_open").await?, messages + BATCH)?;
    Ok(Run { messages, took })
}

async fn by_hand<B: Taking>(messages: usize) -> Result<Run, Failure> {
    let place = Place::<B>::new().await?;
    let run = by_hand_in(&place, messages).await?;
    place.close().await?;
    Ok(run)
}

async fn by_hand_in<B: Taking>(place: &Place<B>, messages: usize) -> Result<Run, Failure> {
    let mut conn = place.pool.acquire().await?;
    B::script(&mut conn, B::MADE.to_owned()).await?;
    let batches = fresh(messages + BATCH);
    let mut started = Instant::now();
    for (number, batch) in batches.iter().enumerate() {
        if number == 1 {
            started = Instant::now();
        }
        let mut tx = conn.begin().await?;
        expect("inserted messages", usize::try_from(B::insert(&mut tx, batch).await?)?, batch.len())?;
        tx.commit().await?;
    }
    let took = started.elapsed();
    drop(conn);
    expect("messages", place.number("SELECT COUNT(*) FROM taken WHERE state = 0").await?, messages + BATCH)?;
    Ok(Run { messages, took })
}

/// Bytes a message: written to the log, and kept by all tables.
async fn bytes<B: Taking>(figures: &mut Figures, messages: usize) -> Result<(), Failure> {
    let names = ["wal_bytes", "table_bytes"].map(|what| format!("{}_accept_{what}", B::WORD));
    if !figures.wants_any(&names) {
        return Ok(());
    }
    if figures.args.list {
        names.iter().for_each(|name| println!("{name}"));
        return Ok(());
    }
    let mut left = Vec::new();
    for side in [Side::Ours, Side::Bare] {
        let place = Place::<B>::make(false).await?;
        let (logged, kept) = (B::logged(&place).await?, B::kept(&place).await?);
        match side {
            Side::Ours => ours_in(&place, messages, 0).await?,
            Side::Bare => by_hand_in(&place, messages).await?,
        };
        let each = |bytes: i64| bytes as f64 / (messages + BATCH) as f64;
        left.push([each(B::logged(&place).await? - logged), each(B::kept(&place).await? - kept)]);
        place.close().await?;
    }
    if let [ours, bare] = left[..] {
        for (name, (ours, bare)) in names.iter().zip(ours.into_iter().zip(bare)) {
            figures.state(name, ours, bare, ours / bare, Bar::None);
        }
    }
    Ok(())
}

/// Headers as one value, as a hand-writer keeps them.
fn packed(message: &Parts) -> Vec<u8> {
    let mut packed = Vec::new();
    message.for_each_header(&mut |name, value| {
        packed.extend(name.as_bytes());
        packed.push(b'=');
        packed.extend(value.unwrap_or_default());
        packed.push(b'\n');
    });
    packed
}

fn id(message: &Parts) -> &[u8] {
    hapax::message::MessageView::header(message, "message-id").unwrap_or_default()
}

#[allow(async_fn_in_trait, reason = "nobody spawns them")]
pub trait Taking: Hand {
    /// The table.
    const MADE: &'static str;

    /// All of a batch that are not there, in one statement; says how many.
    async fn insert(conn: &mut Self::Connection, batch: &[Parts]) -> sqlx::Result<u64>;
}

impl Taking for Postgres {
    const MADE: &'static str = "CREATE TABLE taken (id bigserial PRIMARY KEY, accepted timestamptz NOT NULL DEFAULT now(), stamp bigint, \
        log_offset bigint NOT NULL, part integer NOT NULL, state smallint NOT NULL DEFAULT 0, attempts smallint NOT NULL DEFAULT 0, \
        identity bytea NOT NULL UNIQUE, topic text NOT NULL, record_key bytea, headers bytea, payload bytea);
        CREATE INDEX taken_open ON taken (id) WHERE state = 0";

    async fn insert(conn: &mut PgConnection, batch: &[Parts]) -> sqlx::Result<u64> {
        let sql = "INSERT INTO taken (identity, topic, part, log_offset, stamp, record_key, headers, payload) SELECT * FROM \
            unnest($1::bytea[], $2::text[], $3::int[], $4::bigint[], $5::bigint[], $6::bytea[], $7::bytea[], $8::bytea[]) ON CONFLICT DO NOTHING";
        let query = sqlx::query(sql)
            .bind(batch.iter().map(id).collect::<Vec<_>>())
            .bind(batch.iter().map(|message| message.topic()).collect::<Vec<_>>())
            .bind(batch.iter().map(|message| message.partition()).collect::<Vec<_>>())
            .bind(batch.iter().map(|message| message.offset()).collect::<Vec<_>>())
            .bind(batch.iter().map(|message| message.timestamp_ms()).collect::<Vec<_>>())
            .bind(batch.iter().map(hapax::message::MessageView::key).collect::<Vec<_>>())
            .bind(batch.iter().map(packed).collect::<Vec<_>>())
            .bind(batch.iter().map(hapax::message::MessageView::payload).collect::<Vec<_>>());
        Ok(query.execute(conn).await?.rows_affected())
    }
}

const COLUMNS: &str = "identity, topic, part, log_offset, stamp, record_key, headers, payload";

impl Taking for MySql {
    const MADE: &'static str = "CREATE TABLE taken (id BIGINT AUTO_INCREMENT PRIMARY KEY, accepted TIMESTAMP(3) NOT NULL DEFAULT NOW(3), stamp BIGINT, \
        log_offset BIGINT NOT NULL, part INT NOT NULL, state SMALLINT NOT NULL DEFAULT 0, attempts SMALLINT NOT NULL DEFAULT 0, \
        identity VARBINARY(255) NOT NULL UNIQUE, topic VARCHAR(249) CHARACTER SET utf8mb4 COLLATE utf8mb4_bin NOT NULL, record_key LONGBLOB, \
        headers LONGBLOB, payload LONGBLOB, KEY open (state, id)) ENGINE = InnoDB";

    async fn insert(conn: &mut MySqlConnection, batch: &[Parts]) -> sqlx::Result<u64> {
        let mut tuples = "(?,?,?,?,?,?,?,?),".repeat(batch.len());
        tuples.pop();
        let sql = format!("INSERT IGNORE INTO taken ({COLUMNS}) VALUES {tuples}");
        let mut a = MySqlArguments::default();
        let add = |message: &Parts| {
            a.add(id(message))?;
            a.add(message.topic())?;
            a.add(message.partition())?;
            a.add(message.offset())?;
            a.add(message.timestamp_ms())?;
            a.add(hapax::message::MessageView::key(message))?;
            a.add(packed(message))?;
            a.add(hapax::message::MessageView::payload(message))
        };
        batch.iter().try_for_each(add).map_err(sqlx::Error::Encode)?;
        Ok(sqlx::query_with(AssertSqlSafe(sql), a).execute(conn).await?.rows_affected())
    }
}

impl Taking for Sqlite {
    const MADE: &'static str = "CREATE TABLE taken (id INTEGER PRIMARY KEY, accepted INTEGER NOT NULL DEFAULT (unixepoch() * 1000), stamp INTEGER, \
        log_offset INTEGER NOT NULL, part INTEGER NOT NULL, state INTEGER NOT NULL DEFAULT 0, attempts INTEGER NOT NULL DEFAULT 0, \
        identity BLOB NOT NULL UNIQUE, topic TEXT NOT NULL, record_key BLOB, headers BLOB, payload BLOB);
        CREATE INDEX taken_open ON taken (id) WHERE state = 0";

    async fn insert(conn: &mut SqliteConnection, batch: &[Parts]) -> sqlx::Result<u64> {
        let mut tuples = "(?,?,?,?,?,?,?,?),".repeat(batch.len());
        tuples.pop();
        let sql = format!("INSERT INTO taken ({COLUMNS}) VALUES {tuples} ON CONFLICT DO NOTHING");
        let mut a = SqliteArguments::default();
        let owned = |bytes: Option<&[u8]>| bytes.map(<[u8]>::to_vec);
        let add = |message: &Parts| {
            a.add(id(message).to_vec())?;
            a.add(message.topic().to_owned())?;
            a.add(message.partition())?;
            a.add(message.offset())?;
            a.add(message.timestamp_ms())?;
            a.add(owned(hapax::message::MessageView::key(message)))?;
            a.add(packed(message))?;
            a.add(owned(hapax::message::MessageView::payload(message)))
        };
        batch.iter().try_for_each(add).map_err(sqlx::Error::Encode)?;
        Ok(sqlx::query_with(AssertSqlSafe(sql), a).execute(conn).await?.rows_affected())
    }
}
