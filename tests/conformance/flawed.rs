//! A correct store with room for one flaw: records in a map, moved by the pure rules, with a clock of its own.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use hapax::Level;
use hapax::identity::Key;
use hapax::record::{
    self, ClaimOutcome, Extend, ExtendOutcome, Fence, Millis, Record, RequeueOutcome, Settle, SettleOutcome, State,
    Step, Terms, Verdict,
};
use hapax::store::{Ask, Batch, DedupStore, Description, Keyed, Purged, Report, Retention, StoreError};

/// What is wrong with a store. Each stands for a mistake that is easily made, many of them in libraries people use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flaw {
    None,
    CompletesWithoutToken,
    FailsWithoutToken,
    ReleasesWithoutToken,
    GivesUpWithoutToken,
    DeletesOnFailure,
    DeletesOnRelease,
    DuplicatesAreAcquired,
    ChecksThenActs,
    AnswersUnsorted,
    AnswersTooFew,
    ForgetsAttempts,
    CountsAttemptsWhenSettled,
    LeaseOnClientsClock,
    LeaseIsIgnored,
    LeaseIsForEver,
    LeaseEndsEarly,
    TakeoverKeepsFence,
    TakeoverSaysNothing,
    NotReentrant,
    ReentrantByAnybody,
    ReentrantTakesNewFence,
    RefusesLateSuccess,
    LateSuccessIsNotFlagged,
    LateSuccessIsLost,
    SettlingTwiceIsRefused,
    ReleasingTwiceCountsTwice,
    NeverBuries,
    IgnoresMaxAttemptsAtClaim,
    IgnoresFingerprint,
    ConflictOnlyOnceSucceeded,
    EndsAnotherMessage,
    EmptyResultIsNone,
    CutsResults,
    LosesResults,
    ReplacesResults,
    LossyResults,
    KeysIgnoreCase,
    KeysTrimBlanks,
    KeysEndAtNul,
    OwnerIsSigned32,
    OwnerIsADouble,
    OriginForgotten,
    OriginOfTheLastClaim,
    ExtendShortens,
    ExtendByAnybody,
    ExtendDoesNothing,
    ExtendReopensSettled,
    ReclaimShortens,
    RetryAtOnce,
    FailsTheWholeBatch,
    SmallBatchesOnly,
    EmptyBatchFails,
    DurationsOverflow,
    ReadFirstSkipsTheClaim,
    ReadFirstIsAcquiredBlindly,
    RequeueKeepsFence,
    RequeueKeepsAttempts,
    RequeueOfAnything,
    SuccessIsUndone,
    ForgottenSuccessIsRefused,
    PurgesEverything,
    PurgesRunningLeases,
    PurgesNothing,
    PurgeIgnoresLimit,
    SchemaDropsRecords,
    HandlesDoNotShare,
    HoldsALockForEver,
    Panics,
}

struct Shared {
    records: Mutex<HashMap<Key, Record>>,
    born: Instant,
    locks: tokio::sync::Mutex<()>,
}

/// A handle on the records.
pub struct Flawed {
    flaw: Flaw,
    shared: Arc<Shared>,
    retention: Retention,
    /// What this handle's clock is ahead, if it uses one of its own.
    ahead: Millis,
}

impl std::fmt::Debug for Flawed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Flawed({:?})", self.flaw)
    }
}

impl Flawed {
    pub fn new(flaw: Flaw, retention: Retention) -> Self {
        let shared = Shared { records: Mutex::default(), born: Instant::now(), locks: tokio::sync::Mutex::default() };
        Self { flaw, shared: Arc::new(shared), retention, ahead: 0 }
    }

    /// Another handle on the same records, maybe with another clock.
    pub fn another(&self, number: i64) -> Self {
        if self.has(Flaw::HandlesDoNotShare) {
            return Self::new(self.flaw, self.retention);
        }
        let ahead = if self.has(Flaw::LeaseOnClientsClock) { number * 7_200_000 } else { 0 };
        Self { flaw: self.flaw, shared: self.shared.clone(), retention: self.retention, ahead }
    }

    fn has(&self, flaw: Flaw) -> bool {
        self.flaw == flaw
    }

    fn now(&self) -> Millis {
        record::millis(self.shared.born.elapsed()) + self.ahead
    }

    /// What the store makes of a key.
    fn key(&self, key: Key) -> Key {
        let mut bytes = *key.as_bytes();
        match self.flaw {
            Flaw::KeysIgnoreCase => bytes.make_ascii_lowercase(),
            Flaw::KeysTrimBlanks => {
                for byte in bytes.iter_mut().rev().take_while(|byte| matches!(**byte, b' ' | 0)) {
                    *byte = b' ';
                }
            }
            Flaw::KeysEndAtNul => {
                if let Some(end) = bytes.iter().position(|byte| *byte == 0) {
                    bytes[end..].fill(0);
                }
            }
            _ => {}
        }
        Key::from_bytes(bytes)
    }

    fn terms(&self, terms: &Terms) -> Terms {
        let number = terms.owner.get();
        #[allow(clippy::cast_possible_truncation, clippy::cast_precision_loss, clippy::cast_sign_loss)]
        let owner = match self.flaw {
            Flaw::OwnerIsSigned32 => u64::from(number as u32),
            Flaw::OwnerIsADouble => number as f64 as u64,
            _ => number,
        };
        let lease = match self.flaw {
            Flaw::LeaseEndsEarly => terms.lease / 2,
            Flaw::LeaseIsForEver => Duration::MAX,
            _ => terms.lease,
        };
        Terms { owner: record::Owner::new(owner), lease, ..*terms }
    }

    fn each<T: Keyed, O>(
        &self,
        batch: &Batch<T>,
        rule: impl Fn(Option<&Record>, &T, Millis) -> Step<O>,
    ) -> Result<Vec<O>, StoreError> {
        let now = self.now();
        let error = |message: &str| Err(StoreError::refused("flawed", "work", message));
        if self.has(Flaw::EmptyBatchFails) && batch.is_empty() {
            return error("syntax error near VALUES");
        }
        if self.has(Flaw::SmallBatchesOnly) && batch.len() > 1000 {
            return error("too many parameters");
        }
        let mut records = self.shared.records.lock().unwrap();
        let mut answers = Vec::new();
        for item in batch.items() {
            let key = self.key(item.key());
            let step = rule(records.get(&key), item, now);
            if let Some(record) = step.write {
                records.insert(key, record);
            }
            answers.push(step.outcome);
        }
        if self.has(Flaw::AnswersTooFew) {
            answers.truncate(answers.len().min(511));
        }
        if self.has(Flaw::AnswersUnsorted) && answers.len() > 2 {
            answers.rotate_left(1);
        }
        Ok(answers)
    }

    fn claim_rule(&self, record: Option<&Record>, ask: &Ask, terms: &Terms, now: Millis) -> Step<ClaimOutcome> {
        let mut terms = self.terms(terms);
        let mut sighting = ask.sighting.clone();
        let mut seen = record.cloned();
        if let Some(record) = &mut seen {
            match self.flaw {
                Flaw::IgnoresFingerprint => sighting.fingerprint = record.fingerprint,
                Flaw::ConflictOnlyOnceSucceeded if !matches!(record.state, State::Succeeded { .. }) => {
                    sighting.fingerprint = record.fingerprint;
                }
                Flaw::ReentrantByAnybody if matches!(record.state, State::Processing { .. }) => {
                    terms.owner = record.owner;
                }
                Flaw::NotReentrant if matches!(record.state, State::Processing { .. }) => {
                    terms.owner = record::Owner::new(terms.owner.get() ^ 0x5555);
                }
                Flaw::LeaseIsIgnored => {
                    if let State::Processing { until } = &mut record.state {
                        *until = now;
                    }
                }
                Flaw::RetryAtOnce => {
                    if let State::Failed { due } = &mut record.state {
                        *due = now;
                    }
                }
                Flaw::DuplicatesAreAcquired => {
                    if let State::Succeeded { .. } = record.state {
                        record.state = State::Failed { due: now };
                    }
                }
                Flaw::IgnoresMaxAttemptsAtClaim => terms.max_attempts = std::num::NonZeroU32::MAX,
                _ => {}
            }
            if ask.read_first && self.has(Flaw::ReadFirstSkipsTheClaim) && record.owner != terms.owner {
                return Step { outcome: ClaimOutcome::InFlight { remaining: Duration::from_millis(1) }, write: None };
            }
        }
        let same_owner = seen.as_ref().is_some_and(|record| record.owner == terms.owner);
        let running = seen.as_ref().is_some_and(|record| matches!(record.state, State::Processing { .. }));
        if ask.read_first && self.has(Flaw::ReadFirstIsAcquiredBlindly) {
            let (grant, write) = record::first_claim(&sighting, &terms, now);
            return Step { outcome: ClaimOutcome::Acquired(grant), write: Some(write) };
        }
        let mut step = record::claim(seen.as_ref(), &sighting, &terms, now);
        if let (ClaimOutcome::Acquired(grant), Some(write)) = (&mut step.outcome, &mut step.write) {
            match self.flaw {
                Flaw::ForgetsAttempts => {
                    write.attempts = 1;
                    grant.attempt = 1;
                }
                Flaw::CountsAttemptsWhenSettled => write.attempts = write.attempts.saturating_sub(1),
                Flaw::TakeoverKeepsFence if running && !same_owner => {
                    write.fence = seen.as_ref().unwrap().fence;
                    grant.token.fence = write.fence;
                }
                Flaw::TakeoverSaysNothing => grant.took_over = false,
                Flaw::OriginOfTheLastClaim => write.origin = sighting.origin.clone(),
                Flaw::OriginForgotten => write.origin = record::Origin::default(),
                Flaw::ReentrantTakesNewFence if same_owner && running => {
                    write.fence = Fence::new(write.fence.get() + 1);
                    grant.token.fence = write.fence;
                }
                _ => {}
            }
        }
        if same_owner && running && self.has(Flaw::ReentrantTakesNewFence) && step.write.is_none() {
            let mut write = seen.clone().unwrap();
            write.fence = Fence::new(write.fence.get() + 1);
            if let ClaimOutcome::Acquired(grant) = &mut step.outcome {
                grant.token.fence = write.fence;
            }
            step.write = Some(write);
        }
        if same_owner && running && self.has(Flaw::ReclaimShortens) {
            let mut write = seen.unwrap();
            write.state = State::Processing { until: record::after(now, terms.lease) };
            step.write = Some(write);
        }
        step
    }

    fn settle_rule(&self, record: Option<&Record>, ask: &Settle, now: Millis) -> Step<SettleOutcome> {
        let mut ask = ask.clone();
        ask.token.owner = self
            .terms(&Terms { owner: ask.token.owner, lease: Duration::ZERO, max_attempts: std::num::NonZeroU32::MIN })
            .owner;
        let current = record.map(Record::token);
        let mut result_kept = true;
        match (&mut ask.verdict, self.flaw) {
            (Verdict::Succeeded { .. }, Flaw::CompletesWithoutToken)
            | (Verdict::Failed { .. }, Flaw::FailsWithoutToken)
            | (Verdict::Released, Flaw::ReleasesWithoutToken)
            | (Verdict::Dead, Flaw::GivesUpWithoutToken) => ask.token = current.unwrap_or(ask.token),
            (Verdict::Failed { max_attempts, .. }, Flaw::NeverBuries) => *max_attempts = std::num::NonZeroU32::MAX,
            (Verdict::Succeeded { result }, Flaw::EmptyResultIsNone) => {
                *result = result.take().filter(|result| !result.is_empty());
            }
            (Verdict::Succeeded { result: Some(result) }, Flaw::CutsResults) => {
                result.truncate(65_535);
            }
            (Verdict::Succeeded { result: Some(result) }, Flaw::LossyResults) => {
                *result = String::from_utf8_lossy(result).into_owned().into();
            }
            (Verdict::Succeeded { .. }, Flaw::LosesResults) => result_kept = false,
            (Verdict::Failed { .. } | Verdict::Released | Verdict::Dead, Flaw::EndsAnotherMessage) => {
                ask.sighting.fingerprint = record.map_or(ask.sighting.fingerprint, |record| record.fingerprint);
            }
            _ => {}
        }
        let is_success = matches!(ask.verdict, Verdict::Succeeded { .. });
        if is_success && record.is_none() && self.has(Flaw::ForgottenSuccessIsRefused) {
            return Step { outcome: SettleOutcome::Refused, write: None };
        }
        if is_success && self.has(Flaw::RefusesLateSuccess) && current != Some(ask.token) {
            return Step { outcome: SettleOutcome::Refused, write: None };
        }
        let mut step = record::settle(record, &ask, now);
        let settled_before = record.is_some_and(|record| !matches!(record.state, State::Processing { .. }));
        match self.flaw {
            Flaw::LateSuccessIsNotFlagged if step.outcome == SettleOutcome::Late => {
                step.outcome = SettleOutcome::Settled;
                if let Some(Record { state: State::Succeeded { late, .. }, .. }) = &mut step.write {
                    *late = false;
                }
            }
            Flaw::LateSuccessIsLost if step.outcome == SettleOutcome::Late => step.write = None,
            Flaw::SettlingTwiceIsRefused if settled_before && step.write.is_none() => {
                step.outcome = SettleOutcome::Refused;
            }
            Flaw::ReleasingTwiceCountsTwice => {
                if let (Verdict::Released, SettleOutcome::Settled, None, Some(record)) =
                    (&ask.verdict, step.outcome, &step.write, record)
                {
                    step.write = Some(Record { attempts: record.attempts.saturating_sub(1), ..record.clone() });
                }
            }
            Flaw::ReplacesResults => {
                if let (Verdict::Succeeded { result }, None, Some(record)) = (&ask.verdict, &step.write, record)
                    && step.outcome != SettleOutcome::Refused
                {
                    step.write = Some(Record { result: result.clone(), ..record.clone() });
                }
            }
            Flaw::SuccessIsUndone => {
                if let (Verdict::Failed { .. }, Some(record)) = (&ask.verdict, record)
                    && record.token() == ask.token
                {
                    step.write = Some(Record { state: State::Failed { due: now }, ..record.clone() });
                    step.outcome = SettleOutcome::Settled;
                }
            }
            Flaw::CountsAttemptsWhenSettled => {
                if let Some(write) = &mut step.write {
                    write.attempts = ask.attempt;
                }
            }
            _ => {}
        }
        if let (false, Some(write)) = (result_kept, &mut step.write) {
            write.result = None;
        }
        step
    }

    fn extend_rule(&self, record: Option<&Record>, ask: &Extend, now: Millis) -> Step<ExtendOutcome> {
        let mut ask = *ask;
        ask.token.owner = self
            .terms(&Terms { owner: ask.token.owner, lease: Duration::ZERO, max_attempts: std::num::NonZeroU32::MIN })
            .owner;
        if self.has(Flaw::ExtendByAnybody) {
            ask.token = record.map_or(ask.token, Record::token);
        }
        let mut step = record::extend(record, &ask, now);
        match (self.flaw, record) {
            (Flaw::ExtendShortens, Some(record)) if step.outcome == ExtendOutcome::Held => {
                let until = record::after(now, ask.lease);
                step.write = Some(Record { state: State::Processing { until }, ..record.clone() });
            }
            (Flaw::ExtendDoesNothing, _) => step.write = None,
            (Flaw::ExtendReopensSettled, Some(record)) if record.token() == ask.token => {
                let until = record::after(now, ask.lease);
                step.write = Some(Record { state: State::Processing { until }, ..record.clone() });
                step.outcome = ExtendOutcome::Held;
            }
            _ => {}
        }
        step
    }

    fn requeue_rule(&self, record: Option<&Record>, now: Millis) -> Step<RequeueOutcome> {
        let mut step = record::requeue(record, now);
        match (self.flaw, record, &mut step.write) {
            (Flaw::RequeueKeepsFence, Some(record), Some(write)) => write.fence = record.fence,
            (Flaw::RequeueKeepsAttempts, Some(record), Some(write)) => write.attempts = record.attempts,
            (Flaw::RequeueOfAnything, Some(record), None) => {
                let state = State::Failed { due: now };
                step.write = Some(Record { state, attempts: 0, ..record.clone() });
                step.outcome = RequeueOutcome::Requeued;
            }
            _ => {}
        }
        step
    }
}

#[async_trait]
impl DedupStore for Flawed {
    fn describe(&self) -> Description {
        Description::new("flawed", Level::L0)
    }

    fn retention(&self) -> Retention {
        self.retention
    }

    async fn claim(&self, terms: &Terms, asks: &Batch<Ask>) -> Result<Vec<ClaimOutcome>, StoreError> {
        assert!(!self.has(Flaw::Panics), "an index out of bounds");
        if self.has(Flaw::DurationsOverflow) && terms.lease.as_millis() > i64::MAX as u128 / 2 {
            return Err(StoreError::refused("flawed", "claim", "interval out of range"));
        }
        if self.has(Flaw::ChecksThenActs) {
            // Reads, thinks, and writes what it has thought of.
            let before: Vec<Option<Record>> = {
                let records = self.shared.records.lock().unwrap();
                asks.keys().map(|key| records.get(&key).cloned()).collect()
            };
            tokio::task::yield_now().await;
            let now = self.now();
            let mut outcomes = Vec::new();
            for (ask, before) in asks.items().iter().zip(before) {
                let step = record::claim(before.as_ref(), &ask.sighting, terms, now);
                if let Some(record) = step.write {
                    self.shared.records.lock().unwrap().insert(ask.sighting.key, record);
                }
                outcomes.push(step.outcome);
            }
            return Ok(outcomes);
        }
        if self.has(Flaw::HoldsALockForEver) && asks.len() > 20 {
            // As a transaction that a lost race leaves open would.
            std::mem::forget(self.shared.locks.lock().await);
        }
        self.each(asks, |record, ask, now| self.claim_rule(record, ask, terms, now))
    }

    async fn settle(&self, settles: &Batch<Settle>) -> Result<Vec<SettleOutcome>, StoreError> {
        if self.has(Flaw::FailsTheWholeBatch) {
            let now = self.now();
            let records = self.shared.records.lock().unwrap();
            let refused = settles.items().iter().any(|settle| {
                record::settle(records.get(&settle.key()), settle, now).outcome == SettleOutcome::Refused
            });
            if refused {
                return Ok(vec![SettleOutcome::Refused; settles.len()]);
            }
        }
        let outcomes = self.each(settles, |record, ask, now| self.settle_rule(record, ask, now))?;
        let deleted = settles.items().iter().filter(|settle| match settle.verdict {
            Verdict::Failed { .. } => self.has(Flaw::DeletesOnFailure),
            Verdict::Released => self.has(Flaw::DeletesOnRelease),
            _ => false,
        });
        for settle in deleted {
            self.shared.records.lock().unwrap().remove(&settle.key());
        }
        Ok(outcomes)
    }

    async fn extend(&self, claims: &Batch<Extend>) -> Result<Vec<ExtendOutcome>, StoreError> {
        self.each(claims, |record, ask, now| self.extend_rule(record, ask, now))
    }

    async fn get(&self, keys: &Batch<Key>) -> Result<Vec<Option<Record>>, StoreError> {
        let records = self.shared.records.lock().unwrap();
        Ok(keys.keys().map(|key| records.get(&self.key(key)).cloned()).collect())
    }

    async fn requeue(&self, keys: &Batch<Key>) -> Result<Vec<RequeueOutcome>, StoreError> {
        self.each(keys, |record, _, now| self.requeue_rule(record, now))
    }

    async fn purge(&self, limit: usize) -> Result<Purged, StoreError> {
        let now = self.now();
        let limit = if self.has(Flaw::PurgeIgnoresLimit) { usize::MAX } else { limit };
        let mut records = self.shared.records.lock().unwrap();
        let old = |record: &Record| match self.flaw {
            Flaw::PurgesEverything => true,
            Flaw::PurgesNothing => false,
            Flaw::PurgesRunningLeases => {
                !record.state.is_final() || record::after(record.state.time(), self.retention.of(record.state)) <= now
            }
            _ => record::after(record.state.time(), self.retention.of(record.state)) <= now,
        };
        let keys: Vec<Key> =
            records.iter().filter(|(_, record)| old(record)).map(|(key, _)| *key).take(limit).collect();
        for key in &keys {
            records.remove(key);
        }
        Ok(Purged::new(keys.len(), !keys.is_empty() && keys.len() == limit))
    }

    async fn ensure_schema(&self) -> Result<(), StoreError> {
        if self.has(Flaw::SchemaDropsRecords) {
            self.shared.records.lock().unwrap().clear();
        }
        Ok(())
    }

    async fn check(&self) -> Result<Report, StoreError> {
        Ok(Report::new())
    }
}
