//! Reads a dead letter topic up to where it ended at the start, and commits how far it was worked through.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rdkafka::ClientConfig;
use rdkafka::config::FromClientConfigAndContext as _;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer as _};
use rdkafka::error::KafkaError;
use rdkafka::{Offset, TopicPartitionList};

use super::RedriveError;
use crate::consumer::dead_letter::partitions;
use crate::consumer::error::unsaid;
use crate::consumer::letter::{LetterError, Log};
use crate::message::{MessageView as _, Parts};

/// Letters worked through together at most.
const LETTERS: usize = 500;
/// Bytes from which on no further letter is taken in.
const BYTES: usize = 8 << 20;
const ASK: Duration = Duration::from_secs(10);

/// Letters, in the order of their partitions.
pub(super) type Read = Vec<Parts>;
/// The offsets to commit, by partition, once they are worked through.
pub(super) type Next = BTreeMap<i32, i64>;

/// Where a partition is read, and where it ends.
#[derive(Clone, Copy, Debug)]
struct Span {
    next: i64,
    end: i64,
}

pub(super) struct Reader {
    client: Arc<BaseConsumer<Log>>,
    topic: String,
    patience: Duration,
    /// Partitions that are not read to their end.
    spans: BTreeMap<i32, Span>,
}

impl Reader {
    /// Looks where the group stopped and where the topic ends.
    pub(super) async fn open(
        mut config: ClientConfig,
        topic: &str,
        group: &str,
        from_beginning: bool,
        patience: Duration,
    ) -> Result<Self, RedriveError> {
        config
            .set("group.id", group)
            .set("enable.auto.commit", "false")
            .set("enable.auto.offset.store", "false")
            .set("auto.offset.reset", "earliest")
            .set("enable.partition.eof", "true")
            .set("fetch.queue.backoff.ms", "10");
        let topic = topic.to_owned();
        blocking(&topic.clone(), move || {
            let failed = |what| {
                let topic = topic.clone();
                move |source| RedriveError::Kafka { what, topic, source }
            };
            let client: BaseConsumer<Log> = BaseConsumer::from_config_and_context(&config, Log::default())
                .map_err(unsaid)
                .map_err(failed("make a consumer"))?;
            let count = match partitions(&client, &topic) {
                Ok(Some(count)) => count,
                Ok(None) | Err(LetterError::NoTopic { .. }) => return Err(RedriveError::NoTopic { topic }),
                Err(LetterError::Unavailable { source, .. } | LetterError::Refused { source, .. }) => {
                    return Err(failed("ask for its partitions")(source));
                }
                Err(_) => return Err(RedriveError::NoTopic { topic }),
            };
            let mut all = TopicPartitionList::with_capacity(usize::try_from(count).unwrap_or_default());
            (0..count).for_each(|partition| {
                all.add_partition(&topic, partition);
            });
            let committed = committed(&client, all, patience).map_err(failed("ask how far it was sent back"))?;
            let mut spans = BTreeMap::new();
            let mut from = TopicPartitionList::new();
            for partition in 0..count {
                let (low, end) =
                    client.fetch_watermarks(&topic, partition, ASK).map_err(failed("ask where it ends"))?;
                let stopped = match committed.find_partition(&topic, partition).map(|found| found.offset()) {
                    // Beyond the end: the topic was made again since.
                    Some(Offset::Offset(offset)) if !from_beginning && offset <= end => offset,
                    _ => low,
                };
                let next = stopped.max(low);
                if next < end {
                    spans.insert(partition, Span { next, end });
                    from.add_partition_offset(&topic, partition, Offset::Offset(next)).map_err(failed("read on"))?;
                }
            }
            client.assign(&from).map_err(failed("read on"))?;
            Ok(Self { client: Arc::new(client), topic, patience, spans })
        })
        .await
    }

    /// Offsets that are left to be read: letters, or what was removed or aborted between them.
    pub(super) fn left(&self) -> i64 {
        self.spans.values().map(|span| span.end - span.next).sum()
    }

    /// The next letters, and what to commit once they are worked through; `None` at the end.
    pub(super) async fn next(&mut self) -> Result<Option<(Read, Next)>, RedriveError> {
        if self.spans.is_empty() {
            return Ok(None);
        }
        let client = Arc::clone(&self.client);
        let (topic, patience, mut spans) = (self.topic.clone(), self.patience, std::mem::take(&mut self.spans));
        let (read, next, spans) = blocking(&self.topic, move || {
            let (read, next) = poll(&client, &topic, patience, &mut spans)?;
            Ok((read, next, spans))
        })
        .await?;
        self.spans = spans;
        Ok(Some((read, next)))
    }

    /// Commits, and waits for the broker's answer.
    pub(super) async fn commit(&self, next: Next) -> Result<(), RedriveError> {
        if next.is_empty() {
            return Ok(());
        }
        let client = Arc::clone(&self.client);
        let topic = self.topic.clone();
        blocking(&self.topic, move || {
            let failed =
                |source| RedriveError::Kafka { what: "commit how far it was sent back", topic: topic.clone(), source };
            let mut list = TopicPartitionList::with_capacity(next.len());
            for (partition, offset) in next {
                list.add_partition_offset(&topic, partition, Offset::Offset(offset)).map_err(failed)?;
            }
            client.commit(&list, CommitMode::Sync).map_err(failed)
        })
        .await
    }

    /// Closes the consumer, off the threads that run futures.
    pub(super) async fn close(self) {
        let _ = tokio::task::spawn_blocking(move || drop(self)).await;
    }
}

/// The group's coordinator may have to be found first.
fn committed(
    client: &BaseConsumer<Log>,
    list: TopicPartitionList,
    patience: Duration,
) -> Result<TopicPartitionList, KafkaError> {
    let began = Instant::now();
    loop {
        match client.committed_offsets(list.clone(), ASK) {
            Err(error) if began.elapsed() + ASK > patience => return Err(error),
            Err(_) => std::thread::sleep(Duration::from_millis(100)),
            Ok(found) => return Ok(found),
        }
    }
}

/// Takes letters in until there are enough, or all partitions are at their end. Moves `spans`.
fn poll(
    client: &BaseConsumer<Log>,
    topic: &str,
    patience: Duration,
    spans: &mut BTreeMap<i32, Span>,
) -> Result<(Read, Next), RedriveError> {
    let failed = |source| RedriveError::Kafka { what: "read on", topic: topic.to_owned(), source };
    let (mut read, mut next, mut bytes) = (Read::new(), Next::new(), 0);
    let mut moved = Instant::now();
    while !spans.is_empty() && read.len() < LETTERS && bytes < BYTES {
        let message = match client.poll(Duration::from_millis(100)) {
            Some(Ok(message)) => message,
            Some(Err(KafkaError::PartitionEOF(partition))) => {
                // What is missing up to its end was removed or aborted; nothing that stood there at the start is left.
                if let Some(span) = spans.remove(&partition) {
                    next.insert(partition, span.end);
                }
                moved = Instant::now();
                continue;
            }
            Some(Err(error @ KafkaError::MessageConsumptionFatal(_))) => return Err(failed(error)),
            Some(Err(error)) => {
                tracing::warn!(%error, topic, "reading on");
                if moved.elapsed() > patience {
                    return Err(failed(error));
                }
                continue;
            }
            // Letters in hand are not kept waiting for more.
            None if !read.is_empty() => break,
            None if moved.elapsed() > patience => {
                return Err(RedriveError::Stalled { topic: topic.to_owned(), waited: patience });
            }
            None => continue,
        };
        moved = Instant::now();
        let (partition, offset) = (message.partition(), message.offset());
        let Some(span) = spans.get_mut(&partition) else { continue };
        if offset < span.end {
            bytes += message.key().map_or(0, <[u8]>::len) + message.payload().map_or(0, <[u8]>::len);
            read.push(Parts::copy_of(&message));
            span.next = offset + 1;
            next.insert(partition, span.next);
        }
        if offset + 1 >= span.end {
            next.insert(partition, span.end);
            spans.remove(&partition);
        }
    }
    Ok((read, next))
}

/// librdkafka's calls wait for the broker: not on a thread that runs futures.
async fn blocking<T: Send + 'static>(
    topic: &str,
    ask: impl FnOnce() -> Result<T, RedriveError> + Send + 'static,
) -> Result<T, RedriveError> {
    tokio::task::spawn_blocking(ask).await.unwrap_or_else(|_| {
        Err(RedriveError::Kafka { what: "go on", topic: topic.to_owned(), source: KafkaError::Canceled })
    })
}
