//! Somebody who looks after the inbox: requeues, skips, replays, purges.

use hapax::inbox::rules::{NOBODY, State, Unmoved};

use super::Row;
use crate::sim::flaws::DriverFlaw;
use crate::sim::history::{Act, What};
use crate::sim::plan::{MS, SECOND};
use crate::sim::process::NONE;
use crate::sim::world::{Happening, Sent, World};

/// How the operator is numbered in the history.
const OPERATOR: usize = 2_000;

impl World {
    pub fn operate(&mut self) {
        let Some(inbox) = &mut self.inbox else { return };
        inbox.acts_left = inbox.acts_left.saturating_sub(1);
        if inbox.acts_left > 0 {
            let delay = self.random.between(200 * MS, 3 * SECOND);
            self.at(self.now + delay, Sent::World(NONE), Happening::Operate);
        }
        if self.now >= self.store.down_until {
            match self.random.below(5) {
                0 | 1 => self.operate_requeue(),
                2 => self.operate_skip(),
                3 => self.operate_replay(),
                _ => self.operate_purge(),
            }
        }
        if self.is_healed {
            self.look_for_end();
        }
        self.wake_workers();
    }

    /// The rows that nobody has locked, and that are what is wanted.
    fn operate_on(&self, wanted: impl Fn(&Row) -> bool) -> Vec<i64> {
        let Some(inbox) = &self.inbox else { return Vec::new() };
        inbox.rows.iter().filter(|(_, row)| row.lock == NONE && wanted(row)).map(|(id, _)| *id).collect()
    }

    fn operate_note(&mut self, id: i64, act: Act) {
        let message = self.inbox.as_ref().and_then(|inbox| inbox.rows.get(&id)).map(|row| row.message);
        if let Some(message) = message {
            self.log(OPERATOR, What::Inbox { message, run: 0, act });
        }
    }

    fn operate_requeue(&mut self) {
        let flawed = self.flaws.driver == Some(DriverFlaw::RequeueHeld);
        let ids = self.operate_on(|row| {
            matches!(row.standing.state(), State::Dead | State::Failed)
                || (flawed && row.standing.state() == State::Processing)
        });
        for id in ids {
            let Some(row) = self.inbox.as_mut().and_then(|inbox| inbox.rows.get_mut(&id)) else { continue };
            let moved = match row.standing.requeue() {
                Err(Unmoved::Held) if flawed => {
                    let mut freed = row.standing;
                    if let Some(open) = &mut freed.open {
                        (open.run, open.attempts) = (NOBODY, open.attempts.max(1));
                    }
                    freed.requeue()
                }
                moved => moved,
            };
            if let Ok(standing) = moved {
                row.standing = standing;
                self.operate_note(id, Act::Reopened);
            }
        }
    }

    fn operate_skip(&mut self) {
        let now = self.store.now(self.now);
        let ids = self.operate_on(|row| matches!(row.standing.state(), State::Received | State::Failed));
        if ids.is_empty() {
            return;
        }
        let id = ids[self.random.index(ids.len())];
        let Some(row) = self.inbox.as_mut().and_then(|inbox| inbox.rows.get_mut(&id)) else { return };
        if let Ok(standing) = row.standing.skip(now) {
            row.standing = standing;
            self.operate_note(id, Act::Skipped);
        }
    }

    fn operate_replay(&mut self) {
        let ids = self.operate_on(|row| row.standing.state() == State::Succeeded);
        for _ in 0..3.min(ids.len()) {
            let id = ids[self.random.index(ids.len())];
            let Some(row) = self.inbox.as_mut().and_then(|inbox| inbox.rows.get_mut(&id)) else { continue };
            if let Ok(standing) = row.standing.replay(0) {
                row.standing = standing;
                self.operate_note(id, Act::Reopened);
            }
        }
    }

    /// What is final leaves, unless a copy of it may still come: then its identity would be taken for new.
    fn operate_purge(&mut self) {
        let flaw = self.flaws.driver;
        let passed = |message: u32| {
            let identity = self.plan.messages[message as usize].identity;
            let same = |other: &&super::super::plan::Message| identity.is_some() && other.identity == identity;
            let own = &self.plan.messages[message as usize];
            let past =
                |one: &super::super::plan::Message| self.db.mark(one.partition).is_some_and(|mark| one.offset < mark);
            flaw == Some(DriverFlaw::PurgeTooEarly) || (past(own) && self.plan.messages.iter().filter(same).all(past))
        };
        let ids = self
            .operate_on(|row| (row.standing.may_purge() || flaw == Some(DriverFlaw::PurgeOpen)) && passed(row.message));
        for id in ids {
            self.operate_note(id, Act::Purged);
            let row = self.inbox.as_mut().and_then(|inbox| inbox.rows.remove(&id));
            let identity = row.and_then(|row| self.plan.messages[row.message as usize].identity);
            if let Some(identity) = identity {
                let key = self.flaws.key(&self.plan, identity);
                self.db.records[key as usize] = None;
            }
        }
    }
}
