//! A broker with a topic of the example's own, mock or real.

use std::ops::Deref;
use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer as _};

use crate::lag::{self, Lag};
use crate::support::{self, MockKafka, unique};

const PATIENCE: Duration = Duration::from_secs(10);

/// How long a member that fell silent keeps its partitions.
const MOCK_SESSION: Duration = Duration::from_millis(1_000);
/// The least that a broker allows, as it is delivered.
const SESSION: Duration = Duration::from_secs(6);

pub struct Kafka {
    pub topic: String,
    partitions: i32,
    broker: Broker,
}

enum Broker {
    Mock(MockKafka),
    Real(support::Kafka),
}

impl Deref for Broker {
    type Target = support::Kafka;

    fn deref(&self) -> &support::Kafka {
        match self {
            Self::Mock(mock) => mock,
            Self::Real(real) => real,
        }
    }
}

impl Kafka {
    /// The real one, or a mock cluster in this process.
    pub async fn start(brokers: Option<&str>, topic: &str, partitions: i32) -> Result<Self, String> {
        // A name of its own: a real broker's other topics and groups are left alone. The group has the same.
        let topic = unique(topic);
        let Some(brokers) = brokers else {
            let mock = MockKafka::start(&[(&topic, partitions)]);
            mock.session_timeout(MOCK_SESSION, MOCK_SESSION / 5);
            return Ok(Self { topic, partitions, broker: Broker::Mock(mock) });
        };
        let failed = |e: &dyn std::fmt::Display| {
            format!(
                "--brokers {brokers}: no Kafka answers there ({e}); start one, or leave the flag out for a mock cluster"
            )
        };
        let client: BaseConsumer =
            ClientConfig::new().set("bootstrap.servers", brokers).create().map_err(|e| failed(&e))?;
        let reached = tokio::task::spawn_blocking(move || client.fetch_metadata(None, PATIENCE).map(|_| ()));
        reached.await.map_err(|e| failed(&e))?.map_err(|e| failed(&e))?;
        let kafka = Self { topic, partitions, broker: Broker::Real(support::Kafka::at(brokers)) };
        kafka.create_topic().await?;
        Ok(kafka)
    }

    pub fn what(&self) -> &'static str {
        match self.broker {
            Broker::Mock(_) => "a mock cluster in this process",
            Broker::Real(_) => "the Kafka given",
        }
    }

    /// A mock cluster does not say how long it keeps messages. Who refuses what that would mean waits for the answer at each start.
    pub const fn is_mock(&self) -> bool {
        matches!(self.broker, Broker::Mock(_))
    }

    pub fn producer(&self) -> &support::Kafka {
        &self.broker
    }

    pub fn session(&self) -> Duration {
        match self.broker {
            Broker::Mock(_) => MOCK_SESSION,
            Broker::Real(_) => SESSION,
        }
    }

    /// Settings for a member of the group. A member that was killed must be replaced soon: on the mock cluster by a short session, which
    /// KIP-848 has there; on a real broker by a successor with the same name, which the classic protocol gives the partitions at once.
    /// A line for each, as a child process is told them.
    pub fn member(&self, name: &str) -> String {
        let mut settings = vec![
            ("bootstrap.servers", self.broker.bootstrap().to_owned()),
            ("group.id", self.topic.clone()),
            ("auto.offset.reset", "earliest".to_owned()),
        ];
        match self.broker {
            Broker::Mock(_) => settings.push(("group.protocol", "consumer".to_owned())),
            Broker::Real(_) => settings.extend([
                ("partition.assignment.strategy", "cooperative-sticky".to_owned()),
                ("session.timeout.ms", SESSION.as_millis().to_string()),
                ("heartbeat.interval.ms", "500".to_owned()),
                ("group.instance.id", format!("{}-{name}", self.topic)),
            ]),
        }
        settings.iter().map(|(setting, value)| format!("{setting}={value}\n")).collect()
    }

    /// The settings that [`member`](Self::member) wrote.
    pub fn settings(lines: &str) -> ClientConfig {
        let mut settings = ClientConfig::new();
        for (name, value) in lines.lines().filter_map(|line| line.split_once('=')) {
            settings.set(name, value);
        }
        settings
    }

    async fn create_topic(&self) -> Result<(), String> {
        let failed = |e: &dyn std::fmt::Display| {
            format!(
                "--brokers: the topic {} cannot be made: {e}; this user has to be allowed to make and delete topics",
                self.topic
            )
        };
        let admin = self.admin().map_err(|e| failed(&e))?;
        let topic = NewTopic::new(&self.topic, self.partitions, TopicReplication::Fixed(-1));
        let made = admin.create_topics([&topic], &AdminOptions::new().operation_timeout(Some(PATIENCE))).await;
        for made in made.map_err(|e| failed(&e))? {
            made.map_err(|(_, e)| failed(&e))?;
        }
        Ok(())
    }

    fn admin(&self) -> rdkafka::error::KafkaResult<AdminClient<DefaultClientContext>> {
        ClientConfig::new().set("bootstrap.servers", self.broker.bootstrap()).create()
    }

    /// Removes the topic from a real broker.
    pub async fn clean_up(&self) {
        if let (Broker::Real(_), Ok(admin)) = (&self.broker, self.admin()) {
            let _ = admin.delete_topics(&[&self.topic], &AdminOptions::new()).await;
        }
    }

    /// How far the service is behind, as the broker sees it.
    pub async fn lag(&self) -> Option<Lag> {
        let client: BaseConsumer = ClientConfig::new()
            .set("bootstrap.servers", self.broker.bootstrap())
            .set("group.id", &self.topic)
            .create()
            .ok()?;
        let topics = [self.topic.clone()];
        tokio::task::spawn_blocking(move || lag::of(&client, &topics, PATIENCE).ok()).await.ok()?
    }
}
