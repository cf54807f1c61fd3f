//! The layers must be seen in speed only: the same suite over each, and over all of them.

use std::sync::Arc;

use hapax::store::Batched;

use crate::conforms;
use crate::stores::memory;

/// The cache reckons when its own successes were recorded: off by a store call, on a busy machine.
#[cfg(feature = "cache")]
const RECKONED: std::time::Duration = std::time::Duration::from_secs(30);

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn batched() {
    conforms("batched over memory", memory(|store| Arc::new(Batched::new(store)))).await;
}

#[cfg(feature = "cache")]
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn cached() {
    let suite = memory(|store| Arc::new(hapax::store::Cached::new(store))).told_times_within(RECKONED);
    conforms("cached over memory", suite).await;
}

#[cfg(feature = "bloom")]
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn prechecked() {
    conforms("prechecked over memory", memory(|store| Arc::new(hapax::store::Prechecked::new(store).unwrap()))).await;
}

#[cfg(all(feature = "cache", feature = "bloom"))]
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn all_of_them() {
    use hapax::store::{Cached, Prechecked};
    let all = |store| Arc::new(Cached::new(Prechecked::new(Batched::new(store)).unwrap())) as Arc<_>;
    let suite = memory(all).told_times_within(RECKONED);
    conforms("cached over prechecked over batched over memory", suite).await;
}
