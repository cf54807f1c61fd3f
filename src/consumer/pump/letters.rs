//! Messages that are given up, on their way to whoever keeps them.

use std::future::Future;
use std::pin::Pin;

use crate::consumer::handling::Failure;
use crate::consumer::message::Message;
use crate::engine::Cause;
use crate::identity::Key;
use crate::wrapper::drive::Fault;

/// A message that is given up.
#[derive(Debug)]
pub(in crate::consumer) struct Letter {
    pub(in crate::consumer) message: Message,
    pub(in crate::consumer) cause: Cause,
    /// Its last failure, if that happened here.
    pub(in crate::consumer) fault: Option<Fault>,
    /// Attempts begun, over all processes, as far as is known here.
    pub(in crate::consumer) attempts: Option<u32>,
    /// When the first attempt that failed here began, in milliseconds since 1970 by this machine's clock.
    pub(in crate::consumer) first_at: Option<i64>,
    /// When the last one did.
    pub(in crate::consumer) last_at: Option<i64>,
    /// What the store knows it by.
    pub(in crate::consumer) key: Option<Key>,
}

/// Why a letter was not acknowledged.
#[derive(Debug)]
pub(in crate::consumer) enum Undelivered {
    /// It may be later.
    Later(Failure),
    /// It never will be: the consumer ends.
    Never(Failure),
}

/// Letters on their way. Answers for each, in the same order.
pub(in crate::consumer) type Sending = Pin<Box<dyn Future<Output = Vec<Result<(), Undelivered>>> + Send>>;

/// Whoever keeps what is given up.
pub(in crate::consumer) trait Letters: Send + Sync {
    /// Sends letters, and waits until each is acknowledged, or was not in time.
    fn send(&self, letters: Vec<Letter>) -> Sending;
}
