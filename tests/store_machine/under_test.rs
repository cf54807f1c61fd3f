//! A real store that goes through the same calls as the reference.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use hapax::identity::{Fingerprint, Key};
use hapax::record::{ClaimOutcome, Millis, Origin, Owner, Record, Sighting, State, Terms};
use hapax::store::{Ask, Batch, DedupStore, Keyed};
use proptest_state_machine::{ReferenceStateMachine, StateMachineTest};
use tokio::runtime::Handle;

use crate::reference::{Answered, Asked, BRIEF, HOUR, Lives, MESSAGES, Move};
use crate::support;

/// Where a life takes place: two handles on one store.
#[derive(Clone)]
pub struct Place {
    pub handles: [Arc<dyn DedupStore>; 2],
    pub runtime: Handle,
}

thread_local! {
    /// What the next life runs on: the interface has no room for it.
    pub static PLACE: RefCell<Option<Place>> = const { RefCell::new(None) };
}

/// A store, and the keys of one life in it.
pub struct Machine {
    place: Place,
    keys: BTreeMap<u8, Key>,
}

fn fresh_key() -> Key {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&support::random().to_be_bytes());
    bytes[8..].copy_from_slice(&NEXT.fetch_add(1, Ordering::Relaxed).to_be_bytes());
    Key::from_bytes(bytes)
}

/// Asks in the order of keys, and gives the answers in the order of `items`.
async fn ask<T: Keyed, O>(items: Vec<T>, call: impl AsyncFnOnce(Batch<T>) -> Vec<O>) -> Vec<O> {
    let count = items.len();
    let gathered = Batch::gather(items);
    assert!(gathered.later.is_empty());
    let answers = call(gathered.batch).await;
    assert_eq!(answers.len(), count, "so many answers");
    let mut placed: Vec<_> = gathered.places.into_iter().zip(answers).collect();
    placed.sort_by_key(|(place, _)| *place);
    placed.into_iter().map(|(_, answer)| answer).collect()
}

impl Machine {
    fn sighting(&self, message: u8, sighting: &Sighting) -> Sighting {
        Sighting { key: self.keys[&message], ..sighting.clone() }
    }

    async fn call(&self, store: &dyn DedupStore, asked: &Asked) -> Answered {
        match asked {
            Asked::Nothing => Answered::Nothing,
            Asked::Claim { terms, asks } => {
                let asks = asks.iter().map(|(message, sighting, read_first)| Ask {
                    sighting: self.sighting(*message, sighting),
                    read_first: *read_first,
                });
                let outcomes = ask(asks.collect(), async |batch| store.claim(terms, &batch).await.unwrap()).await;
                Answered::Claim(outcomes)
            }
            Asked::Settle(settles) => {
                let settles = settles.iter().map(|(message, settle)| {
                    let mut settle = settle.clone();
                    settle.sighting = self.sighting(*message, &settle.sighting);
                    settle
                });
                Answered::Settle(ask(settles.collect(), async |batch| store.settle(&batch).await.unwrap()).await)
            }
            Asked::Extend(extends) => {
                let extends = extends.iter().map(|(message, extend)| {
                    let mut extend = *extend;
                    extend.key = self.keys[message];
                    extend
                });
                Answered::Extend(ask(extends.collect(), async |batch| store.extend(&batch).await.unwrap()).await)
            }
            Asked::Requeue(messages) => {
                let keys = messages.iter().map(|message| self.keys[message]).collect();
                Answered::Requeue(ask(keys, async |batch| store.requeue(&batch).await.unwrap()).await)
            }
        }
    }

    /// Waits until the store itself says that a lease of a millisecond, begun now, is over.
    async fn brief_is_over(&self) {
        let store = &self.place.handles[0];
        let sighting =
            Sighting { key: fresh_key(), fingerprint: Fingerprint::from_bytes([0; 16]), origin: Origin::default() };
        let batch = Batch::one(Ask::from(sighting));
        let terms = |owner| Terms { owner: Owner::new(owner), lease: BRIEF, max_attempts: std::num::NonZeroU32::MAX };
        store.claim(&terms(1), &batch).await.unwrap();
        let begun = Instant::now();
        while !matches!(store.claim(&terms(2), &batch).await.unwrap()[..], [ClaimOutcome::Acquired(_)]) {
            assert!(begun.elapsed() < support::PATIENCE, "a lease of a millisecond does not end");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        // The nodes of a cluster may be a little apart.
        tokio::time::sleep(Duration::from_millis(3)).await;
    }
}

/// Durations and times are the store's own: they need only be possible.
fn timeless(answered: &Answered) -> Answered {
    let Answered::Claim(outcomes) = answered else { return answered.clone() };
    let strip = |outcome: &ClaimOutcome| {
        let mut outcome = outcome.clone();
        match &mut outcome {
            ClaimOutcome::InFlight { remaining } | ClaimOutcome::NotDue { remaining } => {
                assert!(!remaining.is_zero() && *remaining <= HOUR + Duration::from_secs(1), "{remaining:?} remain");
                *remaining = HOUR;
            }
            ClaimOutcome::Duplicate { first, .. } | ClaimOutcome::Conflict { first } => first.at = 0,
            ClaimOutcome::Acquired(_) | ClaimOutcome::Dead { .. } => {}
        }
        outcome
    };
    Answered::Claim(outcomes.iter().map(strip).collect())
}

fn without_time(record: &Record) -> Record {
    let state = State::from_code(record.state.code(), 0).unwrap();
    Record { state, ..record.clone() }
}

/// Whether it lasts for about an hour yet, or was over when it was read.
fn lasts(time: Millis, other: Millis) -> bool {
    time.saturating_sub(other) > 1_800_000
}

impl StateMachineTest for Machine {
    type SystemUnderTest = Self;
    type Reference = Lives;

    fn init_test(_: &<Lives as ReferenceStateMachine>::State) -> Self {
        let place = PLACE.with_borrow(Clone::clone).expect("a place is set before each life");
        Self { place, keys: (0..MESSAGES).map(|message| (message, fresh_key())).collect() }
    }

    fn apply(machine: Self, after: &Lives, step: Move) -> Self {
        let runtime = machine.place.runtime.clone();
        runtime.block_on(async {
            let store = &machine.place.handles[step.handle];
            let answered = machine.call(&**store, &after.asked).await;
            assert_eq!(timeless(&answered), timeless(&after.answered), "the answers to {:?}", after.asked);
            if after.brief {
                machine.brief_is_over().await;
            }
            // Read through the other handle.
            let keys: Vec<Key> = machine.keys.values().copied().collect();
            let other = &machine.place.handles[1 - step.handle];
            let records = ask(keys, async |batch| other.get(&batch).await.unwrap()).await;
            let got: BTreeMap<u8, Record> =
                machine.keys.keys().zip(records).filter_map(|(message, record)| Some((*message, record?))).collect();
            let strip = |records: &BTreeMap<u8, Record>| -> BTreeMap<u8, Record> {
                records.iter().map(|(message, record)| (*message, without_time(record))).collect()
            };
            assert_eq!(strip(&got), strip(&after.records), "the records after {:?}", after.asked);
            // Times as far as they can be compared: what lasts longer in one lasts longer in the other.
            for (one, other) in after.records.keys().flat_map(|one| after.records.keys().map(move |other| (one, other)))
            {
                let want = lasts(after.records[one].state.time(), after.records[other].state.time());
                let is = lasts(got[one].state.time(), got[other].state.time());
                assert_eq!(is, want, "the times of messages {one} and {other}: {got:#?}");
            }
        });
        machine
    }
}
