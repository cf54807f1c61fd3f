//! Words that come again and again are said once in a while.

use std::collections::HashMap;
use std::fmt::Display;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use tracing::{debug, warn};

/// For how long the same words are not said again.
const AGAIN: Duration = Duration::from_secs(30);
/// Different words that are remembered.
const KEPT: usize = 32;

/// Keeps the log readable while something is away: librdkafka says so ten times a second.
#[derive(Debug, Default)]
pub(super) struct Hush(Mutex<HashMap<String, Said>>);

#[derive(Debug)]
struct Said {
    at: Instant,
    /// How often the words came since, unsaid.
    unsaid: u64,
}

impl Hush {
    /// Whether these words are to be said: then with how often they came unsaid.
    pub(super) fn hear(&self, words: &str, now: Instant) -> Option<u64> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(said) = all.get_mut(words) {
            if now.saturating_duration_since(said.at) < AGAIN {
                said.unsaid += 1;
                return None;
            }
            said.at = now;
            return Some(std::mem::take(&mut said.unsaid));
        }
        if all.len() >= KEPT {
            all.retain(|_, said| now.saturating_duration_since(said.at) < AGAIN);
            if all.len() >= KEPT {
                all.clear();
            }
        }
        all.insert(words.to_owned(), Said { at: now, unsaid: 0 });
        Some(0)
    }

    /// Says in the log what librdkafka reports; what it repeats, at level debug.
    pub(super) fn kafka(&self, error: &impl Display, reason: &str) {
        // How long it took is another number each time.
        let words = reason.split(" (after ").next().unwrap_or(reason);
        match self.hear(words, Instant::now()) {
            Some(0) => warn!(%error, "Kafka: {reason}"),
            Some(unsaid) => warn!(%error, unsaid, "Kafka: {reason}"),
            None => debug!(%error, "Kafka: {reason}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_words_are_said_once_in_a_while() {
        let (hush, began) = (Hush::default(), Instant::now());
        assert_eq!(hush.hear("away", began), Some(0));
        for at in 1..AGAIN.as_secs() {
            assert_eq!(hush.hear("away", began + Duration::from_secs(at)), None);
        }
        assert_eq!(hush.hear("gone", began + Duration::from_secs(1)), Some(0), "other words");
        assert_eq!(hush.hear("away", began + AGAIN), Some(AGAIN.as_secs() - 1), "and how often they were not");
        assert_eq!(hush.hear("away", began + AGAIN), None);
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let (hush, began) = (Hush::default(), Instant::now());
        for n in 0..10 * KEPT {
            assert_eq!(hush.hear(&format!("words {n}"), began), Some(0));
            assert!(hush.0.lock().expect("whole").len() <= KEPT);
        }
    }
}
