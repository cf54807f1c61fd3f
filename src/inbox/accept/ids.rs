//! Ids of messages: drawn in blocks, ascending along each partition over all of its owners.
//!
//! A partition that is taken anew may have been somebody else's, whose ids are higher than those that are left here. So whatever is left is
//! thrown away, and a new block drawn after the fence was raised: whoever had the partition before commits nothing of it any more.

use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use super::super::core::{Core, IDS};
use super::super::schema::Sql as _;
use crate::store::StoreError;
use crate::store::sql::{Dialect, Fault};
use crate::transaction::Committed;
use crate::transaction::sealed::Sealed;

/// Ids in a block.
const BLOCK: i64 = 16_384;
/// A new one is drawn when so many are left: what is in hand beside this batch, and what is tried again, needs some too.
const FEW: i64 = 4_096;

/// What is left of a block.
#[derive(Debug, Default)]
struct Left {
    ids: Range<i64>,
    /// How often partitions had been taken before it was drawn.
    takings: u64,
}

/// Ids that this process has drawn.
#[derive(Debug, Default)]
pub(crate) struct Ids {
    left: Mutex<Left>,
    drawing: tokio::sync::Mutex<()>,
}

impl Ids {
    /// So many, if they are there and no partition was taken since.
    fn some(&self, many: i64, takings: u64) -> Option<Range<i64>> {
        let mut left = self.left.lock().unwrap_or_else(PoisonError::into_inner);
        let fresh = left.takings == takings && left.ids.end - left.ids.start >= many;
        fresh.then(|| {
            let first = left.ids.start;
            left.ids.start += many;
            first..first + many
        })
    }

    fn lasts(&self, many: i64, takings: u64) -> bool {
        let left = self.left.lock().unwrap_or_else(PoisonError::into_inner);
        left.takings == takings && left.ids.end - left.ids.start >= many + FEW
    }
}

impl<DB: Sealed> Core<DB> {
    /// Ids for so many messages; a contention where [`ready`](Self::ready) has to be called again.
    pub(super) fn some_ids(&self, many: usize) -> Result<Range<i64>, Fault> {
        let many = i64::try_from(many).unwrap_or(i64::MAX);
        let none = || Fault::Contended("a partition was taken meanwhile.".into());
        self.drawn.some(many, self.base.takings()).ok_or_else(none)
    }

    /// Sees to it that there are ids for so many messages. To be called before a batch, outside its transaction.
    pub(crate) async fn ready(&self, many: usize) -> Result<(), StoreError> {
        const OPERATION: &str = "draw ids";
        let many = i64::try_from(many).unwrap_or(i64::MAX).min(IDS);
        if self.drawn.lasts(many, self.base.takings()) {
            return Ok(());
        }
        let _alone = self.drawn.drawing.lock().await;
        // What is drawn from here on is above what anybody had before them.
        let takings = self.base.takings();
        if self.drawn.lasts(many, takings) {
            return Ok(());
        }
        let step = BLOCK.max(many.saturating_mul(2) + FEW);
        let mut asking = self.base.asking(OPERATION);
        let end = loop {
            match self.draw(step).await {
                Ok(end) => break end,
                Err(fault) => asking.wait(fault).await?,
            }
        };
        if !self.ids().contains(&(end - 1)) || end - step < self.ids().start {
            let text = "the next id of the inbox is not one of its own.";
            return Err(StoreError::corrupt(DB::Dialect::NAME, OPERATION, text));
        }
        *self.drawn.left.lock().unwrap_or_else(PoisonError::into_inner) = Left { ids: end - step..end, takings };
        Ok(())
    }

    async fn draw(&self, step: i64) -> Result<i64, Fault> {
        let (handlers, number) = (&self.tables.handlers, self.number);
        let mut tx = self.begin().await?;
        let fault = |error| Self::fault(&error);
        let update = format!("UPDATE {handlers} SET next_id = next_id + {step} WHERE inbox = {number}");
        DB::DIALECT.execute_with(tx.conn()?, update, &[]).await.map_err(fault)?;
        let read = format!("SELECT next_id FROM {handlers} WHERE inbox = {number}");
        let found = DB::DIALECT.numbers(tx.conn()?, read, &[]).await.map_err(fault)?;
        let Some(end) = found.first() else {
            return Err(Fault::Refused("the inbox's row is gone: build it again.".into()));
        };
        match self.commit(tx).await {
            Committed::Yes => Ok(*end),
            // A block that nobody uses is no loss.
            Committed::No(fault) | Committed::Unknown(fault) => Err(fault),
        }
    }
}
