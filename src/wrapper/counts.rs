//! What was counted.

use std::sync::atomic::{AtomicU64, Ordering};

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident),* $(,)?) => {
        /// What an [`Once`](crate::Once) has counted since it was built.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        #[non_exhaustive]
        pub struct Counts {
            $($(#[$doc])* pub $name: u64,)*
        }

        #[derive(Debug, Default)]
        pub(crate) struct Counters {
            $(pub(crate) $name: Counter,)*
        }

        impl Counters {
            pub(crate) fn snapshot(&self) -> Counts {
                Counts { $($name: self.$name.0.load(Ordering::Relaxed),)* }
            }
        }
    };
}

counters! {
    /// Handlers that ended well.
    handled,
    /// Messages that had been handled before.
    duplicates,
    /// Messages whose identity had been used by another one.
    conflicts,
    /// Attempts that failed: error, panic, time-out, or dropped while the handler ran.
    failed,
    /// Handlers that panicked.
    panicked,
    /// Handlers that took longer than they may.
    timed_out,
    /// Messages given up.
    dead,
    /// Claims taken over from an owner whose lease had run out: their effect may have happened before.
    took_over,
    /// Leases that were lost while the handler ran.
    lost,
    /// Successes that were remembered although the claim had been taken over: the effect may have happened twice.
    late,
    /// Ends that the store refused, the claim being somebody else's.
    refused,
    /// Messages left to another process that had taken their partition: nothing of them was written here. In transactions only (level L2).
    fenced,
    /// Messages handled without being remembered, for want of an identity.
    without_identity,
    /// Messages refused for want of an identity.
    rejected,
    /// Times that a message held by another owner was waited for.
    waited,
    /// Calls to the store that failed and were made again, or given up.
    store_failures,
    /// Results that were larger than those that are kept.
    results_dropped,
}

#[derive(Debug, Default)]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    pub(crate) fn add(&self, n: u64) {
        if n > 0 {
            self.0.fetch_add(n, Ordering::Relaxed);
        }
    }

    pub(crate) fn one(&self) {
        self.add(1);
    }
}
