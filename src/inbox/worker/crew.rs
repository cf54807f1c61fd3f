//! What all runs of a worker share, and what a run reports.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::inbox::queue::{End, How, Run, Taken};
use crate::inbox::rules::Class;
use crate::observe::{
    Endings, Observed, Observer, Operation, Outcome, Place, Process, Run as Ran, SPAN_TARGET, Settles, Worked,
};
use crate::retry::Retry;
use crate::transaction::Why;
use crate::wrapper::{ErrorClass, Failure, HandlerError};

/// Bytes of an error's text that are kept.
const TEXT: usize = 1024;

/// What handlers run under.
#[derive(Clone)]
pub(super) struct Crew {
    pub(super) group: Arc<str>,
    pub(super) retry: Retry,
    pub(super) handler_timeout: Option<Duration>,
    pub(super) observers: Arc<[Box<dyn Observer>]>,
}

impl fmt::Debug for Crew {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Crew").field("group", &self.group).field("retry", &self.retry).finish_non_exhaustive()
    }
}

/// How those in hand are told to end.
#[derive(Clone, Debug)]
pub(super) struct Halt {
    /// Begin nothing more: what runs goes on.
    pub(super) begin_none: CancellationToken,
    /// Drop what runs.
    pub(super) abort: CancellationToken,
}

/// What a run came to.
#[derive(Clone, Debug, Default)]
pub(super) struct Report {
    /// Messages whose handler was called.
    pub(super) called: usize,
    pub(super) succeeded: u64,
    /// Succeeded after the run was taken over.
    pub(super) late: u64,
    /// Attempts that failed, those of the dead among them.
    pub(super) failed: u64,
    pub(super) dead: u64,
    pub(super) released: u64,
    /// Messages that somebody else has by now: their lease ran out.
    pub(super) lost: u64,
    /// What became of them the database could not be told.
    pub(super) unsettled: u64,
    /// A handler said that what it needs is down.
    pub(super) down: bool,
    /// A handler ended otherwise.
    pub(super) up: bool,
    /// For observers: handler calls,
    pub(super) calls: Vec<Told>,
    /// and how messages finished.
    pub(super) finished: Vec<(Arc<str>, i32, Endings)>,
}

/// A handler call, for observers.
#[derive(Clone, Debug)]
pub(super) struct Told {
    pub(super) topic: Arc<str>,
    pub(super) partition: i32,
    pub(super) messages: u64,
    pub(super) attempt: u32,
    pub(super) outcome: Outcome,
    pub(super) took: Duration,
}

impl Report {
    /// Notes what was written.
    pub(super) fn finished(&mut self, crew: &Crew, run: &Run, end: &End) {
        let mut endings = Endings::default();
        match end.how {
            How::Succeeded => {
                self.succeeded += 1;
                endings.handled += 1;
            }
            How::Failed { .. } => self.failed += 1,
            How::Dead { .. } => {
                self.failed += 1;
                self.dead += 1;
                endings.dead += 1;
            }
            How::Released => self.released += 1,
        }
        if endings == Endings::default() || !crew.is_watched() {
            return;
        }
        let Some(message) = run.taken.get(end.at).map(|taken| &taken.message) else { return };
        let (topic, partition) = (message.topic(), message.partition());
        match self.finished.iter_mut().find(|(own, at, _)| *at == partition && &**own == topic) {
            Some((.., counts)) => *counts += endings,
            None => self.finished.push((topic.into(), partition, endings)),
        }
    }
}

impl Crew {
    pub(super) fn is_watched(&self) -> bool {
        !self.observers.is_empty()
    }

    pub(super) fn tell(&self, event: &Observed<'_>) {
        self.observers.iter().for_each(|observer| observer.on(event));
    }

    /// The span that a call runs in.
    pub(super) fn span(&self, process: &Process<'_>) -> tracing::Span {
        let own = self.observers.iter().find_map(|observer| observer.span(process));
        own.unwrap_or_else(|| process.span())
    }

    /// Whether a call needs a span at all.
    pub(super) fn wants_spans(&self) -> bool {
        self.is_watched() || tracing::enabled!(target: SPAN_TARGET, tracing::Level::DEBUG)
    }

    pub(super) fn told(&self, taken: &Taken, messages: usize, outcome: Outcome, took: Duration) -> Option<Told> {
        self.is_watched().then(|| Told {
            topic: taken.message.topic().into(),
            partition: taken.message.partition(),
            messages: messages as u64,
            attempt: taken.attempt,
            outcome,
            took,
        })
    }

    /// Tells observers of calls.
    fn tell_calls(&self, calls: &[Told]) {
        if calls.is_empty() {
            return;
        }
        let calls: Vec<Ran<'_>> = calls
            .iter()
            .map(|call| Ran {
                place: Place { topic: &call.topic, partition: call.partition },
                messages: call.messages,
                attempt: call.attempt,
                outcome: call.outcome,
                took: call.took,
            })
            .collect();
        self.tell(&Observed::Ran(&calls));
    }

    /// Tells observers what a run came to.
    pub(super) fn tell_report(&self, report: &Report, took: Duration) {
        if !self.is_watched() {
            return;
        }
        self.tell_calls(&report.calls);
        let answers = Settles {
            recorded: report.succeeded + report.failed - report.dead + report.released - report.late,
            buried: report.dead,
            late: report.late,
            refused: report.lost,
        };
        if answers.total() > 0 {
            self.tell(&Observed::Settled { answers, took });
        }
        let worked = Worked {
            succeeded: report.succeeded - report.late,
            late: report.late,
            failed: report.failed - report.dead,
            dead: report.dead,
            released: report.released,
            lost: report.lost,
            unsettled: report.unsettled,
            ..Worked::default()
        };
        if worked.total() > 0 {
            self.tell(&Observed::Worked(worked));
        }
        for (topic, partition, counts) in &report.finished {
            self.tell(&Observed::Finished { place: Place { topic, partition: *partition }, counts: *counts });
        }
        if report.unsettled > 0 {
            self.tell(&Observed::StoreFailed { operation: Operation::Settle, messages: report.unsettled, took });
        }
    }

    /// What becomes of a message whose handler was dropped outside of a transaction.
    pub(super) fn aborted(&self, attempt: u32) -> How {
        let (class, text) = (Class::Lost, "the worker ended before the handler did".to_owned());
        match attempt >= self.retry.max_attempts().get() {
            true => How::Dead { class, text },
            false => How::Failed { class, text, retry_in: Duration::ZERO },
        }
    }

    /// What becomes of a message whose attempt failed.
    pub(super) fn how<E: HandlerError>(&self, attempt: u32, why: &Why<E>, random: u64) -> How {
        let class = class_of(why);
        let text = text_of(why);
        if class == Class::Fatal || attempt >= self.retry.max_attempts().get() {
            return How::Dead { class, text };
        }
        How::Failed { class, text, retry_in: self.retry.delay(attempt, random) }
    }
}

fn class_of<E: HandlerError>(why: &Why<E>) -> Class {
    match why {
        Why::Handler(Failure::Panicked(_)) => Class::Panic,
        Why::Handler(Failure::TimedOut(_)) => Class::Timeout,
        other => match other.class() {
            ErrorClass::Fatal => Class::Fatal,
            ErrorClass::Unavailable => Class::Unavailable,
            ErrorClass::Retryable => Class::Retryable,
        },
    }
}

/// What the history says of it, capped.
fn text_of<E: HandlerError>(why: &Why<E>) -> String {
    let mut text = match why {
        Why::Handler(failure) => failure.to_string(),
        Why::Misused(misuse) => misuse.to_string(),
    };
    text.truncate(text.floor_char_boundary(TEXT));
    text
}

/// How a call ended, for observers.
pub(super) fn outcome_of<E: HandlerError>(failure: &Failure<E>) -> Outcome {
    match failure {
        Failure::Panicked(_) => Outcome::Panicked,
        Failure::TimedOut(_) => Outcome::TimedOut,
        Failure::Error(error) => match error.class() {
            ErrorClass::Fatal => Outcome::Fatal,
            ErrorClass::Unavailable => Outcome::Unavailable,
            ErrorClass::Retryable => Outcome::Failed,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::transaction::Misuse;
    use crate::wrapper::Fatal;

    fn crew() -> Crew {
        Crew {
            group: "g".into(),
            retry: Retry::fixed(Duration::from_millis(7)).attempts(3),
            handler_timeout: None,
            observers: Vec::new().into(),
        }
    }

    #[test]
    fn attempts_are_used_up_and_what_is_fatal_is_dead_at_once() {
        let error = || Why::<String>::Handler(Failure::Error("x".into()));
        let How::Failed { class, text, retry_in } = crew().how(2, &error(), 0) else { panic!("there is one left") };
        assert_eq!((class, &*text, retry_in.as_millis()), (Class::Retryable, "x", 7));
        assert!(matches!(crew().how(3, &error(), 0), How::Dead { class: Class::Retryable, .. }));
        let fatal = Why::Handler(Failure::Error(Fatal::new("y")));
        assert!(matches!(crew().how(1, &fatal, 0), How::Dead { class: Class::Fatal, .. }));
        let misused = Why::<String>::Misused(Misuse::Ended);
        assert!(matches!(crew().how(1, &misused, 0), How::Dead { class: Class::Fatal, .. }));
        let panicked = Why::<String>::Handler(Failure::Panicked("ö".repeat(2000)));
        let How::Failed { class, text, .. } = crew().how(1, &panicked, 0) else { panic!("it may succeed later") };
        assert!(class == Class::Panic && text.len() <= TEXT);
    }
}
