//! What was taken in.

use std::sync::atomic::{AtomicU64, Ordering};

use super::Brought;

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident),* $(,)?) => {
        /// What this process has taken in since its inbox was built. Counted after the commit.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        #[non_exhaustive]
        pub struct AcceptCounts {
            $($(#[$doc])* pub $name: u64,)*
        }

        #[derive(Debug, Default)]
        pub(crate) struct Counters {
            $($name: AtomicU64,)*
        }

        impl Counters {
            pub(crate) fn snapshot(&self) -> AcceptCounts {
                AcceptCounts { $($name: self.$name.load(Ordering::Relaxed),)* }
            }
        }
    };
}

counters! {
    /// Messages that are in the table now.
    accepted,
    /// Messages whose identity was there, saying the same.
    duplicates,
    /// Messages whose identity was there, saying something else.
    conflicts,
    /// Messages that were delivered again after they had been accepted: a window knew them.
    redelivered,
    /// Messages refused for want of an identity.
    rejected,
    /// Messages refused for their size, or their topic's name, or by the database's own checks.
    refused,
}

impl Counters {
    pub(crate) fn note(&self, brought: &Brought) {
        let counter = match brought {
            Brought::New(_) => &self.accepted,
            Brought::Duplicate(_) => &self.duplicates,
            Brought::Conflict { .. } => &self.conflicts,
            Brought::Refused(super::Refusal::Identity(_)) => &self.rejected,
            Brought::Refused(_) => &self.refused,
        };
        counter.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn redelivered(&self) {
        self.redelivered.fetch_add(1, Ordering::Relaxed);
    }
}
