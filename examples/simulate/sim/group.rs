//! The broker's group coordinator: who is a member, who owns which partition, in which generation.

use super::history::What;
use super::plan::{MS, Micros, Protocol};
use super::world::{Happening, Sent, World};

#[derive(Clone, Debug)]
pub struct Member {
    pub process: u32,
    pub generation: u32,
    /// What it was given and has not given back.
    pub owned: Vec<u32>,
    /// What it is to have (KIP-848).
    target: Vec<u32>,
    joined: bool,
    last_heard: Micros,
}

#[derive(Clone, Debug, Default)]
pub struct Group {
    pub members: Vec<Member>,
    generation: u32,
    /// A rebalance is on; members that have not joined by then are removed.
    preparing: Option<Micros>,
}

/// What a member hears.
#[derive(Clone, Debug)]
pub struct Response {
    pub join: u32,
    pub generation: u32,
    pub add: Vec<u32>,
    pub revoke: Vec<u32>,
    /// All it has (rounds), rather than what changes.
    pub whole: bool,
}

impl Group {
    pub fn find(&self, process: usize) -> Option<usize> {
        self.members.iter().position(|member| member.process == process as u32)
    }

    pub fn heard(&mut self, process: usize, now: Micros) {
        if let Some(at) = self.find(process) {
            self.members[at].last_heard = now;
        }
    }

    pub fn is_preparing(&self) -> bool {
        self.preparing.is_some()
    }

    pub fn has_joined(&self, process: usize) -> bool {
        self.find(process).is_some_and(|at| self.members[at].joined)
    }

    /// Whether a commit of this member is taken.
    pub fn accepts(&self, process: usize, generation: u32) -> bool {
        self.find(process).is_some_and(|at| self.members[at].generation == generation)
    }
}

impl World {
    /// A member asks to be in, or to be told its partitions anew.
    pub fn join_group(&mut self, process: usize) {
        let now = self.now;
        let kafka = &mut self.processes[process].kafka;
        kafka.join += 1;
        kafka.member = true;
        kafka.waiting = self.plan.protocol != Protocol::Next;
        let owned: Vec<u32> = kafka.owned.iter().map(|owned| owned.partition as u32).collect();
        let at = self.group.find(process);
        if at.is_none() && self.take_over(process) {
            return;
        }
        let at = self.group.find(process);
        let at = at.unwrap_or_else(|| {
            self.group.members.push(Member {
                process: process as u32,
                generation: 0,
                owned: Vec::new(),
                target: Vec::new(),
                joined: false,
                last_heard: now,
            });
            self.group.members.len() - 1
        });
        self.group.members[at].last_heard = now;
        match self.plan.protocol {
            Protocol::Next => self.aim(),
            Protocol::Eager | Protocol::Cooperative => {
                self.prepare();
                let member = &mut self.group.members[at];
                member.joined = true;
                let before = std::mem::replace(&mut member.owned, owned);
                let gone: Vec<u32> = before.into_iter().filter(|one| !member.owned.contains(one)).collect();
                gone.into_iter().for_each(|partition| self.ungrant(process, partition));
                self.try_complete();
            }
        }
    }

    /// Somebody with this process's name is a member: the process takes its place, and nobody else hears of it.
    fn take_over(&mut self, process: usize) -> bool {
        let (now, place) = (self.now, self.processes[process].place);
        let same = |member: &Member| self.processes[member.process as usize].place == place;
        let Some(at) = self.group.members.iter().position(same).filter(|_| self.plan.named) else { return false };
        let rounds = self.plan.protocol != Protocol::Next;
        let preparing = self.group.is_preparing();
        let member = &mut self.group.members[at];
        let before = std::mem::replace(&mut member.process, process as u32) as usize;
        member.last_heard = now;
        let owned = member.owned.clone();
        owned.iter().for_each(|partition| self.ungrant(before, *partition));
        let member = &mut self.group.members[at];
        if !rounds {
            // What it is to have is told anew.
            (member.owned, member.generation) = (Vec::new(), 0);
            return true;
        }
        if preparing {
            (member.owned, member.joined) = (Vec::new(), true);
            self.try_complete();
            return true;
        }
        let generation = member.generation;
        owned.iter().for_each(|partition| self.log(process, What::Granted { partition: *partition }));
        self.respond(process, Response { join: 0, generation, add: owned, revoke: Vec::new(), whole: true });
        true
    }

    fn ungrant(&mut self, process: usize, partition: u32) {
        self.log(process, What::Ungranted { partition });
    }

    /// Begins a round, unless one is on.
    fn prepare(&mut self) {
        if self.group.preparing.is_none() {
            self.group.preparing = Some(self.now + self.plan.max_poll);
            self.group.members.iter_mut().for_each(|member| member.joined = false);
        }
    }

    /// A member is removed: it left, or was not heard of.
    pub fn remove_member(&mut self, process: usize) {
        let Some(at) = self.group.find(process) else { return };
        let member = self.group.members.remove(at);
        for partition in member.owned {
            self.ungrant(process, partition);
        }
        match self.plan.protocol {
            Protocol::Next => self.aim(),
            Protocol::Eager | Protocol::Cooperative if self.group.members.is_empty() => self.group.preparing = None,
            Protocol::Eager | Protocol::Cooperative => {
                self.prepare();
                self.try_complete();
            }
        }
    }

    /// Looks who has not been heard of for too long.
    pub fn look_at_group(&mut self) {
        let now = self.now;
        let session = self.plan.session;
        let late = |member: &Member| now > member.last_heard + session;
        while let Some(at) = self.group.members.iter().position(late) {
            let process = self.group.members[at].process as usize;
            self.log(process, What::Note("session time-out"));
            self.remove_member(process);
        }
        if self.group.preparing.is_some_and(|until| now >= until) {
            while let Some(at) = self.group.members.iter().position(|member| !member.joined) {
                let process = self.group.members[at].process as usize;
                self.log(process, What::Note("did not join in time"));
                let member = self.group.members.remove(at);
                member.owned.into_iter().for_each(|partition| self.ungrant(process, partition));
            }
            self.try_complete();
        }
    }

    /// Who is to have what: the old owner keeps it where that is fair, mostly.
    fn targets(&mut self) -> Vec<Vec<u32>> {
        let members = self.group.members.len();
        let partitions = self.plan.logs.len();
        let mut targets: Vec<Vec<u32>> = vec![Vec::new(); members];
        if members == 0 {
            return targets;
        }
        let most = partitions.div_ceil(members);
        let sticky = self.plan.protocol != Protocol::Eager || self.random.chance(5_000);
        let stir = self.random.chance(2_000);
        let mut left: Vec<u32> = Vec::new();
        for partition in 0..partitions as u32 {
            let keeper = self.group.members.iter().position(|member| member.owned.contains(&partition));
            match keeper.filter(|at| sticky && !stir && targets[*at].len() < most) {
                Some(at) => targets[at].push(partition),
                None => left.push(partition),
            }
        }
        let first = self.random.index(members);
        for partition in left {
            let fewest = (0..members).map(|at| (first + at) % members).min_by_key(|at| targets[*at].len());
            targets[fewest.unwrap_or(0)].push(partition);
        }
        targets
    }

    /// Ends a round when everybody has joined.
    fn try_complete(&mut self) {
        if self.group.preparing.is_none() || self.group.members.iter().any(|member| !member.joined) {
            return;
        }
        self.group.preparing = None;
        self.group.generation += 1;
        let generation = self.group.generation;
        let targets = self.targets();
        let eager = self.plan.protocol == Protocol::Eager;
        for (at, target) in targets.into_iter().enumerate() {
            let taken = |partition: &u32| {
                self.group
                    .members
                    .iter()
                    .enumerate()
                    .any(|(other, member)| other != at && member.owned.contains(partition))
            };
            let given: Vec<u32> =
                if eager { target } else { target.into_iter().filter(|partition| !taken(partition)).collect() };
            let member = &mut self.group.members[at];
            let process = member.process as usize;
            member.generation = generation;
            let fresh: Vec<u32> = given.iter().copied().filter(|partition| !member.owned.contains(partition)).collect();
            // What it is to give up stays its own until it joins again.
            let revoke: Vec<u32> =
                member.owned.iter().copied().filter(|partition| !given.contains(partition)).collect();
            member.owned.extend(&fresh);
            fresh.iter().for_each(|partition| self.log(process, What::Granted { partition: *partition }));
            self.respond(process, Response { join: 0, generation, add: given, revoke, whole: true });
        }
    }

    fn respond(&mut self, process: usize, mut response: Response) {
        response.join = self.processes[process].kafka.join;
        self.responses.push(response);
        let index = self.responses.len() as u32 - 1;
        let delay = self.random.between(MS, 60 * MS);
        self.at(self.now + delay, Sent::To(process as u32), Happening::Response(index));
    }

    /// KIP-848: membership changed, so that partitions are to move.
    fn aim(&mut self) {
        self.group.generation += 1;
        let targets = self.targets();
        for (member, target) in self.group.members.iter_mut().zip(targets) {
            member.target = target;
        }
    }

    /// KIP-848: a heartbeat that says what the member has; what it hears.
    pub fn reconcile(&mut self, process: usize) {
        let Some(at) = self.group.find(process) else { return };
        let has: Vec<u32> = self.processes[process].kafka.owned.iter().map(|owned| owned.partition as u32).collect();
        let member = &mut self.group.members[at];
        let released: Vec<u32> = member.owned.iter().copied().filter(|partition| !has.contains(partition)).collect();
        member.owned.retain(|partition| has.contains(partition));
        released.into_iter().for_each(|partition| self.ungrant(process, partition));
        let taken = |partition: &u32| {
            self.group.members.iter().enumerate().any(|(other, member)| other != at && member.owned.contains(partition))
        };
        let member = &self.group.members[at];
        let add: Vec<u32> =
            member.target.iter().copied().filter(|one| !member.owned.contains(one) && !taken(one)).collect();
        let revoke: Vec<u32> = member.owned.iter().copied().filter(|one| !member.target.contains(one)).collect();
        let generation = self.group.generation;
        if add.is_empty() && revoke.is_empty() && member.generation == generation {
            return;
        }
        let member = &mut self.group.members[at];
        member.generation = generation;
        member.owned.extend(&add);
        add.iter().for_each(|partition| self.log(process, What::Granted { partition: *partition }));
        self.processes[process].kafka.waiting = true;
        self.respond(process, Response { join: 0, generation, add, revoke, whole: false });
    }
}
