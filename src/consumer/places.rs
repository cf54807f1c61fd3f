//! Partitions as librdkafka takes them, and as the log shows them.

use std::fmt;

use rdkafka::TopicPartitionList;

use super::assignment::Place;
use crate::engine::Position;

/// librdkafka's form of it.
pub(super) fn list(places: &[Place]) -> TopicPartitionList {
    let mut list = TopicPartitionList::with_capacity(places.len());
    for (topic, partition) in places {
        list.add_partition(topic, *partition);
    }
    list
}

/// `orders[0,3] refunds[1]`
pub(super) struct Places<'a>(pub(super) &'a [Place]);

impl fmt::Display for Places<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        show(f, self.0.iter().map(|(topic, partition)| (&**topic, *partition)))
    }
}

pub(super) struct Positions<'a>(pub(super) &'a [Position]);

impl fmt::Display for Positions<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        show(f, self.0.iter().map(|position| (&*position.topic, position.partition)))
    }
}

pub(super) struct List<'a>(pub(super) &'a TopicPartitionList);

impl fmt::Display for List<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let elements = self.0.elements();
        show(f, elements.iter().map(|element| (element.topic(), element.partition())))
    }
}

fn show<'a>(f: &mut fmt::Formatter<'_>, places: impl Iterator<Item = (&'a str, i32)>) -> fmt::Result {
    let mut places: Vec<_> = places.collect();
    places.sort_unstable();
    if places.is_empty() {
        return f.write_str("none");
    }
    for (at, run) in places.chunk_by(|a, b| a.0 == b.0).enumerate() {
        let partitions: Vec<String> = run.iter().map(|(_, partition)| partition.to_string()).collect();
        write!(f, "{}{}[{}]", if at == 0 { "" } else { " " }, run[0].0, partitions.join(","))?;
    }
    Ok(())
}
