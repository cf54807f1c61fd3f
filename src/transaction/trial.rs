//! One batch in one transaction, tried once.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::OwnedMutexGuard;

use super::core::{Core, finish};
use super::dialect::{Row, Shift, Source, Transact};
use super::link::{Committed, Tx, sorted};
use super::outcome::{Item, Known, Misuse, Outcome, Spot, Why, Work};
use super::records::{Said, ending};
use super::sealed::Sealed;
use super::windows::{Held, Pending, Verdict};
use crate::record::{ClaimOutcome, Owner, Sighting, State, Token};
use crate::retry::Retry;
use crate::store::cells::Ending;
use crate::store::sql::Fault;
use crate::window::{Sequenced, Sequences};
use crate::wrapper::{ErrorClass, Failure, HandlerError, OnConflict, caught};

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
    /// The windows of the partitions, for each item.
    pub(super) held: Vec<Option<Arc<Held>>>,
    /// Attempts that failed already, with effects that are gone: not run again.
    pub(super) decided: Vec<Option<Why<E>>>,
    /// Rows that may not go on.
    pub(super) blocked: HashSet<u64>,
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
    /// The transaction was over when the handler of this message returned.
    Over { at: usize, why: Option<Why<E>>, wrote: Wrote },
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

/// A message that may be handled.
struct Ready {
    token: Option<Token>,
    attempt: u32,
}

enum Plan {
    Ready(Ready),
    Known(Known),
    Fenced,
}

/// Windows of producers, locked for this transaction.
#[derive(Default)]
struct Sources {
    rows: HashMap<Source, (Row, Sequences, bool)>,
}

struct Trial<'a, DB: Sealed, W: Work<DB>> {
    core: &'a Core<DB>,
    tx: Tx<DB>,
    brief: bool,
    sources: Sources,
    outcomes: Outcomes<W::Value, W::Error>,
    wrote: Wrote,
    /// What was remembered and did not succeed.
    endings: Vec<Ending>,
    /// Offsets for each partition.
    finished: Vec<usize>,
    failed: Vec<(usize, u32)>,
    blocked: HashSet<u64>,
    values: Vec<W::Value>,
}

impl<DB: Sealed> Core<DB> {
    /// Tries these messages of the batch, in order, in one transaction.
    pub(super) async fn trial<W: Work<DB>>(
        &self,
        batch: &mut Batch<'_, W::Error>,
        places: &[usize],
        work: &W,
        brief: bool,
    ) -> Result<Outcomes<W::Value, W::Error>, Stop<W::Value, W::Error>> {
        let owner = Owner::new(self.random());
        let mut trial: Trial<'_, DB, W> = Trial {
            core: self,
            tx: self.begin(brief).await?,
            brief,
            sources: Sources::default(),
            outcomes: Vec::with_capacity(places.len()),
            wrote: Wrote::default(),
            endings: Vec::new(),
            finished: Vec::new(),
            failed: Vec::new(),
            blocked: batch.blocked.clone(),
            values: Vec::new(),
        };
        let plans = match trial.plan(batch, places, owner).await {
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

/// A message that is new to its window, or was tried before. A record knows better, if it has one.
fn tried(attempt: u32, rules: Rules) -> Plan {
    match attempt > rules.retry.max_attempts().get() {
        true => Plan::Known(Known::Dead { attempts: attempt - 1 }),
        false => Plan::Ready(Ready { token: None, attempt }),
    }
}

impl<DB: Sealed, W: Work<DB>> Trial<'_, DB, W> {
    /// Finds out what is to be handled, and remembers it.
    async fn plan(&mut self, batch: &Batch<'_, W::Error>, places: &[usize], owner: Owner) -> Result<Vec<Plan>, Fault> {
        self.lock_sources(batch, places).await?;
        let mut plans = Vec::with_capacity(places.len());
        let mut asked: Vec<(usize, &Sighting)> = Vec::new();
        for (number, &at) in places.iter().enumerate() {
            let item = &batch.items[at];
            let mut attempt = item.attempt;
            let plan = match (&item.spot, &batch.held[at]) {
                (Some(Spot::Position), None) => Plan::Fenced,
                (Some(Spot::Position), Some(held)) => match held.look(item.origin.offset) {
                    Verdict::Fenced => Plan::Fenced,
                    Verdict::Finished => Plan::Known(Known::Redelivered(None)),
                    Verdict::New { attempts } => {
                        attempt = attempts + 1;
                        tried(attempt, batch.rules)
                    }
                },
                (Some(Spot::Sequence { source, number, .. }), _) => match self.sources.look(source, *number) {
                    Sequenced::Seen => Plan::Known(Known::SameId(None)),
                    Sequenced::TooOld if self.core.settings.on_too_old != OnConflict::Handle => {
                        Plan::Known(Known::TooOld)
                    }
                    Sequenced::TooOld => Plan::Ready(Ready { token: None, attempt }),
                    Sequenced::New { attempts } => tried(attempts + 1, batch.rules),
                },
                (None, _) => Plan::Ready(Ready { token: None, attempt }),
            };
            if let (Plan::Ready(_), Some(sighting)) = (&plan, &item.record) {
                asked.push((number, sighting));
            }
            plans.push(plan);
        }
        if asked.is_empty() {
            return Ok(plans);
        }
        asked.sort_unstable_by_key(|(_, sighting)| sighting.key);
        let sightings: Vec<&Sighting> = asked.iter().map(|(_, sighting)| *sighting).collect();
        let said =
            self.core.admit(&mut self.tx, owner, &sightings, batch.rules.retry.max_attempts(), self.brief).await?;
        for ((number, sighting), said) in asked.into_iter().zip(said) {
            let Some(plan) = plans.get_mut(number) else { continue };
            *plan = match said {
                Said::Ours { token, attempt } => {
                    self.wrote.records.push((sighting.clone(), token, attempt - 1));
                    Plan::Ready(Ready { token: Some(token), attempt })
                }
                Said::Not(ClaimOutcome::Conflict { .. }) if self.core.settings.on_conflict == OnConflict::Handle => {
                    self.core.counters.conflicts.one();
                    // Its window counts its attempts, if it has one.
                    match plan {
                        Plan::Ready(Ready { attempt, .. }) => Plan::Ready(Ready { token: None, attempt: *attempt }),
                        _ => continue,
                    }
                }
                Said::Not(said) => Plan::Known(known(said, sighting)),
            };
        }
        Ok(plans)
    }

    /// Locks the rows of the producers' sources, so that their numbers are decided one batch after the other.
    async fn lock_sources(&mut self, batch: &Batch<'_, W::Error>, places: &[usize]) -> Result<(), Fault> {
        let mut spans: Vec<(Source, u32)> = Vec::new();
        for &at in places {
            if let Some(Spot::Sequence { source, span, .. }) = &batch.items[at].spot {
                spans.push((*source, *span));
            }
        }
        if spans.is_empty() {
            return Ok(());
        }
        spans.sort_unstable();
        spans.dedup_by_key(|(source, _)| *source);
        let sources: Vec<Source> = spans.iter().map(|(source, _)| *source).collect();
        let table = &self.core.settings.windows;
        let fault = |error: sqlx::Error| sorted::<DB::Dialect>(&error);
        let mut rows = DB::DIALECT.load(self.tx.conn()?, table, &sources).await.map_err(fault)?;
        if rows.len() < sources.len() {
            DB::DIALECT.plant(self.tx.conn()?, table, &sources).await.map_err(fault)?;
            rows = DB::DIALECT.load(self.tx.conn()?, table, &sources).await.map_err(fault)?;
        }
        for row in rows {
            let span =
                spans.iter().find(|(source, _)| *source == row.source).map_or(Sequences::SPAN, |(_, span)| *span);
            let window = Sequences::restore(span, &row.state).map_err(|error| Fault::Corrupt(error.to_string()))?;
            self.sources.rows.insert(row.source, (row, window, false));
        }
        Ok(())
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
            if !open {
                let conn = self.tx.conn().map_err(close)?;
                DB::DIALECT.savepoint(conn).await.map_err(|error| fault::<DB, _, _>(&error))?;
                open = true;
            }
            let ran = self.call(&[at], work).await;
            let why = match ran {
                Ok(()) => {
                    let conn = self.tx.conn().map_err(close)?;
                    let released = match Some(number) == last {
                        true => DB::DIALECT.release(conn).await,
                        false => DB::DIALECT.next_savepoint(conn).await,
                    };
                    match self.released(batch, at, released).await? {
                        None => {
                            let Some(value) = self.values.pop() else {
                                return Err(close(Fault::Refused("a handler that ended well left no value.".into())));
                            };
                            self.finished.push(at);
                            self.outcomes.push((at, Outcome::Handled(value)));
                            self.keep_number(&batch.items[at], None);
                            continue;
                        }
                        Some(why) => why,
                    }
                }
                Err(failure) => self.back(batch, at, failure).await?,
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
        let conn = self.tx.conn().map_err(close)?;
        DB::DIALECT.savepoint(conn).await.map_err(|error| fault::<DB, _, _>(&error))?;
        let ran = self.call(&ready, work).await;
        let why = match ran {
            Ok(()) => {
                let conn = self.tx.conn().map_err(close)?;
                let released = DB::DIALECT.release(conn).await;
                self.released(batch, first, released).await?
            }
            Err(failure @ Failure::Error(_)) => Some(self.back(batch, first, failure).await?),
            // Whose fault it was shows when they are run apart.
            Err(failure) => return Err(Left::Close(Stop::Split(Why::Handler(failure)))),
        };
        if let Some(why) = why {
            return Err(Left::Rollback(Stop::Split(why)));
        }
        let mut values = std::mem::take(&mut self.values).into_iter();
        for at in ready {
            let Some(value) = values.next() else {
                return Err(close(Fault::Refused("a handler that ended well left no value.".into())));
            };
            self.finished.push(at);
            self.outcomes.push((at, Outcome::Handled(value)));
            self.keep_number(&batch.items[at], None);
        }
        Ok(())
    }

    /// Calls the handler: panics caught, time bounded.
    async fn call(&mut self, places: &[usize], work: &W) -> Result<(), Failure<W::Error>> {
        let timeout = self.core.settings.handler_timeout;
        let Ok(conn) = self.tx.conn() else { return Err(Failure::Panicked("the connection is gone".into())) };
        let running = caught(work.run(places, conn, &mut self.values));
        let ended = match timeout {
            None => running.await,
            Some(longest) => match tokio::time::timeout(longest, running).await {
                Ok(ended) => ended,
                Err(_) => Err(Failure::TimedOut(longest)),
            },
        };
        match &ended {
            Err(Failure::Panicked(_)) => self.core.counters.panicked.one(),
            Err(Failure::TimedOut(_)) => self.core.counters.timed_out.one(),
            Ok(()) | Err(Failure::Error(_)) => {}
        }
        ended
    }

    /// The handler failed: back to where it began.
    async fn back(
        &mut self,
        batch: &mut Batch<'_, W::Error>,
        at: usize,
        failure: Failure<W::Error>,
    ) -> Result<Why<W::Error>, Left<W::Value, W::Error>> {
        let error = match failure {
            Failure::Error(error) => error,
            // Nobody knows what its connection is in the middle of.
            failure => {
                batch.decided[at] = Some(Why::Handler(failure));
                return Err(Left::Close(Stop::Again));
            }
        };
        if error.is_contention() {
            return Err(Left::Rollback(Fault::Contended(error.to_string()).into()));
        }
        let why = Why::Handler(Failure::Error(error));
        let conn = self.tx.conn().map_err(close)?;
        match DB::DIALECT.back_to_savepoint(conn).await {
            Ok(()) if self.tx.is_level() => Ok(why),
            Ok(()) => Err(self.over(batch, at, None)),
            Err(error) => match sorted::<DB::Dialect>(&error) {
                fault @ Fault::Broken(_) => Err(close(fault)),
                _ => Err(self.over(batch, at, Some(why))),
            },
        }
    }

    /// The handler ended well: whether its transaction is what it was. Answers with why not.
    async fn released(
        &mut self,
        batch: &Batch<'_, W::Error>,
        at: usize,
        released: Result<(), sqlx::Error>,
    ) -> Result<Option<Why<W::Error>>, Left<W::Value, W::Error>> {
        let error = match released {
            Ok(()) if self.tx.is_level() => return Ok(None),
            Ok(()) => return Err(self.over(batch, at, None)),
            Err(error) => sorted::<DB::Dialect>(&error),
        };
        match error {
            fault @ (Fault::Broken(_) | Fault::Contended(_)) => return Err(close(fault)),
            _ => {}
        }
        let conn = self.tx.conn().map_err(close)?;
        match DB::DIALECT.back_to_savepoint(conn).await {
            Ok(()) => Ok(Some(Why::Misused(Misuse::Swallowed))),
            Err(_) => Err(self.over(batch, at, None)),
        }
    }

    fn over(&mut self, batch: &Batch<'_, W::Error>, at: usize, why: Option<Why<W::Error>>) -> Left<W::Value, W::Error> {
        let mut wrote = std::mem::take(&mut self.wrote);
        // Were it committed, what was handled before it would stand, and is rightly remembered.
        let handled: HashSet<&Sighting> = self
            .outcomes
            .iter()
            .filter(|(_, outcome)| matches!(outcome, Outcome::Handled(_)))
            .filter_map(|(at, _)| batch.items[*at].record.as_ref())
            .collect();
        wrote.records.retain(|(sighting, ..)| !handled.contains(sighting));
        Left::Close(Stop::Over { at, why, wrote })
    }

    /// A message's turn. Answers if it is to be handled.
    fn turn(&mut self, batch: &Batch<'_, W::Error>, at: usize, plan: Plan) -> Option<Ready> {
        let item = &batch.items[at];
        let row_blocked = item.row.is_some_and(|row| self.blocked.contains(&row));
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
                }
                Outcome::Known(known)
            }
        };
        if matches!(outcome, Outcome::Fenced) {
            self.block(item);
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
            self.failed.push((at, tries));
            self.keep_number(item, Some(tries));
        }
        // The runner puts the reason in.
        let failed = Pretold { attempt: ready.attempt, retry_in, dead };
        self.outcomes.push((at, failed.outcome()));
    }

    /// Notes a producer's number: finished, or so many attempts failed.
    fn keep_number(&mut self, item: &Item, attempts: Option<u32>) {
        if let Some(Spot::Sequence { source, number, .. }) = &item.spot
            && let Some((_, window, moved)) = self.sources.rows.get_mut(source)
        {
            *moved |= match attempts {
                None => matches!(window.see(*number), Sequenced::New { .. }),
                Some(0) => false,
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
                self.wrote.held = moving.parts.iter().map(|part| Arc::clone(&part.held)).collect();
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
                if !matches!(stop, Stop::Fault(Fault::Broken(_))) {
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
        let mut shifts: Vec<Shift> = Vec::new();
        for (row, window, _) in self.sources.rows.values().filter(|(_, _, moved)| *moved) {
            let written = window.row();
            shifts.push(Shift {
                source: row.source,
                fence: row.fence,
                next: written.next,
                state: written.state,
                note: None,
            });
        }
        moving.take(batch, &self.finished, &self.failed).await.map_err(Stop::Fault)?;
        shifts.extend(moving.parts.iter().map(|part| part.pending.shift.clone()));
        if !tried && shifts.is_empty() {
            return Ok(None);
        }
        let expected = self.endings.len() as u64;
        if expected > 0 && self.core.take_back(&mut self.tx, &mut self.endings, self.brief).await? != expected {
            return Err(Fault::Contended("records of this transaction were moved by another.".into()).into());
        }
        if !shifts.is_empty() {
            shifts.sort_unstable_by_key(|shift| shift.source);
            let shifted = DB::DIALECT.shift(self.tx.conn()?, &self.core.settings.windows, &shifts).await;
            if shifted.map_err(|error| sorted::<DB::Dialect>(&error))? != shifts.len() as u64 {
                let held = moving.parts.iter().map(|part| Arc::clone(&part.held)).collect();
                return Err(Stop::Fenced(held));
            }
        }
        Ok(Some(moving))
    }
}

/// Windows whose rows are being written.
#[derive(Default)]
pub(super) struct Moving {
    pub(super) parts: Vec<Part>,
}

pub(super) struct Part {
    pub(super) held: Arc<Held>,
    pub(super) pending: Pending,
    _moving: OwnedMutexGuard<()>,
}

impl Moving {
    /// Takes the windows, one after the other in a fixed order, and computes what to write.
    pub(super) async fn take<E>(
        &mut self,
        batch: &Batch<'_, E>,
        finished: &[usize],
        failed: &[(usize, u32)],
    ) -> Result<(), Fault> {
        type Offsets = (Arc<Held>, Vec<(i64, Option<i64>)>, Vec<(i64, u32)>);
        let mut moves: Vec<Offsets> = Vec::new();
        let all = finished.iter().map(|at| (*at, None)).chain(failed.iter().map(|(at, tries)| (*at, Some(*tries))));
        for (at, tries) in all {
            let Some(held) = &batch.held[at] else { continue };
            let place = match moves.iter().position(|(other, ..)| Arc::ptr_eq(other, held)) {
                Some(place) => place,
                None => {
                    moves.push((Arc::clone(held), Vec::new(), Vec::new()));
                    moves.len() - 1
                }
            };
            let item = &batch.items[at];
            let Some((_, finished, failed)) = moves.get_mut(place) else { continue };
            match tries {
                None => finished.push((item.origin.offset, item.stamp)),
                // What is not burnt leaves no trace.
                Some(0) => {}
                Some(tries) => failed.push((item.origin.offset, tries)),
            }
        }
        moves.retain(|(_, finished, failed)| !finished.is_empty() || !failed.is_empty());
        moves.sort_unstable_by_key(|(held, ..)| held.source);
        for (held, finished, failed) in moves {
            let _moving = Arc::clone(&held.moving).lock_owned().await;
            // Another batch has finished one of them, or it is not known whether it has.
            let pending = match held.doubt() {
                None => held.pending(&finished, &failed),
                Some(_) => None,
            };
            let Some(pending) = pending else {
                return Err(Fault::Contended("another batch has moved the window.".into()));
            };
            self.parts.push(Part { held, pending, _moving });
        }
        Ok(())
    }

    /// Commits, and notes it in the windows. To be run to its end.
    pub(super) async fn commit<DB: Sealed>(self, tx: Tx<DB>) -> Committed {
        let committed = tx.commit().await;
        for Part { held, pending, _moving } in self.parts {
            match &committed {
                Committed::Yes => held.apply(&pending),
                Committed::No(_) => {}
                Committed::Unknown(_) => held.suspect(pending),
            }
        }
        committed
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

impl Sources {
    fn look(&self, source: &Source, number: u64) -> Sequenced {
        self.rows.get(source).map_or(Sequenced::TooOld, |(_, window, _)| window.look(number))
    }
}

/// What the record says.
fn known(said: ClaimOutcome, sighting: &Sighting) -> Known {
    match said {
        ClaimOutcome::Duplicate { first, .. } if first.origin == sighting.origin => Known::Redelivered(Some(first)),
        ClaimOutcome::Duplicate { first, .. } => Known::SameId(Some(first)),
        ClaimOutcome::InFlight { remaining } => Known::InFlight { remaining },
        ClaimOutcome::NotDue { remaining } => Known::NotDue { remaining },
        ClaimOutcome::Dead { attempts } => Known::Dead { attempts },
        ClaimOutcome::Conflict { first } => Known::Conflict { first },
        ClaimOutcome::Acquired(_) => Known::InFlight { remaining: Duration::ZERO },
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
