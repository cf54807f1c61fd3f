//! The one background task of a wrapper: it renews leases while handlers run, and tells the store what is owed to it.
//!
//! It sleeps while there is nothing to do, and ends with the wrapper.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::claim::Hold;
use super::shared::{Shared, pause};
use crate::record::{Extend, ExtendOutcome};
use crate::store::{Batch, Gathered};

/// Claims renewed by one call.
const RENEWALS: usize = 1024;
/// Holds listed before those that are over are looked for.
const LISTED: usize = 64;

#[derive(Default)]
pub(crate) struct Renewal {
    inner: Mutex<Inner>,
    wake: Arc<Notify>,
}

#[derive(Default)]
struct Inner {
    holds: Vec<Watched>,
    /// List length at which those that are over are looked for.
    full: usize,
    /// The task knows that there is something to do.
    armed: bool,
    task: Option<JoinHandle<()>>,
    /// Tellings of debts that failed in a row, and when to try again.
    failures: u32,
    tell_at: Option<Instant>,
}

struct Watched {
    hold: Weak<Hold>,
    due: Instant,
    /// The last renewal failed.
    failed: bool,
}

impl Renewal {
    /// Adds claims to those that are renewed.
    pub(super) fn watch(&self, shared: &Arc<Shared>, hold: &Arc<Hold>) {
        let mut inner = self.open();
        let due = Instant::now() + hold.remaining().saturating_sub(shared.terms.lease * 2 / 3);
        inner.holds.push(Watched { hold: Arc::downgrade(hold), due, failed: false });
        if inner.holds.len() >= inner.full.max(LISTED) {
            inner.holds.retain(|watched| watched.hold.upgrade().is_some_and(|hold| hold.is_live()));
            inner.full = 2 * inner.holds.len();
        }
        self.rouse(&mut inner, shared, false);
    }

    /// Has debts told soon.
    pub(super) fn nudge(&self, shared: &Arc<Shared>) {
        self.rouse(&mut self.open(), shared, true);
    }

    /// Lets the task end.
    pub(super) fn end(&self) {
        self.wake.notify_one();
    }

    fn rouse(&self, inner: &mut Inner, shared: &Arc<Shared>, at_once: bool) {
        if inner.task.as_ref().is_none_or(JoinHandle::is_finished) {
            // A task ends with its runtime; a wrapper may be used from several, one after the other.
            match Handle::try_current() {
                Ok(runtime) => {
                    inner.task = Some(runtime.spawn(work(Arc::downgrade(shared), Arc::clone(&self.wake))));
                }
                Err(error) => tracing::warn!(%error, "leases are not renewed"),
            }
        }
        if at_once || !inner.armed {
            inner.armed = true;
            self.wake.notify_one();
        }
    }

    fn open(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Renewal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Renewal").finish_non_exhaustive()
    }
}

async fn work(shared: Weak<Shared>, wake: Arc<Notify>) {
    loop {
        let next = match shared.upgrade() {
            Some(shared) => round(&shared).await,
            None => return,
        };
        match next {
            None => wake.notified().await,
            Some(at) => {
                tokio::select! {
                    () = wake.notified() => {}
                    () = tokio::time::sleep_until(at) => {}
                }
            }
        }
    }
}

/// Does what is due. Answers when to come again; `None` if there is nothing left to do.
async fn round(shared: &Shared) -> Option<Instant> {
    let lease = shared.terms.lease;
    let due = take_due(&shared.renewal, lease);
    if !due.is_empty() {
        let again = renew(shared, &due).await;
        let mut inner = shared.renewal.open();
        let holds = due.iter().zip(again).filter(|((hold, _), _)| hold.is_live());
        inner.holds.extend(holds.map(|((hold, _), (due, failed))| Watched { hold: Arc::downgrade(hold), due, failed }));
    }
    tell(shared).await;
    let mut inner = shared.renewal.open();
    inner.holds.retain(|watched| watched.hold.upgrade().is_some_and(|hold| hold.is_live()));
    let tell_at = if shared.registry.owes() { inner.tell_at.or(Some(Instant::now())) } else { None };
    let next = inner.holds.iter().map(|watched| watched.due).chain(tell_at).min();
    inner.armed = next.is_some();
    next
}

/// The holds to renew now, taken off the list: those that are due, and those that soon will be; and whether their last renewal failed.
fn take_due(renewal: &Renewal, lease: Duration) -> Vec<(Arc<Hold>, bool)> {
    let mut inner = renewal.open();
    let soon = Instant::now() + lease / 12;
    let mut due = Vec::new();
    inner.holds.retain(|watched| match watched.hold.upgrade() {
        Some(hold) if hold.is_live() => {
            let is_due = watched.due <= soon;
            if is_due {
                due.push((hold, watched.failed));
            }
            !is_due
        }
        _ => false,
    });
    due
}

/// Renews all that is live in these holds. Answers when each is due again, and whether it failed now.
async fn renew(shared: &Shared, holds: &[(Arc<Hold>, bool)]) -> Vec<(Instant, bool)> {
    let lease = shared.terms.lease;
    // After a pause of the process the store is asked first; where it did not answer before, handlers are told first.
    holds
        .iter()
        .filter(|(hold, failed)| *failed && hold.remaining().is_zero())
        .for_each(|(hold, _)| doubt(shared, hold));
    let mut places = Vec::new();
    for (at, (hold, _)) in holds.iter().enumerate() {
        places.extend(hold.slots.iter().filter(|slot| slot.is_live()).map(|slot| (at, slot)));
    }
    let mut sent_at: Vec<Option<Instant>> = vec![None; holds.len()];
    let mut failed = vec![false; holds.len()];
    for places in places.chunks(RENEWALS) {
        let extends = places.iter().map(|(_, slot)| Extend { key: slot.key, token: slot.token, lease });
        let Gathered { batch, places: given, .. } = Batch::gather(extends);
        let sent = Instant::now();
        // Waiting for the store must not keep handlers from being told that the lease ran out.
        let left = holds.iter().map(|(hold, _)| hold.remaining()).filter(|left| !left.is_zero()).min();
        let longest = left.unwrap_or(lease).min(lease / 4);
        let call = tokio::time::timeout(longest, shared.once("extend", batch.len(), shared.store.extend(&batch)));
        let answer = call.await;
        let slots = given.iter().filter_map(|at| places.get(*at));
        match answer {
            Ok(Ok(outcomes)) => {
                for ((at, slot), outcome) in slots.zip(outcomes) {
                    sent_at[*at].get_or_insert(sent);
                    if outcome == ExtendOutcome::Lost && slot.lose(true) {
                        shared.counters.lost.one();
                        tracing::debug!(key = %slot.key, "the lease was lost while the handler ran");
                    }
                }
            }
            Ok(Err(_)) | Err(_) => {
                shared.counters.store_failures.one();
                slots.for_each(|(at, _)| failed[*at] = true);
            }
        }
    }
    let again = holds.iter().zip(sent_at).zip(failed).map(|(((hold, _), sent), failed)| match sent {
        Some(sent) if !failed => {
            hold.renewed(sent, lease);
            (sent + lease / 3, false)
        }
        _ => {
            let left = hold.remaining();
            if left.is_zero() {
                doubt(shared, hold);
            }
            let wait = if left.is_zero() { lease / 6 } else { left.min(lease / 12) };
            (Instant::now() + wait, true)
        }
    });
    again.collect()
}

/// Tells handlers that their lease may have run out, since the store did not answer.
fn doubt(shared: &Shared, hold: &Hold) {
    let lost = hold.slots.iter().filter(|slot| slot.lose(false)).count();
    if lost > 0 {
        shared.counters.lost.add(lost as u64);
        tracing::debug!(lost, "leases may have run out: the store did not answer");
    }
}

/// Tells what is owed, one call at a time.
async fn tell(shared: &Shared) {
    let wait = shared.renewal.open().tell_at;
    if wait.is_some_and(|at| at > Instant::now()) {
        return;
    }
    loop {
        // Bounded, since leases have to be renewed meanwhile.
        let telling = shared.tell_debts(None, Duration::ZERO);
        let told = tokio::time::timeout(shared.terms.lease / 6, telling).await;
        let mut inner = shared.renewal.open();
        match told {
            Ok(Ok(more)) => {
                inner.failures = 0;
                inner.tell_at = None;
                if !more {
                    return;
                }
            }
            Ok(Err(_)) | Err(_) => {
                inner.tell_at = Some(Instant::now() + pause(inner.failures, shared.random()) * 4);
                inner.failures = inner.failures.saturating_add(1);
                return;
            }
        }
    }
}
