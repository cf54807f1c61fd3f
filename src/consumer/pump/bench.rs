//! Where handlers are polled for the first time, and what takes them along where they wait.

use std::collections::VecDeque;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use tokio::sync::mpsc;

use super::Report;
use crate::consumer::handling::{Few, Handed};
use crate::engine::Ticket;
use crate::wrapper::drive::{Ended, Fault};

/// A place for one running handler, used again and again.
pub(super) type Cell<Fut> = Pin<Box<Option<Fut>>>;

/// Polls handlers once, in the pump's own task: one that does not wait costs no task, no wake-up and no allocation.
pub(super) struct Bench<R, Fut> {
    /// Shared with the tasks: one count for each, however much it holds.
    run: Arc<R>,
    cell: Cell<Fut>,
}

impl<R, Fut> Bench<R, Fut>
where
    R: Fn(Few<Handed>) -> Fut,
    Fut: Future<Output = Few<Ended>>,
{
    pub(super) fn new(run: R) -> Self {
        Self { run: Arc::new(run), cell: Box::pin(None) }
    }

    /// Puts a handler on the bench.
    pub(super) fn begin(&mut self, messages: Few<Handed>) {
        let running = (self.run)(messages);
        self.cell.as_mut().set(Some(running));
    }

    /// Polls it once. Nobody is woken by it: where it waits it has to be taken along, and polled again.
    pub(super) fn poll(&mut self) -> Poll<Few<Ended>> {
        let polled = match self.cell.as_mut().as_pin_mut() {
            Some(running) => running.poll(&mut Context::from_waker(Waker::noop())),
            None => Poll::Ready(Few::Many(Vec::new())),
        };
        if polled.is_ready() {
            self.cell.as_mut().set(None);
        }
        polled
    }

    /// Takes it along, to be awaited elsewhere.
    pub(super) fn take(&mut self) -> (Arc<R>, Cell<Fut>) {
        (Arc::clone(&self.run), std::mem::replace(&mut self.cell, Box::pin(None)))
    }
}

/// What came of a handler.
#[derive(Debug)]
pub(super) enum Outcome {
    Ended(Ended),
    /// Its turn did not come.
    NotBegun,
    /// Its turn came when its lease had run out.
    Lost,
    /// It was dropped where it waited.
    Aborted,
}

/// A message whose turn comes after the one that runs.
pub(super) struct Waiting {
    pub(super) ticket: Ticket,
    pub(super) handed: Handed,
    /// Its assignment is to begin no further message.
    pub(super) halted: Arc<AtomicBool>,
}

/// A chain in a task of its own. Reports each message as it ends; dropped, it reports what is left.
pub(super) struct Chain {
    /// The messages of the call that runs.
    pub(super) running: Option<Few<Ticket>>,
    pub(super) rest: VecDeque<Waiting>,
    pub(super) reports: mpsc::UnboundedSender<Report>,
}

impl Chain {
    /// Awaits what runs, and what is chained to it.
    pub(super) async fn work<R, Fut>(mut self, run: Arc<R>, mut cell: Cell<Fut>)
    where
        R: Fn(Few<Handed>) -> Fut,
        Fut: Future<Output = Few<Ended>>,
    {
        loop {
            let ended = poll_fn(|cx| match cell.as_mut().as_pin_mut() {
                Some(running) => running.poll(cx),
                None => Poll::Ready(Few::Many(Vec::new())),
            });
            let ended = ended.await;
            cell.as_mut().set(None);
            match self.ended(ended) {
                Some(next) => cell.as_mut().set(Some(run(Few::One(next)))),
                None => return,
            }
        }
    }

    /// Reports how the call that ran ended, and begins the next one.
    fn ended(&mut self, ended: Few<Ended>) -> Option<Handed> {
        let running = self.running.take()?;
        let goes_on = matches!(ended, Few::One(Ended::Succeeded(_) | Ended::Finished(_)))
            && self.rest.front().is_some_and(|next| !next.halted.load(Ordering::Acquire));
        let is_lost = goes_on && self.rest.front().is_some_and(|next| next.handed.claim.is_lost());
        let next = if goes_on && !is_lost { self.rest.pop_front() } else { None };
        let Some(next) = next else {
            let (running, ended) = match (running, ended) {
                (Few::One(ticket), Few::One(ended)) if self.rest.is_empty() => {
                    self.report(Few::One((ticket, Outcome::Ended(ended))));
                    return None;
                }
                both => both,
            };
            let ended = running.into_iter().zip(ended).map(|(ticket, ended)| (ticket, Outcome::Ended(ended)));
            let why = || if is_lost { Outcome::Lost } else { Outcome::NotBegun };
            let rest = self.rest.drain(..).map(|waiting| (waiting.ticket, why()));
            let report = ended.chain(rest).collect();
            self.report(Few::Many(report));
            return None;
        };
        self.running = Some(Few::One(next.ticket));
        for (ticket, ended) in running.into_iter().zip(ended) {
            self.report(Few::One((ticket, Outcome::Ended(ended))));
        }
        Some(next.handed)
    }

    fn report(&self, report: Few<(Ticket, Outcome)>) {
        // Nobody listens any more when the pump is gone.
        let _ = self.reports.send(Report::Ran(report));
    }
}

impl Drop for Chain {
    fn drop(&mut self) {
        let Some(running) = self.running.take() else { return };
        // Dropped where it waited, or unwound by a handler whose own drop panicked.
        let panicked = std::thread::panicking();
        let running = running.into_iter().map(|ticket| {
            let failed =
                || Outcome::Ended(Ended::Failed(Fault::new("panic", "the handler panicked when it was dropped")));
            (ticket, if panicked { failed() } else { Outcome::Aborted })
        });
        let rest = self.rest.drain(..).map(|waiting| (waiting.ticket, Outcome::NotBegun));
        let report = running.chain(rest).collect();
        self.report(Few::Many(report));
    }
}

/// Where handlers begin: here, or each in a task of its own at once, so that those that compute for long use all cores.
#[derive(Debug, Default)]
pub(super) struct Place {
    /// Handlers that took long, one right after the other; `None` while there is no reason to time each.
    long: Option<u8>,
    /// Until when handlers begin in tasks.
    tasks_until: Option<Instant>,
}

impl Place {
    /// A handler that computes for so long is better off in a task.
    const LONG: Duration = Duration::from_micros(50);
    /// So many in a row are no accident: a thread that was not scheduled looks like one that computes.
    const IN_A_ROW: u8 = 3;
    /// How long handlers begin in tasks before that is looked at again.
    const LOOK_AGAIN: Duration = Duration::from_millis(200);

    /// Whether handlers are to begin in tasks.
    pub(super) fn is_task(&mut self, now: Instant) -> bool {
        match self.tasks_until {
            Some(until) if now < until => true,
            Some(_) => {
                self.tasks_until = None;
                self.long = Some(0);
                false
            }
            None => false,
        }
    }

    /// Handlers ended here, which took so long together.
    fn took(&mut self, handlers: u32, time: Duration, now: Instant) {
        match &mut self.long {
            None if time > 4 * Self::LONG && time > handlers * Self::LONG => self.long = Some(0),
            None => {}
            Some(long) if time > handlers * Self::LONG => {
                *long += 1;
                if *long >= Self::IN_A_ROW {
                    self.tasks_until = Some(now + Self::LOOK_AGAIN);
                }
            }
            Some(_) => self.long = None,
        }
    }
}

/// Looks at the clock now and then while a group of handlers runs.
pub(super) struct Stopwatch<'a> {
    place: &'a mut Place,
    last: Instant,
    handlers: u32,
    /// How many to let pass before the clock is looked at.
    look_at: u32,
}

impl<'a> Stopwatch<'a> {
    /// Longest stretch without a look.
    const STRETCH: u32 = 32;

    pub(super) fn new(place: &'a mut Place, now: Instant) -> Self {
        Self { place, last: now, handlers: 0, look_at: 1 }
    }

    /// A handler was polled. Answers whether the next ones are to begin in tasks.
    pub(super) fn ran(&mut self) -> bool {
        self.handlers += 1;
        if self.handlers < self.look_at && self.place.long.is_none() {
            return false;
        }
        let now = Instant::now();
        self.place.took(self.handlers, now.saturating_duration_since(self.last), now);
        self.last = now;
        self.handlers = 0;
        self.look_at = (self.look_at * 2).min(Self::STRETCH);
        self.place.tasks_until.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn handlers_that_compute_for_long_begin_in_tasks_and_one_accident_changes_nothing() {
        let (mut place, now) = (Place::default(), Instant::now());
        place.took(32, Duration::from_millis(20), now);
        place.took(1, Duration::from_micros(1), now);
        assert_eq!((place.long, place.is_task(now)), (None, false), "a thread that was not scheduled for a moment");
        for _ in 0..4 {
            place.took(1, Duration::from_micros(300), now);
        }
        assert!(place.is_task(now));
        let later = now + Place::LOOK_AGAIN;
        assert!(!place.is_task(later), "looked at again");
        place.took(1, Duration::from_micros(1), later);
        assert_eq!(place.long, None, "they are quick now");
    }
}
