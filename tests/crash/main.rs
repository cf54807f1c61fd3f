//! Processes killed at every point of handling a message, on real stores: what a kill leaves behind, and who goes on.
//!
//! The table: four points to be killed at × the same member starts again, or another one that stands by takes over × the
//! lease still runs, or has run out × the way in (a loop of one's own, a batch) × the store. A member is this test
//! binary run as a process of its own. Effects and offsets are lines in files. The points to be killed at are in the
//! store and the handler of the test; the crate has no hooks.

#![cfg(unix)]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "../support/mod.rs"]
mod support;

mod member;
mod table;

use table::{Case, Next, Point, Way, run_table};

/// A member: started by the other tests, not by hand.
#[test]
#[ignore = "a process that the other tests start"]
fn member_process() {
    if let Ok(order) = std::env::var(member::ORDER) {
        member::run(&order);
    }
}

fn sqlite(way: Way) {
    run_table(way, |dir| format!("sqlite:{}", dir.join("records.db").display()));
}

#[cfg(feature = "sqlite")]
#[test]
fn sqlite_loop_killed_at_every_point() {
    sqlite(Way::Loop);
}

#[cfg(feature = "sqlite")]
#[test]
fn sqlite_batch_killed_at_every_point() {
    sqlite(Way::Batch);
}

#[cfg(feature = "postgres")]
#[test]
fn postgres_loop_killed_at_every_point() {
    let url = support::service("HAPAX_TEST_POSTGRES");
    run_table(Way::Loop, |_| url.clone());
}

#[cfg(feature = "mysql")]
#[test]
fn mysql_loop_killed_at_every_point() {
    let url = support::service("HAPAX_TEST_MYSQL");
    run_table(Way::Loop, |_| url.clone());
}

#[cfg(feature = "redis")]
#[test]
fn redis_loop_killed_at_every_point() {
    let url = support::service("HAPAX_TEST_REDIS");
    run_table(Way::Loop, |_| url.clone());
}

/// The table is whole: each combination once.
#[test]
fn the_table_is_whole() {
    let cases = Case::all(Way::Loop);
    assert_eq!(cases.len(), 16);
    for point in [Point::BeforeClaim, Point::AfterClaim, Point::AfterEffect, Point::AfterSettle] {
        for next in [Next::SameMember, Next::OtherMember] {
            for lease_live in [false, true] {
                let same = |case: &&Case| case.point == point && case.next == next && case.lease_live == lease_live;
                assert_eq!(cases.iter().filter(same).count(), 1);
            }
        }
    }
}
