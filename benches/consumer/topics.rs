//! Topics full of messages, each made when a figure first asks for it.

use std::collections::HashMap;
use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{BaseRecord, DefaultProducerContext, Producer, ThreadedProducer};

use crate::data::spread;
use crate::figures::Failure;
use crate::kinds::unique;

pub const PARTITIONS: i32 = 4;
pub const PAYLOAD: usize = 200;
pub const PATIENCE: Duration = Duration::from_secs(180);

/// What is in a topic.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Filling {
    pub messages: usize,
    /// Different ids: message `n` has the id of `n % ids`.
    pub ids: usize,
    /// Different record keys, in turn; 0 for null keys.
    pub keys: usize,
    pub payload: usize,
    /// Ids in no order, as UUIDs are; otherwise they ascend.
    pub spread: bool,
}

impl Filling {
    /// Every message with an id of its own, and no key.
    pub const fn distinct(messages: usize) -> Self {
        Self { messages, ids: messages, keys: 0, payload: PAYLOAD, spread: false }
    }
}

impl Filling {
    fn id(&self, n: usize) -> String {
        let number = (n % self.ids) as u64;
        match self.spread {
            true => spread(number, self.ids as u64).iter().map(|byte| format!("{byte:02x}")).collect(),
            false => format!("{number:032x}"),
        }
    }
}

pub struct Topics {
    pub brokers: String,
    made: HashMap<Filling, String>,
}

impl Topics {
    pub fn new(brokers: &str) -> Self {
        Self { brokers: brokers.to_owned(), made: HashMap::new() }
    }

    fn admin(&self) -> Result<(AdminClient<DefaultClientContext>, AdminOptions), Failure> {
        let admin = ClientConfig::new().set("bootstrap.servers", &self.brokers).create()?;
        Ok((admin, AdminOptions::new().operation_timeout(Some(Duration::from_secs(30)))))
    }

    /// A topic with this in it.
    pub async fn with(&mut self, filling: Filling) -> Result<String, Failure> {
        if let Some(topic) = self.made.get(&filling) {
            return Ok(topic.clone());
        }
        let topic = unique();
        let (admin, options) = self.admin()?;
        let new = NewTopic::new(&topic, PARTITIONS, TopicReplication::Fixed(1));
        for made in admin.create_topics([&new], &options).await? {
            made.map_err(|(topic, code)| format!("topic {topic} was not made: {code}"))?;
        }
        self.made.insert(filling, topic.clone());
        let (brokers, name) = (self.brokers.clone(), topic.clone());
        tokio::task::spawn_blocking(move || produce(&brokers, &name, filling)).await??;
        Ok(topic)
    }

    /// Deletes them all.
    pub async fn clean(self) -> Result<(), Failure> {
        if !self.made.is_empty() {
            let (admin, options) = self.admin()?;
            let names: Vec<&str> = self.made.values().map(String::as_str).collect();
            admin.delete_topics(&names, &options).await?;
        }
        Ok(())
    }
}

pub fn producer(brokers: &str, linger_ms: u32) -> Result<ThreadedProducer<DefaultProducerContext>, Failure> {
    Ok(ClientConfig::new()
        .set("bootstrap.servers", brokers)
        .set("linger.ms", linger_ms.to_string())
        .set("queue.buffering.max.messages", "200000")
        .set("acks", "1")
        .create()?)
}

fn produce(brokers: &str, topic: &str, filling: Filling) -> Result<(), Failure> {
    let producer = producer(brokers, 20)?;
    let payload = vec![7_u8; filling.payload];
    for n in 0..filling.messages {
        let id = filling.id(n);
        let key = (filling.keys > 0).then(|| format!("key {}", n % filling.keys));
        let header = OwnedHeaders::new().insert(Header { key: "message-id", value: Some(&id) });
        let partition = (n % PARTITIONS as usize) as i32;
        let mut record = BaseRecord::<str, [u8]>::to(topic).partition(partition).payload(&payload[..]).headers(header);
        if let Some(key) = &key {
            record = record.key(key);
        }
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

/// The same client settings for every side.
pub fn config(brokers: &str) -> ClientConfig {
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
