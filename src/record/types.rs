//! What a record is, what is asked of it, and what it answers.

use std::fmt;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use crate::identity::{Fingerprint, Key};

/// Milliseconds on a store's clock. Only differences mean anything.
pub type Millis = i64;

/// The longest duration that is told apart from a longer one: about 140,000 years. A time plus this is far from the
/// end of a 64-bit integer, and still exact in a double, so that no store's arithmetic overflows or rounds.
pub const LONGEST: Millis = 1 << 52;

/// Who holds a claim: a random number, new for every [`Once`](crate::Once) that is built.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Owner(u64);

impl Owner {
    /// An owner by number.
    #[must_use]
    pub const fn new(number: u64) -> Self {
        Self(number)
    }

    /// The number.
    #[must_use]
    pub const fn get(self) -> u64 {
        self.0
    }
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl fmt::Debug for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Owner({self})")
    }
}

/// A number that grows with every claim of the same record by another owner, and with every retry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Fence(u64);

impl Fence {
    /// The fence of a record's first claim.
    pub const FIRST: Self = Self(1);

    /// A fence by number.
    #[must_use]
    pub const fn new(number: u64) -> Self {
        Self(number)
    }

    /// The number.
    #[must_use]
    pub const fn get(self) -> u64 {
        self.0
    }

    pub(super) fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }
}

/// Proof of a claim: owner and fence.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Token {
    /// Who claimed.
    pub owner: Owner,
    /// Which of the record's claims.
    pub fence: Fence,
}

/// Where a message stood in Kafka, kept to tell a duplicate what it is a duplicate of.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Default)]
pub struct Origin {
    /// Topic; empty for a call that is no Kafka message.
    pub topic: Arc<str>,
    /// Partition.
    pub partition: i32,
    /// Offset.
    pub offset: i64,
}

impl Origin {
    /// Longest topic kept, in bytes: what Kafka allows. A longer one is cut, between two characters.
    pub const MAX_TOPIC: usize = 249;

    /// The bytes that stores keep: partition, offset (big-endian), topic. Empty for a call without a topic.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        if self.topic.is_empty() {
            return Vec::new();
        }
        let topic = &self.topic.as_bytes()[..self.topic.floor_char_boundary(Self::MAX_TOPIC)];
        let mut bytes = Vec::with_capacity(12 + topic.len());
        bytes.extend_from_slice(&self.partition.to_be_bytes());
        bytes.extend_from_slice(&self.offset.to_be_bytes());
        bytes.extend_from_slice(topic);
        bytes
    }

    /// Reads what [`to_bytes`](Self::to_bytes) wrote; `None` for anything else.
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        if bytes.is_empty() {
            return Some(Self::default());
        }
        let (partition, rest) = bytes.split_first_chunk::<4>()?;
        let (offset, topic) = rest.split_first_chunk::<8>()?;
        Some(Self {
            topic: String::from_utf8_lossy(topic).into(),
            partition: i32::from_be_bytes(*partition),
            offset: i64::from_be_bytes(*offset),
        })
    }
}

/// What a record is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum State {
    /// Claimed; the holder's right ends when somebody takes over after `until`.
    Processing {
        /// End of the lease.
        until: Millis,
    },
    /// Tried without success; may be claimed again.
    Failed {
        /// When it may be claimed again.
        due: Millis,
    },
    /// Handled. Final.
    Succeeded {
        /// When the first success was recorded.
        at: Millis,
        /// Reported by an owner whose claim had been taken over: the effect may have happened twice.
        late: bool,
    },
    /// Given up. Final until an operator requeues it.
    Dead {
        /// When it was given up.
        at: Millis,
    },
}

impl State {
    /// The state's name as docs, tables and logs write it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Processing { .. } => "processing",
            Self::Failed { .. } => "failed",
            Self::Succeeded { .. } => "succeeded",
            Self::Dead { .. } => "dead",
        }
    }

    /// Whether it is succeeded or dead.
    #[must_use]
    pub const fn is_final(self) -> bool {
        matches!(self, Self::Succeeded { .. } | Self::Dead { .. })
    }

    /// The number that stores keep for the state: 0 processing, 1 failed, 2 succeeded, 3 succeeded late, 4 dead.
    #[must_use]
    pub const fn code(self) -> u8 {
        match self {
            Self::Processing { .. } => 0,
            Self::Failed { .. } => 1,
            Self::Succeeded { late: false, .. } => 2,
            Self::Succeeded { late: true, .. } => 3,
            Self::Dead { .. } => 4,
        }
    }

    /// The one time that belongs to the state: end of lease, due time, or when it became final.
    #[must_use]
    pub const fn time(self) -> Millis {
        match self {
            Self::Processing { until } => until,
            Self::Failed { due } => due,
            Self::Succeeded { at, .. } | Self::Dead { at } => at,
        }
    }

    /// Reads what [`code`](Self::code) and [`time`](Self::time) gave; `None` for an unknown code.
    #[must_use]
    pub const fn from_code(code: u8, time: Millis) -> Option<Self> {
        match code {
            0 => Some(Self::Processing { until: time }),
            1 => Some(Self::Failed { due: time }),
            2 => Some(Self::Succeeded { at: time, late: false }),
            3 => Some(Self::Succeeded { at: time, late: true }),
            4 => Some(Self::Dead { at: time }),
            _ => None,
        }
    }
}

/// What a store remembers of one identity.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Record {
    /// What it is in, since or until when.
    pub state: State,
    /// Who claimed last.
    pub owner: Owner,
    /// Number of the last claim.
    pub fence: Fence,
    /// Attempts begun, since the record was made or last requeued.
    pub attempts: u32,
    /// What the message said.
    pub fingerprint: Fingerprint,
    /// Where the message that made the record stood.
    pub origin: Origin,
    /// What the handler returned, if that is kept.
    pub result: Option<Bytes>,
}

/// What must be unchanged for a write to be right: two records of one key with equal stamps are equal in all that decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Stamp {
    /// [`State::code`].
    pub state: u8,
    /// Who claimed last.
    pub owner: Owner,
    /// Number of the last claim.
    pub fence: Fence,
    /// [`State::time`]: an extension moves it.
    pub time: Millis,
}

impl Record {
    /// The token of the last claim.
    #[must_use]
    pub const fn token(&self) -> Token {
        Token { owner: self.owner, fence: self.fence }
    }

    /// What a conditional write compares.
    #[must_use]
    pub const fn stamp(&self) -> Stamp {
        Stamp { state: self.state.code(), owner: self.owner, fence: self.fence, time: self.state.time() }
    }

    pub(super) fn is_held_by(&self, token: Token) -> bool {
        matches!(self.state, State::Processing { .. }) && self.token() == token
    }

    pub(super) fn seen(&self) -> Seen {
        Seen { origin: self.origin.clone(), at: self.state.time() }
    }
}

/// A message as a claim brings it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Sighting {
    /// What the store knows it by.
    pub key: Key,
    /// What it says.
    pub fingerprint: Fingerprint,
    /// Where it stood.
    pub origin: Origin,
}

/// On what terms a claim is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Terms {
    /// Who asks.
    pub owner: Owner,
    /// How long the claim lasts unless it is extended; whole milliseconds.
    pub lease: Duration,
    /// Attempts that may begin before the record is dead.
    pub max_attempts: NonZeroU32,
}

/// A claim that was granted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grant {
    /// Proof of the claim.
    pub token: Token,
    /// Which attempt this is, from 1.
    pub attempt: u32,
    /// Whether another owner's claim, whose lease had run out, was taken over: its effect may have happened.
    pub took_over: bool,
}

/// The earlier message that a duplicate or conflict ran into.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// Where it stood.
    pub origin: Origin,
    /// Store time that belongs to its record's state (when it became final, for a duplicate).
    pub at: Millis,
}

/// What a claim came to. Closed: match on it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ClaimOutcome {
    /// The right to handle it.
    Acquired(Grant),
    /// Already handled, with equal fingerprint.
    Duplicate {
        /// What the handler returned then, if kept.
        result: Option<Bytes>,
        /// The message handled then.
        first: Seen,
    },
    /// Somebody else is handling it.
    InFlight {
        /// For how long their lease still runs, on the store's clock.
        remaining: Duration,
    },
    /// Failed before and not to be tried yet.
    NotDue {
        /// How long until it is due, on the store's clock.
        remaining: Duration,
    },
    /// Given up after its attempts, or as fatal.
    Dead {
        /// Attempts made.
        attempts: u32,
    },
    /// The same identity with another fingerprint.
    Conflict {
        /// The message that took the identity first.
        first: Seen,
    },
}

/// How a claim ends.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Verdict {
    /// The effect happened.
    Succeeded {
        /// What to give to duplicates, if anything.
        result: Option<Bytes>,
    },
    /// It did not; try again.
    Failed {
        /// Not before this long from now.
        retry_in: Duration,
        /// Attempts that may begin before the record is dead.
        max_attempts: NonZeroU32,
    },
    /// It was never begun; the attempt is not counted.
    Released,
    /// It never will; give up.
    Dead,
}

/// A claim to end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settle {
    /// The message, as it was claimed: a success is remembered even where the record was lost meanwhile.
    pub sighting: Sighting,
    /// The claim.
    pub token: Token,
    /// Which attempt it was.
    pub attempt: u32,
    /// How it ends.
    pub verdict: Verdict,
}

/// What settling came to. Closed: match on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SettleOutcome {
    /// Recorded, now or by an earlier call whose reply was lost.
    Settled,
    /// Recorded as failed, and its attempts are used up: it is dead now.
    Buried,
    /// A success remembered although the claim had been taken over or forgotten: the effect may have happened twice.
    Late,
    /// The claim had been taken over: nothing was changed.
    Refused,
}

/// A claim to prolong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extend {
    /// What the store knows the message by.
    pub key: Key,
    /// The claim.
    pub token: Token,
    /// How long it is to last from now; it is never shortened.
    pub lease: Duration,
}

/// What extending came to. Closed: match on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExtendOutcome {
    /// Still held.
    Held,
    /// Taken over, settled or forgotten: the holder may no longer fail or release.
    Lost,
}

/// What requeueing came to. Closed: match on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RequeueOutcome {
    /// Was dead; due at once, with its attempts forgotten.
    Requeued,
    /// Is not dead: nothing was changed.
    NotDead,
    /// The store knows no such record.
    Unknown,
}

/// An outcome, and the record to write where it is not the one that stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step<T> {
    /// What to answer.
    pub outcome: T,
    /// What to write, if anything.
    pub write: Option<Record>,
}

impl<T> Step<T> {
    pub(super) const fn keep(outcome: T) -> Self {
        Self { outcome, write: None }
    }

    pub(super) const fn write(outcome: T, record: Record) -> Self {
        Self { outcome, write: Some(record) }
    }
}
