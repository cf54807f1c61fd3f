//! How an inbox stands, for whoever watches over it.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::inbox::Inbox;
use crate::inbox::accept::AcceptCounts;
use crate::inbox::core::Core;
use crate::inbox::queue::FAR;
use crate::observe::{Accepts, InboxSnapshot, Observed, Observer};
use crate::store::StoreError;
use crate::store::sql::Fault;
use crate::transaction::TransactionalDatabase;
use crate::transaction::sealed::Sealed;

const OPERATION: &str = "look how the inbox stands";
/// No more often than this.
const SHORTEST: Duration = Duration::from_millis(100);
/// The wait is at least so many times what a look took: a large backlog is looked at seldom.
const SHARE: u32 = 20;

impl<DB: TransactionalDatabase> Inbox<DB> {
    /// How the inbox stands now: its backlog by state, the age of the oldest message in it, and whether it is paused.
    ///
    /// Reads the open rows, which are as many as the backlog and the dead together; what has succeeded costs nothing, unlike with [`census`](Self::census). No lock is taken.
    ///
    /// # Errors
    ///
    /// [`StoreError`]; retryable where the database could not be reached.
    ///
    /// # Cancel safety
    ///
    /// Safe: nothing is changed.
    pub async fn snapshot(&self) -> Result<InboxSnapshot, StoreError> {
        self.core.standing().await
    }

    /// Tells `observer` how the inbox stands, every so often, until `shutdown` is cancelled: [`Observed::Inbox`]; and what this process's clones of it have
    /// accepted since it was built, told once by each call (give one observer to one call): [`Observed::Accepted`]. With `hapax::observe::Metrics` as the observer (feature `metrics`), those are the metrics
    /// `hapax_inbox_…`; what a worker does is told by the worker itself: give the same observer to [`Worker::observer`](super::super::Worker::observer), in an `Arc`.
    ///
    /// One process that watches is enough for the state; what was accepted is told where it was accepted. The wait is `every`, and at least 20 times what a look took.
    /// Where the database cannot be asked nothing is told until it answers.
    ///
    /// ```no_run
    /// # async fn example(inbox: hapax::Inbox<sqlx::Sqlite>) {
    /// use std::sync::Arc;
    /// use std::time::Duration;
    ///
    /// use hapax::observe::{Observed, Observer};
    /// use tokio_util::sync::CancellationToken;
    ///
    /// struct Alarm;
    ///
    /// impl Observer for Alarm {
    ///     fn on(&self, event: &Observed<'_>) {
    ///         if let Observed::Inbox(inbox) = event
    ///             && inbox.oldest > Some(Duration::from_secs(300))
    ///         {
    ///             eprintln!("{inbox}");
    ///         }
    ///     }
    /// }
    ///
    /// tokio::spawn(inbox.watch(Duration::from_secs(5), Alarm, CancellationToken::new()));
    /// # }
    /// ```
    ///
    /// # Cancel safety
    ///
    /// Safe: nothing is changed.
    pub fn watch<O: Observer>(
        &self,
        every: Duration,
        observer: O,
        shutdown: CancellationToken,
    ) -> impl Future<Output = ()> + Send + use<DB, O> {
        let core = Arc::clone(&self.core);
        async move { core.watch(every.max(SHORTEST), &observer, &shutdown).await }
    }
}

impl<DB: Sealed> Core<DB> {
    async fn watch(&self, every: Duration, observer: &impl Observer, shutdown: &CancellationToken) {
        observer.on(&Observed::Started { group: self.scope.group(), handler: self.scope.handler() });
        let mut told = AcceptCounts::default();
        let mut away = false;
        loop {
            let counts = self.taken_in.snapshot();
            let since = accepts(&counts, &told);
            if since.total() > 0 {
                observer.on(&Observed::Accepted(since));
            }
            told = counts;
            if shutdown.is_cancelled() {
                return;
            }
            let asked = Instant::now();
            tokio::select! {
                biased;
                () = shutdown.cancelled() => continue,
                standing = self.standing() => match standing {
                    Ok(snapshot) => {
                        observer.on(&Observed::Inbox(&snapshot));
                        away = false;
                    }
                    Err(error) => {
                        if !std::mem::replace(&mut away, true) {
                            tracing::warn!(%error, "nobody knows how the inbox stands until the database answers");
                        }
                    }
                },
            }
            let wait = every.max(asked.elapsed().saturating_mul(SHARE));
            tokio::select! {
                () = shutdown.cancelled() => {}
                () = tokio::time::sleep(wait) => {}
            }
        }
    }

    async fn standing(&self) -> Result<InboxSnapshot, StoreError> {
        let (open, handlers, messages, inbox) =
            (&self.tables.open, &self.tables.handlers, &self.tables.messages, self.number);
        let clock = self.clock();
        let count = |condition: &str| format!("COUNT(CASE WHEN {condition} THEN 1 END)");
        // What waits for its first time is not late.
        let late = format!("lot <> 2 AND run = 0 AND (lot = 0 OR attempts > 0 OR turn >= {FAR} OR turn <= {clock})");
        let text = format!(
            "SELECT COUNT(*), {}, {}, {}, (SELECT paused FROM {handlers} WHERE inbox = {inbox}), MIN(CASE WHEN {late} THEN id END) \
             FROM {open} WHERE inbox = {inbox}",
            count("lot = 2"),
            count("lot <> 2 AND run <> 0"),
            count("lot <> 2 AND run = 0 AND attempts > 0"),
        );
        let mut snapshot = InboxSnapshot {
            group: self.scope.group().to_owned(),
            handler: self.scope.handler().to_owned(),
            ..InboxSnapshot::default()
        };
        let refuse = |fault: Fault| self.refuse(OPERATION, &fault);
        let mut first = None;
        for mut row in self.read(OPERATION, text.into()).await? {
            let mut number = || row.int().map(i64::cast_unsigned).map_err(refuse);
            let all = number()?;
            (snapshot.dead, snapshot.processing, snapshot.failed) = (number()?, number()?, number()?);
            snapshot.received = all.saturating_sub(snapshot.dead + snapshot.processing + snapshot.failed);
            snapshot.paused = number()? != 0;
            first = row.maybe_int().map_err(refuse)?;
        }
        if let Some(first) = first {
            let text = format!("SELECT {clock} - accepted FROM {messages} WHERE id = {first}");
            for mut row in self.read(OPERATION, text.into()).await? {
                let age = row.int().map_err(refuse)?;
                snapshot.oldest = Some(Duration::from_millis(age.max(0).cast_unsigned()));
            }
        }
        Ok(snapshot)
    }
}

fn accepts(now: &AcceptCounts, before: &AcceptCounts) -> Accepts {
    Accepts {
        new: now.accepted - before.accepted,
        duplicates: now.duplicates - before.duplicates,
        conflicts: now.conflicts - before.conflicts,
        redelivered: now.redelivered - before.redelivered,
        rejected: now.rejected - before.rejected,
        refused: now.refused - before.refused,
    }
}
