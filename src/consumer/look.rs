//! What the brokers are asked before partitions are taken in: all of it bounded in time.

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use rdkafka::config::FromClientConfig as _;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer as _, ConsumerContext, RebalanceProtocol};
use rdkafka::error::{KafkaError, KafkaResult};
use rdkafka::{ClientConfig, Offset, TopicPartitionList};
use tracing::{debug, warn};

use super::error::unsaid;
use super::resume::Look;
use super::witness::{Mark, Witness};
use crate::message::MessageView as _;

/// Topic and partition.
pub(super) type Place = (String, i32);

fn left(until: Instant) -> Duration {
    until.saturating_duration_since(Instant::now()).max(Duration::from_millis(1))
}

fn list(places: &[Place], offset: Offset) -> TopicPartitionList {
    let mut list = TopicPartitionList::with_capacity(places.len());
    for (topic, partition) in places {
        let _ = list.add_partition_offset(topic, *partition, offset);
    }
    list
}

/// Offset, and what the commit said if hapax made it; partitions of which nothing was told are missing.
pub(super) type Committed = HashMap<Place, (Option<i64>, Option<Mark>)>;

/// What the group has committed.
pub(super) fn committed<C: ConsumerContext>(
    client: &BaseConsumer<C>,
    places: &[Place],
    until: Instant,
) -> KafkaResult<Committed> {
    let found = client.committed_offsets(list(places, Offset::Invalid), left(until))?;
    let elements = found.elements();
    let told = elements.iter().filter(|element| element.error().is_ok()).map(|element| {
        let offset = match element.offset() {
            Offset::Offset(offset) => Some(offset),
            _ => None,
        };
        // rdkafka panics where the text is not UTF-8, which any program may have committed. Only a read: nothing is left half changed.
        let mark = catch_unwind(AssertUnwindSafe(|| Mark::parse(element.metadata()))).ok().flatten();
        ((element.topic().to_owned(), element.partition()), (offset, mark))
    });
    Ok(told.collect())
}

/// Commits where a partition begins. Best effort: if it is not heard, a restart looks again.
pub(super) fn pin<C: ConsumerContext>(client: &BaseConsumer<C>, pins: &TopicPartitionList) {
    if pins.count() > 0
        && let Err(error) = client.commit(pins, CommitMode::Async)
    {
        warn!(%error, "where partitions begin could not be committed");
    }
}

/// Fetches from `moved` anew, where librdkafka stopped: it seeks only in what it fetches. `others` are the rest of the assignment, with the
/// offsets to come next. Answers whether it was done.
pub(super) fn restart<C: ConsumerContext>(
    client: &BaseConsumer<C>,
    moved: &TopicPartitionList,
    others: &TopicPartitionList,
) -> bool {
    let done = match client.rebalance_protocol() {
        RebalanceProtocol::Cooperative => {
            client.incremental_unassign(moved).and_then(|()| client.incremental_assign(moved))
        }
        RebalanceProtocol::Eager | RebalanceProtocol::None => {
            let mut all = moved.clone();
            for element in others.elements() {
                let _ = all.add_partition_offset(element.topic(), element.partition(), element.offset());
            }
            client.assign(&all)
        }
    };
    match done {
        Ok(()) => true,
        Err(error) => {
            warn!(%error, "could not go on elsewhere; tried again");
            false
        }
    }
}

/// A message to look at.
#[derive(Debug)]
pub(super) struct Wanted {
    /// Its place in the caller's list.
    pub(super) at: usize,
    pub(super) place: Place,
    pub(super) witness: Witness,
}

/// Settings of a client that reads single messages and is no member of the group.
pub(super) fn reader_config(client: &ClientConfig) -> ClientConfig {
    let mut config = client.clone();
    for membership in [
        "group.instance.id",
        "group.protocol",
        "group.remote.assignor",
        "max.poll.interval.ms",
        "session.timeout.ms",
        "heartbeat.interval.ms",
        "statistics.interval.ms",
    ] {
        config.remove(membership);
    }
    config
        .set("enable.auto.commit", "false")
        .set("enable.auto.offset.store", "false")
        .set("auto.offset.reset", "error")
        .set("enable.partition.eof", "true")
        // What was aborted since is still the message that was read.
        .set("isolation.level", "read_uncommitted")
        .set("fetch.wait.max.ms", "20")
        // One message is enough; the broker sends at least one batch.
        .set("fetch.message.max.bytes", "16384")
        .set("queued.min.messages", "10")
        // librdkafka's own 1000 often keeps the first fetch back for a second.
        .set("fetch.queue.backoff.ms", "1");
    config
}

/// A client of its own that looks at partitions, on a thread of its own, since librdkafka may hang.
///
/// The consumer's own connections are no place to ask: an answer waits there behind fetches that wait for messages.
#[derive(Debug)]
pub(super) struct Looker {
    bounds: mpsc::Receiver<Bounds>,
    wanted: mpsc::Sender<Vec<Wanted>>,
    looks: mpsc::Receiver<(usize, Look)>,
}

/// First offset, and next one to be written.
pub(super) type Bounds = HashMap<Place, (i64, i64)>;

impl Looker {
    /// Begins to ask where these partitions begin and end.
    pub(super) fn start(config: ClientConfig, places: Vec<Place>, until: Instant) -> std::io::Result<Self> {
        let (tell_bounds, bounds) = mpsc::channel();
        let (wanted, wishes) = mpsc::channel();
        let (tell_looks, looks) = mpsc::channel();
        let work = move || {
            let client = match BaseConsumer::from_config(&config) {
                Ok(client) => client,
                Err(error) => {
                    return warn!(error = %unsaid(error), "no client could be made that looks where partitions go on");
                }
            };
            match ends(&client, &places, until) {
                Ok(bounds) => _ = tell_bounds.send(bounds),
                Err(error) => return warn!(%error, "the broker did not tell where partitions begin and end"),
            }
            if let Ok(wanted) = wishes.recv() {
                read(&client, wanted, until, &tell_looks);
            }
            // Whoever waits need not wait for the client's end.
            drop(tell_looks);
        };
        thread::Builder::new().name("hapax-look".into()).spawn(work)?;
        Ok(Self { bounds, wanted, looks })
    }

    /// Where they begin and end; partitions of which nothing was told are missing. `None` if nothing was told in time.
    pub(super) fn bounds(&self, until: Instant) -> Option<Bounds> {
        self.bounds.recv_timeout(left(until)).ok()
    }

    /// Looks at single messages. What is not told in time is missing.
    pub(super) fn read(self, wanted: Vec<Wanted>, until: Instant) -> Vec<(usize, Look)> {
        let count = wanted.len();
        let mut looks = Vec::with_capacity(count);
        if count == 0 || self.wanted.send(wanted).is_err() {
            return looks;
        }
        while looks.len() < count
            && let Ok(look) = self.looks.recv_timeout(left(until))
        {
            looks.push(look);
        }
        looks
    }
}

fn ends(client: &BaseConsumer, places: &[Place], until: Instant) -> KafkaResult<Bounds> {
    // ListOffsets takes either end in the place of a time.
    let ask = |which| client.offsets_for_times(list(places, which), left(until));
    let (first, next) = (ask(Offset::Beginning)?, ask(Offset::End)?);
    let offset = |found: &TopicPartitionList, (topic, partition): &Place| {
        let element = found.find_partition(topic, *partition).filter(|element| element.error().is_ok())?;
        if let Offset::Offset(offset) = element.offset() { Some(offset) } else { None }
    };
    let both = |place: &Place| {
        let low = offset(&first, place)?;
        Some((place.clone(), (low, offset(&next, place)?.max(low))))
    };
    Ok(places.iter().filter_map(both).collect())
}

fn read(client: &BaseConsumer, mut wanted: Vec<Wanted>, until: Instant, answer: &mpsc::Sender<(usize, Look)>) {
    wanted.sort_unstable_by(|a, b| a.place.cmp(&b.place));
    for same in wanted.chunk_by(|a, b| a.place.0 == b.place.0) {
        if let Err(error) = read_topic(client, same, until, answer) {
            warn!(%error, topic = same[0].place.0, "committed offsets could not be compared with what is there");
        }
    }
}

/// One topic at a time: the end of a partition is told without its topic.
fn read_topic(
    client: &BaseConsumer,
    wanted: &[Wanted],
    until: Instant,
    answer: &mpsc::Sender<(usize, Look)>,
) -> KafkaResult<()> {
    let mut at = TopicPartitionList::with_capacity(wanted.len());
    for Wanted { place: (topic, partition), witness, .. } in wanted {
        at.add_partition_offset(topic, *partition, Offset::Offset(witness.offset))?;
    }
    client.assign(&at)?;
    let mut open: HashMap<i32, &Wanted> = wanted.iter().map(|wanted| (wanted.place.1, wanted)).collect();
    while !open.is_empty() && Instant::now() < until {
        let (partition, look) = match client.poll(left(until).min(Duration::from_millis(20))) {
            Some(Ok(message)) => {
                let Some(wanted) = open.get(&message.partition()) else { continue };
                if message.topic() != wanted.place.0 || message.offset() < wanted.witness.offset {
                    continue;
                }
                let look = if message.offset() > wanted.witness.offset {
                    Look::Gone
                } else if Witness::of(&message) == wanted.witness {
                    Look::Same
                } else {
                    Look::Other
                };
                (message.partition(), look)
            }
            Some(Err(KafkaError::PartitionEOF(partition))) => (partition, Look::Gone),
            Some(Err(error)) => {
                debug!(%error, "while committed offsets were compared");
                continue;
            }
            None => continue,
        };
        if let Some(wanted) = open.remove(&partition) {
            let _ = answer.send((wanted.at, look));
        }
    }
    Ok(())
}
