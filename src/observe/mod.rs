//! What a consumer tells: to observers, batch by batch, and in one look for a health endpoint.
//!
//! - [`Observer`] hears of everything that happens, as [`Observed`]. Nothing is counted twice, nothing per message is called:
//!   an event carries what a whole batch came to. Without an observer nothing of this is computed.
//! - [`Snapshot`] is the consumer's state at one moment: what `Monitor::snapshot` answers.
//! - [`Metrics`] (feature `metrics`) is an observer that feeds the `metrics` facade.
//! - Spans: each handler call runs in a span named `process` of the target [`SPAN_TARGET`], level `DEBUG`, with the names of
//!   OpenTelemetry's messaging conventions as fields. See [`Process::span`].
//!
//! ```
//! use std::sync::atomic::{AtomicU64, Ordering};
//!
//! use hapax::observe::{Observed, Observer};
//!
//! #[derive(Default)]
//! struct Duplicates(AtomicU64);
//!
//! impl Observer for Duplicates {
//!     fn on(&self, event: &Observed<'_>) {
//!         if let Observed::Finished { counts, .. } = event {
//!             self.0.fetch_add(counts.redelivered + counts.same_id, Ordering::Relaxed);
//!         }
//!     }
//! }
//! # let _ = Duplicates::default();
//! ```

mod inbox;
#[cfg(feature = "metrics")]
mod metrics;
mod snapshot;
mod trace;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use tracing::Span;

#[cfg(feature = "metrics")]
pub use self::metrics::Metrics;
pub use inbox::InboxSnapshot;
pub use snapshot::{Health, PartitionSnapshot, Phase, Snapshot, Totals};
pub use trace::TraceContext;

use crate::message::MessageView;

/// The target of the spans of handled messages: `RUST_LOG=info,hapax::process=debug` turns them on.
pub const SPAN_TARGET: &str = "hapax::process";

/// Hears what a consumer does, or an inbox and its workers. Give it to `Consumer::observer`, `Worker::observer` or `Inbox::watch`; several may be given.
///
/// Called on the consumer's own task and thread, between batches: return soon, never block. A panic in it ends the consumer.
pub trait Observer: Send + Sync + 'static {
    /// Something happened.
    fn on(&self, event: &Observed<'_>) {
        let _ = event;
    }

    /// Makes the span that a handler call runs in; `None` leaves it to the next observer, and at last to [`Process::span`].
    /// Called for each handler call.
    ///
    /// This is where OpenTelemetry gets its parent. With `tracing-opentelemetry`:
    ///
    /// ```text
    /// fn span(&self, process: &Process<'_>) -> Option<Span> {
    ///     let span = process.span();
    ///     span.set_parent(global::get_text_map_propagator(|known| known.extract(&Headers(process.message))));
    ///     Some(span)
    /// }
    /// ```
    ///
    /// `Headers` being an `Extractor` over [`MessageView::header`]. Without a propagator, [`Process::trace`] has the ids.
    ///
    /// ```
    /// use hapax::observe::{Observer, Process};
    /// use tracing::Span;
    ///
    /// /// Spans at level INFO, with the tenant of the message.
    /// struct ByTenant;
    ///
    /// impl Observer for ByTenant {
    ///     fn span(&self, process: &Process<'_>) -> Option<Span> {
    ///         let tenant = process.message?.header("tenant").unwrap_or(b"none");
    ///         let tenant = String::from_utf8_lossy(tenant);
    ///         Some(tracing::info_span!("handle", %tenant, offset = process.message?.offset()))
    ///     }
    /// }
    /// ```
    fn span(&self, process: &Process<'_>) -> Option<Span> {
        let _ = process;
        None
    }
}

impl<O: Observer + ?Sized> Observer for Arc<O> {
    fn on(&self, event: &Observed<'_>) {
        (**self).on(event);
    }

    fn span(&self, process: &Process<'_>) -> Option<Span> {
        (**self).span(process)
    }
}

/// A partition of a topic.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Place<'a> {
    /// The topic.
    pub topic: &'a str,
    /// The partition, counted from 0.
    pub partition: i32,
}

impl fmt::Display for Place<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}[{}]", self.topic, self.partition)
    }
}

/// What happened. Each number counts what happened since the last event of the kind.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Observed<'a> {
    /// The consumer starts, as this one: told first.
    #[non_exhaustive]
    Started {
        /// The consumer group.
        group: &'a str,
        /// The handler's name, of [`Scope`](crate::identity::Scope); empty for handlers without a store.
        handler: &'a str,
    },
    /// Messages came from Kafka.
    #[non_exhaustive]
    Delivered {
        /// From where.
        place: Place<'a>,
        /// How many.
        messages: u64,
        /// Their keys and payloads, in bytes.
        bytes: u64,
    },
    /// The store answered one call to claim.
    #[non_exhaustive]
    Claimed {
        /// Messages asked for in that call.
        asked: u64,
        /// What it answered.
        answers: Claims,
        /// How long it took.
        took: Duration,
    },
    /// The store answered one call to settle.
    #[non_exhaustive]
    Settled {
        /// What it answered.
        answers: Settles,
        /// How long it took.
        took: Duration,
    },
    /// The store could not be asked or told; it is asked again.
    #[non_exhaustive]
    StoreFailed {
        /// What was asked.
        operation: Operation,
        /// For how many messages.
        messages: u64,
        /// After how long.
        took: Duration,
    },
    /// Handler calls ended.
    Ran(&'a [Run<'a>]),
    /// Messages are finished, and may be committed.
    #[non_exhaustive]
    Finished {
        /// Of which partition.
        place: Place<'a>,
        /// How.
        counts: Endings,
    },
    /// Results came of assignments that are over: they move no frontier.
    Late(u64),
    /// So many messages were left to another process, which has taken their partition: of what was done of them here nothing stands (level L2), or
    /// nothing is remembered (windows at level L1). The log names the partition.
    Fenced(u64),
    /// Messages were dropped unfinished, their partition being gone: they are delivered again, here or elsewhere.
    Dropped(u64),
    /// The broker acknowledged so many dead letters.
    DeadLettered(u64),
    /// So many dead letters could not be produced; they are produced again.
    DeadLetterFailed(u64),
    /// Something that is needed is down, and everything waits for it; or it is back.
    #[non_exhaustive]
    Circuit {
        /// What.
        what: Circuit,
        /// Whether it is down.
        open: bool,
    },
    /// Partitions are ours.
    Assigned(&'a [Place<'a>]),
    /// Partitions went.
    #[non_exhaustive]
    Revoked {
        /// Which.
        places: &'a [Place<'a>],
        /// They may have been somebody else's already, and were not committed.
        lost: bool,
        /// Messages of theirs that were delivered and not finished in time: they are delivered again.
        left: u64,
        /// For how long their handlers were waited for.
        took: Duration,
    },
    /// Partitions take nothing in for now: too much of theirs is unfinished, or something is down.
    Paused(&'a [Place<'a>]),
    /// Partitions take messages in again.
    Resumed(&'a [Place<'a>]),
    /// The broker answered a commit, or did not in time.
    #[non_exhaustive]
    Committed {
        /// Of how many partitions.
        partitions: u64,
        /// Whether it said yes.
        accepted: bool,
    },
    /// The consumer's state, about once a second while anything happens.
    Sampled(&'a Snapshot),
    /// An inbox was handed messages: told by `Inbox::watch`.
    Accepted(Accepts),
    /// A worker of an inbox took messages, or they ended: told by the worker.
    Worked(Worked),
    /// How an inbox stands: told by `Inbox::watch`, every so often.
    Inbox(&'a InboxSnapshot),
}

/// A call to the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Operation {
    /// To claim.
    Claim,
    /// To settle.
    Settle,
}

impl Operation {
    /// `claim`, `settle`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Claim => "claim",
            Self::Settle => "settle",
        }
    }
}

/// What may be down.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Circuit {
    /// The store.
    Store,
    /// What handlers need, as they said by [`ErrorClass`](crate::ErrorClass).
    Downstream,
}

impl Circuit {
    /// `store`, `downstream`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Store => "store",
            Self::Downstream => "downstream",
        }
    }
}

macro_rules! counts {
    ($(#[$doc:meta])* $name:ident { $($(#[$field_doc:meta])* $field:ident,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        #[non_exhaustive]
        pub struct $name {
            $($(#[$field_doc])* pub $field: u64,)*
        }

        impl $name {
            /// All together.
            #[must_use]
            pub const fn total(&self) -> u64 {
                0 $(+ self.$field)*
            }

            /// Each number that is not zero, with its name.
            pub fn named(&self) -> impl Iterator<Item = (&'static str, u64)> + use<> {
                self.all().filter(|(_, count)| *count > 0)
            }

            /// Each number, with its name.
            pub fn all(&self) -> impl Iterator<Item = (&'static str, u64)> + use<> {
                [$((stringify!($field), self.$field)),*].into_iter()
            }
        }

        impl std::ops::AddAssign for $name {
            fn add_assign(&mut self, other: Self) {
                $(self.$field += other.$field;)*
            }
        }
    };
}

counts! {
    /// What claims came to.
    Claims {
        /// Granted, and nobody had held them before.
        acquired,
        /// Granted, and taken over from an owner whose lease had run out: its effect may have happened.
        took_over,
        /// Duplicates of themselves: the same topic, partition and offset had been handled.
        redelivered,
        /// Duplicates of other messages with the same identity.
        same_id,
        /// Held by another owner: asked for again later.
        in_flight,
        /// Failed, and not due: asked for again later.
        not_due,
        /// Given up before.
        dead,
        /// Their identities were used by messages that say something else.
        conflicts,
    }
}

counts! {
    /// What settles came to.
    Settles {
        /// Recorded.
        recorded,
        /// Recorded as failed, and the attempts are used up.
        buried,
        /// Successes recorded although the claim had been taken over: the effect may have happened twice.
        late,
        /// Refused, the claim being somebody else's.
        refused,
    }
}

counts! {
    /// How messages finished.
    Endings {
        /// Their handlers succeeded.
        handled,
        /// Not handled: the same topic, partition and offset had been.
        redelivered,
        /// Not handled: another message with the same identity had been.
        same_id,
        /// Not handled: another message with the same identity says something else.
        conflicts,
        /// Given up.
        dead,
    }
}

counts! {
    /// What became of messages that an inbox was handed.
    Accepts {
        /// In the table now.
        new,
        /// Their identities were there, saying the same.
        duplicates,
        /// Their identities were there, saying something else.
        conflicts,
        /// Delivered again after they had been accepted.
        redelivered,
        /// Refused for want of an identity.
        rejected,
        /// Refused for their size, or their topic's name, or by the database's own checks.
        refused,
    }
}

counts! {
    /// What a worker of an inbox did with messages.
    Worked {
        /// Taken, as often as they were.
        taken,
        /// Succeeded.
        succeeded,
        /// Succeeded after their lease had run out (level L1): their effects may have happened twice.
        late,
        /// Failed, and to be tried again.
        failed,
        /// Given up.
        dead,
        /// Given back, with no attempt burnt.
        released,
        /// Somebody else's by then: their lease had run out.
        lost,
        /// Ended, and the database could not be told, or still in hand when the worker ended: they are found when their lease is over.
        unsettled,
        /// Messages of workers that died, found by this one: not taken by it.
        swept,
    }
}

impl Worked {
    /// Those that are in the worker's hands no longer.
    #[must_use]
    pub const fn ended(&self) -> u64 {
        self.succeeded + self.late + self.failed + self.dead + self.released + self.lost + self.unsettled
    }
}

/// A handler call that ended.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Run<'a> {
    /// The partition of its message; of the first one, for a batch.
    pub place: Place<'a>,
    /// Messages in the call.
    pub messages: u64,
    /// Which attempt it was, from 1.
    pub attempt: u32,
    /// How it ended; for a batch: how the first message did that did not end well.
    pub outcome: Outcome,
    /// How long it took, waiting included.
    pub took: Duration,
}

/// How a handler call ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Outcome {
    /// Well.
    Succeeded,
    /// With an error that may not come again.
    Failed,
    /// With an error that will come again.
    Fatal,
    /// What it needs is down.
    Unavailable,
    /// With a panic.
    Panicked,
    /// It took longer than it may.
    TimedOut,
    /// It was dropped where it waited.
    Aborted,
}

impl Outcome {
    /// `succeeded`, `failed`, `fatal`, `unavailable`, `panicked`, `timed_out`, `aborted`: the label of metrics, and `error.type` of spans.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
            Self::Fatal => "fatal",
            Self::Unavailable => "unavailable",
            Self::Panicked => "panicked",
            Self::TimedOut => "timed_out",
            Self::Aborted => "aborted",
        }
    }

    /// All of them.
    pub const ALL: &'static [Self] =
        &[Self::Succeeded, Self::Failed, Self::Fatal, Self::Unavailable, Self::Panicked, Self::TimedOut, Self::Aborted];
}

/// A handler call about to begin: what its span is made of.
#[derive(Clone, Copy)]
#[non_exhaustive]
pub struct Process<'a> {
    /// The consumer group.
    pub group: &'a str,
    /// The message; the first one, for a batch.
    pub message: Option<&'a dyn MessageView>,
    /// Messages in the call.
    pub messages: usize,
    /// Which attempt it is, from 1.
    pub attempt: u32,
    /// What a resource may take as idempotency key; `None` for handlers without a store.
    pub idempotency_key: Option<&'a dyn fmt::Display>,
}

impl<'a> Process<'a> {
    /// A call for one message.
    #[must_use]
    pub const fn new(group: &'a str, message: &'a dyn MessageView, attempt: u32) -> Self {
        Self { group, message: Some(message), messages: 1, attempt, idempotency_key: None }
    }

    /// Sets how many messages are in the call.
    #[must_use]
    pub const fn messages(mut self, messages: usize) -> Self {
        self.messages = messages;
        self
    }

    /// Sets the idempotency key.
    #[must_use]
    pub const fn idempotency_key(mut self, key: &'a dyn fmt::Display) -> Self {
        self.idempotency_key = Some(key);
        self
    }

    /// The trace that the message belongs to, as its header `traceparent` says.
    #[must_use]
    pub fn trace(&self) -> Option<TraceContext> {
        TraceContext::of(self.message?)
    }

    /// Whether anybody would see [`span`](Self::span). Costs one look at a flag where nobody does.
    #[must_use]
    pub fn is_enabled() -> bool {
        tracing::enabled!(target: SPAN_TARGET, tracing::Level::DEBUG)
    }

    /// The span that hapax makes by itself, level `DEBUG`, target [`SPAN_TARGET`].
    ///
    /// Fields: `otel.name` (`process TOPIC`), `otel.kind`, `messaging.system`, `messaging.operation.name` and `.type`,
    /// `messaging.destination.name`, `messaging.destination.partition.id`, `messaging.kafka.offset`, `messaging.consumer.group.name`,
    /// `messaging.message.id` (the idempotency key), `messaging.message.body.size`, `messaging.batch.message_count` (batches only),
    /// `hapax.attempt`, `trace_id` and `parent_span_id` (of the header `traceparent`), and, when the call failed,
    /// `error.type` ([`Outcome::name`]). Never the message's key or what it says.
    #[must_use]
    pub fn span(&self) -> Span {
        if !Self::is_enabled() {
            return Span::none();
        }
        let Some(message) = self.message else { return Span::none() };
        use tracing::field::Empty;
        let span = tracing::debug_span!(
            target: SPAN_TARGET,
            "process",
            otel.name = format_args!("process {}", message.topic()),
            otel.kind = "consumer",
            messaging.system = "kafka",
            messaging.operation.name = "process",
            "messaging.operation.type" = "process",
            messaging.destination.name = message.topic(),
            messaging.destination.partition.id = message.partition(),
            messaging.kafka.offset = message.offset(),
            messaging.consumer.group.name = self.group,
            messaging.message.id = Empty,
            messaging.message.body.size = Empty,
            messaging.batch.message_count = Empty,
            hapax.attempt = self.attempt,
            trace_id = Empty,
            parent_span_id = Empty,
            "error.type" = Empty,
        );
        if let Some(key) = self.idempotency_key {
            span.record("messaging.message.id", tracing::field::display(key));
        }
        if self.messages == 1 {
            span.record("messaging.message.body.size", message.payload().map_or(0, <[u8]>::len));
        } else {
            span.record("messaging.batch.message_count", self.messages);
        }
        if let Some(trace) = TraceContext::of(message) {
            span.record("trace_id", tracing::field::display(format_args!("{:032x}", trace.trace_id)));
            span.record("parent_span_id", tracing::field::display(format_args!("{:016x}", trace.parent_id)));
        }
        span
    }

    /// Notes on a span how the call ended: `error.type`, unless it ended well.
    pub fn ended(span: &Span, outcome: Outcome) {
        if outcome != Outcome::Succeeded {
            span.record("error.type", outcome.name());
        }
    }
}

impl fmt::Debug for Process<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Process")
            .field("group", &self.group)
            .field("messages", &self.messages)
            .field("attempt", &self.attempt)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_add_up_and_name_themselves() {
        let mut all = Endings { handled: 3, ..Endings::default() };
        all += Endings { handled: 1, same_id: 2, ..Endings::default() };
        assert_eq!(all.total(), 6);
        assert_eq!(all.named().collect::<Vec<_>>(), [("handled", 4), ("same_id", 2)]);
        assert_eq!(Endings::default().named().count(), 0);
    }

    #[test]
    fn outcomes_have_names_of_their_own() {
        let names: std::collections::BTreeSet<_> = Outcome::ALL.iter().map(|outcome| outcome.name()).collect();
        assert_eq!(names.len(), Outcome::ALL.len());
    }
}
