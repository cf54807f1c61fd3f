//! The Kafka thread of a process, as `src/consumer` has it: polls, heartbeats, rebalance callbacks, commits, close.

use std::time::Duration;

use hapax::engine::{Arrival, Assigned, Command, Event, Position, Subject};
use hapax::frontier::Epoch;

use super::flaws::DriverFlaw;
use super::history::What;
use super::plan::{MS, Mode, Plan, Protocol, SECOND};
use super::process::{Busy, Owned, Request};
use super::random::mix;
use super::world::{Happening, Sent, World};

/// A commit on its way.
#[derive(Clone, Debug)]
pub struct Commit {
    pub asked: Vec<Position>,
    pub sent: Vec<(usize, i64)>,
    pub generation: u32,
    pub then: Then,
}

/// Who waits for a commit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Then {
    Engine,
    /// The Kafka thread, in its callback or at its end.
    Thread,
    Nobody,
}

impl World {
    pub fn arm_poll(&mut self, process: usize) {
        let kafka = &mut self.processes[process].kafka;
        if !kafka.poll_armed {
            kafka.poll_armed = true;
            let delay = self.random.between(50, 2 * MS);
            self.at(self.now + delay, Sent::To(process as u32), Happening::Poll);
        }
    }

    pub fn poll(&mut self, process: usize) {
        let (now, most) = (self.now, self.plan.poll);
        let one = &mut self.processes[process];
        one.kafka.poll_armed = false;
        if one.kafka.busy != Busy::Free || one.is_stalled(now) || one.kafka.owned.is_empty() {
            return;
        }
        let mut arrivals = Vec::new();
        let partitions = one.kafka.owned.len();
        one.kafka.next_partition += 1;
        let first = one.kafka.next_partition;
        let mut more = false;
        for at in 0..partitions {
            let at = (first + at) % partitions;
            loop {
                let owned = &mut one.kafka.owned[at];
                let begins = self.begins[owned.partition];
                let log = &self.plan.logs[owned.partition].messages;
                let gone = |message: &u32| self.plan.messages[*message as usize].offset < begins;
                if log.get(owned.place).is_some_and(gone) {
                    // Out of range: reset to where the log begins.
                    let latest = self.flaws.driver == Some(DriverFlaw::ResetToLatest);
                    owned.place = if latest { self.visible[owned.partition] } else { log.partition_point(gone) };
                }
                if owned.paused || !owned.ready || owned.place >= self.visible[owned.partition] {
                    break;
                }
                if arrivals.len() >= most {
                    more = true;
                    break;
                }
                let number = self.plan.logs[owned.partition].messages[owned.place];
                owned.place += 1;
                let reached = self.delivered[owned.partition].1.max(owned.place);
                self.delivered[owned.partition] = (one.place, reached);
                let epoch = owned.epoch;
                let message = &self.plan.messages[number as usize];
                let partition = owned.partition;
                let ticket = one.take(number, epoch);
                let window = one.windows[partition].as_mut();
                if let Some(window) = window.filter(|window| window.epoch == epoch && window.ready) {
                    window.window.deliver(message.offset);
                }
                let subject = match (self.plan.mode, message.identity) {
                    (Mode::Dedup, Some(identity)) => Subject::Known {
                        key: Plan::key(self.flaws.key(&self.plan, identity)),
                        fingerprint: Plan::fingerprint(message.body),
                    },
                    (Mode::Dedup, None) if self.plan.refuse => Subject::Refused,
                    (Mode::Transaction, _) => Subject::Own,
                    _ => Subject::Bare,
                };
                arrivals.push(Arrival {
                    ticket,
                    epoch: Epoch::new(u64::from(epoch)),
                    offset: message.offset,
                    lane: message.lane.map(|lane| mix(u64::from(lane) + 77)),
                    subject,
                });
                self.logging.push((process as u32, What::Delivered { message: number, epoch }));
            }
        }
        self.log_all();
        if arrivals.is_empty() {
            return;
        }
        if self.flaws.driver == Some(DriverFlaw::CommitDelivered) {
            self.commit_delivered(process);
        }
        self.feed(process, Event::Delivered(arrivals));
        if more {
            self.arm_poll(process);
        } else if self.processes[process].alive {
            // Something may have been left by a pause that ended meanwhile.
            let kafka = &self.processes[process].kafka;
            let left = kafka
                .owned
                .iter()
                .any(|owned| !owned.paused && owned.ready && owned.place < self.visible[owned.partition]);
            if left {
                self.arm_poll(process);
            }
        }
    }

    /// What a client does whose automatic commit was left on.
    fn commit_delivered(&mut self, process: usize) {
        let kafka = &self.processes[process].kafka;
        let place = |owned: &Owned| {
            let last = owned.place.checked_sub(1)?;
            let message = self.plan.logs[owned.partition].messages[last];
            Some(Position {
                topic: self.plan.logs[owned.partition].topic.clone(),
                partition: self.plan.logs[owned.partition].number,
                epoch: Epoch::new(u64::from(owned.epoch)),
                offset: self.plan.messages[message as usize].offset + 1,
            })
        };
        let positions = kafka.owned.iter().filter_map(place).collect();
        self.send_commit(process, positions, Then::Nobody);
    }

    pub fn heartbeat(&mut self, process: usize) {
        let now = self.now;
        let jitter = self.random.below(20 * MS);
        self.at(now + self.plan.heartbeat + jitter, Sent::To(process as u32), Happening::Heartbeat);
        let one = &self.processes[process];
        let busy_since = if one.is_stalled(now) { Some(one.stalled_since) } else { None };
        let busy_since = match one.kafka.busy {
            Busy::Free => busy_since,
            Busy::Revoking { .. } | Busy::Ending => Some(one.kafka.busy_since),
        };
        if let Some(since) = busy_since {
            if now > since + self.plan.max_poll {
                // The client itself gives its membership up; the thread hears of it when it polls again.
                self.log(process, What::Note("poll interval exceeded"));
                // One with a name does not leave: it is not heard of any more.
                if !self.plan.named {
                    self.remove_member(process);
                }
            } else {
                self.group.heard(process, now);
            }
            return;
        }
        if self.group.find(process).is_none() {
            if self.processes[process].kafka.member {
                self.log(process, What::Fenced);
                self.lose_all(process);
            }
            if self.processes[process].alive && !self.processes[process].kafka.close_wanted {
                self.join_group(process);
            }
            return;
        }
        self.group.heard(process, now);
        if self.processes[process].kafka.waiting {
            return;
        }
        match self.plan.protocol {
            Protocol::Next => self.reconcile(process),
            Protocol::Eager | Protocol::Cooperative if !self.group.is_preparing() || self.group.has_joined(process) => {
            }
            Protocol::Eager if !self.processes[process].kafka.owned.is_empty() => {
                let epochs = self.processes[process].kafka.owned.iter().map(|owned| owned.epoch).collect();
                self.begin_revoke(process, epochs, true);
            }
            Protocol::Eager | Protocol::Cooperative => self.join_group(process),
        }
    }

    /// Its partitions may be somebody else's already.
    fn lose_all(&mut self, process: usize) {
        let kafka = &mut self.processes[process].kafka;
        (kafka.member, kafka.waiting) = (false, false);
        kafka.join += 1;
        let epochs: Vec<u32> = std::mem::take(&mut kafka.owned).into_iter().map(|owned| owned.epoch).collect();
        if epochs.is_empty() {
            return;
        }
        epochs.iter().for_each(|epoch| self.log(process, What::Over { epoch: *epoch, lost: true }));
        let by = self.local(process, self.plan.drain);
        let epochs = epochs.into_iter().map(|epoch| Epoch::new(u64::from(epoch))).collect();
        self.feed(process, Event::Revoke { epochs, lost: true, by });
    }

    /// A time so far from now on the process's clock.
    fn local(&self, process: usize, ahead: u64) -> Duration {
        Duration::from_micros(self.now + self.processes[process].ahead + ahead)
    }

    fn begin_revoke(&mut self, process: usize, epochs: Vec<u32>, rejoin: bool) {
        let given: Vec<Epoch> = epochs.iter().map(|epoch| Epoch::new(u64::from(*epoch))).collect();
        self.occupy(process, Busy::Revoking { epochs, rejoin });
        let by = self.local(process, self.plan.drain);
        self.feed(process, Event::Revoke { epochs: given, lost: false, by });
    }

    fn occupy(&mut self, process: usize, busy: Busy) {
        let now = self.now;
        let kafka = &mut self.processes[process].kafka;
        kafka.busy = busy;
        kafka.busy_since = now;
        kafka.busy_serial += 1;
        kafka.answered = false;
        let serial = kafka.busy_serial;
        self.at(now + self.plan.drain + 2 * SECOND, Sent::To(process as u32), Happening::Overdue(serial));
    }

    pub fn overdue(&mut self, process: usize, serial: u32) {
        let kafka = &self.processes[process].kafka;
        if kafka.busy != Busy::Free && kafka.busy_serial == serial && !kafka.answered {
            let text = format!("process {process} has not answered {:?} by its deadline", kafka.busy);
            self.violate("liveness", text);
        }
    }

    /// The engine lets partitions go.
    pub fn revoked(&mut self, process: usize, epochs: &[Epoch], commit: Vec<Position>) {
        self.ask_commit(process, &commit);
        let kafka = &mut self.processes[process].kafka;
        let is_it = match &kafka.busy {
            Busy::Revoking { epochs: own, .. } => {
                own.len() == epochs.len()
                    && epochs.iter().all(|epoch| own.iter().any(|own| u64::from(*own) == epoch.get()))
            }
            Busy::Free | Busy::Ending => false,
        };
        if !is_it || kafka.answered {
            // Of lost partitions: nobody waits. What it wants committed is sent all the same.
            if !commit.is_empty() {
                self.send_commit(process, commit, Then::Nobody);
            }
            return;
        }
        kafka.answered = true;
        self.finally(process, commit);
    }

    pub fn closed(&mut self, process: usize, commit: Vec<Position>) {
        self.ask_commit(process, &commit);
        let kafka = &mut self.processes[process].kafka;
        if kafka.busy == Busy::Ending && !kafka.answered {
            kafka.answered = true;
            self.finally(process, commit);
        }
    }

    /// The last commit, waited for.
    fn finally(&mut self, process: usize, commit: Vec<Position>) {
        if commit.is_empty() {
            self.at(self.now, Sent::To(process as u32), Happening::Drained);
        } else {
            self.send_commit(process, commit, Then::Thread);
        }
    }

    /// The rebalance callback returns, or the consumer is closed.
    pub fn drained(&mut self, process: usize) {
        let kafka = &mut self.processes[process].kafka;
        match std::mem::replace(&mut kafka.busy, Busy::Free) {
            Busy::Free => {}
            Busy::Revoking { epochs, rejoin } => {
                kafka.owned.retain(|owned| !epochs.contains(&owned.epoch));
                epochs.iter().for_each(|epoch| self.log(process, What::Over { epoch: *epoch, lost: false }));
                if self.processes[process].kafka.close_wanted {
                    self.close(process);
                } else {
                    if rejoin && self.group.find(process).is_some() {
                        self.join_group(process);
                    }
                    self.arm_poll(process);
                    self.arm_requests(process);
                }
            }
            Busy::Ending => {
                let owned = std::mem::take(&mut kafka.owned);
                owned.iter().for_each(|owned| self.log(process, What::Over { epoch: owned.epoch, lost: false }));
                if !self.plan.named {
                    self.remove_member(process);
                }
                self.log(process, What::Left);
                self.vacate(process);
            }
        }
    }

    /// The consumer is to end.
    pub fn close(&mut self, process: usize) {
        self.processes[process].kafka.close_wanted = true;
        if self.processes[process].kafka.busy == Busy::Free {
            self.occupy(process, Busy::Ending);
            let by = self.local(process, self.plan.drain);
            self.feed(process, Event::Close { by });
        }
    }

    pub fn response(&mut self, process: usize, index: u32) {
        let response = self.responses[index as usize].clone();
        let kafka = &mut self.processes[process].kafka;
        if response.join != kafka.join || kafka.busy != Busy::Free {
            return;
        }
        kafka.waiting = false;
        kafka.generation = response.generation;
        let has = |partition: &u32| kafka.owned.iter().any(|owned| owned.partition == *partition as usize);
        let add: Vec<u32> = response.add.iter().copied().filter(|partition| !has(partition)).collect();
        let goes = |partition: u32| {
            if response.whole { !response.add.contains(&partition) } else { response.revoke.contains(&partition) }
        };
        let revoke: Vec<u32> =
            kafka.owned.iter().filter(|owned| goes(owned.partition as u32)).map(|owned| owned.epoch).collect();
        if !add.is_empty() {
            self.assign(process, &add);
        }
        if !revoke.is_empty() && self.processes[process].alive {
            self.begin_revoke(process, revoke, response.whole);
        }
    }

    /// Partitions are this process's from now on; one that was so already begins anew.
    pub fn assign(&mut self, process: usize, partitions: &[u32]) {
        let mut assigned = Vec::new();
        let windowed = self.plan.is_transactional() && self.plan.memory.window();
        let first = self.next_epoch;
        for partition in partitions {
            let at = *partition as usize;
            let epoch = self.next_epoch;
            self.next_epoch += 1;
            self.set_back(process, at);
            let committed = self.committed[at];
            let log = &self.plan.logs[at];
            let place =
                log.messages.partition_point(|message| self.plan.messages[*message as usize].offset < committed);
            // Whoever is known by name begins where he left off, as the broker knows it: not where he had got to.
            let (by, reached) = self.delivered[at];
            let goes_on = self.flaws.driver == Some(DriverFlaw::NamedGoesOn) && self.plan.named;
            let goes_on = goes_on && by == self.processes[process].place;
            let place = if goes_on { place.max(reached) } else { place };
            let known = committed > 0 && !self.random.chance(self.weather.committed_unknown);
            assigned.push(Assigned {
                topic: log.topic.clone(),
                partition: log.number,
                epoch: Epoch::new(u64::from(epoch)),
                committed: known.then_some(committed),
            });
            let owned = &mut self.processes[process].kafka.owned;
            let old = owned.iter().position(|owned| owned.partition == at).map(|at| owned.remove(at).epoch);
            owned.push(Owned { partition: at, epoch, place, paused: false, begin: committed, ready: !windowed });
            if let Some(epoch) = old {
                self.log(process, What::Over { epoch, lost: true });
            }
            self.log(process, What::Assigned { partition: *partition, epoch });
        }
        self.feed(process, Event::Assigned(assigned));
        if self.flaws.driver == Some(DriverFlaw::IdsBeforeFence) {
            self.processes[process].ids = self.inbox.as_mut().map(super::inbox::Inbox::draw);
        }
        if windowed {
            (first..).zip(partitions).for_each(|(epoch, partition)| self.raise(process, *partition as usize, epoch));
        }
        self.arm_poll(process);
    }

    /// Before a partition is assigned its committed offset may have been reset, or set back by hand.
    fn set_back(&mut self, process: usize, partition: usize) {
        if self.committed[partition] > 0 && self.random.chance(self.weather.committed_lost) {
            let committed = self.committed[partition] as u64;
            let offset = if self.random.chance(5_000) { 0 } else { self.random.below(committed) as i64 };
            let offset = offset.max(self.begins[partition].min(self.committed[partition]));
            self.committed[partition] = offset;
            self.log(process, What::SetBack { partition: partition as u32, offset });
        }
    }

    pub fn request(&mut self, process: usize, request: Request) {
        let kafka = &mut self.processes[process].kafka;
        kafka.requests.push_back(request);
        self.arm_requests(process);
    }

    pub fn arm_requests(&mut self, process: usize) {
        let kafka = &mut self.processes[process].kafka;
        if !kafka.requests_armed && !kafka.requests.is_empty() {
            kafka.requests_armed = true;
            let delay = if kafka.busy == Busy::Free { self.random.below(2 * MS) } else { self.random.below(20 * MS) };
            self.at(self.now + delay, Sent::To(process as u32), Happening::Requests);
        }
    }

    pub fn serve(&mut self, process: usize) {
        let now = self.now;
        let one = &mut self.processes[process];
        one.kafka.requests_armed = false;
        // While it waits for its last commit the thread hears nothing.
        if one.is_stalled(now) || (one.kafka.busy != Busy::Free && one.kafka.answered) {
            return;
        }
        while let Some(request) = self.processes[process].kafka.requests.pop_front() {
            let owned = &mut self.processes[process].kafka.owned;
            let mut set = |epochs: &[Epoch], paused: bool| {
                owned
                    .iter_mut()
                    .filter(|owned| epochs.iter().any(|epoch| epoch.get() == u64::from(owned.epoch)))
                    .for_each(|owned| owned.paused = paused);
            };
            match request {
                Request::Pause(epochs) => set(&epochs, true),
                Request::Resume(epochs) => {
                    set(&epochs, false);
                    self.arm_poll(process);
                }
                Request::Commit(positions) => {
                    if self.crash_at_step(process) {
                        return;
                    }
                    self.send_commit(process, positions, Then::Engine);
                }
            }
        }
    }

    fn ask_commit(&mut self, process: usize, positions: &[Position]) {
        for position in positions {
            self.log(process, What::Asked { epoch: position.epoch.get() as u32, offset: position.offset });
        }
    }

    /// Takes a commit from the engine to the thread.
    pub fn commit(&mut self, process: usize, positions: Vec<Position>) {
        self.ask_commit(process, &positions);
        if std::mem::replace(&mut self.processes[process].committing, true) {
            self.violate("contract", format!("process {process} asks for a commit while one is on its way"));
        }
        self.request(process, Request::Commit(positions));
    }

    /// Positions of an assignment that is over are not sent.
    fn send_commit(&mut self, process: usize, asked: Vec<Position>, then: Then) {
        let now = self.now;
        let one = &mut self.processes[process];
        let place = |position: &Position| {
            let owned = one.kafka.owned.iter().find(|owned| u64::from(owned.epoch) == position.epoch.get())?;
            Some((owned.partition, position.offset))
        };
        let sent: Vec<(usize, i64)> = asked.iter().filter_map(place).collect();
        let nothing = sent.is_empty();
        let arrives = (now + self.random.between(100, 4 * MS)).max(one.kafka.commit_arrives);
        one.kafka.commit_arrives = arrives;
        one.kafka.commits_out += 1;
        let generation = one.kafka.generation;
        self.commits.push(Commit { asked, sent, generation, then });
        let index = self.commits.len() as u32 - 1;
        if nothing {
            self.at(arrives, Sent::To(process as u32), Happening::Committed { index, accepted: false });
        } else {
            self.at(arrives, Sent::World(process as u32), Happening::CommitArrives(index));
        }
    }

    /// The broker takes a commit, or not.
    pub fn commit_arrives(&mut self, process: usize, index: u32) {
        let commit = &self.commits[index as usize];
        let fails = self.now < self.broker_down_until || self.random.chance(self.weather.commit_fails);
        let accepted = !fails && self.group.accepts(process, commit.generation);
        let all = commit.sent.len() == commit.asked.len();
        for (partition, offset) in commit.sent.clone() {
            let partition_number = partition as u32;
            if accepted {
                self.committed[partition] = offset;
                self.log(process, What::Committed { partition: partition_number, offset });
            } else {
                self.log(process, What::Refused { partition: partition_number, offset });
            }
        }
        if accepted && self.is_healed {
            self.look_for_end();
        }
        let lost = self.random.chance(self.weather.commit_reply_lost);
        let delay = if lost { self.random.between(100 * MS, SECOND) } else { self.random.between(100, 5 * MS) };
        let accepted = accepted && all && !lost;
        self.at(self.now + delay, Sent::To(process as u32), Happening::Committed { index, accepted });
    }

    pub fn commit_answered(&mut self, process: usize, index: u32, accepted: bool) {
        self.processes[process].kafka.commits_out -= 1;
        let positions = std::mem::take(&mut self.commits[index as usize].asked);
        match self.commits[index as usize].then {
            Then::Nobody => {}
            Then::Thread => self.drained(process),
            Then::Engine => {
                self.processes[process].committing = false;
                self.feed(process, Event::Committed { positions, accepted });
            }
        }
    }

    /// What of the engine's commands is for the Kafka thread.
    pub fn carry_out_kafka(&mut self, process: usize, command: Command) {
        match command {
            Command::Pause(epochs) => self.request(process, Request::Pause(epochs)),
            Command::Resume(epochs) => self.request(process, Request::Resume(epochs)),
            Command::Commit(positions) => self.commit(process, positions),
            Command::Revoked { epochs, commit, .. } => self.revoked(process, &epochs, commit),
            Command::Closed { commit, .. } => self.closed(process, commit),
            _ => {}
        }
    }
}
