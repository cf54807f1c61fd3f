//! The same random operations against the pure record and every real store: answers and records must be the same.
//!
//! Real stores have real clocks. So leases and pauses are either an hour, which no test lasts, or a millisecond, after which
//! the machine waits until the store itself says that it is over. Times are compared no further than that.

#![cfg(feature = "memory")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

#[path = "../support/mod.rs"]
mod support;

#[allow(dead_code)]
#[path = "../conformance/flawed.rs"]
mod flawed;
mod places;
mod reference;
mod under_test;

use std::sync::Arc;

use hapax::store::DedupStore;
use proptest::test_runner::{Config, TestError, TestRunner};
use proptest_state_machine::{ReferenceStateMachine, StateMachineTest};
use tokio::runtime::Runtime;

use crate::reference::Lives;
use crate::under_test::{Machine, Place};

/// Runs `cases` random lives against the store behind two handles; what differed, if anything did.
fn differs(cases: u32, shrinks: u32, runtime: &Runtime, handles: [Arc<dyn DedupStore>; 2]) -> Option<String> {
    runtime.block_on(handles[0].ensure_schema()).unwrap();
    let config = Config { cases, max_shrink_iters: shrinks, failure_persistence: None, ..Config::default() };
    let place = Place { handles, runtime: runtime.handle().clone() };
    let mut runner = TestRunner::new(config.clone());
    let result = runner.run(&Lives::sequential_strategy(1..40), |(initial, moves, seen)| {
        under_test::PLACE.set(Some(place.clone()));
        Machine::test_sequential(config.clone(), initial, moves, seen);
        Ok(())
    });
    match result {
        Ok(()) => None,
        Err(TestError::Fail(reason, (_, moves, _))) => Some(format!("{reason}\nafter these moves:\n{moves:#?}")),
        Err(aborted) => Some(aborted.to_string()),
    }
}

fn lives(name: &str, cases: u32, runtime: &Runtime, handles: [Arc<dyn DedupStore>; 2]) {
    if let Some(difference) = differs(cases, 400, runtime, handles) {
        panic!("{name}: {difference}");
    }
    println!("{name}: {cases} lives");
}

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}
