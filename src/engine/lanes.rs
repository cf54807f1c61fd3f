//! Lanes: messages that wait for each other. One for each partition, or for each key in it, as the order says.

use std::collections::VecDeque;

use super::event::Time;
use super::table::{Member, NONE, Phase, Table};
use crate::frontier::Slot;
use crate::pace::Pace;

#[derive(Debug, Default)]
pub(super) struct Lane {
    /// Index of its partition.
    pub(super) part: u32,
    /// What the partition knows it by.
    pub(super) hash: u64,
    /// In the order delivered. Those whose handlers are over leave at the front.
    pub(super) members: VecDeque<Member>,
    /// Those of them whose turn to be claimed will come, in the same order.
    pub(super) pending: VecDeque<Member>,
    /// Members that are claimed, or run.
    pub(super) active: usize,
    /// It is listed as one that has something to claim.
    pub(super) filed: bool,
    /// A chain of it runs.
    pub(super) running: bool,
    /// When that began.
    pub(super) began: Time,
    /// How many of its messages its handlers get through in a moment, as far as is known.
    pub(super) pace: Pace,
    /// It is listed as one that may start.
    pub(super) listed: bool,
    /// Places of members that wait: those behind them are not claimed.
    pub(super) stalled: Vec<u64>,
}

impl Lane {
    /// Whether a message of it has to wait for an earlier one that waits itself.
    pub(super) fn is_behind_stall(&self, slot: Slot) -> bool {
        self.stalled.iter().any(|place| *place < slot.place())
    }

    /// Puts a member where its turn comes before that of those behind it.
    pub(super) fn put_back(&mut self, member: Member) {
        let at = self.pending.iter().position(|other| other.slot.place() > member.slot.place());
        self.pending.insert(at.unwrap_or(self.pending.len()), member);
    }

    /// How many more of it may be claimed ahead of its handlers.
    pub(super) fn ahead(&self) -> usize {
        self.pace.ahead().saturating_sub(self.active)
    }

    /// Whether what runs takes long: what is behind it would age under its lease.
    pub(super) fn is_slow(&self, now: Time) -> bool {
        self.running && now.saturating_sub(self.began) > Pace::WINDOW
    }

    /// Whether its first pending member may be claimed.
    pub(super) fn has_claimable(&self) -> bool {
        self.pending.front().is_some_and(|member| !self.is_behind_stall(member.slot))
    }
}

/// All lanes, by number.
#[derive(Debug)]
pub(super) struct Lanes {
    list: Vec<Lane>,
    free: Vec<u32>,
    /// How far one lane is claimed ahead at most.
    ahead: usize,
}

impl Lanes {
    pub(super) const fn new(ahead: usize) -> Self {
        Self { list: Vec::new(), free: Vec::new(), ahead }
    }

    pub(super) fn open(&mut self, part: u32, hash: u64) -> u32 {
        let id = self.free.pop().unwrap_or_else(|| {
            self.list.push(Lane::default());
            u32::try_from(self.list.len() - 1).unwrap_or(NONE)
        });
        if let Some(lane) = self.list.get_mut(id as usize) {
            lane.part = part;
            lane.hash = hash;
            lane.pace = Pace::new(self.ahead);
        }
        id
    }

    /// Gives a number back. Nothing of the lane may run. What it had room for is used again: lanes of keys come and go with each few messages.
    pub(super) fn close(&mut self, id: u32) {
        const KEPT: usize = 64;
        if let Some(lane) = self.list.get_mut(id as usize) {
            let (mut members, mut pending) = (std::mem::take(&mut lane.members), std::mem::take(&mut lane.pending));
            for list in [&mut members, &mut pending] {
                list.clear();
                list.shrink_to(KEPT);
            }
            *lane = Lane { members, pending, ..Lane::default() };
            self.free.push(id);
        }
    }

    pub(super) fn get(&self, id: u32) -> Option<&Lane> {
        self.list.get(id as usize)
    }

    pub(super) fn get_mut(&mut self, id: u32) -> Option<&mut Lane> {
        self.list.get_mut(id as usize)
    }

    /// The lanes of these partitions.
    pub(super) fn of(&mut self, parts: &[u32]) -> impl Iterator<Item = &mut Lane> {
        self.list.iter_mut().filter(|lane| parts.contains(&lane.part))
    }

    /// Lets those whose handlers are over leave at the front. Answers whether the first that is left may start.
    pub(super) fn advance(&mut self, id: u32, table: &Table) -> bool {
        let Some(lane) = self.list.get_mut(id as usize) else { return false };
        while let Some(member) = lane.members.front()
            && member.is_passed(table, id)
        {
            lane.members.pop_front();
        }
        !lane.listed && self.first(id, table) == Some(Phase::Ready)
    }

    /// Whether nothing of a lane can go on before its first pending member is claimed.
    pub(super) fn begins_with_pending(&self, id: u32, table: &Table) -> bool {
        self.get(id).is_some_and(|lane| lane.active == 0) || self.first(id, table) == Some(Phase::Queued)
    }

    /// Where the first of a lane is that waits for nobody, unless a chain of the lane runs.
    fn first(&self, id: u32, table: &Table) -> Option<Phase> {
        let lane = self.get(id).filter(|lane| !lane.running)?;
        let waits = |member: &&Member| !member.is_passed(table, id) && !is_passable(table, member);
        lane.members.iter().find(waits).map(|member| table.phase(member.ticket))
    }
}

/// Whether those behind it may run although it has not come out.
pub(super) fn is_passable(table: &Table, member: &Member) -> bool {
    matches!(table.phase(member.ticket), Phase::Twin { passable: true })
}
