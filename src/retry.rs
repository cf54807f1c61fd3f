//! When a failed attempt is tried again. Pure: no clock, no randomness of its own.

use std::num::NonZeroU32;
use std::time::Duration;

/// How often a message is tried, and how long to wait in between.
///
/// Attempts are counted by the store, before each run of the handler, and survive crashes and moves to another
/// member. A message whose attempts are used up is *dead*.
///
/// ```
/// use std::time::Duration;
/// use hapax::Retry;
///
/// let retry = Retry::exponential(Duration::from_millis(100)).max(Duration::from_secs(1)).attempts(5);
/// // The longest waits after attempts 1, 2, 3, 4, 5; full jitter takes any part of it.
/// let longest: Vec<u128> = (1..=5).map(|attempt| retry.delay(attempt, u64::MAX).as_millis()).collect();
/// assert_eq!(longest, [100, 200, 400, 800, 1000]);
/// assert_eq!(retry.delay(3, 0), Duration::ZERO);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retry {
    wait: Wait,
    max: Duration,
    attempts: NonZeroU32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wait {
    /// Not tried again in place.
    Never,
    Fixed(Duration),
    /// The first wait; the others double it.
    Doubling(Duration),
}

/// Attempts by default.
const ATTEMPTS: NonZeroU32 = NonZeroU32::MIN.saturating_add(7);
const LONGEST: Duration = Duration::from_secs(30);

impl Retry {
    /// Waits up to `base` after the first failed attempt, and up to twice as long after each further one: any
    /// part of that, at random (full jitter). Never more than [`max`](Self::max), 30 s by default; 8 attempts by default.
    #[must_use]
    pub const fn exponential(base: Duration) -> Self {
        Self { wait: Wait::Doubling(base), max: LONGEST, attempts: ATTEMPTS }
    }

    /// Waits equally long after each failed attempt, without jitter; 8 attempts by default.
    #[must_use]
    pub const fn fixed(delay: Duration) -> Self {
        Self { wait: Wait::Fixed(delay), max: Duration::MAX, attempts: ATTEMPTS }
    }

    /// Does not try again in place: the handler's error comes back at once, and whoever delivers the message again
    /// tries it again. Without a limit, unless [`attempts`](Self::attempts) sets one.
    #[must_use]
    pub const fn none() -> Self {
        Self { wait: Wait::Never, max: Duration::ZERO, attempts: NonZeroU32::MAX }
    }

    /// Sets how many attempts may begin before the message is dead. 0 counts as 1.
    ///
    /// An attempt that ended with the process counts as well. With 1, messages are claimed one at a time, since
    /// a crash would use up the only attempt of all that were claimed together.
    #[must_use]
    pub const fn attempts(mut self, attempts: u32) -> Self {
        self.attempts = match NonZeroU32::new(attempts) {
            Some(attempts) => attempts,
            None => NonZeroU32::MIN,
        };
        self
    }

    /// Sets the longest wait.
    #[must_use]
    pub const fn max(mut self, longest: Duration) -> Self {
        self.max = longest;
        self
    }

    /// How many attempts may begin.
    #[must_use]
    pub const fn max_attempts(&self) -> NonZeroU32 {
        self.attempts
    }

    /// Whether a failed message is tried again on the spot.
    #[must_use]
    pub const fn is_in_place(&self) -> bool {
        !matches!(self.wait, Wait::Never)
    }

    /// How long to wait after failed attempt number `attempt` (from 1). `random` is any number, evenly distributed.
    #[must_use]
    pub fn delay(&self, attempt: u32, random: u64) -> Duration {
        match self.wait {
            Wait::Never => Duration::ZERO,
            Wait::Fixed(delay) => delay.min(self.max),
            Wait::Doubling(base) => {
                let doublings = attempt.saturating_sub(1).min(31);
                let longest = base.saturating_mul(1 << doublings).min(self.max);
                share(longest, random)
            }
        }
    }
}

impl Default for Retry {
    /// `Retry::exponential` from 200 ms to 30 s, 8 attempts.
    fn default() -> Self {
        Self::exponential(Duration::from_millis(200))
    }
}

/// The part of a duration that `random` stands for: nothing at 0, all of it at the largest number.
pub(crate) fn share(whole: Duration, random: u64) -> Duration {
    let nanos = u64::try_from(whole.as_nanos()).unwrap_or(u64::MAX);
    let part = (u128::from(nanos) * (u128::from(random) + 1)) >> 64;
    Duration::from_nanos(u64::try_from(part).unwrap_or(nanos))
}

#[cfg(test)]
mod tests {
    use super::*;

    const BASE: Duration = Duration::from_millis(200);

    #[test]
    fn waits_double_up_to_the_longest() {
        let retry = Retry::exponential(BASE);
        let longest: Vec<u64> = (1..=10).map(|n| retry.delay(n, u64::MAX).as_millis() as u64).collect();
        assert_eq!(longest, [200, 400, 800, 1600, 3200, 6400, 12_800, 25_600, 30_000, 30_000]);
        assert_eq!(retry.delay(u32::MAX, u64::MAX), LONGEST);
        assert_eq!(retry.delay(0, u64::MAX), BASE);
    }

    #[test]
    fn jitter_takes_any_part() {
        let retry = Retry::exponential(BASE);
        assert_eq!(retry.delay(1, 0), Duration::ZERO);
        assert_eq!(retry.delay(1, u64::MAX / 2), BASE / 2);
        let delays: Vec<Duration> = (0..64_u64).map(|n| retry.delay(1, n << 58)).collect();
        assert!(delays.is_sorted() && delays.windows(2).all(|two| two[0] < two[1]), "{delays:?}");
    }

    #[test]
    fn fixed_has_no_jitter() {
        let retry = Retry::fixed(BASE).attempts(3);
        assert_eq!([retry.delay(1, 0), retry.delay(2, 7), retry.delay(3, u64::MAX)], [BASE; 3]);
        assert_eq!(retry.max_attempts().get(), 3);
    }

    #[test]
    fn none_never_waits_and_has_no_limit_but_a_given_one() {
        assert!(!Retry::none().is_in_place());
        assert_eq!(Retry::none().delay(1, u64::MAX), Duration::ZERO);
        assert_eq!(Retry::none().max_attempts(), NonZeroU32::MAX);
        assert_eq!(Retry::none().attempts(0).max_attempts(), NonZeroU32::MIN);
    }

    #[test]
    fn default_is_eight_attempts_from_200_ms() {
        assert_eq!(Retry::default(), Retry::exponential(BASE).attempts(8).max(Duration::from_secs(30)));
        assert!(Retry::default().is_in_place());
    }

    #[test]
    fn huge_durations_do_not_overflow() {
        let retry = Retry::exponential(Duration::MAX).max(Duration::MAX);
        assert!(retry.delay(40, u64::MAX) >= Duration::from_secs(1 << 33));
    }
}
