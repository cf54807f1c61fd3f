//! One inbox message's life: where it stands, and what moves it. Pure: no clock, no I/O, no randomness of its own.
//!
//! ```text
//!               take                     succeed
//!   received ─────────▶ processing ─────────────────▶ succeeded ─┐
//!                        ▲   │  │ fail, lose                     │ replay
//!                   take │   │  └──────────────┐                 ▼
//!                        │   │ release         ▼            received, one generation on
//!                        └───┴──────────── failed             ▲
//!                                             │ skip, or      │ requeue, replay
//!                                             ▼ used up       │
//!                                            dead ────────────┘
//! ```
//!
//! A [`Standing`] is what the tables say of one message: its generation, and its row of open work. A message without such a row has succeeded.
//! Every move takes the standing as it was read and gives the one to write instead, or says why there is none. Whoever writes it does so only
//! where nothing changed meanwhile.
//!
//! - Within a generation states move forward only: succeeded and dead are left by an operator alone, who opens a new generation.
//! - One run holds a message. Failing, losing and releasing need the number of the run that holds it.
//! - Attempts are counted when a message is taken, before its handler runs. Only what did not count as an attempt is given back:
//!   what never began, and what found a resource down.
//! - Success is a fact where effects lie outside of the database (L1): it is recorded after the run was taken over too, in its own generation.

use std::collections::HashMap;
use std::fmt;

use crate::record::{self, Millis};
use crate::retry::Retry;

/// The number of no run.
pub const NOBODY: i64 = 0;

/// What an inbox message is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum State {
    /// Accepted, and never tried in this generation.
    Received,
    /// In a run's hands.
    Processing,
    /// Tried without success; to be tried again.
    Failed,
    /// Handled. Left by a replay only.
    Succeeded,
    /// Given up. Left by an operator only.
    Dead,
}

impl State {
    /// All of them, in the order of a message's life.
    pub const ALL: [Self; 5] = [Self::Received, Self::Processing, Self::Failed, Self::Succeeded, Self::Dead];

    /// The state's name as docs, tables and logs write it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Received => "received",
            Self::Processing => "processing",
            Self::Failed => "failed",
            Self::Succeeded => "succeeded",
            Self::Dead => "dead",
        }
    }

    /// Whether it is succeeded or dead.
    #[must_use]
    pub const fn is_final(self) -> bool {
        matches!(self, Self::Succeeded | Self::Dead)
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Which part of the open work a row belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Lot {
    /// May be taken, or is in a run. Its rank is its priority: the smaller, the earlier.
    Ready,
    /// Not before a time, which is its rank.
    Waiting,
    /// Given up at a time, which is its rank.
    Dead,
}

impl Lot {
    /// The number that the table keeps.
    #[must_use]
    pub const fn code(self) -> i16 {
        match self {
            Self::Ready => 0,
            Self::Waiting => 1,
            Self::Dead => 2,
        }
    }

    /// Reads what [`code`](Self::code) gave.
    #[must_use]
    pub const fn from_code(code: i16) -> Option<Self> {
        match code {
            0 => Some(Self::Ready),
            1 => Some(Self::Waiting),
            2 => Some(Self::Dead),
            _ => None,
        }
    }
}

/// Why an attempt ended without success.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Class {
    /// To be tried again after a back-off.
    Retryable,
    /// No attempt will ever succeed.
    Fatal,
    /// Something that the handler needs is down. Counts as no attempt.
    Unavailable,
    /// Its run's lease ran out: the process may have died of it.
    Lost,
    /// The handler panicked.
    Panic,
    /// The handler took too long.
    Timeout,
    /// An operator gave it up.
    Skipped,
}

impl Class {
    /// All of them.
    pub const ALL: &'static [Self] =
        &[Self::Retryable, Self::Fatal, Self::Unavailable, Self::Lost, Self::Panic, Self::Timeout, Self::Skipped];

    /// The number that the table keeps.
    #[must_use]
    pub const fn code(self) -> i16 {
        match self {
            Self::Retryable => 0,
            Self::Fatal => 1,
            Self::Unavailable => 2,
            Self::Lost => 3,
            Self::Panic => 4,
            Self::Timeout => 5,
            Self::Skipped => 6,
        }
    }

    /// Reads what [`code`](Self::code) gave.
    #[must_use]
    pub fn from_code(code: i16) -> Option<Self> {
        Self::ALL.iter().copied().find(|class| class.code() == code)
    }

    /// The name as docs, tables and logs write it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Retryable => "retryable",
            Self::Fatal => "fatal",
            Self::Unavailable => "unavailable",
            Self::Lost => "lost",
            Self::Panic => "panic",
            Self::Timeout => "timeout",
            Self::Skipped => "skipped",
        }
    }
}

/// A row of open work.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Open {
    /// Which part of the open work it belongs to.
    pub lot: Lot,
    /// Its place therein: priority, due time or time of death.
    pub rank: i64,
    /// The smaller, the earlier.
    pub priority: i16,
    /// Attempts begun in this generation.
    pub attempts: u32,
    /// It is taken in a run by itself, since a run that held it was lost.
    pub alone: bool,
    /// The run that holds it, or [`NOBODY`].
    pub run: i64,
}

/// What the tables say of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Standing {
    /// From 1; an operator opens the next.
    pub generation: u32,
    /// Its row of open work; none when it has succeeded.
    pub open: Option<Open>,
}

/// Why a message was not moved.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Unmoved {
    /// A run holds it: not this one, or none may.
    Held,
    /// The run that asks does not hold it: it was taken over, settled, or requeued meanwhile.
    Stale,
    /// It waits for its time.
    NotDue,
    /// It is succeeded.
    Succeeded,
    /// It is dead.
    Dead,
    /// It is not so far: it was never tried, or is neither succeeded nor dead, as the move needs it.
    Unfinished,
}

impl Unmoved {
    /// What to say of it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Held => "held by a run",
            Self::Stale => "not held by this run",
            Self::NotDue => "not due",
            Self::Succeeded => "succeeded",
            Self::Dead => "dead",
            Self::Unfinished => "not finished",
        }
    }
}

/// What to write, or why nothing is to be written.
pub type Moved = Result<Standing, Unmoved>;

impl Standing {
    /// A message that was just accepted.
    #[must_use]
    pub const fn accepted(priority: i16, not_before: Option<Millis>, now: Millis) -> Self {
        let (lot, rank) = match not_before {
            Some(due) if due > now => (Lot::Waiting, due),
            _ => (Lot::Ready, priority as i64),
        };
        Self { generation: 1, open: Some(Open { lot, rank, priority, attempts: 0, alone: false, run: NOBODY }) }
    }

    /// What it is in.
    #[must_use]
    pub const fn state(&self) -> State {
        match self.open {
            None => State::Succeeded,
            Some(Open { lot: Lot::Dead, .. }) => State::Dead,
            Some(Open { run, .. }) if run != NOBODY => State::Processing,
            Some(Open { attempts: 0, .. }) => State::Received,
            Some(_) => State::Failed,
        }
    }

    /// The same in the words of a record: nothing is known yet of what was only received. `until` is the end of the run's lease, or
    /// when it succeeded; it is used where the row has no such time.
    #[must_use]
    pub const fn record_state(&self, until: Millis) -> Option<record::State> {
        match self.open {
            None => Some(record::State::Succeeded { at: until, late: false }),
            Some(Open { lot: Lot::Dead, rank, .. }) => Some(record::State::Dead { at: rank }),
            Some(Open { run, .. }) if run != NOBODY => Some(record::State::Processing { until }),
            Some(Open { attempts: 0, .. }) => None,
            Some(Open { lot: Lot::Waiting, rank, .. }) => Some(record::State::Failed { due: rank }),
            // Due, or given back: at once.
            Some(_) => Some(record::State::Failed { due: 0 }),
        }
    }

    /// Whether this run holds it.
    #[must_use]
    pub const fn is_held_by(&self, run: i64) -> bool {
        matches!(self.open, Some(open) if open.run == run) && run != NOBODY
    }

    /// Whether it may be removed for good: nothing that is open is.
    #[must_use]
    pub const fn may_purge(&self) -> bool {
        self.state().is_final()
    }

    const fn with(self, open: Open) -> Self {
        Self { generation: self.generation, open: Some(open) }
    }

    const fn held(&self, run: i64) -> Result<Open, Unmoved> {
        match self.open {
            Some(open) if run != NOBODY && open.run == run => Ok(open),
            _ => Err(Unmoved::Stale),
        }
    }

    /// A run takes it: the attempt counts from here on.
    pub const fn take(&self, run: i64) -> Moved {
        match self.open {
            None => Err(Unmoved::Succeeded),
            Some(open) if open.run != NOBODY => Err(Unmoved::Held),
            Some(Open { lot: Lot::Dead, .. }) => Err(Unmoved::Dead),
            Some(Open { lot: Lot::Waiting, .. }) => Err(Unmoved::NotDue),
            Some(open) => Ok(self.with(Open { run, attempts: open.attempts.saturating_add(1), ..open })),
        }
    }

    /// Its handler came through, in the hands of the run that holds it.
    pub const fn succeed(&self, run: i64) -> Moved {
        match self.held(run) {
            Ok(_) => Ok(Self { generation: self.generation, open: None }),
            Err(unmoved) => Err(unmoved),
        }
    }

    /// Its handler came through outside of the database, and its run was taken over meanwhile: a fact, in the generation in which it was taken.
    pub const fn succeed_late(&self, generation: u32) -> Moved {
        match self.open {
            _ if self.generation != generation => Err(Unmoved::Stale),
            None => Err(Unmoved::Succeeded),
            Some(_) => Ok(Self { generation, open: None }),
        }
    }

    /// Its attempt failed. Given up where that is final or its attempts are used up; if not, due after the back-off that `random` stands for.
    /// What found a resource down is given its attempt back, and waits as long.
    pub fn fail(&self, run: i64, class: Class, retry: &Retry, random: u64, now: Millis) -> Moved {
        let open = self.held(run)?;
        Ok(match ends(class, open.attempts, retry) {
            End::Dead => self.buried(open, now),
            End::Again { attempts } => {
                let due = record::after(now, retry.delay(open.attempts, random));
                let alone = open.alone || matches!(class, Class::Lost);
                self.with(Open { lot: Lot::Waiting, rank: due, attempts, alone, run: NOBODY, ..open })
            }
        })
    }

    /// The lease of its run is over: the attempt is burnt, and the next one it makes by itself.
    pub fn lose(&self, run: i64, retry: &Retry, random: u64, now: Millis) -> Moved {
        self.fail(run, Class::Lost, retry, random, now)
    }

    /// Its handler was never begun: nothing is burnt.
    pub const fn release(&self, run: i64) -> Moved {
        match self.held(run) {
            Ok(open) => Ok(self.with(Open { attempts: open.attempts.saturating_sub(1), run: NOBODY, ..open })),
            Err(unmoved) => Err(unmoved),
        }
    }

    /// Its time has come.
    pub const fn due(&self, now: Millis) -> Moved {
        match self.open {
            None => Err(Unmoved::Succeeded),
            Some(Open { lot: Lot::Dead, .. }) => Err(Unmoved::Dead),
            Some(open) if open.run != NOBODY => Err(Unmoved::Held),
            Some(open) if matches!(open.lot, Lot::Waiting) && open.rank <= now => {
                Ok(self.with(Open { lot: Lot::Ready, rank: open.priority as i64, ..open }))
            }
            Some(_) => Err(Unmoved::NotDue),
        }
    }

    /// An operator gives it up: nothing waits for it any more. Not while a run holds it.
    pub const fn skip(&self, now: Millis) -> Moved {
        match self.open {
            None => Err(Unmoved::Succeeded),
            Some(Open { lot: Lot::Dead, .. }) => Err(Unmoved::Dead),
            Some(open) if open.run != NOBODY => Err(Unmoved::Held),
            Some(open) => Ok(self.buried(open, now)),
        }
    }

    /// An operator wants what is failed or dead tried anew: a new generation, due at once. What was lost with a run stays by itself.
    pub const fn requeue(&self) -> Moved {
        match (self.state(), self.open) {
            (State::Processing, _) => Err(Unmoved::Held),
            (State::Received, _) => Err(Unmoved::Unfinished),
            (State::Failed | State::Dead, Some(open)) => Ok(self.anew(open.priority, open.alone)),
            (State::Succeeded, _) | (_, None) => Err(Unmoved::Succeeded),
        }
    }

    /// An operator wants what is succeeded or dead handled once more: a new generation, due at once.
    pub const fn replay(&self, priority: i16) -> Moved {
        match (self.state(), self.open) {
            (State::Succeeded, _) => Ok(self.anew(priority, false)),
            (State::Dead, Some(open)) => Ok(self.anew(open.priority, open.alone)),
            (State::Processing, _) => Err(Unmoved::Held),
            _ => Err(Unmoved::Unfinished),
        }
    }

    const fn anew(&self, priority: i16, alone: bool) -> Self {
        let open = Open { lot: Lot::Ready, rank: priority as i64, priority, attempts: 0, alone, run: NOBODY };
        Self { generation: self.generation.saturating_add(1), open: Some(open) }
    }

    const fn buried(&self, open: Open, now: Millis) -> Self {
        self.with(Open { lot: Lot::Dead, rank: now, run: NOBODY, ..open })
    }
}

/// What an attempt without success comes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum End {
    /// Given up.
    Dead,
    /// To be tried again.
    Again {
        /// Attempts that count from now on.
        attempts: u32,
    },
}

/// Whether a message whose attempt number `attempts` ended like that is tried again.
#[must_use]
pub const fn ends(class: Class, attempts: u32, retry: &Retry) -> End {
    match class {
        Class::Fatal | Class::Skipped => End::Dead,
        Class::Unavailable => End::Again { attempts: attempts.saturating_sub(1) },
        _ if attempts >= retry.max_attempts().get() => End::Dead,
        _ => End::Again { attempts },
    }
}

/// A row that nobody holds and whose time has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Candidate {
    /// Its message.
    pub id: i64,
    /// What it is in order with: equal for messages of one key.
    pub lane: i64,
    /// It is taken in a run by itself.
    pub alone: bool,
}

/// The barrier of a lane that has a message in a run's hands: none of it is taken. After a requeue that may be a later message.
pub const BUSY: i64 = i64::MIN;

/// Which of these rows one run may take, at most so many, in the order in which their handlers are to begin.
///
/// Rows are given by rank, then by id. With `by_key` a message goes only behind all earlier ones of its lane that are neither succeeded nor dead:
/// they are taken before it by the same run, or it stays. `barrier` says of a lane which is the lowest id of such a message that is *not* among the
/// rows (waiting, or not read); [`BUSY`] where any message of the lane, be it a later one, is in a run's hands. Where ranks and ids disagree, a lane's
/// turn goes to the earliest of it.
///
/// What is to be alone is taken by itself if its turn is the first, and stays if not.
pub fn choose(by_key: bool, most: usize, rows: &[Candidate], barrier: impl Fn(i64) -> Option<i64>) -> Vec<Candidate> {
    let mut chosen: Vec<Candidate> = Vec::with_capacity(most.min(rows.len()));
    if !by_key {
        for row in rows.iter().take_while(|_| most > 0) {
            if row.alone && chosen.is_empty() {
                return vec![*row];
            }
            if !row.alone && chosen.len() < most {
                chosen.push(*row);
            }
        }
        return chosen;
    }
    // The rows of each lane, the earliest last.
    let mut lanes: HashMap<i64, Vec<Candidate>> = HashMap::new();
    for row in rows {
        lanes.entry(row.lane).or_default().push(*row);
    }
    for (lane, rows) in &mut lanes {
        rows.sort_unstable_by_key(|row| std::cmp::Reverse(row.id));
        if let Some(barrier) = barrier(*lane) {
            // What is behind the barrier stays.
            rows.drain(..rows.partition_point(|row| row.id > barrier));
        }
    }
    for row in rows {
        if chosen.len() >= most {
            break;
        }
        let Some(lane) = lanes.get_mut(&row.lane) else { continue };
        match lane.pop() {
            Some(first) if first.alone && chosen.is_empty() => return vec![first],
            Some(first) if first.alone => lane.clear(),
            Some(first) => chosen.push(first),
            None => {}
        }
    }
    chosen
}

#[cfg(test)]
mod tests;
