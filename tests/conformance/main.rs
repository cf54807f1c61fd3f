//! Every store of this crate, and every layer over one, runs the public conformance suite; and the suite proves itself
//! on stores with one flaw each.

#![cfg(all(feature = "conformance", feature = "memory"))]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

#[path = "../support/mod.rs"]
mod support;

mod flawed;
mod flaws;
mod layers;
mod stores;

use std::time::Duration;

use hapax::store::conformance::{Suite, Verdicts};

/// Runs the suite, shows where the time went, and fails with what was found.
async fn conforms(store: &str, suite: Suite) -> Verdicts {
    let verdicts = suite.run().await;
    let mut outcomes: Vec<_> = verdicts.outcomes().iter().collect();
    let took: Duration = outcomes.iter().map(|outcome| outcome.took).sum();
    outcomes.sort_by_key(|outcome| std::cmp::Reverse(outcome.took));
    println!("{store}: {} cases in {took:.1?}; the slowest:", outcomes.len());
    for outcome in outcomes.iter().take(8) {
        println!("  {:>9.1?}  {}", outcome.took, outcome.name);
    }
    assert_eq!(outcomes.len(), Suite::cases().len(), "every case must have run on {store}");
    verdicts.assert_all();
    verdicts
}
