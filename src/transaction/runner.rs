//! A batch, tried until each of its messages has an outcome.

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::core::Core;
use super::dialect::{Source, Transact};
use super::holding::Holding;
use super::outcome::{Item, Known, Misuse, Outcome, Spot, Why, Work};
use super::sealed::Sealed;
use super::trial::{Batch, Outcomes, Rules, Stop, Wrote};
use super::windows::{Held, Verdict};
use crate::store::StoreError;
use crate::store::sql::{Dialect, Fault, jitter};
use crate::wrapper::{ErrorClass, OnConflict, pause};

/// How often a single message is tried again that the database gave up in favour of others.
const CONTENDED: u32 = 8;
/// How often a batch is, before it is halved.
const WHOLE: u32 = 1;
/// How often a transaction that was over too early counts as given up in favour of another, where the database ends them so.
const OVER: u32 = 3;
/// How often in a row a message may lose its connection before that counts as its failure.
const LOST: u32 = 3;

/// Some of a batch, on its way.
struct Part {
    places: Vec<usize>,
    tries: u32,
    over: u32,
    /// Somebody holds a lock: find out on what.
    brief: bool,
    /// A savepoint for each message.
    careful: bool,
    /// Whose handler lost its connection last, and how often in a row.
    lost: (usize, u32),
}

impl Part {
    fn of(places: Vec<usize>) -> Self {
        Self { places, tries: 0, over: 0, brief: false, careful: false, lost: (usize::MAX, 0) }
    }

    fn halves(self) -> [Self; 2] {
        let Self { mut places, tries, over, brief, careful, lost } = self;
        let second = places.split_off(places.len() / 2);
        [Self { places, tries, over, brief, careful, lost }, Self { places: second, tries, over, brief, careful, lost }]
    }
}

struct Run<'a, DB: Sealed, W: Work<DB>> {
    core: &'a Core<DB>,
    work: &'a W,
    batch: Batch<'a, W::Error>,
    outcomes: Vec<Option<Outcome<W::Value, W::Error>>>,
    queue: VecDeque<Part>,
    /// Since when the database has not answered, and how often it was asked.
    down: Option<(Instant, u32)>,
}

impl<DB: Sealed> Core<DB> {
    /// Handles these messages, each once, in as few transactions as may be; one outcome for each, in order.
    ///
    /// # Cancel safety
    ///
    /// A dropped future leaves nothing half done: what was not committed is rolled back, with its connection closed, and a commit that
    /// was sent is waited for by a task of its own.
    pub(crate) async fn run<W: Work<DB>>(
        &self,
        items: &[Item],
        work: &W,
        rules: Rules,
    ) -> Vec<Outcome<W::Value, W::Error>> {
        let batch = Batch {
            items,
            held: self.holding(items),
            decided: items.iter().map(|_| None).collect(),
            blocked: HashSet::new(),
            waits: HashSet::new(),
            rules,
        };
        let queue = parts(items, &batch.held, self.settings.most);
        let outcomes = items.iter().map(|_| None).collect();
        let mut run = Run { core: self, work, batch, outcomes, queue, down: None };
        while let Some(part) = run.queue.pop_front() {
            run.step(part).await;
        }
        let outcomes = run.outcomes.into_iter();
        outcomes.map(|outcome| outcome.unwrap_or(Outcome::NotBegun)).collect()
    }
}

impl<DB: Sealed, W: Work<DB>> Run<'_, DB, W> {
    fn answer(&mut self, at: usize, mut outcome: Outcome<W::Value, W::Error>) {
        let item = &self.batch.items[at];
        let counters = &self.core.counters;
        let settings = &self.core.settings;
        let mut blocks = false;
        match &mut outcome {
            Outcome::Handled(_) => {
                counters.handled.one();
                self.core.trust(true);
            }
            Outcome::Known(known) => match known {
                Known::Redelivered(_) | Known::SameId(_) => counters.duplicates.one(),
                Known::Conflict { .. } => {
                    counters.conflicts.one();
                    blocks = settings.on_conflict != OnConflict::Skip;
                }
                Known::TooOld => blocks = settings.on_too_old != OnConflict::Skip,
                Known::Dead { .. } => {
                    counters.dead.one();
                    blocks = !self.batch.rules.bury;
                }
                Known::InFlight { .. } | Known::NotDue { .. } => blocks = true,
            },
            Outcome::Failed(failed) => {
                counters.failed.one();
                self.core.trust(false);
                failed.dead &= self.batch.rules.bury;
                counters.dead.add(u64::from(failed.dead));
                blocks = !failed.dead;
                if let Some(why) = self.batch.decided.get_mut(at).and_then(Option::take) {
                    failed.why = why;
                }
            }
            Outcome::Fenced => {
                counters.fenced.one();
                blocks = true;
            }
            Outcome::NotBegun | Outcome::Unknown(_) => blocks = true,
        }
        if blocks && let Some(row) = item.row {
            self.batch.blocked.insert(row);
        }
        self.outcomes[at] = Some(outcome);
    }

    fn answer_all(&mut self, outcomes: Outcomes<W::Value, W::Error>) {
        for (at, outcome) in outcomes {
            self.answer(at, outcome);
        }
    }

    /// Answers what memory knows; what is left is to be tried.
    async fn screen(&mut self, places: &[usize]) -> Result<Vec<usize>, Fault> {
        let held = &self.batch.held;
        let is_of = |held: &Arc<Held>| {
            places.iter().any(|at| self.batch.held.get(*at).is_some_and(|own| Arc::ptr_eq(own, held)))
        };
        let doubtful = held.all().iter().filter(|held| held.is_in_doubt() && is_of(held));
        let doubtful: Vec<Arc<Held>> = doubtful.cloned().collect();
        self.core.resolve(&doubtful).await?;
        let verdicts = self.batch.held.look(self.batch.items, places);
        let mut left = Vec::with_capacity(places.len());
        for (&at, verdict) in places.iter().zip(verdicts) {
            let item = &self.batch.items[at];
            // A producer's number that waits has to be noted.
            let numbered = matches!(item.spot, Some(Spot::Sequence { .. }));
            if !numbered && item.row.is_some_and(|row| self.batch.blocked.contains(&row)) {
                self.answer(at, Outcome::NotBegun);
                continue;
            }
            match verdict {
                Some(Verdict::Finished) => self.answer(at, Outcome::Known(Known::Redelivered(None))),
                Some(Verdict::Fenced) => self.answer(at, Outcome::Fenced),
                Some(Verdict::New { .. }) | None => left.push(at),
            }
        }
        Ok(left)
    }

    async fn step(&mut self, mut part: Part) {
        match self.screen(&part.places).await {
            Ok(places) => part.places = places,
            Err(fault) => return self.faulted(part, fault).await,
        }
        if part.places.is_empty() {
            return;
        }
        if let Err(error) = self.work.ready(part.places.len()).await {
            let rest = std::mem::take(&mut self.queue);
            for part in std::iter::once(part).chain(rest) {
                self.unknown(part, &error);
            }
            return;
        }
        let suspect = |at: &usize| {
            self.batch.held.get(*at).is_some_and(|held| held.is_suspect(self.batch.items[*at].origin.offset))
        };
        if part.places.len() > 1 && part.places.iter().any(suspect) {
            return self.halve(part);
        }
        if let Err(fault) = self.caution(&part.places).await {
            return self.faulted(part, fault).await;
        }
        let tried = self.core.trial(&mut self.batch, &part.places, self.work, part.brief, part.careful).await;
        let stop = match tried {
            Ok(outcomes) => {
                self.down = None;
                return self.answer_all(outcomes);
            }
            Err(stop) => stop,
        };
        match stop {
            Stop::Fault(fault) => {
                // With savepoints it shows whose handler did not say that it had lost its connection.
                part.careful |= matches!(fault, Fault::Broken(_));
                self.faulted(part, fault).await;
            }
            Stop::Lost { at, why, fault } => self.lost(part, at, why, fault).await,
            Stop::Again => self.queue.push_front(part),
            Stop::Careful => {
                part.careful = true;
                self.core.trust(false);
                self.queue.push_front(part);
            }
            Stop::Split(why) => self.split(part, why),
            Stop::Over { at, all, why, wrote } => self.over(part, at, all, why, &wrote).await,
            Stop::Fenced(held) => self.fenced(part, held).await,
            Stop::Doubt { outcomes, wrote, fault } => self.doubt(part, outcomes, &wrote, fault).await,
        }
    }

    /// Notes what is about to run, where that is needed.
    async fn caution(&self, places: &[usize]) -> Result<(), Fault> {
        if self.batch.held.all().iter().all(|held| held.is_calm()) {
            return Ok(());
        }
        let held = |at: &usize| Some((&self.batch.items[*at], self.batch.held.get(*at)?));
        let items: Vec<_> = places.iter().filter_map(held).collect();
        self.core.caution(&items, self.batch.rules.retry.max_attempts().get()).await
    }

    fn halve(&mut self, part: Part) {
        let [first, second] = part.halves();
        self.queue.push_front(second);
        self.queue.push_front(first);
    }

    fn split(&mut self, part: Part, why: Why<W::Error>) {
        let first = part.places.first().copied();
        let class = why.class();
        if part.places.len() > 1 && class != ErrorClass::Unavailable {
            return self.halve(part);
        }
        let Some(first) = first else { return };
        self.batch.decided[first] = Some(why);
        // What is down is down for all of them. A producer's number that waits has to be noted.
        let mut places = vec![first];
        for &at in part.places.iter().skip(1) {
            if matches!(self.batch.items[at].spot, Some(Spot::Sequence { .. })) {
                self.batch.waits.insert(at);
                places.push(at);
            } else {
                self.answer(at, Outcome::NotBegun);
            }
        }
        self.queue.push_front(Part { places, ..part });
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
                    self.park(part);
                } else {
                    tokio::time::sleep(jitter(part.tries)).await;
                    self.queue.push_front(part);
                }
            }
            Fault::Locked(_) if DB::Dialect::LOCKS_ROWS && part.places.len() > 1 => {
                part.brief = true;
                self.halve(part);
            }
            // What is decided has to be recorded: whoever is in the way may be its own statement, which nobody waits for any more.
            Fault::Locked(_) if DB::Dialect::LOCKS_ROWS && !self.is_decided(&part) => self.park(part),
            Fault::Refused(_) | Fault::Corrupt(_) => self.give_up(part, &fault),
            fault @ (Fault::Broken(_) | Fault::Unavailable(_) | Fault::Locked(_)) => {
                self.core.counters.store_failures.one();
                let (since, failures) = self.down.unwrap_or_else(|| (Instant::now(), 0));
                self.down = Some((since, failures.saturating_add(1)));
                // The first may be a connection that the pool did not know to be dead.
                let delay = match failures {
                    0 => Duration::ZERO,
                    _ => pause(failures, self.core.random()),
                };
                if since.elapsed() + delay >= self.core.settings.store_patience {
                    if matches!(fault, Fault::Locked(_)) && DB::Dialect::LOCKS_ROWS {
                        // It says nothing of the others.
                        self.down = None;
                        return self.park(part);
                    }
                    return self.give_up(part, &fault);
                }
                tokio::time::sleep(delay).await;
                self.queue.push_front(part);
            }
        }
    }

    /// The connection was gone when a handler returned. Once that may be anybody's fault; each time with the same message, it is that one's: it
    /// writes what the server does not take, or leaves its transaction idle for longer than the server allows.
    async fn lost(&mut self, mut part: Part, at: usize, why: Why<W::Error>, fault: Fault) {
        let times = if part.lost.0 == at { part.lost.1 + 1 } else { 1 };
        part.lost = (at, times);
        part.careful = true;
        if why.class() == ErrorClass::Unavailable {
            return self.faulted(part, fault).await;
        }
        if times <= LOST {
            if times > 1 {
                // Its transaction had begun: the database answers.
                self.down = None;
                tokio::time::sleep(pause(times, self.core.random())).await;
            }
            return self.faulted(part, fault).await;
        }
        part.lost = (usize::MAX, 0);
        tracing::warn!(
            topic = &*self.batch.items[at].origin.topic,
            partition = self.batch.items[at].origin.partition,
            offset = self.batch.items[at].origin.offset,
            error = %fault,
            "the handler's connection was lost {times} times in a row: that counts as a failure of this message"
        );
        if self.work.together() {
            return self.split(part, why);
        }
        self.batch.decided[at] = Some(why);
        self.queue.push_front(part);
    }

    fn is_decided(&self, part: &Part) -> bool {
        part.places.iter().any(|at| self.batch.decided[*at].is_some())
    }

    /// Somebody else has these, or something that they need: for a moment.
    fn park(&mut self, part: Part) {
        for at in part.places {
            self.answer(at, Outcome::Known(Known::InFlight { remaining: Duration::ZERO }));
        }
    }

    /// The database cannot be asked: neither for these nor for those behind them.
    fn give_up(&mut self, part: Part, fault: &Fault) {
        let error = fault.error(DB::Dialect::NAME, "handle a batch");
        let rest = std::mem::take(&mut self.queue);
        for part in std::iter::once(part).chain(rest) {
            self.unknown(part, &error);
        }
    }

    /// Nobody knows what the database would say of these.
    fn unknown(&mut self, part: Part, error: &StoreError) {
        for at in part.places {
            self.answer(at, Outcome::Unknown(error.clone()));
        }
    }

    /// The transaction was over when a handler returned.
    async fn over(&mut self, mut part: Part, at: usize, all: bool, why: Option<Why<W::Error>>, wrote: &Wrote) {
        self.core.trust(false);
        let found =
            match self.core.again("take back what a handler committed", async || self.core.repair(wrote).await).await {
                Ok(found) => found,
                Err(error) => return self.unknown(part, &error),
            };
        // What came after it in other handlers, none of which was looked after, stands where statements commit by themselves then.
        let gone = !all || self.work.together() || DB::Dialect::LOCKS_ROWS || why.is_some();
        if !found && why.is_some() && DB::Dialect::ROLLS_BACK && gone {
            // As a deadlock does.
            part.over += 1;
            if part.over <= OVER {
                tokio::time::sleep(jitter(part.over)).await;
                if part.places.len() > 1 {
                    return self.halve(part);
                }
                return self.queue.push_front(part);
            }
            self.batch.decided[at] = why;
            return self.queue.push_front(part);
        }
        tracing::error!(
            topic = &*self.batch.items[at].origin.topic,
            partition = self.batch.items[at].origin.partition,
            offset = self.batch.items[at].origin.offset,
            "{}",
            Misuse::Ended
        );
        if !all {
            self.batch.decided[at] = Some(Why::Misused(Misuse::Ended));
        } else if !found && !wrote.records.is_empty() && !self.work.together() && DB::Dialect::ROLLS_BACK && gone {
            // Nothing of it stands, as after a deadlock that a handler overlooked: with savepoints it shows which it was.
            part.careful = true;
        } else {
            for at in &part.places {
                self.batch.decided[*at] = Some(Why::Misused(Misuse::Ended));
            }
        }
        self.queue.push_front(part);
    }

    /// A window did not move: whose fence was raised shows in the table.
    async fn fenced(&mut self, part: Part, held: Vec<Arc<Held>>) {
        let any = match self.core.again("read windows", async || self.core.find_fenced(&held).await).await {
            Ok(any) => any,
            Err(error) => return self.unknown(part, &error),
        };
        match any {
            true => self.queue.push_front(part),
            // A producer's row was deleted by hand under its lock, or the like.
            false => self.faulted(part, Fault::Contended("a window was changed by another.".into())).await,
        }
    }

    /// The reply to a commit was lost.
    async fn doubt(&mut self, part: Part, outcomes: Outcomes<W::Value, W::Error>, wrote: &Wrote, fault: Fault) {
        tracing::debug!(error = %fault, messages = part.places.len(), "a commit was not answered: looking what it came to");
        match self.core.again("read what a lost commit came to", async || self.core.was_committed(wrote).await).await {
            Ok(true) => self.answer_all(outcomes),
            // Not at once: what kept it from being committed may last.
            Ok(false) => self.faulted(part, fault).await,
            Err(error) => self.unknown(part, &error),
        }
    }
}

/// Parts of a batch, in order: no message twice in one, and no more than so many.
fn parts(items: &[Item], held: &Holding, most: usize) -> VecDeque<Part> {
    let mut queue = VecDeque::new();
    let mut rest: Vec<usize> = (0..items.len()).collect();
    let apart = held.is_apart(items);
    if apart && are_others(items) {
        queue.extend(rest.chunks(most.max(1)).map(|places| Part::of(places.to_vec())));
        return queue;
    }
    while !rest.is_empty() {
        let mut seen: HashSet<Twin<'_>> = HashSet::with_capacity(rest.len());
        let mut waiting: HashSet<u64> = HashSet::new();
        let mut later = Vec::new();
        let mut first = Vec::with_capacity(rest.len());
        for at in rest {
            let row = items[at].row;
            let waits = row.is_some_and(|row| waiting.contains(&row));
            match !waits && twins(&items[at], apart).into_iter().flatten().all(|twin| seen.insert(twin)) {
                true => first.push(at),
                // It waits for what becomes of the other, and what has to stay behind it waits too.
                false => {
                    waiting.extend(row);
                    later.push(at);
                }
            }
        }
        for places in first.chunks(most.max(1)) {
            queue.push_back(Part::of(places.to_vec()));
        }
        rest = later;
    }
    queue
}

/// Whether no two of these have one record, and none has a producer's number: as it mostly is.
fn are_others(items: &[Item]) -> bool {
    if items.iter().any(|item| matches!(item.spot, Some(Spot::Sequence { .. }))) {
        return false;
    }
    let keys = items.iter().filter_map(|item| item.record.as_ref());
    let mut keys: Vec<u128> = keys.map(|record| u128::from_be_bytes(*record.key.as_bytes())).collect();
    keys.sort_unstable();
    keys.is_sorted_by(|one, two| one < two)
}

/// By what two items are one message.
#[derive(PartialEq, Eq, Hash)]
enum Twin<'a> {
    Record(&'a [u8; 16]),
    Number(&'a Source, u64),
    Place(&'a str, i32, i64),
}

/// `apart`: no two places are the same.
fn twins(item: &Item, apart: bool) -> [Option<Twin<'_>>; 2] {
    let record = item.record.as_ref().map(|record| Twin::Record(record.key.as_bytes()));
    let spot = item.spot.as_ref().and_then(|spot| match spot {
        Spot::Position if apart => None,
        Spot::Position => Some(Twin::Place(&item.origin.topic, item.origin.partition, item.origin.offset)),
        Spot::Sequence { source, number, .. } => Some(Twin::Number(source, *number)),
    });
    [record, spot]
}
