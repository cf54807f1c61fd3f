//! Messages: new ones for every side of every round.

use std::num::NonZeroU32;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use hapax::identity::{Fingerprint, Key};
use hapax::record::{ClaimOutcome, Grant, Origin, Owner, Settle, Sighting, Terms, Verdict};
use hapax::store::{Ask, Batch};

use crate::figures::Failure;

/// Messages in a batch.
pub const BATCH: usize = 512;

/// A row of the bare side: as little as a hand-written loop keeps.
#[derive(Clone, Copy, Debug)]
pub struct Row {
    pub key: [u8; 16],
    pub fingerprint: [u8; 16],
    pub number: i64,
}

pub fn terms(owner: u64) -> Terms {
    Terms {
        owner: Owner::new(owner),
        lease: Duration::from_secs(60),
        max_attempts: NonZeroU32::new(8).unwrap_or(NonZeroU32::MIN),
    }
}

/// Keys spread as digests are; no two calls give the same.
pub fn spread(n: u64, salt: u64) -> [u8; 16] {
    let mix = |mut x: u64| {
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ (x >> 31)
    };
    let high = mix(n.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ salt);
    let low = mix(n.wrapping_add(salt).wrapping_mul(0xd6e8_feb8_6659_fd93));
    ((u128::from(high) << 64) | u128::from(low)).to_be_bytes()
}

pub fn sightings(count: usize) -> Vec<Sighting> {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let salt = SystemTime::now().duration_since(UNIX_EPOCH).map_or(1, |since| since.as_nanos() as u64);
    let first = NEXT.fetch_add(count as u64, Ordering::Relaxed);
    let topic = std::sync::Arc::<str>::from("orders");
    (first..first + count as u64)
        .map(|n| Sighting {
            key: Key::from_bytes(spread(n, salt)),
            fingerprint: Fingerprint::from_bytes(spread(n, !salt)),
            origin: Origin { topic: topic.clone(), partition: (n % 4) as i32, offset: n as i64 },
        })
        .collect()
}

/// Cuts messages into batches, each in the order of its keys.
pub fn batches(sightings: &[Sighting]) -> Vec<Batch<Ask>> {
    sightings.chunks(BATCH).map(|chunk| chunk.iter().cloned().map(Ask::from).collect()).collect()
}

/// New messages in batches.
pub fn fresh(count: usize) -> Vec<Batch<Ask>> {
    batches(&sightings(count * BATCH))
}

/// The same batches for the bare side, in the same order.
pub fn rows(batches: &[Batch<Ask>]) -> Vec<Vec<Row>> {
    let row = |ask: &Ask| Row {
        key: *ask.sighting.key.as_bytes(),
        fingerprint: *ask.sighting.fingerprint.as_bytes(),
        number: ask.sighting.origin.offset,
    };
    batches.iter().map(|batch| batch.items().iter().map(row).collect()).collect()
}

/// The settling of a batch that was acquired whole.
pub fn settles(batch: &Batch<Ask>, outcomes: &[ClaimOutcome]) -> Result<Batch<Settle>, Failure> {
    let settle = |(ask, outcome): (&Ask, &ClaimOutcome)| match outcome {
        ClaimOutcome::Acquired(Grant { token, attempt, .. }) => Ok(Settle {
            sighting: ask.sighting.clone(),
            token: *token,
            attempt: *attempt,
            verdict: Verdict::Succeeded { result: None },
        }),
        other => Err(Failure::from(format!("a new message came to {other:?}"))),
    };
    batch.items().iter().zip(outcomes).map(settle).collect()
}

pub fn acquired(outcomes: &[ClaimOutcome]) -> usize {
    outcomes.iter().filter(|outcome| matches!(outcome, ClaimOutcome::Acquired(_))).count()
}

pub fn duplicates(outcomes: &[ClaimOutcome]) -> usize {
    outcomes.iter().filter(|outcome| matches!(outcome, ClaimOutcome::Duplicate { .. })).count()
}

/// Both sides must have done the work.
pub fn expect(what: &str, got: usize, wanted: usize) -> Result<(), Failure> {
    if got == wanted { Ok(()) } else { Err(format!("{got} {what} instead of {wanted}").into()) }
}
