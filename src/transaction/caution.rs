//! What is about to run, noted before it does: so that a message that ends processes is counted, and takes no others with it.
//!
//! Nothing is noted in the steady state. Whoever takes a partition notes what it has in hand until its first commit there. If it ends before
//! that, the next owner finds the note: it runs those messages one by one, and counts the attempt of each before it begins.

use std::sync::Arc;

use super::core::{Core, finish};
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
        let tx = self.begin(false).await?;
        let mut moving = Moving::default();
        for (held, offsets) in wanted {
            if !moving.note(held, &offsets, most).await {
                finish(tx.rollback()).await;
                return Err(Fault::Contended("another batch has moved the window.".into()));
            }
        }
        self.move_only(tx, moving).await
    }
}
