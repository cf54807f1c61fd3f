//! A sorted set of runs of numbers.

use std::collections::VecDeque;

use super::Malformed;
use super::encode::{Reader, put};

/// Numbers from `start` on, below `end`. Never empty.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Run {
    pub(super) start: i64,
    pub(super) end: i64,
}

/// Runs in ascending order; none overlaps another.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Ranges(VecDeque<Run>);

impl Ranges {
    pub(super) const fn new() -> Self {
        Self(VecDeque::new())
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    pub(super) fn first(&self) -> Option<Run> {
        self.0.front().copied()
    }

    pub(super) fn contains(&self, number: i64) -> bool {
        self.holding(number).is_some()
    }

    /// The run that holds this number.
    pub(super) fn holding(&self, number: i64) -> Option<Run> {
        let at = self.0.partition_point(|run| run.end <= number);
        self.0.get(at).copied().filter(|run| run.start <= number)
    }

    /// Adds one number. `false` if it was there.
    pub(super) fn insert(&mut self, number: i64) -> bool {
        if self.contains(number) {
            return false;
        }
        let at = self.0.partition_point(|run| run.end < number);
        match self.0.get_mut(at) {
            Some(run) if run.end == number => {
                run.end = number + 1;
                if let Some(after) = self.0.get(at + 1).copied().filter(|after| after.start == number + 1) {
                    self.0.remove(at + 1);
                    if let Some(run) = self.0.get_mut(at) {
                        run.end = after.end;
                    }
                }
            }
            Some(run) if run.start == number + 1 => run.start = number,
            _ => self.0.insert(at, Run { start: number, end: number + 1 }),
        }
        true
    }

    /// Makes one run of `number` and all runs that begin in `from..to`.
    pub(super) fn join(&mut self, from: i64, number: i64, to: i64) {
        let (a, b) = self.places(from, to);
        let mut whole = Run { start: number, end: number + 1 };
        if let (Some(first), Some(last)) = (self.0.get(a), self.0.get(b.wrapping_sub(1)))
            && a < b
        {
            whole = Run { start: first.start.min(number), end: last.end.max(number + 1) };
        }
        match self.0.get_mut(a).filter(|_| a < b) {
            Some(run) => {
                *run = whole;
                if b - a > 1 {
                    self.0.drain(a + 1..b);
                }
            }
            None => self.0.insert(a, whole),
        }
    }

    /// Takes out all that begin below `to`. Answers where the last of them ended.
    pub(super) fn take_below(&mut self, to: i64) -> Option<i64> {
        let mut end = None;
        while let Some(run) = self.first().filter(|run| run.start < to) {
            end = Some(run.end);
            self.0.pop_front();
        }
        end
    }

    /// Takes numbers below `to` out.
    pub(super) fn cut_below(&mut self, to: i64) {
        while self.first().is_some_and(|run| run.end <= to) {
            self.0.pop_front();
        }
        if let Some(run) = self.0.front_mut() {
            run.start = run.start.max(to);
        }
    }

    fn places(&self, from: i64, to: i64) -> (usize, usize) {
        (self.0.partition_point(|run| run.start < from), self.0.partition_point(|run| run.start < to))
    }

    pub(super) fn put(&self, into: &mut Vec<u8>) {
        put(into, self.0.len() as u64);
        let mut before = 0;
        for run in &self.0 {
            put(into, run.start.abs_diff(before));
            put(into, run.end.abs_diff(run.start) - 1);
            before = run.end;
        }
    }

    pub(super) fn read(from: &mut Reader<'_>) -> Result<Self, Malformed> {
        let count = from.count(2)?;
        let mut runs = VecDeque::with_capacity(count);
        let mut before = 0_i64;
        let above = |before: i64, by: u64| before.checked_add_unsigned(by).ok_or(Malformed::Number);
        for _ in 0..count {
            let start = above(before, from.number()?)?;
            let end = above(start, from.number()?.checked_add(1).ok_or(Malformed::Number)?)?;
            runs.push_back(Run { start, end });
            before = end;
        }
        Ok(Self(runs))
    }
}
