//! How the Kafka thread hears of everything: one place where lanes put reports, and one bell to wake it.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::lane::Report;

/// What the Kafka thread waits for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Wait {
    /// It does not wait.
    #[default]
    No,
    /// Messages, or to be told to stop. Reports can wait until it wakes.
    Ring,
    /// So many reports as well.
    Reports(usize),
}

#[derive(Default)]
struct State {
    reports: Vec<Report>,
    rung: bool,
    waiting: Wait,
}

impl State {
    fn is_over(&self) -> bool {
        self.rung || matches!(self.waiting, Wait::Reports(enough) if self.reports.len() >= enough)
    }
}

/// Rung by lanes that end, by librdkafka when messages have come, and by whoever stops the consumer.
#[derive(Default)]
pub(super) struct Bell {
    state: Mutex<State>,
    wake: Condvar,
}

impl Bell {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing panics while it is held; were it so, the reports would still be whole.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Wakes the Kafka thread, now or when it next waits.
    pub(super) fn ring(&self) {
        let mut state = self.lock();
        state.rung = true;
        self.wake(state);
    }

    /// Hands a report over. That alone wakes the Kafka thread only where it waits for reports: a wake-up for each
    /// message would cost more than the message.
    pub(super) fn report(&self, report: Report) {
        let mut state = self.lock();
        if !matches!(report, Report::Finished { .. }) {
            state.rung = true;
        }
        state.reports.push(report);
        self.wake(state);
    }

    fn wake(&self, state: MutexGuard<'_, State>) {
        let wake = state.waiting != Wait::No && state.is_over();
        drop(state);
        if wake {
            self.wake.notify_one();
        }
    }

    /// Moves all reports to `into`, which must be empty.
    pub(super) fn take(&self, into: &mut Vec<Report>) {
        std::mem::swap(&mut self.lock().reports, into);
    }

    /// Waits, at most for `timeout`; not at all if there was a ring since the last wait.
    pub(super) fn wait(&self, what: Wait, timeout: Duration) {
        let mut state = self.lock();
        state.waiting = what;
        let waited = self.wake.wait_timeout_while(state, timeout, |state| !state.is_over());
        let (mut state, _) = waited.unwrap_or_else(PoisonError::into_inner);
        state.waiting = Wait::No;
        state.rung = false;
    }
}
