//! How far a group is behind, as the broker sees it.

use std::time::Duration;

use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::error::KafkaResult;
use rdkafka::{Offset, TopicPartitionList};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lag {
    /// Messages between what is committed and the end, over all partitions.
    pub behind: i64,
    /// The sum of the ends: it grows with every message produced.
    pub end: i64,
}

/// Asks with a client that has the group's name and is no member of it. Blocks.
pub fn of(client: &BaseConsumer, topics: &[String], patience: Duration) -> KafkaResult<Lag> {
    let mut list = TopicPartitionList::new();
    for topic in client.fetch_metadata(None, patience)?.topics() {
        if topics.iter().any(|name| name == topic.name()) {
            topic.partitions().iter().for_each(|partition| _ = list.add_partition(topic.name(), partition.id()));
        }
    }
    let mut lag = Lag { behind: 0, end: 0 };
    for element in client.committed_offsets(list, patience)?.elements() {
        let (begin, end) = client.fetch_watermarks(element.topic(), element.partition(), patience)?;
        let committed = match element.offset() {
            Offset::Offset(offset) => offset,
            _ => begin,
        };
        lag.behind += (end - committed.max(begin)).max(0);
        lag.end += end;
    }
    Ok(lag)
}
