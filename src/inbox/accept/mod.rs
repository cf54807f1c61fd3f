//! Taking messages in: a batch in one transaction, which moves the windows of its partitions with it.
//!
//! ```text
//!   window in memory ─▶ BEGIN ─▶ insert messages, leaving alone what stands, and open rows of the others ─▶ window WHERE fence ─▶ COMMIT
//!                                  │ some stood
//!                                  └─▶ read whose they are: duplicates, conflicts
//! ```
//!
//! - [`bring`] is what happens inside the transaction; the transaction itself, with lost commits, fences and retries, is `transaction/`'s.
//! - [`ids`] are drawn in blocks, a new one whenever a partition is taken: so they ascend along a partition whoever owns it.
//! - [`blame`] says which errors are a message's own; [`room`] how much the database takes at once.
//! - [`batch`] is the way in for any loop; the consumer's is in `consumer/inbox.rs`.

mod batch;
mod blame;
mod bring;
mod counts;
mod dialect;
mod ids;
#[cfg(feature = "mysql")]
mod mysql;
#[cfg(feature = "postgres")]
mod postgres;
mod room;
#[cfg(feature = "sqlite")]
mod sqlite;

use std::fmt;

pub use batch::{AcceptBatch, AcceptError, Accepted};
#[cfg_attr(not(feature = "kafka"), allow(unused_imports))]
pub(crate) use bring::{BringError, Brought, Refusal};
pub use counts::AcceptCounts;
pub(crate) use counts::Counters;
pub(crate) use dialect::Sql;
pub(crate) use ids::Ids;
pub(crate) use room::Room;

use crate::message::MessageView;

/// What happens to a message whose payload is larger than those that are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Oversize {
    /// It is refused: given up to the dead letter, or the consumer stops; in a loop of your own, [`AcceptError::TooLarge`]. So is one that is larger than the database
    /// takes at once: [`AcceptError::NoRoom`].
    #[default]
    Reject,
    /// It is accepted without its payload, which a handler may read at the message's position for as long as its topic keeps it:
    /// [`Form::LeftOut`](super::Form::LeftOut).
    LeaveOut,
}

type Rank = Box<dyn Fn(&dyn MessageView) -> i16 + Send + Sync>;
type Due = Box<dyn Fn(&dyn MessageView) -> Option<i64> + Send + Sync>;

/// How messages are taken in.
pub(crate) struct Intake {
    /// Bytes of the largest payload that is kept.
    pub(crate) largest: usize,
    pub(crate) oversize: Oversize,
    /// No payload is kept.
    pub(crate) leave_out: bool,
    pub(crate) priority: Option<Rank>,
    pub(crate) not_before: Option<Due>,
}

impl fmt::Debug for Intake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Intake")
            .field("largest", &self.largest)
            .field("oversize", &self.oversize)
            .field("leave_out", &self.leave_out)
            .finish_non_exhaustive()
    }
}
