//! A run inside transactions: the handler's effects and the end of its message commit together. Level L2.
//!
//! ```text
//!   BEGIN ─▶ hold: is the run still ours? ─▶ savepoint, handler … ─▶ finish: open rows go, failures wait ─▶ COMMIT
//!            and a mark, to know by later      failed: back to it
//! ```

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use tracing::Instrument as _;

use super::crew::{Crew, Halt, Report, outcome_of};
use super::shape::Shape;
use crate::inbox::Message;
use crate::inbox::core::Core;
use crate::inbox::queue::{End, Ended, How, Run};
use crate::inbox::rules::Class;
use crate::observe::{Outcome, Process};
use crate::store::sql::{Dialect, Fault, jitter};
use crate::transaction::sealed::Sealed;
use crate::transaction::{Called, Committed, Misuse, Transact, Tx, Why, bounded, called};
use crate::wrapper::{ErrorClass, Failure, pause};

/// How often a single message is tried again that the database gave up in favour of others.
const CONTENDED: u32 = 8;
/// How often a part is, before it is halved.
const WHOLE: u32 = 1;
/// How often a transaction that was over too early counts as given up in favour of another, where the database ends them so.
const OVER: u32 = 3;
/// How often in a row a message may lose its connection before that counts as its failure.
const BROKE: u32 = 3;
/// For how long a message is left alone that somebody keeps locked.
const LOCKED: Duration = Duration::from_secs(1);

/// Some of a run, on its way.
struct Part {
    places: Vec<usize>,
    tries: u32,
    over: u32,
    /// Whose handler lost its connection last, and how often in a row.
    broke: (usize, u32),
}

impl Part {
    fn of(places: Vec<usize>) -> Self {
        Self { places, tries: 0, over: 0, broke: (usize::MAX, 0) }
    }

    fn halves(self) -> [Self; 2] {
        let Self { mut places, tries, over, broke } = self;
        let second = places.split_off(places.len() / 2);
        [Self { places, tries, over, broke }, Self { places: second, tries, over, broke }]
    }
}

/// Why a try came to nothing.
enum Stop<E> {
    /// Everything was rolled back.
    Fault(Fault),
    /// An attempt was decided that broke the transaction: run the others again.
    Again,
    /// The handler of many failed, or what it wrote was refused: run it with fewer.
    Split(Why<E>),
    /// The transaction was over when the handler of this message returned; of these the effects are in it too.
    Over { at: usize, why: Option<Why<E>>, before: Vec<usize> },
    /// The connection was gone when the handler of this message returned.
    Broke { at: usize, fault: Fault },
    /// The reply to the commit was lost.
    Doubt { ends: Vec<End>, fault: Fault },
    /// The run is somebody else's.
    TakenOver,
    /// There is no time left.
    Aborted,
}

impl<E> From<Fault> for Stop<E> {
    fn from(fault: Fault) -> Self {
        Self::Fault(fault)
    }
}

/// How a connection is left.
enum Left<E> {
    Rollback(Stop<E>),
    Close(Stop<E>),
}

/// A call that ended, or was dropped.
enum Ran<E> {
    Ended(Result<(), Failure<E>>),
    Aborted,
}

struct Inside<'a, DB: Sealed, S: Shape<DB>> {
    core: &'a Core<DB>,
    crew: &'a Crew,
    shape: &'a S,
    run: &'a Run,
    halt: &'a Halt,
    messages: Vec<Message>,
    /// Attempts that failed already, with effects that are gone: not run again.
    decided: Vec<Option<Why<S::Error>>>,
    /// Lanes in which something failed that comes again.
    blocked: HashSet<i64>,
    queue: VecDeque<Part>,
    /// Messages whose end is not written.
    left: usize,
    mark: i32,
    /// Until when the run is surely ours, where no transaction of ours holds it.
    until: Instant,
    /// What the handlers need is down.
    down: bool,
    /// Failures of the database in a row.
    failures: u32,
    report: Report,
}

/// Runs the handler over a run's messages.
///
/// # Cancel safety
///
/// Dropped, what was not committed is rolled back with its connection closed; the rest of the run stays taken until its lease is over.
pub(super) async fn inside<DB: Sealed, S: Shape<DB>>(
    core: Arc<Core<DB>>,
    crew: Crew,
    shape: Arc<S>,
    run: Arc<Run>,
    halt: Halt,
) -> Report {
    let count = run.taken.len();
    let mut inside = Inside {
        core: &core,
        crew: &crew,
        shape: &*shape,
        run: &run,
        halt: &halt,
        messages: run.taken.iter().map(|taken| taken.message.clone()).collect(),
        decided: (0..count).map(|_| None).collect(),
        blocked: HashSet::new(),
        queue: VecDeque::from([Part::of((0..count).collect())]),
        left: count,
        mark: 0,
        until: run.until,
        down: false,
        failures: 0,
        report: Report::default(),
    };
    while let Some(part) = inside.queue.pop_front() {
        if halt.abort.is_cancelled() {
            inside.queue.push_front(part);
            break;
        }
        inside.step(part).await;
    }
    inside.release().await;
    inside.report.down = inside.down;
    inside.report
}

impl<DB: Sealed, S: Shape<DB>> Inside<'_, DB, S> {
    async fn step(&mut self, part: Part) {
        let stop = match self.trial(&part.places).await {
            Ok(ends) => {
                self.failures = 0;
                return self.written(&ends, None);
            }
            Err(stop) => stop,
        };
        match stop {
            Stop::Fault(fault) => self.faulted(part, fault).await,
            Stop::Again => self.queue.push_front(part),
            Stop::Split(why) => self.split(part, why),
            Stop::Over { at, why, before } => self.over(part, at, why, before).await,
            Stop::Broke { at, fault } => self.broke(part, at, fault).await,
            Stop::Doubt { ends, fault } => self.doubt(part, ends, fault).await,
            Stop::TakenOver => self.taken_over(),
            Stop::Aborted => self.queue.push_front(part),
        }
    }

    /// What was committed.
    fn written(&mut self, ends: &[End], said: Option<&[Ended]>) {
        for (number, end) in ends.iter().enumerate() {
            self.left = self.left.saturating_sub(1);
            match said.and_then(|said| said.get(number)) {
                Some(Ended::Stale) => {
                    self.report.lost += 1;
                    continue;
                }
                Some(Ended::Late) => self.report.late += 1,
                Some(Ended::Written) | None => {}
            }
            self.report.finished(self.crew, self.run, end);
            if let (How::Failed { .. }, Some(taken)) = (&end.how, self.run.taken.get(end.at)) {
                self.blocked.insert(taken.lane);
            }
        }
    }

    /// Tries these, in order, in one transaction.
    async fn trial(&mut self, places: &[usize]) -> Result<Vec<End>, Stop<S::Error>> {
        self.mark = self.mark.wrapping_add(1);
        self.prolong().await?;
        let mut tx = self.core.begin().await?;
        match self.hold(&mut tx).await {
            Ok(true) => {}
            Ok(false) => {
                self.core.rollback(tx).await;
                return Err(Stop::TakenOver);
            }
            Err(fault) => {
                if fault.spares_connection() {
                    self.core.rollback(tx).await;
                }
                return Err(fault.into());
            }
        }
        let mut ends = Vec::with_capacity(places.len());
        let ran = match S::TOGETHER {
            true => self.together(&mut tx, places, &mut ends).await,
            false => self.each(&mut tx, places, &mut ends).await,
        };
        match ran {
            Ok(()) => self.conclude(tx, ends).await,
            Err(Left::Rollback(stop)) => {
                self.core.rollback(tx).await;
                Err(stop)
            }
            Err(Left::Close(stop)) => Err(stop),
        }
    }

    /// What a transaction that was rolled back had prolonged is as it was before.
    async fn prolong(&mut self) -> Result<(), Stop<S::Error>> {
        let now = Instant::now();
        if self.until.saturating_duration_since(now) > self.run.lease * 2 / 3 {
            return Ok(());
        }
        match self.core.prolong(self.run).await? {
            true => self.until = now + self.run.lease,
            false => return Err(Stop::TakenOver),
        }
        Ok(())
    }

    async fn hold(&self, tx: &mut Tx<DB>) -> Result<bool, Fault> {
        self.core.hold(tx.conn()?, self.run, self.mark).await
    }

    /// Writes how they ended, and commits.
    async fn conclude(&self, mut tx: Tx<DB>, ends: Vec<End>) -> Result<Vec<End>, Stop<S::Error>> {
        let last = ends.len() >= self.left;
        let finished = match tx.conn() {
            Ok(conn) => self.core.finish(conn, self.run, &ends, last).await,
            Err(fault) => Err(fault),
        };
        if let Err(fault) = finished {
            if fault.spares_connection() {
                self.core.rollback(tx).await;
            }
            return Err(fault.into());
        }
        match self.core.commit(tx).await {
            Committed::Yes => Ok(ends),
            Committed::No(Fault::Refused(said)) => {
                tracing::debug!(%said, "the database refused to commit a run");
                Err(Stop::Split(Why::Misused(Misuse::Refused)))
            }
            Committed::No(fault) => Err(fault.into()),
            Committed::Unknown(fault) => Err(Stop::Doubt { ends, fault }),
        }
    }

    /// A message's turn. Answers whether it is to be handled.
    fn turn(&self, at: usize, blocked: &mut HashSet<i64>, ends: &mut Vec<End>) -> bool {
        let Some(taken) = self.run.taken.get(at) else { return false };
        let waits = self.run.by_key && blocked.contains(&taken.lane);
        let Some(why) = self.decided[at].as_ref().filter(|_| !waits) else {
            let given_back = waits || self.down || self.halt.begin_none.is_cancelled();
            if given_back {
                ends.push(End { at, how: How::Released });
            }
            return !given_back;
        };
        let how = self.crew.how(taken.attempt, why, self.core.base.random());
        if matches!(how, How::Failed { .. }) {
            blocked.insert(taken.lane);
        }
        ends.push(End { at, how });
        false
    }

    /// Runs the handler for each message, one after the other.
    async fn each(&mut self, tx: &mut Tx<DB>, places: &[usize], ends: &mut Vec<End>) -> Result<(), Left<S::Error>> {
        let mut blocked = self.blocked.clone();
        for (number, &at) in places.iter().enumerate() {
            if !self.turn(at, &mut blocked, ends) {
                continue;
            }
            let ran = self.call(tx, &[at]).await;
            let next = number + 1 < places.len();
            match self.ended(tx, at, ran, next, ends).await? {
                None => ends.push(End { at, how: How::Succeeded }),
                Some(why) => {
                    self.decide(at, why);
                    // Noted as decided; or, where what it needs is down, given back.
                    self.turn(at, &mut blocked, ends);
                }
            }
        }
        Ok(())
    }

    /// Runs the handler once for all messages.
    async fn together(&mut self, tx: &mut Tx<DB>, places: &[usize], ends: &mut Vec<End>) -> Result<(), Left<S::Error>> {
        let mut blocked = self.blocked.clone();
        let mut ready = Vec::with_capacity(places.len());
        for &at in places {
            if self.turn(at, &mut blocked, ends) {
                ready.push(at);
            }
        }
        let Some(&first) = ready.first() else { return Ok(()) };
        let ran = self.call(tx, &ready).await;
        if let Ran::Ended(Err(failure @ (Failure::Panicked(_) | Failure::TimedOut(_)))) = ran {
            // Whose fault it was shows when they are run apart.
            return Err(Left::Close(Stop::Split(Why::Handler(failure))));
        }
        if let Some(why) = self.ended(tx, first, ran, false, ends).await? {
            return Err(Left::Rollback(Stop::Split(why)));
        }
        ends.extend(ready.into_iter().map(|at| End { at, how: How::Succeeded }));
        Ok(())
    }

    /// Calls the handler.
    async fn call(&mut self, tx: &mut Tx<DB>, places: &[usize]) -> Ran<S::Error> {
        let (Some(&first), Ok(conn)) = (places.first(), tx.conn()) else {
            return Ran::Ended(Err(Failure::Panicked("the connection is gone".into())));
        };
        let in_a_row = places.windows(2).all(|pair| matches!(pair, [a, b] if a + 1 == *b));
        let picked: Vec<Message>;
        let messages = match in_a_row {
            true => self.messages.get(first..first + places.len()).unwrap_or_default(),
            false => {
                picked = places.iter().filter_map(|at| self.messages.get(*at).cloned()).collect();
                &picked
            }
        };
        let attempt = self.run.taken.get(first).map_or(1, |taken| taken.attempt);
        let began = Instant::now();
        let span = match (self.crew.wants_spans(), messages.first()) {
            (true, Some(message)) => {
                self.crew.span(&Process::new(&self.crew.group, message, attempt).messages(messages.len()))
            }
            _ => tracing::Span::none(),
        };
        let running = bounded(self.crew.handler_timeout, self.shape.call(messages, conn)).instrument(span.clone());
        let ran = tokio::select! {
            biased;
            ended = running => Ran::Ended(ended),
            () = self.halt.abort.cancelled() => Ran::Aborted,
        };
        let took = began.elapsed();
        let outcome = match &ran {
            Ran::Ended(Ok(())) => Outcome::Succeeded,
            Ran::Ended(Err(failure)) => outcome_of(failure),
            Ran::Aborted => Outcome::Aborted,
        };
        Process::ended(&span, outcome);
        self.report.called += places.len();
        if !matches!(outcome, Outcome::Unavailable | Outcome::Aborted) {
            self.report.up = true;
        }
        let told = self.run.taken.get(first).and_then(|taken| self.crew.told(taken, places.len(), outcome, took));
        self.report.calls.extend(told);
        ran
    }

    /// The handler was called: what its transaction is then. Answers with why it failed, its effects being gone.
    async fn ended(
        &mut self,
        tx: &mut Tx<DB>,
        at: usize,
        ran: Ran<S::Error>,
        next: bool,
        ends: &[End],
    ) -> Result<Option<Why<S::Error>>, Left<S::Error>> {
        let ran = match ran {
            Ran::Ended(ran) => ran,
            Ran::Aborted => return Err(Left::Close(Stop::Aborted)),
        };
        match called(tx, ran, next).await {
            Called::Well => Ok(None),
            Called::Failed(why) => Ok(Some(why)),
            Called::Torn(failure) => {
                self.decided[at] = Some(Why::Handler(failure));
                Err(Left::Close(Stop::Again))
            }
            Called::Over(why) => {
                let before = ends.iter().filter(|end| matches!(end.how, How::Succeeded)).map(|end| end.at).collect();
                Err(Left::Close(Stop::Over { at, why, before }))
            }
            Called::Rollback(fault) => Err(Left::Rollback(fault.into())),
            Called::Lost(_, fault) => Err(Left::Close(Stop::Broke { at, fault })),
            Called::Close(fault) => Err(Left::Close(fault.into())),
        }
    }

    /// Keeps why an attempt failed; or that what handlers need is down, which is nobody's fault.
    fn decide(&mut self, at: usize, why: Why<S::Error>) {
        if why.class() == ErrorClass::Unavailable {
            self.down = true;
        } else {
            self.decided[at] = Some(why);
        }
    }

    fn halve(&mut self, part: Part) {
        let [first, second] = part.halves();
        self.queue.push_front(second);
        self.queue.push_front(first);
    }

    fn split(&mut self, part: Part, why: Why<S::Error>) {
        if part.places.len() > 1 && why.class() != ErrorClass::Unavailable {
            return self.halve(part);
        }
        if let Some(&first) = part.places.first() {
            self.decide(first, why);
        }
        self.queue.push_front(part);
    }

    /// Everything was rolled back.
    async fn faulted(&mut self, mut part: Part, fault: Fault) {
        tracing::debug!(messages = part.places.len(), error = %fault, "a transaction was rolled back");
        match fault {
            Fault::Contended(_) => {
                part.tries += 1;
                if part.places.len() > 1 && part.tries > WHOLE {
                    part.tries = 0;
                    self.halve(part);
                } else if part.tries > CONTENDED {
                    self.park(part, &fault).await;
                } else {
                    self.rest(jitter(part.tries)).await;
                    self.queue.push_front(part);
                }
            }
            Fault::Locked(_) if DB::Dialect::LOCKS_ROWS && part.places.len() > 1 => self.halve(part),
            Fault::Locked(_) if DB::Dialect::LOCKS_ROWS => self.park(part, &fault).await,
            Fault::Refused(_) | Fault::Corrupt(_) => {
                tracing::error!(error = %fault, messages = self.left, "the database refuses: the rest of a run is left to its lease");
                self.report.unsettled += self.left as u64;
                self.give_up();
            }
            Fault::Broken(_) | Fault::Unavailable(_) | Fault::Locked(_) => {
                // The first may be a connection that the pool did not know to be dead.
                if self.failures > 0 {
                    self.rest(pause(self.failures, self.core.base.random())).await;
                }
                self.failures = self.failures.saturating_add(1);
                self.queue.push_front(part);
            }
        }
    }

    /// The connection was gone when a handler returned. Once it may be anybody's fault; each time with the same message, it is that one's: it writes
    /// what the server does not take, or waits for longer than the server lets a transaction be idle.
    async fn broke(&mut self, mut part: Part, at: usize, fault: Fault) {
        let times = if part.broke.0 == at { part.broke.1 + 1 } else { 1 };
        part.broke = (at, times);
        if times <= BROKE {
            return self.faulted(part, fault).await;
        }
        part.broke = (usize::MAX, 0);
        if S::TOGETHER && part.places.len() > 1 {
            return self.halve(part);
        }
        let text = format!("its connection was lost each time: {fault}");
        self.decided[at] = Some(Why::Handler(Failure::Panicked(text)));
        self.queue.push_front(part);
    }

    /// Somebody keeps locked what this message needs: later, with no attempt burnt.
    async fn park(&mut self, part: Part, fault: &Fault) {
        let ends: Vec<End> = part
            .places
            .iter()
            .map(|&at| End {
                at,
                how: How::Failed { class: Class::Unavailable, text: fault.to_string(), retry_in: LOCKED },
            })
            .collect();
        self.tell(ends).await;
    }

    /// Writes ends outside of a transaction with effects.
    async fn tell(&mut self, ends: Vec<End>) {
        let last = ends.len() >= self.left;
        loop {
            let fault = match self.core.conclude(self.run, &ends, last).await {
                Ok(said) => return self.written(&ends, Some(&said)),
                Err(fault) => fault,
            };
            let refused = matches!(fault, Fault::Refused(_) | Fault::Corrupt(_));
            if refused || self.halt.abort.is_cancelled() {
                tracing::warn!(error = %fault, messages = ends.len(), "the database could not be told how messages ended: their lease runs out");
                self.report.unsettled += ends.len() as u64;
                self.left = self.left.saturating_sub(ends.len());
                return;
            }
            self.failed_again().await;
        }
    }

    async fn failed_again(&mut self) {
        self.failures = self.failures.saturating_add(1);
        self.rest(pause(self.failures, self.core.base.random())).await;
    }

    fn give_up(&mut self) {
        self.queue.clear();
        self.left = 0;
    }

    fn taken_over(&mut self) {
        tracing::warn!(run = self.run.number, messages = self.left, "a run's lease ran out: others have its messages");
        self.report.lost += self.left as u64;
        self.give_up();
    }

    /// The transaction was over when a handler returned.
    async fn over(&mut self, mut part: Part, at: usize, why: Option<Why<S::Error>>, before: Vec<usize>) {
        let marked = loop {
            match self.core.marked(self.run).await {
                Ok(marked) => break marked,
                Err(fault @ (Fault::Refused(_) | Fault::Corrupt(_))) => {
                    return self.faulted(part, fault).await;
                }
                Err(_) if self.halt.abort.is_cancelled() => {
                    // What stands is not known: nothing is given back that may have happened.
                    self.report.unsettled += self.left as u64;
                    return self.give_up();
                }
                Err(_) => {
                    self.failed_again().await;
                }
            }
        };
        let stands = marked == Some(self.mark);
        if !stands && why.is_some() && DB::Dialect::ROLLS_BACK {
            // As a deadlock does.
            part.over += 1;
            if part.over <= OVER {
                self.rest(jitter(part.over)).await;
                return match part.places.len() > 1 {
                    true => self.halve(part),
                    false => self.queue.push_front(part),
                };
            }
            self.decided[at] = why;
            return self.queue.push_front(part);
        }
        let message = self.run.taken.get(at).map(|taken| taken.id);
        tracing::error!(message, committed = stands, "{}", Misuse::Ended);
        match S::TOGETHER {
            // It was given all of them, and all of them may stand.
            true => part.places.iter().for_each(|at| self.decided[*at] = Some(Why::Misused(Misuse::Ended))),
            false => self.decided[at] = Some(Why::Misused(Misuse::Ended)),
        }
        if stands && !before.is_empty() {
            // Their effects were committed with it.
            part.places.retain(|at| !before.contains(at));
            self.tell(before.iter().map(|&at| End { at, how: How::Succeeded }).collect()).await;
        }
        self.queue.push_front(part);
    }

    /// The reply to a commit was lost.
    async fn doubt(&mut self, part: Part, ends: Vec<End>, fault: Fault) {
        tracing::debug!(error = %fault, messages = ends.len(), "a commit was not answered: looking what it came to");
        let places: Vec<usize> = ends.iter().map(|end| end.at).collect();
        loop {
            match self.core.ended_by(self.run, &places).await {
                Ok(true) => return self.written(&ends, None),
                // Not at once: what kept it from being committed may last.
                Ok(false) => return self.faulted(part, fault).await,
                Err(other)
                    if matches!(other, Fault::Refused(_) | Fault::Corrupt(_)) || self.halt.abort.is_cancelled() =>
                {
                    tracing::warn!(error = %other, "what a lost commit came to is not known: the rest of a run is left to its lease");
                    self.report.unsettled += self.left as u64;
                    return self.give_up();
                }
                Err(_) => {
                    self.failed_again().await;
                }
            }
        }
    }

    /// Waits, unless there is no time left.
    async fn rest(&self, for_so_long: Duration) {
        let _ = tokio::time::timeout(for_so_long, self.halt.abort.cancelled()).await;
    }

    /// Gives back what is left when there is no time left.
    async fn release(&mut self) {
        let places: Vec<usize> = self.queue.drain(..).flat_map(|part| part.places).collect();
        if places.is_empty() {
            return;
        }
        self.tell(places.iter().map(|&at| End { at, how: How::Released }).collect()).await;
    }
}
