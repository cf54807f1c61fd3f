//! What is about to run, noted before it does: so that a message that ends processes is counted, and takes no others with it.
//!
//! Nothing is noted in the steady state. Whoever takes a partition notes what it has in hand until its first commit there. If it ends before
//! that, the next owner finds the note: it runs those messages one by one, and counts the attempt of each before it begins.

use std::sync::Arc;

use super::core::{Core, finish};
use super::dialect::{Source, Transact};
use super::link::{Committed, sorted};
use super::moving::Moving;
use super::outcome::{Item, Spot};
use super::sealed::Sealed;
use super::windows::Held;
use crate::store::sql::Fault;

impl<DB: Sealed> Core<DB> {
    /// Notes these messages in their windows, where that is needed, before they run; at most `most` attempts of each. May be asked again.
    pub(super) async fn caution(&self, items: &[(&Item, &Arc<Held>)], most: u32) -> Result<(), Fault> {
        let mut wanted: Vec<(Arc<Held>, Vec<i64>)> = Vec::new();
        for (item, held) in items {
            let offset = item.origin.offset;
            if held.is_calm() || !matches!(item.spot, Some(Spot::Position)) || !held.must_note(offset, most) {
                continue;
            }
            match wanted.iter_mut().find(|(other, _)| Arc::ptr_eq(other, held)) {
                Some((_, offsets)) => offsets.push(offset),
                None => wanted.push((Arc::clone(held), vec![offset])),
            }
        }
        if wanted.is_empty() {
            return Ok(());
        }
        wanted.sort_unstable_by_key(|(held, _)| held.source);
        // First the transaction, then the windows, as a batch does.
        let mut tx = self.begin(false).await?;
        let mut moving = Moving::default();
        for (held, offsets) in wanted {
            if !moving.note(held, &offsets, most).await {
                finish(tx.rollback()).await;
                return Err(Fault::Contended("another batch has moved the window.".into()));
            }
        }
        let shifts: Vec<_> = moving.parts.iter().map(|part| part.pending.shift.clone()).collect();
        if shifts.is_empty() {
            finish(tx.rollback()).await;
            return Ok(());
        }
        let moved = DB::DIALECT.shift(tx.conn()?, &self.settings.windows, &shifts).await;
        let moved = match moved.map_err(|error| sorted::<DB::Dialect>(&error)) {
            Ok(moved) => moved,
            Err(fault) => {
                if fault.spares_connection() {
                    finish(tx.rollback()).await;
                }
                return Err(fault);
            }
        };
        if moved != shifts.len() as u64 {
            finish(tx.rollback()).await;
            let held = moving.parts.into_iter().map(|part| part.held).collect();
            self.find_fenced(held).await?;
            // Those that are still ours are noted without the others.
            return Err(Fault::Contended("another process has taken a partition.".into()));
        }
        match finish(moving.commit(tx)).await {
            Committed::Yes => Ok(()),
            Committed::No(fault) | Committed::Unknown(fault) => Err(fault),
        }
    }

    /// Looks whose fence was raised.
    pub(super) async fn find_fenced(&self, held: Vec<Arc<Held>>) -> Result<(), Fault> {
        let sources: Vec<Source> = held.iter().map(|held| held.source).collect();
        let rows = self.rows(&sources).await?;
        for held in held.into_iter().filter(|held| !rows.iter().any(|row| held.stands(row))) {
            held.fence_off();
        }
        Ok(())
    }
}
