//! One look at a handler call: its span, and how it ended.

use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures_util::FutureExt as _;
use tracing::{Instrument, Span};

use super::Probe;
use crate::ErrorClass;
use crate::consumer::handling::{Few, Handed};
use crate::consumer::message::Message;
use crate::observe::{Outcome, Place, Process, Run};
use crate::wrapper::drive::Ended;

impl Probe {
    /// A look at a handler call that is about to begin; at nothing, where nobody looks.
    #[inline]
    pub(in crate::consumer) fn sight(&self, messages: &Few<Handed>) -> Sight {
        if self.is_on() || Process::is_enabled() { self.make_sight(messages) } else { Sight(None) }
    }

    #[cold]
    fn make_sight(&self, messages: &Few<Handed>) -> Sight {
        let (first, count) = match messages {
            Few::One(one) => (one, 1),
            Few::Many(many) => match many.first() {
                Some(first) => (first, many.len()),
                None => return Sight(None),
            },
        };
        let Handed { message, claim, .. } = first;
        let key = claim.idempotency_key();
        let mut process = Process::new(&self.group, message, claim.attempt()).messages(count);
        if self.keyed {
            process = process.idempotency_key(&key);
        }
        let span = self.observers.iter().find_map(|observer| observer.span(&process)).unwrap_or_else(|| process.span());
        let record = self.is_on().then(|| RunRecord {
            message: message.clone(),
            messages: count as u64,
            attempt: claim.attempt(),
            outcome: Outcome::Aborted,
            took: Duration::ZERO,
        });
        Sight(Some(Box::new(Seen { span, began: Instant::now(), record, runs: Arc::clone(&self.runs) })))
    }
}

/// A look at a handler call.
pub(in crate::consumer) struct Sight(pub(super) Option<Box<Seen>>);

pub(super) struct Seen {
    pub(super) span: Span,
    began: Instant,
    record: Option<RunRecord>,
    runs: Arc<Mutex<Vec<RunRecord>>>,
}

impl Sight {
    /// Awaits the handler inside of its span, and notes how it ends. Made of combinators: an `async fn` would keep room for it twice.
    pub(in crate::consumer) fn at(self, running: impl Future<Output = Few<Ended>>) -> impl Future<Output = Few<Ended>> {
        let span = self.0.as_ref().map_or_else(Span::none, |seen| seen.span.clone());
        running.instrument(span).inspect(move |ended| {
            if let Some(mut seen) = self.0 {
                seen.ended(ended);
            }
        })
    }
}

impl Seen {
    fn ended(&mut self, ended: &Few<Ended>) {
        let outcome = match ended {
            Few::One(one) => outcome(one),
            Few::Many(many) => {
                many.iter().map(outcome).find(|own| *own != Outcome::Succeeded).unwrap_or(Outcome::Succeeded)
            }
        };
        Process::ended(&self.span, outcome);
        if let Some(record) = &mut self.record {
            record.outcome = outcome;
        }
    }
}

impl Drop for Seen {
    /// However the call ended: dropped where it waited, it was aborted.
    fn drop(&mut self) {
        let Some(mut record) = self.record.take() else { return };
        record.took = self.began.elapsed();
        self.runs.lock().unwrap_or_else(PoisonError::into_inner).push(record);
    }
}

fn outcome(ended: &Ended) -> Outcome {
    match ended {
        // What was not handled has not failed either.
        Ended::Succeeded(_) | Ended::Finished(_) | Ended::Answered(_) | Ended::Fenced(_) | Ended::NotBegun => {
            Outcome::Succeeded
        }
        Ended::Unknown(_) => Outcome::Unavailable,
        Ended::Failed(fault) => match (fault.kind, fault.class) {
            ("panic", _) => Outcome::Panicked,
            ("timeout", _) => Outcome::TimedOut,
            (_, ErrorClass::Retryable) => Outcome::Failed,
            (_, ErrorClass::Fatal) => Outcome::Fatal,
            (_, ErrorClass::Unavailable) => Outcome::Unavailable,
        },
    }
}

/// A handler call that ended.
pub(super) struct RunRecord {
    message: Message,
    messages: u64,
    attempt: u32,
    outcome: Outcome,
    took: Duration,
}

impl RunRecord {
    pub(super) fn told(&self) -> Run<'_> {
        let Self { message, messages, attempt, outcome, took } = self;
        Run { place: place(message), messages: *messages, attempt: *attempt, outcome: *outcome, took: *took }
    }
}

pub(super) fn place(message: &Message) -> Place<'_> {
    Place { topic: message.topic(), partition: message.partition() }
}
