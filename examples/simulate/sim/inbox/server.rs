//! What the database does for workers.

use std::collections::HashMap;

use hapax::inbox::rules::{BUSY, Candidate, Class, Lot, NOBODY, Open, Standing, State, choose};

use super::{Ask, Call, How, RunRow, Said, Taken};
use crate::sim::flaws::DriverFlaw;
use crate::sim::history::{Act, What};
use crate::sim::plan::MS;
use crate::sim::process::NONE;
use crate::sim::world::{Happening, Sent, World};

/// How processes of workers are numbered in the history.
pub const WORKERS: usize = 1_000;

impl World {
    /// A statement arrives, or tries its lock once more.
    pub fn inbox_arrives(&mut self, index: u32) {
        let Some(inbox) = &self.inbox else { return };
        let call = inbox.calls[index as usize].clone();
        let within = call.ask.is_within();
        let over = within && inbox.txs[call.tx as usize].over;
        if self.now < self.store.down_until {
            if within {
                self.inbox_drop(call.tx);
            }
            return self.inbox_reply(index, Said::Lost);
        }
        if over {
            return self.inbox_reply(index, Said::Lost);
        }
        if within && self.random.chance(self.weather.aborts) {
            self.inbox_drop(call.tx);
            return self.inbox_reply(index, Said::Aborted);
        }
        if let Some(said) = self.inbox_does(&call) {
            self.inbox_reply(index, said);
            if self.is_healed {
                self.look_for_end();
            }
        } else if self.now < call.until {
            self.at(self.now + 4 * MS, Sent::World(NONE), Happening::InboxArrives(index));
        } else {
            if within {
                self.inbox_drop(call.tx);
            }
            self.inbox_reply(index, Said::Aborted);
        }
    }

    fn inbox_reply(&mut self, index: u32, said: Said) {
        let Some(inbox) = &mut self.inbox else { return };
        let call = &mut inbox.calls[index as usize];
        if !call.heard {
            return;
        }
        call.said = said;
        let back = self.random.between(50, self.plan.round_trip);
        self.at(self.now + back, Sent::World(NONE), Happening::InboxSaid(index));
    }

    /// `None`: somebody else has a lock.
    fn inbox_does(&mut self, call: &Call) -> Option<Said> {
        match call.ask {
            Ask::Take => self.inbox_choose(call),
            Ask::TakeCommit => Some(self.inbox_take(call)),
            Ask::Mine(tx) => {
                let tx = &self.inbox.as_ref()?.txs[tx as usize];
                tx.over.then(|| tx.committed.map_or(Said::Gone, Said::Run))
            }
            Ask::Hold => {
                let unchecked = self.flaws.driver == Some(DriverFlaw::FinishWithoutRun);
                let run = &mut self.inbox.as_mut()?.runs[call.run as usize - 1];
                if run.lock != NONE && run.lock != call.tx {
                    return None;
                }
                if run.ended && !unchecked {
                    self.inbox_drop(call.tx);
                    return Some(Said::Gone);
                }
                run.lock = call.tx;
                self.inbox.as_mut()?.txs[call.tx as usize].run = Some(call.run);
                Some(Said::Done)
            }
            Ask::Finish => {
                let unchecked = self.flaws.driver == Some(DriverFlaw::FinishWithoutRun);
                let sweeps = self.flaws.driver == Some(DriverFlaw::SweepIgnoresLock);
                let inbox = self.inbox.as_mut()?;
                let held = |id: i64| inbox.rows.get(&id).is_some_and(|row| row.standing.is_held_by(call.run));
                if !unchecked && !sweeps && !call.ends.iter().all(|end| held(end.taken.id)) {
                    self.inbox_drop(call.tx);
                    return Some(Said::Gone);
                }
                inbox.txs[call.tx as usize].ends.clone_from(&call.ends);
                Some(Said::Done)
            }
            Ask::Commit => {
                let inbox = self.inbox.as_mut()?;
                let tx = &mut inbox.txs[call.tx as usize];
                tx.committed = Some(call.run);
                let ends = std::mem::take(&mut tx.ends);
                for end in &ends {
                    if end.how == How::Succeeded {
                        self.inbox_log(call, end.taken.message, Act::Worked);
                    }
                    self.inbox_end(call, end.taken, end.how);
                }
                let run = &mut self.inbox.as_mut()?.runs[call.run as usize - 1];
                (run.ended, run.done) = (true, true);
                self.inbox_drop(call.tx);
                Some(Said::Done)
            }
            Ask::Ended => {
                let run = &self.inbox.as_ref()?.runs[call.run as usize - 1];
                (run.lock == NONE).then_some(if run.done { Said::Done } else { Said::Gone })
            }
            Ask::Prolong => {
                let lease = self.inbox_lease();
                let run = &mut self.inbox.as_mut()?.runs[call.run as usize - 1];
                if run.ended {
                    return Some(Said::Gone);
                }
                run.lease = run.lease.max(lease);
                Some(Said::Done)
            }
            Ask::Conclude => {
                for end in &call.ends {
                    self.inbox_end(call, end.taken, end.how);
                }
                let run = &mut self.inbox.as_mut()?.runs[call.run as usize - 1];
                (run.ended, run.done) = (true, true);
                Some(Said::Done)
            }
            Ask::Sweep => {
                self.inbox_sweep(call);
                Some(Said::Done)
            }
        }
    }

    fn inbox_lease(&self) -> i64 {
        let lease = self.inbox.as_ref().map_or(0, |inbox| inbox.settings.lease);
        self.store.now(self.now) + (lease / MS) as i64
    }

    fn inbox_log(&mut self, call: &Call, message: u32, act: Act) {
        self.log(WORKERS + call.worker, What::Inbox { message, run: call.run as u32, act });
    }

    /// Chooses and locks what a run may take.
    fn inbox_choose(&mut self, call: &Call) -> Option<Said> {
        let now = self.store.now(self.now);
        let flaw = self.flaws.driver;
        let inbox = self.inbox.as_mut()?;
        let by_key = inbox.settings.by_key;
        if by_key && inbox.taker != NONE && inbox.taker != call.tx {
            return None;
        }
        let unlocked = flaw == Some(DriverFlaw::TakeWithoutLock);
        let mut rows: Vec<(i64, Candidate)> = Vec::new();
        let mut barriers: HashMap<i64, i64> = HashMap::new();
        for (id, row) in &mut inbox.rows {
            if let Ok(due) = row.standing.due(now)
                && row.lock == NONE
            {
                row.standing = due;
            }
            let Some(open) = row.standing.open.filter(|open| open.lot != Lot::Dead) else { continue };
            if open.lot == Lot::Ready && open.run == NOBODY && (row.lock == NONE || unlocked) {
                rows.push((open.rank, Candidate { id: *id, lane: row.lane, alone: open.alone }));
            } else {
                let at = if open.run == NOBODY { *id } else { BUSY };
                let barrier = barriers.entry(row.lane).or_insert(at);
                *barrier = at.min(*barrier);
            }
        }
        rows.sort_by_key(|(rank, row)| (*rank, row.id));
        let rows: Vec<Candidate> = rows.into_iter().map(|(_, row)| row).collect();
        let ordered = by_key && flaw != Some(DriverFlaw::TakeWithoutLanes);
        let barrier = |lane| match flaw {
            // Of what is in others' hands or waits nothing is known.
            Some(DriverFlaw::TakePastWaiting) => None,
            _ => barriers.get(&lane).copied(),
        };
        let chosen: Vec<i64> =
            choose(ordered, inbox.settings.most, &rows, barrier).into_iter().map(|row| row.id).collect();
        if chosen.is_empty() {
            self.inbox_drop(call.tx);
            return Some(Said::Nothing);
        }
        if by_key {
            inbox.taker = call.tx;
        }
        for id in &chosen {
            if let Some(row) = inbox.rows.get_mut(id) {
                row.lock = call.tx;
            }
        }
        let tx = &mut inbox.txs[call.tx as usize];
        tx.rows.clone_from(&chosen);
        tx.chosen = chosen;
        Some(Said::Done)
    }

    /// The take is committed: attempts count from here on.
    fn inbox_take(&mut self, call: &Call) -> Said {
        let lease = self.inbox_lease();
        let flaw = self.flaws.driver;
        let Some(inbox) = &mut self.inbox else { return Said::Gone };
        let number = inbox.runs.len() as i64 + 1;
        let chosen = std::mem::take(&mut inbox.txs[call.tx as usize].chosen);
        let (mut taken, mut notes) = (Vec::new(), Vec::new());
        for id in chosen {
            let Some(row) = inbox.rows.get_mut(&id) else { continue };
            let mut moved = row.standing.take(number);
            if flaw == Some(DriverFlaw::TakeWithoutLock)
                && let Some(open) = row.standing.open
            {
                moved = Ok(Standing { open: Some(Open { run: number, ..open }), ..row.standing });
            }
            let Ok(mut standing) = moved else { continue };
            if let (Some(DriverFlaw::AttemptsAtEnd), Some(open)) = (flaw, &mut standing.open) {
                open.attempts -= 1;
            }
            row.standing = standing;
            let generation = row.standing.generation;
            taken.push(Taken { id, message: row.message, generation, lane: row.lane });
            notes.push(What::Inbox { message: row.message, run: number as u32, act: Act::Took { generation } });
        }
        inbox.runs.push(RunRow { lease, ended: false, done: false, lock: NONE, taken, killed: false });
        inbox.txs[call.tx as usize].committed = Some(number);
        notes.into_iter().for_each(|what| self.log(WORKERS + call.worker, what));
        self.inbox_drop(call.tx);
        Said::Run(number)
    }

    /// One message of a run ends.
    fn inbox_end(&mut self, call: &Call, taken: Taken, how: How) {
        let now = self.store.now(self.now);
        let flaw = self.flaws.driver;
        let Some(inbox) = &mut self.inbox else { return };
        let inside = inbox.settings.inside;
        let retry = inbox.retry;
        let Some(row) = inbox.rows.get_mut(&taken.id) else { return };
        let mut run = call.run;
        if flaw == Some(DriverFlaw::FinishWithoutRun)
            && let Some(open) = row.standing.open
        {
            run = open.run;
        }
        if let (Some(DriverFlaw::AttemptsAtEnd), Some(open)) = (flaw, &mut row.standing.open) {
            open.attempts += 1;
        }
        let (moved, act) = match how {
            How::Succeeded => match row.standing.succeed(run) {
                Err(_) if !inside => (row.standing.succeed_late(taken.generation), Act::Late),
                moved => (moved, Act::Succeeded),
            },
            How::Failed { class, random } => {
                let act = if class == Class::Unavailable { Act::Unavailable } else { Act::Failed };
                (row.standing.fail(run, class, &retry, random, now), act)
            }
            How::Released => (row.standing.release(run), Act::Released),
        };
        let Ok(mut standing) = moved else { return };
        if flaw == Some(DriverFlaw::FailedForgotten) && matches!(act, Act::Failed) {
            standing.open = None;
        }
        row.standing = standing;
        let act = if standing.state() == State::Dead { Act::Dead } else { act };
        let forgotten = standing.open.is_none() && matches!(act, Act::Failed);
        self.inbox_log(call, taken.message, if forgotten { Act::Succeeded } else { act });
    }

    /// Runs whose lease is over: their messages are lost. One whose row is locked is in living hands.
    fn inbox_sweep(&mut self, call: &Call) {
        let now = self.store.now(self.now);
        let flaw = self.flaws.driver;
        let Some(inbox) = &self.inbox else { return };
        let retry = inbox.retry;
        for at in 0..inbox.runs.len() {
            let Some(run) = self.inbox.as_mut().map(|inbox| &mut inbox.runs[at]) else { return };
            let locked = run.lock != NONE;
            if run.ended || run.lease >= now || (locked && flaw != Some(DriverFlaw::SweepIgnoresLock)) {
                continue;
            }
            run.ended = !locked;
            let number = at as i64 + 1;
            let (taken, killed) = (run.taken.clone(), run.killed);
            let company = taken.len() > 1;
            self.log(WORKERS + call.worker, What::Swept { run: number as u32, open: locked });
            for one in taken {
                let random = self.random.next();
                let Some(row) = self.inbox.as_mut().and_then(|inbox| inbox.rows.get_mut(&one.id)) else { continue };
                let Ok(mut standing) = row.standing.lose(number, &retry, random, now) else { continue };
                if let (Some(DriverFlaw::LostInCompany), Some(open)) = (flaw, &mut standing.open) {
                    open.alone = false;
                }
                row.standing = standing;
                let dead = standing.state() == State::Dead;
                let act = Act::Lost { dead, blameless: killed && company };
                self.log(WORKERS + call.worker, What::Inbox { message: one.message, run: number as u32, act });
            }
        }
        self.wake_workers();
    }

    /// A transaction is over: committed, rolled back, or its connection is gone.
    pub fn inbox_drop(&mut self, tx: u32) {
        let Some(inbox) = &mut self.inbox else { return };
        let one = &mut inbox.txs[tx as usize];
        if std::mem::replace(&mut one.over, true) {
            return;
        }
        for id in std::mem::take(&mut one.rows) {
            if let Some(row) = inbox.rows.get_mut(&id).filter(|row| row.lock == tx) {
                row.lock = NONE;
            }
        }
        if let Some(run) = one.run.take() {
            let run = &mut inbox.runs[run as usize - 1];
            if run.lock == tx {
                run.lock = NONE;
            }
        }
        if inbox.taker == tx {
            inbox.taker = NONE;
        }
    }

    /// The server is killed.
    pub fn inbox_drop_all(&mut self) {
        let count = self.inbox.as_ref().map_or(0, |inbox| inbox.txs.len());
        (0..count as u32).for_each(|tx| self.inbox_drop(tx));
    }

    /// A message ended the worker that had it in a run.
    pub(super) fn inbox_killed(&mut self, run: i64) {
        if let Some(inbox) = &mut self.inbox {
            inbox.runs[run as usize - 1].killed = true;
        }
    }

    pub(super) fn inbox_taken(&self, run: i64) -> Vec<Taken> {
        self.inbox.as_ref().map_or_else(Vec::new, |inbox| inbox.runs[run as usize - 1].taken.clone())
    }
}
