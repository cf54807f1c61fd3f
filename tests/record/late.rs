//! Success is a fact, also when it is reported late: shown to cost nothing and to save effects.
//!
//! Two worlds go through the same schedule step by step: in one a late success is recorded, in the other it is refused,
//! as a failure would be. What one world cannot do, because it is further, it leaves out. If recording could ever cost an
//! effect, some schedule would have more effects in the world that records.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use hapax::record::State;
use stateright::{Checker, Model, Property};

use crate::protocol::{Action, Protocol};
use crate::rules::{Habit, NO_LATE_SUCCESS, REAL};
use crate::world::{Budget, Phase, World};

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Both {
    recording: World,
    refusing: World,
}

#[derive(Clone)]
struct Compared {
    recording: Protocol,
    refusing: Protocol,
    saved: Arc<AtomicU64>,
}

impl Compared {
    fn new(members: usize, max_attempts: u32, budget: Budget) -> Self {
        Self {
            recording: Protocol::new(REAL, Habit::Right, members, max_attempts, budget),
            refusing: Protocol::new(NO_LATE_SUCCESS, Habit::Right, members, max_attempts, budget),
            saved: Arc::default(),
        }
    }
}

fn follow(protocol: &Protocol, world: &World, action: Action) -> World {
    let mut enabled = Vec::new();
    protocol.enabled(world, &mut enabled);
    if enabled.contains(&action) { protocol.step(world, action) } else { world.clone() }
}

fn forget_what_is_broken(mut world: World) -> World {
    // The refusing world breaks rules on purpose; what is compared here is effects.
    world.broken = 0;
    world
}

impl Model for Compared {
    type State = Both;
    type Action = Action;

    fn init_states(&self) -> Vec<Both> {
        let world = World::new(self.recording.members, self.recording.budget);
        vec![Both { recording: world.clone(), refusing: world }]
    }

    fn actions(&self, both: &Both, actions: &mut Vec<Action>) {
        self.recording.enabled(&both.recording, actions);
        if both.recording != both.refusing {
            self.refusing.enabled(&both.refusing, actions);
            actions.sort_unstable();
            actions.dedup();
        }
    }

    fn next_state(&self, both: &Both, action: Action) -> Option<Both> {
        let recording = forget_what_is_broken(follow(&self.recording, &both.recording, action));
        let refusing = forget_what_is_broken(follow(&self.refusing, &both.refusing, action));
        if recording.effects < refusing.effects && both.recording.effects == both.refusing.effects {
            self.saved.fetch_add(1, Ordering::Relaxed);
        }
        let next = Both { recording, refusing };
        (next != *both).then_some(next)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            // Only a store that forgets can show otherwise: where the refusing world has given up, as dead, a message whose
            // effect had happened, the recording world holds it for handled, until that is forgotten and it begins anew.
            Property::always("recording a late success costs no effect", |model: &Self, both: &Both| {
                let dead = both.refusing.members.iter().any(|member| member.phase == Phase::Done { dead: true });
                let forgot = both.recording.left.forgets < model.recording.budget.forgets;
                both.recording.effects <= both.refusing.effects || (forgot && dead)
            }),
            Property::always("what is remembered happened", |_, both: &Both| {
                let succeeded = |world: &World| {
                    world.record.as_ref().is_some_and(|record| matches!(record.state, State::Succeeded { .. }))
                };
                !succeeded(&both.recording) || both.recording.effects > 0
            }),
            Property::always("what the other remembers is remembered too", |_, both: &Both| {
                let succeeded = |world: &World| {
                    world.record.as_ref().is_some_and(|record| matches!(record.state, State::Succeeded { .. }))
                };
                !succeeded(&both.refusing) || succeeded(&both.recording)
            }),
            Property::sometimes("recording a late success saves an effect", |_, both: &Both| {
                both.recording.effects < both.refusing.effects
            }),
        ]
    }
}

fn compare(name: &str, compared: Compared) {
    let saved = compared.saved.clone();
    let checker = compared.checker().threads(2).spawn_dfs().join();
    println!(
        "{name}: {} joint states; an effect was saved at {} steps, and cost at none",
        checker.unique_state_count(),
        saved.load(Ordering::Relaxed)
    );
    checker.assert_properties();
}

#[test]
fn recording_a_late_success_costs_nothing_and_saves_effects() {
    compare("two owners", Compared::new(2, 3, Budget { crashes: 1, ..Budget::default() }));
    compare("two owners, letters lost", Compared::new(2, 2, Budget { losses: 1, extensions: 1, ..Budget::default() }));
    compare("three owners", Compared::new(3, 3, Budget::default()));
}

#[test]
fn recording_a_late_success_costs_nothing_where_the_store_forgets() {
    compare("two owners", Compared::new(2, 2, Budget { forgets: 1, ..Budget::default() }));
}
