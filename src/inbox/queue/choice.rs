//! Which of the free rows one run takes, and from where on the next are looked for. No I/O.

use std::collections::HashMap;
use std::sync::atomic::AtomicBool;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::dialect::Place;
use crate::inbox::rules::{self, BUSY, Candidate};

/// After so long free rows are looked for from the beginning again.
const AFRESH: Duration = Duration::from_millis(100);

/// A free row.
#[derive(Clone, Copy, Debug)]
pub(super) struct Free {
    pub(super) place: Place,
    pub(super) lane: i64,
    pub(super) generation: u32,
    pub(super) attempts: u32,
    pub(super) alone: bool,
    /// By key: the open message of the lane before it.
    pub(super) before: Option<i64>,
    /// By key: one behind it is in a run's hands.
    pub(super) busy: bool,
}

/// Up to where everything that was ready has been taken, as far as this process knows, so that the next look begins there: databases keep what is
/// deleted for a while, and whoever looks from the beginning wades through it. What comes back, or comes in, before that place is found a moment later:
/// when there is little left behind it, or anything more urgent, or after [`AFRESH`].
#[derive(Debug, Default)]
pub(crate) struct Front {
    place: Mutex<Option<(Place, Instant)>>,
    /// The last run was of one message that is taken alone: the next ones may be, as after a crash.
    pub(super) lone: AtomicBool,
}

impl Front {
    fn lock(&self) -> MutexGuard<'_, Option<(Place, Instant)>> {
        self.place.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From where to look, and since when.
    pub(super) fn get(&self, now: Instant) -> Option<(Place, Instant)> {
        self.lock().filter(|(_, since)| now < *since + AFRESH)
    }

    /// All up to this place was taken; the last look from the beginning was then.
    pub(super) fn set(&self, to: Option<Place>, since: Instant) {
        *self.lock() = to.map(|place| (place, since));
    }
}

/// Up to where all that was read is taken; the last look from the beginning was then. Where nothing came of this look, the next one begins where it did.
pub(super) fn as_far(
    rows: &[Free],
    chosen: &[Free],
    front: Option<(Place, Instant)>,
    asked: Instant,
) -> Option<(Place, Instant)> {
    let taken = rows.iter().zip(chosen).take_while(|(row, free)| row.place == free.place).last();
    let place = taken.map(|(row, _)| row.place).or(front.map(|(place, _)| place))?;
    Some((place, front.map_or(asked, |(_, since)| since)))
}

/// Which of these rows one run takes, in order.
pub(super) fn choose(by_key: bool, most: usize, rows: &[Free]) -> Vec<Free> {
    let candidates: Vec<Candidate> =
        rows.iter().map(|free| Candidate { id: free.place.id, lane: free.lane, alone: free.alone }).collect();
    if !by_key {
        // They come in the order in which they were given.
        let mut left = rows.iter();
        let mut free = |id: i64| left.by_ref().find(|free| free.place.id == id).copied();
        return rules::choose(false, most, &candidates, |_| None).iter().filter_map(|one| free(one.id)).collect();
    }
    let mut barriers: HashMap<i64, i64> = HashMap::new();
    let by_id: HashMap<i64, &Free> = rows.iter().map(|free| (free.place.id, free)).collect();
    for free in rows {
        let barrier = match free.before {
            _ if free.busy => BUSY,
            Some(before) if !by_id.contains_key(&before) => before,
            _ => continue,
        };
        barriers.entry(free.lane).and_modify(|lowest| *lowest = barrier.min(*lowest)).or_insert(barrier);
    }
    rules::choose(true, most, &candidates, |lane| barriers.get(&lane).copied())
        .iter()
        .filter_map(|candidate| by_id.get(&candidate.id).map(|free| **free))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn free(id: i64, lane: i64, before: Option<i64>) -> Free {
        Free { place: Place { turn: 0, id }, lane, generation: 1, attempts: 0, alone: false, before, busy: false }
    }

    fn ids(rows: &[Free]) -> Vec<i64> {
        rows.iter().map(|free| free.place.id).collect()
    }

    #[test]
    fn a_lane_is_taken_from_its_first_open_message_on() {
        let rows =
            [free(1, 7, None), free(2, 8, Some(0)), free(3, 7, Some(1)), free(5, 7, Some(4)), free(6, 7, Some(5))];
        assert_eq!(ids(&choose(true, 10, &rows)), [1, 3]);
        assert_eq!(ids(&choose(true, 1, &rows)), [1]);
        assert_eq!(ids(&choose(false, 10, &rows)), [1, 2, 3, 5, 6]);
    }

    #[test]
    fn a_lane_with_a_later_one_in_hands_stands_still() {
        let mut rows = [free(1, 7, None), free(2, 7, Some(1)), free(3, 8, None)];
        rows[0].busy = true;
        assert_eq!(ids(&choose(true, 10, &rows)), [3]);
    }
}
