//! What is over is forgotten, in small steps beside the work.
//!
//! What has succeeded is found by the runs that finished it: a run that ended before the limit lists its successes, so that no index on time is needed and
//! no wide row is read. What is dead is found by the time of its death, which is its place among the open rows. A message leaves with its history, edits
//! and identity; one that was brought back meanwhile is of a later generation than its run lists, and stays.
//!
//! Why no partitions that are dropped: identities are unique over all that is kept. Neither PostgreSQL nor MySQL has a unique index over a partitioned table
//! that leaves the partitioning column (a time) out, and without one a copy that comes next month would be a new message.

use std::collections::HashMap;
use std::time::Duration;

use super::Inbox;
use super::core::Core;
use super::operate::Found;
use super::queue::list::{self, Ending};
use super::rules::State;
use crate::record;
use crate::store::sql::Fault;
use crate::store::{Purged, StoreError};
use crate::transaction::sealed::Sealed;
use crate::transaction::{Transact, TransactionalDatabase};

/// Messages that one transaction forgets.
const STEP: usize = 256;
/// Runs that are looked at together.
const RUNS: usize = 32;
const OPERATION: &str = "purge";

/// What each database does in its own way here.
pub(crate) trait Sql: Transact {}

#[cfg(feature = "postgres")]
impl Sql for crate::store::postgres::Postgres {}
#[cfg(feature = "mysql")]
impl Sql for crate::store::mysql::Mysql {}
#[cfg(feature = "sqlite")]
impl Sql for crate::store::sqlite::Sqlite {}

/// A run that ended long ago: its number, and what it finished, with generations.
type Ended = (i64, Vec<(i64, u32)>);

impl<DB: TransactionalDatabase> Inbox<DB> {
    /// Forgets messages that are past [retention](super::InboxBuilder::with_retention), at most about `limit` of them: succeeded ones by when their run ended, dead ones by when
    /// they were given up. Workers do this by themselves; call it where none run, or to have it done now.
    ///
    /// Whatever is received, processing or failed is never forgotten, however old.
    ///
    /// # What can still come
    ///
    /// *Redelivery* of what was accepted is stopped by the window of its partition, which is never purged: whatever Kafka delivers again below it is
    /// passed, however long ago it was forgotten here. *Re-production*, the same identity at a new offset, is stopped for as long as the message is kept:
    /// choose a retention longer than a producer may still repeat itself.
    ///
    /// # Cost
    ///
    /// Transactions of a few hundred messages each. They lock messages that are over, which no worker reads or writes: work goes on. Two that purge at once share the
    /// work, or wait for each other for the length of one such transaction.
    ///
    /// # Errors
    ///
    /// [`StoreError`]; retryable where the database could not be reached.
    ///
    /// # Cancel safety
    ///
    /// Safe: what is forgotten is forgotten; calling it again does the rest.
    pub async fn purge(&self, limit: usize) -> Result<Purged, StoreError> {
        self.core.purge(limit).await
    }
}

impl<DB: Sealed> Core<DB> {
    /// Forgets at most about so many messages that are past retention.
    pub(crate) async fn purge(&self, limit: usize) -> Result<Purged, StoreError> {
        let mut removed = 0;
        while removed < limit {
            let most = STEP.min(limit - removed);
            let (dead, all_dead) = self.purge_dead(most).await?;
            let (succeeded, all_succeeded) = match most - dead.min(most) {
                0 => (0, false),
                most => self.purge_succeeded(most).await?,
            };
            removed += dead + succeeded;
            if all_dead && all_succeeded {
                return Ok(Purged::new(removed, false));
            }
        }
        Ok(Purged::new(removed, true))
    }

    fn before(&self, keep: Duration) -> String {
        format!("{} - {}", self.clock(), record::millis(keep))
    }

    /// How many were forgotten, and whether that was all.
    async fn purge_dead(&self, most: usize) -> Result<(usize, bool), StoreError> {
        let keep = self.settings.retention.dead;
        let text = format!(
            "SELECT id FROM {} WHERE inbox = {} AND lot = 2 AND turn <= {} ORDER BY turn, id LIMIT {most}",
            self.tables.open,
            self.number,
            self.before(keep),
        );
        let rows = self.read(OPERATION, text.into()).await?;
        let ids: Vec<i64> = rows
            .into_iter()
            .map(|mut row| row.int())
            .collect::<Result<_, _>>()
            .map_err(|fault| self.refuse(OPERATION, &fault))?;
        if ids.is_empty() {
            return Ok((0, true));
        }
        let keep = record::millis(keep);
        let mut asking = self.base.asking(OPERATION);
        loop {
            match self.forget_dead(&ids, keep).await {
                // Rows that nothing stands behind any more would be looked at for ever.
                Ok(removed) => return Ok((removed, ids.len() < most || removed == 0)),
                Err(fault) => asking.wait(fault).await?,
            }
        }
    }

    async fn forget_dead(&self, ids: &[i64], keep: i64) -> Result<usize, Fault> {
        let mut tx = self.begin().await?;
        let (now, found) = self.lock(&mut tx, ids).await?;
        // Brought back meanwhile, and maybe dead again since: looked at as it stands now.
        let is_over = |found: &&Found| {
            found.standing.open.is_some_and(|open| found.state() == State::Dead && open.rank <= now - keep)
        };
        let over: Vec<&Found> = found.iter().filter(is_over).collect();
        self.forget(&mut tx, &over).await?;
        self.settled(tx).await.map(|()| over.len())
    }

    /// How many were forgotten, and whether that was all.
    async fn purge_succeeded(&self, most: usize) -> Result<(usize, bool), StoreError> {
        let text = format!(
            "SELECT run, done FROM {} WHERE inbox = {} AND ended <= {} ORDER BY ended, lease LIMIT {RUNS}",
            self.tables.runs,
            self.number,
            self.before(self.settings.retention.succeeded),
        );
        let rows = self.read(OPERATION, text.into()).await?;
        let last = rows.len() < RUNS;
        let mut removed = 0;
        let mut some: Vec<Ended> = Vec::new();
        let mut messages = 0;
        for mut row in rows {
            let mut read = || Ok((row.int()?, row.maybe_bytes()?));
            let (run, done) = read().map_err(|fault: Fault| self.refuse(OPERATION, &fault))?;
            let Some(done) = list::unpack(&done.unwrap_or_default()) else {
                let fault = Fault::Corrupt("a run lists its messages in a way that this version does not know.".into());
                return Err(self.refuse(OPERATION, &fault));
            };
            let succeeded = |value| matches!(Ending::of(value), Some(Ending::Succeeded | Ending::Late));
            let done = done.iter().filter(|entry| succeeded(entry.value)).map(|entry| (entry.id, entry.generation));
            let done: Vec<(i64, u32)> = done.collect();
            messages += done.len();
            some.push((run, done));
            if messages >= STEP {
                removed += self.forget_runs(std::mem::take(&mut some)).await?;
                messages = 0;
            }
            if removed >= most {
                return Ok((removed, false));
            }
        }
        removed += self.forget_runs(some).await?;
        Ok((removed, last))
    }

    /// Forgets what these runs finished, and then the runs.
    async fn forget_runs(&self, runs: Vec<Ended>) -> Result<usize, StoreError> {
        if runs.is_empty() {
            return Ok(0);
        }
        let mut all: Vec<(i64, u32)> = runs.iter().flat_map(|(_, done)| done.iter().copied()).collect();
        all.sort_unstable();
        let mut removed = 0;
        for some in all.chunks(STEP) {
            let mut asking = self.base.asking(OPERATION);
            removed += loop {
                match self.forget_finished(some).await {
                    Ok(removed) => break removed,
                    Err(fault) => asking.wait(fault).await?,
                }
            };
        }
        let mut asking = self.base.asking(OPERATION);
        loop {
            match self.drop_runs(&runs).await {
                Ok(()) => return Ok(removed),
                Err(fault) => asking.wait(fault).await?,
            }
        }
    }

    async fn drop_runs(&self, runs: &[Ended]) -> Result<(), Fault> {
        let numbers: Vec<String> = runs.iter().map(|(run, _)| run.to_string()).collect();
        let (table, inbox) = (&self.tables.runs, self.number);
        let text = format!("DELETE FROM {table} WHERE inbox = {inbox} AND run IN ({})", numbers.join(", "));
        let mut tx = self.begin().await?;
        self.alter(&mut tx, text).await?;
        self.settled(tx).await
    }

    async fn forget_finished(&self, some: &[(i64, u32)]) -> Result<usize, Fault> {
        // Of several successes of one message the last generation counts.
        let generations: HashMap<i64, u32> = some.iter().copied().collect();
        let mut ids: Vec<i64> = some.iter().map(|(id, _)| *id).collect();
        ids.dedup();
        let mut tx = self.begin().await?;
        let (_, found) = self.lock(&mut tx, &ids).await?;
        let is_over = |found: &&Found| {
            found.state() == State::Succeeded && generations.get(&found.id) == Some(&found.standing.generation)
        };
        let over: Vec<&Found> = found.iter().filter(is_over).collect();
        self.forget(&mut tx, &over).await?;
        self.settled(tx).await.map(|()| over.len())
    }
}
