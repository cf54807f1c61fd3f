//! The thread that commits.
//!
//! rdkafka 0.39 answers an asynchronous commit never: librdkafka posts its outcome only to a callback that rdkafka's event
//! interface does not set. A synchronous commit is answered, but blocks for as long as the coordinator is away. So commits are
//! synchronous on a thread of their own, one after the other, and the Kafka thread hears of the outcome as of any other report.

use std::sync::{Arc, Weak, mpsc};
use std::thread;

use rdkafka::consumer::{CommitMode, Consumer as _};
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};

use super::bell::Bell;
use super::context::{Client, list};
use super::lane::Report;
use super::partitions::Position;

/// Numbers commits in the order in which they are asked for and answered.
pub(super) type Ticket = u64;

struct Request {
    ticket: Ticket,
    positions: Vec<Position>,
}

/// Commits, one request after the other.
#[derive(Debug)]
pub(super) struct Committer {
    requests: mpsc::Sender<Request>,
}

impl std::fmt::Debug for Request {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Request").field("ticket", &self.ticket).finish_non_exhaustive()
    }
}

impl Committer {
    pub(super) fn start(client: Weak<Client>, bell: Arc<Bell>) -> std::io::Result<Self> {
        let (requests, waiting) = mpsc::channel();
        let work = move || {
            // Ends with the client, in which the sender lives.
            while let Ok(Request { ticket, positions }) = waiting.recv() {
                let Some(client) = client.upgrade() else { return };
                bell.report(Report::Committed { ticket, outcomes: commit(&client, positions) });
            }
        };
        thread::Builder::new().name("hapax-commit".into()).spawn(work)?;
        Ok(Self { requests })
    }

    pub(super) fn ask(&self, ticket: Ticket, positions: Vec<Position>) {
        let _ = self.requests.send(Request { ticket, positions });
    }
}

/// What became of a commit: positions that share one answer of the broker.
#[derive(Debug)]
pub(super) struct CommitOutcome {
    pub(super) positions: Vec<Position>,
    pub(super) result: KafkaResult<()>,
}

/// Commits topic by topic: librdkafka calls a commit successful if it was for one partition of many, and those of one topic
/// are refused together.
fn commit(client: &Client, mut positions: Vec<Position>) -> Vec<CommitOutcome> {
    positions.sort_unstable_by(|a, b| a.topic.cmp(&b.topic));
    positions
        .chunk_by(|a, b| a.topic == b.topic)
        .map(|same| {
            let result = match client.commit(&list(same), CommitMode::Sync) {
                Err(KafkaError::ConsumerCommit(RDKafkaErrorCode::NoOffset)) => Ok(()),
                result => result,
            };
            CommitOutcome { positions: same.to_vec(), result }
        })
        .collect()
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
