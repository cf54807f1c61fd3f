//! Finishing: how messages of a run ended, where the run still holds them.

use std::collections::HashMap;
use std::fmt::Write as _;

use super::dialect::{Place, RUN, RunRow, Sql, which};
use super::list::{self, Ending, Entry};
use super::types::{End, Ended, How, Run, Taken};
use super::{AGAIN, capped};
use crate::inbox::core::Core;
use crate::inbox::rules::{Class, Lot};
use crate::record::{Millis, millis};
use crate::store::sql::{Conn, Dialect, Fault, jitter};
use crate::transaction::Committed;
use crate::transaction::sealed::Sealed;

/// Bytes of an attempt's text.
const TEXT: usize = 1024;

/// What an open row of a run becomes.
pub(super) struct Move {
    pub(super) place: Place,
    pub(super) lot: Lot,
    /// From now on; of what waits.
    pub(super) wait: Millis,
    /// Whether the attempt is given back.
    pub(super) back: bool,
    pub(super) alone: bool,
}

/// An attempt that did not succeed.
pub(super) struct Failed<'a> {
    pub(super) id: i64,
    pub(super) generation: u32,
    pub(super) attempt: u32,
    pub(super) class: Class,
    pub(super) text: &'a str,
}

impl Taken {
    const fn place(&self) -> Place {
        Place { turn: self.turn, id: self.id }
    }
}

/// An end and the message it is of.
type Of<'a> = (&'a Taken, &'a How);

fn code(how: &How) -> Ending {
    match how {
        How::Succeeded => Ending::Succeeded,
        How::Failed { .. } => Ending::Failed,
        How::Dead { .. } => Ending::Dead,
        How::Released => Ending::Released,
    }
}

fn entry(taken: &Taken, ending: Ending) -> Entry {
    Entry { id: taken.id, generation: taken.generation, attempt: taken.attempt, value: ending.code() }
}

/// Ends with their messages. One whose place is not in the run is nobody's.
fn of<'a>(run: &'a Run, ends: &'a [End]) -> Result<Vec<Of<'a>>, Fault> {
    let find = |end: &'a End| Some((run.taken.get(end.at)?, &end.how));
    let all: Option<Vec<Of<'a>>> = ends.iter().map(find).collect();
    all.ok_or_else(|| Fault::Refused("a run was told the end of a message that it did not take.".into()))
}

impl<DB: Sealed> Core<DB> {
    /// Whether the run is still this worker's. Inside a handler's transaction it locks the run until that ends, so that nobody takes it over
    /// meanwhile; it writes the mark, prolongs the lease, and sets the first handler's savepoint.
    pub(crate) async fn hold(&self, conn: &mut Conn<DB::Dialect>, run: &Run, mark: i32) -> Result<bool, Fault> {
        let text = format!(
            "UPDATE {} SET mark = {mark}, lease = {}(lease, {} + {}) WHERE inbox = {} AND run = {} AND ended IS NULL",
            self.tables.runs,
            DB::Dialect::GREATEST,
            <DB::Dialect as Sql>::CLOCK_MS,
            millis(run.lease),
            self.number,
            run.number
        );
        let held = DB::DIALECT.hold(conn, text).await.map_err(|error| Self::fault(&error))?;
        Ok(held == 1)
    }

    /// The mark that was committed last; `None` where the run has ended or is gone.
    pub(crate) async fn marked(&self, run: &Run) -> Result<Option<i32>, Fault> {
        let row = self.run_row(run.number, "").await?.filter(|row| row.ended.is_none());
        Ok(row.and_then(|row| i32::try_from(row.mark).ok()))
    }

    /// Prolongs the lease, in a transaction of its own: `false` where the run was taken over, or has ended. Not while a transaction holds the
    /// run: there its lock is what keeps others off.
    pub(crate) async fn prolong(&self, run: &Run) -> Result<bool, Fault> {
        let mut tx = self.begin().await?;
        let text = format!(
            "UPDATE {} SET lease = {}(lease, {} + {}) WHERE inbox = {} AND run = {} AND ended IS NULL",
            self.tables.runs,
            DB::Dialect::GREATEST,
            <DB::Dialect as Sql>::CLOCK_MS,
            millis(run.lease),
            self.number,
            run.number
        );
        let held = DB::DIALECT.send(tx.conn()?, text).await.map_err(|error| Self::fault(&error))?;
        match self.commit(tx).await {
            Committed::Yes => Ok(held == 1),
            Committed::No(fault) | Committed::Unknown(fault) => Err(fault),
        }
    }

    /// Whether these messages ended in this run, whoever holds its row now: waits for him. After a commit whose reply was lost.
    pub(crate) async fn ended_by(&self, run: &Run, at: &[usize]) -> Result<bool, Fault> {
        let Some(row) = self.run_row(run.number, <DB::Dialect as Sql>::LOCK_ROWS).await? else { return Ok(false) };
        let done = finished(&row)?;
        Ok(at.iter().all(|at| run.taken.get(*at).is_some_and(|taken| done.contains_key(&taken.id))))
    }

    /// Writes how messages ended, inside the caller's transaction. With `last` the run has ended.
    ///
    /// All, or none: [`Fault::Contended`] where the run does not hold one of them any more; the transaction is to be rolled back then.
    pub(crate) async fn finish(
        &self,
        conn: &mut Conn<DB::Dialect>,
        run: &Run,
        ends: &[End],
        last: bool,
    ) -> Result<Vec<Ended>, Fault> {
        match self.write(conn, run, &of(run, ends)?, last).await? {
            true => Ok(vec![Ended::Written; ends.len()]),
            false => Err(Fault::Contended("the run was taken over.".into())),
        }
    }

    /// The same in a transaction of its own, for effects elsewhere: each by itself.
    ///
    /// Success is a fact: of a run that was taken over, it is recorded as late, and the message is not tried again. What else became of a message
    /// counts only while the run holds it. Safe to repeat, also where it is not known whether it was done.
    pub(crate) async fn conclude(&self, run: &Run, ends: &[End], last: bool) -> Result<Vec<Ended>, Fault> {
        let ends = of(run, ends)?;
        let (mut tries, mut careful) = (0, false);
        loop {
            let tried = match careful {
                false => self.try_conclude(run, &ends, last).await,
                true => self.sort_out(run, &ends, last).await.map(Some),
            };
            match tried {
                Ok(Some(ended)) => return Ok(ended),
                Ok(None) => careful = true,
                Err(Fault::Contended(_) | Fault::Broken(_)) if tries < AGAIN => {
                    careful = true;
                    tries += 1;
                    tokio::time::sleep(jitter(tries)).await;
                }
                Err(fault) => return Err(fault),
            }
        }
    }

    /// `None`: not all is as it was taken.
    async fn try_conclude(&self, run: &Run, ends: &[Of<'_>], last: bool) -> Result<Option<Vec<Ended>>, Fault> {
        let mut tx = self.begin().await?;
        if !self.write(tx.conn()?, run, ends, last).await? {
            self.rollback(tx).await;
            return Ok(None);
        }
        match self.commit(tx).await {
            Committed::Yes => Ok(Some(vec![Ended::Written; ends.len()])),
            Committed::No(fault) => Err(fault),
            // Looked at by what the run says of itself.
            Committed::Unknown(fault) => Err(Fault::Broken(fault.to_string())),
        }
    }

    /// Message by message: what was written before, what the run holds, what it does not.
    async fn sort_out(&self, run: &Run, ends: &[Of<'_>], last: bool) -> Result<Vec<Ended>, Fault> {
        let mut tx = self.begin().await?;
        let conn = tx.conn()?;
        let text = format!(
            "{}SELECT {RUN} FROM {} WHERE inbox = {} AND run = {}{}",
            <DB::Dialect as Sql>::PRELUDE,
            self.tables.runs,
            self.number,
            run.number,
            <DB::Dialect as Sql>::LOCK_ROWS,
        );
        let rows = DB::DIALECT.read_runs(conn, text).await.map_err(|error| Self::fault(&error))?;
        let row = rows.into_iter().next();
        let done = row.as_ref().map_or_else(|| Ok(HashMap::new()), finished)?;
        let stands = row.as_ref().is_some_and(|row| row.ended.is_none());
        let held = match stands {
            true => self.held(conn, run.number, ends.iter().map(|(taken, _)| taken.place())).await?,
            false => Vec::new(),
        };
        let mut answers = Vec::with_capacity(ends.len());
        let (mut ours, mut late) = (Vec::new(), Vec::new());
        for (taken, how) in ends {
            answers.push(match (done.get(&taken.id), how) {
                (Some(Ending::Late), _) => Ended::Late,
                (Some(_), _) => Ended::Written,
                (None, _) if held.contains(&taken.id) => {
                    ours.push((*taken, *how));
                    Ended::Written
                }
                (None, How::Succeeded) => match self.succeed_late(conn, taken).await? {
                    true => {
                        late.push(*taken);
                        Ended::Late
                    }
                    false => Ended::Stale,
                },
                (None, _) => Ended::Stale,
            });
        }
        if stands && !self.write(conn, run, &ours, last && late.is_empty()).await? {
            return Err(Fault::Contended("others moved the same messages.".into()));
        }
        if !late.is_empty() {
            let entries: Vec<Entry> = late.iter().map(|taken| entry(taken, Ending::Late)).collect();
            let ended =
                if last { format!("coalesce(ended, {})", <DB::Dialect as Sql>::CLOCK_MS) } else { "ended".into() };
            let text = format!(
                "UPDATE {} SET done = {}, ended = {ended} WHERE inbox = {} AND run = {}",
                self.tables.runs,
                <DB::Dialect as Sql>::appended("done", &list::pack(&entries)),
                self.number,
                run.number
            );
            DB::DIALECT.send(conn, text).await.map_err(|error| Self::fault(&error))?;
            let lanes: Vec<i64> = late.iter().map(|taken| taken.lane).collect();
            self.wake_lanes(conn, &lanes).await?;
        }
        match self.commit(tx).await {
            Committed::Yes => Ok(answers),
            Committed::No(fault) => Err(fault),
            Committed::Unknown(fault) => Err(Fault::Broken(fault.to_string())),
        }
    }

    /// A message that succeeded after its run was taken over is done with, whoever has it now, unless an operator began it anew, or a handler's own
    /// transaction has it in hand, which will say for itself. Says whether there is nothing left to do of this generation.
    async fn succeed_late(&self, conn: &mut Conn<DB::Dialect>, taken: &Taken) -> Result<bool, Fault> {
        let (open, runs, inbox) = (&self.tables.open, &self.tables.runs, self.number);
        let text = format!(
            "DELETE FROM {open} WHERE lane = {} AND id = {} AND generation = {} AND run NOT IN \
             (SELECT r.run FROM {runs} AS r WHERE r.inbox = {inbox} AND r.ended IS NULL AND r.level = 2)",
            taken.lane, taken.id, taken.generation,
        );
        if DB::DIALECT.send(conn, text).await.map_err(|error| Self::fault(&error))? == 1 {
            return Ok(true);
        }
        let text = format!("SELECT id FROM {open} WHERE lane = {} AND id = {}", taken.lane, taken.id);
        let left = DB::DIALECT.read_numbers(conn, text, 1).await.map_err(|error| Self::fault(&error))?;
        Ok(left.is_empty())
    }

    /// Which of these a run holds.
    pub(super) async fn held(
        &self,
        conn: &mut Conn<DB::Dialect>,
        run: i64,
        places: impl Iterator<Item = Place>,
    ) -> Result<Vec<i64>, Fault> {
        let text = format!(
            "SELECT id FROM {} WHERE inbox = {} AND lot = 0 AND run = {run} AND {}",
            self.tables.open,
            self.number,
            which(&places.collect::<Vec<_>>())
        );
        let rows = DB::DIALECT.read_numbers(conn, text, 1).await.map_err(|error| Self::fault(&error))?;
        Ok(rows.iter().filter_map(|row| row.first().copied().flatten()).collect())
    }

    /// Writes ends where the run stands and holds all of them; says whether that was so. If not, what was written is to be rolled back.
    async fn write(&self, conn: &mut Conn<DB::Dialect>, run: &Run, ends: &[Of<'_>], last: bool) -> Result<bool, Fault> {
        let (open, runs, inbox, number) = (&self.tables.open, &self.tables.runs, self.number, run.number);
        if ends.is_empty() && !last {
            return Ok(true);
        }
        let mut gone = Vec::new();
        let mut moves = Vec::new();
        let mut failed = Vec::new();
        for (taken, how) in ends {
            let (lot, wait, back) = match how {
                How::Succeeded => {
                    gone.push(taken.place());
                    continue;
                }
                How::Failed { class, retry_in, .. } => (Lot::Waiting, millis(*retry_in), *class == Class::Unavailable),
                How::Dead { .. } => (Lot::Dead, 0, false),
                How::Released => (Lot::Ready, 0, true),
            };
            if let How::Failed { class, text, .. } | How::Dead { class, text } = how {
                let (id, generation, attempt) = (taken.id, taken.generation, taken.attempt);
                failed.push(Failed { id, generation, attempt, class: *class, text });
            }
            moves.push(Move { place: taken.place(), lot, wait, back, alone: false });
        }
        // The run first: whoever wants its messages waits there.
        let entries: Vec<Entry> = ends.iter().map(|(taken, how)| entry(taken, code(how))).collect();
        let ended = if last { format!(", ended = {}", <DB::Dialect as Sql>::CLOCK_MS) } else { String::new() };
        let mut text = format!(
            "UPDATE {runs} SET done = {}{ended} WHERE inbox = {inbox} AND run = {number} AND ended IS NULL",
            <DB::Dialect as Sql>::appended("done", &list::pack(&entries)),
        );
        if !gone.is_empty() {
            let _ = write!(
                text,
                "; DELETE FROM {open} WHERE inbox = {inbox} AND lot = 0 AND run = {number} AND {}",
                which(&gone)
            );
        }
        if !moves.is_empty() {
            let _ = write!(text, "; {}", self.moving(number, &moves));
        }
        let written = DB::DIALECT.send(conn, text).await.map_err(|error| Self::fault(&error))?;
        if written != ends.len() as u64 + 1 {
            return Ok(false);
        }
        self.remember_failed(conn, number, run.began, &run.owner, &failed).await?;
        if run.by_key {
            let over = ends.iter().filter(|(_, how)| matches!(how, How::Succeeded | How::Dead { .. }));
            let lanes: Vec<i64> = over.map(|(taken, _)| taken.lane).collect();
            self.wake_lanes(conn, &lanes).await?;
        }
        Ok(true)
    }

    /// The statement that moves rows of a run out of its hands. Each counts once.
    pub(super) fn moving(&self, run: i64, moves: &[Move]) -> String {
        let rows: Vec<Vec<i64>> = moves
            .iter()
            .map(|to| {
                let Place { turn, id } = to.place;
                vec![turn, id, i64::from(to.lot.code()), to.wait, i64::from(to.back), i64::from(to.alone)]
            })
            .collect();
        let set = format!(
            "lot = u.l, turn = CASE WHEN u.l = 0 THEN o.turn ELSE {} + u.w END, attempts = o.attempts - u.b, \
             alone = CASE WHEN u.a = 1 THEN 1 ELSE o.alone END, run = 0",
            <DB::Dialect as Sql>::CLOCK_MS
        );
        let on = format!("o.inbox = {} AND o.lot = 0 AND o.turn = u.t AND o.id = u.i AND o.run = {run}", self.number);
        let rows = <DB::Dialect as Sql>::row_table(&["t", "i", "l", "w", "b", "a"], &rows);
        <DB::Dialect as Sql>::update_joined(&self.tables.open, &set, &rows, &on)
    }

    /// Keeps what is known of attempts that did not succeed.
    pub(super) async fn remember_failed(
        &self,
        conn: &mut Conn<DB::Dialect>,
        run: i64,
        began: Millis,
        owner: &str,
        failed: &[Failed<'_>],
    ) -> Result<(), Fault> {
        let owner = <DB::Dialect as Sql>::quoted_text(&capped(owner, 512));
        let clock = <DB::Dialect as Sql>::CLOCK_MS;
        // No statement is larger than servers take.
        for some in failed.chunks(512) {
            let mut text = format!(
                "INSERT INTO {} (id, run, began, ended, inbox, generation, attempt, class, owner, text) VALUES ",
                self.tables.attempts
            );
            for (at, one) in some.iter().enumerate() {
                let _ = write!(
                    text,
                    "{}({}, {run}, {began}, {clock}, {}, {}, {}, {}, {owner}, {})",
                    if at == 0 { "" } else { ", " },
                    one.id,
                    self.number,
                    one.generation,
                    one.attempt,
                    one.class.code(),
                    <DB::Dialect as Sql>::quoted_text(&capped(one.text, TEXT)),
                );
            }
            text.push_str(<DB::Dialect as Sql>::KEEP_LATEST);
            DB::DIALECT.send(conn, text).await.map_err(|error| Self::fault(&error))?;
        }
        Ok(())
    }
}

/// How messages ended in a run, by id.
pub(super) fn finished(row: &RunRow) -> Result<HashMap<i64, Ending>, Fault> {
    let entries = list::unpack(&row.done).ok_or_else(super::broken)?;
    let read = |entry: Entry| Some((entry.id, Ending::of(entry.value)?));
    entries.into_iter().map(read).collect::<Option<_>>().ok_or_else(super::broken)
}
