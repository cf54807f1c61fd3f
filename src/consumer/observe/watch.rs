//! What the pump tells, gathered over a turn.

use std::fmt;
use std::sync::PoisonError;
use std::time::{Duration, Instant};

use super::Probe;
use super::sight::{RunRecord, place};
use crate::consumer::message::Message;
use crate::consumer::summary::Tally;
use crate::engine::{self, Ending};
use crate::observe::{Circuit, Claims, Endings, Observed, Operation, Run, Settles};

/// Time between two lookings of the monitor's board, while anything happens.
pub(super) const POST: Duration = Duration::from_millis(100);
/// Time between two samples for observers, while anything happens.
pub(super) const SAMPLE: Duration = Duration::from_secs(1);

impl Probe {
    /// What the pump tells through.
    pub(in crate::consumer) fn watch(&self) -> Watch {
        Watch {
            on: self.is_on(),
            posts: self.is_watched(),
            probe: self.clone(),
            finished: Vec::new(),
            late: 0,
            fenced: 0,
            dropped: 0,
            post: Rhythm::new(POST),
            sample: Rhythm::new(SAMPLE),
            store_down: false,
            downstream_down: false,
        }
    }
}

/// Something that is done so often at most, and once more after the last change.
#[derive(Debug)]
struct Rhythm {
    every: Duration,
    next: Option<Instant>,
    owed: bool,
}

impl Rhythm {
    const fn new(every: Duration) -> Self {
        Self { every, next: None, owed: false }
    }

    /// Something changed, or time passed: whether to do it now.
    fn beat(&mut self, now: Instant) -> bool {
        let due = self.next.is_none_or(|next| next <= now);
        self.owed = !due;
        if due {
            self.next = Some(now + self.every);
        }
        due
    }

    fn wake_at(&self) -> Option<Instant> {
        self.next.filter(|_| self.owed)
    }
}

/// What the pump tells, gathered over a turn.
pub(in crate::consumer) struct Watch {
    /// Observers are there.
    on: bool,
    /// Observers or a monitor are there.
    posts: bool,
    probe: Probe,
    /// One for each partition that finished anything in this turn.
    pub(super) finished: Vec<(Message, Endings)>,
    late: u64,
    fenced: u64,
    dropped: u64,
    post: Rhythm,
    sample: Rhythm,
    store_down: bool,
    downstream_down: bool,
}

impl fmt::Debug for Watch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Watch").field("on", &self.on).finish_non_exhaustive()
    }
}

impl Watch {
    /// Whether anybody hears of what happens: if not, the other calls need not be made.
    #[inline]
    pub(in crate::consumer) const fn is_on(&self) -> bool {
        self.on
    }

    /// A message is finished.
    pub(in crate::consumer) fn finished(&mut self, message: &Message, ending: Ending) {
        if !self.on {
            return;
        }
        let here = (message.partition(), message.topic());
        // Messages of one partition come in a row.
        let at = self.finished.iter().rposition(|(known, _)| (known.partition(), known.topic()) == here);
        let at = at.unwrap_or_else(|| {
            self.finished.push((message.clone(), Endings::default()));
            self.finished.len() - 1
        });
        let counts = &mut self.finished[at].1;
        let count = match ending {
            Ending::Handled => &mut counts.handled,
            Ending::Redelivered => &mut counts.redelivered,
            Ending::SameId => &mut counts.same_id,
            Ending::Conflict => &mut counts.conflicts,
            Ending::Dead => &mut counts.dead,
        };
        *count += 1;
    }

    /// The store answered a call to claim.
    pub(in crate::consumer) fn claimed(&self, asked: usize, answers: Claims, took: Duration) {
        if self.on {
            self.probe.tell(&Observed::Claimed { asked: asked as u64, answers, took });
        }
    }

    /// The store answered a call to settle.
    pub(in crate::consumer) fn settled(&self, answers: Settles, took: Duration) {
        if self.on {
            self.probe.tell(&Observed::Settled { answers, took });
        }
    }

    /// The store could not be asked.
    pub(in crate::consumer) fn store_failed(&self, operation: Operation, messages: usize, took: Duration) {
        if self.on {
            self.probe.tell(&Observed::StoreFailed { operation, messages: messages as u64, took });
        }
    }

    /// The broker acknowledged dead letters.
    pub(in crate::consumer) fn dead_lettered(&self, messages: usize) {
        if self.on {
            self.probe.tell(&Observed::DeadLettered(messages as u64));
        }
    }

    /// Dead letters could not be produced.
    pub(in crate::consumer) fn dead_letter_failed(&self, messages: usize) {
        if self.on {
            self.probe.tell(&Observed::DeadLetterFailed(messages as u64));
        }
    }

    /// Results came of an assignment that is over.
    pub(in crate::consumer) const fn late(&mut self, messages: u64) {
        self.late += messages;
    }

    /// Messages were left to another process.
    pub(in crate::consumer) const fn fenced(&mut self, messages: u64) {
        self.fenced += messages;
    }

    /// Messages were dropped unfinished.
    pub(in crate::consumer) const fn dropped(&mut self, messages: u64) {
        self.dropped += messages;
    }

    /// The end of a turn: tells what was gathered, and puts up the state if that is due.
    #[inline]
    pub(in crate::consumer) fn turn(&mut self, look: impl FnOnce() -> (engine::Snapshot, Tally)) {
        if self.posts {
            self.tell(Instant::now(), look);
        }
    }

    pub(super) fn tell(&mut self, now: Instant, look: impl FnOnce() -> (engine::Snapshot, Tally)) {
        if self.on {
            self.tell_gathered();
        }
        let sample = self.on && self.sample.beat(now);
        if !self.post.beat(now) && !sample {
            return;
        }
        let (engine, tally) = look();
        let (store_down, downstream_down) = (engine.store_down, engine.downstream_down);
        self.probe.board.post(engine, tally);
        if !self.on {
            return;
        }
        for (what, known, open) in [
            (Circuit::Store, &mut self.store_down, store_down),
            (Circuit::Downstream, &mut self.downstream_down, downstream_down),
        ] {
            if std::mem::replace(known, open) != open {
                self.probe.tell(&Observed::Circuit { what, open });
            }
        }
        if sample {
            self.probe.tell(&Observed::Sampled(&self.probe.board.snapshot(now)));
        }
    }

    fn tell_gathered(&mut self) {
        let records = std::mem::take(&mut *self.probe.runs.lock().unwrap_or_else(PoisonError::into_inner));
        if !records.is_empty() {
            let runs: Vec<Run<'_>> = records.iter().map(RunRecord::told).collect();
            self.probe.tell(&Observed::Ran(&runs));
        }
        for (message, counts) in self.finished.drain(..) {
            self.probe.tell(&Observed::Finished { place: place(&message), counts });
        }
        for (count, event) in [
            (std::mem::take(&mut self.late), Observed::Late as fn(u64) -> Observed<'static>),
            (std::mem::take(&mut self.fenced), Observed::Fenced),
            (std::mem::take(&mut self.dropped), Observed::Dropped),
        ] {
            if count > 0 {
                self.probe.tell(&event(count));
            }
        }
    }

    /// When [`turn`](Self::turn) is to be called again although nothing happens.
    #[inline]
    pub(in crate::consumer) fn wake_at(&self) -> Option<Instant> {
        if self.posts { self.post.wake_at().into_iter().chain(self.sample.wake_at()).min() } else { None }
    }
}
