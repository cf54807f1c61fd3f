//! Batches of distinct keys in ascending order.

use crate::identity::Key;
use crate::record::{Extend, Settle, Sighting};

/// Something about one record.
pub trait Keyed {
    /// The record's key.
    fn key(&self) -> Key;
}

impl Keyed for Key {
    fn key(&self) -> Key {
        *self
    }
}

impl Keyed for Ask {
    fn key(&self) -> Key {
        self.sighting.key
    }
}

impl Keyed for Settle {
    fn key(&self) -> Key {
        self.sighting.key
    }
}

impl Keyed for Extend {
    fn key(&self) -> Key {
        self.key
    }
}

/// One message to claim.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ask {
    /// The message.
    pub sighting: Sighting,
    /// The store may read before it inserts: the message was probably seen before. A hint about speed, never about the outcome.
    pub read_first: bool,
}

impl From<Sighting> for Ask {
    fn from(sighting: Sighting) -> Self {
        Self { sighting, read_first: false }
    }
}

/// Items with distinct keys, in ascending order of their keys.
///
/// The order keeps two batches from waiting for each other; distinct keys keep one statement from meeting a row twice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batch<T> {
    items: Vec<T>,
}

/// Items sorted into a batch, and what did not fit in.
#[derive(Clone, Debug)]
pub struct Gathered<T> {
    /// The first item of each key.
    pub batch: Batch<T>,
    /// For each item of the batch, where it stood in what was given.
    pub places: Vec<usize>,
    /// Items whose key was in the batch already, with where they stood, in the order given.
    pub later: Vec<(usize, T)>,
}

impl<T: Keyed> Batch<T> {
    /// A batch of one.
    #[must_use]
    pub fn one(item: T) -> Self {
        Self { items: vec![item] }
    }

    /// Sorts items by key. Of several with one key the first given is taken, the others come back in [`Gathered::later`].
    #[must_use]
    pub fn gather(items: impl IntoIterator<Item = T>) -> Gathered<T> {
        let mut items: Vec<Option<T>> = items.into_iter().map(Some).collect();
        // Keys and places are sorted instead of the items, which are several times as large.
        let mut order: Vec<(Key, usize)> =
            items.iter().enumerate().filter_map(|(place, item)| Some((item.as_ref()?.key(), place))).collect();
        order.sort_unstable();
        let mut batch: Vec<T> = Vec::with_capacity(order.len());
        let mut places = Vec::with_capacity(order.len());
        let mut later = Vec::new();
        for (key, place) in order {
            let Some(item) = items.get_mut(place).and_then(Option::take) else { continue };
            if batch.last().is_some_and(|last| last.key() == key) {
                later.push((place, item));
            } else {
                batch.push(item);
                places.push(place);
            }
        }
        later.sort_by_key(|(place, _)| *place);
        Gathered { batch: Self { items: batch }, places, later }
    }

    /// A batch of what is in order already: distinct keys, ascending. Anything else is sorted, and repeated keys are dropped.
    pub(crate) fn sorted(items: Vec<T>) -> Self {
        if items.is_sorted_by(|a, b| a.key() < b.key()) { Self { items } } else { Self::gather(items).batch }
    }

    /// The part of the batch that `keep` picks, in the same order.
    #[must_use]
    pub fn filter(&self, mut keep: impl FnMut(&T) -> bool) -> Self
    where
        T: Clone,
    {
        Self { items: self.items.iter().filter(|item| keep(item)).cloned().collect() }
    }

    /// The same batch with each item changed; its key must stay, or the batch is sorted anew and repeated keys are dropped.
    #[must_use]
    pub fn map<U: Keyed>(&self, change: impl FnMut(&T) -> U) -> Batch<U> {
        Batch::sorted(self.items.iter().map(change).collect())
    }

    /// The items.
    #[must_use]
    pub fn items(&self) -> &[T] {
        &self.items
    }

    /// Their keys, in order.
    pub fn keys(&self) -> impl ExactSizeIterator<Item = Key> + '_ {
        self.items.iter().map(Keyed::key)
    }

    /// How many.
    #[must_use]
    pub fn len(&self) -> usize {
        self.items.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.items.is_empty()
    }
}

impl<T: Keyed> FromIterator<T> for Batch<T> {
    /// Sorts items by key, and drops all but the first of a key.
    fn from_iter<I: IntoIterator<Item = T>>(items: I) -> Self {
        Self::gather(items).batch
    }
}
