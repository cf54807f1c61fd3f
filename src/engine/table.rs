//! The messages in hand, by number.

use std::time::Duration;

use super::event::{Cause, Subject, Ticket, Verdict};
use crate::frontier::Slot;

/// No lane, no chain.
pub(super) const NONE: u32 = u32::MAX;

/// Where a message is on its way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// The number is free.
    Free,
    /// Its turn to be claimed will come.
    Queued,
    /// Waits for a time.
    Parked,
    /// Waits for another message with the same identity that is in hand. `passable`: it will come out as that one does, so that those
    /// behind it in the lane need not wait.
    Twin { passable: bool },
    /// Waits until nothing else is in hand: its earlier attempts may have ended processes.
    Suspect,
    /// The store is being asked.
    Claiming,
    /// At most once: being settled before its handler runs.
    First,
    /// Its handler may run.
    Ready,
    /// Its handler runs, or will in its chain.
    Running,
    /// Its dead letter is being produced.
    Lettering(Cause),
    /// Its dead letter could not be produced, and will be again.
    Unlettered(Cause),
    /// The store is to hear how its claim ends.
    Ending(Verdict),
}

/// What messages are counted by, as bits of [`Phase::counts`].
pub(super) mod count {
    /// Its lane has something going on: what comes behind it cannot begin at once.
    pub(crate) const ACTIVE: u8 = 1;
    /// More is going on than waiting.
    pub(crate) const IN_HAND: u8 = 2;
    pub(crate) const READY: u8 = 4;
    pub(crate) const FIRST: u8 = 8;
    /// It waits for a time.
    pub(crate) const WAITING: u8 = 16;
}

impl Phase {
    /// What a message counts as.
    pub(super) const fn counts(self) -> u8 {
        use count::{ACTIVE, FIRST, IN_HAND, READY, WAITING};
        match self {
            Self::Free | Self::Queued | Self::Twin { .. } | Self::Suspect => 0,
            Self::Parked => WAITING,
            Self::Claiming | Self::Running => ACTIVE | IN_HAND,
            Self::First => ACTIVE | IN_HAND | FIRST,
            Self::Ready => ACTIVE | IN_HAND | READY,
            Self::Lettering(_) | Self::Ending(_) => IN_HAND,
            Self::Unlettered(_) => IN_HAND | WAITING,
        }
    }

    /// Whether its lane has something going on.
    pub(super) const fn is_active(self) -> bool {
        self.counts() & count::ACTIVE != 0
    }

    /// Whether those behind it in its lane need not wait for it.
    const fn is_passed(self) -> bool {
        matches!(self, Self::Free | Self::Ending(Verdict::Succeeded))
    }
}

/// One message.
#[derive(Clone, Copy, Debug)]
pub(super) struct Entry {
    pub(super) phase: Phase,
    pub(super) slot: Slot,
    pub(super) offset: i64,
    pub(super) subject: Subject,
    /// Index of its partition.
    pub(super) part: u32,
    pub(super) lane: u32,
    pub(super) chain: u32,
    /// The attempt that the claim held is; 0 without a claim.
    pub(super) attempt: u32,
    /// Handlers begun here.
    pub(super) begun: u32,
    /// Times it was found in another owner's hand.
    pub(super) looks: u32,
    /// Settled before its handler runs.
    pub(super) spent: bool,
    /// Those behind it in its lane are not claimed.
    pub(super) stalls: bool,
    /// To be run with nothing else in hand.
    pub(super) suspect: bool,
    /// The consumer ends at it.
    pub(super) stopped: bool,
    /// How long to wait once its claim is given back.
    pub(super) resume_in: Duration,
    /// Which waiting this is: an earlier one's end is nothing to it.
    pub(super) parking: u64,
}

impl Entry {
    /// Whether a claim is held of whose end the store is still to hear.
    pub(super) const fn holds_claim(&self) -> bool {
        self.attempt > 0 && !self.spent
    }

    /// Whether whatever handles it remembers it by itself.
    pub(super) const fn is_own(&self) -> bool {
        matches!(self.subject, Subject::Own)
    }
}

/// All messages, by ticket.
#[derive(Debug, Default)]
pub(super) struct Table {
    entries: Vec<Option<Entry>>,
}

impl Table {
    pub(super) fn put(&mut self, ticket: Ticket, entry: Entry) {
        let at = ticket.0 as usize;
        if at >= self.entries.len() {
            self.entries.resize(at + 1, None);
        }
        if let Some(place) = self.entries.get_mut(at) {
            *place = Some(entry);
        }
    }

    /// Forgets a message where it stands. Answers with its lane.
    pub(super) fn clear(&mut self, ticket: Ticket) -> u32 {
        let Some(place) = self.entries.get_mut(ticket.0 as usize) else { return NONE };
        let lane = place.as_ref().map_or(NONE, |entry| entry.lane);
        *place = None;
        lane
    }

    pub(super) fn get(&self, ticket: Ticket) -> Option<&Entry> {
        self.entries.get(ticket.0 as usize)?.as_ref()
    }

    pub(super) fn get_mut(&mut self, ticket: Ticket) -> Option<&mut Entry> {
        self.entries.get_mut(ticket.0 as usize)?.as_mut()
    }

    pub(super) fn phase(&self, ticket: Ticket) -> Phase {
        self.get(ticket).map_or(Phase::Free, |entry| entry.phase)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (Ticket, &Entry)> {
        (0..).zip(&self.entries).filter_map(|(at, entry)| Some((Ticket(at), entry.as_ref()?)))
    }
}

/// A place in a lane. The number may have been given to another message since: then the slot differs.
#[derive(Clone, Copy, Debug)]
pub(super) struct Member {
    pub(super) ticket: Ticket,
    pub(super) slot: Slot,
}

impl Member {
    /// The message, unless it is another one by now, or has left the lane.
    pub(super) fn entry<'t>(&self, table: &'t Table, lane: u32) -> Option<&'t Entry> {
        table.get(self.ticket).filter(|entry| entry.slot == self.slot && entry.lane == lane)
    }

    /// Whether nobody has to wait for it any more.
    pub(super) fn is_passed(&self, table: &Table, lane: u32) -> bool {
        self.entry(table, lane).is_none_or(|entry| entry.phase.is_passed())
    }
}
