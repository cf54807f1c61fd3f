//! The broker, mock or real; what is produced; what the broker says is committed.

use std::collections::HashSet;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{DeliveryFuture, FutureProducer, FutureRecord, Producer as _};
use rdkafka::{ClientConfig, Offset, TopicPartitionList};

use crate::args::{Args, By};

pub const PARTITIONS: i32 = 4;
const PATIENCE: Duration = Duration::from_secs(10);

pub struct Kafka {
    pub brokers: String,
    pub topic: String,
    pub group: String,
    /// The mock cluster belongs to this client and ends with it.
    mock: Option<FutureProducer>,
}

impl Kafka {
    pub async fn start(brokers: Option<&str>) -> Result<Self, String> {
        // Unique, so that a real broker's other topics and groups are left alone.
        let millis = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis());
        let topic = format!("hapax-quickstart-{millis:x}-{:x}", std::process::id());
        let mut kafka = Self { brokers: String::new(), group: topic.clone(), topic, mock: None };
        if let Some(brokers) = brokers {
            kafka.brokers = brokers.to_owned();
            kafka.check().await?;
            kafka.create_topic().await?;
        } else {
            let failed = |e: &dyn std::fmt::Display| format!("the mock cluster does not start: {e}");
            let mut config = ClientConfig::new();
            config.set("test.mock.num.brokers", "1").set("bootstrap.servers", "mock");
            let mock: FutureProducer = config.create().map_err(|e| failed(&e))?;
            let cluster = mock.client().mock_cluster().ok_or_else(|| failed(&"there is none"))?;
            cluster.create_topic(&kafka.topic, PARTITIONS, 1).map_err(|e| failed(&e))?;
            kafka.brokers = cluster.bootstrap_servers();
            drop(cluster);
            kafka.mock = Some(mock);
        }
        Ok(kafka)
    }

    pub fn what(&self) -> &'static str {
        if self.mock.is_some() { "a mock cluster in this process" } else { "the Kafka given" }
    }

    fn client(&self) -> ClientConfig {
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", &self.brokers);
        config
    }

    /// Settings for a member of the group.
    pub fn member(&self) -> ClientConfig {
        let mut config = self.client();
        config
            .set("group.id", &self.group)
            .set("enable.auto.commit", "false")
            .set("enable.auto.offset.store", "false")
            .set("auto.offset.reset", "earliest")
            .set("partition.assignment.strategy", "cooperative-sticky")
            .set("session.timeout.ms", "6000")
            .set("heartbeat.interval.ms", "500");
        config
    }

    async fn check(&self) -> Result<(), String> {
        let client: BaseConsumer = self.client().create().map_err(|e| format!("--brokers {}: {e}", self.brokers))?;
        let reached = tokio::task::spawn_blocking(move || client.fetch_metadata(None, PATIENCE).map(|_| ()));
        reached.await.map_err(|e| e.to_string())?.map_err(|e| {
            format!(
                "--brokers {}: no Kafka answers there ({e}); start one, or leave the flag out for a mock cluster",
                self.brokers
            )
        })
    }

    async fn create_topic(&self) -> Result<(), String> {
        let failed = |e: &dyn std::fmt::Display| {
            format!(
                "--brokers: the topic {} cannot be made: {e}; this user has to be allowed to make and delete topics",
                self.topic
            )
        };
        let admin: AdminClient<DefaultClientContext> = self.client().create().map_err(|e| failed(&e))?;
        let topic = NewTopic::new(&self.topic, PARTITIONS, TopicReplication::Fixed(-1));
        let made = admin.create_topics([&topic], &AdminOptions::new().operation_timeout(Some(PATIENCE))).await;
        for made in made.map_err(|e| failed(&e))? {
            made.map_err(|(_, e)| failed(&e))?;
        }
        Ok(())
    }

    /// Removes the topic from a real broker.
    pub async fn clean_up(&self) {
        if self.mock.is_none() {
            let Ok(admin) = self.client().create::<AdminClient<DefaultClientContext>>() else { return };
            let _ = admin.delete_topics(&[&self.topic], &AdminOptions::new()).await;
        }
    }

    /// Produces the messages and, among them, the copies: the same id, key, header and body at another partition and offset.
    /// Answers the ids that have to have an effect.
    pub async fn produce(&self, args: &Args) -> Result<HashSet<String>, String> {
        let producer: FutureProducer = self
            .client()
            .set("enable.idempotence", "true")
            .set("linger.ms", "5")
            .create()
            .map_err(|e| format!("no producer: {e}"))?;
        let mut expected = HashSet::new();
        let mut sent = Vec::new();
        let (mut copies, every) = (0, u64::from(args.messages));
        for n in 0..args.messages {
            sent.push(self.send(&producer, n, n)?);
            // Spread evenly, each behind what it copies.
            while copies < u64::from(args.copies) && (copies + 1) * every <= u64::from(n + 1) * u64::from(args.copies) {
                let of = u32::try_from(copies % u64::from(n + 1)).unwrap_or(0);
                sent.push(self.send(
                    &producer,
                    of,
                    of.wrapping_add(1).wrapping_add(u32::try_from(copies % 3).unwrap_or(0)),
                )?);
                copies += 1;
            }
            if sent.len() > 20_000 {
                acknowledged(&mut sent, args.by, &mut expected).await?;
            }
        }
        acknowledged(&mut sent, args.by, &mut expected).await?;
        if args.by != By::Position {
            expected = (0..args.messages).map(id).collect();
        }
        Ok(expected)
    }

    fn send(&self, producer: &FutureProducer, n: u32, place: u32) -> Result<DeliveryFuture, String> {
        let (id, payload) = (id(n), format!(r#"{{"id":"{}","cents":{}}}"#, id(n), n.wrapping_mul(37) % 10_000));
        let record = FutureRecord::to(&self.topic)
            .partition(i32::try_from(place % 4).unwrap_or(0))
            .key(&id)
            .payload(&payload)
            .headers(OwnedHeaders::new().insert(Header { key: "message-id", value: Some(&id) }));
        producer.send_result(record).map_err(|(e, _)| format!("a message cannot be produced: {e}"))
    }

    /// Whether the broker has the group's offsets committed up to the end of every partition.
    pub async fn is_caught_up(&self) -> bool {
        let Ok(client) = self.client().set("group.id", &self.group).create::<BaseConsumer>() else { return false };
        let topic = self.topic.clone();
        let look = move || {
            let mut list = TopicPartitionList::new();
            list.add_partition_range(&topic, 0, PARTITIONS - 1);
            let committed = client.committed_offsets(list, PATIENCE).ok()?;
            for element in committed.elements() {
                let (_, end) = client.fetch_watermarks(&topic, element.partition(), PATIENCE).ok()?;
                if end > 0 && element.offset() != Offset::Offset(end) {
                    return None;
                }
            }
            Some(())
        };
        tokio::task::spawn_blocking(look).await.ok().flatten().is_some()
    }
}

fn id(n: u32) -> String {
    format!("order-{n:08}")
}

/// The id under which a message's effect is noted: its own, or its place where that is what tells messages apart.
pub fn effect_id(by: By, header: Option<&[u8]>, partition: i32, offset: i64) -> String {
    match (by, header) {
        (By::Position, _) | (_, None) => format!("{partition}/{offset}"),
        (_, Some(id)) => String::from_utf8_lossy(id).into_owned(),
    }
}

async fn acknowledged(sent: &mut Vec<DeliveryFuture>, by: By, expected: &mut HashSet<String>) -> Result<(), String> {
    for delivery in sent.drain(..) {
        let delivery = delivery.await.map_err(|_| "the producer is gone".to_owned())?;
        let delivery = delivery.map_err(|(e, _)| format!("a message was not acknowledged: {e}"))?;
        if by == By::Position {
            expected.insert(effect_id(by, None, delivery.partition, delivery.offset));
        }
    }
    Ok(())
}
