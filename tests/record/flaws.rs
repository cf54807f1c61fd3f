//! The model proves itself: each flaw of the rules, or of their use, is found.

use std::collections::BTreeSet;
use std::time::Instant;

use stateright::{Checker, Expectation, HasDiscoveries, Model};

use crate::protocol::Protocol;
use crate::rules::{FLAWS, Flaw, Habit, REAL};
use crate::world::Budget;

/// What is found broken, and after how many states.
fn find(flaw: &Flaw) -> (BTreeSet<&'static str>, usize) {
    let protocol = Protocol::new(flaw.rules, flaw.habit, 2, 2, flaw.takes);
    let stop = HasDiscoveries::AnyOf([flaw.breaks].into());
    let checker = protocol.checker().threads(2).finish_when(stop).target_state_count(1_000_000).spawn_bfs().join();
    (checker.discoveries().into_keys().collect(), checker.unique_state_count())
}

#[test]
fn each_flaw_is_found() {
    let mut missed = Vec::new();
    println!("{:<48} {:<52} {:>8}", "flaw", "found broken", "states");
    for flaw in FLAWS {
        let begun = Instant::now();
        let (found, states) = find(flaw);
        let shown = found.iter().find(|name| **name == flaw.breaks).copied().unwrap_or("-");
        println!("{:<48} {shown:<52} {states:>8} {:>7.1?}", flaw.name, begun.elapsed());
        if shown == "-" {
            missed.push(format!("{}: expected {:?} to be broken, found {found:?}", flaw.name, flaw.breaks));
        }
    }
    assert!(missed.is_empty(), "{}", missed.join("\n"));
}

/// A property that no flaw breaks may be one that cannot fail.
#[test]
fn each_property_is_broken_by_a_flaw() {
    let protocol = Protocol::new(REAL, Habit::Right, 2, 2, Budget::default());
    let names: BTreeSet<&str> = protocol
        .properties()
        .iter()
        .filter(|property| !matches!(property.expectation, Expectation::Sometimes))
        .map(|property| property.name)
        .collect();
    for flaw in FLAWS {
        assert!(names.contains(flaw.breaks), "{}: there is no property {:?}", flaw.name, flaw.breaks);
    }
    let broken: BTreeSet<&str> = FLAWS.iter().map(|flaw| flaw.breaks).collect();
    let whole: Vec<_> = names.difference(&broken).collect();
    assert!(whole.is_empty(), "no flaw breaks {whole:?}");
}
