//! What the log is told of trouble: when it begins, once in a while as long as it lasts, and when it is over.

use std::time::{Duration, Instant};

use tracing::{debug, info, warn};

use super::slab::Entry;
use crate::consumer::letter::clean;
use crate::store::StoreError;

/// How often trouble that lasts is told again.
const AGAIN: Duration = Duration::from_secs(30);
/// Messages given up that are told one by one, in that time.
const EACH: u32 = 20;
/// Bytes of a handler's error that are told.
const TEXT: usize = 512;

/// What was said, and is not said again at once.
#[derive(Debug, Default)]
pub(super) struct Said {
    store: Outage,
    needs: Outage,
    dead: Dead,
}

/// Something that is down, as far as it was told.
#[derive(Debug, Default)]
struct Outage {
    since: Option<Instant>,
    said: Option<Instant>,
}

impl Outage {
    /// Whether this failure is to be told.
    fn fails(&mut self, now: Instant) -> bool {
        self.since.get_or_insert(now);
        let due = self.said.is_none_or(|said| now.saturating_duration_since(said) >= AGAIN);
        if due {
            self.said = Some(now);
        }
        due
    }

    /// For how long it was down, if that was told and is over now.
    fn answers(&mut self, now: Instant) -> Option<Duration> {
        let since = self.since.take()?;
        // What was not told to be down need not be told to be back.
        self.said.is_some_and(|said| said >= since).then(|| now.saturating_duration_since(since))
    }
}

#[derive(Debug, Default)]
struct Dead {
    since: Option<Instant>,
    told: u32,
    untold: u64,
}

impl Dead {
    /// Whether one more is to be told; then with how many were not, before it.
    fn one(&mut self, now: Instant) -> Option<u64> {
        if self.since.is_none_or(|since| now.saturating_duration_since(since) >= AGAIN) {
            (self.since, self.told) = (Some(now), 0);
        }
        if self.told >= EACH {
            self.untold += 1;
            return None;
        }
        self.told += 1;
        Some(std::mem::take(&mut self.untold))
    }
}

impl Said {
    /// The store could not be asked; it is asked again, unless it refuses, which ends the consumer.
    pub(super) fn store_failed(&mut self, error: &StoreError) {
        if !error.is_retryable() {
            return;
        }
        if self.store.fails(Instant::now()) {
            warn!(%error, "the store is away: everything waits for it, and it is asked again");
        } else {
            debug!(%error, "the store is away");
        }
    }

    /// The store answered.
    #[inline]
    pub(super) fn store_answered(&mut self) {
        if self.store.since.is_some()
            && let Some(away) = self.store.answers(Instant::now())
        {
            info!(?away, "the store answers again");
        }
    }

    /// A handler said that what it needs is away, or the database that it writes in is.
    pub(super) fn needs_failed(&mut self, error: &str) {
        let error = clean(error, TEXT);
        if self.needs.fails(Instant::now()) {
            warn!(error, "what the handlers need is away: everything waits for it, and it is tried again");
        } else {
            debug!(error, "what the handlers need is away");
        }
    }

    /// A handler succeeded.
    #[inline]
    pub(super) fn needs_answered(&mut self) {
        if self.needs.since.is_some()
            && let Some(away) = self.needs.answers(Instant::now())
        {
            info!(?away, "what the handlers need is back");
        }
    }

    /// A message is dead.
    pub(super) fn given_up<S>(&mut self, entry: &Entry<S>) {
        let message = &entry.message;
        let (topic, partition, offset) = (message.topic(), message.partition(), message.offset());
        let last = entry.trouble.as_deref().map(|trouble| clean(&trouble.last.text, TEXT));
        let Some(untold) = self.dead.one(Instant::now()) else {
            debug!(topic, partition, offset, "given up");
            return;
        };
        let untold = (untold > 0).then_some(untold);
        match last {
            Some(error) => warn!(topic, partition, offset, attempts = entry.attempt, error, untold, "given up"),
            None => warn!(topic, partition, offset, untold, "given up: it was dead before, or may not be handled"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn an_outage_is_told_when_it_begins_now_and_then_and_when_it_is_over() {
        let (mut outage, began) = (Outage::default(), Instant::now());
        assert_eq!(outage.answers(began), None, "it was never away");
        assert!(outage.fails(began));
        for at in 1..30 {
            assert!(!outage.fails(began + SECOND * at), "after {at} s");
        }
        assert!(outage.fails(began + AGAIN));
        assert_eq!(outage.answers(began + SECOND * 40), Some(SECOND * 40));
        assert_eq!(outage.answers(began + SECOND * 41), None);
    }

    #[test]
    fn what_comes_and_goes_is_not_told_each_time() {
        let (mut outage, began) = (Outage::default(), Instant::now());
        assert!(outage.fails(began));
        assert!(outage.answers(began + SECOND).is_some());
        for at in 2..30 {
            assert!(!outage.fails(began + SECOND * at));
            assert_eq!(outage.answers(began + SECOND * at), None);
        }
        assert!(outage.fails(began + AGAIN));
    }

    #[test]
    fn of_many_dead_messages_the_first_are_told_and_the_others_counted() {
        let (mut dead, began) = (Dead::default(), Instant::now());
        assert!((0..EACH).all(|_| dead.one(began) == Some(0)));
        assert!((0..7).all(|_| dead.one(began + SECOND).is_none()));
        assert_eq!(dead.one(began + AGAIN), Some(7));
        assert_eq!(dead.one(began + AGAIN), Some(0));
    }
}
