//! The same lives led on a store alone and through layers must get the same answers.

use std::cell::Cell;
use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use hapax::record::{ClaimOutcome, Extend, Grant, Origin, Seen, Sighting, Terms, Verdict};
use hapax::store::{Ask, Batch, DedupStore, Keyed, Retention};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

use crate::items::{ATTEMPTS, fingerprint, key, settle, terms};
use crate::stores::Place;

/// Messages of one life.
const MESSAGES: u64 = 12;

/// One step of some consumers' life. Leases and retries last for ever or not at all, so that no answer depends on the time.
#[derive(Clone, Debug)]
enum Step {
    /// Messages by number, some with another body.
    Claim {
        owner: u64,
        messages: Vec<(u64, bool)>,
        ends_at_once: bool,
    },
    /// Of the claims granted so far, stale ones included.
    Settle {
        claims: Vec<prop::sample::Index>,
        verdict: Verdict,
    },
    Extend {
        claim: prop::sample::Index,
    },
    Requeue {
        messages: Vec<u64>,
    },
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let verdict = prop_oneof![
        6 => Just(Verdict::Succeeded { result: None }),
        2 => Just(Verdict::Failed { retry_in: Duration::ZERO, max_attempts: ATTEMPTS }),
        1 => Just(Verdict::Failed { retry_in: Duration::from_secs(9_000), max_attempts: ATTEMPTS }),
        1 => Just(Verdict::Released),
        1 => Just(Verdict::Dead),
    ];
    let message = (0..MESSAGES, prop::bool::weighted(0.1));
    let step = prop_oneof![
        5 => (0..3_u64, prop::collection::vec(message, 1..8), prop::bool::weighted(0.2))
            .prop_map(|(owner, messages, ends_at_once)| Step::Claim { owner, messages, ends_at_once }),
        4 => (prop::collection::vec(any::<prop::sample::Index>(), 1..6), verdict)
            .prop_map(|(claims, verdict)| Step::Settle { claims, verdict }),
        1 => any::<prop::sample::Index>().prop_map(|claim| Step::Extend { claim }),
        1 => prop::collection::vec(0..MESSAGES, 1..4).prop_map(|messages| Step::Requeue { messages }),
    ];
    prop::collection::vec(step, 1..25)
}

/// The messages of one life: their own keys, and otherwise the same as in every other.
#[derive(Clone, Copy)]
struct Life {
    first: u64,
}

impl Life {
    fn sighting(self, n: u64, other_body: bool) -> Sighting {
        let origin = Origin { topic: "orders".into(), partition: 1, offset: i64::try_from(n).unwrap() };
        let fingerprint = fingerprint(if other_body { n + 5_000 } else { n });
        Sighting { key: key(self.first + n), fingerprint, origin }
    }

    /// Every third message has a result, the same however often it is reported.
    fn verdict(self, sighting: &Sighting, verdict: &Verdict) -> Verdict {
        match verdict {
            Verdict::Succeeded { .. } if sighting.origin.offset % 3 == 0 => {
                Verdict::Succeeded { result: Some(Bytes::from(format!("receipt {}", sighting.origin.offset))) }
            }
            other => other.clone(),
        }
    }

    /// Whose it is.
    fn number(self, item: &impl Keyed) -> u64 {
        (0..MESSAGES).find(|n| key(self.first + n) == item.key()).expect("a message of this life")
    }
}

/// An answer without what depends on when it was asked.
fn timeless(outcome: ClaimOutcome) -> ClaimOutcome {
    match outcome {
        ClaimOutcome::Duplicate { result, first } => ClaimOutcome::Duplicate { result, first: Seen { at: 0, ..first } },
        ClaimOutcome::Conflict { first } => ClaimOutcome::Conflict { first: Seen { at: 0, ..first } },
        ClaimOutcome::InFlight { .. } => ClaimOutcome::InFlight { remaining: Duration::ZERO },
        ClaimOutcome::NotDue { .. } => ClaimOutcome::NotDue { remaining: Duration::ZERO },
        other => other,
    }
}

/// The answers of one step, in the order of the messages' numbers: the order of their keys differs from life to life.
fn write_down<T: Keyed, O: Debug>(life: Life, batch: &Batch<T>, answers: impl IntoIterator<Item = O>) -> String {
    let mut lines: Vec<(u64, String)> =
        batch.items().iter().zip(answers).map(|(item, answer)| (life.number(item), format!("{answer:?}"))).collect();
    assert_eq!(lines.len(), batch.len(), "an answer for each");
    lines.sort();
    format!("{lines:?}")
}

/// Lives it, and writes down every answer and what stands at the end.
async fn live(store: &dyn DedupStore, steps: &[Step], life: Life) -> Vec<String> {
    let mut granted: Vec<(Sighting, Grant)> = Vec::new();
    let mut book = Vec::new();
    for step in steps {
        match step {
            Step::Claim { owner, messages, ends_at_once } => {
                let sightings = messages.iter().map(|(n, other)| Ask::from(life.sighting(*n, *other)));
                let batch: Batch<Ask> = sightings.collect();
                let lease = if *ends_at_once { Duration::ZERO } else { terms(0).lease };
                let outcomes = store.claim(&Terms { lease, ..terms(*owner) }, &batch).await.unwrap();
                let mut grants: Vec<(u64, Sighting, Grant)> = Vec::new();
                for (ask, outcome) in batch.items().iter().zip(&outcomes) {
                    if let ClaimOutcome::Acquired(grant) = outcome {
                        grants.push((life.number(ask), ask.sighting.clone(), *grant));
                    }
                }
                grants.sort_by_key(|(n, ..)| *n);
                granted.extend(grants.into_iter().map(|(_, sighting, grant)| (sighting, grant)));
                book.push(write_down(life, &batch, outcomes.into_iter().map(timeless)));
            }
            Step::Settle { claims, verdict } if !granted.is_empty() => {
                let batch = claims.iter().map(|claim| {
                    let (sighting, grant) = claim.get(&granted).clone();
                    let verdict = life.verdict(&sighting, verdict);
                    hapax::record::Settle { sighting, ..settle(0, grant, verdict) }
                });
                let batch = batch.collect();
                book.push(write_down(life, &batch, store.settle(&batch).await.unwrap()));
            }
            Step::Extend { claim } if !granted.is_empty() => {
                let (sighting, grant) = claim.get(&granted);
                let extend = Extend { key: sighting.key, token: grant.token, lease: Duration::from_secs(900) };
                let batch = Batch::one(extend);
                book.push(write_down(life, &batch, store.extend(&batch).await.unwrap()));
            }
            Step::Requeue { messages } => {
                let batch: Batch<_> = messages.iter().map(|n| key(life.first + n)).collect();
                book.push(write_down(life, &batch, store.requeue(&batch).await.unwrap()));
            }
            Step::Settle { .. } | Step::Extend { .. } => {}
        }
    }
    let keys: Batch<_> = (0..MESSAGES).map(|n| key(life.first + n)).collect();
    let left = store.get(&keys).await.unwrap().into_iter().map(|record| {
        record.map(|record| {
            let token = record.token();
            (record.state.code(), token, record.attempts, record.fingerprint, record.origin, record.result)
        })
    });
    book.push(write_down(life, &keys, left));
    book
}

/// Leads random lives on the store alone and with layers over it, each on messages of its own.
pub fn same_lives(
    place: &Place,
    cases: u32,
    layered: impl Fn(&Arc<dyn DedupStore>) -> Vec<(String, Arc<dyn DedupStore>)>,
) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let (plain, others) = runtime.block_on(async {
        let plain = place.open(Retention::default()).await.unwrap();
        plain.ensure_schema().await.unwrap();
        (plain, layered(&place.open(Retention::default()).await.unwrap()))
    });
    let next = Cell::new(0);
    let life = || {
        next.set(next.get() + MESSAGES);
        Life { first: next.get() }
    };
    let mut runner = TestRunner::new(Config { cases, failure_persistence: None, ..Config::default() });
    let ran = runner.run(&steps(), |steps| {
        let want = runtime.block_on(live(&*plain, &steps, life()));
        for (name, store) in &others {
            let got = runtime.block_on(live(&**store, &steps, life()));
            // One difference tells more than two whole books.
            let differs = got.iter().zip(&want).find(|(got, want)| got != want);
            prop_assert!(differs.is_none() && got.len() == want.len(), "{}{:#?}", name, differs);
        }
        Ok(())
    });
    ran.unwrap();
}
