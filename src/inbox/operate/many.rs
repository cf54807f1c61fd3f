//! What is done to many messages: in small steps, each in a transaction of its own, with its progress in the call's act. A call that was
//! dropped, or ended with its process, goes on where it was when it is asked again under the same request.

use super::act::{Act, New, What};
use super::by::By;
use super::filter::Which;
use super::lock::{ERASED, Found};
use super::outcome::{Erased, Removed, Replayed};
use super::sql::{Values, listed};
use crate::inbox::core::Core;
use crate::inbox::rules::{Lot, State};
use crate::record::Millis;
use crate::store::StoreError;
use crate::store::sql::Fault;
use crate::transaction::Tx;
use crate::transaction::sealed::Sealed;

/// Messages that one step changes.
const STEP: usize = 256;
/// Messages that one statement looks through, without a lock.
const SPAN: i64 = 10_000;

/// How far a call has come.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Tally {
    /// What it was asked.
    asked: String,
    /// All up to this id are done.
    next: i64,
    finished: bool,
    /// Replayed, erased or removed.
    done: u64,
    /// Erased before they were handled.
    buried: u64,
    /// Left alone: open, being processed, erased.
    open: u64,
    held: u64,
    erased: u64,
    /// The last lease's end.
    until: Millis,
}

impl Tally {
    /// As the act's detail says it.
    fn detail(&self) -> String {
        let state = if self.finished { "yes" } else { "no" };
        format!(
            "finished={state} done={} buried={} open={} processing={} erased={} until={} next={} asked={}",
            self.done, self.buried, self.open, self.held, self.erased, self.until, self.next, self.asked
        )
    }

    fn of(act: &Act) -> Result<Self, Fault> {
        let number =
            |name| act.number_of(name).ok_or_else(|| Fault::Corrupt("an act does not say how far it came.".into()));
        let count = |name| number(name).map(|number| u64::try_from(number).unwrap_or(0));
        Ok(Self {
            asked: act.word("asked").unwrap_or_default().to_owned(),
            next: number("next")?,
            finished: act.word("finished") == Some("yes"),
            done: count("done")?,
            buried: count("buried")?,
            open: count("open")?,
            held: count("processing")?,
            erased: count("erased")?,
            until: number("until")?,
        })
    }
}

/// What a step is about.
struct Job<'a> {
    what: What,
    which: &'a Which,
    by: &'a By,
    handle: &'a [u8; 16],
}

impl<DB: Sealed> Core<DB> {
    pub(super) async fn replay(&self, which: &Which, by: &By) -> Result<Replayed, StoreError> {
        let tally = self.walk(What::Replay, which, by).await?;
        Ok(Replayed { replayed: tally.done, open: tally.open + tally.held, erased: tally.erased })
    }

    pub(super) async fn erase(&self, which: &Which, by: &By) -> Result<Erased, StoreError> {
        let tally = self.walk(What::Erase, which, by).await?;
        let until = (tally.held > 0).then_some(tally.until);
        Ok(Erased { erased: tally.done, buried: tally.buried, processing: tally.held, until })
    }

    pub(super) async fn purge_these(&self, which: &Which, by: &By) -> Result<Removed, StoreError> {
        let tally = self.walk(What::Purge, which, by).await?;
        Ok(Removed { removed: tally.done, open: tally.open + tally.held })
    }

    async fn walk(&self, what: What, which: &Which, by: &By) -> Result<Tally, StoreError> {
        let handle = self.handle_of(by, what)?;
        let job = Job { what, which, by, handle: &handle };
        let mut asking = self.base.asking(what.operation());
        let mut tally = loop {
            match self.open_act(&job).await {
                Ok(tally) => break tally,
                Err(fault) => asking.wait(fault).await?,
            }
        };
        while !tally.finished {
            let (ids, edge) = self.candidates(&job, tally.next).await?;
            let mut asking = self.base.asking(what.operation());
            tally = loop {
                match self.step(&job, &tally, &ids, edge).await {
                    Ok(tally) => break tally,
                    Err(fault) => asking.wait(fault).await?,
                }
            };
            if tally.next == 0 && !tally.finished {
                // An erasure that left some: whoever asks again begins again.
                break;
            }
        }
        Ok(tally)
    }

    /// The call's act, made where there is none, and how far it came.
    async fn open_act(&self, job: &Job<'_>) -> Result<Tally, Fault> {
        let mut tx = self.begin().await?;
        let asked = job.which.filter.digest();
        if let Some(before) = self.done_before(&mut tx, job.what, None, job.handle, false).await? {
            self.rollback(tx).await;
            let tally = Tally::of(&before)?;
            if tally.asked != asked {
                return Err(Fault::Refused("this request's id was used for other messages.".into()));
            }
            return Ok(tally);
        }
        let mut now = 0;
        for mut row in self.look(&mut tx, format!("SELECT {}", self.clock())).await? {
            now = row.int()?;
        }
        let tally = Tally { asked, ..Tally::default() };
        let detail = tally.detail();
        let new = New { what: job.what, id: None, by: job.by, handle: job.handle, now, detail: &detail };
        self.write_act(&mut tx, &new).await?;
        self.settled(tx).await.map(|()| tally)
    }

    /// The next messages that are meant, behind an id, and up to which id these are all of them. `None`: to the end.
    async fn candidates(&self, job: &Job<'_>, mut next: i64) -> Result<(Vec<i64>, Option<i64>), StoreError> {
        let filter = &job.which.filter;
        let ids = self.ids();
        if let Some(chosen) = &filter.ids {
            let from = chosen.partition_point(|id| *id <= next);
            let some: Vec<i64> = chosen.iter().skip(from).take(STEP).copied().collect();
            if some.is_empty() {
                return Ok((some, None));
            }
            let edge = some.last().copied();
            let more = edge.filter(|_| from + some.len() < chosen.len());
            let found = self.matching(job, &format!("m.id IN ({})", listed(some))).await?;
            return Ok((found, more));
        }
        next = next.max(ids.start);
        loop {
            let edge = self.edge(job.what.operation(), next, SPAN).await?;
            let to = edge.unwrap_or(ids.end);
            let found = self.matching(job, &format!("m.id > {next} AND m.id <= {to}")).await?;
            if found.len() == STEP {
                let edge = found.last().copied();
                return Ok((found, edge));
            }
            match edge {
                Some(edge) if found.is_empty() => next = edge,
                edge => return Ok((found, edge)),
            }
        }
    }

    /// The id so many messages on; `None` if there are not so many.
    pub(super) async fn edge(&self, operation: &'static str, after: i64, span: i64) -> Result<Option<i64>, StoreError> {
        let text = format!(
            "SELECT id FROM {} WHERE id > {after} AND id < {} ORDER BY id LIMIT 1 OFFSET {}",
            self.tables.messages,
            self.ids().end,
            span - 1,
        );
        let mut found = None;
        for mut row in self.read(operation, text.into()).await? {
            found = Some(row.int().map_err(|fault| self.refuse(operation, &fault))?);
        }
        Ok(found)
    }

    async fn matching(&self, job: &Job<'_>, place: &str) -> Result<Vec<i64>, StoreError> {
        let mut values = Values::default();
        let conditions = job.which.filter.conditions::<DB::Dialect>(&mut values, &self.tables.attempts);
        let left = if job.what == What::Erase { format!(" AND m.form <> {ERASED}") } else { String::new() };
        let text = format!(
            "SELECT m.id FROM {} m WHERE {place} AND m.inbox = {}{conditions}{left} ORDER BY m.id LIMIT {STEP}",
            self.tables.messages, self.number,
        );
        let operation = job.what.operation();
        let rows = self.read(operation, values.into(text)).await?;
        rows.into_iter()
            .map(|mut row| row.int())
            .collect::<Result<_, _>>()
            .map_err(|fault| self.refuse(operation, &fault))
    }

    /// Does these messages, and says how far it has come. Where somebody else has gone on meanwhile, says how far they came.
    async fn step(&self, job: &Job<'_>, tally: &Tally, ids: &[i64], edge: Option<i64>) -> Result<Tally, Fault> {
        let mut tx = self.begin().await?;
        let Some(act) = self.done_before(&mut tx, job.what, None, job.handle, true).await? else {
            return Err(Fault::Corrupt("an act was deleted while it was done.".into()));
        };
        let stands = Tally::of(&act)?;
        if stands != *tally {
            self.rollback(tx).await;
            return Ok(stands);
        }
        let mut tally = stands;
        if tally.next == 0 {
            (tally.open, tally.held, tally.until) = (0, 0, 0);
        }
        let (now, found) = self.lock(&mut tx, ids).await?;
        match job.what {
            What::Replay => self.replay_step(&mut tx, &found, &mut tally).await?,
            What::Erase => self.erase_step(&mut tx, &found, now, job.by, &mut tally).await?,
            _ => self.purge_step(&mut tx, &found, &mut tally).await?,
        }
        match edge {
            Some(edge) => tally.next = edge,
            // What is being processed has to be erased yet.
            None if job.what == What::Erase && tally.held > 0 => tally.next = 0,
            None => tally.finished = true,
        }
        let mut values = Values::default();
        let detail = values.text::<DB::Dialect>(&tally.detail());
        let text = format!(
            "UPDATE {} SET detail = {detail} WHERE inbox = {} AND act = {}",
            self.tables.acts, self.number, act.number
        );
        self.alter(&mut tx, values.into(text)).await?;
        // Asked again, it reads how far it came.
        self.settled(tx).await.map(|()| tally)
    }

    async fn replay_step(&self, tx: &mut Tx<DB>, found: &[Found], tally: &mut Tally) -> Result<(), Fault> {
        let (mut succeeded, mut dead) = (Vec::new(), Vec::new());
        for found in found {
            match found.standing.replay(found.priority) {
                Ok(_) if found.form == ERASED => tally.erased += 1,
                Ok(_) if found.state() == State::Dead => dead.push(found),
                Ok(_) => succeeded.push(found),
                Err(_) if found.until.is_some() => tally.held += 1,
                Err(_) => tally.open += 1,
            }
        }
        let all: Vec<&Found> = succeeded.iter().chain(&dead).copied().collect();
        if all.is_empty() {
            return Ok(());
        }
        self.next_generation(tx, &all).await?;
        let set = "generation = generation + 1, lot = 0, turn = priority, attempts = 0";
        self.move_open(tx, &dead, set).await?;
        let tuple = |found: &&Found| {
            let (id, lane, priority) = (found.id, found.lane, found.priority);
            let generation = found.standing.generation.saturating_add(1);
            format!(
                "({id}, {lane}, {priority}, 0, {}, {generation}, 0, {}, {priority}, 0)",
                self.number,
                Lot::Ready.code()
            )
        };
        if !succeeded.is_empty() {
            let tuples: Vec<String> = succeeded.iter().map(tuple).collect();
            let columns = "id, lane, turn, run, inbox, generation, attempts, lot, priority, alone";
            let text = format!("INSERT INTO {} ({columns}) VALUES {}", self.tables.open, tuples.join(", "));
            self.alter(tx, text).await?;
        }
        tally.done += all.len() as u64;
        self.notify(tx.conn()?).await.map_err(|error| Self::fault(&error))
    }

    async fn erase_step(
        &self,
        tx: &mut Tx<DB>,
        found: &[Found],
        now: Millis,
        by: &By,
        tally: &mut Tally,
    ) -> Result<(), Fault> {
        let (mut all, mut open) = (Vec::new(), Vec::new());
        for found in found.iter().filter(|found| found.form != ERASED) {
            if let Some(until) = found.until {
                tally.held += 1;
                tally.until = tally.until.max(until);
                continue;
            }
            all.push(found.id);
            if !found.state().is_final() {
                open.push(found);
            }
        }
        if all.is_empty() {
            return Ok(());
        }
        let ids = listed(all.iter().copied());
        let tables = &self.tables;
        for text in [
            format!(
                "UPDATE {} SET form = {ERASED}, record_key = NULL, headers = NULL, payload = NULL WHERE id IN ({ids})",
                tables.messages
            ),
            format!("UPDATE {} SET payload = NULL WHERE id IN ({ids})", tables.edits),
            // What a handler says of a message may quote it.
            format!("UPDATE {} SET text = '' WHERE id IN ({ids})", tables.attempts),
        ] {
            self.alter(tx, text).await?;
        }
        self.bury(tx, &open, now, by).await?;
        tally.done += all.len() as u64;
        tally.buried += open.len() as u64;
        Ok(())
    }

    async fn purge_step(&self, tx: &mut Tx<DB>, found: &[Found], tally: &mut Tally) -> Result<(), Fault> {
        let (over, open): (Vec<&Found>, Vec<&Found>) = found.iter().partition(|found| found.standing.may_purge());
        tally.open += open.len() as u64;
        self.forget(tx, &over).await?;
        tally.done += over.len() as u64;
        Ok(())
    }

    /// Removes locked messages that are succeeded or dead, with all that is known of them.
    pub(in crate::inbox) async fn forget(&self, tx: &mut Tx<DB>, over: &[&Found]) -> Result<(), Fault> {
        if over.is_empty() {
            return Ok(());
        }
        let dead: Vec<&Found> = over.iter().filter(|found| found.state() == State::Dead).copied().collect();
        self.close(tx, &dead).await?;
        let ids = listed(over.iter().map(|found| found.id));
        for table in [&self.tables.edits, &self.tables.attempts, &self.tables.messages] {
            self.alter(tx, format!("DELETE FROM {table} WHERE id IN ({ids})")).await?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::{Act, Tally, What};

    #[test]
    fn progress_comes_back() {
        let tally = Tally {
            asked: "abc".into(),
            next: 7 << 40,
            finished: true,
            done: 1,
            buried: 2,
            open: 3,
            held: 4,
            erased: 5,
            until: 6,
        };
        let mut act = Act {
            number: 1,
            what: What::Replay,
            message: None,
            time: 0,
            who: String::new(),
            why: String::new(),
            detail: tally.detail(),
        };
        assert_eq!(Tally::of(&act).unwrap(), tally);
        act.detail.clear();
        assert!(Tally::of(&act).is_err());
    }
}
