//! The assignments that messages in hand belong to.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::frontier::Epoch;

struct Period {
    epoch: Epoch,
    /// Chains of it begin no further message.
    halted: Arc<AtomicBool>,
    in_hand: usize,
    /// Its partition is gone.
    over: bool,
}

/// Assignments by small numbers, which are used again.
#[derive(Default)]
pub(super) struct Periods {
    list: Vec<Option<Period>>,
    /// The one asked for last: messages of one partition come in a row.
    last: u32,
}

impl Periods {
    /// So many messages of this assignment are in hand from now on. Answers with the assignment's number.
    pub(super) fn enter(&mut self, epoch: Epoch, messages: usize) -> u32 {
        let place = self.place(epoch);
        self.last = place;
        if let Some(Some(period)) = self.list.get_mut(place as usize) {
            period.in_hand += messages;
        }
        place
    }

    fn place(&mut self, epoch: Epoch) -> u32 {
        let is_it = |period: &Option<Period>| period.as_ref().is_some_and(|period| period.epoch == epoch);
        if self.list.get(self.last as usize).is_some_and(is_it) {
            return self.last;
        }
        let place = self.list.iter().position(is_it).or_else(|| {
            let place = self.list.iter().position(Option::is_none).unwrap_or(self.list.len());
            let period = Period { epoch, halted: Arc::default(), in_hand: 0, over: false };
            match self.list.get_mut(place) {
                Some(free) => *free = Some(period),
                None => self.list.push(Some(period)),
            }
            Some(place)
        });
        place.and_then(|place| u32::try_from(place).ok()).unwrap_or(u32::MAX)
    }

    /// A message is put down. Answers whether its assignment is over.
    pub(super) fn leave(&mut self, number: u32) -> bool {
        let Some(place) = self.list.get_mut(number as usize) else { return false };
        let Some(period) = place else { return false };
        period.in_hand = period.in_hand.saturating_sub(1);
        let over = period.over;
        if over && period.in_hand == 0 {
            *place = None;
        }
        over
    }

    /// What tells a chain to begin no further message.
    pub(super) fn halted(&self, number: u32) -> Arc<AtomicBool> {
        let period = self.list.get(number as usize).and_then(Option::as_ref);
        period.map(|period| Arc::clone(&period.halted)).unwrap_or_default()
    }

    /// Chains of these assignments begin no further message.
    pub(super) fn halt(&self, epochs: &[Epoch]) {
        for period in self.list.iter().flatten().filter(|period| epochs.contains(&period.epoch)) {
            period.halted.store(true, Ordering::Release);
        }
    }

    /// These assignments are over.
    pub(super) fn end(&mut self, epochs: &[Epoch]) {
        for place in &mut self.list {
            let Some(period) = place.as_mut().filter(|period| epochs.contains(&period.epoch)) else { continue };
            period.over = true;
            if period.in_hand == 0 {
                *place = None;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_assignment_is_forgotten_when_its_last_message_is_put_down() {
        let mut periods = Periods::default();
        let (one, two) = (Epoch::new(1), Epoch::new(2));
        assert_eq!([periods.enter(one, 1), periods.enter(one, 1), periods.enter(two, 1)], [0, 0, 1]);
        let flag = periods.halted(0);
        periods.halt(&[one]);
        assert!(flag.load(Ordering::Acquire) && !periods.halted(1).load(Ordering::Acquire));
        assert!(!periods.leave(0), "it is not over");
        periods.end(&[one, two]);
        assert!(periods.leave(0) && periods.leave(1));
        assert_eq!(periods.enter(Epoch::new(3), 1), 0, "its number is used again");
        assert!(!periods.halted(0).load(Ordering::Acquire), "and not its flag");
    }
}
