//! The messages in hand, by their tickets.

use tokio::task::AbortHandle;

use crate::consumer::message::Message;
use crate::engine::Ticket;
use crate::wrapper::drive::{Fault, Hands};

/// A message in hand.
pub(super) struct Entry<S> {
    pub(super) message: Message,
    /// What whoever remembers it keeps of it.
    pub(super) state: S,
    /// Its assignment: a place in [`Periods`](super::periods::Periods).
    pub(super) period: u32,
    /// The attempt that runs or ran last; 0 before the first.
    pub(super) attempt: u32,
    /// When that attempt began, in milliseconds since 1970.
    pub(super) begun_at: i64,
    /// What is chained to it, while its chain is in a task.
    pub(super) next: Option<Ticket>,
    /// That task.
    pub(super) task: Option<AbortHandle>,
    pub(super) trouble: Option<Box<Trouble>>,
}

/// Failures of a message that were seen here.
pub(super) struct Trouble {
    pub(super) last: Fault,
    /// When the first of these attempts began, in milliseconds since 1970.
    pub(super) first_at: i64,
    /// When the last one did.
    pub(super) last_at: i64,
}

/// Messages in hand. Numbers are used again, those given back last first, so that they stay small.
pub(super) struct Slab<S> {
    entries: Vec<Option<Entry<S>>>,
    free: Vec<u32>,
}

impl<S> Slab<S> {
    pub(super) const fn new() -> Self {
        Self { entries: Vec::new(), free: Vec::new() }
    }

    pub(super) fn insert(&mut self, entry: Entry<S>) -> Ticket {
        if let Some(number) = self.free.pop()
            && let Some(place) = self.entries.get_mut(number as usize)
        {
            *place = Some(entry);
            return Ticket(number);
        }
        // Bounded by the memory that messages take: far below u32.
        let number = u32::try_from(self.entries.len()).unwrap_or(u32::MAX);
        self.entries.push(Some(entry));
        Ticket(number)
    }

    pub(super) fn get(&self, ticket: Ticket) -> Option<&Entry<S>> {
        self.entries.get(ticket.0 as usize)?.as_ref()
    }

    pub(super) fn get_mut(&mut self, ticket: Ticket) -> Option<&mut Entry<S>> {
        self.entries.get_mut(ticket.0 as usize)?.as_mut()
    }

    pub(super) fn remove(&mut self, ticket: Ticket) -> Option<Entry<S>> {
        let entry = self.entries.get_mut(ticket.0 as usize)?.take()?;
        self.free.push(ticket.0);
        Some(entry)
    }

    /// Takes all out.
    pub(super) fn drain(&mut self) -> impl Iterator<Item = Entry<S>> {
        self.free.clear();
        std::mem::take(&mut self.entries).into_iter().flatten()
    }
}

impl<S> Hands<S> for Slab<S> {
    fn hand(&mut self, ticket: Ticket) -> Option<&mut S> {
        self.get_mut(ticket).map(|entry| &mut entry.state)
    }
}
