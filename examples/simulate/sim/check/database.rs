//! The invariants of transactional handling: effects and what is remembered of them are in one database, so that nothing explains a second effect.

use std::collections::VecDeque;

use hapax::engine::{Conflicts, OnDead, Order};

use super::{Checked, Checker, NOTHING, Policy, broken};
use crate::sim::history::Recorded;
use crate::sim::plan::Plan;

impl Checker {
    /// Messages of each partition by record key.
    pub(super) fn lanes(plan: &Plan) -> Vec<Vec<VecDeque<u32>>> {
        if !plan.is_transactional() {
            return Vec::new();
        }
        let lanes = |log: &crate::sim::plan::Log| {
            let mut lanes = vec![VecDeque::new(); plan.lanes];
            for message in &log.messages {
                match (plan.config.order, plan.messages[*message as usize].lane) {
                    (Order::Partition, _) => lanes[0].push_back(*message),
                    (_, Some(lane)) => lanes[usize::from(lane)].push_back(*message),
                    _ => {}
                }
            }
            lanes
        };
        plan.logs.iter().map(lanes).collect()
    }

    /// The same where effects and what is remembered of them are in one database.
    pub(super) fn is_through_in_database(&self, plan: &Plan, message: u32, policy: Policy) -> bool {
        let one = &plan.messages[message as usize];
        let own = &self.messages[message as usize];
        let known = one.identity.filter(|_| plan.memory.records()).map(|identity| &self.known[identity as usize]);
        if own.buried {
            return true;
        }
        let given_up = policy.on_dead == OnDead::Letter && own.lettered;
        match known {
            Some(known) if known.succeeded == one.body => true,
            // A copy was given up: this one comes out as that did.
            Some(known) if known.dead == one.body => match policy.on_dead {
                OnDead::Letter => known.lettered.contains(&one.body),
                OnDead::Record => true,
                OnDead::Stop => false,
            },
            Some(known) if known.first != NOTHING && known.first != one.body => match policy.conflicts {
                Conflicts::Skip => true,
                Conflicts::GiveUp => given_up,
                Conflicts::Handle => own.effects > 0 || given_up,
            },
            Some(_) => false,
            None => given_up || (!plan.refuses() && own.effects > 0),
        }
    }

    /// A window's mark passes nothing that is not through.
    pub(super) fn moved(&mut self, plan: &Plan, process: u32, partition: u32, next: i64) -> Checked {
        let at = partition as usize;
        let policy = self.policies[process as usize];
        while let Some(message) = plan.logs[at].messages.get(self.marks[at]).copied()
            && plan.messages[message as usize].offset < next
        {
            if !self.is_through(plan, message, policy) {
                return broken(
                    "window",
                    format!(
                        "the window of partition {partition} moves to {next}, and message {message} is not through"
                    ),
                );
            }
            self.marks[at] += 1;
        }
        Ok(())
    }

    /// In one database there is one effect, and nothing to explain.
    pub(super) fn effect_in_database(&mut self, plan: &Plan, process: u32, message: u32) -> Checked {
        let one = &plan.messages[message as usize];
        let policy = self.policies[process as usize];
        let own = &mut self.messages[message as usize];
        own.effects += 1;
        if own.effects > 1 && plan.memory.window() {
            return broken("effects", format!("message {message} has effect number {}", own.effects));
        }
        let known = one.identity.filter(|_| plan.memory.records()).map(|identity| self.known[identity as usize].first);
        // What has neither window nor record is remembered by nothing.
        let remembered = plan.memory.window() || known == Some(one.body);
        let given_up = own.buried || (own.lettered && policy.on_dead == OnDead::Letter);
        if remembered && given_up {
            return broken("states", format!("message {message} was given up, and is handled"));
        }
        // What is behind one that was given up went on then.
        if own.effects == 1 && !given_up {
            self.in_order(plan, message, policy)?;
        }
        let Some(identity) = one.identity.filter(|_| plan.memory.records()) else { return Ok(()) };
        let known = &mut self.known[identity as usize];
        if known.first == NOTHING {
            known.first = one.body;
        }
        if known.first != one.body {
            let handled = policy.conflicts == Conflicts::Handle;
            let text = format!("message {message} is in conflict, and is handled");
            return if handled { Ok(()) } else { broken("states", text) };
        }
        known.effects += 1;
        if known.effects > 1 {
            return broken("effects", format!("message {message}: its identity has effect number {}", known.effects));
        }
        Ok(())
    }

    /// All before a message in its lane are through when its effect is committed, whoever handled them.
    fn in_order(&mut self, plan: &Plan, message: u32, policy: Policy) -> Checked {
        let one = &plan.messages[message as usize];
        let lane = match (plan.config.order, one.lane) {
            _ if plan.config.step_aside => return Ok(()),
            // What left the log while it was in hand was passed as it left.
            _ if self.messages[message as usize].gone => return Ok(()),
            (Order::Partition, _) => 0,
            (Order::Key, Some(lane)) => usize::from(lane),
            _ => return Ok(()),
        };
        while let Some(first) = self.lanes[one.partition][lane].front().copied() {
            if first == message {
                return Ok(());
            }
            let other = &self.messages[first as usize];
            let known = plan.messages[first as usize].identity.filter(|_| plan.memory.records());
            let known = known.map(|identity| &self.known[identity as usize]);
            let copied =
                known.is_some_and(|known| known.effects > 0 && known.first == plan.messages[first as usize].body);
            if other.effects == 0 && !copied && !self.is_through(plan, first, policy) {
                return broken(
                    "order",
                    format!("message {message} has its effect before {first}, which lies before it in its lane"),
                );
            }
            self.lanes[one.partition][lane].pop_front();
        }
        Ok(())
    }

    pub(super) fn settled_in_database(
        &mut self,
        plan: &Plan,
        process: u32,
        message: u32,
        recorded: Recorded,
    ) -> Checked {
        let one = &plan.messages[message as usize];
        let letters = self.policies[process as usize].on_dead == OnDead::Letter;
        let own = &mut self.messages[message as usize];
        let known = one.identity.filter(|_| plan.memory.records()).map(|identity| &mut self.known[identity as usize]);
        match (recorded, known) {
            (Recorded::Succeeded, Some(known)) => {
                if known.effects == 0 {
                    return broken("no false duplicate", format!("message {message} is succeeded without an effect"));
                }
                known.succeeded = one.body;
            }
            (Recorded::Failed, known) => {
                own.failures += 1;
                let mut failures = if plan.memory.window() { own.failures } else { 0 };
                if let Some(known) = known {
                    if known.first == NOTHING {
                        known.first = one.body;
                    }
                    if known.first == one.body {
                        known.failures += 1;
                        failures = known.failures;
                    }
                }
                if failures > plan.config.max_attempts {
                    return broken("states", format!("message {message} failed {failures} times"));
                }
            }
            (Recorded::Dead, known) => {
                if letters && !own.lettered {
                    return broken(
                        "states",
                        format!("message {message} is noted as given up before its letter was written"),
                    );
                }
                own.buried = true;
                if let Some(known) = known.filter(|known| known.first == one.body) {
                    known.dead = one.body;
                }
            }
            _ => {}
        }
        Ok(())
    }
}
