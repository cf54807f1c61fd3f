//! Messages, locked as an operator's call finds them.
//!
//! Locks are taken in one order: the call's act, messages by id, then their open rows. Workers take none of the first two.

use super::sql::{Ask, Row, Sql, listed};
use crate::inbox::core::Core;
use crate::inbox::rules::{Lot, NOBODY, Open, Standing, State};
use crate::record::Millis;
use crate::store::sql::Fault;
use crate::transaction::Tx;
use crate::transaction::sealed::Sealed;

/// The form of a message that was erased.
pub(super) const ERASED: i16 = 2;
/// The form of a message with another payload.
pub(super) const EDITED: i16 = 3;

/// How often open rows that others move are looked for.
const ROUNDS: u32 = 4;

/// Where an open row is.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    lot: i16,
    turn: i64,
}

/// A message that is locked.
#[derive(Clone, Debug)]
pub(in crate::inbox) struct Found {
    pub(in crate::inbox) id: i64,
    pub(super) lane: i64,
    pub(super) priority: i16,
    pub(super) form: i16,
    pub(in crate::inbox) standing: Standing,
    pub(super) place: Option<Place>,
    /// The end of the lease, if a run holds it.
    pub(super) until: Option<Millis>,
}

impl Found {
    pub(in crate::inbox) const fn state(&self) -> State {
        self.standing.state()
    }

    /// The run that holds it.
    fn run(&self) -> Option<i64> {
        self.standing.open.map(|open| open.run).filter(|run| *run != NOBODY)
    }
}

/// Reads lot, turn, priority, attempts, alone and run, in this order.
pub(super) fn read_open(row: &mut Row) -> Result<Open, Fault> {
    Ok(Open {
        lot: Lot::from_code(row.small()?).ok_or_else(|| Fault::Corrupt("an open row is in no known lot.".into()))?,
        rank: row.int()?,
        priority: row.small()?,
        attempts: row.small()?,
        alone: row.int()? != 0,
        run: row.int()?,
    })
}

/// The columns that [`read_open`] reads.
pub(super) const OPEN: &str = "o.lot, o.turn, o.priority, o.attempts, o.alone, o.run";

impl<DB: Sealed> Core<DB> {
    /// Reads inside a transaction.
    pub(in crate::inbox) async fn look(&self, tx: &mut Tx<DB>, ask: impl Into<Ask>) -> Result<Vec<Row>, Fault> {
        DB::DIALECT.look(tx.conn()?, ask.into()).await.map_err(|error| Self::fault(&error))
    }

    /// Changes something inside a transaction.
    pub(in crate::inbox) async fn alter(&self, tx: &mut Tx<DB>, ask: impl Into<Ask>) -> Result<u64, Fault> {
        DB::DIALECT.alter(tx.conn()?, ask.into()).await.map_err(|error| Self::fault(&error))
    }

    /// Locks messages of this inbox, and their open rows, until the transaction ends; says how each stands, by ascending id, and what the
    /// time is. Those that are not there are left out.
    pub(in crate::inbox) async fn lock(&self, tx: &mut Tx<DB>, ids: &[i64]) -> Result<(Millis, Vec<Found>), Fault> {
        if ids.is_empty() {
            return Ok((0, Vec::new()));
        }
        let (messages, inbox, lock) = (&self.tables.messages, self.number, DB::Dialect::LOCK);
        let among = listed(ids.iter().copied());
        let text = format!(
            "SELECT m.id, m.lane, m.priority, m.form, m.generation, {} FROM {messages} m \
             WHERE m.id IN ({among}) AND m.inbox = {inbox} ORDER BY m.id{lock}",
            self.clock(),
        );
        let mut now = 0;
        let mut found = Vec::with_capacity(ids.len());
        for mut row in self.look(tx, text).await? {
            found.push(Found {
                id: row.int()?,
                lane: row.int()?,
                priority: row.small()?,
                form: row.small()?,
                standing: Standing { generation: row.small()?, open: None },
                place: None,
                until: None,
            });
            now = row.int()?;
        }
        // Whoever moves an open row by taking it away and putting it elsewhere would hide it from one who waits for it: those that are missing are
        // looked for again.
        for round in 0.. {
            let missing: Vec<i64> = found.iter().filter(|found| found.place.is_none()).map(|found| found.id).collect();
            // A plain read sees each row once, wherever it is moved meanwhile.
            if missing.is_empty() || (round > 0 && !self.any_open(tx, &missing).await?) {
                break;
            }
            if round == ROUNDS {
                return Err(Fault::Contended("others kept moving the same messages.".into()));
            }
            self.lock_open(tx, &missing, &mut found).await?;
        }
        self.leases(tx, &mut found, now).await?;
        Ok((now, found))
    }

    async fn any_open(&self, tx: &mut Tx<DB>, ids: &[i64]) -> Result<bool, Fault> {
        let (messages, open, join) = (&self.tables.messages, &self.tables.open, DB::Dialect::JOIN);
        let text = format!(
            "SELECT o.id FROM {messages} m {join} {open} o ON o.lane = m.lane AND o.id = m.id WHERE m.id IN ({}) LIMIT 1",
            listed(ids.iter().copied()),
        );
        Ok(!self.look(tx, text).await?.is_empty())
    }

    async fn lock_open(&self, tx: &mut Tx<DB>, ids: &[i64], found: &mut [Found]) -> Result<(), Fault> {
        let (messages, open) = (&self.tables.messages, &self.tables.open);
        let (join, lock) = (DB::Dialect::JOIN, DB::Dialect::LOCK);
        let text = format!(
            "SELECT o.id, {OPEN} FROM {messages} m {join} {open} o ON o.lane = m.lane AND o.id = m.id \
             WHERE m.id IN ({}) ORDER BY m.id{lock}",
            listed(ids.iter().copied()),
        );
        for mut row in self.look(tx, text).await? {
            let id = row.int()?;
            let open = read_open(&mut row)?;
            if let Ok(at) = found.binary_search_by_key(&id, |found| found.id)
                && let Some(found) = found.get_mut(at)
            {
                found.standing.open = Some(open);
                found.place = Some(Place { lot: open.lot.code(), turn: open.rank });
            }
        }
        Ok(())
    }

    async fn leases(&self, tx: &mut Tx<DB>, found: &mut [Found], now: Millis) -> Result<(), Fault> {
        let mut runs: Vec<i64> = found.iter().filter_map(Found::run).collect();
        runs.sort_unstable();
        runs.dedup();
        if runs.is_empty() {
            return Ok(());
        }
        let (table, inbox) = (&self.tables.runs, self.number);
        let text = format!("SELECT run, lease FROM {table} WHERE inbox = {inbox} AND run IN ({})", listed(runs));
        let mut leases = std::collections::HashMap::new();
        for mut row in self.look(tx, text).await? {
            leases.insert(row.int()?, row.int()?);
        }
        for found in found {
            found.until = found.run().map(|run| leases.get(&run).copied().unwrap_or(now));
        }
        Ok(())
    }

    /// Writes the open rows of locked messages as they stand, each changed in the same way. All are there, or none of it is done.
    pub(super) async fn move_open(&self, tx: &mut Tx<DB>, found: &[&Found], set: &str) -> Result<(), Fault> {
        self.at_places(tx, found, &format!("UPDATE {} SET {set}", self.tables.open)).await
    }

    /// Takes the open rows of locked messages away.
    pub(super) async fn close(&self, tx: &mut Tx<DB>, found: &[&Found]) -> Result<(), Fault> {
        self.at_places(tx, found, &format!("DELETE FROM {}", self.tables.open)).await
    }

    async fn at_places(&self, tx: &mut Tx<DB>, found: &[&Found], what: &str) -> Result<(), Fault> {
        /// Places in one statement.
        const MOST: usize = 64;
        for some in found.chunks(MOST) {
            let place = |found: &&Found| {
                let Place { lot, turn } = found.place?;
                Some(format!("(inbox = {} AND lot = {lot} AND turn = {turn} AND id = {})", self.number, found.id))
            };
            let places: Vec<String> = some.iter().filter_map(place).collect();
            if places.is_empty() {
                continue;
            }
            let changed = self.alter(tx, format!("{what} WHERE {}", places.join(" OR "))).await?;
            if changed != places.len() as u64 {
                return Err(Fault::Contended("others moved the same messages.".into()));
            }
        }
        Ok(())
    }
}
