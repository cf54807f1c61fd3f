//! What waits behind a message of its own key. Such a message is a waiting one whose turn is no time but its lane, [`FAR`] away: nobody
//! who looks for work comes across it. It is woken when those before it are finished.

use std::collections::BTreeSet;

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

    async fn numbers(
        &self,
        conn: &mut Conn<DB::Dialect>,
        text: String,
        columns: usize,
    ) -> Result<Vec<Vec<Option<i64>>>, Fault> {
        DB::DIALECT.read_numbers(conn, text, columns).await.map_err(|error| Self::fault(&error))
    }
}
