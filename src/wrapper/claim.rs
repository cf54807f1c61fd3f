//! What a handler is given: the claim it runs under.

use std::fmt;
use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering, fence};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::identity::Key;
use crate::record::{Fence, Token};

/// The right to handle one message, as its handler sees it. Cheap to clone.
///
/// The lease behind it is renewed while the handler runs. When it is lost all the same (the process was paused for long, the
/// store was out of reach), somebody else may be handling the message: the handler is told by
/// [`cancellation_token`](Self::cancellation_token), and had better stop before its next effect.
#[derive(Clone)]
pub struct Claim {
    key: Key,
    fence: Fence,
    attempt: u32,
    slot: u32,
    took_over: bool,
    hold: Option<Arc<Hold>>,
}

impl Claim {
    pub(crate) fn held(hold: &Arc<Hold>, slot: u32, attempt: u32, took_over: bool) -> Self {
        let (key, fence) = match hold.slots.get(slot as usize) {
            Some(own) => (own.key, own.token.fence),
            None => (Key::from_bytes([0; 16]), Fence::new(0)),
        };
        Self { key, fence, attempt, slot, took_over, hold: Some(Arc::clone(hold)) }
    }

    /// What of it is shown in the log, without what holds it.
    #[cfg(feature = "kafka")]
    pub(crate) const fn shown(&self) -> Self {
        let Self { key, fence, attempt, slot, took_over, .. } = *self;
        Self { key, fence, attempt, slot, took_over, hold: None }
    }

    /// A claim that was settled before its handler runs.
    pub(super) fn spent(mut self) -> Self {
        self.hold = None;
        self
    }

    /// A claim on nothing: for modes and messages without a record.
    pub(crate) const fn bare(key: Key, attempt: u32) -> Self {
        Self { key, fence: Fence::new(0), attempt, slot: 0, took_over: false, hold: None }
    }

    /// Which attempt this is, from 1. Attempts are counted by the store and survive crashes; without a
    /// record (at least once, or no identity) they are counted within this call only.
    #[must_use]
    pub const fn attempt(&self) -> u32 {
        self.attempt
    }

    /// A number that grows with every claim of this message. A resource that refuses lower ones than it has seen is safe
    /// from a handler that comes back late. 0 without a record.
    #[must_use]
    pub const fn fence(&self) -> Fence {
        self.fence
    }

    /// A text that is the same for every attempt at this message, in every process: hand it to a resource as its
    /// idempotency key, and no effect is repeated there (level L3). 32 hexadecimal digits; shows nothing of the identity.
    ///
    /// A message without identity gets one by its position; one without even that, a new one each time.
    #[must_use]
    pub fn idempotency_key(&self) -> String {
        self.key.to_string()
    }

    /// Whether another owner's claim, whose lease had run out, was taken over: its effect may have happened.
    ///
    /// `false` proves nothing. A consumer gives a claim that it took over back and claims again, to run a message alone that may be what ends
    /// processes. This process remembers meanwhile that it took over; the record does not, so that another one, which claims after this one died in
    /// between, is told `false`. An [`attempt`](Self::attempt) above 1 always says that a handler was begun before.
    #[must_use]
    pub const fn took_over(&self) -> bool {
        self.took_over
    }

    /// Whether the claim can no longer be relied on: it was lost, or its lease may have run out by this process's clock
    /// (after a pause, before it is renewed). Never, without a record.
    #[must_use]
    pub fn is_lost(&self) -> bool {
        self.remaining().is_zero()
    }

    /// For how long the claim is surely held from now on, by this process's monotonic clock. Renewing prolongs it.
    /// [`Duration::MAX`] without a record.
    #[must_use]
    pub fn remaining(&self) -> Duration {
        let Some((hold, slot)) = self.place() else { return Duration::MAX };
        if slot.is_lost() { Duration::ZERO } else { hold.remaining() }
    }

    /// Cancelled when the lease is lost. Never, without a record.
    #[must_use]
    pub fn cancellation_token(&self) -> CancellationToken {
        let Some((_, slot)) = self.place() else { return CancellationToken::new() };
        let token = slot.lost.get_or_init(CancellationToken::new).clone();
        // Either this sees the loss, or whoever marks the loss sees the token.
        fence(Ordering::SeqCst);
        if slot.is_lost() {
            token.cancel();
        }
        token
    }

    /// Waits until the lease is lost: for ever, if it is not. Cancel safe.
    pub async fn lost(&self) {
        self.cancellation_token().cancelled().await;
    }

    fn place(&self) -> Option<(&Hold, &Slot)> {
        let hold = self.hold.as_deref()?;
        Some((hold, hold.slots.get(self.slot as usize)?))
    }
}

impl fmt::Debug for Claim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Claim")
            .field("key", &self.key)
            .field("attempt", &self.attempt)
            .field("fence", &self.fence.get())
            .field("took_over", &self.took_over)
            .finish_non_exhaustive()
    }
}

/// The handler runs, or has not begun.
const HELD: u8 = 0;
/// The handler is over and the store has not heard yet: still renewed, nobody left to tell.
const ENDING: u8 = 1;
/// Settled or abandoned: not renewed.
const OVER: u8 = 2;
/// The store says that it is somebody else's.
const LOST: u8 = 3;
/// The lease ran out while the store could not be reached: perhaps lost.
const DOUBT: u8 = 4;

/// One claim of a [`Hold`].
pub(crate) struct Slot {
    pub(super) key: Key,
    pub(super) token: Token,
    state: AtomicU8,
    lost: OnceLock<CancellationToken>,
}

impl Slot {
    pub(crate) const fn new(key: Key, token: Token) -> Self {
        Self { key, token, state: AtomicU8::new(HELD), lost: OnceLock::new() }
    }

    fn is_lost(&self) -> bool {
        matches!(self.state.load(Ordering::SeqCst), LOST | DOUBT)
    }

    /// Whether it is to be renewed.
    pub(super) fn is_live(&self) -> bool {
        matches!(self.state.load(Ordering::Relaxed), HELD | ENDING | DOUBT)
    }

    /// Whether the store said that it is somebody else's.
    pub(super) fn is_taken(&self) -> bool {
        self.state.load(Ordering::SeqCst) == LOST
    }

    /// Notes that the handler is over.
    pub(super) fn ending(&self) {
        let _ = self.state.compare_exchange(HELD, ENDING, Ordering::SeqCst, Ordering::Relaxed);
    }

    /// Notes a loss; `true` if a handler ran that did not know.
    pub(crate) fn lose(&self, surely: bool) -> bool {
        let to = if surely { LOST } else { DOUBT };
        let told = self.state.compare_exchange(HELD, to, Ordering::SeqCst, Ordering::Relaxed).is_ok();
        if !told && surely {
            // Told already; but now it is sure.
            let _ = self.state.compare_exchange(DOUBT, LOST, Ordering::SeqCst, Ordering::Relaxed);
        }
        if told {
            fence(Ordering::SeqCst);
            if let Some(token) = self.lost.get() {
                token.cancel();
            }
        }
        told
    }
}

/// The claims that one call to the store granted. They are renewed together.
pub(crate) struct Hold {
    pub(crate) slots: Vec<Slot>,
    /// Slots that are not over.
    live: AtomicU32,
    born: Instant,
    /// Until when the lease surely lasts, in nanoseconds from `born`.
    until: AtomicU64,
}

impl Hold {
    /// Claims granted by a call that was sent at `sent`.
    pub(crate) fn new(slots: Vec<Slot>, sent: Instant, lease: Duration) -> Arc<Self> {
        let live = AtomicU32::new(u32::try_from(slots.len()).unwrap_or(u32::MAX));
        let hold = Self { slots, live, born: sent, until: AtomicU64::new(0) };
        hold.renewed(sent, lease);
        Arc::new(hold)
    }

    /// Notes that a call sent at `sent` prolonged the lease.
    pub(crate) fn renewed(&self, sent: Instant, lease: Duration) {
        let until = sent.saturating_duration_since(self.born).saturating_add(lease);
        self.until.fetch_max(u64::try_from(until.as_nanos()).unwrap_or(u64::MAX), Ordering::SeqCst);
    }

    /// For how long the lease surely lasts.
    pub(crate) fn remaining(&self) -> Duration {
        Duration::from_nanos(self.until.load(Ordering::SeqCst)).saturating_sub(self.born.elapsed())
    }

    /// Ends the renewal of a slot.
    pub(crate) fn over(&self, slot: u32) {
        if let Some(slot) = self.slots.get(slot as usize) {
            slot.state.store(OVER, Ordering::SeqCst);
            self.live.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// Whether any slot is to be renewed.
    pub(super) fn is_live(&self) -> bool {
        self.live.load(Ordering::Relaxed) > 0
    }
}
