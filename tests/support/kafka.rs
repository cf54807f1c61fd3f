//! Kafka for tests: librdkafka's mock cluster in this process, and the real broker of `HAPAX_TEST_KAFKA`, behind the same helpers.

use std::ops::Deref;
use std::time::Duration;

use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::mocking::MockCluster;
use rdkafka::producer::future_producer::FutureProducerContext;
use rdkafka::producer::{DeliveryFuture, FutureProducer, FutureRecord, Producer};
use rdkafka::{Offset, TopicPartitionList};

use super::{PATIENCE, eventually_some, service};

/// A record to produce: `Record::to("topic").key("k").payload("p").header("message-id", "1")`.
#[derive(Clone, Debug, Default)]
pub struct Record {
    topic: String,
    partition: Option<i32>,
    key: Option<Vec<u8>>,
    payload: Option<Vec<u8>>,
    headers: Vec<(String, Option<Vec<u8>>)>,
    timestamp: Option<i64>,
}

impl Record {
    pub fn to(topic: &str) -> Self {
        Self { topic: topic.to_owned(), ..Self::default() }
    }

    pub fn partition(mut self, partition: i32) -> Self {
        self.partition = Some(partition);
        self
    }

    pub fn key(mut self, key: impl AsRef<[u8]>) -> Self {
        self.key = Some(key.as_ref().to_vec());
        self
    }

    pub fn payload(mut self, payload: impl AsRef<[u8]>) -> Self {
        self.payload = Some(payload.as_ref().to_vec());
        self
    }

    pub fn header(mut self, name: &str, value: impl AsRef<[u8]>) -> Self {
        self.headers.push((name.to_owned(), Some(value.as_ref().to_vec())));
        self
    }

    pub fn null_header(mut self, name: &str) -> Self {
        self.headers.push((name.to_owned(), None));
        self
    }

    /// Milliseconds since 1970.
    pub fn timestamp(mut self, millis: i64) -> Self {
        self.timestamp = Some(millis);
        self
    }
}

/// A broker, mock or real, and a producer for it.
pub struct Kafka {
    bootstrap: String,
    producer: FutureProducer,
}

impl Kafka {
    /// The real broker of `HAPAX_TEST_KAFKA`; without it the test fails.
    pub fn real() -> Self {
        Self::at(&service("HAPAX_TEST_KAFKA"))
    }

    pub fn at(bootstrap: &str) -> Self {
        let producer = producer_config().set("bootstrap.servers", bootstrap).create().unwrap();
        Self { bootstrap: bootstrap.to_owned(), producer }
    }

    pub fn bootstrap(&self) -> &str {
        &self.bootstrap
    }

    pub fn producer(&self) -> &FutureProducer {
        &self.producer
    }

    /// Settings for a consumer of this broker: nothing committed or stored behind our back, from the earliest offset, quick to notice dead members.
    pub fn consumer_config(&self, group: &str) -> ClientConfig {
        let mut config = ClientConfig::new();
        config
            .set("bootstrap.servers", &self.bootstrap)
            .set("group.id", group)
            .set("enable.auto.commit", "false")
            .set("enable.auto.offset.store", "false")
            .set("auto.offset.reset", "earliest")
            .set("session.timeout.ms", "6000")
            .set("heartbeat.interval.ms", "500")
            .set("fetch.wait.max.ms", "50")
            // A topic made a moment ago is found soon.
            .set("topic.metadata.refresh.interval.ms", "1000")
            .set("reconnect.backoff.max.ms", "500");
        config
    }

    /// Produces the records in order and waits until each is acknowledged. Returns (partition, offset) for each.
    pub async fn produce(&self, records: &[Record]) -> Vec<(i32, i64)> {
        let mut placed = Vec::with_capacity(records.len());
        // Bounded: librdkafka's queue takes 100,000 messages.
        for chunk in records.chunks(10_000) {
            let mut sent = Vec::with_capacity(chunk.len());
            for record in chunk {
                sent.push(self.send(record));
            }
            for delivery in sent {
                let delivery =
                    tokio::time::timeout(PATIENCE, delivery).await.expect("the broker acknowledges within a minute");
                let delivery = delivery
                    .expect("the producer lives")
                    .unwrap_or_else(|(e, _)| panic!("the broker takes the record: {e}"));
                placed.push((delivery.partition, delivery.offset));
            }
        }
        placed
    }

    /// [`produce`](Self::produce) for one.
    pub async fn produce_one(&self, record: Record) -> (i32, i64) {
        self.produce(std::slice::from_ref(&record)).await[0]
    }

    fn send(&self, record: &Record) -> DeliveryFuture {
        let mut headers = OwnedHeaders::new_with_capacity(record.headers.len());
        for (key, value) in &record.headers {
            headers = headers.insert(Header { key, value: value.as_deref() });
        }
        let future = FutureRecord {
            topic: &record.topic,
            partition: record.partition,
            payload: record.payload.as_deref(),
            key: record.key.as_deref(),
            timestamp: record.timestamp,
            headers: Some(headers),
        };
        self.producer.send_result(future).unwrap_or_else(|(e, _)| panic!("the record can be queued: {e}"))
    }

    /// Makes a topic on a real broker (a mock cluster is given its topics at the start) and waits until its partitions have leaders.
    pub async fn create_topic(&self, topic: &str, partitions: i32) {
        self.create_topic_with(topic, partitions, &[]).await;
    }

    /// With topic settings, such as `("cleanup.policy", "compact")`.
    pub async fn create_topic_with(&self, topic: &str, partitions: i32, settings: &[(&str, &str)]) {
        let mut new = NewTopic::new(topic, partitions, TopicReplication::Fixed(1));
        for (key, value) in settings {
            new = new.set(key, value);
        }
        let made = self.admin().create_topics([&new], &admin_options()).await.expect("the broker answers");
        for result in made {
            result.unwrap_or_else(|(topic, e)| panic!("topic {topic} can be made: {e}"));
        }
        eventually_some(PATIENCE, "the topic's partitions have leaders", async || {
            let metadata = self
                .blocking(
                    |producer, topic| producer.client().fetch_metadata(Some(topic), Duration::from_secs(5)),
                    topic,
                )
                .await
                .ok()?;
            let found = metadata.topics().iter().find(|t| t.name() == topic)?;
            let ready = found.partitions().iter().filter(|p| p.leader() >= 0).count();
            (ready == usize::try_from(partitions).unwrap()).then_some(())
        })
        .await;
    }

    /// Deletes a topic of a real broker and waits until the broker has forgotten it.
    pub async fn delete_topic(&self, topic: &str) {
        for result in self.admin().delete_topics(&[topic], &admin_options()).await.expect("the broker answers") {
            result.unwrap_or_else(|(topic, e)| panic!("topic {topic} can be deleted: {e}"));
        }
        eventually_some(PATIENCE, "the topic is gone", async || {
            let metadata = self
                .blocking(|producer, _| producer.client().fetch_metadata(None, Duration::from_secs(5)), topic)
                .await
                .ok()?;
            let gone = metadata.topics().iter().all(|t| t.name() != topic);
            if !gone {
                // A producer that asks for a topic it knows makes it again, where the broker makes topics by itself.
                let _ = self.admin().delete_topics(&[topic], &admin_options()).await;
            }
            gone.then_some(())
        })
        .await;
    }

    /// Deletes a group, with its committed offsets, from a real broker. The group must have no members.
    pub async fn delete_group(&self, group: &str) {
        eventually_some(PATIENCE, "the group can be deleted", async || {
            let results = self.admin().delete_groups(&[group], &admin_options()).await.ok()?;
            results.into_iter().all(|r| r.is_ok()).then_some(())
        })
        .await;
    }

    /// The group's committed offset of a partition *as the broker has it*: asked by a client that is no member. `None`: nothing committed.
    pub async fn committed(&self, group: &str, topic: &str, partition: i32) -> Option<i64> {
        let (group, topic, bootstrap) = (group.to_owned(), topic.to_owned(), self.bootstrap.clone());
        let look = move || {
            let consumer: BaseConsumer =
                ClientConfig::new().set("bootstrap.servers", bootstrap).set("group.id", group).create().unwrap();
            let mut list = TopicPartitionList::new();
            list.add_partition(&topic, partition);
            // A coordinator that has just come up, or a group that has just begun, may need a second question.
            let mut last = None;
            for _ in 0..6 {
                match consumer.committed_offsets(list.clone(), Duration::from_secs(10)) {
                    Ok(found) => {
                        return match found.find_partition(&topic, partition).map(|e| e.offset()) {
                            Some(Offset::Offset(offset)) => Some(offset),
                            _ => None,
                        };
                    }
                    Err(e) => last = Some(e),
                }
            }
            panic!("the broker tells the group's offsets: {last:?}");
        };
        tokio::task::spawn_blocking(look).await.unwrap()
    }

    /// First and next offset of a partition.
    pub async fn watermarks(&self, topic: &str, partition: i32) -> (i64, i64) {
        self.blocking(
            move |producer, topic| producer.client().fetch_watermarks(topic, partition, Duration::from_secs(30)),
            topic,
        )
        .await
        .expect("the broker tells the watermarks")
    }

    fn admin(&self) -> AdminClient<DefaultClientContext> {
        ClientConfig::new().set("bootstrap.servers", &self.bootstrap).create().unwrap()
    }

    async fn blocking<T: Send + 'static>(
        &self,
        ask: impl FnOnce(&FutureProducer, &str) -> T + Send + 'static,
        topic: &str,
    ) -> T {
        let (producer, topic) = (self.producer.clone(), topic.to_owned());
        tokio::task::spawn_blocking(move || ask(&producer, &topic)).await.unwrap()
    }
}

impl std::fmt::Debug for Kafka {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Kafka").field("bootstrap", &self.bootstrap).finish_non_exhaustive()
    }
}

fn admin_options() -> AdminOptions {
    AdminOptions::new().request_timeout(Some(PATIENCE)).operation_timeout(Some(PATIENCE))
}

fn producer_config() -> ClientConfig {
    let mut config = ClientConfig::new();
    config
        .set("linger.ms", "2")
        .set("acks", "all")
        .set("message.timeout.ms", "60000")
        .set("topic.metadata.refresh.interval.ms", "1000")
        .set("reconnect.backoff.max.ms", "500");
    config
}

/// librdkafka's mock cluster with one broker, in this process: real connections, groups and commits; no transactions, no admin.
///
/// It ends with this value: keep it until the clients are gone.
#[derive(Debug)]
pub struct MockKafka {
    kafka: Kafka,
}

impl MockKafka {
    /// With these topics: (name, number of partitions).
    pub fn start(topics: &[(&str, i32)]) -> Self {
        Self::start_brokers(1, topics)
    }

    /// With more than one broker.
    pub fn start_brokers(brokers: u16, topics: &[(&str, i32)]) -> Self {
        // The second of rdkafka's two ways: the cluster belongs to the producer, whose handle the setter below needs.
        let producer: FutureProducer = producer_config()
            .set("test.mock.num.brokers", brokers.to_string())
            .set("bootstrap.servers", "mock")
            .create()
            .unwrap();
        join_at_once(&producer);
        let bootstrap = {
            let cluster = producer.client().mock_cluster().expect("the producer has a mock cluster");
            for (topic, partitions) in topics {
                cluster.create_topic(topic, *partitions, i32::from(brokers.min(3))).unwrap();
            }
            cluster.bootstrap_servers()
        };
        Self { kafka: Kafka { bootstrap, producer } }
    }

    /// rdkafka's handle: `request_errors`, `broker_down`, `broker_up`, …
    pub fn cluster(&self) -> MockCluster<'_, FutureProducerContext<DefaultClientContext>> {
        self.kafka.producer.client().mock_cluster().expect("the producer has a mock cluster")
    }

    /// For groups with `group.protocol=consumer` (KIP-848): how soon a member that fell silent is gone.
    pub fn session_timeout(&self, session: Duration, heartbeat: Duration) {
        let (session, heartbeat) =
            (i32::try_from(session.as_millis()).unwrap(), i32::try_from(heartbeat.as_millis()).unwrap());
        with_handle(&self.kafka.producer, |cluster| {
            #[allow(unsafe_code)]
            // SAFETY: `cluster` is valid for as long as the producer lives, and these calls only set a number.
            unsafe {
                rdkafka_sys::rd_kafka_mock_set_group_consumer_session_timeout_ms(cluster, session);
                rdkafka_sys::rd_kafka_mock_set_group_consumer_heartbeat_interval_ms(cluster, heartbeat);
            }
        });
    }
}

impl Deref for MockKafka {
    type Target = Kafka;

    fn deref(&self) -> &Kafka {
        &self.kafka
    }
}

/// A mock group waits three seconds before its first assignment; rdkafka wraps no setter for that.
fn join_at_once(producer: &FutureProducer) {
    with_handle(producer, |cluster| {
        #[allow(unsafe_code)]
        // SAFETY: `cluster` is valid for as long as the producer lives, and the call only sets a number.
        unsafe {
            rdkafka_sys::rd_kafka_mock_group_initial_rebalance_delay_ms(cluster, 0);
        }
    });
}

fn with_handle(producer: &FutureProducer, set: impl FnOnce(*mut rdkafka_sys::rd_kafka_mock_cluster_t)) {
    #[allow(unsafe_code)]
    // SAFETY: the producer lives through this call, and so do its handle and the cluster that belongs to it.
    let cluster = unsafe { rdkafka_sys::rd_kafka_handle_mock_cluster(producer.client().native_ptr()) };
    assert!(!cluster.is_null(), "the producer has a mock cluster");
    set(cluster);
}
