//! Sweeping: what runs leave behind whose lease is over.

use std::time::Duration;

use tokio::time::Instant;

use super::dialect::{Place, RUN, RunRow, Sql, which};
use super::finish::{Failed, Move, finished};
use super::list;
use super::types::Swept;
use super::{AGAIN, broken};
use crate::inbox::core::Core;
use crate::inbox::rules::{self, Class, Lot};
use crate::record::millis;
use crate::retry::Retry;
use crate::store::sql::{Fault, jitter};
use crate::transaction::sealed::Sealed;
use crate::transaction::{Committed, Transact as _, Tx};

/// Runs that one sweep ends.
const RUNS: u64 = 64;
/// A sweep that waited for longer than this to write lets those go first who wait too.
const PATIENT: Duration = Duration::from_secs(1);
/// Lanes it looks behind.
const LANES: usize = 32;

/// What is noted of an attempt whose run was lost.
const LOST: &str = "the lease of its run was over: the worker died, hung, or lost its connection.";

impl<DB: Sealed> Core<DB> {
    /// Ends runs whose lease is over: each of their messages has burnt an attempt, and is tried again in a run by itself, or is dead where its
    /// attempts are used up. One whose worker lives on inside a transaction that holds it is left alone.
    ///
    /// Safe to repeat; any number of processes may sweep at once.
    pub(crate) async fn sweep(&self, retry: &Retry) -> Result<Swept, Fault> {
        let mut swept = Swept::default();
        let mut contended = 0;
        while swept.runs < RUNS {
            match self.sweep_one(retry).await {
                Ok(Some(one)) => {
                    swept.runs += 1;
                    swept.lost += one.lost;
                    swept.dead += one.dead;
                    swept.woken += one.woken;
                }
                Ok(None) => break,
                Err(Fault::Contended(_)) if contended < AGAIN => {
                    contended += 1;
                    tokio::time::sleep(jitter(contended)).await;
                }
                // Somebody holds it, where such rows cannot be left out: he lives.
                Err(Fault::Locked(_)) => break,
                Err(fault) => return Err(fault),
            }
        }
        match self.wake_forgotten().await {
            Ok(woken) => swept.woken += woken,
            // Others wake the same lanes; the next sweep looks again.
            Err(Fault::Contended(_) | Fault::Locked(_)) => {}
            Err(fault) => return Err(fault),
        }
        Ok(swept)
    }

    async fn wake_forgotten(&self) -> Result<u64, Fault> {
        let mut tx = self.begin().await?;
        let woken = self.wake_lost(tx.conn()?, LANES).await?;
        if woken == 0 {
            self.rollback(tx).await;
            return Ok(0);
        }
        match self.commit(tx).await {
            Committed::Yes => Ok(woken),
            Committed::No(fault) | Committed::Unknown(fault) => Err(fault),
        }
    }

    async fn sweep_one(&self, retry: &Retry) -> Result<Option<Swept>, Fault> {
        let asked = Instant::now();
        let mut tx = self.begin().await?;
        if DB::Dialect::ONE_WRITER && asked.elapsed() > PATIENT {
            // Whoever wrote for so long may have let leases of this process run out that it is about to prolong: behind that.
            self.rollback(tx).await;
            tx = self.begin().await?;
        }
        let skip = match DB::DIALECT.skip_locked() {
            "" => <DB::Dialect as Sql>::LOCK_ROWS,
            skip => skip,
        };
        let text = format!(
            "{}SELECT {RUN} FROM {} WHERE inbox = {} AND ended IS NULL AND lease < {} LIMIT 1{skip}",
            <DB::Dialect as Sql>::PRELUDE,
            self.tables.runs,
            self.number,
            <DB::Dialect as Sql>::CLOCK_MS,
        );
        let rows = match DB::DIALECT.read_runs(tx.conn()?, text).await {
            Ok(rows) => rows,
            Err(error) if DB::DIALECT.cannot_skip(&error) => {
                return Err(Fault::Contended("the server knows no SKIP LOCKED.".into()));
            }
            Err(error) => return Err(Self::fault(&error)),
        };
        let Some(row) = rows.into_iter().next() else {
            self.rollback(tx).await;
            return Ok(None);
        };
        let swept = self.end_run(&mut tx, &row, retry).await?;
        match self.commit(tx).await {
            Committed::Yes => {
                tracing::warn!(
                    run = row.run,
                    owner = row.owner,
                    lost = swept.lost,
                    dead = swept.dead,
                    "a run was lost"
                );
                Ok(Some(swept))
            }
            Committed::No(fault) | Committed::Unknown(fault) => Err(fault),
        }
    }

    async fn end_run(&self, tx: &mut Tx<DB>, row: &RunRow, retry: &Retry) -> Result<Swept, Fault> {
        let (open, inbox) = (&self.tables.open, self.number);
        let done = finished(row)?;
        let taken = list::unpack(&row.taken).ok_or_else(broken)?;
        let places: Vec<Place> = taken
            .iter()
            .filter(|entry| !done.contains_key(&entry.id))
            .map(|entry| Place { turn: entry.value, id: entry.id })
            .collect();
        let text = format!(
            "SELECT turn, id, lane, generation, attempts FROM {open} WHERE inbox = {inbox} AND lot = 0 AND run = {} AND {}",
            row.run,
            which(&places)
        );
        let conn = tx.conn()?;
        let mut swept = Swept::default();
        let (mut moves, mut failed, mut lanes) = (Vec::new(), Vec::new(), Vec::new());
        for found in DB::DIALECT.read_numbers(conn, text, 5).await.map_err(|error| Self::fault(&error))? {
            let [Some(turn), Some(id), Some(lane), Some(generation), Some(attempts)] = found[..] else {
                return Err(broken());
            };
            let count = |number: i64| u32::try_from(number).map_err(|_| broken());
            let (generation, attempt) = (count(generation)?, count(attempts)?);
            let (lot, wait) = match rules::ends(Class::Lost, attempt, retry) {
                rules::End::Dead => {
                    swept.dead += 1;
                    lanes.push(lane);
                    (Lot::Dead, 0)
                }
                rules::End::Again { .. } => (Lot::Waiting, millis(retry.delay(attempt, self.base.random()))),
            };
            moves.push(Move { place: Place { turn, id }, lot, wait, back: false, alone: true });
            failed.push(Failed { id, generation, attempt, class: Class::Lost, text: LOST });
        }
        swept.lost = moves.len() as u64;
        let mut text = format!(
            "UPDATE {} SET ended = {} WHERE inbox = {inbox} AND run = {} AND ended IS NULL",
            self.tables.runs,
            <DB::Dialect as Sql>::CLOCK_MS,
            row.run
        );
        if !moves.is_empty() {
            text.push_str("; ");
            text.push_str(&self.moving(row.run, &moves));
        }
        let written = DB::DIALECT.send(conn, text).await.map_err(|error| Self::fault(&error))?;
        if written != swept.lost + 1 {
            return Err(Fault::Contended("others moved the same messages.".into()));
        }
        self.remember_failed(conn, row.run, row.began, &row.owner, &failed).await?;
        swept.woken = self.wake_lanes(conn, &lanes).await?;
        Ok(swept)
    }
}
