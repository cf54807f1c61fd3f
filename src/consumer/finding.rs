//! What can be found where a partition is to go on, and what to do about it.

use std::fmt;

#[cfg(doc)]
use super::{Consumer, ConsumerError};

/// What to do where a partition does not go on where the group left off: see [`Finding`].
///
/// Set by [`Consumer::on_reset`]. Default: [`Refuse`](Self::Refuse) where the handling's level is L1 or higher, [`Warn`](Self::Warn) else.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum OnReset {
    /// End the consumer with [`ConsumerError::Discontinuity`], before anything of that partition is handled or committed.
    Refuse,
    /// Say so in the log, once for each finding, and go on: where an offset is missing or means nothing any more, where
    /// `auto.offset.reset` says.
    Warn,
    /// As [`Warn`](Self::Warn), without the warning: somebody knows already. Meant for one run.
    Accept,
}

/// What was found where a partition was to go on. Closed: match on it.
///
/// Those that [break](Self::breaks) the row of messages are subject to [`OnReset`]; the others are said in the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Finding {
    /// The group has no committed offset here, or it expired: everything from `low` on is delivered. What had been handled comes
    /// out as duplicates, as far as the store remembers it.
    FromFirst {
        /// The first offset there is.
        low: i64,
        /// The next offset to be written.
        high: i64,
    },
    /// The group has no committed offset here, or it expired, and nothing is there to be passed.
    FromEnd {
        /// The next offset to be written.
        high: i64,
    },
    /// The group has no committed offset here, or it expired, and `auto.offset.reset=latest` would pass what is there.
    Passed {
        /// The first offset there is.
        low: i64,
        /// The next offset to be written.
        high: i64,
    },
    /// The group has no committed offset here, and `auto.offset.reset=error` says not to guess.
    NoOffset {
        /// The first offset there is.
        low: i64,
        /// The next offset to be written.
        high: i64,
    },
    /// Messages from `next` on, below `low`, were deleted before they were handled.
    Deleted {
        /// Where the group left off.
        next: i64,
        /// The first offset there is.
        low: i64,
        /// The next offset to be written.
        high: i64,
    },
    /// The group left off where nothing was ever written: the topic was recreated, or truncated.
    PastEnd {
        /// Where the group left off.
        next: i64,
        /// The next offset to be written.
        high: i64,
    },
    /// At the offset of a message that was handled stands another one: the topic was recreated, or truncated and written to.
    OtherMessage {
        /// Where the group left off.
        next: i64,
        /// That message's offset.
        offset: i64,
    },
    /// The offset was committed in another cluster, and nothing proves that this one holds the same messages.
    OtherCluster {
        /// Where the group left off.
        next: i64,
    },
    /// The committed offset is below one that this process committed: somebody asked for a replay. What had been handled comes out as
    /// duplicates.
    Rewound {
        /// What this process had committed.
        from: i64,
        /// What is committed now.
        to: i64,
    },
    /// The offset was committed by something else: by an operator's tool, by another program, by a version without witnesses. Taken as meant.
    SetByOther {
        /// What is committed.
        committed: i64,
    },
    /// The message that would prove that this is the same topic was deleted or compacted away.
    Unproven {
        /// Where the group left off.
        next: i64,
        /// That message's offset.
        offset: i64,
    },
    /// The broker did not tell in time what is there.
    NotLookedAt,
    /// The window of the partition, which is written together with the effects, stands elsewhere than the group's offset: the window wins. A
    /// few messages behind after a crash; anything else is an offset that was lost, or set by hand.
    Window {
        /// Where the window stands, and where the partition goes on.
        next: i64,
        /// What the group has committed.
        committed: Option<i64>,
    },
}

impl Finding {
    /// Whether messages may be passed, or taken for others: what [`OnReset`] decides about.
    #[must_use]
    pub const fn breaks(&self) -> bool {
        match self {
            Self::Passed { .. }
            | Self::NoOffset { .. }
            | Self::Deleted { .. }
            | Self::PastEnd { .. }
            | Self::OtherMessage { .. }
            | Self::OtherCluster { .. } => true,
            Self::FromFirst { .. }
            | Self::FromEnd { .. }
            | Self::Rewound { .. }
            | Self::SetByOther { .. }
            | Self::Unproven { .. }
            | Self::Window { .. }
            | Self::NotLookedAt => false,
        }
    }

    /// Whether somebody should hear of it although nothing breaks.
    pub(super) const fn is_odd(&self) -> bool {
        match self {
            Self::NotLookedAt | Self::Unproven { .. } => true,
            // Set forward, which does not happen by itself.
            Self::Window { next, committed: Some(committed) } => *committed > *next,
            _ => false,
        }
    }

    /// What to do about it.
    #[must_use]
    pub const fn cure(&self) -> &'static str {
        match self {
            Self::Passed { .. } => {
                "Set auto.offset.reset=earliest to handle them, or pass them: run once with OnReset::Accept, or commit an offset with a tool."
            }
            Self::NoOffset { .. } => "Commit an offset with a tool, or set auto.offset.reset.",
            Self::Deleted { .. } | Self::PastEnd { .. } | Self::OtherMessage { .. } => {
                "To go on where auto.offset.reset says, run once with OnReset::Accept; to go on elsewhere, commit an offset with a tool (at level L2 \
                 the window's row in the database says where: change that)."
            }
            Self::OtherCluster { .. } => {
                "If the offset is right for this cluster, run once with OnReset::Accept, or commit it again with a tool."
            }
            Self::FromFirst { .. }
            | Self::FromEnd { .. }
            | Self::Rewound { .. }
            | Self::SetByOther { .. }
            | Self::Unproven { .. }
            | Self::NotLookedAt => "Nothing has to be done.",
            Self::Window { .. } => {
                "Nothing has to be done; to begin elsewhere, change the window's row in the database."
            }
        }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::FromFirst { low, high } => {
                write!(f, "no offset is committed: everything there is, offsets {low} to {high}, is delivered")
            }
            Self::FromEnd { high } => {
                write!(f, "no offset is committed, and nothing is there: begins at offset {high}")
            }
            Self::Passed { low, high } => write!(
                f,
                "no offset is committed, and auto.offset.reset=latest passes what is there, offsets {low} to {high}, unhandled"
            ),
            Self::NoOffset { low, high } => write!(
                f,
                "no offset is committed, and auto.offset.reset=error says not to guess; offsets {low} to {high} are there"
            ),
            Self::Deleted { next, low, high } => {
                write!(f, "the group left off at offset {next}, and the first offset there is now is {low}: ")?;
                write!(f, "what was between was deleted before it was handled")?;
                if low == high {
                    f.write_str("; where producers use transactions, that may have been nothing but their markers")?;
                }
                Ok(())
            }
            Self::PastEnd { next, high } => write!(
                f,
                "the group left off at offset {next}, and the topic ends at {high}: it was deleted and made again, or truncated"
            ),
            Self::OtherMessage { next, offset } => write!(
                f,
                "the group left off at offset {next}, and at offset {offset} there is another message than the one that was handled: the topic was \
                 deleted and made again, or truncated"
            ),
            Self::OtherCluster { next } => write!(
                f,
                "offset {next} was committed in another cluster, and nothing proves that this one holds the same messages"
            ),
            Self::Rewound { from, to } => write!(
                f,
                "the group was set back from offset {from} to {to}: what had been handled is delivered again, as duplicates"
            ),
            Self::SetByOther { committed } => {
                write!(
                    f,
                    "offset {committed} was committed by something other than this version of hapax: taken as meant"
                )
            }
            Self::Unproven { next, offset } => write!(
                f,
                "goes on at offset {next}; the message at {offset}, which would prove that this is the same topic, is not there any more"
            ),
            Self::NotLookedAt => f.write_str("the broker did not tell in time what is there; goes on as committed"),
            Self::Window { next, committed: Some(committed) } => write!(
                f,
                "goes on at offset {next}, where its window stands in the database; the group's committed offset was {committed}"
            ),
            Self::Window { next, committed: None } => write!(
                f,
                "goes on at offset {next}, where its window stands in the database; the group has no committed offset"
            ),
        }
    }
}

/// What was found of one partition.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Found {
    /// Its topic.
    pub topic: String,
    /// Its number.
    pub partition: i32,
    /// What was found.
    pub finding: Finding,
}
