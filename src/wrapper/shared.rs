//! What all clones of one wrapper share, and how it talks to the store.

use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

use super::builder::{BuildError, Mode, Settings};
use super::claim::Hold;
use super::counts::Counters;
use super::keep::Kept;
use super::registry::Registry;
use super::renew::Renewal;
use super::seats::Next;
use crate::identity::{Encoder, Identify, Identity, IdentityError, Key, OnMissing, Scope, position};
use crate::message::MessageView;
use crate::record::{ClaimOutcome, Origin, Owner, Settle, SettleOutcome, Sighting, Terms, Verdict};
use crate::retry;
use crate::store::{Ask, Batch, DedupStore, Report, StoreError};

/// Messages that are claimed together at most.
pub(super) const CLAIMS: usize = 512;

pub(crate) struct Shared {
    pub(super) store: Box<dyn DedupStore>,
    pub(super) scope: Scope,
    pub(super) config: Settings,
    pub(super) terms: Terms,
    pub(super) report: Report,
    pub(super) registry: Registry,
    pub(super) renewal: Renewal,
    pub(super) counters: Counters,
    topics: Topics,
    random: AtomicU64,
}

/// What a message is to the store.
#[derive(Debug)]
pub(super) enum Subject {
    /// It has a record.
    Known(Sighting),
    /// It has none, for want of an identity or since nothing is remembered; the key is for the handler to hand on.
    Bare { key: Key, anonymous: bool },
}

type Answer<'a, O> = Pin<Box<dyn Future<Output = Result<Vec<O>, StoreError>> + Send + 'a>>;

impl Shared {
    pub(super) fn new(
        store: Box<dyn DedupStore>,
        scope: Scope,
        config: Settings,
        report: Report,
    ) -> Result<Self, BuildError> {
        let random = || getrandom::u64().map_err(|error| BuildError::Random(error.to_string()));
        let terms =
            Terms { owner: Owner::new(random()?), lease: config.lease, max_attempts: config.retry.max_attempts() };
        Ok(Self {
            store,
            scope,
            config,
            terms,
            report,
            registry: Registry::default(),
            renewal: Renewal::default(),
            counters: Counters::default(),
            topics: Topics::default(),
            random: AtomicU64::new(random()?),
        })
    }

    /// A random number, good enough to spread retries (SplitMix64).
    pub(super) fn random(&self) -> u64 {
        const STEP: u64 = 0x9e37_79b9_7f4a_7c15;
        let mut z = self.random.fetch_add(STEP, Ordering::Relaxed).wrapping_add(STEP);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// The name of a topic, allocated once.
    pub(super) fn topic(&self, name: &str) -> Arc<str> {
        self.topics.intern(name)
    }

    /// Where a message stood.
    pub(super) fn origin(&self, message: &dyn MessageView) -> Origin {
        Origin { topic: self.topic(message.topic()), partition: message.partition(), offset: message.offset() }
    }

    /// What a message is to the store, or why it is refused.
    pub(super) fn subject(&self, message: &dyn MessageView) -> Result<Subject, IdentityError> {
        self.subject_of(message, || self.topic(message.topic()))
    }

    /// The same; `topic` gives the name of the message's topic, where it is needed.
    pub(super) fn subject_of(
        &self,
        message: &dyn MessageView,
        topic: impl FnOnce() -> Arc<str>,
    ) -> Result<Subject, IdentityError> {
        // The identity is hashed where it was written: several hundred bytes would be moved otherwise.
        let mut identity = Encoder::new();
        let key = self.config.identify.identify(message, &mut identity);
        let key = key.and_then(|()| Ok(self.scope.key_of_encoded(identity.encoded()?, message.topic())));
        match key {
            Ok(key) => {
                if self.config.mode == Mode::AtLeastOnce {
                    return Ok(Subject::Bare { key, anonymous: false });
                }
                let fingerprint = self.scope.fingerprint(&self.config.fingerprint, message);
                let origin = Origin { topic: topic(), partition: message.partition(), offset: message.offset() };
                Ok(Subject::Known(Sighting { key, fingerprint, origin }))
            }
            Err(error) => {
                let remembers = self.config.mode != Mode::AtLeastOnce;
                if remembers && self.config.on_missing == OnMissing::Reject {
                    return Err(error);
                }
                Ok(Subject::Bare { key: self.key_by_position(message), anonymous: true })
            }
        }
    }

    /// What a call is to the store.
    pub(super) fn subject_of_call(&self, identity: &Identity, payload: &[u8]) -> Subject {
        let key = self.scope.key_of(identity);
        if self.config.mode == Mode::AtLeastOnce {
            return Subject::Bare { key, anonymous: false };
        }
        let fingerprint = self.scope.fingerprint_of(Some(payload));
        Subject::Known(Sighting { key, fingerprint, origin: Origin::default() })
    }

    fn key_by_position(&self, message: &dyn MessageView) -> Key {
        match position().identity(message) {
            Ok(identity) => self.scope.key(&identity, message.topic()),
            Err(_) => {
                let halves = [self.random(), self.random()];
                Key::from_bytes((u128::from(halves[0]) << 64 | u128::from(halves[1])).to_be_bytes())
            }
        }
    }

    /// The verdict on a failed attempt that may be tried again.
    pub(super) fn failed(&self, attempt: u32) -> Verdict {
        let retry_in = self.config.retry.delay(attempt, self.random());
        Verdict::Failed { retry_in, max_attempts: self.terms.max_attempts }
    }

    /// What follows a failed attempt.
    pub(super) fn next(&self, attempt: u32, fatal: bool, taken: bool, pause: Duration) -> Next {
        if !taken && (fatal || attempt >= self.terms.max_attempts.get()) {
            self.counters.dead.one();
            Next::Dead { attempts: attempt }
        } else if self.config.retry.is_in_place() {
            Next::Again(pause)
        } else if taken {
            Next::Lost
        } else {
            Next::GivenBack
        }
    }

    /// The verdict on a success, with what is kept of its result.
    pub(super) fn succeeded<T: Kept>(&self, value: &T) -> Verdict {
        Verdict::Succeeded { result: self.config.keep_results.and_then(|cap| self.kept(value.to_kept()?, cap)) }
    }

    fn kept(&self, result: Bytes, cap: usize) -> Option<Bytes> {
        if result.len() > cap {
            self.counters.results_dropped.one();
            tracing::debug!(bytes = result.len(), cap, "a result is too large to be kept");
            return None;
        }
        Some(result)
    }

    /// Renews these claims from now on.
    pub(super) fn watch(self: &Arc<Self>, hold: &Arc<Hold>) {
        self.renewal.watch(self, hold);
    }

    /// Leaves these ends to be told to the store, soon and before anything else about their messages.
    pub(super) fn owe(self: &Arc<Self>, settles: Vec<Settle>) {
        self.registry.owe(settles);
        self.renewal.nudge(self);
    }

    /// Claims a batch. Answers in the batch's order.
    pub(super) async fn claim(&self, asks: &Batch<Ask>, patience: Duration) -> Result<Vec<ClaimOutcome>, StoreError> {
        self.ask("claim", asks.len(), patience, || self.store.claim(&self.terms, asks)).await
    }

    /// Settles a batch. Answers in the batch's order.
    pub(super) async fn settle(
        &self,
        settles: &Batch<Settle>,
        patience: Duration,
    ) -> Result<Vec<SettleOutcome>, StoreError> {
        self.ask("settle", settles.len(), patience, || self.store.settle(settles)).await
    }

    /// Tells the store what is owed, `first` before all. `Ok(false)` if there was nothing to tell.
    pub(super) async fn tell_debts(&self, first: Option<Key>, patience: Duration) -> Result<bool, StoreError> {
        let Some(telling) = self.registry.tell(first, CLAIMS) else { return Ok(false) };
        let outcomes = self.settle(&telling.batch, patience).await?;
        let count = |wanted: SettleOutcome| outcomes.iter().filter(|outcome| **outcome == wanted).count() as u64;
        self.counters.late.add(count(SettleOutcome::Late));
        self.counters.refused.add(count(SettleOutcome::Refused));
        self.counters.dead.add(count(SettleOutcome::Buried));
        tracing::debug!(claims = outcomes.len(), "told the store how claims had ended");
        telling.heard();
        Ok(true)
    }

    /// Asks until there is an answer, the store refuses, or so much time has passed.
    async fn ask<'a, O>(
        &'a self,
        operation: &'static str,
        expected: usize,
        patience: Duration,
        call: impl Fn() -> Answer<'a, O>,
    ) -> Result<Vec<O>, StoreError> {
        let began = Instant::now();
        let mut failures = 0;
        loop {
            let error = match self.once(operation, expected, call()).await {
                Ok(answers) => return Ok(answers),
                Err(error) => error,
            };
            self.counters.store_failures.one();
            let delay = pause(failures, self.random());
            failures += 1;
            tracing::debug!(operation, failures, error = %error, "the store failed");
            if !error.is_retryable() {
                return Err(error);
            }
            if began.elapsed() + delay >= patience {
                return Err(error);
            }
            tokio::time::sleep(delay).await;
        }
    }

    /// Asks once. A store that does not answer within a lease counts as not reached: a claim would have run out by then.
    pub(super) async fn once<O>(
        &self,
        operation: &'static str,
        expected: usize,
        call: Answer<'_, O>,
    ) -> Result<Vec<O>, StoreError> {
        let name = self.store.describe().store;
        match tokio::time::timeout(self.terms.lease, call).await {
            Ok(Ok(answers)) if answers.len() == expected => Ok(answers),
            Ok(Ok(answers)) => {
                let message = format!("it answered {} of {expected} items", answers.len());
                Err(StoreError::corrupt(name, operation, message))
            }
            Ok(Err(error)) => Err(error),
            Err(_) => Err(StoreError::unavailable(name, operation, "it did not answer within a lease")),
        }
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.renewal.end();
        let (handled, claims) = self.registry.debts();
        if !handled.is_empty() || claims > 0 {
            tracing::warn!(handled = handled.len(), claims, "dropped with ends that the store has not heard of");
        }
    }
}

/// The wait after that many failures in a row: 50 ms doubling to 2 s, at least half of it.
pub(crate) fn pause(failures: u32, random: u64) -> Duration {
    let longest = Duration::from_millis(50).saturating_mul(1 << failures.min(10)).min(Duration::from_secs(2));
    longest / 2 + retry::share(longest / 2, random)
}

/// Topic names, each allocated once.
#[derive(Debug, Default)]
pub(crate) struct Topics(RwLock<Vec<Arc<str>>>);

impl Topics {
    /// More are not kept: a consumer reads few topics.
    const KEPT: usize = 256;

    pub(crate) fn intern(&self, name: &str) -> Arc<str> {
        let find = |topics: &[Arc<str>]| topics.iter().find(|topic| &***topic == name).cloned();
        if let Some(topic) = find(&self.0.read().unwrap_or_else(PoisonError::into_inner)) {
            return topic;
        }
        let mut topics = self.0.write().unwrap_or_else(PoisonError::into_inner);
        find(&topics).unwrap_or_else(|| {
            let topic: Arc<str> = name.into();
            if topics.len() < Self::KEPT {
                topics.push(Arc::clone(&topic));
            }
            topic
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn topics_are_allocated_once() {
        let topics = Topics::default();
        let first = topics.intern("orders");
        assert!(Arc::ptr_eq(&first, &topics.intern("orders")));
        for n in 0..2 * Topics::KEPT {
            topics.intern(&n.to_string());
        }
        assert_eq!(topics.0.read().unwrap().len(), Topics::KEPT);
        assert_eq!(&*topics.intern("late"), "late");
    }

    #[test]
    fn pauses_double_and_keep_half() {
        assert_eq!(pause(0, 0), Duration::from_millis(25));
        assert_eq!(pause(0, u64::MAX), Duration::from_millis(50));
        assert_eq!(pause(2, u64::MAX), Duration::from_millis(200));
        assert_eq!(pause(99, u64::MAX), Duration::from_secs(2));
    }
}
