//! Taking: one transaction, after which the attempts count and the run stands.

use std::collections::HashSet;
use std::fmt::Write as _;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::time::Instant;

use super::choice::{Free, as_far, choose};
use super::dialect::{Place, Sql, numbers, which};
use super::list::{self, Entry};
use super::types::{Ask, Run, Take, Taken};
use super::{AGAIN, FAR, broken, capped};
use crate::inbox::core::Core;
use crate::inbox::message::{Content, Form, Message};
use crate::level::Level;
use crate::record::{Millis, millis};
use crate::store::sql::{Conn, Fault, jitter};
use crate::transaction::sealed::Sealed;
use crate::transaction::{Committed, Tx};

/// How many due messages become ready in one transaction.
const PROMOTED: usize = 1024;
/// How many rows are looked at, at first and at most, for those whose turn it is by key.
const FEWEST: usize = 64;
const MOST: usize = 1 << 14;
/// So many rows that are not theirs to take, seen by one taker, are put behind their lanes, out of everybody's way.
const CROWD: usize = 512;
/// What stands at the gate.
struct Gate {
    now: Millis,
    paused: bool,
    /// When the first waiting message is due, if it waits for a time.
    due: Option<Millis>,
    /// Something is ready before the turn that was asked about.
    urgent: bool,
}

/// What there is to choose from.
struct Offer {
    free: Vec<Free>,
    /// For each its message, where they were read together.
    wide: Vec<Content>,
}

/// What was chosen.
struct Chosen {
    free: Vec<Free>,
    /// For each its message, where they were read together.
    wide: Vec<Content>,
    /// What was seen besides, and may not be taken.
    rest: Vec<Free>,
    /// Up to where all was taken, and since when nobody looked from the beginning.
    front: Option<(Place, Instant)>,
    /// By key: not all was looked at.
    more: bool,
}

enum Tried {
    Took(Take),
    /// Something moved, and there may be more now.
    More,
}

/// A run's number: ascending in time, and never used again: it is written only where it is new.
pub(super) fn number(now: Millis, random: u64) -> i64 {
    (now << 20) | (random & 0xf_ffff).cast_signed()
}

/// What the generation of each of these rows was as it was read: an operator may have begun a new one since, in the same place.
fn generations(chosen: &[Free]) -> String {
    let usual = chosen.first().map_or(1, |free| free.generation);
    let mut others = String::new();
    for free in chosen.iter().filter(|free| free.generation != usual) {
        let _ = write!(others, " WHEN {} THEN {}", free.place.id, free.generation);
    }
    match others.is_empty() {
        true => usual.to_string(),
        false => format!("CASE id{others} ELSE {usual} END"),
    }
}

impl<DB: Sealed> Core<DB> {
    /// Takes up to `ask.most` free messages in a run of its own. Attempts are counted by then.
    ///
    /// Two never take one message. By key: none is taken while an earlier one of its lane that is not finished is in another's hands or waits.
    ///
    /// A commit whose reply is lost is looked up by the run's number. Dropped in the middle, a run may stand that nobody works: its lease
    /// ends it.
    pub(crate) async fn take(&self, ask: &Ask) -> Result<Take, Fault> {
        let mut contended = 0;
        let mut moved = 0;
        loop {
            match self.try_take(ask).await {
                Ok(Tried::Took(take)) => return Ok(take),
                Ok(Tried::More) if moved < AGAIN => moved += 1,
                Ok(Tried::More) => return Ok(Take { run: None, paused: false, due_in: Some(Duration::ZERO) }),
                Err(Fault::Contended(_)) if contended < AGAIN => {
                    contended += 1;
                    tokio::time::sleep(jitter(contended)).await;
                }
                Err(fault) => return Err(fault),
            }
        }
    }

    /// The clock and who is let in. By key, one taker at a time. `front`: whether anything before that turn is ready.
    async fn gate(&self, conn: &mut Conn<DB::Dialect>, alone: bool, front: Option<i64>) -> Result<Gate, Fault> {
        let (handlers, open, inbox) = (&self.tables.handlers, &self.tables.open, self.number);
        let lock = if alone { <DB::Dialect as Sql>::LOCK_ROWS } else { "" };
        let urgent = front.map_or_else(
            || "NULL".to_owned(),
            |front| {
                format!(
                    "(SELECT min(d.turn) FROM {open} AS d WHERE d.inbox = {inbox} AND d.lot = 0 AND d.turn < {front})"
                )
            },
        );
        let text = format!(
            "{}SELECT {}, h.paused, (SELECT min(d.turn) FROM {open} AS d WHERE d.inbox = {inbox} AND d.lot = 1), {urgent} \
             FROM {handlers} AS h WHERE h.inbox = {inbox}{lock}",
            <DB::Dialect as Sql>::PRELUDE,
            <DB::Dialect as Sql>::CLOCK_MS,
        );
        let rows = DB::DIALECT.read_numbers(conn, text, 4).await.map_err(|error| Self::fault(&error))?;
        match rows.first().map(Vec::as_slice) {
            Some([Some(now), Some(paused), due, urgent]) => {
                let due = due.filter(|due| *due < FAR);
                Ok(Gate { now: *now, paused: *paused != 0, due, urgent: urgent.is_some() })
            }
            _ => Err(Fault::Refused("the inbox's row is gone from the table of handlers.".into())),
        }
    }

    /// Free rows behind a place, in order.
    async fn free(
        &self,
        conn: &mut Conn<DB::Dialect>,
        by_key: bool,
        limit: usize,
        behind: Place,
    ) -> Result<Offer, Fault> {
        let asked = match by_key {
            false => self.free_at_once(conn, limit, behind).await,
            true => self.free_by_key(conn, limit, behind).await,
        };
        match asked {
            Ok(offer) => offer.ok_or_else(broken),
            Err(error) if DB::DIALECT.cannot_skip(&error) => {
                Err(Fault::Contended("the server knows no SKIP LOCKED.".into()))
            }
            Err(error) => Err(Self::fault(&error)),
        }
    }

    /// With their messages: all of them are taken, as a rule.
    async fn free_at_once(
        &self,
        conn: &mut Conn<DB::Dialect>,
        limit: usize,
        behind: Place,
    ) -> sqlx::Result<Option<Offer>> {
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        let rows = DB::DIALECT.read_free(conn, &self.tables, self.number, behind, limit).await?;
        let mut offer = Offer { free: Vec::with_capacity(rows.len()), wide: Vec::with_capacity(rows.len()) };
        for ([turn, id, lane, generation, attempts, alone], wide) in rows {
            let (Ok(generation), Ok(attempts)) = (u32::try_from(generation), u32::try_from(attempts)) else {
                return Ok(None);
            };
            let (place, alone) = (Place { turn, id }, alone != 0);
            offer.free.push(Free { place, lane, generation, attempts, alone, before: None, busy: false });
            offer.wide.push(wide);
        }
        Ok(Some(offer))
    }

    async fn free_by_key(
        &self,
        conn: &mut Conn<DB::Dialect>,
        limit: usize,
        behind: Place,
    ) -> sqlx::Result<Option<Offer>> {
        let (open, inbox) = (&self.tables.open, self.number);
        let by_lane = <DB::Dialect as Sql>::BY_LANE;
        let behind = match behind {
            Place::BEGINNING => String::new(),
            behind => format!(" AND {}", <DB::Dialect as Sql>::behind(behind)),
        };
        let before = match <DB::Dialect as Sql>::LOOKS_BACK {
            true => format!(
                "(SELECT e.id FROM {open} AS e WHERE e.lane = r.lane AND e.id < r.id AND e.lot < 2 ORDER BY e.id DESC LIMIT 1)"
            ),
            false => "NULL".to_owned(),
        };
        let text = format!(
            "SELECT r.turn, r.id, r.lane, r.generation, r.attempts, r.alone, {before}, \
             CASE WHEN (r.generation > 1 AND EXISTS \
             (SELECT 1 FROM {open} AS e{by_lane} WHERE e.lane = r.lane AND e.id > r.id AND e.run <> 0)) OR COALESCE(\
             (SELECT e.run FROM {open} AS e{by_lane} WHERE e.lane = r.lane AND e.id > r.id AND e.lot < 2 ORDER BY e.id LIMIT 1), 0) <> 0 \
             THEN 1 ELSE 0 END \
             FROM {open} AS r WHERE inbox = {inbox} AND lot = 0 AND run = 0{behind} ORDER BY r.turn, r.id LIMIT {limit}"
        );
        let rows = DB::DIALECT.read_numbers(conn, text, 8).await?;
        let count = |number: &Option<i64>| number.and_then(|number| u32::try_from(number).ok());
        let read = |row: &Vec<Option<i64>>| match row.as_slice() {
            [Some(turn), Some(id), Some(lane), generation, attempts, Some(alone), before, Some(busy)] => Some(Free {
                place: Place { turn: *turn, id: *id },
                lane: *lane,
                generation: count(generation)?,
                attempts: count(attempts)?,
                alone: *alone != 0,
                before: *before,
                busy: *busy != 0,
            }),
            _ => None,
        };
        let Some(mut free) = rows.iter().map(read).collect::<Option<Vec<Free>>>() else { return Ok(None) };
        if !<DB::Dialect as Sql>::LOOKS_BACK {
            self.look_back(conn, &mut free).await?;
        }
        Ok(Some(Offer { free, wide: Vec::new() }))
    }

    async fn try_take(&self, ask: &Ask) -> Result<Tried, Fault> {
        let asked = Instant::now();
        let mut front = self.front.get(asked);
        let mut tx = self.begin().await?;
        let conn = tx.conn()?;
        let gate = self.gate(conn, ask.by_key, front.map(|(place, _)| place.turn)).await?;
        if gate.paused || ask.most == 0 {
            self.rollback(tx).await;
            return Ok(Tried::Took(Take { run: None, paused: gate.paused, due_in: None }));
        }
        let mut promoted = 0;
        if gate.due.is_some_and(|due| due <= gate.now) {
            let text = DB::DIALECT.promoting(&self.tables.open, self.number, gate.now, PROMOTED);
            promoted = DB::DIALECT.send(conn, text).await.map_err(|error| Self::fault(&error))?;
        }
        if promoted > 0 || gate.urgent {
            front = None;
        }
        let chosen = self.choose(conn, ask, asked, front).await?;
        let parked = match chosen.rest.len() {
            crowd if crowd >= CROWD => self.put_behind(conn, &chosen.rest).await?,
            _ => 0,
        };
        if chosen.free.is_empty() {
            if promoted + parked == 0 {
                self.rollback(tx).await;
                let due_in = gate.due.map(|due| Duration::from_millis((due - gate.now).max(0).cast_unsigned()));
                return Ok(Tried::Took(Take { run: None, paused: false, due_in }));
            }
            return match self.commit(tx).await {
                Committed::Yes => Ok(Tried::More),
                Committed::No(fault) | Committed::Unknown(fault) => Err(fault),
            };
        }
        let front = chosen.front;
        let run = self.begin_run(tx, ask, gate.now, asked, chosen).await?;
        self.front.set(front.map(|(place, _)| place), front.map_or(asked, |(_, since)| since));
        Ok(Tried::Took(Take { run: Some(run), paused: false, due_in: None }))
    }

    /// What one run may take now.
    async fn choose(
        &self,
        conn: &mut Conn<DB::Dialect>,
        ask: &Ask,
        asked: Instant,
        front: Option<(Place, Instant)>,
    ) -> Result<Chosen, Fault> {
        match ask.by_key {
            false => self.choose_any(conn, ask.most, asked, front).await,
            true => self.choose_by_key(conn, ask.most, asked, front).await,
        }
    }

    async fn choose_any(
        &self,
        conn: &mut Conn<DB::Dialect>,
        most: usize,
        asked: Instant,
        mut front: Option<(Place, Instant)>,
    ) -> Result<Chosen, Fault> {
        // Their payloads come with them: of many lone ones, each take would read all that are left.
        let mut limit = if self.front.lone.load(Ordering::Relaxed) { 1 } else { most };
        loop {
            let behind = front.map_or(Place::BEGINNING, |(place, _)| place);
            let Offer { free: rows, wide } = self.free(conn, false, limit, behind).await?;
            let chosen = choose(false, most, &rows);
            let lone = chosen.first().is_some_and(|first| first.alone);
            if self.front.lone.swap(lone, Ordering::Relaxed) && !lone && limit < most {
                limit = most;
                continue;
            }
            if (rows.len() < limit || chosen.is_empty()) && front.take().is_some() {
                continue;
            }
            let front = as_far(&rows, &chosen, front, asked);
            let wide = wide.into_iter().zip(&rows).filter(|(_, row)| lone == row.alone);
            let wide = wide.take(chosen.len()).map(|(wide, _)| wide).collect();
            return Ok(Chosen { free: chosen, wide, rest: Vec::new(), front, more: false });
        }
    }

    /// Rows are read part by part, until half a run is found: what is left of it is not worth the reading, and is found again when others have ended.
    async fn choose_by_key(
        &self,
        conn: &mut Conn<DB::Dialect>,
        most: usize,
        asked: Instant,
        mut front: Option<(Place, Instant)>,
    ) -> Result<Chosen, Fault> {
        loop {
            let mut rows: Vec<Free> = Vec::new();
            loop {
                let limit = rows.len().max(most).clamp(FEWEST, MOST);
                let behind = rows.last().map(|last| last.place).or(front.map(|(place, _)| place));
                let Offer { free, .. } = self.free(conn, true, limit, behind.unwrap_or(Place::BEGINNING)).await?;
                let all = free.len() < limit;
                rows.extend(free);
                let chosen = choose(true, most, &rows);
                // A lone one is all there is to this run.
                let lone = chosen.first().is_some_and(|first| first.alone);
                let enough = lone || chosen.len() >= most.div_ceil(2);
                let over = enough || all || rows.len() >= MOST;
                if !over {
                    continue;
                }
                if (all || chosen.is_empty()) && front.take().is_some() {
                    break;
                }
                let front = as_far(&rows, &chosen, front, asked);
                let ids: HashSet<i64> = chosen.iter().map(|free| free.place.id).collect();
                let crowded = !lone && chosen.len() < most && rows.len() > most.max(FEWEST);
                let rest = match crowded {
                    true => rows.into_iter().filter(|free| !ids.contains(&free.place.id) && !free.alone).collect(),
                    false => Vec::new(),
                };
                return Ok(Chosen { free: chosen, wide: Vec::new(), rest, front, more: enough && !all });
            }
        }
    }

    /// Writes the run, reads its messages, and commits.
    async fn begin_run(
        &self,
        mut tx: Tx<DB>,
        ask: &Ask,
        now: Millis,
        asked: Instant,
        chosen: Chosen,
    ) -> Result<Run, Fault> {
        let Chosen { free: chosen, wide, more, .. } = chosen;
        let (open, runs, inbox) = (&self.tables.open, &self.tables.runs, self.number);
        let run = number(now, self.base.random());
        let level = match ask.level {
            Level::L2 => 2,
            _ => 1,
        };
        let owner = capped(&ask.owner, 512);
        let ids: Vec<i64> = chosen.iter().map(|free| free.place.id).collect();
        let places: Vec<Place> = chosen.iter().map(|free| free.place).collect();
        let entries: Vec<Entry> = chosen
            .iter()
            .map(|free| Entry {
                id: free.place.id,
                generation: free.generation,
                attempt: free.attempts.saturating_add(1),
                value: free.place.turn,
            })
            .collect();
        let (low, high) = (ids.iter().min().copied().unwrap_or(0), ids.iter().max().copied().unwrap_or(0));
        let (insert, ignore) = <DB::Dialect as Sql>::INSERT_NEW;
        let text = format!(
            "{insert} INTO {runs} (inbox, run, owner, level, began, lease, low, high, messages, taken) \
             VALUES ({inbox}, {run}, {owner}, {level}, {now}, {until}, {low}, {high}, {count}, {taken}){ignore}; \
             UPDATE {open} SET run = {run}, attempts = attempts + 1 \
             WHERE inbox = {inbox} AND lot = 0 AND run = 0 AND {which} AND generation = {generation}",
            owner = <DB::Dialect as Sql>::quoted_text(&owner),
            until = now.saturating_add(millis(ask.lease)),
            count = ids.len(),
            taken = <DB::Dialect as Sql>::quoted_bytes(&list::pack(&entries)),
            which = which(&places),
            generation = generations(&chosen),
        );
        let conn = tx.conn()?;
        let marked = DB::DIALECT.send(conn, text).await.map_err(|error| Self::fault(&error))?;
        if marked != ids.len() as u64 + 1 {
            self.rollback(tx).await;
            return Err(Fault::Contended("others took some of the same messages.".into()));
        }
        let taken = self.messages(conn, &chosen, wide).await?;
        match self.commit(tx).await {
            Committed::Yes => {}
            Committed::Unknown(fault) => {
                // It stands, or it does not.
                if !self.stands(run).await {
                    return Err(fault);
                }
            }
            Committed::No(fault) => return Err(fault),
        }
        Ok(Run {
            number: run,
            owner: Arc::from(owner),
            by_key: ask.by_key,
            began: now,
            lease: ask.lease,
            until: asked + ask.lease,
            more,
            taken,
        })
    }

    /// Whether a run stands whose commit nobody confirmed.
    async fn stands(&self, run: i64) -> bool {
        let mut asking = self.base.asking("look for a run");
        loop {
            let fault = match self.run_row(run, "").await {
                Ok(row) => return row.is_some(),
                Err(fault) => fault,
            };
            if asking.wait(fault).await.is_err() {
                return false;
            }
        }
    }

    /// The messages of these rows, in their order. `wide`: for each its message, if they were read with them.
    async fn messages(
        &self,
        conn: &mut Conn<DB::Dialect>,
        rows: &[Free],
        mut wide: Vec<Content>,
    ) -> Result<Vec<Taken>, Fault> {
        if wide.is_empty() {
            let mut ids: Vec<i64> = rows.iter().map(|free| free.place.id).collect();
            ids.sort_unstable();
            wide = DB::DIALECT.read_wide(conn, &self.tables, &ids).await.map_err(|error| Self::fault(&error))?;
            let mut places: Vec<(i64, usize)> = rows.iter().enumerate().map(|(at, free)| (free.place.id, at)).collect();
            places.sort_unstable();
            let place = |id: i64| places.binary_search_by_key(&id, |(id, _)| *id).map_or(0, |at| places[at].1);
            wide.sort_by_cached_key(|wide| place(wide.id.0));
        }
        if wide.len() != rows.len() {
            return Err(broken());
        }
        let again: Vec<i64> = rows.iter().filter(|free| free.generation > 1).map(|free| free.place.id).collect();
        if !again.is_empty() {
            // What an operator put in the place of a payload holds from its generation on.
            let text = format!(
                "SELECT id, generation, payload FROM {} WHERE id IN ({}) ORDER BY generation",
                self.tables.edits,
                numbers(again.into_iter())
            );
            for (id, generation, payload) in
                DB::DIALECT.read_edited(conn, text).await.map_err(|error| Self::fault(&error))?
            {
                let of = rows.iter().zip(&mut wide).find(|(free, _)| free.place.id == id);
                if let Some((of, wide)) = of
                    && generation <= i64::from(of.generation)
                {
                    (wide.payload, wide.form) = (payload.map(Into::into), Form::Edited);
                }
            }
        }
        let message = |(free, content): (&Free, Content)| {
            let attempt = free.attempts.saturating_add(1);
            if content.id.0 != free.place.id {
                return None;
            }
            let content = Content { generation: free.generation, attempt, ..content };
            Some(Taken {
                id: free.place.id,
                lane: free.lane,
                generation: free.generation,
                attempt,
                turn: free.place.turn,
                alone: free.alone,
                message: Message::new(content),
            })
        };
        rows.iter().zip(wide).map(message).collect::<Option<_>>().ok_or_else(broken)
    }
}

#[cfg(test)]
mod tests {
    use super::number;

    #[test]
    fn numbers_ascend() {
        assert!(number(2, 0) > number(1, u64::MAX));
        assert!(number(4_000_000_000_000, u64::MAX) > 0);
    }
}
