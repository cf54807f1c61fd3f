//! The wrapper's way of using a record, as a model: every order of steps, mishaps and letters within a budget.

use hapax::record::{ClaimOutcome, ExtendOutcome, SettleOutcome, State};
use stateright::{Model, Property};

use crate::rules::{Habit, Rules};
use crate::world::{self, Budget, End, Letter, Pass, Phase, Setting, World};

/// What can happen next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Action {
    Ask(usize),
    /// Asks or settles again, for want of an answer.
    Repeat(usize),
    Deliver(Letter),
    /// Arrives, and the reply is lost.
    DeliverUnheard(Letter),
    Lose(Letter),
    Effect(usize),
    Finish(usize, End),
    Extend(usize),
    Abandon(usize),
    Crash(usize),
    Tick,
    Requeue,
    Forget,
}

/// A model of some owners and one record.
#[derive(Clone)]
pub struct Protocol {
    pub setting: Setting,
    pub members: usize,
    pub budget: Budget,
}

impl Protocol {
    pub fn new(rules: Rules, habit: Habit, members: usize, max_attempts: u32, budget: Budget) -> Self {
        Self { setting: Setting::new(rules, habit, max_attempts), members, budget }
    }

    fn letter(world: &World, member: usize) -> Option<Letter> {
        let owner = world.members[member].owner;
        match world.members[member].phase {
            Phase::Asking => Some(Letter::Claim { from: member, owner }),
            Phase::Settling { pass, attempt, end } => Some(Letter::Settle { from: member, pass, attempt, end }),
            _ => None,
        }
    }

    pub fn enabled(&self, world: &World, actions: &mut Vec<Action>) {
        for (number, member) in world.members.iter().enumerate() {
            match member.phase {
                Phase::Idle => actions.push(Action::Ask(number)),
                Phase::Waiting if !world.would_wait(member.owner) => actions.push(Action::Ask(number)),
                Phase::Running { effect, .. } => {
                    if effect {
                        actions.push(Action::Finish(number, End::Succeeded));
                        if self.setting.habit == Habit::FailsAfterItsEffect {
                            actions.push(Action::Finish(number, End::Failed));
                        }
                    } else {
                        actions.push(Action::Effect(number));
                        actions.push(Action::Finish(number, End::Failed));
                        if self.setting.habit == Habit::SucceedsFirst {
                            actions.push(Action::Finish(number, End::Succeeded));
                        }
                        if world.left.releases > 0 {
                            actions.push(Action::Finish(number, End::Released));
                        }
                        if world.left.fatal > 0 {
                            actions.push(Action::Finish(number, End::Dead));
                        }
                    }
                    if world.left.extensions > 0 {
                        actions.push(Action::Extend(number));
                    }
                }
                Phase::Waiting | Phase::Asking | Phase::Settling { .. } | Phase::Done { .. } => {}
            }
            if let Some(letter) = Self::letter(world, number) {
                // Where no copy is under way, the answer can only come to a repetition.
                let under_way = world.wire.contains(&letter);
                if !under_way || world.left.repeats > 0 {
                    actions.push(Action::Repeat(number));
                }
                if self.setting.habit == Habit::AbandonsItsFailure
                    && matches!(letter, Letter::Settle { end: End::Failed, .. })
                {
                    actions.push(Action::Abandon(number));
                }
            }
            if world.left.crashes > 0 && !matches!(member.phase, Phase::Done { .. }) {
                actions.push(Action::Crash(number));
            }
        }
        let mut last = None;
        for letter in world.wire.iter().copied().filter(|letter| last.replace(*letter) != Some(*letter)) {
            actions.push(Action::Deliver(letter));
            if world.left.losses > 0 {
                actions.push(Action::DeliverUnheard(letter));
                actions.push(Action::Lose(letter));
            }
        }
        if let Some(record) = &world.record {
            let runs = matches!(record.state, State::Processing { .. } | State::Failed { .. });
            if runs && record.state.time() > 0 {
                actions.push(Action::Tick);
            }
            if world.left.requeues > 0 && matches!(record.state, State::Dead { .. }) {
                actions.push(Action::Requeue);
            }
            let open = world.members.iter().any(|member| !matches!(member.phase, Phase::Done { .. }));
            if world.left.forgets > 0 && open {
                actions.push(Action::Forget);
            }
        }
    }

    /// Does what is enabled.
    pub fn step(&self, world: &World, action: Action) -> World {
        let mut next = world.clone();
        match action {
            Action::Ask(number) => {
                next.members[number].phase = Phase::Asking;
                next.send(Letter::Claim { from: number, owner: next.members[number].owner });
            }
            Action::Repeat(number) => {
                if let Some(letter) = Self::letter(world, number) {
                    if world.wire.contains(&letter) {
                        next.left.repeats -= 1;
                    }
                    next.send(letter);
                }
            }
            Action::Deliver(letter) => {
                take(&mut next, letter);
                self.arrive(&mut next, letter, true);
            }
            Action::DeliverUnheard(letter) => {
                next.left.losses -= 1;
                take(&mut next, letter);
                self.arrive(&mut next, letter, false);
            }
            Action::Lose(letter) => {
                next.left.losses -= 1;
                take(&mut next, letter);
            }
            Action::Effect(number) => {
                next.effect(&self.setting);
                if let Phase::Running { effect, .. } = &mut next.members[number].phase {
                    *effect = true;
                }
            }
            Action::Finish(number, end) => self.finish(&mut next, number, end),
            Action::Extend(number) => {
                if let Phase::Running { pass, .. } = next.members[number].phase {
                    next.left.extensions -= 1;
                    next.send(Letter::Extend { from: number, pass });
                }
            }
            Action::Abandon(number) => next.members[number].phase = Phase::Idle,
            Action::Crash(number) => {
                next.left.crashes -= 1;
                let count = next.members.len() as u64;
                let member = &mut next.members[number];
                member.phase = Phase::Idle;
                if self.setting.habit != Habit::KeepsItsNumber {
                    member.owner += count;
                }
            }
            Action::Tick => {
                next.tick();
            }
            Action::Requeue => {
                next.left.requeues -= 1;
                next.requeue(&self.setting);
            }
            Action::Forget => {
                next.left.forgets -= 1;
                next.excuses += 1;
                next.record = None;
                next.runs = 0;
                next.grants.clear();
            }
        }
        next
    }

    fn finish(&self, next: &mut World, number: usize, end: End) {
        let Phase::Running { pass, attempt, lost, .. } = next.members[number].phase else { return };
        match end {
            End::Released => next.left.releases -= 1,
            End::Dead => next.left.fatal -= 1,
            End::Succeeded | End::Failed => {}
        }
        if lost && end != End::Succeeded {
            // It may no longer fail or release: whoever took over will.
            next.members[number].phase = Phase::Idle;
            return;
        }
        next.members[number].phase = Phase::Settling { pass, attempt, end };
        next.send(Letter::Settle { from: number, pass, attempt, end });
    }

    /// A letter arrives; the reply goes to whoever still waits for it.
    fn arrive(&self, next: &mut World, letter: Letter, heard: bool) {
        let setting = &self.setting;
        match letter {
            Letter::Claim { from, owner } => {
                let reply = next.claim(setting, owner);
                let waits = next.members[from].owner == owner && next.members[from].phase == Phase::Asking;
                if heard && waits {
                    next.members[from].phase = match reply {
                        ClaimOutcome::Acquired(grant) => {
                            let pass = world::pass(grant.token);
                            next.begin(setting, pass);
                            Phase::Running { pass, attempt: grant.attempt, effect: false, lost: false }
                        }
                        ClaimOutcome::Duplicate { .. } => Phase::Done { dead: false },
                        ClaimOutcome::Dead { .. } => Phase::Done { dead: true },
                        ClaimOutcome::InFlight { .. } if setting.habit == Habit::CommitsWhatIsInFlight => {
                            Phase::Done { dead: false }
                        }
                        ClaimOutcome::InFlight { .. } | ClaimOutcome::NotDue { .. } | ClaimOutcome::Conflict { .. } => {
                            Phase::Waiting
                        }
                    };
                } else if matches!(reply, ClaimOutcome::Acquired(_)) {
                    setting.events.ghosts.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                }
            }
            Letter::Settle { from, pass, attempt, end } => {
                let reply = next.settle(setting, pass, attempt, end);
                let waits = next.members[from].phase == Phase::Settling { pass, attempt, end };
                if heard && waits {
                    next.members[from].phase = match (end, reply) {
                        (End::Succeeded, _) => Phase::Done { dead: false },
                        (_, SettleOutcome::Buried) | (End::Dead, SettleOutcome::Settled) => Phase::Done { dead: true },
                        _ => Phase::Idle,
                    };
                }
            }
            Letter::Extend { from, pass } => {
                let reply = next.extend(setting, pass);
                if let Phase::Running { pass: mine, lost, .. } = &mut next.members[from].phase
                    && *mine == pass
                    && heard
                    && reply == ExtendOutcome::Lost
                {
                    *lost = true;
                }
            }
        }
    }
}

fn take(world: &mut World, letter: Letter) {
    if let Ok(place) = world.wire.binary_search(&letter) {
        world.wire.remove(place);
    }
}

/// Who holds the record's claim and runs a handler with it.
fn runs_with(world: &World, wanted: Pass) -> usize {
    let runs = |phase: Phase| matches!(phase, Phase::Running { pass, .. } if pass == wanted);
    world.members.iter().filter(|member| runs(member.phase)).count()
}

macro_rules! rules {
    ($($name:literal: $bit:ident,)*) => {
        vec![$(Property::<Protocol>::always($name, |_, world| world.broken & world::$bit == 0),)*]
    };
}

impl Model for Protocol {
    type State = World;
    type Action = Action;

    fn init_states(&self) -> Vec<World> {
        let mut world = World::new(self.members, self.budget);
        if self.setting.habit == Habit::SharesANumber {
            world.members.iter_mut().for_each(|member| member.owner = 1);
        }
        vec![world]
    }

    fn actions(&self, world: &World, actions: &mut Vec<Action>) {
        // What is broken is found; what follows from it is of no interest.
        if world.broken == 0 {
            self.enabled(world, actions);
        }
    }

    fn next_state(&self, world: &World, action: Action) -> Option<World> {
        Some(self.step(world, action))
    }

    fn properties(&self) -> Vec<Property<Self>> {
        let mut properties = rules! {
            "a fence is granted to one owner": TWO_OWNERS_ON_A_FENCE,
            "the fence never falls": FENCE_FELL,
            "succeeded is never undone": SUCCESS_UNDONE,
            "only the holder ends a claim without success": STALE_END,
            "no claim is ended under a running handler": ENDED_UNDER_A_HANDLER,
            "a success is remembered, early or late": SUCCESS_FORGOTTEN,
            "a late success is flagged": LATE_NOT_FLAGGED,
            "a failed message becomes due or dead": NEITHER_DUE_NOR_DEAD,
            "attempts are counted before the handler runs": NOT_COUNTED,
            "no attempt begins beyond the limit": BEYOND_THE_LIMIT,
            "a live lease is not taken over": LIVE_LEASE_TAKEN,
            "claiming again is the same claim": NOT_REENTRANT,
            "nothing is handled once it has succeeded": HANDLED_AGAIN,
            "only the holder extends, and never shortens": BAD_EXTENSION,
            "requeueing makes every earlier token stale": BAD_REQUEUE,
            "a token begins one handler": TOKEN_TWICE,
            "a duplicate is of a success": FALSE_DUPLICATE,
            "the holder may always end its claim": RIGHT_DENIED,
            "what is granted is written": NOT_WRITTEN,
            "answers are true": UNTRUE_ANSWER,
        };
        properties.push(Property::always("no two handlers hold one token", |_, world: &World| {
            world.members.iter().all(|member| match member.phase {
                Phase::Running { pass, .. } => runs_with(world, pass) == 1,
                _ => true,
            })
        }));
        properties.push(Property::always("what succeeded had its effect", |_, world: &World| {
            world.effects > 0
                || !matches!(&world.record, Some(record) if matches!(record.state, State::Succeeded { .. }))
        }));
        properties.push(Property::always(
            "an effect repeats only where a lease ran out or the store forgot",
            |_, world: &World| world.effects <= 1 + world.excuses,
        ));
        properties.push(Property::always("no record is stuck", |model: &Self, world: &World| match &world.record {
            Some(record) if !record.state.is_final() => {
                matches!(model.setting.probe(record), ClaimOutcome::Acquired(_) | ClaimOutcome::Dead { .. })
            }
            _ => true,
        }));
        // Every run ends (see `every_run_ends`), so this is about where runs end.
        properties.push(Property::eventually("every run ends with the message handled or dead", |_, world: &World| {
            let over = world.members.iter().all(|member| matches!(member.phase, Phase::Done { .. }));
            over && world.record.as_ref().is_some_and(|record| record.state.is_final())
        }));
        properties
    }
}
