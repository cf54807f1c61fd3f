//! What happens to the store and to the ways there, and which faults are open.

use std::time::{Duration, Instant};

use super::{Later, Run, now};
use crate::judge::{Fault, Pid, Time, What};
use crate::schedule::{Link, Trouble};
use crate::world::{trouble, ways};

impl Run<'_> {
    pub(super) fn store_goes_down(&mut self, down: Duration, emptied: bool) {
        if self.down_since.is_some() {
            return;
        }
        self.down_since = Some(now());
        self.open(What::StoreDown);
        self.store.kill();
        self.later.push((Instant::now() + down, Later::StoreStarts { emptied }));
        self.say("the store is killed");
    }

    pub(super) fn trouble(&mut self, slot: Option<usize>, link: Link, what: Trouble) {
        self.counts.relay_cuts += 1;
        if link == Link::Store {
            for pid in self.pids_in(slot) {
                self.open(What::StoreLink(pid));
            }
        }
        for way in ways(self.ground, &self.store, link, slot) {
            trouble(way, what);
        }
        let length = match what {
            Trouble::Cut => Duration::ZERO,
            // The next request comes soon, or the trap is taken away.
            Trouble::CutReply => Duration::from_secs(2),
            Trouble::Down(length)
            | Trouble::Delay(_, length)
            | Trouble::ToServerLost(length)
            | Trouble::ToClientLost(length) => length,
        };
        self.later.push((Instant::now() + length, Later::Restore(slot, link)));
        let whose = slot.map_or("all members".into(), |slot| format!("member {slot}"));
        self.say(&format!("between {whose} and the {link:?}: {what:?}"));
    }

    /// Processes that are in that place now; all of them without a place.
    pub(super) fn pids_in(&self, slot: Option<usize>) -> Vec<Pid> {
        let inside = |at: usize| slot.is_none_or(|slot| slot == at);
        let members = self.members.iter().enumerate().filter(|(at, _)| inside(*at));
        members.filter_map(|(_, member)| Some(member.as_ref()?.pid)).collect()
    }

    pub(super) fn open(&mut self, what: What) {
        self.faults.push(Fault { from: now(), to: Time::MAX, what });
    }

    /// Ends open faults of a kind.
    pub(super) fn close(&mut self, which: impl Fn(What) -> bool) {
        let time = now();
        self.faults
            .iter_mut()
            .filter(|fault| fault.to == Time::MAX && which(fault.what))
            .for_each(|fault| fault.to = time);
    }
}
