//! How much memory a consumer takes with far more waiting for it than it may have in hand: counted by the allocator, outside of the crate.
//!
//! One test, in a process of its own. librdkafka's memory is not counted here: its queue has a bound of its own.

#![cfg(feature = "kafka")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "support/mod.rs"]
mod support;

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use hapax::{Consumer, Message, Order};
use tokio_util::sync::CancellationToken;

use crate::support::{MockKafka, PATIENCE, Record, eventually};

/// Counts the bytes that live, and the most that ever did since it was reset.
struct Counting;

static LIVE: AtomicUsize = AtomicUsize::new(0);
static MOST: AtomicUsize = AtomicUsize::new(0);

impl Counting {
    fn more(bytes: usize) {
        let live = LIVE.fetch_add(bytes, Ordering::Relaxed) + bytes;
        MOST.fetch_max(live, Ordering::Relaxed);
    }
}

#[allow(unsafe_code)]
// SAFETY: everything is the system allocator's; this only counts.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        Self::more(layout.size());
        // SAFETY: the caller keeps the contract of `alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        LIVE.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller keeps the contract of `dealloc`, and `at` is the system allocator's.
        unsafe { System.dealloc(at, layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // Both may live for a moment.
        Self::more(size);
        LIVE.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller keeps the contract of `realloc`, and `at` is the system allocator's.
        unsafe { System.realloc(at, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const PARTITIONS: i32 = 8;
/// A mock cluster keeps 5 MB of each partition.
const EACH: i32 = 45;
const LARGE: usize = 100_000;
const BOUND: usize = 4 << 20;
/// Buffers hold up to as much again in reserve, and 4 MiB of them are kept empty; the rest of the process takes little.
const MOST_EVER: usize = 2 * BOUND + (4 << 20) + 3 * LARGE + (2 << 20);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backlog_takes_no_more_memory_than_the_bound_says() {
    let kafka = MockKafka::start(&[("orders", PARTITIONS)]);
    for partition in 0..PARTITIONS {
        let records: Vec<Record> =
            (0..EACH).map(|_| Record::to("orders").partition(partition).payload(vec![7; LARGE])).collect();
        kafka.produce(&records).await;
    }
    let all = usize::try_from(PARTITIONS * EACH).unwrap();
    let handled = Arc::new(AtomicUsize::new(0));
    let before = LIVE.load(Ordering::Relaxed);
    MOST.store(before, Ordering::Relaxed);
    let shutdown = CancellationToken::new();
    let consumer =
        Consumer::new(kafka.consumer_config("g")).topics(["orders"]).order(Order::Unordered).concurrency(1_000);
    let run = tokio::spawn({
        let handled = Arc::clone(&handled);
        let slow = hapax::plain(move |message: Message| {
            let handled = Arc::clone(&handled);
            async move {
                tokio::time::sleep(Duration::from_millis(100)).await;
                assert_eq!(message.payload().map(<[u8]>::len), Some(LARGE));
                handled.fetch_add(1, Ordering::SeqCst);
                Ok::<_, String>(())
            }
        });
        consumer.max_bytes(BOUND).run(slow, shutdown.clone())
    });
    eventually(PATIENCE, "the backlog is handled", async || handled.load(Ordering::SeqCst) == all).await;
    shutdown.cancel();
    run.await.unwrap().unwrap();
    let most = MOST.load(Ordering::Relaxed) - before;
    assert!(most > BOUND / 2, "the bound was in use: {most}");
    assert!(most <= MOST_EVER, "{most} bytes lived at one time, of {} that waited", all * LARGE);
}
