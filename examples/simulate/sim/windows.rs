//! The windows that a process holds: a fence raised at the assignment, the row that says where to go on, and who may move it.

use std::collections::VecDeque;

use hapax::window::Window;

use super::flaws::DriverFlaw;
use super::history::What;
use super::plan::MS;
use super::process::{NONE, Process};
use super::transaction::{Step, Tx};
use super::world::{Happening, Sent, World};

/// The window of a partition that is ours.
#[derive(Clone, Debug)]
pub struct Standing {
    pub epoch: u32,
    pub fence: u64,
    pub window: Window,
    /// Not fenced off, as far as is known.
    pub ready: bool,
}

/// A fence to raise.
#[derive(Clone, Debug, Default)]
pub struct Raise {
    pub partition: usize,
    pub epoch: u32,
    /// Where it begins if there is no row.
    pub start: i64,
}

/// One transaction of a process moves a window at a time.
#[derive(Clone, Debug)]
pub struct Gate {
    holder: u32,
    waiting: VecDeque<u32>,
}

impl Default for Gate {
    fn default() -> Self {
        Self { holder: NONE, waiting: VecDeque::new() }
    }
}

impl Gate {
    /// Whether it is this one's turn; notes it waiting if not.
    pub fn pass(&mut self, tx: u32) -> bool {
        if self.holder == NONE {
            self.holder = tx;
        }
        if self.holder != tx && !self.waiting.contains(&tx) {
            self.waiting.push_back(tx);
        }
        self.holder == tx
    }

    /// Whoever is next.
    pub fn leave(&mut self, tx: u32) -> Option<u32> {
        self.waiting.retain(|other| *other != tx);
        if self.holder != tx {
            return None;
        }
        let next = self.waiting.pop_front();
        self.holder = next.unwrap_or(NONE);
        next
    }
}

impl Process {
    /// The window of a partition, as long as this assignment holds it and nobody fenced it off.
    pub fn standing(&self, partition: usize, epoch: u32) -> Option<&Standing> {
        self.windows[partition].as_ref().filter(|window| window.epoch == epoch && window.ready)
    }
}

impl World {
    /// Asks for the fence of a partition that was assigned, or whose fence somebody else raised.
    pub fn raise(&mut self, process: usize, partition: usize, epoch: u32) {
        let Some(owned) = self.processes[process].kafka.owned.iter().find(|owned| owned.epoch == epoch) else {
            return;
        };
        let start = owned.begin;
        let owner = self.processes[process].owner;
        self.txs.push(Tx { process, owner, raise: Raise { partition, epoch, start }, ..Tx::default() });
        let tx = self.txs.len() as u32 - 1;
        self.send_step(tx, Step::Raise);
    }

    /// Not yet: a lock, or no database.
    pub fn raise_later(&mut self, process: usize, tx: u32) {
        let Raise { partition, epoch, .. } = self.txs[tx as usize].raise.clone();
        let delay = self.random.between(20 * MS, 500 * MS);
        let what = Happening::Raise { partition: partition as u32, epoch };
        self.at(self.now + delay, Sent::To(process as u32), what);
    }

    /// The row is ours: where it says otherwise than Kafka, it wins.
    pub fn raised(&mut self, process: usize, tx: u32) {
        let Raise { partition, epoch, start } = self.txs[tx as usize].raise.clone();
        let Some(row) = self.txs[tx as usize].raised.clone() else { return };
        let ignored = self.flaws.driver == Some(DriverFlaw::RowIgnored);
        let window = if ignored { Ok(Window::at(start)) } else { Window::restore(row.next, &row.state) };
        let Ok(mut window) = window else {
            self.violate("window", format!("the row of partition {partition} cannot be read"));
            return;
        };
        let one = &mut self.processes[process];
        let Some(owned) = one.kafka.owned.iter_mut().find(|owned| owned.epoch == epoch) else { return };
        if one.windows[partition].as_ref().is_some_and(|window| window.epoch == epoch && window.fence >= row.fence) {
            return;
        }
        if !owned.ready {
            owned.ready = true;
            let next = window.next();
            let log = &self.plan.logs[partition].messages;
            owned.place = log.partition_point(|message| self.plan.messages[*message as usize].offset < next);
        }
        // What is in hand was delivered before.
        let in_hand = one.held.iter().filter(|held| held.live && held.epoch == epoch);
        let mut offsets: Vec<i64> = in_hand.map(|held| self.plan.messages[held.message as usize].offset).collect();
        offsets.sort_unstable();
        offsets.into_iter().for_each(|offset| {
            window.deliver(offset);
        });
        if !matches!(self.flaws.driver, Some(DriverFlaw::IdsKept | DriverFlaw::IdsBeforeFence)) {
            // Whoever accepted from this partition before has lower ids: none of them is given out after this.
            one.ids = None;
        }
        one.windows[partition] = Some(Standing { epoch, fence: row.fence, window, ready: true });
        self.log(process, What::Raised { partition: partition as u32, epoch, fence: row.fence, next: row.next });
        self.arm_poll(process);
        if self.is_healed {
            self.look_for_end();
        }
    }

    /// Fenced off. As long as the assignment stands this may have been a request of an earlier owner that came late: the fence is raised anew.
    pub fn lost_fence(&mut self, process: usize, partition: usize, fence: u64) {
        let Some(window) = self.processes[process].windows[partition].as_mut() else { return };
        if window.fence != fence || !std::mem::replace(&mut window.ready, false) {
            return;
        }
        let epoch = window.epoch;
        self.log(process, What::Note("fenced off"));
        if self.flaws.driver == Some(DriverFlaw::FencedForGood) {
            return;
        }
        let delay = self.random.between(20 * MS, 300 * MS);
        self.at(self.now + delay, Sent::To(process as u32), Happening::Raise { partition: partition as u32, epoch });
    }
}
