//! What a case stands on: handles on the store, and messages and owners of its own.

use std::fmt::Debug;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use futures_util::future::BoxFuture;

use super::asks::{acquire, claim};
use crate::identity::{Fingerprint, Key};
use crate::record::{ClaimOutcome, Origin, Owner, Sighting, Terms};
use crate::store::{DedupStore, Retention, StoreError};

pub(super) type Check<T = ()> = Result<T, String>;

pub(super) type Opener =
    Arc<dyn Fn(Retention) -> BoxFuture<'static, Result<Arc<dyn DedupStore>, StoreError>> + Send + Sync>;

/// Longer than any run of the suite.
pub(super) const LONG: Duration = Duration::from_secs(3600);
/// Shorter than it takes to wait for.
pub(super) const SHORT: Duration = Duration::from_millis(1);
/// How long a condition is awaited.
pub(super) const PATIENCE: Duration = Duration::from_secs(30);
/// How often it is looked for.
pub(super) const STEP: Duration = Duration::from_millis(3);

/// Awaits what `$look` gives as `Some`.
macro_rules! eventually {
    ($what:expr, $look:expr) => {{
        let begun = std::time::Instant::now();
        loop {
            if let Some(found) = $look {
                break found;
            }
            if begun.elapsed() > $crate::store::conformance::ground::PATIENCE {
                return Err(format!("waited in vain until {}", $what));
            }
            tokio::time::sleep($crate::store::conformance::ground::STEP).await;
        }
    }};
}
pub(super) use eventually;

pub(super) fn ensure(holds: bool, otherwise: impl FnOnce() -> String) -> Check {
    if holds { Ok(()) } else { Err(otherwise()) }
}

pub(super) fn same<T: PartialEq + Debug>(what: &str, got: &T, want: &T) -> Check {
    ensure(got == want, || format!("{what}: got {got:?}, expected {want:?}"))
}

pub(super) fn attempts(number: u32) -> NonZeroU32 {
    NonZeroU32::new(number).unwrap_or(NonZeroU32::MIN)
}

#[derive(Clone)]
pub(super) struct Ground {
    /// A handle on the store.
    pub(super) store: Arc<dyn DedupStore>,
    /// Another handle on the same records.
    pub(super) other: Arc<dyn DedupStore>,
    open: Opener,
    salt: u64,
    case: &'static str,
    made: Arc<AtomicU32>,
    /// By how much the time told to a duplicate or conflict may differ from the record's.
    slack: Duration,
}

impl Ground {
    pub(super) fn new(
        store: Arc<dyn DedupStore>,
        other: Arc<dyn DedupStore>,
        open: Opener,
        salt: u64,
        case: &'static str,
        slack: Duration,
    ) -> Self {
        Self { store, other, open, salt, case, made: Arc::new(AtomicU32::new(0)), slack }
    }

    /// A claim's answer, with the time told to a duplicate or conflict set to the one expected where it is near enough.
    pub(super) fn near(&self, mut got: ClaimOutcome, want: &ClaimOutcome) -> ClaimOutcome {
        if let (ClaimOutcome::Duplicate { first: told, .. }, ClaimOutcome::Duplicate { first, .. })
        | (ClaimOutcome::Conflict { first: told }, ClaimOutcome::Conflict { first }) = (&mut got, want)
            && Duration::from_millis(told.at.abs_diff(first.at)) <= self.slack
        {
            told.at = first.at;
        }
        got
    }

    fn random(&self, kind: &str, number: u32) -> [u8; 16] {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&self.salt.to_be_bytes());
        hasher.update(kind.as_bytes());
        hasher.update(&number.to_be_bytes());
        hasher.update(self.case.as_bytes());
        let mut bytes = [0; 16];
        hasher.finalize_xof().fill(&mut bytes);
        bytes
    }

    fn next(&self) -> u32 {
        self.made.fetch_add(1, Ordering::Relaxed)
    }

    /// A message that the store has never seen.
    pub(super) fn message(&self) -> Sighting {
        let number = self.next();
        Sighting {
            key: Key::from_bytes(self.random("key", number)),
            fingerprint: Fingerprint::from_bytes(self.random("fingerprint", number)),
            origin: Origin { topic: "conformance".into(), partition: 7, offset: i64::from(number) },
        }
    }

    pub(super) fn messages(&self, count: usize) -> Vec<Sighting> {
        (0..count).map(|_| self.message()).collect()
    }

    /// An owner that the store has never seen.
    pub(super) fn owner(&self) -> Owner {
        let [a, b, c, d, e, f, g, h, ..] = self.random("owner", self.next());
        Owner::new(u64::from_be_bytes([a, b, c, d, e, f, g, h]))
    }

    /// Terms of a new owner: a long lease, five attempts.
    pub(super) fn terms(&self) -> Terms {
        Terms { owner: self.owner(), lease: LONG, max_attempts: attempts(5) }
    }

    pub(super) fn handles(&self) -> [&Arc<dyn DedupStore>; 2] {
        [&self.store, &self.other]
    }

    /// A handle with another retention, maybe on other records.
    pub(super) async fn keeping(&self, retention: Retention) -> Check<Arc<dyn DedupStore>> {
        let store = (self.open)(retention).await.map_err(|error| format!("it could not be opened anew: {error}"))?;
        store.ensure_schema().await.map_err(|error| format!("the schema could not be ensured: {error}"))?;
        Ok(store)
    }

    /// Waits until every claim of a [`SHORT`] lease made before has run out on the store's clock.
    pub(super) async fn ran_out(&self, store: &dyn DedupStore) -> Check {
        let canary = self.message();
        acquire(store, &Terms { lease: SHORT, ..self.terms() }, &canary).await?;
        let heir = self.terms();
        eventually!("a lease of 1 ms runs out", {
            match claim(store, &heir, &canary).await? {
                ClaimOutcome::Acquired(_) => Some(()),
                ClaimOutcome::InFlight { .. } => None,
                other => return Err(format!("a claim whose lease runs out answers {other:?}")),
            }
        });
        // The nodes of a cluster may be a little apart.
        tokio::time::sleep(Duration::from_millis(5)).await;
        Ok(())
    }
}

/// Changes one bit.
pub(super) fn another(fingerprint: Fingerprint) -> Fingerprint {
    let mut bytes = *fingerprint.as_bytes();
    bytes[15] ^= 1;
    Fingerprint::from_bytes(bytes)
}
