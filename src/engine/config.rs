//! What the engine is set to.

use std::time::Duration;

/// Which messages wait for which.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum Order {
    /// Messages of one partition one after the other; partitions side by side. The default.
    #[default]
    Partition,
    /// Messages of one partition with the same record key one after the other; different keys side by side. Messages with a null key
    /// wait for nobody and nobody waits for them. An empty key is a key like any other.
    Key,
    /// Every message on its own.
    Unordered,
}

/// What happens to a message that is given up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum OnDead {
    /// It is dead in the store, and passed. A message that the store cannot know (without identity, or in conflict) ends the consumer.
    #[default]
    Record,
    /// It goes to the dead letter topic first.
    Letter,
    /// The consumer ends.
    Stop,
}

/// What happens to a message whose identity was used by one that says something else.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum Conflicts {
    /// It is given up: see [`OnDead`].
    #[default]
    GiveUp,
    /// It is passed.
    Skip,
    /// It is handled, and not remembered.
    Handle,
}

/// Settings of an [`Engine`](super::Engine).
#[derive(Clone, Debug)]
pub struct Config {
    /// Which messages wait for which.
    pub order: Order,
    /// Whether what is behind a failed message in its partition or key goes on while that waits for its retry. Breaks the order.
    pub step_aside: bool,
    /// Handler calls that may run at once. At least 1.
    pub concurrency: usize,
    /// Messages that one handler call takes at most; `None` for handlers of one message.
    pub batch: Option<usize>,
    /// Settle as succeeded before the handler runs: at most once.
    pub settle_first: bool,
    /// Attempts that a message has. At least 1.
    pub max_attempts: u32,
    /// Whether a failed message is tried again by this consumer; if not, its failure ends it.
    pub retries: bool,
    /// What happens to conflicts.
    pub conflicts: Conflicts,
    /// What happens to what is given up.
    pub on_dead: OnDead,
    /// Messages that one call to the store claims or settles at most.
    pub claims: usize,
    /// Unfinished messages of all partitions that the driver takes in at most.
    pub messages: usize,
    /// Unfinished messages of one partition from which on it is full, and paused if it stands still or takes the others' room.
    pub partition_messages: usize,
    /// How far the delivered end of a partition may be ahead of its first unfinished message, in messages.
    pub span: usize,
    /// Time between two commits.
    pub commit_every: Duration,
    /// Commit earlier when so many messages finished.
    pub commit_after: u64,
    /// A fault to build in, so that the simulator can show that it finds it.
    #[cfg(feature = "simulator")]
    pub flaw: Option<Flaw>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            order: Order::default(),
            step_aside: false,
            concurrency: 64,
            batch: None,
            settle_first: false,
            max_attempts: 8,
            retries: true,
            conflicts: Conflicts::default(),
            on_dead: OnDead::default(),
            claims: 512,
            messages: 16_384,
            partition_messages: 4_096,
            span: 1 << 17,
            commit_every: Duration::from_secs(1),
            commit_after: 50_000,
            #[cfg(feature = "simulator")]
            flaw: None,
        }
    }
}

/// Faults that an engine can be built with, to show that the simulator finds them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(not(feature = "simulator"), allow(dead_code))]
pub enum Flaw {
    /// A message counts as finished when its handler succeeded, not when the store has heard of it.
    CommitBeforeSettle,
    /// A settle that failed is taken for heard.
    SwallowSettleError,
    /// Where the store cannot be asked, the handler runs without a claim.
    FailOpen,
    /// A failed message is run again without claiming it.
    RetryWithoutClaim,
    /// A message that another owner is handling is passed as a duplicate.
    PassInFlight,
    /// What is finished is committed although something before it is not.
    CommitPastGap,
    /// Results of an assignment that is over move the frontier of the next one.
    LateResultsCount,
    /// Lost partitions are committed like revoked ones.
    CommitLost,
    /// Of two messages with one identity in hand both are claimed and run.
    IgnoreTwins,
    /// A message that waits for its retry does not hold its key.
    ForgetOrder,
    /// A message given up is settled as dead before its dead letter is acknowledged.
    SettleBeforeLetter,
    /// A released claim is forgotten: nothing tells the store, and the message is passed.
    PassReleased,
    /// A message whose number was that of one before it in its lane is given back twice when an earlier one has to wait.
    GivenBackTwice,
}

impl Config {
    /// Whether that fault is built in.
    #[cfg(feature = "simulator")]
    pub(super) fn has(&self, flaw: Flaw) -> bool {
        self.flaw == Some(flaw)
    }

    /// No fault is.
    #[cfg(not(feature = "simulator"))]
    pub(super) const fn has(&self, _: Flaw) -> bool {
        false
    }
}
