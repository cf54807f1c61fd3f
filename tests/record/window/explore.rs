//! What is explored, and each flaw found.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use stateright::{Checker, HasDiscoveries, Model};

use super::{Budget, Events, FORGOTTEN, Habit, LOST, PASSED, Partition, SUPPRESSED, TWICE};

fn explore(name: &str, budget: Budget) -> Arc<Events> {
    let begun = Instant::now();
    let model = Partition::new(Habit::Right, budget);
    let events = Arc::clone(&model.events);
    let checker = model.checker().threads(2).spawn_dfs().join();
    println!("{name}: {} states, depth {}, {:.1?}", checker.unique_state_count(), checker.max_depth(), begun.elapsed());
    println!("  {events:?}");
    if let Some((property, path)) = checker.discoveries().into_iter().next() {
        panic!("{name}: not so: {property}\n{path}");
    }
    assert!(checker.unique_state_count() > 1_000);
    events
}

fn happened(events: &[(&str, &AtomicU64)]) {
    for (name, event) in events {
        assert!(event.load(Ordering::Relaxed) > 0, "the exploration shows nothing about {name}");
    }
}

const NONE: Budget = Budget { moves: 0, zombies: 0, crashes: 0, losses: 0, failures: 0 };

#[test]
fn owners_that_do_not_know_that_they_are_none_break_nothing() {
    let events = explore("a partition given away, a zombie that raises", Budget { moves: 1, zombies: 1, ..NONE });
    happened(&[("zombies refused", &events.fenced), ("messages out of order", &events.out_of_order)]);
    let events = explore("given away, a failure", Budget { moves: 1, failures: 1, ..NONE });
    happened(&[("zombies refused", &events.fenced)]);
    explore("given away twice", Budget { moves: 2, ..NONE });
}

#[test]
fn lost_and_late_letters_break_nothing() {
    let events = explore("given away, a lost letter", Budget { moves: 1, losses: 1, ..NONE });
    happened(&[
        ("lost commits that were made", &events.made),
        ("lost commits that were not", &events.not_made),
        ("raises that come late", &events.late_raises),
        ("commits that come late", &events.late_commits),
        ("fences raised anew", &events.raised_anew),
    ]);
    explore("three lost letters", Budget { losses: 3, ..NONE });
}

#[test]
fn crashes_break_nothing() {
    explore("two crashes, a lost letter", Budget { crashes: 2, losses: 1, ..NONE });
    let events = explore("given away, a crash", Budget { moves: 1, crashes: 1, ..NONE });
    happened(&[("zombies refused", &events.fenced)]);
}

/// What is wrong, what it takes, and what must be found broken.
const FLAWS: &[(Habit, Budget, &str)] = &[
    (Habit::FenceUnchecked, Budget { moves: 1, ..NONE }, TWICE),
    (Habit::FenceOfTheMoment, Budget { moves: 1, ..NONE }, TWICE),
    (Habit::NoGate, Budget { losses: 1, ..NONE }, FORGOTTEN),
    (Habit::NoGate, Budget { losses: 1, ..NONE }, TWICE),
    (Habit::MovedBefore, NONE, PASSED),
    (Habit::MovedBefore, Budget { crashes: 1, ..NONE }, LOST),
    (Habit::MovedAfter, Budget { crashes: 1, losses: 1, ..NONE }, TWICE),
    (Habit::PastUnfinished, NONE, PASSED),
    (Habit::FailedIsFinished, Budget { failures: 1, ..NONE }, PASSED),
    (Habit::RowIgnored, Budget { moves: 1, ..NONE }, TWICE),
    (Habit::LostReplyCommitted, Budget { losses: 1, ..NONE }, SUPPRESSED),
    (Habit::LostReplyRolledBack, Budget { losses: 1, ..NONE }, TWICE),
    (Habit::FencedForGood, Budget { losses: 1, ..NONE }, LOST),
];

#[test]
fn each_flaw_is_found() {
    let mut missed = Vec::new();
    for (habit, budget, breaks) in FLAWS {
        let model = Partition::new(*habit, *budget);
        let stop = HasDiscoveries::AnyOf([*breaks].into());
        let checker = model.checker().threads(2).finish_when(stop).target_state_count(1_000_000).spawn_bfs().join();
        let found: BTreeSet<&str> = checker.discoveries().into_keys().collect();
        println!("{habit:<20?} {breaks:<70} {:>8} states", checker.unique_state_count());
        if !found.contains(breaks) {
            missed.push(format!("{habit:?}: expected {breaks:?} to be broken, found {found:?}"));
        }
    }
    assert!(missed.is_empty(), "{}", missed.join("\n"));
    let broken: BTreeSet<&str> = FLAWS.iter().map(|(.., breaks)| *breaks).collect();
    let names: BTreeSet<&str> =
        Partition::new(Habit::Right, NONE).properties().iter().map(|property| property.name).collect();
    assert_eq!(names, broken, "a property that no flaw breaks may be one that cannot fail");
}
