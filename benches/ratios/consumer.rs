//! The consumer on a real Kafka, against a bare `BaseConsumer` loop that reads the same parts.
//!
//! Timed from the first message handled to the last, so that joining the group counts for neither side.

use std::hint::black_box;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use hapax::consumer::{Consumer, Message};
use hapax::identity::position;
use hapax::store::MemoryStore;
use hapax::{Claim, Mode, Once};
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer as _};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{Header, Headers, Message as _, OwnedHeaders};
use rdkafka::producer::{BaseRecord, DefaultProducerContext, Producer, ThreadedProducer};
use rdkafka::{ClientConfig, Offset, TopicPartitionList};
use std::sync::OnceLock;
use tokio_util::sync::CancellationToken;

use crate::data::{BATCH, expect};
use crate::figures::{Bar, Failure, Figures, Run, Side};
use crate::kinds::unique;

const PARTITIONS: i32 = 4;
const PAYLOAD: usize = 200;
/// A consumer is quicker than a store: more messages, for a time that can be measured.
const TIMES: usize = 25;
const PATIENCE: Duration = Duration::from_secs(120);

pub const NAMES: [&str; 2] = ["consumer_plain", "consumer_position_memory"];

pub async fn measure(figures: &mut Figures, brokers: &str) -> Result<(), Failure> {
    if figures.args.list || !NAMES.iter().any(|name| figures.wants(name)) {
        for name in NAMES {
            figures.measure(name, Bar::None, async |_| Err("only listed".into())).await?;
        }
        return Ok(());
    }
    let messages = figures.args.batches * BATCH * TIMES;
    let topic = unique();
    let admin: AdminClient<DefaultClientContext> = ClientConfig::new().set("bootstrap.servers", brokers).create()?;
    let options = AdminOptions::new().operation_timeout(Some(Duration::from_secs(30)));
    let new = NewTopic::new(&topic, PARTITIONS, TopicReplication::Fixed(1));
    for made in admin.create_topics([&new], &options).await? {
        made.map_err(|(topic, code)| format!("topic {topic} was not made: {code}"))?;
    }
    let (at, of) = (brokers.to_owned(), topic.clone());
    tokio::task::spawn_blocking(move || produce(&at, &of, messages)).await??;
    let mut ran = Ok(());
    for (name, mode) in NAMES.into_iter().zip([Mode::AtLeastOnce, Mode::Deduplicated]) {
        if ran.is_ok() {
            ran =
                figures.measure(name, Bar::None, async |side| read(brokers, &topic, messages, mode, side).await).await;
        }
    }
    admin.delete_topics(&[&topic], &options).await?;
    ran
}

fn produce(brokers: &str, topic: &str, messages: usize) -> Result<(), Failure> {
    let producer: ThreadedProducer<DefaultProducerContext> = ClientConfig::new()
        .set("bootstrap.servers", brokers)
        .set("linger.ms", "20")
        .set("queue.buffering.max.messages", "200000")
        .set("acks", "1")
        .create()?;
    let payload = [7_u8; PAYLOAD];
    for n in 0..messages {
        let id = format!("{n:032x}");
        let header = OwnedHeaders::new().insert(Header { key: "message-id", value: Some(&id) });
        let partition = (n % PARTITIONS as usize) as i32;
        let mut record = BaseRecord::<(), [u8]>::to(topic).partition(partition).payload(&payload[..]).headers(header);
        while let Err((error, back)) = producer.send(record) {
            if error != KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull) {
                return Err(error.into());
            }
            record = back;
            std::thread::sleep(Duration::from_millis(5));
        }
    }
    Ok(producer.flush(PATIENCE)?)
}

/// The same client settings for both sides.
fn config(brokers: &str) -> ClientConfig {
    let mut config = ClientConfig::new();
    config
        .set("bootstrap.servers", brokers)
        .set("group.id", unique())
        .set("enable.auto.commit", "false")
        .set("enable.auto.offset.store", "false")
        .set("auto.offset.reset", "earliest")
        .set("fetch.queue.backoff.ms", "10");
    config
}

async fn read(brokers: &str, topic: &str, messages: usize, mode: Mode, side: Side) -> Result<Run, Failure> {
    let config = config(brokers);
    let topic = topic.to_owned();
    let took = match side {
        Side::Ours => consumer(config, topic, messages, mode).await?,
        Side::Bare => tokio::task::spawn_blocking(move || bare(&config, &topic, messages)).await??,
    };
    Ok(Run { messages, took })
}

async fn consumer(config: ClientConfig, topic: String, messages: usize, mode: Mode) -> Result<Duration, Failure> {
    let once =
        Once::builder(MemoryStore::new()).scope("ratios", "read").identify(position()).mode(mode).build().await?;
    let shutdown = CancellationToken::new();
    let first = Arc::new(OnceLock::new());
    let last = Arc::new(OnceLock::new());
    let handler = {
        let (first, last, shutdown) = (Arc::clone(&first), Arc::clone(&last), shutdown.clone());
        let handled = Arc::new(AtomicUsize::new(0));
        move |message: Message, _claim: Claim| {
            black_box((message.payload().map(<[u8]>::len), message.header("message-id").map(<[u8]>::len)));
            match handled.fetch_add(1, Ordering::Relaxed) + 1 {
                1 => {
                    let _ = first.set(Instant::now());
                }
                n if n == messages => {
                    let _ = last.set(Instant::now());
                    shutdown.cancel();
                }
                _ => {}
            }
            async { Ok::<(), Failure>(()) }
        }
    };
    let run = Consumer::new(config).topics([topic]).run(once.each(handler), shutdown);
    let summary = tokio::time::timeout(PATIENCE, run).await??;
    expect("handled", summary.handled as usize, messages)?;
    match (first.get(), last.get()) {
        (Some(first), Some(last)) => Ok(last.duration_since(*first)),
        _ => Err("the consumer ended early".into()),
    }
}

/// What a careful hand-written loop does: it keeps the next offset of each partition and commits once a second.
fn bare(config: &ClientConfig, topic: &str, messages: usize) -> Result<Duration, Failure> {
    let consumer: BaseConsumer = config.create()?;
    consumer.subscribe(&[topic])?;
    let mut next = [0_i64; PARTITIONS as usize];
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
        let id = message.headers().and_then(|headers| headers.iter().find(|header| header.key == "message-id"));
        black_box((message.payload().map(<[u8]>::len), id.and_then(|header| header.value).map(<[u8]>::len)));
        if let Some(next) = next.get_mut(message.partition() as usize) {
            *next = message.offset() + 1;
        }
        first.get_or_insert_with(Instant::now);
        handled += 1;
        // The clock is looked at now and then, as a quick loop would.
        if handled % 256 == 0 && committed.elapsed() >= Duration::from_secs(1) {
            commit(&consumer, topic, &next, CommitMode::Async)?;
            committed = Instant::now();
        }
    }
    let took = first.map(|first| first.elapsed()).ok_or("no messages")?;
    commit(&consumer, topic, &next, CommitMode::Sync)?;
    Ok(took)
}

fn commit(consumer: &BaseConsumer, topic: &str, next: &[i64], mode: CommitMode) -> Result<(), Failure> {
    let mut offsets = TopicPartitionList::new();
    for (partition, offset) in (0..).zip(next) {
        offsets.add_partition_offset(topic, partition, Offset::Offset(*offset))?;
    }
    Ok(consumer.commit(&offsets, mode)?)
}
