//! The seam between the consumer and whatever handles its messages.

use std::error::Error;
use std::fmt;
use std::future::Future;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::message::Message;

/// How a message finished. Whichever it is, the message may be committed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Ending {
    /// The handler succeeded.
    Handled,
    /// A duplicate of itself: the same topic, partition and offset had been handled.
    Redelivered,
    /// A duplicate of another message with the same identity.
    SameId,
    /// Another message with the same identity says something else, and policy is to pass on.
    Conflict,
    /// Given up.
    Dead,
}

/// Why a message cannot finish and the consumer has to end.
pub type Failure = Box<dyn Error + Send + Sync>;

/// What [`Consumer::run`](super::Consumer::run) drives.
///
/// [`Once::each`](crate::Once::each) makes one. Not meant to be implemented elsewhere yet: it will change.
pub trait Handling: Send + Sync + 'static {
    /// Handles `messages`, all of one partition, in order, one after the other.
    ///
    /// Calls `finished` with the index of each message that finished, in any order, as soon as it did. Begins no
    /// further message once `stop` is cancelled, lets the one that runs finish, and returns. Waits, as long as it takes, where a
    /// message cannot finish *yet*: the store is away, somebody else is handling it, its retry is not due.
    ///
    /// # Errors
    ///
    /// The index of a message that cannot finish at all, and why: the consumer ends, and that message is not committed.
    ///
    /// # Cancel safety
    ///
    /// A dropped future settles nothing: what was claimed stays claimed until its lease runs out.
    fn handle(
        &self,
        messages: &[Message],
        stop: &CancellationToken,
        finished: &mut (dyn FnMut(usize, Ending) + Send),
    ) -> impl Future<Output = Result<(), (usize, Failure)>> + Send;

    /// Tells the store what it has not heard yet, once all lanes have ended. Answers how many messages it could not be told of
    /// within `longest`.
    fn finish(&self, longest: Duration) -> impl Future<Output = u64> + Send;

    /// Mode, level, store and warnings, for the start-up report.
    fn describe(&self) -> impl fmt::Display + Send;
}
