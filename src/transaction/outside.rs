//! Windows that move on their own, after their messages were handled: the effects are elsewhere. Level L1.

use super::core::{Core, finish};
use super::moving::Moving;
use super::outcome::Item;
use super::sealed::Sealed;
use super::windows::Verdict;
use crate::store::StoreError;
use crate::store::sql::Fault;

/// What is to be noted of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ended {
    /// It is finished.
    Finished,
    /// Its attempt of this number failed; 0: the attempt that was counted before it ran does not count.
    Failed(u32),
}

impl<DB: Sealed> Core<DB> {
    /// What the window of its partition says of a message.
    pub(crate) fn verdict(&self, item: &Item) -> Verdict {
        self.held_by(item).map_or(Verdict::Fenced, |held| held.look(item.origin.offset))
    }

    /// Whether it has to be noted that this message is about to run, of which `most` attempts may be. No I/O.
    pub(crate) fn must_note(&self, item: &Item, most: u32) -> bool {
        self.held_by(item).is_some_and(|held| held.must_note(item.origin.offset, most))
    }

    /// Whether an attempt of this message was counted before it ran, and is not over. No I/O.
    pub(crate) fn is_counted(&self, item: &Item) -> bool {
        self.held_by(item).is_some_and(|held| held.is_counted(item.origin.offset))
    }

    /// Notes that these messages are about to run, where that is needed. May be asked again.
    ///
    /// # Errors
    ///
    /// [`StoreError`], retryable where the database could not be reached.
    pub(crate) async fn about_to_run(&self, items: &[Item], most: u32) -> Result<(), StoreError> {
        let once = async || {
            let held = self.holding(items);
            self.resolve(held.all()).await?;
            let items: Vec<_> = items.iter().enumerate().filter_map(|(at, item)| Some((item, held.get(at)?))).collect();
            self.caution(&items, most).await
        };
        self.again("note what is about to run", once).await
    }

    /// Moves the windows of these messages, in one transaction. Says of each whether it is noted: if not, its partition belongs to another process.
    /// May be asked again.
    ///
    /// # Errors
    ///
    /// [`StoreError`], retryable where the database could not be reached: what of it is noted is not known then.
    pub(crate) async fn note(&self, items: &[Item], ends: &[Ended]) -> Result<Vec<bool>, StoreError> {
        self.again("move windows", async || self.note_once(items, ends).await).await
    }

    async fn note_once(&self, items: &[Item], ends: &[Ended]) -> Result<Vec<bool>, Fault> {
        let held = self.holding(items);
        self.resolve(held.all()).await?;
        let mut noted = Vec::with_capacity(items.len());
        let (mut finished, mut failed) = (Vec::new(), Vec::new());
        for (at, (item, ended)) in items.iter().zip(ends).enumerate() {
            let verdict = held.get(at).map_or(Verdict::Fenced, |held| held.look(item.origin.offset));
            noted.push(verdict != Verdict::Fenced);
            match (verdict, ended) {
                (Verdict::New { .. }, Ended::Finished) => finished.push(at),
                (Verdict::New { .. }, Ended::Failed(attempt)) => failed.push((at, *attempt)),
                (Verdict::Finished | Verdict::Fenced, _) => {}
            }
        }
        if finished.is_empty() && failed.is_empty() {
            return Ok(noted);
        }
        // First the transaction, then the windows, as a batch of effects does.
        let tx = self.begin(false).await?;
        let mut moving = Moving::default();
        if let Err(fault) = moving.take(&held, items, &finished, &failed).await {
            finish(tx.rollback()).await;
            return Err(fault);
        }
        self.move_only(tx, moving).await?;
        Ok(noted)
    }
}
