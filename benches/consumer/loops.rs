//! The other sides: loops as they are written by hand.

use std::hint::black_box;
use std::time::{Duration, Instant};

use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer as _, StreamConsumer};
use rdkafka::message::{BorrowedMessage, Headers, Message as _};
use rdkafka::{ClientConfig, Offset, TopicPartitionList};
use redis::Value;
use redis::aio::MultiplexedConnection;

use crate::data::{BATCH, expect, fresh, rows};
use crate::figures::{Failure, Run};
use crate::kinds::{Kind, unique};
use crate::topics::{PARTITIONS, PATIENCE};

fn id<'a>(message: &'a BorrowedMessage<'_>) -> Option<&'a [u8]> {
    message.headers()?.iter().find(|header| header.key == "message-id")?.value
}

/// The handler: it looks at the message and does nothing.
fn handle(message: &BorrowedMessage<'_>) {
    black_box((message.payload().map(<[u8]>::len), id(message).map(<[u8]>::len)));
}

/// The next offset of each partition.
#[derive(Default)]
pub struct Next([i64; PARTITIONS as usize]);

impl Next {
    pub fn saw(&mut self, message: &BorrowedMessage<'_>) {
        if let Some(next) = self.0.get_mut(message.partition() as usize) {
            *next = message.offset() + 1;
        }
    }

    pub fn commit(&self, consumer: &BaseConsumer, topic: &str, mode: CommitMode) -> Result<(), Failure> {
        let mut offsets = TopicPartitionList::new();
        for (partition, offset) in (0..).zip(self.0).filter(|(_, offset)| *offset > 0) {
            offsets.add_partition_offset(topic, partition, Offset::Offset(offset))?;
        }
        Ok(consumer.commit(&offsets, mode)?)
    }
}

/// What a careful hand-written loop without deduplication does: it keeps the next offset of each partition and commits once a second.
pub async fn bare(config: ClientConfig, topic: String, messages: usize) -> Result<Run, Failure> {
    let took = tokio::task::spawn_blocking(move || poll(&config, &topic, messages)).await??;
    Ok(Run { messages, took })
}

fn poll(config: &ClientConfig, topic: &str, messages: usize) -> Result<Duration, Failure> {
    let consumer: BaseConsumer = config.create()?;
    consumer.subscribe(&[topic])?;
    let mut next = Next::default();
    let mut handled = 0;
    let mut first = None;
    let mut committed = Instant::now();
    let begun = Instant::now();
    while handled < messages {
        let Some(message) = consumer.poll(Duration::from_millis(100)) else {
            if begun.elapsed() > PATIENCE {
                return Err(format!("the bare loop read {handled} of {messages} messages").into());
            }
            continue;
        };
        let message = message?;
        handle(&message);
        next.saw(&message);
        first.get_or_insert_with(Instant::now);
        handled += 1;
        // The clock is looked at now and then, as a quick loop would.
        if handled % 256 == 0 && committed.elapsed() >= Duration::from_secs(1) {
            next.commit(&consumer, topic, CommitMode::Async)?;
            committed = Instant::now();
        }
    }
    let took = first.map(|first| first.elapsed()).ok_or("no messages")?;
    next.commit(&consumer, topic, CommitMode::Sync)?;
    Ok(took)
}

/// Claims and settles as many new keys by hand as there are messages, 512 at a time, without Kafka.
pub async fn store(kind: &Kind, messages: usize) -> Result<Run, Failure> {
    let batches = messages / BATCH;
    let rows = rows(&fresh(batches));
    let mut opened = kind.bare().await?;
    for rows in crate::data::rows(&fresh(1)) {
        opened.side.insert(&rows).await?;
        opened.side.update(&rows).await?;
    }
    let started = Instant::now();
    for rows in &rows {
        expect("inserted", opened.side.insert(rows).await?, rows.len())?;
        expect("updated", opened.side.update(rows).await?, rows.len())?;
    }
    let took = started.elapsed();
    opened.close().await?;
    Ok(Run { messages: batches * BATCH, took })
}

async fn connect(url: &str) -> Result<MultiplexedConnection, Failure> {
    Ok(redis::Client::open(url)?.get_multiplexed_async_connection().await?)
}

fn claim(prefix: &str, id: Option<&[u8]>) -> redis::Cmd {
    let mut command = redis::cmd("SET");
    command.arg([prefix.as_bytes(), id.unwrap_or_default()].concat()).arg(1).arg("NX").arg("EX").arg(86_400);
    command
}

/// The loop that people write: one message at a time.
pub async fn one_at_a_time(config: ClientConfig, topic: &str, messages: usize, url: &str) -> Result<Run, Failure> {
    let consumer: StreamConsumer = config.create()?;
    consumer.subscribe(&[topic])?;
    let mut redis = connect(url).await?;
    let prefix = unique();
    let mut first = None;
    let mut handled = 0;
    for _ in 0..messages {
        let message = tokio::time::timeout(PATIENCE, consumer.recv()).await??;
        first.get_or_insert_with(Instant::now);
        let new: Option<String> = claim(&prefix, id(&message)).query_async(&mut redis).await?;
        if new.is_some() {
            handle(&message);
            handled += 1;
        }
        consumer.commit_message(&message, CommitMode::Async)?;
    }
    let took = first.map(|first| first.elapsed()).ok_or("no messages")?;
    expect("handled", handled, messages)?;
    tokio::task::spawn_blocking(move || drop(consumer)).await?;
    crate::bare::redis::drop_keys(url, &prefix).await?;
    Ok(Run { messages, took })
}

/// The fastest loop that people write. It loses what it claimed when it is killed, since it claims before it handles and never settles.
pub async fn pipelined(config: ClientConfig, topic: String, messages: usize, url: &str) -> Result<Run, Failure> {
    let redis = connect(url).await?;
    let prefix = unique();
    let (keys, runtime) = (prefix.clone(), tokio::runtime::Handle::current());
    let took =
        tokio::task::spawn_blocking(move || pipeline(&config, &topic, messages, &keys, redis, &runtime)).await??;
    crate::bare::redis::drop_keys(url, &prefix).await?;
    Ok(Run { messages, took })
}

/// What is there, at most so many; waits a moment for the first.
pub fn poll_batch(consumer: &BaseConsumer, most: usize) -> Result<Vec<BorrowedMessage<'_>>, Failure> {
    let mut batch = Vec::with_capacity(most);
    while batch.len() < most {
        let wait = if batch.is_empty() { Duration::from_millis(100) } else { Duration::ZERO };
        match consumer.poll(wait) {
            Some(message) => batch.push(message?),
            None => break,
        }
    }
    Ok(batch)
}

fn pipeline(
    config: &ClientConfig,
    topic: &str,
    messages: usize,
    prefix: &str,
    mut redis: MultiplexedConnection,
    runtime: &tokio::runtime::Handle,
) -> Result<Duration, Failure> {
    let consumer: BaseConsumer = config.create()?;
    consumer.subscribe(&[topic])?;
    let mut next = Next::default();
    let mut handled = 0;
    let mut first = None;
    let begun = Instant::now();
    while handled < messages {
        let batch = poll_batch(&consumer, BATCH)?;
        if batch.is_empty() {
            if begun.elapsed() > PATIENCE {
                return Err(format!("the pipelined loop read {handled} of {messages} messages").into());
            }
            continue;
        }
        first.get_or_insert_with(Instant::now);
        let mut pipe = redis::Pipeline::with_capacity(batch.len());
        for message in &batch {
            pipe.add_command(claim(prefix, id(message)));
        }
        let answers: Vec<Value> = runtime.block_on(pipe.query_async(&mut redis))?;
        for (message, answer) in batch.iter().zip(&answers) {
            if matches!(answer, Value::Okay) {
                handle(message);
                handled += 1;
            }
            next.saw(message);
        }
        next.commit(&consumer, topic, CommitMode::Async)?;
    }
    let took = first.map(|first| first.elapsed()).ok_or("no messages")?;
    expect("handled", handled, messages)?;
    Ok(took)
}
