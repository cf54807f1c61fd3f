//! Whose window speaks of each message of a batch.

use std::sync::Arc;

use super::core::Core;
use super::dialect::Source;
use super::outcome::{Item, Pinned, Spot};
use super::sealed::Sealed;
use super::windows::{Held, Looking, Verdict};

/// No window.
const NONE: u32 = u32::MAX;

/// The windows of a batch's messages, each once, and which of them each message has.
#[derive(Debug, Default)]
pub(super) struct Holding {
    all: Vec<Arc<Held>>,
    of: Vec<u32>,
}

impl Holding {
    /// All of them.
    pub(super) fn all(&self) -> &[Arc<Held>] {
        &self.all
    }

    /// A message's, by the message's place; `None` where it has none in a window, or where nobody holds its partition.
    pub(super) fn get(&self, at: usize) -> Option<&Arc<Held>> {
        self.of.get(at).and_then(|number| self.all.get(*number as usize))
    }

    /// The number of a message's window.
    pub(super) fn number(&self, at: usize) -> Option<usize> {
        self.of.get(at).filter(|number| **number != NONE).map(|number| *number as usize)
    }

    /// What the windows say of these messages; nothing where none is asked.
    pub(super) fn look(&self, items: &[Item], places: &[usize]) -> Vec<Option<Verdict>> {
        let mut looking: Option<(u32, Looking<'_>)> = None;
        let verdict = |at: &usize| {
            let (item, number) = (items.get(*at)?, self.of.get(*at)?);
            let Some(Spot::Position) = item.spot else { return None };
            if looking.as_ref().is_none_or(|(last, _)| last != number) {
                // One lock at a time.
                looking = None;
                looking = self.all.get(*number as usize).map(|held| (*number, held.looking()));
            }
            Some(looking.as_ref().map_or(Verdict::Fenced, |(_, window)| window.look(item.origin.offset)))
        };
        places.iter().map(verdict).collect()
    }

    /// Whether it is plain that no two messages of the batch are at the same place.
    pub(super) fn is_apart(&self, items: &[Item]) -> bool {
        let mut sources: Vec<Source> = self.all.iter().map(|held| held.source).collect();
        sources.sort_unstable();
        if !sources.is_sorted_by(|one, two| one < two) {
            // Two windows of one partition: of an assignment that is over, and of the one that stands.
            return false;
        }
        // As messages are delivered: one partition after the other, each in order.
        let mut last: Option<(u32, i64)> = None;
        items.iter().zip(&self.of).all(|(item, number)| {
            let Some(Spot::Position) = item.spot else { return true };
            let place = (*number, item.origin.offset);
            let after = *number != NONE && last.is_none_or(|last| last < place);
            last = Some(place);
            after
        })
    }
}

impl<DB: Sealed> Core<DB> {
    pub(super) fn holding(&self, items: &[Item]) -> Holding {
        let mut holding = Holding { all: Vec::new(), of: Vec::with_capacity(items.len()) };
        let mut last: Option<(&Item, u32)> = None;
        for item in items {
            let Some(Spot::Position) = item.spot else {
                holding.of.push(NONE);
                continue;
            };
            let number = match last {
                Some((other, number)) if is_alike(other, item) => number,
                _ => holding.add(self.held_by(item)),
            };
            holding.of.push(number);
            last = Some((item, number));
        }
        holding
    }
}

impl Holding {
    fn add(&mut self, held: Option<Arc<Held>>) -> u32 {
        let Some(held) = held else { return NONE };
        let at = self.all.iter().position(|other| Arc::ptr_eq(other, &held)).unwrap_or_else(|| {
            self.all.push(held);
            self.all.len() - 1
        });
        u32::try_from(at).unwrap_or(NONE)
    }
}

/// Whether the window of one is that of the other.
fn is_alike(one: &Item, two: &Item) -> bool {
    match (&one.held, &two.held) {
        (Pinned::Free, Pinned::Free) => {
            one.origin.partition == two.origin.partition && one.origin.topic == two.origin.topic
        }
        (Pinned::To(Some(one)), Pinned::To(Some(two))) => Arc::ptr_eq(one, two),
        _ => false,
    }
}
