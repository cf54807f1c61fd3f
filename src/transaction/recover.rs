//! What a lost commit came to, and what a handler committed before its time.

use std::sync::Arc;

use super::core::{Core, finish};
use super::dialect::Transact;
use super::link::{Committed, Tx, sorted};
use super::records::ending;
use super::sealed::Sealed;
use super::trial::Wrote;
use super::windows::Held;
use crate::record::{Sighting, State, Token};
use crate::store::cells::{Change, Ending};
use crate::store::sql::Fault;

impl<DB: Sealed> Core<DB> {
    /// Finds out what a lost commit came to, for those windows that are in doubt.
    pub(super) async fn resolve(&self, doubtful: &[Arc<Held>]) -> Result<(), Fault> {
        for held in doubtful.iter().filter(|held| held.is_in_doubt()) {
            self.look_up(held).await?;
        }
        Ok(())
    }

    /// Whether the doubtful moves of a window were committed; `None` if that is known to somebody else, or another process has it by now.
    async fn look_up(&self, held: &Held) -> Result<Option<bool>, Fault> {
        // First a transaction, then the window, as a batch does: the other way round the two would wait for each other.
        let mut tx = self.begin(false).await?;
        let _moving = held.moving.lock().await;
        let mut committed = None;
        if held.is_in_doubt() {
            let rows = DB::DIALECT.load(tx.conn()?, &self.settings.windows, &[held.source]).await;
            let rows = rows.map_err(|error| sorted::<DB::Dialect>(&error))?;
            committed = held.resolve(rows.first());
        }
        finish(tx.rollback()).await;
        Ok(committed)
    }

    /// Whether a transaction whose commit was not answered was committed. Waits for it where it is not over.
    pub(super) async fn was_committed(&self, wrote: &Wrote) -> Result<bool, Fault> {
        for held in wrote.held.iter().filter(|held| held.is_in_doubt()) {
            if let Some(committed) = self.look_up(held).await? {
                self.resolve(&wrote.held).await?;
                return Ok(committed);
            }
        }
        let Some((sighting, token, _)) = wrote.records.first() else { return Ok(false) };
        let mut tx = self.begin(false).await?;
        // Waits for the one in doubt, if that is still open.
        let fresh = self.remember(&mut tx, &[sighting], false).await? == 1;
        let committed = match fresh {
            true => false,
            false => self.stands(&mut tx, sighting, *token).await?,
        };
        finish(tx.rollback()).await;
        Ok(committed)
    }

    /// Whether a record stands as this token wrote it; waits for whoever is writing it.
    async fn stands(&self, tx: &mut Tx<DB>, sighting: &Sighting, token: Token) -> Result<bool, Fault> {
        let (now, records) = self.read(tx, &[sighting.key], false).await?;
        let Some(Some(record)) = records.into_iter().next() else { return Ok(false) };
        if record.token() == token {
            return Ok(true);
        }
        // What is read may be about to change: only a write waits for that.
        let change = Change { key: sighting.key, before: Some(record.stamp()), after: record, now };
        self.swap(tx, &[change], false).await?;
        Ok(false)
    }

    /// Takes back what a transaction remembered that its handler committed before its time. Says whether there was any.
    pub(super) async fn repair(&self, wrote: &Wrote) -> Result<bool, Fault> {
        if wrote.records.is_empty() {
            return Ok(false);
        }
        let mut endings: Vec<Ending> = wrote
            .records
            .iter()
            .map(|(sighting, token, before)| ending(sighting, *token, *before, State::Failed { due: 0 }))
            .collect();
        let mut tx = self.begin(false).await?;
        let found = self.take_back(&mut tx, &mut endings, false).await?;
        match finish(tx.commit()).await {
            Committed::Yes => Ok(found > 0),
            Committed::No(fault) | Committed::Unknown(fault) => Err(fault),
        }
    }
}
