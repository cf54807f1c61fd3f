//! What waits behind a message of its own key. Such a message is a waiting one whose turn is no time but its lane, [`FAR`] away: nobody
//! who looks for work comes across it. It is woken when those before it are finished.

use std::collections::{BTreeSet, HashMap, HashSet};

use super::choice::Free;
use super::dialect::{Place, Sql, which};
use super::{FAR, behind};
use crate::inbox::core::Core;
use crate::store::sql::{Conn, Fault};
use crate::transaction::sealed::Sealed;

/// How many of one lane are woken at once: the next are, when these are finished.
const WOKEN: usize = 512;

impl<DB: Sealed> Core<DB> {
    /// Wakes what waits behind these lanes and has none before it any more; says how many. In the transaction that finished them, after that.
    pub(crate) async fn wake_lanes(&self, conn: &mut Conn<DB::Dialect>, lanes: &[i64]) -> Result<u64, Fault> {
        let (open, inbox) = (&self.tables.open, self.number);
        if lanes.is_empty() {
            return Ok(0);
        }
        // As a rule, nothing waits there at all.
        let text = format!("SELECT turn FROM {open} WHERE inbox = {inbox} AND lot = 1 AND turn >= {FAR} LIMIT 1");
        if self.numbers(conn, text, 1).await?.is_empty() {
            return Ok(0);
        }
        // The first of each lane alone: thousands may wait behind it.
        let lanes: BTreeSet<i64> = lanes.iter().copied().collect();
        let first = |lane: &i64| {
            let turn = behind(*lane);
            format!(
                "SELECT lane, id FROM {open} WHERE inbox = {inbox} AND lot = 1 AND turn = {turn} AND lane = {lane} ORDER BY id LIMIT 1"
            )
        };
        let text: Vec<String> = lanes.iter().map(first).collect();
        let mut woken = 0;
        for row in self.numbers(conn, text.join("; "), 2).await? {
            if let [Some(lane), Some(first)] = row[..] {
                woken += self.wake(conn, lane, first).await?;
            }
        }
        Ok(woken)
    }

    /// Wakes the first of a lane, whose ids begin at `first`, unless one before them is open.
    async fn wake(&self, conn: &mut Conn<DB::Dialect>, lane: i64, first: i64) -> Result<u64, Fault> {
        let (open, inbox, turn) = (&self.tables.open, self.number, behind(lane));
        let text =
            format!("SELECT id FROM {open} WHERE lane = {lane} AND id < {first} AND lot < 2 ORDER BY id LIMIT 1");
        if !self.numbers(conn, text, 1).await?.is_empty() {
            return Ok(0);
        }
        let text = format!(
            "SELECT id FROM {open} WHERE inbox = {inbox} AND lot = 1 AND turn = {turn} AND lane = {lane} ORDER BY id LIMIT {WOKEN}"
        );
        let places: Vec<Place> = self
            .numbers(conn, text, 1)
            .await?
            .iter()
            .filter_map(|row| row.first().copied().flatten())
            .map(|id| Place { turn, id })
            .collect();
        let text = format!(
            "UPDATE {open} SET lot = 0, turn = priority WHERE inbox = {inbox} AND lot = 1 AND {}",
            which(&places)
        );
        DB::DIALECT.send(conn, text).await.map_err(|error| Self::fault(&error))
    }

    /// Wakes what was not when it should have been: somebody finished what was before it in another way, or at the very moment in which
    /// it was put there. Looks at so many lanes, from a random one on.
    pub(super) async fn wake_lost(&self, conn: &mut Conn<DB::Dialect>, most: usize) -> Result<u64, Fault> {
        let (open, inbox) = (&self.tables.open, self.number);
        let random = self.base.random().cast_signed();
        let (mut after, mut wrapped, mut woken) = (behind(random), false, 0);
        for _ in 0..most {
            let text = format!(
                "SELECT turn, lane, id FROM {open} WHERE inbox = {inbox} AND lot = 1 AND turn > {after} ORDER BY turn, id LIMIT 1"
            );
            match self.numbers(conn, text, 3).await?.first().map(Vec::as_slice) {
                Some([Some(turn), Some(lane), Some(first)]) => {
                    after = *turn;
                    woken += self.wake(conn, *lane, *first).await?;
                }
                _ if wrapped => break,
                _ => (after, wrapped) = (FAR - 1, true),
            }
        }
        Ok(woken)
    }

    /// Finds the open message before each of these in its lane, by one range for each lane.
    pub(super) async fn look_back(&self, conn: &mut Conn<DB::Dialect>, rows: &mut [Free]) -> sqlx::Result<()> {
        let mut last: HashMap<i64, i64> = HashMap::with_capacity(rows.len());
        for free in &*rows {
            last.entry(free.lane).and_modify(|last| *last = free.place.id.max(*last)).or_insert(free.place.id);
        }
        let ranges: Vec<String> = last.iter().map(|(lane, id)| format!("(lane = {lane} AND id < {id})")).collect();
        if ranges.is_empty() {
            return Ok(());
        }
        let text = format!(
            "SELECT lane, id FROM {}{} WHERE lot < 2 AND ({})",
            self.tables.open,
            <DB::Dialect as Sql>::BY_LANE,
            ranges.join(" OR ")
        );
        let mut open: HashMap<i64, Vec<i64>> = HashMap::new();
        for row in DB::DIALECT.read_numbers(conn, text, 2).await? {
            if let [Some(lane), Some(id)] = row[..] {
                open.entry(lane).or_default().push(id);
            }
        }
        open.values_mut().for_each(|ids| ids.sort_unstable());
        for free in rows {
            let before =
                open.get(&free.lane).map_or(&[][..], |ids| &ids[..ids.partition_point(|id| *id < free.place.id)]);
            free.before = before.last().copied();
        }
        Ok(())
    }

    /// Puts rows behind their lanes: where they are in nobody's way, until what they wait for is finished. Only behind messages that stand still
    /// meanwhile: whoever finishes one sees what was put behind it.
    pub(super) async fn put_behind(&self, conn: &mut Conn<DB::Dialect>, rows: &[Free]) -> Result<u64, Fault> {
        /// Lanes at once, and rows.
        const LANES: usize = 64;
        const ROWS: usize = 4096;
        let mut lanes: HashMap<i64, Vec<&Free>> = HashMap::new();
        for free in rows {
            lanes.entry(free.lane).or_default().push(free);
        }
        let mut lanes: Vec<(i64, Vec<&Free>)> = lanes.into_iter().collect();
        for (_, rows) in &mut lanes {
            rows.sort_unstable_by_key(|free| free.place.id);
        }
        lanes.sort_by_key(|(_, rows)| std::cmp::Reverse(rows.len()));
        lanes.truncate(LANES);
        let anchors: Vec<(i64, i64)> =
            lanes.iter().filter_map(|(lane, rows)| rows.first()?.before.map(|before| (*lane, before))).collect();
        let (open, skip) = (&self.tables.open, DB::DIALECT.skip_locked());
        let one = |(lane, id): &(i64, i64)| {
            format!("SELECT lane FROM {open} WHERE lane = {lane} AND id = {id} AND lot < 2{skip}")
        };
        let text: Vec<String> = anchors.iter().map(one).collect();
        if text.is_empty() {
            return Ok(0);
        }
        let still = self.numbers(conn, text.join("; "), 1).await?;
        let still: HashSet<i64> = still.iter().filter_map(|row| row.first().copied().flatten()).collect();
        let mut left = ROWS;
        let mut statements = Vec::new();
        for (lane, rows) in lanes.iter().filter(|(lane, _)| still.contains(lane)) {
            let places: Vec<Place> = rows.iter().take(left).map(|free| free.place).collect();
            left -= places.len();
            if places.is_empty() {
                break;
            }
            statements.push(format!(
                "UPDATE {} SET lot = 1, turn = {} WHERE inbox = {} AND lot = 0 AND run = 0 AND {}",
                self.tables.open,
                behind(*lane),
                self.number,
                which(&places)
            ));
        }
        if statements.is_empty() {
            return Ok(0);
        }
        DB::DIALECT.send(conn, statements.join("; ")).await.map_err(|error| Self::fault(&error))
    }

    async fn numbers(
        &self,
        conn: &mut Conn<DB::Dialect>,
        text: String,
        columns: usize,
    ) -> Result<Vec<Vec<Option<i64>>>, Fault> {
        DB::DIALECT.read_numbers(conn, text, columns).await.map_err(|error| Self::fault(&error))
    }
}
