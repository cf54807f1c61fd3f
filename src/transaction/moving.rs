//! Windows on their way into the table, with the transaction that moves them.

use std::sync::Arc;

use tokio::sync::OwnedMutexGuard;

use super::core::{Core, finish};
use super::dialect::{Shift, Source, Transact};
use super::holding::Holding;
use super::link::{Committed, Tx, sorted};
use super::outcome::Item;
use super::sealed::Sealed;
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
    pub(super) async fn take(
        &mut self,
        windows: &Holding,
        items: &[Item],
        finished: &[usize],
        failed: &[(usize, u32)],
    ) -> Result<(), Fault> {
        type Offsets = (Arc<Held>, Vec<(i64, Option<i64>)>, Vec<(i64, u32)>);
        let room = if windows.all().len() == 1 { finished.len() } else { 0 };
        let of = |held: &Arc<Held>| (Arc::clone(held), Vec::with_capacity(room), Vec::new());
        let mut moves: Vec<Offsets> = windows.all().iter().map(of).collect();
        for &at in finished {
            let Some((_, finished, _)) = windows.number(at).and_then(|number| moves.get_mut(number)) else { continue };
            let item = &items[at];
            finished.push((item.origin.offset, item.stamp));
        }
        for &(at, tries) in failed {
            let Some((_, _, failed)) = windows.number(at).and_then(|number| moves.get_mut(number)) else { continue };
            failed.push((items[at].origin.offset, tries));
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

    /// What to write.
    pub(super) fn shifts(&self) -> impl Iterator<Item = Shift> {
        self.parts.iter().map(|part| part.pending.shift.clone())
    }

    /// Whose they are.
    pub(super) fn held(&self) -> Vec<Arc<Held>> {
        self.parts.iter().map(|part| Arc::clone(&part.held)).collect()
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

impl<DB: Sealed> Core<DB> {
    /// Moves windows by a transaction that does nothing else, and commits it. Where one is another's by now, all the others stay too: to be asked
    /// again without it.
    pub(super) async fn move_only(&self, mut tx: Tx<DB>, moving: Moving) -> Result<(), Fault> {
        let shifts: Vec<Shift> = moving.shifts().collect();
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
            self.find_fenced(&moving.held()).await?;
            return Err(Fault::Contended("another process has taken a partition.".into()));
        }
        match finish(moving.commit(tx)).await {
            Committed::Yes => Ok(()),
            Committed::No(fault) | Committed::Unknown(fault) => Err(fault),
        }
    }

    /// Looks whose fence was raised. Whether any was.
    pub(super) async fn find_fenced(&self, held: &[Arc<Held>]) -> Result<bool, Fault> {
        let sources: Vec<Source> = held.iter().map(|held| held.source).collect();
        let rows = self.rows(&sources).await?;
        let mut any = false;
        for held in held.iter().filter(|held| !rows.iter().any(|row| held.stands(row))) {
            held.fence_off();
            any = true;
        }
        Ok(any)
    }
}
