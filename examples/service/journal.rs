//! Evidence: which claims were granted, prolonged and settled, and when. A layer over any store, an observer of the consumer, and a line for
//! each thing that happened.
//!
//! A line is written before hapax hears the store's answer, in one call to the system: a kill loses none. Times are microseconds since
//! 1970, keys what [`Claim::idempotency_key`](hapax::Claim::idempotency_key) says. `asked` is when the question went out.
//!
//! ```text
//! TIME start PID
//! TIME claimed KEY fence=N attempt=N took_over=BOOL asked=TIME
//! TIME dead KEY
//! TIME extended KEY fence=N asked=TIME
//! TIME settled KEY fence=N VERDICT OUTCOME
//! TIME stalled since=TIME
//! TIME assigned PARTITIONS
//! TIME revoked PARTITIONS lost=BOOL left=N
//! ```

use std::fmt::{self, Write as _};
use std::fs::File;
use std::io::{self, Write as _};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use async_trait::async_trait;
use hapax::identity::Key;
use hapax::observe::{Observed, Observer};
use hapax::record::{
    ClaimOutcome, Extend, ExtendOutcome, Record, RequeueOutcome, Settle, SettleOutcome, Terms, Verdict,
};
use hapax::store::{Ask, Batch, DedupStore, Description, Purged, Report, Retention, StoreError};

/// A gap in the process's own clock that is worth a line: the machine, or somebody, has stopped it.
const STALL: Duration = Duration::from_secs(1);

#[derive(Clone, Debug)]
pub struct Journal(Arc<File>);

impl Journal {
    pub fn open(path: &Path) -> Result<Self, String> {
        let start = || {
            let journal = Self(Arc::new(File::options().append(true).create(true).open(path)?));
            journal.write(&format!("{} start {}\n", now(), std::process::id()));
            journal.watch_for_stalls()?;
            Ok(journal)
        };
        start().map_err(|e: io::Error| format!("--journal {}: {e}; choose another file", path.display()))
    }

    fn write(&self, lines: &str) {
        if !lines.is_empty()
            && let Err(error) = (&*self.0).write_all(lines.as_bytes())
        {
            tracing::error!(%error, "the journal cannot be written");
        }
    }

    /// On a thread of its own: a busy runtime is no stall.
    fn watch_for_stalls(&self) -> io::Result<()> {
        let journal = self.clone();
        let watch = move || {
            let mut last = now();
            loop {
                std::thread::sleep(Duration::from_millis(200));
                let time = now();
                if time - last > STALL.as_micros() {
                    journal.write(&format!("{time} stalled since={last}\n"));
                }
                last = time;
            }
        };
        std::thread::Builder::new().name("stalls".into()).spawn(watch).map(|_| ())
    }
}

fn now() -> u128 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_micros())
}

impl Observer for Journal {
    fn on(&self, event: &Observed<'_>) {
        match event {
            Observed::Assigned(places) => self.write(&format!("{} assigned {}\n", now(), places.len())),
            Observed::Revoked { places, lost, left, .. } => {
                self.write(&format!("{} revoked {} lost={lost} left={left}\n", now(), places.len()));
            }
            _ => {}
        }
    }
}

/// A store whose answers are written down.
pub struct Journaled {
    pub store: Box<dyn DedupStore>,
    pub journal: Journal,
}

impl fmt::Debug for Journaled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.store.fmt(f)
    }
}

#[async_trait]
impl DedupStore for Journaled {
    async fn claim(&self, terms: &Terms, asks: &Batch<Ask>) -> Result<Vec<ClaimOutcome>, StoreError> {
        let asked = now();
        let outcomes = self.store.claim(terms, asks).await?;
        let (time, mut lines) = (now(), String::new());
        for (key, outcome) in asks.keys().zip(&outcomes) {
            let _ = match outcome {
                ClaimOutcome::Acquired(grant) => writeln!(
                    lines,
                    "{time} claimed {key} fence={} attempt={} took_over={} asked={asked}",
                    grant.token.fence.get(),
                    grant.attempt,
                    grant.took_over
                ),
                ClaimOutcome::Dead { .. } => writeln!(lines, "{time} dead {key}"),
                _ => Ok(()),
            };
        }
        self.journal.write(&lines);
        Ok(outcomes)
    }

    async fn settle(&self, settles: &Batch<Settle>) -> Result<Vec<SettleOutcome>, StoreError> {
        let outcomes = self.store.settle(settles).await?;
        let (time, mut lines) = (now(), String::new());
        for (settle, outcome) in settles.items().iter().zip(&outcomes) {
            let verdict = match settle.verdict {
                Verdict::Succeeded { .. } => "succeeded",
                Verdict::Failed { .. } => "failed",
                Verdict::Released => "released",
                Verdict::Dead => "dead",
            };
            let (key, fence) = (settle.sighting.key, settle.token.fence.get());
            let _ = writeln!(lines, "{time} settled {key} fence={fence} {verdict} {outcome:?}");
        }
        self.journal.write(&lines);
        Ok(outcomes)
    }

    async fn extend(&self, claims: &Batch<Extend>) -> Result<Vec<ExtendOutcome>, StoreError> {
        let asked = now();
        let outcomes = self.store.extend(claims).await?;
        let (time, mut lines) = (now(), String::new());
        for (claim, outcome) in claims.items().iter().zip(&outcomes) {
            if *outcome == ExtendOutcome::Held {
                let (key, fence) = (claim.key, claim.token.fence.get());
                let _ = writeln!(lines, "{time} extended {key} fence={fence} asked={asked}");
            }
        }
        self.journal.write(&lines);
        Ok(outcomes)
    }

    fn describe(&self) -> Description {
        self.store.describe()
    }

    fn retention(&self) -> Retention {
        self.store.retention()
    }

    async fn get(&self, keys: &Batch<Key>) -> Result<Vec<Option<Record>>, StoreError> {
        self.store.get(keys).await
    }

    async fn requeue(&self, keys: &Batch<Key>) -> Result<Vec<RequeueOutcome>, StoreError> {
        self.store.requeue(keys).await
    }

    async fn purge(&self, limit: usize) -> Result<Purged, StoreError> {
        self.store.purge(limit).await
    }

    async fn ensure_schema(&self) -> Result<(), StoreError> {
        self.store.ensure_schema().await
    }

    async fn check(&self) -> Result<Report, StoreError> {
        self.store.check().await
    }
}
