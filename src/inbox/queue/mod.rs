//! The queue: taking, holding, finishing, sweeping.
//!
//! ```text
//!             take                          finish
//!   ready ───────────▶ in a run's hands ─────────────▶ gone: succeeded
//!     ▲                        │ failed, lost
//!     │ due                    ▼
//!   waiting ◀──────────────────┴──────────▶ dead
//! ```
//!
//! - [`take`] is a transaction of its own: attempts are counted before a handler runs. The run's row is the claim. [`choice`] says which rows it takes.
//! - [`finish`] writes how messages ended: in the handler's transaction (L2), or in its own (L1).
//! - [`sweep`] ends runs whose lease is over.
//! - [`lanes`] keeps what waits behind a message of its own key out of everybody's way.
//! - [`listen`] hears of new work.
//!
//! Every move is conditional, on the run that holds the message or on nobody holding it, and what it changed is counted. Locks are waited for no
//! longer than the inbox's `lock_timeout`; a run's row is locked before its messages; messages in ascending order.

mod choice;
mod dialect;
mod finish;
mod lanes;
pub(crate) mod list;
mod listen;
#[cfg(feature = "mysql")]
mod mysql;
#[cfg(feature = "postgres")]
mod postgres;
#[cfg(feature = "sqlite")]
mod sqlite;
mod sweep;
mod take;
mod types;

pub(crate) use choice::Front;
pub(crate) use dialect::Sql;
#[cfg(any(feature = "mysql", feature = "sqlite"))]
pub(crate) use dialect::among;
pub(crate) use listen::Listener;
pub(crate) use types::{Ask, End, Ended, How, Run, Swept, Take, Taken};

use self::dialect::{RUN, RunRow};
use super::core::Core;
use crate::store::sql::Fault;
use crate::transaction::sealed::Sealed;

/// How often a transaction is repeated at once that lost to another.
const AGAIN: u32 = 12;

/// Waiting messages from here on wait for no time, but for those before them in their lane.
pub(crate) const FAR: i64 = 1 << 62;

/// The turn of what waits behind its lane.
pub(crate) const fn behind(lane: i64) -> i64 {
    FAR | (lane.cast_unsigned() >> 2).cast_signed()
}

fn broken() -> Fault {
    Fault::Corrupt("a row of the inbox does not hold what this crate writes.".into())
}

/// At most so many bytes, without what databases take for the end of a text.
fn capped(text: &str, most: usize) -> String {
    let mut end = text.len().min(most);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text[..end].replace('\0', "\u{fffd}").chars().take(most).collect()
}

impl<DB: Sealed> Core<DB> {
    /// A run's row, in a transaction of its own. With a lock: waits for whoever holds it.
    async fn run_row(&self, run: i64, lock: &str) -> Result<Option<RunRow>, Fault> {
        let mut tx = self.begin().await?;
        let text = format!(
            "{}SELECT {RUN} FROM {} WHERE inbox = {} AND run = {run}{lock}",
            <DB::Dialect as Sql>::PRELUDE,
            self.tables.runs,
            self.number
        );
        let rows = DB::DIALECT.read_runs(tx.conn()?, text).await.map_err(|error| Self::fault(&error))?;
        self.rollback(tx).await;
        Ok(rows.into_iter().next())
    }
}

#[cfg(all(test, feature = "postgres", feature = "mysql", feature = "sqlite"))]
mod tests;

#[cfg(test)]
mod unit {
    use super::{FAR, behind, capped};

    #[test]
    fn lanes_have_turns_behind_all_times() {
        for lane in [0, 1, -1, i64::MAX, i64::MIN] {
            assert!(behind(lane) >= FAR, "{lane}");
        }
        assert_ne!(behind(4), behind(8));
    }

    #[test]
    fn texts_are_capped_between_characters() {
        assert_eq!(capped("a\u{e9}b", 2), "a");
        assert_eq!(capped("a\0b", 9), "a\u{fffd}b");
    }
}
