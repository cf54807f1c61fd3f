//! Windows on their way into the table, with the transaction that moves them.

use std::sync::Arc;

use tokio::sync::OwnedMutexGuard;

use super::link::{Committed, Tx};
use super::sealed::Sealed;
use super::trial::Batch;
use super::windows::{Held, Pending, Verdict};
use crate::store::sql::Fault;

/// Windows whose rows are being written.
#[derive(Default)]
pub(super) struct Moving {
    pub(super) parts: Vec<Part>,
}

pub(super) struct Part {
    pub(super) held: Arc<Held>,
    pub(super) pending: Pending,
    _moving: OwnedMutexGuard<()>,
}

impl Moving {
    /// Takes the windows, one after the other in a fixed order, and computes what to write.
    pub(super) async fn take<E>(
        &mut self,
        batch: &Batch<'_, E>,
        finished: &[usize],
        failed: &[(usize, u32)],
    ) -> Result<(), Fault> {
        type Offsets = (Arc<Held>, Vec<(i64, Option<i64>)>, Vec<(i64, u32)>);
        let room = if batch.held.all().len() == 1 { finished.len() } else { 0 };
        let of = |held: &Arc<Held>| (Arc::clone(held), Vec::with_capacity(room), Vec::new());
        let mut moves: Vec<Offsets> = batch.held.all().iter().map(of).collect();
        for &at in finished {
            let Some((_, finished, _)) = batch.held.number(at).and_then(|number| moves.get_mut(number)) else {
                continue;
            };
            let item = &batch.items[at];
            finished.push((item.origin.offset, item.stamp));
        }
        for &(at, tries) in failed {
            let Some((_, _, failed)) = batch.held.number(at).and_then(|number| moves.get_mut(number)) else { continue };
            failed.push((batch.items[at].origin.offset, tries));
        }
        moves.retain(|(_, finished, failed)| !finished.is_empty() || !failed.is_empty());
        moves.sort_unstable_by_key(|(held, ..)| held.source);
        for (held, finished, failed) in moves {
            let _moving = Arc::clone(&held.moving).lock_owned().await;
            // A row that stays as it is could not tell later whether it was written. What is not burnt leaves no trace, unless it was counted before.
            let news = |(offset, tries): &(i64, u32)| match *tries {
                0 => held.is_counted(*offset),
                tries => !matches!(held.look(*offset), Verdict::New { attempts } if attempts >= tries),
            };
            let failed: Vec<(i64, u32)> = failed.into_iter().filter(news).collect();
            if finished.is_empty() && failed.is_empty() {
                continue;
            }
            // Another batch has finished one of them, or it is not known whether it has.
            let pending = if held.is_in_doubt() { None } else { held.pending(&finished, &failed) };
            let Some(pending) = pending else {
                return Err(Fault::Contended("another batch has moved the window.".into()));
            };
            self.parts.push(Part { held, pending, _moving });
        }
        Ok(())
    }

    /// Takes a window, and computes what to note before these of its messages run, if anything. `false` if it is not known how it stands.
    pub(super) async fn note(&mut self, held: Arc<Held>, offsets: &[i64], most: u32) -> bool {
        let _moving = Arc::clone(&held.moving).lock_owned().await;
        if held.is_in_doubt() {
            return false;
        }
        if let Some(pending) = held.caution(offsets, most) {
            self.parts.push(Part { held, pending, _moving });
        }
        true
    }

    /// Commits, and notes it in the windows. To be run to its end.
    pub(super) async fn commit<DB: Sealed>(self, tx: Tx<DB>) -> Committed {
        let committed = tx.commit().await;
        for Part { held, pending, _moving } in self.parts {
            match &committed {
                Committed::Yes => held.apply(&pending),
                Committed::No(_) => {}
                Committed::Unknown(_) => held.suspect(pending),
            }
        }
        committed
    }
}
