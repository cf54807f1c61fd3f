//! How the Kafka thread hears of everything: one place where words for it are put, and one bell to wake it.

use std::fmt;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::committer::Answered;
use super::link::Request;

/// What the Kafka thread hears.
#[derive(Debug)]
pub(super) enum Word {
    /// The pump asks for something.
    Request(Request),
    /// The broker answered a commit.
    Committed(Answered),
}

#[derive(Default)]
struct State {
    words: Vec<Word>,
    rung: bool,
    waiting: bool,
}

impl State {
    fn is_over(&self) -> bool {
        self.rung || !self.words.is_empty()
    }
}

/// Rung by the pump when it asks for something, by the gate when there is room again, by librdkafka when messages have come, and by
/// whoever stops the consumer. Never once for each message: a wake-up costs more than a message.
#[derive(Default)]
pub(super) struct Bell {
    state: Mutex<State>,
    wake: Condvar,
}

impl fmt::Debug for Bell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Bell").finish_non_exhaustive()
    }
}

impl Bell {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing panics while it is held; were it so, the words would still be whole.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Wakes the Kafka thread, now or when it next waits.
    pub(super) fn ring(&self) {
        let mut state = self.lock();
        state.rung = true;
        self.wake(state);
    }

    /// Tells the Kafka thread something.
    pub(super) fn tell(&self, word: Word) {
        let mut state = self.lock();
        state.words.push(word);
        self.wake(state);
    }

    fn wake(&self, state: MutexGuard<'_, State>) {
        let wake = state.waiting;
        drop(state);
        if wake {
            self.wake.notify_one();
        }
    }

    /// Moves all words to `into`, which must be empty.
    pub(super) fn take(&self, into: &mut Vec<Word>) {
        std::mem::swap(&mut self.lock().words, into);
    }

    /// Waits, at most for `timeout`; not at all if there was a ring since the last wait, or a word is there. Answers whether it was so.
    pub(super) fn wait(&self, timeout: Duration) -> bool {
        let mut state = self.lock();
        state.waiting = true;
        let waited = self.wake.wait_timeout_while(state, timeout, |state| !state.is_over());
        let (mut state, _) = waited.unwrap_or_else(PoisonError::into_inner);
        let over = state.is_over();
        state.waiting = false;
        state.rung = false;
        over
    }
}
