//! Messages, claims and shorthands.

#![allow(dead_code)]

use std::num::NonZeroU32;
use std::time::Duration;

use hapax::identity::{Fingerprint, Key};
use hapax::record::{ClaimOutcome, Grant, Origin, Owner, Settle, SettleOutcome, Sighting, Terms, Verdict};
use hapax::store::{Ask, Batch, DedupStore};

pub const HOUR: Duration = Duration::from_secs(3600);

/// Terms of an owner by number, with a lease.
pub fn terms(owner: u64, lease: Duration) -> Terms {
    Terms { owner: Owner::new(owner), lease, max_attempts: NonZeroU32::new(3).unwrap() }
}

/// A key that spreads like a digest, from two numbers.
pub fn key(set: u64, number: u64) -> Key {
    let mix = |x: u64| {
        let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ (x >> 31)
    };
    let a = mix(set.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(number));
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&a.to_be_bytes());
    bytes[8..].copy_from_slice(&mix(a ^ number).to_be_bytes());
    Key::from_bytes(bytes)
}

pub fn sighting(set: u64, number: u64) -> Sighting {
    Sighting {
        key: key(set, number),
        fingerprint: Fingerprint::from_bytes([u8::try_from(number % 251).unwrap(); 16]),
        origin: Origin { topic: "orders".into(), partition: 3, offset: i64::try_from(number).unwrap() },
    }
}

pub fn ask(set: u64, number: u64) -> Ask {
    sighting(set, number).into()
}

pub fn asks(set: u64, numbers: std::ops::Range<u64>) -> Batch<Ask> {
    numbers.map(|number| ask(set, number)).collect()
}

pub fn settle(sighting: &Sighting, grant: Grant, verdict: Verdict) -> Settle {
    Settle { sighting: sighting.clone(), token: grant.token, attempt: grant.attempt, verdict }
}

pub const SUCCESS: Verdict = Verdict::Succeeded { result: None };

/// The grant of a claim that must have been acquired.
pub fn granted(outcome: &ClaimOutcome) -> Grant {
    match outcome {
        ClaimOutcome::Acquired(grant) => *grant,
        other => panic!("not acquired: {other:?}"),
    }
}

pub fn is_acquired(outcome: &ClaimOutcome) -> bool {
    matches!(outcome, ClaimOutcome::Acquired(_))
}

/// Claims one message.
pub async fn claim_one(store: &dyn DedupStore, terms: &Terms, sighting: &Sighting) -> ClaimOutcome {
    store.claim(terms, &Batch::one(sighting.clone().into())).await.unwrap().remove(0)
}

/// Settles one message.
pub async fn settle_one(store: &dyn DedupStore, sighting: &Sighting, grant: Grant, verdict: Verdict) -> SettleOutcome {
    store.settle(&Batch::one(settle(sighting, grant, verdict))).await.unwrap().remove(0)
}
