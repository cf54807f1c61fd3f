//! One batch in one transaction, tried once.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use super::core::{Core, finish};
use super::dialect::{Shift, Transact};
use super::guard::{Called, bounded, called};
use super::holding::Holding;
use super::link::{Committed, Tx, sorted};
use super::moving::Moving;
use super::outcome::{Item, Known, Misuse, Outcome, Spot, Why, Work};
use super::plan::{Plan, Ready, Sources};
use super::records::ending;
use super::sealed::Sealed;
use super::windows::Held;
use crate::record::{Sighting, State, Token};
use crate::retry::Retry;
use crate::store::cells::Ending;
use crate::store::sql::Fault;
use crate::window::Sequenced;
use crate::wrapper::{ErrorClass, Failure, HandlerError, OnConflict};

/// Rules of a run.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rules {
    /// Whether a message whose attempts are used up, or whose failure is fatal, is recorded as dead at once. Otherwise somebody else
    /// decides, and says so.
    pub(crate) bury: bool,
    /// How often and when failed messages are tried again.
    pub(crate) retry: Retry,
}

/// What is known of a batch from one try to the next.
pub(super) struct Batch<'a, E> {
    pub(super) items: &'a [Item],
    /// The windows of the partitions.
    pub(super) held: Holding,
    /// Attempts that failed already, with effects that are gone: not run again.
    pub(super) decided: Vec<Option<Why<E>>>,
    /// Rows that may not go on.
    pub(super) blocked: HashSet<u64>,
    /// Messages that are not begun, of which that is to be noted.
    pub(super) waits: HashSet<usize>,
    pub(super) rules: Rules,
}

pub(super) type Outcomes<T, E> = Vec<(usize, Outcome<T, E>)>;

/// Why a try came to nothing.
pub(super) enum Stop<T, E> {
    /// Everything was rolled back.
    Fault(Fault),
    /// An attempt was decided that broke the transaction: run the others again.
    Again,
    /// The batch handler failed, or what it wrote was refused: run it with fewer.
    Split(Why<E>),
    /// A handler of many that ran without savepoints failed, or one of them did what it must not: run them with savepoints.
    Careful,
    /// The transaction was over when the handler of this message returned; `all`: that of any of them.
    Over { at: usize, all: bool, why: Option<Why<E>>, wrote: Wrote },
    /// The connection was gone when the handler of this message, or of all from this one on, returned.
    Lost { at: usize, why: Why<E>, fault: Fault },
    /// One of these partitions belongs to another process.
    Fenced(Vec<Arc<Held>>),
    /// The reply to the commit was lost.
    Doubt { outcomes: Outcomes<T, E>, wrote: Wrote, fault: Fault },
}

/// What a transaction wrote that can be found again.
#[derive(Clone, Debug, Default)]
pub(super) struct Wrote {
    /// Records, with how many attempts they had before.
    pub(super) records: Vec<(Sighting, Token, u32)>,
    pub(super) held: Vec<Arc<Held>>,
}

impl<T, E> From<Fault> for Stop<T, E> {
    fn from(fault: Fault) -> Self {
        Self::Fault(fault)
    }
}

/// A try on its way.
pub(super) struct Trial<'a, DB: Sealed, W: Work<DB>> {
    pub(super) core: &'a Core<DB>,
    pub(super) tx: Tx<DB>,
    pub(super) brief: bool,
    /// Handlers of one message run without a savepoint for each: whether all went well shows at the end.
    trusted: bool,
    together: bool,
    /// Whether there is a savepoint of the batch. Where it costs nothing it is always set.
    guarded: bool,
    pub(super) sources: Sources,
    outcomes: Outcomes<W::Value, W::Error>,
    pub(super) wrote: Wrote,
    /// What was remembered and did not succeed.
    endings: Vec<Ending>,
    /// Offsets for each partition.
    finished: Vec<usize>,
    failed: Vec<(usize, u32)>,
    blocked: HashSet<u64>,
    values: Vec<W::Value>,
    /// A handler ran without a savepoint of its own, and ended well.
    ran: bool,
}

impl<DB: Sealed> Core<DB> {
    /// Tries these messages of the batch, in order, in one transaction.
    pub(super) async fn trial<W: Work<DB>>(
        &self,
        batch: &mut Batch<'_, W::Error>,
        places: &[usize],
        work: &W,
        brief: bool,
        careful: bool,
    ) -> Result<Outcomes<W::Value, W::Error>, Stop<W::Value, W::Error>> {
        let mut trial: Trial<'_, DB, W> = Trial {
            core: self,
            tx: self.begin_guarded(brief).await?,
            brief,
            trusted: !careful && !work.together() && self.is_trusted(),
            together: work.together(),
            guarded: !(self.guards_late() && work.ends_nothing()),
            sources: Sources::default(),
            outcomes: Vec::with_capacity(places.len()),
            wrote: Wrote::default(),
            endings: Vec::new(),
            finished: Vec::with_capacity(places.len()),
            failed: Vec::new(),
            blocked: batch.blocked.clone(),
            values: Vec::new(),
            ran: false,
        };
        let planned = match trial.plan(batch, places).await {
            Ok(plans) => trial.guard().await.map(|()| plans),
            Err(fault) => Err(fault),
        };
        let plans = match planned {
            Ok(plans) => plans,
            Err(fault) => {
                // What was refused leaves a connection that is as good as any.
                if fault.spares_connection() {
                    finish(trial.tx.rollback()).await;
                }
                return Err(fault.into());
            }
        };
        let ran = match work.together() {
            true => trial.together(batch, places, plans, work).await,
            false => trial.each(batch, places, plans, work).await,
        };
        match ran {
            Ok(()) => trial.conclude(batch).await,
            Err(Left::Rollback(stop)) => {
                finish(trial.tx.rollback()).await;
                Err(stop)
            }
            Err(Left::Close(stop)) => Err(stop),
        }
    }
}

/// How a connection is left.
enum Left<T, E> {
    Rollback(Stop<T, E>),
    Close(Stop<T, E>),
}

type Step<T, E> = Result<(), Left<T, E>>;

impl<DB: Sealed, W: Work<DB>> Trial<'_, DB, W> {
    /// Sets the batch's savepoint, if that was not done when the transaction began.
    async fn guard(&mut self) -> Result<(), Fault> {
        if !self.guarded || !self.core.guards_late() {
            return Ok(());
        }
        DB::DIALECT.guard(self.tx.conn()?).await.map_err(|error| sorted::<DB::Dialect>(&error))
    }

    /// Runs the handler for each message, one after the other.
    async fn each(
        &mut self,
        batch: &mut Batch<'_, W::Error>,
        places: &[usize],
        plans: Vec<Plan>,
        work: &W,
    ) -> Step<W::Value, W::Error> {
        let mut open = false;
        let last = plans.iter().rposition(|plan| matches!(plan, Plan::Ready(_)));
        for (number, (&at, plan)) in places.iter().zip(plans).enumerate() {
            let Some(ready) = self.turn(batch, at, plan) else { continue };
            if batch.decided[at].is_some() {
                self.fail(batch, at, &ready);
                continue;
            }
            if self.trusted {
                self.plainly(batch, at, work).await?;
                continue;
            }
            if !open {
                let conn = self.tx.conn().map_err(close)?;
                DB::DIALECT.savepoint(conn).await.map_err(|error| fault::<DB, _, _>(&error))?;
                open = true;
            }
            let ran = self.call(&[at], work).await;
            let Some(why) = self.ended(batch, at, ran, Some(number) != last).await? else {
                let Some(value) = self.values.pop() else {
                    return Err(close(Fault::Refused("a handler that ended well left no value.".into())));
                };
                self.finished.push(at);
                self.outcomes.push((at, Outcome::Handled(value)));
                self.keep_number(&batch.items[at], None);
                continue;
            };
            self.values.clear();
            batch.decided[at] = Some(why);
            self.fail(batch, at, &ready);
        }
        Ok(())
    }

    /// Runs the handler once for all messages.
    async fn together(
        &mut self,
        batch: &mut Batch<'_, W::Error>,
        places: &[usize],
        plans: Vec<Plan>,
        work: &W,
    ) -> Step<W::Value, W::Error> {
        let mut ready = Vec::with_capacity(places.len());
        for (&at, plan) in places.iter().zip(plans) {
            let Some(turn) = self.turn(batch, at, plan) else { continue };
            match batch.decided[at].is_some() {
                true => self.fail(batch, at, &turn),
                false => ready.push(at),
            }
        }
        let Some(&first) = ready.first() else { return Ok(()) };
        match self.call(&ready, work).await {
            Ok(()) if self.tx.is_level() => {}
            Ok(()) => return Err(self.over(batch, first, None)),
            Err(Failure::Error(error)) => {
                if let Some(fault) = work.fault(&error) {
                    let left = if fault.spares_connection() { Left::Rollback } else { Left::Close };
                    return Err(left(fault.into()));
                }
                let why = self.refused(batch, first, error).await?;
                return Err(Left::Rollback(Stop::Split(why)));
            }
            // Whose fault it was shows when they are run apart.
            Err(failure) => return Err(Left::Close(Stop::Split(Why::Handler(failure)))),
        }
        let mut values = std::mem::take(&mut self.values).into_iter();
        for at in ready {
            let Some(value) = values.next() else {
                return Err(close(Fault::Refused("a handler that ended well left no value.".into())));
            };
            if work.passes(&value) {
                self.finished.push(at);
                self.keep_number(&batch.items[at], None);
            }
            self.outcomes.push((at, Outcome::Handled(value)));
        }
        Ok(())
    }

    /// Runs the handler of one message without a savepoint of its own. If it fails, nothing of the batch can stand.
    async fn plainly(&mut self, batch: &mut Batch<'_, W::Error>, at: usize, work: &W) -> Step<W::Value, W::Error> {
        match self.call(&[at], work).await {
            Ok(()) if self.tx.is_level() => {}
            Ok(()) => return Err(self.over(batch, at, None)),
            Err(Failure::Error(error)) => {
                let why = self.refused(batch, at, error).await?;
                if !self.ran {
                    // Nothing ran before it: its attempt is known.
                    batch.decided[at] = Some(why);
                }
                return Err(Left::Rollback(Stop::Careful));
            }
            Err(failure) => {
                batch.decided[at] = Some(Why::Handler(failure));
                return Err(Left::Close(Stop::Again));
            }
        }
        let Some(value) = self.values.pop() else {
            return Err(close(Fault::Refused("a handler that ended well left no value.".into())));
        };
        self.ran = true;
        self.finished.push(at);
        self.outcomes.push((at, Outcome::Handled(value)));
        self.keep_number(&batch.items[at], None);
        Ok(())
    }

    /// A handler that has no savepoint of its own failed: whether the transaction is still the one that it was given.
    async fn refused(
        &mut self,
        batch: &Batch<'_, W::Error>,
        at: usize,
        error: W::Error,
    ) -> Result<Why<W::Error>, Left<W::Value, W::Error>> {
        if error.is_contention() {
            return Err(Left::Rollback(Fault::Contended(error.to_string()).into()));
        }
        let why = Why::Handler(Failure::Error(error));
        if !self.guarded {
            return Ok(why);
        }
        let conn = self.tx.conn().map_err(close)?;
        match DB::DIALECT.back_to_batch(conn).await {
            Ok(()) if self.tx.is_level() => Ok(why),
            Ok(()) => Err(self.over(batch, at, None)),
            Err(error) => match sorted::<DB::Dialect>(&error) {
                fault @ Fault::Broken(_) => Err(Left::Close(Stop::Lost { at, why, fault })),
                _ => Err(self.over(batch, at, Some(why))),
            },
        }
    }

    /// Calls the handler: panics caught, time bounded.
    async fn call(&mut self, places: &[usize], work: &W) -> Result<(), Failure<W::Error>> {
        let timeout = self.core.settings.handler_timeout;
        let Ok(conn) = self.tx.conn() else { return Err(Failure::Panicked("the connection is gone".into())) };
        let ended = bounded(timeout, work.run(places, conn, &mut self.values)).await;
        match &ended {
            Err(Failure::Panicked(_)) => self.core.counters.panicked.one(),
            Err(Failure::TimedOut(_)) => self.core.counters.timed_out.one(),
            Ok(()) | Err(Failure::Error(_)) => {}
        }
        ended
    }

    /// The handler was called: what its transaction is then. Answers with why it failed, its effects being gone.
    async fn ended(
        &mut self,
        batch: &mut Batch<'_, W::Error>,
        at: usize,
        ran: Result<(), Failure<W::Error>>,
        next: bool,
    ) -> Result<Option<Why<W::Error>>, Left<W::Value, W::Error>> {
        match called(&mut self.tx, ran, next).await {
            Called::Well => Ok(None),
            Called::Failed(why) => Ok(Some(why)),
            Called::Torn(failure) => {
                batch.decided[at] = Some(Why::Handler(failure));
                Err(Left::Close(Stop::Again))
            }
            Called::Over(why) => Err(self.over(batch, at, why)),
            Called::Rollback(fault) => Err(Left::Rollback(fault.into())),
            Called::Lost(why, fault) => Err(Left::Close(Stop::Lost { at, why, fault })),
            Called::Close(fault) => Err(close(fault)),
        }
    }

    fn over(&mut self, batch: &Batch<'_, W::Error>, at: usize, why: Option<Why<W::Error>>) -> Left<W::Value, W::Error> {
        Left::Close(self.over_at(batch, at, why))
    }

    fn over_at(
        &mut self,
        batch: &Batch<'_, W::Error>,
        at: usize,
        why: Option<Why<W::Error>>,
    ) -> Stop<W::Value, W::Error> {
        let mut wrote = std::mem::take(&mut self.wrote);
        // It was given all of them, or nobody looked after each: all of them may stand, or any.
        let all = self.trusted || self.together;
        if !all {
            // Were it committed, what was handled before it would stand, and is rightly remembered.
            let handled: HashSet<&Sighting> = self
                .outcomes
                .iter()
                .filter(|(_, outcome)| matches!(outcome, Outcome::Handled(_)))
                .filter_map(|(at, _)| batch.items[*at].record.as_ref())
                .collect();
            wrote.records.retain(|(sighting, ..)| !handled.contains(sighting));
        }
        Stop::Over { at, all, why, wrote }
    }

    /// A message's turn. Answers if it is to be handled.
    fn turn(&mut self, batch: &Batch<'_, W::Error>, at: usize, plan: Plan) -> Option<Ready> {
        let item = &batch.items[at];
        let row_blocked = batch.waits.contains(&at) || item.row.is_some_and(|row| self.blocked.contains(&row));
        let outcome = match plan {
            Plan::Ready(ready) if !row_blocked => return Some(ready),
            Plan::Ready(ready) => {
                // Its turn did not come: the attempt does not count.
                if let (Some(token), Some(sighting)) = (ready.token, &item.record) {
                    let state = State::Failed { due: 0 };
                    self.endings.push(ending(sighting, token, ready.attempt - 1, state));
                }
                Outcome::NotBegun
            }
            Plan::Fenced => Outcome::Fenced,
            Plan::Known(_) if row_blocked => Outcome::NotBegun,
            Plan::Known(known) => {
                let through = match &known {
                    Known::Redelivered(_) | Known::SameId(_) => true,
                    // Otherwise whoever gives it up says so by `bury`.
                    Known::Dead { .. } => batch.rules.bury,
                    Known::Conflict { .. } => self.core.settings.on_conflict == OnConflict::Skip,
                    Known::TooOld => self.core.settings.on_too_old == OnConflict::Skip,
                    Known::InFlight { .. } | Known::NotDue { .. } => false,
                };
                if through {
                    if !matches!(known, Known::Redelivered(None)) {
                        self.finished.push(at);
                        self.keep_number(item, None);
                    }
                } else {
                    self.block(item);
                    self.keep_number(item, Some(0));
                }
                Outcome::Known(known)
            }
        };
        if matches!(outcome, Outcome::Fenced) {
            self.block(item);
        }
        if matches!(outcome, Outcome::NotBegun) {
            self.keep_number(item, Some(0));
        }
        self.outcomes.push((at, outcome));
        None
    }

    fn block(&mut self, item: &Item) {
        if let Some(row) = item.row {
            self.blocked.insert(row);
        }
    }

    /// Notes a failed attempt. Why is in `decided`.
    fn fail(&mut self, batch: &Batch<'_, W::Error>, at: usize, ready: &Ready) {
        let item = &batch.items[at];
        let retry = &batch.rules.retry;
        let class = match batch.decided[at].as_ref().map_or(ErrorClass::Retryable, Why::class) {
            // Nothing else is held back here: it is tried again as any other.
            ErrorClass::Unavailable if batch.rules.bury && retry.is_in_place() => ErrorClass::Retryable,
            class => class,
        };
        let used_up = ready.attempt >= retry.max_attempts().get();
        // No other copy of it may be begun before somebody has buried it.
        let ended = matches!(batch.decided[at], Some(Why::Misused(Misuse::Ended)));
        let dead = !ended && (class == ErrorClass::Fatal || used_up && class == ErrorClass::Retryable);
        // What is down burns no attempt, nor does a handler that has to be mended.
        let spared = ended || class == ErrorClass::Unavailable;
        let burnt = if spared { ready.attempt - 1 } else { ready.attempt };
        let retry_in = if spared { Duration::ZERO } else { retry.delay(ready.attempt, self.core.random()) };
        if let (Some(token), Some(sighting)) = (ready.token, &item.record) {
            let state = match dead {
                true => State::Dead { at: 0 },
                false => State::Failed { due: crate::record::millis(retry_in) },
            };
            self.endings.push(ending(sighting, token, burnt, state));
        }
        if dead && batch.rules.bury {
            self.finished.push(at);
            self.keep_number(item, None);
        } else {
            let tries = if dead { retry.max_attempts().get().max(burnt) } else { burnt };
            self.block(item);
            self.failed.push((at, if spared { 0 } else { tries }));
            self.keep_number(item, Some(tries));
        }
        // The runner puts the reason in.
        let failed = Pretold { attempt: ready.attempt, retry_in, dead };
        self.outcomes.push((at, failed.outcome()));
    }

    /// Notes a producer's number: finished, or so many attempts failed. One that waits is noted too, lest others of its source pass it into oblivion.
    fn keep_number(&mut self, item: &Item, attempts: Option<u32>) {
        if let Some(Spot::Sequence { source, number, .. }) = &item.spot
            && let Some((_, window, moved)) = self.sources.rows.get_mut(source)
        {
            *moved |= match attempts {
                None => matches!(window.see(*number), Sequenced::New { .. }),
                Some(0) => window.wait(*number),
                Some(attempts) => window.fail(*number, attempts),
            };
        }
    }

    /// Writes what became of the batch, and commits.
    async fn conclude(
        mut self,
        batch: &Batch<'_, W::Error>,
    ) -> Result<Outcomes<W::Value, W::Error>, Stop<W::Value, W::Error>> {
        match self.written(batch).await {
            Ok(None) => {
                finish(self.tx.rollback()).await;
                Ok(self.outcomes)
            }
            Ok(Some(moving)) => {
                self.wrote.held = moving.held();
                match finish(moving.commit(self.tx)).await {
                    Committed::Yes => Ok(self.outcomes),
                    Committed::No(Fault::Refused(said)) => {
                        tracing::debug!(%said, "the database refused to commit a batch");
                        Err(Stop::Split(Why::Misused(Misuse::Refused)))
                    }
                    Committed::No(fault) => Err(fault.into()),
                    Committed::Unknown(fault) => Err(Stop::Doubt { outcomes: self.outcomes, wrote: self.wrote, fault }),
                }
            }
            Err(stop) => {
                if !matches!(stop, Stop::Fault(Fault::Broken(_)) | Stop::Over { .. }) {
                    finish(self.tx.rollback()).await;
                }
                Err(stop)
            }
        }
    }

    /// Writes all but the commit. `None`: there was nothing to write.
    async fn written(&mut self, batch: &Batch<'_, W::Error>) -> Result<Option<Moving>, Stop<W::Value, W::Error>> {
        let tried = |(_, outcome): &(usize, Outcome<_, _>)| matches!(outcome, Outcome::Handled(_) | Outcome::Failed(_));
        let tried = self.outcomes.iter().any(tried);
        let mut moving = Moving::default();
        let moved = self.sources.rows.values().filter(|(_, _, moved)| *moved);
        let mut shifts: Vec<Shift> = moved.map(|(row, window, _)| row.shift(window)).collect();
        moving.take(&batch.held, batch.items, &self.finished, &self.failed).await.map_err(Stop::Fault)?;
        shifts.extend(moving.shifts());
        if !tried && shifts.is_empty() {
            return Ok(None);
        }
        let table = &self.core.settings.windows;
        shifts.sort_unstable_by_key(|shift| shift.source);
        let moved = if self.guarded && self.endings.is_empty() && !shifts.is_empty() {
            match DB::DIALECT.release_and_shift(self.tx.conn()?, table, &shifts).await {
                Ok(moved) => moved,
                Err(error) if DB::DIALECT.is_unguarded(&error) => return Err(self.unguarded(batch, &error).await),
                Err(error) => return Err(sorted::<DB::Dialect>(&error).into()),
            }
        } else {
            if self.guarded
                && let Err(error) = DB::DIALECT.release_batch(self.tx.conn()?).await
            {
                return Err(self.unguarded(batch, &error).await);
            }
            let expected = self.endings.len() as u64;
            if expected > 0 && self.core.take_back(&mut self.tx, &mut self.endings, self.brief).await? != expected {
                return Err(Fault::Contended("records of this transaction were moved by another.".into()).into());
            }
            // Where no windows are kept, there is no table of them.
            match shifts.is_empty() {
                true => 0,
                false => {
                    let shifted = DB::DIALECT.shift(self.tx.conn()?, table, &shifts).await;
                    shifted.map_err(|error| sorted::<DB::Dialect>(&error))?
                }
            }
        };
        if moved != shifts.len() as u64 {
            return Err(Stop::Fenced(moving.held()));
        }
        Ok(Some(moving))
    }

    /// The batch's savepoint could not be released: the transaction is over, or one of its statements was refused and nobody said so.
    async fn unguarded(&mut self, batch: &Batch<'_, W::Error>, error: &sqlx::Error) -> Stop<W::Value, W::Error> {
        let fault = sorted::<DB::Dialect>(error);
        if matches!(fault, Fault::Broken(_) | Fault::Contended(_)) {
            return fault.into();
        }
        let back = match self.tx.conn() {
            Ok(conn) => DB::DIALECT.back_to_batch(conn).await,
            Err(fault) => return fault.into(),
        };
        let first = self.finished.first().copied().unwrap_or_default();
        match back {
            Ok(()) if self.trusted => Stop::Careful,
            Ok(()) if self.together => Stop::Split(Why::Misused(Misuse::Swallowed)),
            Ok(()) => fault.into(),
            Err(_) => self.over_at(batch, first, None),
        }
    }
}

/// A failed attempt whose reason is kept apart.
struct Pretold {
    attempt: u32,
    retry_in: Duration,
    dead: bool,
}

impl Pretold {
    fn outcome<T, E>(self) -> Outcome<T, E> {
        let why = Why::Misused(Misuse::Ended);
        Outcome::Failed(super::outcome::Failed { why, attempt: self.attempt, retry_in: self.retry_in, dead: self.dead })
    }
}

fn close<T, E>(fault: Fault) -> Left<T, E> {
    Left::Close(fault.into())
}

fn fault<DB: Sealed, T, E>(error: &sqlx::Error) -> Left<T, E> {
    let fault = sorted::<DB::Dialect>(error);
    match fault.spares_connection() {
        true => Left::Rollback(fault.into()),
        false => Left::Close(fault.into()),
    }
}
