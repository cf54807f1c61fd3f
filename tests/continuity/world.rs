//! Members whose effects are counted outside of the crate, and an operator with tools.

use std::collections::BTreeMap;
use std::io::Write;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use hapax::consumer::{Consumer, ConsumerError, Finding, OnReset, Summary};
use hapax::identity::header;
use hapax::store::SqliteStore;
use hapax::{Claim, Message, Once};
use rdkafka::admin::{AdminClient, AdminOptions};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer as _};
use rdkafka::types::RDKafkaErrorCode;
use rdkafka::{ClientConfig, Offset, TopicPartitionList};
use tempfile::TempDir;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tracing::Level;

use crate::support::{Kafka, PATIENCE, Record, eventually, unique};

/// A topic, a group, a store of level L1, and what handlers did.
pub struct World {
    pub kafka: Kafka,
    pub topic: String,
    pub group: String,
    pub effects: Effects,
    folder: TempDir,
}

/// How often each payload was handled.
#[derive(Clone, Debug, Default)]
pub struct Effects(Arc<Mutex<BTreeMap<String, usize>>>);

impl Effects {
    pub fn note(&self, message: &Message) {
        let payload = String::from_utf8(message.payload().unwrap_or_default().to_vec()).unwrap();
        *self.0.lock().unwrap().entry(payload).or_default() += 1;
    }

    /// By its id, where the payload is a heavy one.
    pub fn note_id(&self, message: &Message) {
        let id = String::from_utf8(message.header("id").unwrap().to_vec()).unwrap();
        *self.0.lock().unwrap().entry(id).or_default() += 1;
    }

    pub fn distinct(&self) -> usize {
        self.0.lock().unwrap().len()
    }

    /// Effects of one name: `name 0`, `name 1`, …
    pub fn of(&self, name: &str) -> usize {
        let all = self.0.lock().unwrap();
        all.keys().filter(|payload| payload.split(' ').next() == Some(name)).count()
    }

    pub fn each_once(&self) -> bool {
        self.0.lock().unwrap().values().all(|count| *count == 1)
    }
}

impl World {
    pub async fn new(partitions: i32) -> Self {
        let kafka = Kafka::real();
        let topic = unique("continuity");
        kafka.create_topic(&topic, partitions).await;
        Self { kafka, topic, group: unique("g"), effects: Effects::default(), folder: tempfile::tempdir().unwrap() }
    }

    pub fn config(&self) -> ClientConfig {
        self.kafka.consumer_config(&self.group)
    }

    /// The settings, with another `auto.offset.reset`.
    pub fn reset(&self, reset: &str) -> ClientConfig {
        let mut config = self.config();
        config.set("auto.offset.reset", reset);
        config
    }

    pub fn consumer(&self, config: ClientConfig) -> Consumer {
        Consumer::new(config).topics([&self.topic]).commit_every(Duration::from_millis(100))
    }

    pub async fn store(&self) -> SqliteStore {
        SqliteStore::open(self.folder.path().join("h.db")).await.unwrap()
    }

    pub async fn once(&self) -> Once {
        Once::builder(self.store().await).scope("tests", "continuity").identify(header("id")).build().await.unwrap()
    }

    /// A member with a handler that only notes, and the store's default policy for resets.
    pub async fn start(&self, config: ClientConfig) -> Member {
        self.start_with(self.consumer(config)).await
    }

    pub async fn accept(&self, config: ClientConfig) -> Member {
        self.start_with(self.consumer(config).on_reset(OnReset::Accept)).await
    }

    pub async fn start_with(&self, consumer: Consumer) -> Member {
        let effects = self.effects.clone();
        let handling = self.once().await.each(move |message: Message, _: Claim| {
            effects.note(&message);
            std::future::ready(Ok::<_, String>(()))
        });
        Member::start(consumer, handling)
    }

    /// Produces `name 0`, `name 1`, …, spread over the partitions in turn; the payload is the id.
    pub async fn produce(&self, name: &str, partitions: i32, count: i32) {
        let record = |n: i32| {
            let id = format!("{name} {n}");
            Record::to(&self.topic).partition(n % partitions).payload(&id).header("id", &id)
        };
        self.kafka.produce(&(0..count).map(record).collect::<Vec<_>>()).await;
    }

    /// Waits until these offsets are committed, one for each partition from 0.
    pub async fn committed(&self, expected: &[i64]) {
        for (partition, offset) in (0..).zip(expected) {
            eventually(PATIENCE, &format!("partition {partition} is committed up to {offset}"), async || {
                self.kafka.committed(&self.group, &self.topic, partition).await == Some(*offset)
            })
            .await;
        }
    }

    /// Handles everything there is, and stops.
    pub async fn work(&self, config: ClientConfig, expected: &[i64]) -> Summary {
        let member = self.start(config).await;
        self.committed(expected).await;
        member.stop().await
    }

    /// Waits until there were so many effects.
    pub async fn reach(&self, distinct: usize) {
        eventually(PATIENCE, &format!("{distinct} effects"), async || self.effects.distinct() >= distinct).await;
    }

    /// What a commit of the group says: offset and metadata.
    pub async fn mark(&self, partition: i32) -> Option<(i64, String)> {
        let (config, topic) = (self.tool(), self.topic.clone());
        let look = move || {
            let tool: BaseConsumer = config.create().unwrap();
            let mut list = TopicPartitionList::new();
            list.add_partition(&topic, partition);
            let found = tool.committed_offsets(list, PATIENCE).unwrap();
            let element = found.find_partition(&topic, partition).unwrap();
            match element.offset() {
                Offset::Offset(offset) => Some((offset, element.metadata().to_owned())),
                _ => None,
            }
        };
        tokio::task::spawn_blocking(look).await.unwrap()
    }

    /// Commits as an operator's tool does. The group must have no members.
    pub async fn commit(&self, partition: i32, offset: i64, metadata: &str) {
        let (config, topic, metadata) = (self.tool(), self.topic.clone(), metadata.to_owned());
        let commit = move || {
            let tool: BaseConsumer = config.create().unwrap();
            let mut list = TopicPartitionList::new();
            list.add_partition_offset(&topic, partition, Offset::Offset(offset)).unwrap();
            if !metadata.is_empty() {
                list.find_partition(&topic, partition).unwrap().set_metadata(metadata);
            }
            tool.commit(&list, CommitMode::Sync)
        };
        // A member that has just left may be there for a moment.
        eventually(PATIENCE, "the operator can commit", async || {
            tokio::task::spawn_blocking(commit.clone()).await.unwrap().is_ok()
        })
        .await;
    }

    fn tool(&self) -> ClientConfig {
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", self.kafka.bootstrap()).set("group.id", &self.group);
        config.set("enable.auto.commit", "false");
        config
    }

    /// Moves the beginning of a partition: what is below `offset` is deleted.
    pub async fn delete_records(&self, partition: i32, offset: i64) {
        let admin: AdminClient<DefaultClientContext> =
            ClientConfig::new().set("bootstrap.servers", self.kafka.bootstrap()).create().unwrap();
        let mut list = TopicPartitionList::new();
        list.add_partition_offset(&self.topic, partition, Offset::Offset(offset)).unwrap();
        let options = AdminOptions::new().request_timeout(Some(PATIENCE)).operation_timeout(Some(PATIENCE));
        let done = admin.delete_records(&list, &options).await.unwrap();
        done.find_partition(&self.topic, partition).unwrap().error().unwrap();
        assert_eq!(self.kafka.watermarks(&self.topic, partition).await.0, offset);
    }

    /// Deletes the topic and makes it again.
    pub async fn recreate(&mut self, partitions: i32) {
        let bootstrap = self.kafka.bootstrap().to_owned();
        // A producer that still knows the topic would have the broker make it again by itself.
        self.kafka = Kafka::at(&bootstrap);
        let admin: AdminClient<DefaultClientContext> =
            ClientConfig::new().set("bootstrap.servers", &bootstrap).create().unwrap();
        let options = AdminOptions::new().request_timeout(Some(PATIENCE)).operation_timeout(Some(PATIENCE));
        eventually(PATIENCE, "the topic is deleted", async || {
            let deleted = admin.delete_topics(&[&self.topic], &options).await.unwrap();
            matches!(deleted[..], [Err((_, RDKafkaErrorCode::UnknownTopicOrPartition))])
        })
        .await;
        self.kafka.create_topic(&self.topic, partitions).await;
    }
}

/// What was logged in this process.
static LOG: Mutex<Vec<u8>> = Mutex::new(Vec::new());

struct Log;

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        // Shown where a test fails.
        print!("{}", String::from_utf8_lossy(bytes));
        LOG.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Lines that were logged, by all tests.
pub fn logged() -> Vec<String> {
    String::from_utf8_lossy(&LOG.lock().unwrap()).lines().map(str::to_owned).collect()
}

/// A consumer at work in a task of its own.
pub struct Member {
    shutdown: CancellationToken,
    task: JoinHandle<Result<Summary, ConsumerError>>,
}

impl Member {
    pub fn start<H: hapax::consumer::Handling>(consumer: Consumer, handling: H) -> Self {
        let filter =
            tracing_subscriber::EnvFilter::builder().with_default_directive(Level::WARN.into()).from_env_lossy();
        let _ = tracing_subscriber::fmt().with_env_filter(filter).with_ansi(false).with_writer(|| Log).try_init();
        let shutdown = CancellationToken::new();
        let token = shutdown.clone();
        Self { shutdown, task: tokio::spawn(async move { consumer.run(handling, token).await }) }
    }

    /// Stops it in good order.
    pub async fn stop(self) -> Summary {
        self.shutdown.cancel();
        self.end().await.expect("a clean end")
    }

    pub fn is_running(&self) -> bool {
        !self.task.is_finished()
    }

    /// Waits until it ends by itself.
    pub async fn end(self) -> Result<Summary, ConsumerError> {
        tokio::time::timeout(PATIENCE, self.task).await.expect("the consumer ends within a minute").expect("no panic")
    }

    /// Waits until it ends since a partition does not go on where the group left off. Answers what was found, and of which partition.
    pub async fn refused(self) -> (i32, Finding) {
        match self.end().await {
            Err(ConsumerError::Discontinuity { topic, partition, finding, summary }) => {
                assert!(topic.starts_with("continuity"));
                assert!(finding.breaks());
                assert!(summary.found.iter().any(|found| found.finding == finding && found.partition == partition));
                (partition, finding)
            }
            other => panic!("must be refused: {other:?}"),
        }
    }
}

/// What was found, without the partitions' own places.
pub fn findings(summary: &Summary) -> Vec<Finding> {
    let mut found: Vec<_> = summary.found.iter().map(|found| (found.partition, found.finding)).collect();
    found.sort_by_key(|(partition, _)| *partition);
    found.into_iter().map(|(_, finding)| finding).collect()
}
