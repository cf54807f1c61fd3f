//! Messages, claims and settles by number.

use std::num::NonZeroU32;
use std::time::Duration;

use bytes::Bytes;
use hapax::identity::{Fingerprint, Key};
use hapax::record::{ClaimOutcome, Grant, Origin, Owner, Settle, SettleOutcome, Sighting, Terms, Verdict};
use hapax::store::{Ask, Batch, DedupStore, StoreError};

pub const ATTEMPTS: NonZeroU32 = NonZeroU32::new(3).unwrap();
pub const LEASE: Duration = Duration::from_secs(600);

/// The n-th key, spread as a digest would be.
pub fn key(n: u64) -> Key {
    // Odd multipliers: a bijection, so distinct numbers give distinct keys.
    let high = n.wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29);
    let low = n.wrapping_mul(0xd6e8_feb8_6659_fd93).rotate_right(7);
    Key::from_bytes(((u128::from(high) << 64) | u128::from(low)).to_be_bytes())
}

pub fn fingerprint(n: u64) -> Fingerprint {
    Fingerprint::from_bytes(u128::from(n).to_be_bytes())
}

pub fn sighting(n: u64) -> Sighting {
    let origin = Origin { topic: "orders".into(), partition: 3, offset: i64::try_from(n).unwrap() };
    Sighting { key: key(n), fingerprint: fingerprint(n), origin }
}

pub fn ask(n: u64) -> Ask {
    sighting(n).into()
}

pub fn asks(numbers: impl IntoIterator<Item = u64>) -> Batch<Ask> {
    numbers.into_iter().map(ask).collect()
}

/// The n-th message's key with another body.
pub fn other_body(n: u64) -> Batch<Ask> {
    let mut sighting = sighting(n);
    sighting.fingerprint = fingerprint(n + 1_000_000);
    Batch::one(sighting.into())
}

pub fn terms(owner: u64) -> Terms {
    Terms { owner: Owner::new(owner), lease: LEASE, max_attempts: ATTEMPTS }
}

pub fn settle(n: u64, grant: Grant, verdict: Verdict) -> Settle {
    Settle { sighting: sighting(n), token: grant.token, attempt: grant.attempt, verdict }
}

pub fn succeeded() -> Verdict {
    Verdict::Succeeded { result: None }
}

pub fn succeeded_with(result: &'static str) -> Verdict {
    Verdict::Succeeded { result: Some(Bytes::from_static(result.as_bytes())) }
}

pub fn failed() -> Verdict {
    Verdict::Failed { retry_in: Duration::ZERO, max_attempts: ATTEMPTS }
}

pub async fn claim_one(store: &dyn DedupStore, owner: u64, n: u64) -> Result<ClaimOutcome, StoreError> {
    let mut outcomes = store.claim(&terms(owner), &Batch::one(ask(n))).await?;
    assert_eq!(outcomes.len(), 1);
    Ok(outcomes.remove(0))
}

pub async fn acquire(store: &dyn DedupStore, owner: u64, n: u64) -> Grant {
    match claim_one(store, owner, n).await.unwrap() {
        ClaimOutcome::Acquired(grant) => grant,
        other => panic!("message {n} was not acquired: {other:?}"),
    }
}

pub async fn settle_one(store: &dyn DedupStore, n: u64, grant: Grant, verdict: Verdict) -> SettleOutcome {
    let outcomes = store.settle(&Batch::one(settle(n, grant, verdict))).await.unwrap();
    assert_eq!(outcomes.len(), 1);
    outcomes[0]
}

/// Claims and settles as succeeded.
pub async fn handle(store: &dyn DedupStore, owner: u64, n: u64) {
    let grant = acquire(store, owner, n).await;
    assert_eq!(settle_one(store, n, grant, succeeded()).await, SettleOutcome::Settled);
}

pub fn is_duplicate(outcome: &ClaimOutcome) -> bool {
    matches!(outcome, ClaimOutcome::Duplicate { .. })
}
