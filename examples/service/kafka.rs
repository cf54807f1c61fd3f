//! The Kafka client's settings, and whether Kafka is there.

use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer as _};

use crate::args::{Kafka, Protocol};
use crate::lag;

const PATIENCE: Duration = Duration::from_secs(15);

impl Kafka {
    /// Settings for a member of the group.
    pub fn member(&self) -> ClientConfig {
        let mut config = self.observer();
        config.set("auto.offset.reset", "earliest");
        match self.protocol {
            // The broker's own session time-out counts, and its assignor.
            Protocol::Consumer => config.set("group.protocol", "consumer"),
            Protocol::Cooperative => config.set("partition.assignment.strategy", "cooperative-sticky"),
            Protocol::Eager => config.set("partition.assignment.strategy", "range"),
        };
        if self.protocol != Protocol::Consumer {
            let session = self.session_timeout.as_millis();
            config.set("session.timeout.ms", session.to_string());
            config.set("heartbeat.interval.ms", (session / 6).max(100).to_string());
        }
        if let Some(interval) = self.max_poll_interval {
            config.set("max.poll.interval.ms", interval.as_millis().to_string());
        }
        if let Some(instance) = &self.instance {
            config.set("group.instance.id", instance);
        }
        config
    }

    /// Settings for a client that looks at the group and is no member of it.
    fn observer(&self) -> ClientConfig {
        let mut config = ClientConfig::new();
        config
            .set("bootstrap.servers", &self.brokers)
            .set("group.id", &self.group)
            .set("enable.auto.commit", "false")
            // A broker that comes back is found soon.
            .set("reconnect.backoff.max.ms", "1000");
        config
    }

    /// That Kafka answers, and has the topics. What comes back looks at the group from outside.
    pub async fn check(&self) -> Result<Observer, String> {
        let failed = |e: &dyn std::fmt::Display| {
            format!("--brokers {}: no Kafka answers there ({e}); start it, or check host and port", self.brokers)
        };
        let client: BaseConsumer = self.observer().create().map_err(|e| failed(&e))?;
        let topics = self.topics.clone();
        let look = tokio::task::spawn_blocking(move || {
            let metadata = client.fetch_metadata(None, PATIENCE)?;
            let names = metadata.topics().iter().filter(|topic| topic.error().is_none());
            let names: Vec<String> = names.map(|topic| topic.name().to_owned()).collect();
            Ok::<_, rdkafka::error::KafkaError>((client, names))
        });
        let (client, names) = look.await.map_err(|e| failed(&e))?.map_err(|e| failed(&e))?;
        // A name that begins with ^ is a pattern, which may match topics to come.
        let missing = topics.iter().find(|topic| !topic.starts_with('^') && !names.contains(topic));
        match missing {
            Some(topic) => Err(format!(
                "--topics: Kafka has no topic `{topic}`, or this user may not see it; make it, or check the name"
            )),
            None => Ok(Observer { client, topics }),
        }
    }
}

/// Looks at the group from outside.
pub struct Observer {
    client: BaseConsumer,
    topics: Vec<String>,
}

impl Observer {
    /// Waits until the group has been at the end of its topics, with nothing new coming in, for `quiet`.
    pub async fn idle(self, quiet: Duration) {
        let watch = tokio::task::spawn_blocking(move || {
            let mut since: Option<(std::time::Instant, i64)> = None;
            loop {
                let lag = lag::of(&self.client, &self.topics, PATIENCE);
                since = match (lag, since) {
                    (Ok(lag), Some((at, end))) if lag.behind == 0 && lag.end == end => {
                        if at.elapsed() >= quiet {
                            return;
                        }
                        since
                    }
                    (Ok(lag), _) if lag.behind == 0 => Some((std::time::Instant::now(), lag.end)),
                    _ => None,
                };
                std::thread::sleep(Duration::from_millis(250));
            }
        });
        // It ends with the process at the latest.
        let _ = watch.await;
    }
}
