//! What the rules say of an inbox. No I/O.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;

use hapax::Retry;
use hapax::inbox::bare::{Ends, Wrote};
use hapax::inbox::rules::{self, BUSY, Candidate, Class, Lot, Moved, NOBODY, Open, Standing, State, choose};
use hapax::inbox::{Requeued, Skipped};

use super::How;

pub const HOUR: Duration = Duration::from_secs(3_600);
/// What is lost waits for an hour, and is dead after three attempts.
pub const RETRY: Retry = Retry::fixed(HOUR).attempts(3);
/// What is due is due at 1.
pub const DUE: i64 = 1;
const NOW: i64 = 2;

/// A message that was taken: id, generation, attempt.
pub type Taken = (i64, u32, u32);

/// A message as the rules see it.
#[derive(Clone, Debug)]
pub struct One {
    pub lane: u8,
    pub offset: i64,
    pub priority: i16,
    pub payload: String,
    pub edited: Option<String>,
    pub erased: bool,
    pub standing: Standing,
}

impl One {
    pub fn accepted(lane: u8, offset: i64, payload: String) -> Self {
        let (priority, due) = (priority(offset), not_before(offset));
        let standing = Standing::accepted(priority, due, NOW);
        Self { lane, offset, priority, payload, edited: None, erased: false, standing }
    }

    fn holder(&self) -> Option<i64> {
        self.standing.open.map(|open| open.run).filter(|run| *run != NOBODY)
    }
}

/// Which messages are urgent.
pub fn priority(offset: i64) -> i16 {
    i16::try_from(offset % 3).unwrap()
}

/// Which messages wait for a time that is far away.
pub fn not_before(offset: i64) -> Option<i64> {
    (offset % 11 == 10).then_some(4_000_000_000_000)
}

/// A run, as its row tells it.
#[derive(Clone, Debug)]
pub struct Run {
    pub number: i64,
    pub inside: bool,
    pub taken: Vec<Taken>,
    lanes: Vec<u8>,
    pub ended: bool,
    /// Its row is gone.
    pub forgotten: bool,
    /// How messages ended: by id, their generation, and whether they succeeded in time, late, or not.
    done: BTreeMap<i64, (u32, Done)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Done {
    Succeeded,
    Late,
    Otherwise,
}

/// What one call to many came to: done, left alone since it is in a run's hands, left alone otherwise.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Many {
    pub done: u64,
    pub held: u64,
    pub open: u64,
    pub erased: u64,
    pub buried: u64,
}

#[derive(Clone, Debug)]
pub struct Pure {
    pub by_key: bool,
    pub paused: bool,
    /// By id.
    pub messages: BTreeMap<i64, One>,
    pub runs: Vec<Run>,
    /// Attempts that did not succeed: id, generation, attempt.
    pub attempts: BTreeMap<Taken, Class>,
}

impl Pure {
    pub fn new(by_key: bool) -> Self {
        let (messages, runs, attempts) = (BTreeMap::new(), Vec::new(), BTreeMap::new());
        Self { by_key, paused: false, messages, runs, attempts }
    }

    fn step(&mut self, id: i64, moved: impl FnOnce(&Standing) -> Moved) -> bool {
        let Some(one) = self.messages.get_mut(&id) else { return false };
        let Ok(standing) = moved(&one.standing) else { return false };
        one.standing = standing;
        true
    }

    /// The time of what waits has come.
    pub fn due(&mut self) {
        for one in self.messages.values_mut() {
            if let Some(open) = one.standing.open.as_mut().filter(|open| open.lot == Lot::Waiting) {
                open.rank = DUE;
            }
        }
    }

    /// Which messages a run takes.
    pub fn choose(&mut self, most: usize) -> Vec<i64> {
        if self.paused {
            return Vec::new();
        }
        // What is due is ready before anything is chosen.
        for one in self.messages.values_mut() {
            one.standing = one.standing.due(NOW).unwrap_or(one.standing);
        }
        let mut rows: Vec<(i64, Candidate)> = Vec::new();
        let mut barriers: HashMap<i64, i64> = HashMap::new();
        for (id, one) in &self.messages {
            let Some(open) = one.standing.open.filter(|open| open.lot != Lot::Dead) else { continue };
            let lane = i64::from(one.lane);
            if open.lot == Lot::Ready && open.run == NOBODY {
                rows.push((open.rank, Candidate { id: *id, lane, alone: open.alone }));
            } else {
                let at = if open.run == NOBODY { *id } else { BUSY };
                barriers.entry(lane).and_modify(|barrier| *barrier = at.min(*barrier)).or_insert(at);
            }
        }
        rows.sort_by_key(|(rank, row)| (*rank, row.id));
        let mut rows: Vec<Candidate> = rows.into_iter().map(|(_, row)| row).collect();
        if !self.by_key {
            // So many rows are looked at, and of them those that want to be alone are left.
            rows.truncate(most);
        }
        let chosen = choose(self.by_key, most, &rows, |lane| barriers.get(&lane).copied());
        chosen.iter().map(|row| row.id).collect()
    }

    /// They were taken: the generation and attempt of each.
    pub fn took(&mut self, number: i64, inside: bool, ids: &[i64]) -> Vec<Taken> {
        let mut taken = Vec::new();
        for id in ids {
            assert!(self.step(*id, |standing| standing.take(number)), "{id} may not be taken");
            let standing = self.messages[id].standing;
            taken.push((*id, standing.generation, standing.open.unwrap().attempts));
        }
        let lanes = ids.iter().map(|id| self.messages[id].lane).collect();
        let done = BTreeMap::new();
        self.runs.push(Run { number, inside, taken: taken.clone(), lanes, ended: false, forgotten: false, done });
        taken
    }

    /// What of a run's messages is said to have ended how. What the rules would give up is given up. In the order of keys, a message begins when
    /// the one before it succeeded or died, and is given back when that comes again.
    pub fn ends(&self, at: usize, how: &[How], whole: bool) -> Vec<(usize, Ends)> {
        let run = &self.runs[at];
        let (mut again, mut unsaid) = (BTreeSet::new(), BTreeSet::new());
        let mut ends = Vec::new();
        for (place, (id, _, attempt)) in run.taken.iter().enumerate() {
            let lane = run.lanes[place];
            let in_order = self.by_key && !run.done.contains_key(id);
            let mut how = how[place % how.len()];
            if in_order && unsaid.contains(&lane) {
                how = How::Open;
            }
            if (whole && matches!(how, How::Open)) || (in_order && again.contains(&lane)) {
                how = How::Released;
            }
            let end = match how {
                How::Open => {
                    unsaid.insert(lane);
                    continue;
                }
                How::Succeeded => Ends::Succeeded,
                How::Released => Ends::Released,
                How::Failed(class) => match rules::ends(class, *attempt, &RETRY) {
                    rules::End::Dead => Ends::Dead(class),
                    rules::End::Again { .. } => Ends::Failed(class, HOUR),
                },
            };
            if in_order && matches!(end, Ends::Released | Ends::Failed(..)) {
                again.insert(lane);
            }
            ends.push((place, end));
        }
        ends
    }

    fn holds(&self, at: usize, place: usize) -> bool {
        let run = &self.runs[at];
        let (id, ..) = run.taken[place];
        !run.ended && self.messages.get(&id).is_some_and(|one| one.standing.is_held_by(run.number))
    }

    /// A message that its run holds ends like this.
    fn end(&mut self, at: usize, place: usize, end: Ends) {
        let (number, taken) = (self.runs[at].number, self.runs[at].taken[place]);
        let (id, generation, _) = taken;
        let moved = self.step(id, |standing| match end {
            Ends::Succeeded => standing.succeed(number),
            Ends::Failed(class, _) | Ends::Dead(class) => standing.fail(number, class, &RETRY, 0, NOW),
            Ends::Released => standing.release(number),
        });
        assert!(moved, "{id} is held");
        if let Ends::Failed(class, _) | Ends::Dead(class) = end {
            self.attempts.insert(taken, class);
        }
        let done = if end == Ends::Succeeded { Done::Succeeded } else { Done::Otherwise };
        self.runs[at].done.insert(id, (generation, done));
    }

    /// A transaction ends all of a run, or nothing: says which.
    pub fn finish(&mut self, at: usize, ends: &[(usize, Ends)]) -> bool {
        if self.runs[at].ended || !ends.iter().all(|(place, _)| self.holds(at, *place)) {
            return false;
        }
        ends.iter().for_each(|(place, end)| self.end(at, *place, *end));
        self.runs[at].ended = true;
        true
    }

    /// Each by itself: success is a fact.
    pub fn conclude(&mut self, at: usize, ends: &[(usize, Ends)], last: bool) -> Vec<Wrote> {
        let mut wrote = Vec::new();
        for (place, end) in ends {
            let (id, generation, _) = self.runs[at].taken[*place];
            wrote.push(match self.runs[at].done.get(&id).copied() {
                Some((_, Done::Late)) => Wrote::Late,
                Some(_) => Wrote::Written,
                None if self.holds(at, *place) => {
                    self.end(at, *place, *end);
                    Wrote::Written
                }
                None if *end == Ends::Succeeded && self.late(id, generation) => {
                    if !self.runs[at].forgotten {
                        self.runs[at].done.insert(id, (generation, Done::Late));
                    }
                    Wrote::Late
                }
                None => Wrote::Stale,
            });
        }
        self.runs[at].ended |= last;
        wrote
    }

    /// It succeeded, after its run was taken over: whether nothing is left to do of this generation.
    fn late(&mut self, id: i64, generation: u32) -> bool {
        let Some(one) = self.messages.get(&id) else { return true };
        let Some(holder) = one.standing.open.map(|open| open.run) else { return true };
        // Whoever has it in a transaction with its effects says for himself how it ended.
        let inside = self.runs.iter().any(|run| run.number == holder && run.inside && !run.ended);
        !inside && self.step(id, |standing| standing.succeed_late(generation))
    }

    /// The lease of a run is over: how many are lost, and how many of these dead.
    pub fn sweep(&mut self, at: usize) -> (u64, u64) {
        let (mut lost, mut dead) = (0, 0);
        for place in 0..self.runs[at].taken.len() {
            if !self.holds(at, place) {
                continue;
            }
            let (number, (id, generation, attempt)) = (self.runs[at].number, self.runs[at].taken[place]);
            assert!(self.step(id, |standing| standing.lose(number, &RETRY, 0, NOW)));
            self.attempts.insert((id, generation, attempt), Class::Lost);
            lost += 1;
            dead += u64::from(self.messages[&id].standing.state() == State::Dead);
        }
        self.runs[at].ended = true;
        (lost, dead)
    }

    fn skipped(&mut self, id: i64) -> bool {
        let skipped = self.step(id, |standing| standing.skip(NOW));
        if skipped {
            let generation = self.messages[&id].standing.generation;
            let last = self.attempts.range((id, generation, 0)..=(id, generation, u32::MAX)).next_back();
            let attempt = last.map_or(1, |((.., attempt), _)| attempt + 1);
            self.attempts.insert((id, generation, attempt), Class::Skipped);
        }
        skipped
    }

    pub fn skip(&mut self, id: i64) -> Skipped {
        let Some(one) = self.messages.get(&id) else { return Skipped::Unknown };
        match (one.standing.state(), one.holder()) {
            (State::Succeeded, _) => Skipped::Succeeded,
            (_, Some(_)) => Skipped::Processing { until: 0 },
            _ if self.skipped(id) => Skipped::Skipped,
            _ => Skipped::Dead,
        }
    }

    /// Requeued; with a payload, edited.
    pub fn requeue(&mut self, id: i64, payload: Option<&str>) -> Requeued {
        let Some(one) = self.messages.get_mut(&id) else { return Requeued::Unknown };
        let (state, generation) = (one.standing.state(), one.standing.generation);
        match (state, one.holder()) {
            (State::Succeeded, _) => return Requeued::Succeeded,
            (_, Some(_)) => return Requeued::Processing { until: 0 },
            _ if one.erased => return Requeued::Erased,
            (State::Received, _) if payload.is_none_or(|payload| one.edited.as_deref() == Some(payload)) => {
                return Requeued::Waiting { generation };
            }
            // What waits for its turn keeps it.
            (State::Received, _) => one.standing.generation += 1,
            _ => one.standing = one.standing.requeue().unwrap(),
        }
        one.edited = payload.map(str::to_owned).or_else(|| one.edited.take());
        Requeued::Requeued { generation: generation + 1 }
    }

    pub fn replay(&mut self, ids: &[i64]) -> Many {
        let mut many = Many::default();
        for id in ids {
            let one = self.messages.get_mut(id).unwrap();
            match one.standing.replay(one.priority) {
                Ok(_) if one.erased => many.erased += 1,
                Ok(standing) => {
                    one.standing = standing;
                    many.done += 1;
                }
                Err(_) if one.holder().is_some() => many.held += 1,
                Err(_) => many.open += 1,
            }
        }
        many
    }

    pub fn erase(&mut self, ids: &[i64]) -> Many {
        let mut many = Many::default();
        for id in ids {
            let one = &self.messages[id];
            match (one.erased, one.holder()) {
                (true, _) => continue,
                (_, Some(_)) => many.held += 1,
                _ => {
                    many.done += 1;
                    many.buried += u64::from(self.skipped(*id));
                    self.messages.get_mut(id).unwrap().erased = true;
                }
            }
        }
        many
    }

    fn remove(&mut self, id: i64) {
        self.messages.remove(&id);
        self.attempts.retain(|(of, ..), _| *of != id);
    }

    pub fn purge(&mut self, ids: &[i64]) -> Many {
        let mut many = Many::default();
        for id in ids {
            if self.messages[id].standing.may_purge() {
                self.remove(*id);
                many.done += 1;
            } else {
                many.open += 1;
            }
        }
        many
    }

    /// What is over leaves: dead ones, and what runs finished that have ended themselves; then these runs. Says how many messages left.
    pub fn forget(&mut self) -> usize {
        let is = |one: &One, state| one.standing.state() == state;
        let mut over: BTreeSet<i64> = BTreeSet::new();
        over.extend(self.messages.iter().filter(|(_, one)| is(one, State::Dead)).map(|(id, _)| *id));
        for run in self.runs.iter_mut().filter(|run| run.ended && !run.forgotten) {
            for (id, (generation, done)) in std::mem::take(&mut run.done) {
                let one = self.messages.get(&id).filter(|one| one.standing.generation == generation);
                if done != Done::Otherwise && one.is_some_and(|one| is(one, State::Succeeded)) {
                    over.insert(id);
                }
            }
            run.forgotten = true;
        }
        over.iter().for_each(|id| self.remove(*id));
        over.len()
    }

    /// How an open row is to stand. Of times it is enough that they are times.
    pub fn open(&self, id: i64) -> Option<Open> {
        let open = self.messages.get(&id)?.standing.open?;
        Some(Open { rank: if open.lot == Lot::Ready { open.rank } else { 0 }, ..open })
    }
}
