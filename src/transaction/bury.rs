//! Messages that are given up.

use super::core::{Core, finish};
use super::dialect::Transact;
use super::holding::Holding;
use super::link::{Committed, Tx, sorted};
use super::moving::Moving;
use super::outcome::{Item, Spot};
use super::sealed::Sealed;
use super::windows::Verdict;
use crate::record::{Fence, Owner, Record, Sighting, State};
use crate::store::StoreError;
use crate::store::cells::Change;
use crate::store::sql::{Dialect, Fault};

/// What became of a message that was given up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Buried {
    /// It is recorded as dead, and its window has moved past it.
    Recorded,
    /// It was handled meanwhile, or its partition belongs to another process: nothing was changed.
    Refused,
}

impl<DB: Sealed> Core<DB> {
    /// Gives messages up: records as dead, windows past them, in one transaction for each. May be asked again.
    ///
    /// # Errors
    ///
    /// [`StoreError`], retryable where the database could not be reached.
    pub(crate) async fn bury(&self, items: &[Item]) -> Result<Vec<Buried>, StoreError> {
        let mut buried = Vec::with_capacity(items.len());
        let mut asked = true;
        for item in items {
            let one = if asked { Some(self.bury_one(item).await) } else { None };
            // Only a lock on one message says nothing of the others.
            if let Some(Err(fault)) = &one {
                asked = DB::Dialect::LOCKS_ROWS && matches!(fault, Fault::Contended(_) | Fault::Locked(_));
            }
            buried.push(one.and_then(Result::ok));
        }
        // One that somebody is handling at this moment keeps none of the others waiting.
        let mut all = Vec::with_capacity(items.len());
        for (item, buried) in items.iter().zip(buried) {
            all.push(match buried {
                Some(buried) => buried,
                None => self.again("give a message up", async || self.bury_one(item).await).await?,
            });
        }
        Ok(all)
    }

    async fn bury_one(&self, item: &Item) -> Result<Buried, Fault> {
        let held = self.holding(std::slice::from_ref(item));
        if let Some(Spot::Position) = &item.spot {
            let Some(held) = held.get(0) else { return Ok(Buried::Refused) };
            self.resolve(std::slice::from_ref(held)).await?;
            match held.look(item.origin.offset) {
                Verdict::Fenced => return Ok(Buried::Refused),
                Verdict::Finished => return Ok(Buried::Recorded),
                Verdict::New { .. } => {}
            }
        }
        let mut tx = self.begin(false).await?;
        let mut moving = Moving::default();
        let answer = match self.bury_in(&mut tx, &mut moving, item, &held).await {
            Ok(Some(answer)) => answer,
            Ok(None) => {
                moving.parts.iter().for_each(|part| part.held.fence_off());
                finish(tx.rollback()).await;
                return Ok(Buried::Refused);
            }
            Err(fault) => {
                if fault.spares_connection() {
                    finish(tx.rollback()).await;
                }
                return Err(fault);
            }
        };
        match finish(moving.commit(tx)).await {
            Committed::Yes => Ok(answer),
            Committed::No(fault) | Committed::Unknown(fault) => Err(fault),
        }
    }

    /// Writes all but the commit, of one message. `None`: its partition belongs to another process.
    async fn bury_in(
        &self,
        tx: &mut Tx<DB>,
        moving: &mut Moving,
        item: &Item,
        held: &Holding,
    ) -> Result<Option<Buried>, Fault> {
        let mut answer = Buried::Recorded;
        if let Some(sighting) = &item.record {
            answer = self.bury_record(tx, sighting, item.attempt).await?;
        }
        if let Some(Spot::Sequence { source, number, span }) = &item.spot {
            for (row, mut window) in self.lock_windows(tx, &[(*source, *span)]).await? {
                window.see(*number);
                let shifted = DB::DIALECT.shift(tx.conn()?, &self.settings.windows, &[row.shift(&window)]).await;
                shifted.map_err(|error| sorted::<DB::Dialect>(&error))?;
            }
        }
        moving.take(held, std::slice::from_ref(item), &[0], &[]).await?;
        let shifts: Vec<_> = moving.shifts().collect();
        if !shifts.is_empty() {
            let shifted = DB::DIALECT.shift(tx.conn()?, &self.settings.windows, &shifts).await;
            if shifted.map_err(|error| sorted::<DB::Dialect>(&error))? == 0 {
                return Ok(None);
            }
        }
        Ok(Some(answer))
    }

    /// Makes the record dead, unless the message was handled meanwhile.
    async fn bury_record(&self, tx: &mut Tx<DB>, sighting: &Sighting, attempts: u32) -> Result<Buried, Fault> {
        let (now, records) = self.read(tx, &[sighting.key], false).await?;
        let state = State::Dead { at: now };
        let Some(record) = records.into_iter().next().flatten() else {
            let after = Record {
                state,
                owner: Owner::new(self.random()),
                fence: Fence::FIRST,
                attempts,
                fingerprint: sighting.fingerprint,
                origin: sighting.origin.clone(),
                result: None,
            };
            let change = Change { key: sighting.key, before: None, after, now };
            self.swap(tx, &[change], false).await?;
            return Ok(Buried::Recorded);
        };
        if record.fingerprint != sighting.fingerprint || matches!(record.state, State::Dead { .. }) {
            // Another message has the identity: this one is passed, and that one's record says nothing of it.
            return Ok(Buried::Recorded);
        }
        match record.state {
            State::Succeeded { .. } => return Ok(Buried::Refused),
            State::Processing { until } if until > now => {
                return Err(Fault::Locked("another owner is handling the message.".into()));
            }
            _ => {}
        }
        let mut after = record.clone();
        after.state = state;
        let change = Change { key: sighting.key, before: Some(record.stamp()), after, now };
        self.swap(tx, &[change], false).await?;
        Ok(Buried::Recorded)
    }
}
