//! The window of one partition.

use std::collections::VecDeque;

use super::encode::{self, LONGEST, Reader};
use super::ranges::Ranges;
use super::{Malformed, Row};

/// What a window says of an offset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Known {
    /// Finished: it must not be handled again.
    Finished,
    /// Not finished.
    Unfinished {
        /// The attempts that failed so far.
        attempts: u32,
    },
}

/// What has become of some messages of one partition: first computed and written, then kept. See [`Window::after`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Moves {
    finished: Vec<i64>,
    failed: Vec<(i64, u32)>,
    spared: Vec<(i64, u32)>,
}

impl Moves {
    /// Nothing.
    #[must_use]
    pub const fn new() -> Self {
        Self { finished: Vec::new(), failed: Vec::new(), spared: Vec::new() }
    }

    /// Nothing, with room for so many finished.
    #[cfg_attr(not(any(feature = "sqlite", feature = "postgres", feature = "mysql")), allow(dead_code))]
    pub(crate) fn with_room(finished: usize) -> Self {
        Self { finished: Vec::with_capacity(finished), failed: Vec::new(), spared: Vec::new() }
    }

    /// This offset is finished.
    pub fn finish(&mut self, offset: i64) {
        self.finished.push(offset);
    }

    /// This offset is not finished, and its attempt of this number failed.
    pub fn fail(&mut self, offset: i64, attempt: u32) {
        self.failed.push((offset, attempt));
    }

    /// An attempt of this offset that was counted before it ran has come to nothing: so many are left.
    #[cfg(any(test, feature = "postgres", feature = "mysql", feature = "sqlite"))]
    pub(crate) fn spare(&mut self, offset: i64, left: u32) {
        self.spared.push((offset, left));
    }

    /// Whether nothing moves.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.finished.is_empty() && self.failed.is_empty() && self.spared.is_empty()
    }
}

/// What is remembered of one partition: every offset below a mark is finished, and of those above it some are.
///
/// ```text
///   delivered   3   4   9  10  17
///   finished    ✓   ✓       ✓
///                       ▲
///                       next() = 5; above it [10, 11) is finished
/// ```
///
/// Messages are delivered in order and finish in any order. Offsets are sparse (compaction, transaction markers): what lies between two
/// delivered ones and was not delivered holds nothing up. The mark is one above the last message of the finished prefix, as the
/// offset that is committed: [`Frontier::committable`](crate::frontier::Frontier::committable).
///
/// An offset is a number from 0 up to, and without, [`i64::MAX`]; others are never finished and leave no trace.
///
/// # Size
///
/// A run of finished messages takes one entry, however long it is, and between two runs is an unfinished message: so what is kept grows with
/// the *unfinished* delivered messages, of which a consumer takes in at most `partition_messages` (4,096 by default), and neither with
/// what was ever handled nor with how far apart they are. See [`Window::longest`].
///
/// Delivering and finishing in order take constant time; out of order, time in the number of unfinished messages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Window {
    next: i64,
    /// One above the last offset delivered, or above what is finished below.
    seen: i64,
    /// Delivered and not finished, ascending; all from `next` on and below `seen`.
    open: VecDeque<i64>,
    /// Finished above `next`. Below `seen` exactly one run lies between two open offsets that have a finished one between them.
    done: Ranges,
    /// Failed attempts of unfinished offsets, ascending; also of those not delivered again yet.
    attempts: Vec<(i64, u32)>,
}

impl Window {
    /// A window where everything below `next` is finished and nothing above it is. A negative number counts as 0.
    #[must_use]
    pub const fn at(next: i64) -> Self {
        let next = if next < 0 { 0 } else { next };
        Self { next, seen: next, open: VecDeque::new(), done: Ranges::new(), attempts: Vec::new() }
    }

    /// The window that was written as this. Nothing counts as delivered: all that is unfinished is to be delivered again from
    /// `next` on, in order.
    ///
    /// `next` wins over `state`: where it was raised by hand, what the state says below it is dropped.
    ///
    /// # Errors
    ///
    /// [`Malformed`]; not retryable.
    pub fn restore(next: i64, state: &[u8]) -> Result<Self, Malformed> {
        if next < 0 {
            return Err(Malformed::Negative(next));
        }
        let mut window = Self::at(next);
        let Some(mut reader) = Reader::of(state)? else { return Ok(window) };
        window.done = Ranges::read(&mut reader)?;
        window.done.cut_below(next);
        for (offset, attempts) in encode::pairs(&mut reader)? {
            let offset = i64::try_from(offset).map_err(|_| Malformed::Number)?;
            if window.done.contains(offset) {
                return Err(Malformed::Order);
            }
            if offset >= next {
                window.attempts.push((offset, attempts));
            }
        }
        reader.end()?;
        window.absorb();
        Ok(window)
    }

    /// The mark: everything below is finished, and nothing below is to be delivered again.
    #[must_use]
    pub const fn next(&self) -> i64 {
        self.next
    }

    /// How many offsets were delivered and are not finished.
    #[must_use]
    pub fn unfinished(&self) -> usize {
        self.open.len()
    }

    /// How many runs of finished offsets are kept above the mark.
    #[must_use]
    pub fn runs(&self) -> usize {
        self.done.len()
    }

    /// Notes an offset delivered, after all those delivered before, and says what is known of it. Delivering one again changes nothing.
    ///
    /// An offset between two that were delivered one after the other is not waited for; should it come all the same, it is a message
    /// like any other.
    pub fn deliver(&mut self, offset: i64) -> Known {
        if offset < self.next && offset >= 0 {
            return Known::Finished;
        }
        if !is_offset(offset) {
            return Known::Unfinished { attempts: 0 };
        }
        if offset < self.seen {
            return match self.place(offset) {
                Ok(_) => self.unfinished_at(offset),
                Err(_) if self.done.contains(offset) => Known::Finished,
                Err(at) => {
                    self.open.insert(at, offset);
                    self.unfinished_at(offset)
                }
            };
        }
        // What had failed and does not come again is no longer in the topic.
        if !self.attempts.is_empty() {
            let seen = self.seen;
            self.attempts.retain(|(failed, _)| *failed < seen || *failed >= offset);
        }
        self.seen = offset + 1;
        if self.done.is_empty() || !self.done.contains(offset) {
            self.open.push_back(offset);
            return self.unfinished_at(offset);
        }
        let from = self.open.back().map_or(self.next, |open| open + 1);
        self.done.join(from, offset, self.seen);
        self.absorb();
        Known::Finished
    }

    /// Whether this offset is finished.
    #[must_use]
    pub fn is_finished(&self, offset: i64) -> bool {
        offset >= 0 && (offset < self.next || self.done.contains(offset))
    }

    /// What is known of an offset, whether or not it was delivered.
    #[must_use]
    pub fn known(&self, offset: i64) -> Known {
        if self.is_finished(offset) { Known::Finished } else { self.unfinished_at(offset) }
    }

    /// Notes an offset finished. `false` if it was. One that was not delivered here, as that of an assignment that is over, is known from
    /// now on as well.
    pub fn finish(&mut self, offset: i64) -> bool {
        if !is_offset(offset) || offset < self.next {
            return false;
        }
        let place = self.place(offset);
        if place.is_err() && self.done.contains(offset) {
            return false;
        }
        if let Ok(at) = self.attempts.binary_search_by_key(&offset, |(failed, _)| *failed) {
            self.attempts.remove(at);
        }
        match place {
            Ok(0) => {
                self.open.pop_front();
                let to = self.open.front().copied().unwrap_or(self.seen);
                let end = self.done.take_below(to).unwrap_or(offset);
                self.next = end.max(offset + 1);
                self.absorb();
            }
            Ok(at) => {
                self.open.remove(at);
                self.join_at(at, offset);
            }
            Err(at) if offset < self.seen => self.join_at(at, offset),
            Err(_) => {
                self.done.insert(offset);
                self.absorb();
            }
        }
        true
    }

    /// Notes that an attempt of this number failed. `false` if the offset is finished: nothing changes then.
    ///
    /// Numbers do not fall: a lower one than is known leaves the higher.
    pub fn fail(&mut self, offset: i64, attempt: u32) -> bool {
        if !is_offset(offset) || self.is_finished(offset) {
            return false;
        }
        match self.attempts.binary_search_by_key(&offset, |(failed, _)| *failed) {
            Ok(at) => {
                if let Some((_, attempts)) = self.attempts.get_mut(at) {
                    *attempts = (*attempts).max(attempt);
                }
            }
            Err(at) => self.attempts.insert(at, (offset, attempt)),
        }
        true
    }

    /// The failed attempts of an unfinished offset; 0 of any other.
    #[must_use]
    pub fn attempts(&self, offset: i64) -> u32 {
        if self.attempts.is_empty() {
            return 0;
        }
        let at = self.attempts.binary_search_by_key(&offset, |(failed, _)| *failed);
        at.ok().and_then(|at| self.attempts.get(at)).map_or(0, |(_, attempts)| *attempts)
    }

    /// Offsets of which attempts were noted, be it none, ascending.
    #[cfg(any(feature = "postgres", feature = "mysql", feature = "sqlite"))]
    pub(crate) fn noted(&self) -> impl Iterator<Item = i64> + '_ {
        self.attempts.iter().map(|(offset, _)| *offset)
    }

    /// Whether attempts of this offset were noted, be it none.
    #[cfg(any(feature = "postgres", feature = "mysql", feature = "sqlite"))]
    pub(crate) fn is_noted(&self, offset: i64) -> bool {
        self.attempts.binary_search_by_key(&offset, |(noted, _)| *noted).is_ok()
    }

    /// What would be written after these moves. The window itself stays as it is: [`Window::apply`] them once that is known to be committed,
    /// and forget them if it was rolled back. Whatever is delivered in between is not lost.
    #[must_use]
    pub fn after(&self, moves: &Moves) -> Row {
        if let Some(next) = self.in_order(moves) {
            return Row { next, state: Vec::new() };
        }
        let mut then = self.clone();
        then.apply(moves);
        then.row()
    }

    /// Makes these moves. Making them again changes nothing.
    pub fn apply(&mut self, moves: &Moves) {
        if let Some(next) = self.in_order(moves) {
            self.open.drain(..moves.finished.len());
            self.next = next;
            return;
        }
        for offset in &moves.finished {
            self.finish(*offset);
        }
        for (offset, attempt) in &moves.failed {
            self.fail(*offset, *attempt);
        }
        for (offset, left) in &moves.spared {
            if let Ok(at) = self.attempts.binary_search_by_key(offset, |(failed, _)| *failed)
                && let Some((_, attempts)) = self.attempts.get_mut(at)
            {
                *attempts = (*attempts).min(*left);
            }
        }
    }

    /// What is written of it now.
    #[must_use]
    pub fn row(&self) -> Row {
        Row { next: self.next, state: self.encode() }
    }

    /// What is known above [`Window::next`], as bytes: runs of finished offsets, and failed attempts of unfinished ones. No bytes if there is
    /// nothing. What was delivered is not part of it.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        if self.done.is_empty() && self.attempts.is_empty() {
            return Vec::new();
        }
        let mut bytes = encode::begin();
        self.done.put(&mut bytes);
        encode::put_pairs(
            &mut bytes,
            self.attempts.iter().map(|(offset, attempts)| (offset.unsigned_abs(), *attempts)),
        );
        bytes
    }

    /// The most bytes that [`Window::encode`] makes while at most so many delivered offsets are unfinished.
    ///
    /// That is for offsets anywhere in 64 bits. Among dense offsets an unfinished message costs two to four bytes, and one or two more if it
    /// has failed: about 16 KiB for 4,096 of them.
    #[must_use]
    pub const fn longest(unfinished: usize) -> usize {
        // Version and two counts; one run more than there are unfinished; attempts are numbers of 32 bits.
        1 + 2 * LONGEST + (unfinished + 1) * 2 * LONGEST + unfinished * (LONGEST + 5)
    }

    /// Forgets what was delivered, and nothing else: the partition is read again from [`Window::next`] on, as after a rebalance.
    pub fn restart(&mut self) {
        self.seen = self.next;
        self.open.clear();
    }

    /// Reading goes on from `at`, above the mark: what lies between counts as finished, what is known above stays, and nothing counts as
    /// delivered. At or below the mark it is [`Window::restart`].
    pub fn raise(&mut self, at: i64) {
        self.next = self.next.max(at);
        self.seen = self.next;
        self.open.clear();
        self.done.cut_below(self.next);
        self.absorb();
    }

    /// Forgets everything: all below `next` is finished, and nothing above it.
    pub fn reset(&mut self, next: i64) {
        *self = Self::at(next);
    }

    fn unfinished_at(&self, offset: i64) -> Known {
        Known::Unfinished { attempts: self.attempts(offset) }
    }

    /// Where the mark comes to by moves that finish the first of what is unfinished, in order, where nothing else is to be kept: as most batches
    /// do. Then it is all that changes.
    fn in_order(&self, moves: &Moves) -> Option<i64> {
        let Moves { finished, failed, spared } = moves;
        let last = finished.last()?;
        let plain = self.done.is_empty() && self.attempts.is_empty() && failed.is_empty() && spared.is_empty();
        let first =
            || finished.len() <= self.open.len() && self.open.iter().zip(finished).all(|(open, own)| open == own);
        (plain && first()).then(|| last.saturating_add(1))
    }

    /// Where this offset is among the open ones, or would be.
    fn place(&self, offset: i64) -> Result<usize, usize> {
        // Mostly it is the first, or above all.
        match (self.open.front(), self.open.back()) {
            (Some(first), _) if *first == offset => Ok(0),
            (_, Some(last)) if *last < offset => Err(self.open.len()),
            _ => self.open.binary_search(&offset),
        }
    }

    /// All that was delivered between the open offset before this place and the one there is finished.
    fn join_at(&mut self, at: usize, offset: i64) {
        let from = at.checked_sub(1).and_then(|before| self.open.get(before)).map_or(self.next, |open| open + 1);
        let to = self.open.get(at).copied().unwrap_or(self.seen);
        self.done.join(from, offset, to);
        self.absorb();
    }

    /// The mark moves over what is finished and has nothing unfinished before it.
    fn absorb(&mut self) {
        if self.open.is_empty()
            && let Some(end) = self.done.take_below(self.seen)
        {
            self.next = self.next.max(end);
        }
        while self.done.first().is_some_and(|run| run.start <= self.next) {
            let start = self.next;
            self.next = self.done.take_below(start.saturating_add(1)).unwrap_or(start);
        }
        self.seen = self.seen.max(self.next);
        if !self.attempts.is_empty() {
            let next = self.next;
            self.attempts.retain(|(failed, _)| *failed >= next);
        }
    }
}

const fn is_offset(offset: i64) -> bool {
    offset >= 0 && offset < i64::MAX
}

#[cfg(test)]
mod tests {
    use super::{Known, Moves, Window};

    #[test]
    fn an_attempt_that_came_to_nothing_is_taken_back() {
        let mut window = Window::at(3);
        for offset in 3..6 {
            window.deliver(offset);
            window.fail(offset, 5);
        }
        let mut moves = Moves::new();
        assert!(moves.is_empty());
        moves.spare(4, 4);
        assert!(!moves.is_empty(), "it is to be written");
        let row = window.after(&moves);
        assert_ne!(row, window.row());
        assert_eq!(window.attempts(4), 5, "not before it is committed");
        // Once more after an answer that was lost.
        for _ in 0..2 {
            window.apply(&moves);
            assert_eq!([3, 4, 5].map(|offset| window.attempts(offset)), [5, 4, 5]);
            assert_eq!(window.row(), row);
        }
        let read = Window::restore(row.next, &row.state).unwrap();
        assert_eq!(read.known(4), Known::Unfinished { attempts: 4 });
    }

    #[test]
    fn what_is_spared_never_counts_more_nor_comes_back() {
        let mut window = Window::at(0);
        for offset in 0..3 {
            window.deliver(offset);
        }
        window.fail(0, 1);
        window.fail(1, 1);
        window.finish(1);
        let mut moves = Moves::new();
        moves.spare(0, 7);
        moves.spare(1, 0);
        moves.spare(2, 0);
        window.apply(&moves);
        assert_eq!([0, 1, 2].map(|offset| window.attempts(offset)), [1, 0, 0]);
        assert!(window.is_finished(1));
        assert_eq!(window.attempts.len(), 1, "nothing is noted of what had no attempt");
        // None left: it was in hand, and that stays noted.
        let mut moves = Moves::new();
        moves.spare(0, 0);
        window.apply(&moves);
        assert_eq!(window.attempts, [(0, 0)]);
    }

    #[test]
    fn moves_that_finish_the_first_do_what_each_of_them_does() {
        let mut delivered = Window::at(3);
        for offset in [3, 4, 9, 10, 17] {
            delivered.deliver(offset);
        }
        let mut above = delivered.clone();
        above.finish(10);
        let mut failed = delivered.clone();
        failed.fail(9, 2);
        let none: &[i64] = &[];
        for window in [delivered, above, failed] {
            for finished in
                [none, &[3], &[3, 4], &[3, 4, 9, 10, 17], &[3, 9], &[4, 3], &[3, 4, 5], &[3, 4, 9, 10, 17, 18]]
            {
                let mut moves = Moves::new();
                let mut each = window.clone();
                for offset in finished {
                    moves.finish(*offset);
                    each.finish(*offset);
                }
                let mut at_once = window.clone();
                assert_eq!(window.after(&moves), each.row(), "{window:?} {finished:?}");
                for _ in 0..2 {
                    at_once.apply(&moves);
                    assert_eq!(at_once, each, "{window:?} {finished:?}");
                }
            }
        }
        // What failed or was spared besides is kept too.
        let mut window = Window::at(0);
        (0..4).for_each(|offset| _ = window.deliver(offset));
        let mut moves = Moves::new();
        moves.finish(0);
        moves.fail(1, 1);
        window.apply(&moves);
        assert_eq!((window.next(), window.attempts(1)), (1, 1));
    }
}
