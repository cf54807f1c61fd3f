//! What strikes from outside: messages that are produced, faults at their times, and the moment from which on there are none.

use super::history::What;
use super::plan::{Fault, Weather};
use super::process::Busy;
use super::world::{Happening, Sent, World};

impl World {
    pub fn produce(&mut self) {
        while let Some(message) = self.plan.messages.get(self.produced)
            && message.at <= self.now
        {
            self.visible[message.partition] += 1;
            self.produced += 1;
        }
        if let Some(message) = self.plan.messages.get(self.produced) {
            self.at(message.at, Sent::World(0), Happening::Produce);
        }
        self.arm_polls();
    }

    fn arm_polls(&mut self) {
        for place in 0..self.places.len() {
            if let Some(process) = self.places[place].process {
                self.arm_poll(process);
            }
        }
    }

    pub fn strike(&mut self, fault: Fault) {
        let now = self.now;
        let process = match fault {
            Fault::Crash(place)
            | Fault::Pause(place, _)
            | Fault::Stall(place, _)
            | Fault::Jump(place, _)
            | Fault::Again(place) => match self.places[place].process {
                Some(process) => process,
                None => return,
            },
            _ => 0,
        };
        self.log(process, What::Fault(fault));
        match fault {
            Fault::Crash(_) => self.crash(process),
            Fault::Pause(_, long) => {
                let one = &mut self.processes[process];
                one.paused_until = one.paused_until.max(now + long);
            }
            Fault::Stall(_, long) => {
                let one = &mut self.processes[process];
                if !one.is_stalled(now) {
                    one.stalled_since = now;
                }
                one.stalled_until = one.stalled_until.max(now + long);
                let until = one.stalled_until;
                self.at(until, Sent::To(process as u32), Happening::Poll);
                self.at(until, Sent::To(process as u32), Happening::Requests);
            }
            Fault::Jump(_, far) => self.processes[process].ahead += far,
            Fault::StoreJump(far) => {
                self.store.ahead += far;
                self.excuse = self.excuse.max(now);
            }
            Fault::StoreDown(long) => {
                self.store.down_until = self.store.down_until.max(now + long);
                self.excuse = self.excuse.max(self.store.down_until);
                self.kill_database();
            }
            Fault::Forget => self.store.records.fill(None),
            Fault::Retain(partition) => self.retain(partition, self.committed[partition]),
            Fault::Expire(partition) => {
                let log = &self.plan.logs[partition].messages[..self.visible[partition]];
                let end = log.last().map_or(0, |last| self.plan.messages[*last as usize].offset + 1);
                let committed = self.committed[partition];
                let far = self.random.below((end - committed).max(0) as u64 + 1) as i64;
                self.retain(partition, committed + far / 2);
            }
            Fault::WorkerCrash(worker) => self.worker_crashes(worker),
            Fault::WorkerPause(worker, long) => {
                if let Some(one) = self.inbox.as_mut().and_then(|inbox| inbox.workers.get_mut(worker)) {
                    one.paused_until = one.paused_until.max(now + long);
                }
            }
            Fault::DownstreamDown(long) => self.downstream_down_until = self.downstream_down_until.max(now + long),
            Fault::BrokerDown(long) => self.broker_down_until = self.broker_down_until.max(now + long),
            Fault::Join(place) => {
                self.places[place].wanted = true;
                self.at(now, Sent::World(0), Happening::Start(place as u32));
            }
            Fault::Leave(place) => {
                self.places[place].wanted = false;
                if let Some(process) = self.places[place].process {
                    self.at(now, Sent::To(process as u32), Happening::Close);
                }
            }
            Fault::Again(_) => {
                let kafka = &self.processes[process].kafka;
                let is_free = kafka.busy == Busy::Free && kafka.commits_out == 0 && kafka.member && !kafka.waiting;
                let paused = now < self.processes[process].paused_until;
                if is_free && !paused && self.group.accepts(process, kafka.generation) {
                    let partitions: Vec<u32> = kafka.owned.iter().map(|owned| owned.partition as u32).collect();
                    if !partitions.is_empty() {
                        self.assign(process, &partitions);
                    }
                }
            }
        }
    }

    /// What lies before an offset is gone.
    fn retain(&mut self, partition: usize, offset: i64) {
        if offset > self.begins[partition] {
            self.begins[partition] = offset;
            self.log(0, What::Begins { partition: partition as u32, offset });
        }
    }

    /// No fault strikes any more.
    pub fn heal(&mut self) {
        self.is_healed = true;
        self.log(0, What::Healed);
        self.weather = Weather::default();
        self.crashes_left = 0;
        if self.places.iter().all(|place| !place.wanted) {
            self.places[0].wanted = true;
            self.at(self.now, Sent::World(0), Happening::Start(0));
        }
        self.look_for_end();
    }
}
