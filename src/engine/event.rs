//! What the engine is told, and what it answers: plain values, batch by batch.

use std::sync::Arc;
use std::time::Duration;

use crate::frontier::Epoch;
use crate::identity::{Fingerprint, Key};

/// Time since the driver's own beginning, on a monotonic clock. Passed in: the engine has no clock.
pub type Time = Duration;

/// A message in hand. The driver gives numbers, small ones first, and uses one again only after
/// [`Command::Finished`] or [`Command::Dropped`] named it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ticket(pub u32);

/// A partition that is ours from now on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Assigned {
    /// Its topic.
    pub topic: Arc<str>,
    /// Its number.
    pub partition: i32,
    /// The period of owning it; numbers grow, and no two assignments share one.
    pub epoch: Epoch,
    /// What the broker has as committed, where that is known: nothing below it is ever committed.
    pub committed: Option<i64>,
}

/// What a message is to the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Subject {
    /// It has a record under this key: claimed before it is handled, settled after.
    Known {
        /// What the store knows it by.
        key: Key,
        /// What tells a duplicate from a conflict.
        fingerprint: Fingerprint,
    },
    /// It has none: handled at once.
    Bare,
    /// Whatever handles it remembers it by itself, together with its effect: handled at once, without a claim. What is known of it
    /// comes back as [`Ran::Answered`]; only giving it up is told, by [`Verdict::Dead`].
    Own,
    /// It has no usable identity, and policy is to refuse such messages.
    Refused,
}

/// A message delivered, in the order of its partition.
#[derive(Clone, Copy, Debug)]
pub struct Arrival {
    /// Its number.
    pub ticket: Ticket,
    /// Which assignment it was polled in.
    pub epoch: Epoch,
    /// Its offset.
    pub offset: i64,
    /// A hash of its record key; `None` if that is null.
    pub lane: Option<u64>,
    /// What it is to the store.
    pub subject: Subject,
}

/// What the store said to a claim.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// It is ours to handle.
    Acquired {
        /// Which attempt this is, from 1, over all processes.
        attempt: u32,
    },
    /// Handled before, at the same topic, partition and offset.
    Redelivered,
    /// Handled before: another message with the same identity.
    SameId,
    /// Another owner holds it, or may: ask again.
    InFlight {
        /// For how long that lease still runs; zero if it is not known.
        remaining: Duration,
    },
    /// It failed, and is not due.
    NotDue {
        /// How long until it is.
        remaining: Duration,
    },
    /// Given up before.
    Dead,
    /// Another message with the same identity says something else.
    Conflict,
    /// It has no usable identity, and policy is to refuse such messages. Only from what remembers by itself: see [`Ran::Answered`].
    Refused,
}

/// How a handler ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ran {
    /// It succeeded.
    Succeeded,
    /// It failed, and may succeed later.
    Failed {
        /// How long to wait: back-off and jitter are the driver's.
        retry_in: Duration,
        /// Which attempt it was, from 1, over all processes, where whatever handled it counts by itself: that wins over the count here.
        attempt: Option<u32>,
    },
    /// It failed, and never will succeed.
    Fatal,
    /// What it needs is down: no attempt is burnt, and everything waits until it is back.
    Unavailable {
        /// Any number, evenly distributed.
        random: u64,
    },
    /// Whatever handled it decided by itself: a batch in one transaction, an inbox.
    Finished(Ending),
    /// It was not handled, since whatever remembers it by itself says this: treated as the same answer to a claim.
    Answered(Answer),
    /// Its turn did not come, since one before it in its chain failed or it was halted. Reported together with that, in order.
    NotBegun,
    /// As its turn came, its lease had run out: another owner may have it, so it did not begin. So it goes for those behind it in its chain.
    Lost,
    /// It was dropped where it waited, as [`Command::Abort`] said.
    Aborted,
}

/// How a claim is to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The handler succeeded (or is about to run, under at most once).
    Succeeded,
    /// It failed; due again after this.
    Failed {
        /// How long until it is due.
        retry_in: Duration,
    },
    /// It was not begun, or no attempt is to be burnt.
    Released,
    /// Given up.
    Dead,
}

/// What the store said to a settle.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Settled {
    /// Recorded.
    Recorded,
    /// Recorded as failed, and its attempts are used up.
    Buried,
    /// A success, recorded although the claim had been taken over.
    Late,
    /// The claim had been taken over: nothing was changed.
    Refused,
    /// Another process has its partition: nothing was changed, not even where its handler succeeded. It is that process's from now on.
    Fenced,
}

/// How a message finished. Whichever it is, the message may be committed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
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

/// Why a message is given up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Cause {
    /// Its attempts are used up.
    Attempts,
    /// Its handler said that it never will succeed.
    Fatal,
    /// It failed, and is not tried again here.
    Failed,
    /// The store has it as dead: it was given up earlier.
    DeadBefore,
    /// It has no usable identity.
    Identity,
    /// Another message with the same identity says something else.
    Conflict,
}

/// An offset of a partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Position {
    /// The topic.
    pub topic: Arc<str>,
    /// The partition.
    pub partition: i32,
    /// The period of owning it.
    pub epoch: Epoch,
    /// The offset to commit: one above the last message of the finished prefix.
    pub offset: i64,
}

/// What happened.
#[derive(Clone, Debug)]
pub enum Event {
    /// Time passed: see [`Engine::wake_at`](super::Engine::wake_at).
    Tick,
    /// Partitions are ours. One that was already ours begins anew.
    Assigned(Vec<Assigned>),
    /// Messages came.
    Delivered(Vec<Arrival>),
    /// The store answered [`Command::Claim`], ticket by ticket.
    Claimed(Vec<(Ticket, Answer)>),
    /// The store could not be asked; whether it granted the claims is not known.
    ClaimFailed {
        /// Those asked for.
        tickets: Vec<Ticket>,
        /// Any number, evenly distributed.
        random: u64,
    },
    /// Handlers ended.
    Ran(Vec<(Ticket, Ran)>),
    /// The store answered [`Command::Settle`], ticket by ticket.
    Settled(Vec<(Ticket, Settled)>),
    /// The store could not be told; whether it heard is not known.
    SettleFailed {
        /// Those to tell.
        tickets: Vec<Ticket>,
        /// Any number, evenly distributed.
        random: u64,
    },
    /// The broker acknowledged a dead letter.
    DeadLettered(Vec<Ticket>),
    /// Dead letters could not be produced, for now.
    DeadLetterFailed {
        /// Those.
        tickets: Vec<Ticket>,
        /// Any number, evenly distributed.
        random: u64,
    },
    /// Partitions go. Answered by [`Command::Revoked`].
    Revoke {
        /// Which.
        epochs: Vec<Epoch>,
        /// They may be somebody else's already: nothing is committed, and nothing is waited for.
        lost: bool,
        /// Until when running handlers may run.
        by: Time,
    },
    /// The broker answered [`Command::Commit`].
    Committed {
        /// What was to be committed.
        positions: Vec<Position>,
        /// Whether it said yes.
        accepted: bool,
    },
    /// The consumer is to end. Answered by [`Command::Closed`].
    Close {
        /// Until when running handlers may run.
        by: Time,
    },
}

/// A handler to start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Start {
    /// The message.
    pub ticket: Ticket,
    /// Which attempt it is.
    pub attempt: u32,
    /// It belongs to the chain of the one before it in the list: it runs after that one, and only if that one succeeded.
    /// With batch handlers: it goes into the same call.
    pub chained: bool,
}

/// What to do.
#[derive(Clone, Debug)]
pub enum Command {
    /// Ask the store for these claims, in one call. One call at a time.
    Claim(Vec<Ticket>),
    /// Start handlers: chains side by side.
    Run(Vec<Start>),
    /// Tell the store how these claims ended, in one call. One call at a time.
    Settle(Vec<(Ticket, Verdict)>),
    /// Produce dead letters, and wait until the broker acknowledged them.
    DeadLetter(Vec<(Ticket, Cause)>),
    /// Begin no further handler of these assignments: the chains that run end with the message that runs.
    Halt(Vec<Epoch>),
    /// Drop these handlers where they wait; answered by [`Ran::Aborted`], and [`Ran::NotBegun`] for what was chained to them.
    Abort(Vec<Ticket>),
    /// These are finished, and their numbers free.
    Finished(Vec<(Ticket, Ending)>),
    /// These will be delivered again, here or elsewhere; their numbers are free.
    Dropped(Vec<Ticket>),
    /// Take nothing in from these partitions.
    Pause(Vec<Epoch>),
    /// Take messages in again.
    Resume(Vec<Epoch>),
    /// Commit these. Answered by [`Event::Committed`]; one at a time.
    Commit(Vec<Position>),
    /// These partitions may go, once this is committed.
    Revoked {
        /// Which.
        epochs: Vec<Epoch>,
        /// What to commit, and wait for.
        commit: Vec<Position>,
        /// Handlers that did not end in time.
        left: usize,
    },
    /// This message may not be passed: nothing behind it will be committed. End the consumer.
    Stop {
        /// The message.
        ticket: Ticket,
        /// Why.
        cause: Cause,
    },
    /// All is done that could be.
    Closed {
        /// What to commit, and wait for.
        commit: Vec<Position>,
        /// Messages delivered and not finished: they will be delivered again.
        left: usize,
    },
}
