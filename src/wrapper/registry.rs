//! What this process holds: the messages in hand, and how claims ended that the store has not heard of.
//!
//! Two rules live here. A message in hand is not claimed a second time by the same owner: claims are re-entrant, so both
//! would run it. And before anything else happens to a message, what is owed to the store about it is told.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio_util::sync::CancellationToken;

use crate::identity::Key;
use crate::record::{Origin, Settle, Verdict};
use crate::store::Batch;

#[derive(Default)]
pub(super) struct Registry {
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    /// Messages in hand, with a latch if somebody waits for one.
    busy: HashMap<Key, Option<CancellationToken>, foldhash::fast::RandomState>,
    debts: BTreeMap<Key, Debt>,
}

/// How a claim ended that the store has not heard of.
struct Debt {
    settle: Settle,
    /// Cancelled when this telling is over; `None` while nobody tells it.
    telling: Option<CancellationToken>,
}

/// What entering a message came to.
#[derive(Debug)]
pub(super) enum Entry {
    /// In hand now; to be left.
    Entered,
    /// In somebody else's hand, or its debt is being told: wait for the latch and enter again.
    Busy(CancellationToken),
    /// A debt has to be told first.
    Owed,
}

impl Registry {
    /// Takes a message in hand.
    pub(super) fn enter(&self, key: Key) -> Entry {
        self.open().enter(key)
    }

    /// Takes messages in hand under one lock, for as long as `answer` says to go on.
    pub(super) fn enter_all<T>(
        &self,
        messages: impl IntoIterator<Item = (Key, T)>,
        mut answer: impl FnMut(T, Entry) -> bool,
    ) {
        let mut inner = self.open();
        for (key, message) in messages {
            if !answer(message, inner.enter(key)) {
                break;
            }
        }
    }

    /// Puts messages down.
    pub(super) fn leave(&self, keys: impl IntoIterator<Item = Key>) {
        let mut inner = self.open();
        for key in keys {
            if let Some(Some(latch)) = inner.busy.remove(&key) {
                latch.cancel();
            }
        }
    }

    /// Puts messages down whose end the store has not heard of.
    pub(super) fn owe(&self, settles: Vec<Settle>) {
        let mut inner = self.open();
        for settle in settles {
            let key = settle.sighting.key;
            let latch = inner.busy.remove(&key).flatten();
            inner.debts.insert(key, Debt { settle, telling: None });
            if let Some(latch) = latch {
                latch.cancel();
            }
        }
    }

    /// Takes debts to tell, `first` among them if it is owed; nobody else tells them until [`Tellings`] is dropped.
    pub(super) fn tell(&self, first: Option<Key>, limit: usize) -> Option<Tellings<'_>> {
        let mut inner = self.open();
        let latch = CancellationToken::new();
        let mut settles = Vec::new();
        let chosen = first.into_iter().filter_map(|key| Some((key, inner.debts.get(&key)?)));
        let keys: Vec<Key> = chosen
            .chain(inner.debts.iter().filter(|(key, _)| Some(**key) != first).map(|(key, debt)| (*key, debt)))
            .filter(|(_, debt)| debt.telling.is_none())
            .map(|(key, _)| key)
            .take(limit)
            .collect();
        for key in keys {
            if let Some(debt) = inner.debts.get_mut(&key) {
                debt.telling = Some(latch.clone());
                settles.push(debt.settle.clone());
            }
        }
        let batch: Batch<Settle> = settles.into_iter().collect();
        if batch.is_empty() {
            // No `Tellings` may be made here: its drop locks what is locked.
            return None;
        }
        Some(Tellings { registry: self, batch, latch, heard: false })
    }

    /// Whether anything is owed that nobody tells.
    pub(super) fn owes(&self) -> bool {
        self.open().debts.values().any(|debt| debt.telling.is_none())
    }

    /// The latches of what is being told.
    pub(super) fn being_told(&self) -> Vec<CancellationToken> {
        self.open().debts.values().filter_map(|debt| debt.telling.clone()).collect()
    }

    /// What is owed: messages whose success is unheard, and how many other claims.
    pub(super) fn debts(&self) -> (Vec<Origin>, usize) {
        let inner = self.open();
        let handled: Vec<Origin> = inner
            .debts
            .values()
            .filter(|debt| matches!(debt.settle.verdict, Verdict::Succeeded { .. }))
            .map(|debt| debt.settle.sighting.origin.clone())
            .collect();
        let claims = inner.debts.len() - handled.len();
        (handled, claims)
    }

    /// No user code runs under this lock, and every step leaves it whole.
    fn open(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn enter(&mut self, key: Key) -> Entry {
        if !self.debts.is_empty()
            && let Some(debt) = self.debts.get(&key)
        {
            return debt.telling.clone().map_or(Entry::Owed, Entry::Busy);
        }
        match self.busy.entry(key) {
            std::collections::hash_map::Entry::Vacant(free) => {
                free.insert(None);
                Entry::Entered
            }
            std::collections::hash_map::Entry::Occupied(mut busy) => {
                Entry::Busy(busy.get_mut().get_or_insert_with(CancellationToken::new).clone())
            }
        }
    }
}

/// Debts being told. Dropped unheard, they are owed as before.
pub(super) struct Tellings<'r> {
    registry: &'r Registry,
    pub(super) batch: Batch<Settle>,
    latch: CancellationToken,
    heard: bool,
}

impl Tellings<'_> {
    /// The store has answered: nothing is owed any more.
    pub(super) fn heard(mut self) {
        self.heard = true;
    }
}

impl Drop for Tellings<'_> {
    fn drop(&mut self) {
        let mut inner = self.registry.open();
        for key in self.batch.keys() {
            if self.heard {
                inner.debts.remove(&key);
            } else if let Some(debt) = inner.debts.get_mut(&key) {
                debt.telling = None;
            }
        }
        drop(inner);
        self.latch.cancel();
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU32;
    use std::time::Duration;

    use super::*;
    use crate::identity::Fingerprint;
    use crate::record::{Fence, Owner, Sighting, Token};

    fn key(n: u8) -> Key {
        Key::from_bytes([n; 16])
    }

    fn debt(n: u8, verdict: Verdict) -> Settle {
        let fingerprint = Fingerprint::from_bytes([0; 16]);
        let sighting = Sighting { key: key(n), fingerprint, origin: Origin::default() };
        Settle { sighting, token: Token { owner: Owner::new(1), fence: Fence::FIRST }, attempt: 1, verdict }
    }

    fn failed() -> Verdict {
        Verdict::Failed { retry_in: Duration::ZERO, max_attempts: NonZeroU32::MIN }
    }

    #[test]
    fn a_message_in_hand_is_waited_for() {
        let registry = Registry::default();
        assert!(matches!(registry.enter(key(1)), Entry::Entered));
        let Entry::Busy(latch) = registry.enter(key(1)) else { panic!("entered twice") };
        assert!(matches!(registry.enter(key(2)), Entry::Entered));
        assert!(!latch.is_cancelled());
        registry.leave([key(1)]);
        assert!(latch.is_cancelled());
        assert!(matches!(registry.enter(key(1)), Entry::Entered));
    }

    #[test]
    fn a_debt_keeps_its_message_back_until_it_is_heard() {
        let registry = Registry::default();
        registry.enter(key(1));
        let Entry::Busy(waiting) = registry.enter(key(1)) else { panic!("entered twice") };
        registry.owe(vec![debt(1, failed())]);
        assert!(waiting.is_cancelled());
        assert!(matches!(registry.enter(key(1)), Entry::Owed));
        let telling = registry.tell(Some(key(1)), 1).unwrap();
        let Entry::Busy(latch) = registry.enter(key(1)) else { panic!("not being told") };
        assert!(registry.tell(None, 9).is_none(), "told by two at once");
        drop(telling);
        assert!(latch.is_cancelled());
        assert!(matches!(registry.enter(key(1)), Entry::Owed), "an unheard telling forgot the debt");
        registry.tell(None, 9).unwrap().heard();
        assert!(matches!(registry.enter(key(1)), Entry::Entered));
    }

    #[test]
    fn the_debt_asked_for_is_among_those_told() {
        let registry = Registry::default();
        registry.owe((0..9).map(|n| debt(n, Verdict::Succeeded { result: None })).collect());
        let telling = registry.tell(Some(key(7)), 3).unwrap();
        let keys: Vec<Key> = telling.batch.keys().collect();
        assert_eq!(keys, [key(0), key(1), key(7)]);
        assert_eq!(registry.debts(), (vec![Origin::default(); 9], 0));
    }
}
