//! Which offset of a partition may be committed. Pure: no clock, no I/O.
//!
//! Messages of a partition are delivered in order and may finish in any order. Only the finished *prefix* may be
//! committed, and a prefix of what was *delivered*: offsets are sparse (compaction, transaction markers), so the
//! message after 4 may be 9.
//!
//! ```text
//!   delivered   3   4   9  10  17
//!   finished    ✓   ✓       ✓
//!                       ▲
//!                       committable() = 5: 9 is not finished, and nothing lies between 4 and 9
//! ```
//!
//! A [`Frontier`] lives for one [`Epoch`]: one period of owning the partition. What was delivered in an earlier epoch
//! finishes to no effect, since the partition may have been somebody else's in between.
//!
//! ```
//! use hapax::frontier::{Epoch, Finish, Frontier};
//!
//! let mut frontier = Frontier::new(Epoch::new(1));
//! let three = frontier.deliver(3).unwrap();
//! let nine = frontier.deliver(9).unwrap();
//!
//! assert_eq!(frontier.finish(nine), Finish::Waiting);
//! assert_eq!(frontier.committable(), None);
//! assert_eq!(frontier.finish(three), Finish::Moved);
//! assert_eq!(frontier.committable(), Some(10));
//! ```

use std::collections::VecDeque;

/// One period of owning a partition. A number that no two periods share.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Epoch(u64);

impl Epoch {
    /// An epoch by number.
    #[must_use]
    pub const fn new(number: u64) -> Self {
        Self(number)
    }

    /// The number.
    #[must_use]
    pub const fn get(self) -> u64 {
        self.0
    }

    /// The epoch after this one.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }
}

/// A delivered message's place: which epoch, and which of that epoch's messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Slot {
    epoch: Epoch,
    place: u64,
}

impl Slot {
    /// Which of its epoch's messages it is.
    #[cfg(any(feature = "kafka", feature = "simulator"))]
    pub(crate) const fn place(self) -> u64 {
        self.place
    }

    /// The epoch it was delivered in.
    #[must_use]
    pub const fn epoch(self) -> Epoch {
        self.epoch
    }
}

/// What finishing a message came to. Closed: match on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finish {
    /// The finished prefix grew: [`Frontier::committable`] moved.
    Moved,
    /// Something delivered earlier is unfinished.
    Waiting,
    /// It had finished before: nothing changed.
    Again,
    /// It belongs to another epoch: nothing changed.
    Stale,
}

/// The first offset of one partition that may not be committed yet, for one epoch.
///
/// Delivering and finishing cost constant time, amortised, and eight bytes for each message from the first
/// unfinished one on.
#[derive(Clone, Debug)]
pub struct Frontier {
    epoch: Epoch,
    /// The place of `ring[0]`.
    first: u64,
    /// Offsets from the first unfinished message on; those that finished are stored inverted, hence negative.
    ring: VecDeque<i64>,
    /// How many of `ring` finished.
    finished: usize,
    committable: Option<i64>,
    last: Option<i64>,
}

impl Frontier {
    /// A frontier with nothing delivered.
    #[must_use]
    pub const fn new(epoch: Epoch) -> Self {
        Self { epoch, first: 0, ring: VecDeque::new(), finished: 0, committable: None, last: None }
    }

    /// The epoch it lives for.
    #[must_use]
    pub const fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// Forgets everything and starts another epoch.
    pub fn restart(&mut self, epoch: Epoch) {
        *self = Self::new(epoch);
    }

    /// Notes a message delivered, after all those delivered before.
    ///
    /// `None`, and nothing noted, if `offset` is negative or not above the last one delivered: a message delivered
    /// twice in one epoch has its place already, and would be counted twice.
    pub fn deliver(&mut self, offset: i64) -> Option<Slot> {
        if offset < 0 || self.last.is_some_and(|last| offset <= last) {
            return None;
        }
        let place = self.first.checked_add(u64::try_from(self.ring.len()).ok()?)?;
        self.ring.push_back(offset);
        self.last = Some(offset);
        Some(Slot { epoch: self.epoch, place })
    }

    /// Notes a delivered message finished.
    pub fn finish(&mut self, slot: Slot) -> Finish {
        if slot.epoch != self.epoch {
            return Finish::Stale;
        }
        let Some(index) = slot.place.checked_sub(self.first) else { return Finish::Again };
        let entry = usize::try_from(index).ok().and_then(|index| self.ring.get_mut(index));
        let Some(entry) = entry else { return Finish::Stale };
        if *entry < 0 {
            return Finish::Again;
        }
        *entry = !*entry;
        self.finished += 1;
        let before = self.first;
        while let Some(&entry) = self.ring.front()
            && entry < 0
        {
            self.ring.pop_front();
            self.first += 1;
            self.finished -= 1;
            self.committable = Some((!entry).saturating_add(1));
        }
        if self.first == before { Finish::Waiting } else { Finish::Moved }
    }

    /// The offset to commit: one above the last message of the finished prefix. Never falls within an epoch.
    ///
    /// `None` while nothing finished, or something before everything that finished did not.
    #[must_use]
    pub const fn committable(&self) -> Option<i64> {
        self.committable
    }

    /// How many delivered messages are unfinished.
    #[must_use]
    pub fn unfinished(&self) -> usize {
        self.ring.len() - self.finished
    }

    /// How many messages were delivered from the first unfinished one on: what it takes to remember them.
    #[must_use]
    pub fn span(&self) -> usize {
        self.ring.len()
    }

    /// The offset of the last message delivered.
    #[must_use]
    pub const fn delivered(&self) -> Option<i64> {
        self.last
    }
}
