//! The queue without a worker around it, step by step: for tests that compare the tables with the [`rules`](super::rules). Outside semantic
//! versioning.

use std::sync::Arc;
use std::time::Duration;

use super::Inbox;
use super::queue::{Ask, End, Ended, How, Run};
use super::rules::Class;
use crate::level::Level;
use crate::retry::Retry;
use crate::store::sql::Fault;
use crate::transaction::{Committed, TransactionalDatabase};

/// A run that was taken.
#[derive(Clone, Debug)]
pub struct Held(Run);

/// How a message of a run ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ends {
    /// Its handler came through.
    Succeeded,
    /// Tried again after so long.
    Failed(Class, Duration),
    /// Given up.
    Dead(Class),
    /// Never begun.
    Released,
}

/// What was written of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wrote {
    /// As asked.
    Written,
    /// A success of a run that was taken over.
    Late,
    /// Nothing.
    Stale,
}

impl Held {
    /// Its number.
    #[must_use]
    pub fn number(&self) -> i64 {
        self.0.number
    }

    /// Its messages, in the order in which they begin: id, generation, attempt.
    pub fn taken(&self) -> impl Iterator<Item = (i64, u32, u32)> {
        self.0.taken.iter().map(|taken| (taken.id, taken.generation, taken.attempt))
    }

    /// Their payloads, as handlers get them.
    pub fn payloads(&self) -> impl Iterator<Item = Option<&[u8]>> {
        self.0.taken.iter().map(|taken| taken.message.payload())
    }
}

type Done<T> = Result<T, String>;

fn said(fault: Fault) -> String {
    format!("{fault:?}")
}

fn ends(all: &[(usize, Ends)]) -> Vec<End> {
    let how = |how: Ends| match how {
        Ends::Succeeded => How::Succeeded,
        Ends::Failed(class, retry_in) => How::Failed { class, text: class.name().into(), retry_in },
        Ends::Dead(class) => How::Dead { class, text: class.name().into() },
        Ends::Released => How::Released,
    };
    all.iter().map(|(at, one)| End { at: *at, how: how(*one) }).collect()
}

impl<DB: TransactionalDatabase> Inbox<DB> {
    /// Takes at most so many messages.
    ///
    /// # Errors
    ///
    /// What the database said.
    pub async fn bare_take(&self, most: usize, by_key: bool, inside: bool, lease: Duration) -> Done<Option<Held>> {
        let level = if inside { Level::L2 } else { Level::L1 };
        let ask = Ask { most, by_key, lease, owner: Arc::from("bare"), level };
        Ok(self.core.take(&ask).await.map_err(said)?.run.map(Held))
    }

    /// Holds a run and ends it, in one transaction, as a handler's would be: `false` where it was taken over.
    ///
    /// # Errors
    ///
    /// What the database said.
    pub async fn bare_finish(&self, run: &Held, all: &[(usize, Ends)]) -> Done<bool> {
        let mut tx = self.core.begin().await.map_err(said)?;
        let conn = tx.conn().map_err(said)?;
        let held = self.core.hold(conn, &run.0, 1).await.map_err(said)?;
        let written = match held {
            true => self.core.finish(conn, &run.0, &ends(all), true).await,
            false => Err(Fault::Contended("not held".into())),
        };
        match written {
            Ok(_) => match self.core.commit(tx).await {
                Committed::Yes => Ok(true),
                Committed::No(fault) | Committed::Unknown(fault) => Err(said(fault)),
            },
            Err(Fault::Contended(_)) => {
                self.core.rollback(tx).await;
                Ok(false)
            }
            Err(fault) => Err(said(fault)),
        }
    }

    /// Ends messages of a run whose effects are elsewhere.
    ///
    /// # Errors
    ///
    /// What the database said.
    pub async fn bare_conclude(&self, run: &Held, all: &[(usize, Ends)], last: bool) -> Done<Vec<Wrote>> {
        let wrote = |ended| match ended {
            Ended::Written => Wrote::Written,
            Ended::Late => Wrote::Late,
            Ended::Stale => Wrote::Stale,
        };
        let ended = self.core.conclude(&run.0, &ends(all), last).await.map_err(said)?;
        Ok(ended.into_iter().map(wrote).collect())
    }

    /// Ends runs whose lease is over: how many messages were lost, and how many of them are dead.
    ///
    /// # Errors
    ///
    /// What the database said.
    pub async fn bare_sweep(&self, retry: &Retry) -> Done<(u64, u64)> {
        let swept = self.core.sweep(retry).await.map_err(said)?;
        Ok((swept.lost, swept.dead))
    }
}
