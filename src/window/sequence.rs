//! The window of one producer's source.

use std::cmp::Ordering;

use super::encode::{self, LONGEST, Reader, put};
use super::{Malformed, Row};

/// Bits in a word.
const WORD: u64 = 64;
const RUNS: u64 = 1;
const BITS: u64 = 2;

/// What a window says of a producer's sequence number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sequenced {
    /// Not handled yet.
    New {
        /// The attempts that failed so far.
        attempts: u32,
    },
    /// Handled before.
    Seen,
    /// So far below the highest one that nobody can tell.
    TooOld,
}

/// What is remembered of one source of numbered messages: the highest number handled, and which of the `span` below it were.
///
/// Numbers may start anywhere, come out of order, and have gaps; each is from 0 to [`u64::MAX`]. What is more than the span below the
/// highest is *too old to tell*, unless it failed or waited here before: those are kept by number, so that a message that waits is not passed
/// by the others into oblivion.
///
/// The number must be one that survives the producer's restart; see [`sequence`](crate::identity::sequence).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sequences {
    span: u64,
    /// Numbers below it are too old; all that were handled before the span moved on.
    floor: u64,
    high: Option<u64>,
    /// A ring: the bit of a number is at its remainder by the span. Set for handled ones in `floor..=high`, clear elsewhere.
    bits: Vec<u64>,
    /// Failed or waiting, not handled, ascending.
    failed: Vec<(u64, u32)>,
}

impl Sequences {
    /// The span where none is given.
    pub const SPAN: u32 = 4_096;
    /// The longest span.
    pub const MOST_SPAN: u32 = 65_536;
    /// Failed and waiting numbers that are kept; beyond it, the lowest is forgotten.
    pub const MOST_FAILED: usize = 4_096;

    /// A window that has seen nothing. `span` is how many numbers up to the highest are told apart: at least 64, at most
    /// [`Sequences::MOST_SPAN`], a multiple of 64; others are brought to the next one that is.
    #[must_use]
    pub fn new(span: u32) -> Self {
        let span = u64::from(span.clamp(64, Self::MOST_SPAN)).next_multiple_of(WORD);
        Self { span, floor: 0, high: None, bits: vec![0; (span / WORD) as usize], failed: Vec::new() }
    }

    /// The window that was written as this, with another span if need be: what a longer one can tell and the shorter could not stays too
    /// old.
    ///
    /// # Errors
    ///
    /// [`Malformed`]; not retryable.
    pub fn restore(span: u32, state: &[u8]) -> Result<Self, Malformed> {
        let mut window = Self::new(span);
        let Some(mut reader) = Reader::of(state)? else { return Ok(window) };
        match reader.number()? {
            0 => {}
            kind @ (RUNS | BITS) => {
                let high = reader.number()?;
                let below = reader.number()?;
                let floor = high.checked_sub(below).ok_or(Malformed::Number)?;
                if below >= u64::from(Self::MOST_SPAN) {
                    return Err(Malformed::Number);
                }
                window.high = Some(high);
                window.floor = floor.max(high.saturating_sub(window.span - 1));
                if kind == RUNS {
                    window.read_runs(&mut reader, floor, high)?
                } else {
                    window.read_bits(&mut reader, floor, high)?
                }
                if !window.bit(high) {
                    return Err(Malformed::Order);
                }
            }
            _ => return Err(Malformed::Order),
        }
        window.failed = encode::pairs(&mut reader)?;
        if window.failed.len() > Self::MOST_FAILED || window.failed.iter().any(|(number, _)| window.is_marked(*number))
        {
            return Err(Malformed::Order);
        }
        reader.end()?;
        Ok(window)
    }

    /// The span, in numbers.
    #[must_use]
    pub const fn span(&self) -> u64 {
        self.span
    }

    /// The highest number handled.
    #[must_use]
    pub const fn high(&self) -> Option<u64> {
        self.high
    }

    /// What is known of a number.
    #[must_use]
    pub fn look(&self, number: u64) -> Sequenced {
        if let Ok(at) = self.failed.binary_search_by_key(&number, |(failed, _)| *failed) {
            return Sequenced::New { attempts: self.failed.get(at).map_or(0, |(_, attempts)| *attempts) };
        }
        if number < self.floor {
            Sequenced::TooOld
        } else if self.is_marked(number) {
            Sequenced::Seen
        } else {
            Sequenced::New { attempts: 0 }
        }
    }

    /// Notes a number handled, and says what it was before. What is too old stays so.
    pub fn see(&mut self, number: u64) -> Sequenced {
        let before = self.look(number);
        if let Sequenced::New { .. } = before {
            self.handled(number);
        }
        before
    }

    /// Notes that an attempt of this number failed. `false` if the number was handled, or is too old: nothing changes then.
    ///
    /// Attempts do not fall: fewer than are known leave the more.
    pub fn fail(&mut self, number: u64, attempt: u32) -> bool {
        let Sequenced::New { attempts } = self.look(number) else { return false };
        match self.failed.binary_search_by_key(&number, |(failed, _)| *failed) {
            Ok(at) => {
                if let Some(failed) = self.failed.get_mut(at) {
                    failed.1 = attempts.max(attempt);
                }
            }
            Err(at) => {
                self.failed.insert(at, (number, attempt));
                if self.failed.len() > Self::MOST_FAILED {
                    self.failed.remove(0);
                }
            }
        }
        true
    }

    /// Notes that a number that was not handled waits: from now on that is known of it, however far others go on. `false` if it was known, or
    /// the number was handled, or is too old: nothing changes then.
    pub fn wait(&mut self, number: u64) -> bool {
        let known = self.failed.binary_search_by_key(&number, |(failed, _)| *failed).is_ok();
        !known && self.fail(number, 0)
    }

    /// What is written of it. `next` is one above the highest number, or 0, for whoever looks at the row: it is not read.
    #[must_use]
    pub fn row(&self) -> Row {
        let next = self.high.map_or(0, |high| i64::try_from(high.saturating_add(1)).unwrap_or(i64::MAX));
        Row { next, state: self.encode() }
    }

    /// Everything that is known, as bytes; none if nothing is.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        if self.high.is_none() && self.failed.is_empty() {
            return Vec::new();
        }
        let mut bytes = encode::begin();
        match self.high {
            None => put(&mut bytes, 0),
            Some(high) => self.put_numbers(&mut bytes, high),
        }
        encode::put_pairs(&mut bytes, self.failed.iter().copied());
        bytes
    }

    /// The most bytes that [`Sequences::encode`] makes with this span, while at most so many have failed: about a bit for each number of the
    /// span, and mostly far fewer, since without gaps there is nothing to write.
    #[must_use]
    pub const fn longest(span: u32, failed: usize) -> usize {
        let span = if span > Self::MOST_SPAN { Self::MOST_SPAN } else { span };
        1 + 4 * LONGEST + (span as usize).div_ceil(8) + 8 + failed * (LONGEST + 5)
    }

    fn handled(&mut self, number: u64) {
        if let Ok(at) = self.failed.binary_search_by_key(&number, |(failed, _)| *failed) {
            self.failed.remove(at);
        }
        if number < self.floor {
            return;
        }
        match self.high {
            Some(high) if number <= high => {}
            Some(high) if number - high < self.span => self.set(high + 1, number, false),
            _ => self.bits.fill(0),
        }
        if self.high.is_none_or(|high| high < number) {
            self.high = Some(number);
            self.floor = self.floor.max(number.saturating_sub(self.span - 1));
        }
        self.set(number, number, true);
    }

    fn is_marked(&self, number: u64) -> bool {
        number >= self.floor && self.high.is_some_and(|high| number <= high) && self.bit(number)
    }

    fn bit(&self, number: u64) -> bool {
        let at = number % self.span;
        self.bits.get((at / WORD) as usize).is_some_and(|word| word >> (at % WORD) & 1 == 1)
    }

    /// Sets or clears the bits of `first..=last`, fewer than the span.
    fn set(&mut self, first: u64, last: u64, to: bool) {
        let mut left = last - first + 1;
        let mut at = first % self.span;
        while left > 0 {
            let (bit, take) = (at % WORD, left.min(WORD - at % WORD));
            let mask = (u64::MAX >> (WORD - take)) << bit;
            if let Some(word) = self.bits.get_mut((at / WORD) as usize) {
                if to { *word |= mask } else { *word &= !mask }
            }
            left -= take;
            at = (at + take) % self.span;
        }
    }

    /// Runs of numbers that were not handled, or a bit for each: whichever is shorter.
    fn put_numbers(&self, into: &mut Vec<u8>, high: u64) {
        let width = (high - self.floor + 1).div_ceil(8) as usize;
        let mut head = Vec::new();
        put(&mut head, high);
        put(&mut head, high - self.floor);
        let mut runs = Vec::new();
        let mut count = 0;
        let mut before = self.floor;
        let mut number = self.floor;
        while number < high && runs.len() <= width {
            let start = number;
            while number < high && !self.bit(number) {
                number += 1;
            }
            if number > start {
                put(&mut runs, start - before);
                put(&mut runs, number - start - 1);
                (count, before) = (count + 1, number);
            }
            // The highest one is always marked.
            while number < high && self.bit(number) {
                number += 1;
            }
        }
        if runs.len() < width {
            put(into, RUNS);
            into.extend_from_slice(&head);
            put(into, count);
            into.extend_from_slice(&runs);
            return;
        }
        put(into, BITS);
        into.extend_from_slice(&head);
        let byte = |first: u64| (0..8).fold(0_u8, |byte, at| byte | u8::from(self.is_at(first, at, high)) << at);
        into.extend((0..width as u64).map(|at| byte(self.floor + 8 * at)));
    }

    fn is_at(&self, first: u64, at: u64, high: u64) -> bool {
        first.checked_add(at).is_some_and(|number| number <= high && self.bit(number))
    }

    fn read_runs(&mut self, from: &mut Reader<'_>, floor: u64, high: u64) -> Result<(), Malformed> {
        self.set(self.floor, high, true);
        let mut before = floor;
        for _ in 0..from.count(2)? {
            let start = before.checked_add(from.number()?).ok_or(Malformed::Number)?;
            let last = start.checked_add(from.number()?).ok_or(Malformed::Number)?;
            if last >= high {
                return Err(Malformed::Number);
            }
            if last >= self.floor {
                self.set(start.max(self.floor), last, false);
            }
            before = last + 1;
        }
        Ok(())
    }

    fn read_bits(&mut self, from: &mut Reader<'_>, floor: u64, high: u64) -> Result<(), Malformed> {
        let width = high - floor + 1;
        let bytes = from.bytes(width.div_ceil(8) as usize)?;
        for at in 0..8 * bytes.len() as u64 {
            let is_set = bytes.get((at / 8) as usize).is_some_and(|byte| byte >> (at % 8) & 1 == 1);
            match at.cmp(&width) {
                Ordering::Less if is_set && floor + at >= self.floor => self.set(floor + at, floor + at, true),
                Ordering::Less => {}
                _ if is_set => return Err(Malformed::Order),
                _ => {}
            }
        }
        Ok(())
    }
}

impl Default for Sequences {
    fn default() -> Self {
        Self::new(Self::SPAN)
    }
}
