//! The dead letters.

use std::collections::BTreeSet;
use std::time::Duration;

use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::message::{Headers as _, Message as _};
use rdkafka::{ClientConfig, Offset, TopicPartitionList};

pub const PARTITIONS: i32 = 2;
const PATIENCE: Duration = Duration::from_secs(60);

/// The ids of all letters in the topic.
pub fn read(brokers: &str, topic: &str) -> BTreeSet<String> {
    let client: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", brokers)
        .set("group.id", topic)
        .set("enable.auto.commit", "false")
        .set("enable.partition.eof", "true")
        .create()
        .expect("a client");
    let mut list = TopicPartitionList::new();
    for partition in 0..PARTITIONS {
        list.add_partition_offset(topic, partition, Offset::Beginning).expect("an offset");
    }
    client.assign(&list).expect("partitions that there are");
    let (mut ids, mut ended) = (BTreeSet::new(), 0);
    while ended < PARTITIONS {
        match client.poll(PATIENCE).expect("the broker answers within a minute") {
            Ok(letter) => {
                let headers = letter.headers().expect("a letter has headers");
                let id = headers.iter().find(|header| header.key == "message-id").and_then(|header| header.value);
                ids.insert(String::from_utf8_lossy(id.expect("a letter has its message's id")).into_owned());
            }
            Err(rdkafka::error::KafkaError::PartitionEOF(_)) => ended += 1,
            Err(error) => panic!("dead letters can be read: {error}"),
        }
    }
    ids
}
