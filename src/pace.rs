//! How far to claim ahead, and how long to leave alone what is down.

use std::time::Duration;

use crate::retry::share;

/// Time since whatever counts as the beginning.
type Time = Duration;

/// How many messages to claim beyond what free handlers can start: as many as handlers get through in a quarter of a second, so that no claim
/// ages under its lease behind slow handlers.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pace {
    ahead: usize,
    most: usize,
}

impl Default for Pace {
    fn default() -> Self {
        Self::new(512)
    }
}

impl Pace {
    const FIRST: usize = 32;
    pub(crate) const WINDOW: Duration = Duration::from_millis(250);

    pub(crate) fn new(most: usize) -> Self {
        Self { ahead: Self::FIRST.min(most), most }
    }

    pub(crate) const fn ahead(&self) -> usize {
        self.ahead
    }

    /// Notes that a chain of `count` messages took so long, with `parallel` of them side by side. Grows to four times at most.
    pub(crate) fn ran(&mut self, count: u32, took: Duration, parallel: usize) {
        if count == 0 {
            return;
        }
        let each = (took.as_nanos() / u128::from(count)).max(1);
        let fit = Self::WINDOW.as_nanos().saturating_mul(parallel.max(1) as u128) / each;
        let fit = usize::try_from(fit).unwrap_or(usize::MAX);
        self.ahead = fit.min((self.ahead * 4).max(4)).min(self.most);
    }
}

/// What is down is left alone for a while, longer each time, then tried with one message.
#[derive(Debug, Default)]
pub(crate) struct Breaker {
    failures: u32,
    until: Time,
}

impl Breaker {
    const FIRST: Duration = Duration::from_millis(50);
    const LONGEST: Duration = Duration::from_secs(2);

    /// Notes a failure. Answers how long to wait: 50 ms doubling to 2 s, at least half of it. What fails while it is left alone was begun
    /// before: the messages of one batch are one failure.
    pub(crate) fn fail(&mut self, now: Time, random: u64) -> Duration {
        if self.is_open(now) {
            return self.until.saturating_sub(now);
        }
        let longest = Self::FIRST.saturating_mul(1 << self.failures.min(10)).min(Self::LONGEST);
        let wait = longest / 2 + share(longest / 2, random);
        self.failures = self.failures.saturating_add(1);
        self.until = self.until.max(now + wait);
        wait
    }

    /// Notes that it is back.
    pub(crate) fn succeed(&mut self) {
        self.failures = 0;
    }

    /// Whether the last try failed.
    pub(crate) const fn is_tripped(&self) -> bool {
        self.failures > 0
    }

    /// Whether to leave it alone for now.
    pub(crate) fn is_open(&self, now: Time) -> bool {
        self.failures > 0 && now < self.until
    }

    /// Until when it was to be left alone.
    pub(crate) const fn until(&self) -> Time {
        self.until
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slow_handlers_leave_nothing_claimed_ahead() {
        let mut pace = Pace::new(512);
        assert_eq!(pace.ahead(), 32);
        pace.ran(1, Duration::from_secs(10), 1);
        assert_eq!(pace.ahead(), 0);
        pace.ran(1, Duration::from_micros(1), 1);
        assert_eq!(pace.ahead(), 4);
        for _ in 0..8 {
            pace.ran(100, Duration::from_micros(100), 1);
        }
        assert_eq!(pace.ahead(), 512);
        pace.ran(1, Duration::from_millis(10), 4);
        assert_eq!(pace.ahead(), 100);
    }

    #[test]
    fn waits_double_to_two_seconds() {
        let mut breaker = Breaker::default();
        assert!(!breaker.is_tripped() && !breaker.is_open(Time::ZERO));
        assert_eq!(breaker.fail(Time::ZERO, 0), Duration::from_millis(25));
        assert!(breaker.is_open(Duration::from_millis(24)) && breaker.until() == Duration::from_millis(25));
        assert!(!breaker.is_open(Duration::from_millis(25)) && breaker.is_tripped());
        for _ in 0..20 {
            breaker.fail(breaker.until(), u64::MAX);
        }
        let now = breaker.until();
        assert_eq!(breaker.fail(now, u64::MAX), Duration::from_secs(2));
        assert_eq!(breaker.fail(now + Duration::from_secs(1), 0), Duration::from_secs(1), "the same one");
        assert_eq!(breaker.until(), now + Duration::from_secs(2));
        breaker.succeed();
        assert!(!breaker.is_tripped());
    }
}
