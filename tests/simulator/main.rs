//! The engine in a seeded world in which everything goes wrong: see `examples/simulate/sim`.
//!
//! Thousands of seeds more: `cargo run --release --features full --example simulate -- --seeds 0..10000`.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

#[path = "../../examples/simulate/sim/mod.rs"]
mod sim;

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use sim::flaws::{self, Flaws};
use sim::run::{self, Options};

/// Seeds that a debug build gets through in some seconds.
const SEEDS: u64 = 400;
/// Seeds within which every flaw has to show.
const MOST: u64 = 1_500;

fn threads() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

#[test]
fn every_seed_keeps_the_invariants() {
    let total = run::many(0, SEEDS, threads(), &Options::default());
    if let Some(report) = &total.failed {
        panic!("seed {}\n{}", report.seed, run::explain(report, Flaws::default()));
    }
    assert_eq!(total.seeds, SEEDS);
    // The world does its worst: otherwise the rest says little.
    assert!(total.messages > 140 * SEEDS, "{} messages", total.messages);
    assert!(total.effects > total.messages / 2, "{} effects", total.effects);
    assert!(total.crashes > SEEDS / 4, "{} crashes", total.crashes);
    assert!(total.repeated > 0, "no effect was repeated, although leases ran out");
    assert!(total.repeated <= total.explained, "{} repeated, {} explained", total.repeated, total.explained);
}

#[test]
fn a_seed_replays_exactly() {
    for seed in (0..20).chain([26, 296, 1_082]) {
        let options = Options { verbose: true, ..Options::default() };
        let (first, second) = (run::seed(seed, &options), run::seed(seed, &options));
        assert!(first.trace.len() > 200, "seed {seed}: {} lines", first.trace.len());
        let differ = first.trace.iter().zip(&second.trace).find(|(one, other)| one != other);
        assert_eq!(differ, None, "seed {seed}");
        assert_eq!(first.trace.len(), second.trace.len(), "seed {seed}");
        // Watching changes nothing.
        let unwatched = run::seed(seed, &Options::default());
        assert_eq!((unwatched.events, unwatched.effects), (first.events, first.effects), "seed {seed}");
    }
}

/// A check that finds nothing proves nothing: each of these bugs is built in, and has to be found.
#[test]
fn every_flaw_is_found() {
    let all = Flaws::all();
    let next = AtomicUsize::new(0);
    let found = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..threads() {
            scope.spawn(|| {
                while let Some(flaws) = all.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let one = flaws::hunt(*flaws, MOST);
                    found.lock().unwrap().push((*flaws, one));
                }
            });
        }
    });
    let mut found = found.into_inner().unwrap();
    found.sort_by_key(|(flaws, _)| all.iter().position(|one| one == flaws));
    println!("{}", flaws::table(&found));
    let missed: Vec<String> = found.iter().filter(|(_, one)| one.is_none()).map(|(flaws, _)| flaws.name()).collect();
    assert_eq!(missed, Vec::<String>::new(), "not found within {MOST} seeds\n{}", flaws::table(&found));
    assert_eq!(found.len(), flaws::ENGINE.len() + flaws::DRIVER.len());
}
