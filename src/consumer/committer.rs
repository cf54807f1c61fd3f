//! The thread that commits.
//!
//! rdkafka 0.39 answers an asynchronous commit never: librdkafka posts its outcome only to a callback that rdkafka's event
//! interface does not set. A synchronous commit is answered, but blocks for as long as the coordinator is away. So commits are
//! synchronous on a thread of their own, one after the other, and the Kafka thread hears of the outcome at its bell.

use std::collections::HashSet;
use std::sync::{Arc, Weak, mpsc};
use std::thread;

use rdkafka::consumer::{CommitMode, Consumer as _};
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};
use rdkafka::{Offset, TopicPartitionList};

use super::bell::{Bell, Word};
use super::context::Client;
use crate::engine::Position;

/// Numbers commits in the order in which they are asked for and answered.
pub(super) type Ticket = u64;

#[derive(Debug)]
struct Task {
    ticket: Ticket,
    positions: Vec<Position>,
    tell: bool,
}

/// What became of a commit.
#[derive(Debug, Default)]
pub(super) struct Answered {
    /// Its number.
    pub(super) ticket: Ticket,
    /// Whether the pump waits for the answer.
    pub(super) tell: bool,
    /// The broker said yes.
    pub(super) accepted: Vec<Position>,
    /// The broker said no: positions that share one answer.
    pub(super) refused: Vec<(Vec<Position>, KafkaError)>,
    /// The partitions were not ours any more: the broker was not asked.
    pub(super) over: Vec<Position>,
}

/// Commits, one request after the other.
#[derive(Debug)]
pub(super) struct Committer {
    tasks: mpsc::Sender<Task>,
}

impl Committer {
    pub(super) fn start(client: Weak<Client>, bell: Arc<Bell>) -> std::io::Result<Self> {
        let (tasks, waiting) = mpsc::channel();
        let work = move || {
            // Ends with the client, in which the sender lives.
            while let Ok(Task { ticket, positions, tell }) = waiting.recv() {
                bell.tell(Word::Committed(match client.upgrade() {
                    Some(client) => commit(&client, ticket, positions, tell),
                    // Whoever waits for the answer gets one.
                    None => Answered { ticket, tell, over: positions, ..Answered::default() },
                }));
            }
        };
        thread::Builder::new().name("hapax-commit".into()).spawn(work)?;
        Ok(Self { tasks })
    }

    /// One that notes what it is asked for, for tests.
    #[cfg(test)]
    pub(super) fn noting() -> (Self, mpsc::Receiver<(Ticket, Vec<Position>)>) {
        let (tasks, waiting) = mpsc::channel::<Task>();
        let (note, noted) = mpsc::channel();
        thread::spawn(move || {
            for Task { ticket, positions, .. } in waiting {
                let _ = note.send((ticket, positions));
            }
        });
        (Self { tasks }, noted)
    }

    /// Asks for a commit. With `tell`, the pump is to hear of it.
    pub(super) fn ask(&self, ticket: Ticket, positions: Vec<Position>, tell: bool) {
        let _ = self.tasks.send(Task { ticket, positions, tell });
    }
}

/// Commits topic by topic: librdkafka calls a commit successful if it was for one partition of many, and those of one topic
/// are refused together.
fn commit(client: &Client, ticket: Ticket, positions: Vec<Position>, tell: bool) -> Answered {
    // Asked now, and not when the commit was asked for: one before it may have waited for the coordinator all through a rebalance.
    let (mut ours, over) = ours(client, positions);
    let mut answered = Answered { ticket, tell, over, ..Answered::default() };
    ours.sort_unstable_by(|a, b| a.topic.cmp(&b.topic));
    for same in ours.chunk_by(|a, b| a.topic == b.topic) {
        match commit_marked(client, same) {
            Ok(()) => answered.accepted.extend_from_slice(same),
            Err(error) => answered.refused.push((same.to_vec(), error)),
        }
    }
    answered
}

/// Commits with witnesses, by which a topic that is deleted and made again is told from this one; without, where the broker takes none.
fn commit_marked(client: &Client, positions: &[Position]) -> KafkaResult<()> {
    let marked = list(positions);
    let continuity = client.context().continuity();
    for position in positions {
        if let Some(text) = continuity.metadata(position.epoch, position.offset)
            && let Some(mut element) = marked.find_partition(&position.topic, position.partition)
        {
            element.set_metadata(text);
        }
    }
    match client.commit(&marked, CommitMode::Sync) {
        Err(KafkaError::ConsumerCommit(RDKafkaErrorCode::OffsetMetadataTooLarge)) => {
            continuity.mute();
            client.commit(&list(positions), CommitMode::Sync)
        }
        result => result,
    }
}

/// Tells positions of partitions that are ours from the others.
///
/// A position of an epoch that is over is never committed. Storing an offset is refused, partition by partition, where librdkafka knows that
/// we are not the owner; committing is not.
fn ours(client: &Client, positions: Vec<Position>) -> (Vec<Position>, Vec<Position>) {
    let (ours, mut over): (Vec<_>, Vec<_>) =
        positions.into_iter().partition(|position| client.context().is_ours(position.epoch));
    if ours.is_empty() {
        return (ours, over);
    }
    let stored = list(&ours);
    let result = client.store_offsets(&stored);
    let refused: HashSet<(String, i32)> = stored
        .elements()
        .iter()
        .filter(|element| result.is_err() || element.error().is_err())
        .map(|element| (element.topic().to_owned(), element.partition()))
        .collect();
    let (not_ours, ours): (Vec<_>, Vec<_>) =
        ours.into_iter().partition(|position| refused.contains(&(position.topic.to_string(), position.partition)));
    over.extend(not_ours);
    (ours, over)
}

/// librdkafka's form of it.
fn list(positions: &[Position]) -> TopicPartitionList {
    let mut list = TopicPartitionList::with_capacity(positions.len());
    for position in positions {
        let _ = list.add_partition_offset(&position.topic, position.partition, Offset::Offset(position.offset));
    }
    list
}

/// Whether a refused commit may be taken if the same member asks for it again, a little later.
///
/// librdkafka repeats some of these by itself, but not for ever, and none of a commit that finds its group in a rebalance: the member has
/// to wait for its next generation (or epoch), which it gets by itself.
pub(super) fn may_pass(error: &KafkaError) -> bool {
    use RDKafkaErrorCode as Code;
    matches!(
        error.rdkafka_error_code(),
        Some(
            Code::RebalanceInProgress
                | Code::StaleMemberEpoch
                | Code::CoordinatorLoadInProgress
                | Code::CoordinatorNotAvailable
                | Code::NotCoordinator
                | Code::WaitingForCoordinator
                | Code::RequestTimedOut
                | Code::OperationTimedOut
                | Code::NetworkException
                | Code::BrokerTransportFailure
        )
    )
}

/// Whether a refused commit means that the partition is somebody else's, or about to be.
pub(super) fn is_ownership_gone(error: &KafkaError) -> bool {
    use RDKafkaErrorCode as Code;
    matches!(
        error.rdkafka_error_code(),
        Some(
            Code::RebalanceInProgress
                | Code::IllegalGeneration
                | Code::UnknownMemberId
                | Code::FencedInstanceId
                | Code::FencedMemberEpoch
                | Code::StaleMemberEpoch
        )
    )
}
