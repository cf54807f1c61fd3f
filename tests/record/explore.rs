//! The crate's own rules, explored: nothing is ever broken, and every run ends well.

use std::collections::HashMap;
use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use stateright::{Checker, Model};

use crate::protocol::{Action, Protocol};
use crate::rules::{Habit, REAL};
use crate::world::{Budget, World};

const NONE: Budget =
    Budget { crashes: 0, losses: 0, repeats: 0, extensions: 0, releases: 0, fatal: 0, requeues: 0, forgets: 0 };

fn owners(count: usize, max_attempts: u32, budget: Budget) -> Protocol {
    Protocol::new(REAL, Habit::Right, count, max_attempts, budget)
}

/// Explores all of it.
fn explore(name: &str, protocol: &Protocol) {
    let begun = Instant::now();
    let checker = protocol.clone().checker().threads(2).spawn_dfs().join();
    println!("{name}: {} states, depth {}, {:.1?}", checker.unique_state_count(), checker.max_depth(), begun.elapsed());
    println!("  {:?}", protocol.setting.events);
    if let Some((property, path)) = checker.discoveries().into_iter().next() {
        panic!("{name}: not so: {property}\n{path}");
    }
}

/// An exploration in which something never happens shows nothing about it.
fn happened(protocol: &Protocol, what: &[(&str, &AtomicU64)]) {
    for (name, event) in what {
        let times = event.load(Ordering::Relaxed);
        assert!(times > 0, "the exploration shows nothing about {name}: {:?}", protocol.setting.events);
    }
}

#[test]
fn crashes_lost_and_late_letters_break_nothing() {
    let protocol = owners(2, 2, Budget { crashes: 1, losses: 1, ..NONE });
    explore("two owners: a crash, a lost letter", &protocol);
    let events = &protocol.setting.events;
    happened(
        &protocol,
        &[
            ("takeovers", &events.takeovers),
            ("late success", &events.late),
            ("late success after death", &events.late_after_death),
            ("second effects", &events.second_effects),
            ("burying by failure", &events.buried_by_failure),
            ("burying by a claim", &events.buried_by_claim),
            ("refusals", &events.refused),
            ("re-entry", &events.reentered),
            ("duplicates", &events.duplicates),
            ("in flight", &events.in_flight),
            ("not due", &events.not_due),
            ("claims whose owner does not know of them", &events.ghosts),
        ],
    );
    explore("two owners: a crash, a repeated letter", &owners(2, 2, Budget { crashes: 1, repeats: 1, ..NONE }));
    explore("two owners: a lost letter, a repeated one", &owners(2, 2, Budget { losses: 1, repeats: 1, ..NONE }));
}

#[test]
fn extensions_and_releases_break_nothing() {
    let protocol = owners(2, 2, Budget { losses: 1, extensions: 1, releases: 1, ..NONE });
    explore("two owners: a lost letter, an extension, a release", &protocol);
    let events = &protocol.setting.events;
    happened(
        &protocol,
        &[
            ("takeovers", &events.takeovers),
            ("lost leases", &events.lost),
            ("leases extended after their end", &events.revived),
            ("refusals", &events.refused),
        ],
    );
    let protocol = owners(2, 2, Budget { repeats: 1, releases: 2, ..NONE });
    explore("two owners: a repeated letter, two releases", &protocol);
}

#[test]
fn an_operator_breaks_nothing() {
    let protocol = owners(2, 2, Budget { losses: 1, fatal: 1, requeues: 1, ..NONE });
    explore("two owners: a lost letter, a fatal failure, a requeue", &protocol);
    let events = &protocol.setting.events;
    happened(&protocol, &[("requeueing", &events.requeued), ("late success after death", &events.late_after_death)]);
}

#[test]
fn three_owners_break_nothing() {
    let protocol = owners(3, 3, NONE);
    explore("three owners", &protocol);
    let events = &protocol.setting.events;
    happened(
        &protocol,
        &[("takeovers", &events.takeovers), ("late success after a failure", &events.late_after_failure)],
    );
    explore("three owners: a lost letter", &owners(3, 2, Budget { losses: 1, ..NONE }));
    explore("three owners: an extension", &owners(3, 2, Budget { extensions: 1, ..NONE }));
}

/// A fence that was forgotten is granted again: that is what L0 means. No success is lost all the same.
#[test]
fn a_store_that_forgets_loses_no_success() {
    let protocol = owners(2, 2, Budget { losses: 1, extensions: 1, forgets: 1, ..NONE });
    explore("two owners: a lost letter, an extension, a record forgotten", &protocol);
    happened(&protocol, &[("late success of a forgotten claim", &protocol.setting.events.late_after_forgetting)]);
}

/// Without a cycle in the graph, "every run ends with the message handled or dead" is about every run.
#[test]
fn every_run_ends() {
    let protocol = owners(2, 2, Budget { crashes: 1, losses: 1, ..NONE });
    let (states, longest) = longest_run(&protocol);
    println!("{states} states, no run longer than {longest} steps");
    assert!(states > 1_000 && longest > 20);
}

fn print(world: &World) -> u64 {
    BuildHasherDefault::<DefaultHasher>::default().hash_one(world)
}

/// Walks the whole graph depth first; panics at a cycle. The number of states, and of steps in the longest run.
fn longest_run(protocol: &Protocol) -> (usize, usize) {
    struct Frame {
        world: World,
        print: u64,
        actions: Vec<Action>,
        longest: usize,
    }
    let open = |world: World| {
        let mut actions = Vec::new();
        protocol.actions(&world, &mut actions);
        let print = print(&world);
        Frame { world, print, actions, longest: 0 }
    };
    // None while it is being walked.
    let mut known: HashMap<u64, Option<usize>> = HashMap::new();
    let mut stack: Vec<Frame> = protocol.init_states().into_iter().map(open).collect();
    known.insert(stack[0].print, None);
    let mut longest = 0;
    while let Some(frame) = stack.last_mut() {
        let Some(action) = frame.actions.pop() else {
            let (print, length) = (frame.print, frame.longest);
            known.insert(print, Some(length));
            stack.pop();
            longest = longest.max(length);
            if let Some(parent) = stack.last_mut() {
                parent.longest = parent.longest.max(length + 1);
            }
            continue;
        };
        let next = protocol.step(&frame.world, action);
        let print = print(&next);
        match known.get(&print) {
            Some(Some(length)) => frame.longest = frame.longest.max(length + 1),
            Some(None) => panic!("a run comes back to where it was, by {action:?}: {next:#?}"),
            None => {
                known.insert(print, None);
                stack.push(open(next));
            }
        }
    }
    (known.len(), longest)
}
