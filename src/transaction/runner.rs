//! A batch, tried until each of its messages has an outcome.

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::core::{Core, finish};
use super::dialect::{Source, Transact};
use super::link::{Committed, sorted};
use super::outcome::{Item, Known, Misuse, Outcome, Pinned, Spot, Why, Work};
use super::records::ending;
use super::sealed::Sealed;
use super::trial::{Batch, Moving, Outcomes, Rules, Stop, Wrote};
use super::windows::{Held, Verdict};
use crate::record::{Fence, Owner, Record, Sighting, State, Token};
use crate::store::StoreError;
use crate::store::cells::{Change, Ending};
use crate::store::sql::{Dialect, Fault, jitter};
use crate::wrapper::{ErrorClass, OnConflict, pause};

/// How often a single message is tried again that the database gave up in favour of others.
const CONTENDED: u32 = 8;
/// How often a batch is, before it is halved.
const WHOLE: u32 = 1;
/// How often a transaction that was over too early counts as given up in favour of another, where the database ends them so.
const OVER: u32 = 3;

/// Some of a batch, on its way.
struct Part {
    places: Vec<usize>,
    tries: u32,
    over: u32,
    /// Somebody holds a lock: find out on what.
    brief: bool,
}

impl Part {
    fn of(places: Vec<usize>) -> Self {
        Self { places, tries: 0, over: 0, brief: false }
    }

    fn halves(self) -> [Self; 2] {
        let Self { mut places, tries, over, brief } = self;
        let second = places.split_off(places.len() / 2);
        [Self { places, tries, over, brief }, Self { places: second, tries, over, brief }]
    }
}

/// What became of a message that was given up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Buried {
    /// It is recorded as dead, and its window has moved past it.
    Recorded,
    /// It was handled meanwhile, or its partition belongs to another process: nothing was changed.
    Refused,
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
            held: self.held_of(items),
            decided: items.iter().map(|_| None).collect(),
            blocked: HashSet::new(),
            rules,
        };
        let queue = parts(items, self.settings.most);
        let outcomes = items.iter().map(|_| None).collect();
        let mut run = Run { core: self, work, batch, outcomes, queue, down: None };
        while let Some(part) = run.queue.pop_front() {
            run.step(part).await;
        }
        let outcomes = run.outcomes.into_iter();
        outcomes.map(|outcome| outcome.unwrap_or(Outcome::NotBegun)).collect()
    }

    fn held_of(&self, items: &[Item]) -> Vec<Option<Arc<Held>>> {
        let mut last: Option<(&Item, Option<Arc<Held>>)> = None;
        let mut held = Vec::with_capacity(items.len());
        for item in items {
            let Some(Spot::Position) = item.spot else {
                held.push(None);
                continue;
            };
            let found = match &last {
                Some((other, found))
                    if matches!((&other.held, &item.held), (Pinned::Free, Pinned::Free))
                        && other.origin.partition == item.origin.partition
                        && other.origin.topic == item.origin.topic =>
                {
                    found.clone()
                }
                _ => self.held_by(item),
            };
            held.push(found.clone());
            last = Some((item, found));
        }
        held
    }

    /// Finds out what a lost commit came to, for those windows that are in doubt.
    async fn resolve(&self, doubtful: &[Arc<Held>]) -> Result<(), Fault> {
        for held in doubtful {
            let _moving = held.moving.lock().await;
            if held.doubt().is_none() {
                continue;
            }
            let rows = self.rows(&[held.source]).await?;
            held.resolve(rows.first());
        }
        Ok(())
    }

    /// Whether a transaction whose commit was not answered was committed. Waits for it where it is not over.
    async fn was_committed(&self, wrote: &Wrote) -> Result<bool, Fault> {
        for held in &wrote.held {
            let _moving = held.moving.lock().await;
            if held.doubt().is_none() {
                continue;
            }
            let rows = self.rows(&[held.source]).await?;
            if let Some(committed) = held.resolve(rows.first()) {
                self.resolve_others(&wrote.held, held).await?;
                return Ok(committed);
            }
        }
        let Some((sighting, token, _)) = wrote.records.first() else { return Ok(false) };
        let mut tx = self.begin(false).await?;
        // Waits for the one in doubt, if that is still open.
        let probe = Owner::new(self.random());
        let fresh = self.remember(&mut tx, probe, &[sighting], false).await? == 1;
        let committed = match fresh {
            true => false,
            false => self.stands(&mut tx, sighting, *token).await?,
        };
        finish(tx.rollback()).await;
        Ok(committed)
    }

    async fn resolve_others(&self, held: &[Arc<Held>], but: &Arc<Held>) -> Result<(), Fault> {
        let others: Vec<_> = held.iter().filter(|held| !Arc::ptr_eq(held, but)).cloned().collect();
        self.resolve(&others).await
    }

    /// Whether a record stands as this token wrote it; waits for whoever is writing it.
    async fn stands(&self, tx: &mut super::link::Tx<DB>, sighting: &Sighting, token: Token) -> Result<bool, Fault> {
        let (now, records) = self.read(tx, &[sighting.key], false).await?;
        let Some(Some(record)) = records.into_iter().next() else { return Ok(false) };
        if record.token() == token {
            return Ok(true);
        }
        // What is read may be about to change: only a write waits for that.
        let change = Change { key: sighting.key, before: Some(record.stamp()), after: record, now };
        self.swap(tx, &[change], false).await?;
        Ok(false)
    }

    /// Takes back what a transaction remembered that its handler committed before its time. Says whether there was any.
    async fn repair(&self, wrote: &Wrote) -> Result<bool, Fault> {
        if wrote.records.is_empty() {
            return Ok(false);
        }
        let mut endings: Vec<Ending> = wrote
            .records
            .iter()
            .map(|(sighting, token, before)| ending(sighting, *token, *before, State::Failed { due: 0 }))
            .collect();
        let mut tx = self.begin(false).await?;
        let found = self.take_back(&mut tx, &mut endings, false).await?;
        match finish(tx.commit()).await {
            Committed::Yes => Ok(found > 0),
            Committed::No(fault) | Committed::Unknown(fault) => Err(fault),
        }
    }

    /// Gives messages up: records as dead, windows past them, in one transaction for each. May be asked again.
    ///
    /// # Errors
    ///
    /// [`StoreError`], retryable where the database could not be reached.
    #[allow(dead_code, reason = "for the consumer")]
    pub(crate) async fn bury(&self, items: &[Item]) -> Result<Vec<Buried>, StoreError> {
        let mut buried = Vec::with_capacity(items.len());
        for item in items {
            buried.push(self.again("give a message up", async || self.bury_one(item).await).await?);
        }
        Ok(buried)
    }

    async fn bury_one(&self, item: &Item) -> Result<Buried, Fault> {
        let items = std::slice::from_ref(item);
        let held = self.held_of(items);
        if let Some(Spot::Position) = &item.spot {
            let Some(Some(held)) = held.first() else { return Ok(Buried::Refused) };
            self.resolve(std::slice::from_ref(held)).await?;
            match held.look(item.origin.offset) {
                Verdict::Fenced => return Ok(Buried::Refused),
                Verdict::Finished => return Ok(Buried::Recorded),
                Verdict::New { .. } => {}
            }
        }
        let mut tx = self.begin(false).await?;
        let mut answer = Buried::Recorded;
        if let Some(sighting) = &item.record {
            match self.bury_record(&mut tx, sighting, item.attempt).await {
                Ok(buried) => answer = buried,
                Err(fault) => {
                    if fault.spares_connection() {
                        finish(tx.rollback()).await;
                    }
                    return Err(fault);
                }
            }
        }
        if let Some(Spot::Sequence { source, number, span }) = &item.spot {
            let sources: [Source; 1] = [*source];
            let table = &self.settings.windows;
            let fault = |error: sqlx::Error| sorted::<DB::Dialect>(&error);
            DB::DIALECT.plant(tx.conn()?, table, &sources).await.map_err(fault)?;
            let rows = DB::DIALECT.load(tx.conn()?, table, &sources).await.map_err(fault)?;
            if let Some(row) = rows.first() {
                let mut window = crate::window::Sequences::restore(*span, &row.state)
                    .map_err(|error| Fault::Corrupt(error.to_string()))?;
                window.see(*number);
                let written = window.row();
                let shift = super::dialect::Shift {
                    source: *source,
                    fence: row.fence,
                    next: written.next,
                    state: written.state,
                    note: None,
                };
                DB::DIALECT.shift(tx.conn()?, table, &[shift]).await.map_err(fault)?;
            }
        }
        let batch: Batch<'_, String> = Batch {
            items,
            held,
            decided: vec![None],
            blocked: HashSet::new(),
            rules: Rules { bury: true, retry: self.settings.retry },
        };
        let mut moving = Moving::default();
        moving.take(&batch, &[0], &[]).await?;
        let shifts: Vec<_> = moving.parts.iter().map(|part| part.pending.shift.clone()).collect();
        if !shifts.is_empty() {
            let shifted = DB::DIALECT.shift(tx.conn()?, &self.settings.windows, &shifts).await;
            if shifted.map_err(|error| sorted::<DB::Dialect>(&error))? == 0 {
                moving.parts.iter().for_each(|part| part.held.fence_off());
                finish(tx.rollback()).await;
                return Ok(Buried::Refused);
            }
        }
        match finish(moving.commit(tx)).await {
            Committed::Yes => Ok(answer),
            Committed::No(fault) | Committed::Unknown(fault) => Err(fault),
        }
    }

    /// Makes the record dead, unless the message was handled meanwhile.
    async fn bury_record(
        &self,
        tx: &mut super::link::Tx<DB>,
        sighting: &Sighting,
        attempts: u32,
    ) -> Result<Buried, Fault> {
        let (now, records) = self.read(tx, &[sighting.key], false).await?;
        let state = State::Dead { at: now };
        let Some(record) = records.into_iter().next().flatten() else {
            let after = Record {
                state,
                owner: Owner::new(self.random()),
                fence: Fence::FIRST,
                attempts,
                fingerprint: sighting.fingerprint,
                origin: sighting.origin.clone(),
                result: None,
            };
            let change = Change { key: sighting.key, before: None, after, now };
            self.swap(tx, &[change], false).await?;
            return Ok(Buried::Recorded);
        };
        if record.fingerprint != sighting.fingerprint || matches!(record.state, State::Dead { .. }) {
            // Another message has the identity: this one is passed, and that one's record says nothing of it.
            return Ok(Buried::Recorded);
        }
        match record.state {
            State::Succeeded { .. } => return Ok(Buried::Refused),
            State::Processing { until } if until > now => {
                return Err(Fault::Locked("another owner is handling the message.".into()));
            }
            _ => {}
        }
        let mut after = record.clone();
        after.state = state;
        let change = Change { key: sighting.key, before: Some(record.stamp()), after, now };
        self.swap(tx, &[change], false).await?;
        Ok(Buried::Recorded)
    }
}

impl<DB: Sealed, W: Work<DB>> Run<'_, DB, W> {
    fn answer(&mut self, at: usize, mut outcome: Outcome<W::Value, W::Error>) {
        let item = &self.batch.items[at];
        let counters = &self.core.counters;
        let settings = &self.core.settings;
        let mut blocks = false;
        match &mut outcome {
            Outcome::Handled(_) => counters.handled.one(),
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
                failed.dead &= self.batch.rules.bury;
                counters.dead.add(u64::from(failed.dead));
                blocks = !failed.dead;
                if let Some(why) = self.batch.decided.get_mut(at).and_then(Option::take) {
                    failed.why = why;
                }
            }
            Outcome::NotBegun | Outcome::Fenced | Outcome::Unknown(_) => blocks = true,
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
    async fn screen(&mut self, places: Vec<usize>) -> Result<Vec<usize>, Fault> {
        let mut doubtful: Vec<Arc<Held>> = Vec::new();
        for held in places.iter().filter_map(|at| self.batch.held[*at].as_ref()) {
            if held.doubt().is_some() && !doubtful.iter().any(|other| Arc::ptr_eq(other, held)) {
                doubtful.push(Arc::clone(held));
            }
        }
        self.core.resolve(&doubtful).await?;
        let mut left = Vec::with_capacity(places.len());
        for at in places {
            let item = &self.batch.items[at];
            if item.row.is_some_and(|row| self.batch.blocked.contains(&row)) {
                self.answer(at, Outcome::NotBegun);
                continue;
            }
            match (&item.spot, &self.batch.held[at]) {
                (Some(Spot::Position), Some(held)) => match held.look(item.origin.offset) {
                    Verdict::Finished => self.answer(at, Outcome::Known(Known::Redelivered(None))),
                    Verdict::Fenced => self.answer(at, Outcome::Fenced),
                    Verdict::New { .. } => left.push(at),
                },
                (Some(Spot::Position), None) => self.answer(at, Outcome::Fenced),
                _ => left.push(at),
            }
        }
        Ok(left)
    }

    async fn step(&mut self, mut part: Part) {
        match self.screen(part.places.clone()).await {
            Ok(places) => part.places = places,
            Err(fault) => return self.faulted(part, fault).await,
        }
        if part.places.is_empty() {
            return;
        }
        let tried = self.core.trial(&mut self.batch, &part.places, self.work, part.brief).await;
        let stop = match tried {
            Ok(outcomes) => {
                self.down = None;
                return self.answer_all(outcomes);
            }
            Err(stop) => stop,
        };
        match stop {
            Stop::Fault(fault) => self.faulted(part, fault).await,
            Stop::Again => self.queue.push_front(part),
            Stop::Split(why) => self.split(part, why),
            Stop::Over { at, why, wrote } => self.over(part, at, why, &wrote).await,
            Stop::Fenced(held) => self.fenced(part, held).await,
            Stop::Doubt { outcomes, wrote, fault } => self.doubt(part, outcomes, &wrote, fault).await,
        }
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
        // What is down is down for all of them.
        for at in part.places.iter().skip(1) {
            self.answer(*at, Outcome::NotBegun);
        }
        self.queue.push_front(Part { places: vec![first], ..part });
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
            Fault::Locked(_) if DB::Dialect::LOCKS_ROWS => self.park(part),
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
                    return self.give_up(part, &fault);
                }
                tokio::time::sleep(delay).await;
                self.queue.push_front(part);
            }
        }
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
            for at in part.places {
                self.answer(at, Outcome::Unknown(error.clone()));
            }
        }
    }

    /// The transaction was over when a handler returned.
    async fn over(&mut self, mut part: Part, at: usize, why: Option<Why<W::Error>>, wrote: &Wrote) {
        let found =
            match self.core.again("take back what a handler committed", async || self.core.repair(wrote).await).await {
                Ok(found) => found,
                Err(error) => {
                    for at in part.places {
                        self.answer(at, Outcome::Unknown(error.clone()));
                    }
                    return;
                }
            };
        if !found && why.is_some() && DB::Dialect::ROLLS_BACK {
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
        if self.work.together() && part.places.len() > 1 {
            // It was given all of them, and all of them may stand.
            for at in &part.places {
                self.batch.decided[*at] = Some(Why::Misused(Misuse::Ended));
            }
        } else {
            self.batch.decided[at] = Some(Why::Misused(Misuse::Ended));
        }
        self.queue.push_front(part);
    }

    /// A window did not move: whose fence was raised shows in the table.
    async fn fenced(&mut self, part: Part, held: Vec<Arc<Held>>) {
        let sources: Vec<Source> = held.iter().map(|held| held.source).collect();
        let rows = match self.core.again("read windows", async || self.core.rows(&sources).await).await {
            Ok(rows) => rows,
            Err(error) => {
                for at in part.places {
                    self.answer(at, Outcome::Unknown(error.clone()));
                }
                return;
            }
        };
        let mut any = false;
        for held in held {
            if !rows.iter().any(|row| held.stands(row)) {
                held.fence_off();
                any = true;
            }
        }
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
            Ok(false) => self.queue.push_front(part),
            Err(error) => {
                for at in part.places {
                    self.answer(at, Outcome::Unknown(error.clone()));
                }
            }
        }
    }
}

/// Parts of a batch, in order: no message twice in one, and no more than so many.
fn parts(items: &[Item], most: usize) -> VecDeque<Part> {
    let mut queue = VecDeque::new();
    let mut rest: Vec<usize> = (0..items.len()).collect();
    while !rest.is_empty() {
        let mut seen: HashSet<Twin<'_>> = HashSet::with_capacity(rest.len());
        let mut later = Vec::new();
        let mut first = Vec::with_capacity(rest.len());
        for at in rest {
            match twins(&items[at]).into_iter().flatten().all(|twin| seen.insert(twin)) {
                true => first.push(at),
                // It waits for what becomes of the other.
                false => later.push(at),
            }
        }
        for places in first.chunks(most.max(1)) {
            queue.push_back(Part::of(places.to_vec()));
        }
        rest = later;
    }
    queue
}

/// By what two items are one message.
#[derive(PartialEq, Eq, Hash)]
enum Twin<'a> {
    Record(&'a [u8; 16]),
    Number(&'a Source, u64),
    Place(&'a str, i32, i64),
}

fn twins(item: &Item) -> [Option<Twin<'_>>; 2] {
    let record = item.record.as_ref().map(|record| Twin::Record(record.key.as_bytes()));
    let spot = item.spot.as_ref().map(|spot| match spot {
        Spot::Position => Twin::Place(&item.origin.topic, item.origin.partition, item.origin.offset),
        Spot::Sequence { source, number, .. } => Twin::Number(source, *number),
    });
    [record, spot]
}
