//! The steps of a batch: its handlers, its windows, its commit and what became of that.

use std::time::Duration;

use hapax::engine::{Answer, Conflicts, Event, Ran, Settled, Ticket};
use hapax::window::{Moves, Row};

use super::{Item, Now, Purpose, Step, Tx, World};
use crate::sim::database::Stage;
use crate::sim::flaws::DriverFlaw;
use crate::sim::history::{Ended, What};
use crate::sim::plan::SECOND;
use crate::sim::process::{NONE, Outcome};
use crate::sim::transaction::Said;
use crate::sim::world::{Happening, Sent};

impl World {
    /// Runs the handlers of what is new.
    pub(super) fn handle(&mut self, tx: u32) {
        let (process, job) = (self.txs[tx as usize].process, self.txs[tx as usize].job);
        let number = self.jobs[job as usize].number;
        let mut blocked: Vec<u64> = Vec::new();
        let mut items = std::mem::take(&mut self.txs[tx as usize].items);
        let (mut begun, mut hangs) = (0, false);
        for at in 0..items.len() {
            let stands = items[at].stands;
            if items[at].dead {
                items[at].ran = Some(if stands == Now::Dead { Ran::Succeeded } else { Ran::Answered(Answer::SameId) });
                continue;
            }
            let body = |item: &Item| self.plan.messages[item.message as usize].body;
            let same = |earlier: u32| body(&items[earlier as usize]) == body(&items[at]);
            // One that says something else is a conflict, once that one is committed.
            let earlier = match stands {
                Now::After(earlier) if same(earlier) && matches!(items[earlier as usize].stands, Now::New { .. }) => {
                    items[earlier as usize].ran
                }
                _ => None,
            };
            let windowed = self.plan.memory.window();
            let handled = self.plan.config.conflicts == Conflicts::Handle;
            let item = &mut items[at];
            let behind = item.row.is_some_and(|row| blocked.contains(&row));
            let answered = |answer| Some(Ran::Answered(answer));
            item.ran = match stands {
                _ if behind => Some(Ran::NotBegun),
                Now::After(_) if earlier == Some(Ran::Succeeded) => answered(Answer::SameId),
                Now::After(_) | Now::Unknown => Some(Ran::NotBegun),
                Now::Redelivered => answered(Answer::Redelivered),
                Now::SameId => answered(Answer::SameId),
                Now::InFlight => answered(Answer::InFlight { remaining: Duration::ZERO }),
                Now::NotDue(remaining) => answered(Answer::NotDue { remaining }),
                Now::Dead => answered(Answer::Dead),
                Now::Conflict if !handled => answered(Answer::Conflict),
                // Of a conflict nothing but the window counts attempts.
                Now::Conflict if item.failures >= self.plan.config.max_attempts => answered(Answer::Dead),
                Now::Conflict | Now::New { .. } => None,
            };
            if item.ran.is_none() {
                item.begun = true;
                begun += 1;
                let (message, epoch) = (item.message, item.epoch);
                self.log(process, What::Began { message, epoch, call: number });
                let accepts = self.plan.inbox.is_some();
                let mut outcome = if accepts { Outcome::accepted() } else { self.outcome(message) };
                hangs |= !accepts && self.random.chance(self.weather.handler_hangs);
                // Where neither record nor window counts, the engine does.
                let attempt = match stands {
                    Now::New { attempt } if windowed || items[at].key.is_some() => Some(attempt),
                    _ if windowed => Some(items[at].failures + 1),
                    _ => None,
                };
                if let Ended::Failed = outcome.how {
                    outcome.effect = self.random.chance(3_000);
                }
                let random = self.random.next();
                let retry_in = Duration::from_micros(random % self.retry_longest);
                items[at].outcome = Some(outcome);
                items[at].ran = Some(match outcome.how {
                    Ended::Succeeded => Ran::Succeeded,
                    Ended::Failed => Ran::Failed { retry_in, attempt },
                    Ended::Fatal => Ran::Fatal,
                    _ => Ran::Unavailable { random },
                });
            }
            let item = &items[at];
            let skipped = item.ran == answered(Answer::Conflict) && self.plan.config.conflicts == Conflicts::Skip;
            let passed = matches!(item.ran, Some(Ran::Succeeded | Ran::Answered(Answer::Redelivered | Answer::SameId)));
            if !(passed || skipped) {
                blocked.extend(item.row);
            }
        }
        self.txs[tx as usize].items = items;
        let pace = self.plan.pace;
        let duration = if begun == 0 {
            0
        } else if hangs {
            self.random.between(SECOND, 30 * SECOND)
        } else {
            self.random.below(pace + 1) * begun.min(4)
        };
        if duration == 0 {
            return self.handled(tx);
        }
        let serial = self.txs[tx as usize].serial;
        self.at(self.now + duration, Sent::To(process as u32), Happening::Said { tx, serial, said: Said::Handled });
    }

    /// The handlers are over: what failed is rolled back to its savepoint, and the windows move.
    pub(super) fn handled(&mut self, tx: u32) {
        if self.txs[tx as usize].server.over {
            // The database was down meanwhile.
            self.undo(tx);
            let random = self.random.next();
            return self.answer_all(tx, Ran::Unavailable { random });
        }
        let items = self.txs[tx as usize].items.clone();
        let failed = |item: &Item| matches!(item.ran, Some(Ran::Failed { .. } | Ran::Fatal));
        if self.plan.together && items.len() > 1 && items.iter().any(failed) {
            // One handler for all of them: which one it was shows when they are fewer.
            return self.again(tx, true);
        }
        let mut moves: Vec<(usize, Moves)> = Vec::new();
        for (at, item) in items.iter().enumerate() {
            let offset = self.plan.messages[item.message as usize].offset;
            let effect = item.outcome.is_some_and(|outcome| outcome.effect);
            let stage = match item.ran {
                Some(Ran::Succeeded) if item.dead => None,
                Some(Ran::Succeeded) => Some(Stage::Effect),
                Some(Ran::Failed { retry_in, .. }) => Some(Stage::Failed { effect, retry_in }),
                Some(Ran::Fatal) => Some(Stage::Fatal { effect }),
                Some(Ran::NotBegun | Ran::Unavailable { .. }) => Some(Stage::Nothing),
                _ => None,
            };
            if let Some(stage) = stage {
                if matches!(stage, Stage::Effect) {
                    let process = self.txs[tx as usize].process;
                    let id = self.inbox_id(process);
                    self.txs[tx as usize].items[at].id = id;
                }
                self.staged(tx, at, stage);
            }
            self.txs[tx as usize].items[at].unstaged = matches!(stage, Some(Stage::Nothing) | None);
            let place = moves.iter().position(|(partition, _)| *partition == item.partition);
            let place = place.unwrap_or_else(|| {
                moves.push((item.partition, Moves::new()));
                moves.len() - 1
            });
            let moves = &mut moves[place].1;
            match item.ran {
                // Another one with this identity was handled while this one was on its way to be given up.
                Some(Ran::Answered(Answer::SameId)) if item.dead => {}
                Some(Ran::Succeeded | Ran::Answered(Answer::Redelivered | Answer::SameId)) => moves.finish(offset),
                Some(Ran::Answered(Answer::Conflict)) if self.plan.config.conflicts == Conflicts::Skip => {
                    moves.finish(offset);
                }
                Some(Ran::Failed { attempt, .. }) => moves.fail(offset, attempt.unwrap_or(1)),
                Some(Ran::Fatal) => moves.fail(offset, self.plan.config.max_attempts),
                _ => {}
            }
        }
        moves.retain(|(_, moves)| !moves.is_empty());
        moves.sort_by_key(|(partition, _)| *partition);
        if self.plan.memory.window() {
            self.txs[tx as usize].moves = moves;
            self.pass_gates(tx);
        } else {
            self.send_step(tx, Step::Commit);
        }
    }

    /// Waits until no other transaction of this process moves the same windows; then says what they will be.
    pub fn pass_gates(&mut self, tx: u32) {
        let one = &self.txs[tx as usize];
        let process = one.process;
        let partitions: Vec<usize> = one.moves.iter().map(|(partition, _)| *partition).collect();
        if self.flaws.driver != Some(DriverFlaw::NoGate) {
            for partition in &partitions {
                if !self.processes[process].gates[*partition].pass(tx) {
                    return;
                }
            }
        }
        if partitions.is_empty() {
            return self.send_step(tx, Step::Commit);
        }
        let mut rows = Vec::new();
        for (partition, moves) in &self.txs[tx as usize].moves {
            let items = &self.txs[tx as usize].items;
            let Some(item) = items.iter().find(|item| item.partition == *partition) else { continue };
            let moment = self.flaws.driver == Some(DriverFlaw::FenceOfTheMoment);
            let window = self.processes[process].windows[*partition].as_ref();
            let same = |item: &&Item| item.partition == *partition;
            let stands = window.filter(|window| {
                moment
                    || (window.ready
                        && items
                            .iter()
                            .filter(same)
                            .all(|item| (item.epoch, item.fence) == (window.epoch, window.fence)))
            });
            let Some(window) = stands else {
                let partition = *partition;
                return self.fenced(tx, partition, false);
            };
            let fence = if moment { window.fence } else { item.fence };
            let mut row = window.window.after(moves);
            if self.flaws.driver == Some(DriverFlaw::WindowPastUnfinished) {
                let finished = items.iter().filter(same).filter(|item| item.ran == Some(Ran::Succeeded));
                let highest = finished.map(|item| self.plan.messages[item.message as usize].offset + 1).max();
                if let Some(next) = highest.filter(|next| *next > row.next) {
                    row = Row { next, state: Vec::new() };
                }
            }
            rows.push((*partition, fence, row));
        }
        self.txs[tx as usize].rows = rows;
        self.send_step(tx, Step::Move);
    }

    /// The reply to a commit did not come: it is not guessed what became of it.
    pub(super) fn doubt(&mut self, tx: u32) {
        match self.flaws.driver {
            Some(DriverFlaw::LostReplyCommitted) => return self.committed_tx(tx),
            Some(DriverFlaw::LostReplyRolledBack) => return self.again(tx, false),
            _ => {}
        }
        self.log(self.txs[tx as usize].process, What::Note("commit in doubt"));
        self.read_again(tx);
    }

    /// Another connection reads, under the locks that the doubtful transaction held.
    pub fn read_again(&mut self, tx: u32) {
        let one = &self.txs[tx as usize];
        let (process, owner, job) = (one.process, one.owner, one.job);
        if self.jobs[job as usize].over {
            return;
        }
        self.txs.push(Tx { process, owner, job, doubted: Some(tx), ..Tx::default() });
        let reader = self.txs.len() as u32 - 1;
        self.send_step(reader, Step::Verify);
    }

    pub(super) fn verified(&mut self, reader: u32, there: bool) {
        let Some(tx) = self.txs[reader as usize].doubted else { return };
        if there { self.committed_tx(tx) } else { self.again(tx, false) }
    }

    /// All of it happened.
    pub(super) fn committed_tx(&mut self, tx: u32) {
        let one = &self.txs[tx as usize];
        let (process, job) = (one.process, one.job);
        let items: Vec<Item> = one.items.clone();
        let (moves, places) = (one.moves.clone(), one.places.clone());
        let rows: Vec<(usize, u64)> = one.rows.iter().map(|(partition, fence, _)| (*partition, *fence)).collect();
        for (partition, moves) in &moves {
            let window = self.processes[process].windows[*partition].as_mut();
            if let Some(window) = window.filter(|window| rows.contains(&(*partition, window.fence))) {
                window.window.apply(moves);
            }
        }
        for (item, place) in items.iter().zip(places) {
            let ran = item.ran.unwrap_or(Ran::NotBegun);
            if let Some(outcome) = item.outcome.filter(|_| item.begun) {
                let (message, epoch, how) = (item.message, item.epoch, outcome.how);
                self.log(process, What::Ended { message, epoch, how, effect: how == Ended::Succeeded });
            }
            self.answer_item(job, place, ran);
        }
        self.txs[tx as usize].items.iter_mut().for_each(|item| item.begun = false);
        self.open_gates(tx);
        self.job_goes_on(job);
    }

    pub(super) fn open_gates(&mut self, tx: u32) {
        let process = self.txs[tx as usize].process;
        for partition in 0..self.processes[process].gates.len() {
            if let Some(next) = self.processes[process].gates[partition].leave(tx) {
                let live = self.jobs[self.txs[next as usize].job as usize].tx == next;
                if live {
                    self.pass_gates(next);
                } else {
                    self.open_gates(next);
                }
            }
        }
    }

    pub(super) fn job_done(&mut self, number: u32) {
        let job = &mut self.jobs[number as usize];
        job.over = true;
        let (process, purpose) = (job.process, job.purpose);
        let ends: Vec<(Ticket, Ran)> =
            job.items.iter().map(|item| (Ticket(item.ticket), item.ran.unwrap_or(Ran::Aborted))).collect();
        match purpose {
            Purpose::Run(at) => {
                for (ticket, ran) in ends {
                    let one = &mut self.processes[process];
                    one.get(ticket).run = NONE;
                    one.ran.push((ticket, ran));
                }
                self.close_run(process, at);
            }
            Purpose::Bury => {
                let one = &mut self.processes[process];
                one.settling = false;
                ends.iter().for_each(|(ticket, _)| one.get(*ticket).calls -= 1);
                let told = |(ticket, ran): &(Ticket, Ran)| match ran {
                    Ran::Succeeded | Ran::Answered(Answer::Redelivered) => Some((*ticket, Settled::Recorded)),
                    Ran::Answered(Answer::SameId) => Some((*ticket, Settled::Refused)),
                    _ => None,
                };
                let all: Option<Vec<(Ticket, Settled)>> = ends.iter().map(told).collect();
                let event = match all {
                    Some(settled) => Event::Settled(settled),
                    None => Event::SettleFailed {
                        tickets: ends.into_iter().map(|(ticket, _)| ticket).collect(),
                        random: self.random.next(),
                    },
                };
                self.feed(process, event);
            }
        }
    }
}
