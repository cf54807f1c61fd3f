//! What the integration tests share: addresses of real services, unique names, waiting for a condition, a TCP relay that
//! breaks connections on command, throw-away servers, and Kafka (mock and real).
//!
//! Each test target says `mod support;`. Nothing here sleeps where a condition can be awaited, and every wait has a deadline.

#![allow(
    dead_code,
    unused_imports,
    unreachable_pub,
    missing_docs,
    missing_debug_implementations,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic
)]

#[cfg(feature = "kafka")]
pub mod kafka;
pub mod net;
pub mod relay;
pub mod servers;
pub mod store;

use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

#[cfg(feature = "kafka")]
pub use kafka::{Kafka, MockKafka, Record};
pub use relay::{Direction, Relay};
pub use servers::{ThrowawayKafka, ThrowawayMariadb, ThrowawayPostgres, ThrowawayRedis};

/// Long enough for two loaded cores. A test that waits this long is about to fail, so it costs nothing when all is well.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// The address of a real service, from the environment: `HAPAX_TEST_KAFKA`, `HAPAX_TEST_REDIS`, `HAPAX_TEST_POSTGRES`, …
///
/// Without it the test fails: a test that skips itself is a test that nobody runs. The developer who wants to do without
/// services says so by name (`scripts/test --embedded`), and is told which tests were left out.
pub fn service(variable: &str) -> String {
    match std::env::var(variable) {
        Ok(value) if !value.is_empty() && !embedded() => value,
        _ => leave_out_or_fail(&format!(
            "{variable} is not set, and this test needs a real service: run `scripts/services up`, then `eval \"$(scripts/services env)\"` \
             in the shell that runs the tests (scripts/test does both; scripts/test --embedded runs what needs no service)"
        )),
    }
}

/// Whether the developer asked for the tests that need no service.
pub fn embedded() -> bool {
    std::env::var("HAPAX_TEST_EMBEDDED").is_ok_and(|v| v == "1")
}

/// Ends this test. `scripts/test --embedded` knows the words "LEFT OUT" and lists the test as left out by name; anybody else sees a failure.
pub fn leave_out_or_fail(cure: &str) -> ! {
    if embedded() {
        panic!("LEFT OUT: this test needs a service, and HAPAX_TEST_EMBEDDED=1 asks for those that do not");
    }
    panic!("{cure}");
}

/// For a test that starts native servers in a way of its own: leaves it out where only the embedded tests are asked for.
pub fn native_servers() {
    if embedded() {
        leave_out_or_fail("native servers");
    }
}

/// The three nodes of the Redis cluster: `HAPAX_TEST_REDIS_CLUSTER`, URLs with commas between them.
pub fn redis_cluster() -> Vec<String> {
    service("HAPAX_TEST_REDIS_CLUSTER").split(',').map(str::to_owned).collect()
}

/// The sentinels and the name of the master they watch: `HAPAX_TEST_REDIS_SENTINEL`, URLs with commas between them, then `#` and the name.
pub fn redis_sentinel() -> (Vec<String>, String) {
    let value = service("HAPAX_TEST_REDIS_SENTINEL");
    let (urls, master) = value.split_once('#').expect("HAPAX_TEST_REDIS_SENTINEL is URL,URL,…#MASTER");
    (urls.split(',').map(str::to_owned).collect(), master.to_owned())
}

/// A name nobody else uses, in this run or another one: for topics, groups, tables and key prefixes.
///
/// `prefix`, an underscore, lower-case hexadecimal digits. With a prefix of up to 30 letters it is a valid SQL identifier and topic name.
pub fn unique(prefix: &str) -> String {
    static COUNTER: AtomicU32 = AtomicU32::new(0);
    let millis = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis();
    let n = COUNTER.fetch_add(1, Ordering::Relaxed);
    format!("{prefix}_{millis:x}_{:x}_{n:x}", std::process::id())
}

/// A random number: to spread ports and sizes, never to decide whether a test passes.
pub fn random() -> u64 {
    static COUNTER: AtomicU32 = AtomicU32::new(0);
    RandomState::new().hash_one((SystemTime::now(), std::process::id(), COUNTER.fetch_add(1, Ordering::Relaxed)))
}

/// Waits until the condition holds; panics with `what` when it does not within `deadline`.
pub async fn eventually(deadline: Duration, what: &str, mut condition: impl AsyncFnMut() -> bool) {
    eventually_some(deadline, what, async || condition().await.then_some(())).await;
}

/// Waits until there is a value, and returns it; panics with `what` when there is none within `deadline`.
pub async fn eventually_some<T>(deadline: Duration, what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    // The monotonic clock, not tokio's: a test may have paused that one.
    let started = Instant::now();
    loop {
        if let Some(value) = look().await {
            return value;
        }
        assert!(started.elapsed() < deadline, "within {deadline:?} this did not come true: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// [`eventually`] for code without a runtime.
pub fn eventually_blocking(deadline: Duration, what: &str, mut condition: impl FnMut() -> bool) {
    let started = Instant::now();
    while !condition() {
        assert!(started.elapsed() < deadline, "within {deadline:?} this did not come true: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}
