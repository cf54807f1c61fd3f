//! The operator's hand: looking at messages, and moving them where the rules let an operator move them.
//!
//! - [`read`] and [`show`] look: no transaction, no lock. [`one`] and [`many`] change: each call is asked for [`By`] somebody, and leaves an [`act`] in the
//!   transaction that does what it says; under a request's id it is done once. [`filter`] says which messages are meant.
//! - [`lock`] reads a message and its open row as they stand; the pure rules ([`rules`](super::rules)) say what may be done to it. What a run holds is never touched.
//! - [`sql`] is what all three databases understand alike.

mod act;
mod by;
mod filter;
mod lock;
mod many;
mod one;
mod outcome;
mod read;
mod show;
mod sql;
mod watch;

pub use act::{Act, What};
pub use by::By;
pub use filter::Which;
pub use outcome::{Census, Erased, Removed, Replayed, Requeued, Skipped, Switched};
pub use read::{Acts, Cursor, FailedAttempt, Holder, List, Listed, Page, States};
pub use show::{Attempt, AttemptEnd, Edit, Shown};

pub(super) use lock::Found;
pub(crate) use sql::Sql;

use super::Inbox;
use super::message::MessageId;
use crate::identity::{IdentityError, Key};
use crate::message::MessageView;
use crate::store::StoreError;
use crate::transaction::TransactionalDatabase;

/// # The operator's hand
///
/// Calls that change something say [`By`] whom and why, are written down with it, and may be asked again: what is so already is not done again, and
/// the answer says so. With a [request's id](By::request) a repeated call answers what the first one did. What a worker is processing is left alone, and
/// the answer says until when.
impl<DB: TransactionalDatabase> Inbox<DB> {
    /// Lists messages in these states, by ascending id: in the order in which they were accepted, along each partition.
    ///
    /// A page goes on behind the last id of the one before, so that a message which stays in these states while pages are read is listed exactly once,
    /// whatever comes and goes meanwhile.
    ///
    /// ```no_run
    /// # async fn example(inbox: hapax::Inbox<sqlx::Sqlite>) -> Result<(), hapax::store::StoreError> {
    /// use hapax::inbox::{By, State};
    ///
    /// let mut page = inbox.list(State::Dead).topic("orders").limit(50).await?;
    /// loop {
    ///     for dead in &page {
    ///         println!("{} {}: {:?}", dead.id, dead.topic, dead.last_failure);
    ///         inbox.requeue(dead.id, By::new("ada", "fixed in 1.4.2")).await?;
    ///     }
    ///     let Some(next) = page.next() else { break };
    ///     page = inbox.list(State::Dead).topic("orders").limit(50).after(next).await?;
    /// }
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Cost
    ///
    /// Without [`State::Succeeded`](super::State::Succeeded) a page reads the open rows: the backlog, or for dead ones alone, these. With it, the messages are read from the
    /// cursor on, in steps, until the page is full. No lock is taken.
    ///
    /// # Errors
    ///
    /// [`StoreError`]; retryable where the database could not be reached.
    ///
    /// # Cancel safety
    ///
    /// Safe: nothing is changed.
    pub fn list(&self, states: impl Into<States>) -> List<'_, DB> {
        List::new(self, states.into())
    }

    /// Shows a message: how it stands, headers, payload, every attempt with its worker, times and error, what operators did; `None` if this
    /// inbox has no such message.
    ///
    /// It is read by several statements: a message that is moving may be seen in between. Its runs are found by reading all that are kept, which takes
    /// a while where there are millions.
    ///
    /// ```no_run
    /// # async fn example(inbox: hapax::Inbox<sqlx::Sqlite>, id: hapax::inbox::MessageId) -> Result<(), hapax::store::StoreError> {
    /// if let Some(message) = inbox.show(id).await? {
    ///     println!("{} {}: {}", message.id, message.state, message.text());
    ///     for attempt in &message.history {
    ///         println!("  {}.{} by {}: {:?}", attempt.generation, attempt.attempt, attempt.owner, attempt.end);
    ///     }
    /// }
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// [`StoreError`]; retryable where the database could not be reached.
    ///
    /// # Cancel safety
    ///
    /// Safe: nothing is changed.
    pub async fn show(&self, id: MessageId) -> Result<Option<Shown>, StoreError> {
        self.core.show(id).await
    }

    /// What the tables know a message by, to [list](List::identity) it: `message` needs no more than its topic and what makes its identity.
    ///
    /// ```no_run
    /// # async fn example(inbox: hapax::Inbox<sqlx::Sqlite>) -> Result<(), Box<dyn std::error::Error>> {
    /// use hapax::inbox::State;
    /// use hapax::message::Parts;
    ///
    /// // For an inbox that identifies by header("message-id").
    /// let wanted = Parts::new("orders").header("message-id", "order-4711");
    /// let found = inbox.list(State::ALL).identity(inbox.key_of(&wanted)?).await?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// [`IdentityError`] where the message has none; not retryable.
    pub fn key_of(&self, message: &dyn MessageView) -> Result<Key, IdentityError> {
        let identity = self.core.settings.identify.identity(message)?;
        Ok(self.core.scope.key(&identity, message.topic()))
    }

    /// Counts the messages in each state, all at one moment.
    ///
    /// Reads the open rows and counts all messages: a second or two where there are tens of millions. No lock is taken.
    ///
    /// # Errors
    ///
    /// [`StoreError`]; retryable where the database could not be reached.
    ///
    /// # Cancel safety
    ///
    /// Safe: nothing is changed.
    pub async fn census(&self) -> Result<Census, StoreError> {
        self.core.census().await
    }

    /// Lists what operators did, the latest first.
    ///
    /// ```no_run
    /// # async fn example(inbox: hapax::Inbox<sqlx::Sqlite>) -> Result<(), hapax::store::StoreError> {
    /// for act in inbox.acts().limit(20).await? {
    ///     println!("{} {} by {}: {} ({})", act.time, act.what.name(), act.who, act.why, act.detail);
    /// }
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// [`StoreError`]; retryable where the database could not be reached.
    ///
    /// # Cancel safety
    ///
    /// Safe: nothing is changed.
    pub fn acts(&self) -> Acts<'_, DB> {
        Acts::new(self)
    }

    /// Brings a failed or dead message back: a new generation, with no attempts made, due at once. Its history stays.
    ///
    /// In the order of keys it goes before all later messages of its key that have not begun.
    ///
    /// # Errors
    ///
    /// [`StoreError`]; retryable where the database could not be reached. A request's id that was used for something else is refused.
    ///
    /// # Cancel safety
    ///
    /// It is done or not. Asked again, it is not done twice; under a request's id the answer is that of the first call too.
    pub async fn requeue(&self, id: MessageId, by: By) -> Result<Requeued, StoreError> {
        self.core.requeue(id, &by).await
    }

    /// Gives a received or failed message up: it is dead, with [`Class::Skipped`](super::Class::Skipped) as its last failure, and nothing waits for it any more. Until
    /// retention takes it away it can be [requeued](Self::requeue).
    ///
    /// # Errors
    ///
    /// As for [`requeue`](Self::requeue).
    ///
    /// # Cancel safety
    ///
    /// As for [`requeue`](Self::requeue).
    pub async fn skip(&self, id: MessageId, by: By) -> Result<Skipped, StoreError> {
        self.core.skip(id, &by).await
    }

    /// Puts another payload in the place of a message's, and brings it back as [`requeue`](Self::requeue) does. The payload that came is kept beside
    /// it. Identity, fingerprint, key and headers stay those of the message that came, so that a copy of it is still a duplicate.
    ///
    /// A message that is received already keeps its turn, in a new generation; one that is received with this very payload is
    /// [`Requeued::Waiting`].
    ///
    /// ```no_run
    /// # async fn example(inbox: hapax::Inbox<sqlx::Sqlite>, id: hapax::inbox::MessageId) -> Result<(), hapax::store::StoreError> {
    /// use hapax::inbox::{By, Requeued};
    ///
    /// let by = By::new("ada", "the amount was in cents").request("ticket-4711");
    /// match inbox.edit_and_requeue(id, r#"{"amount": 12}"#, by).await? {
    ///     Requeued::Requeued { generation } => println!("to be handled once more, as generation {generation}"),
    ///     Requeued::Processing { until } => println!("somebody is at it, until {until}"),
    ///     other => println!("left alone: {other:?}"),
    /// }
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// As for [`requeue`](Self::requeue).
    ///
    /// # Cancel safety
    ///
    /// As for [`requeue`](Self::requeue).
    pub async fn edit_and_requeue(
        &self,
        id: MessageId,
        payload: impl AsRef<[u8]>,
        by: By,
    ) -> Result<Requeued, StoreError> {
        self.core.edit(id, payload.as_ref(), &by).await
    }

    /// Pauses the handler, on all machines and for good: no worker takes anything until it is [resumed](Self::resume). What was taken is finished. Messages are accepted
    /// as ever.
    ///
    /// # Errors
    ///
    /// As for [`requeue`](Self::requeue).
    ///
    /// # Cancel safety
    ///
    /// As for [`requeue`](Self::requeue).
    pub async fn pause(&self, by: By) -> Result<Switched, StoreError> {
        self.core.switch(true, &by).await
    }

    /// Resumes the handler.
    ///
    /// # Errors
    ///
    /// As for [`requeue`](Self::requeue).
    ///
    /// # Cancel safety
    ///
    /// As for [`requeue`](Self::requeue).
    pub async fn resume(&self, by: By) -> Result<Switched, StoreError> {
        self.core.switch(false, &by).await
    }

    /// Has messages handled once more that are succeeded or dead: each in a new generation, due at once. What is still to be handled, or being handled,
    /// is left alone; so is what was erased.
    ///
    /// **Effects happen again**: that is what it is for. In the order of keys a replayed message goes before those of its key that are waiting,
    /// and never beside one.
    ///
    /// It goes through the inbox in small steps, each a transaction of at most a few hundred messages, and looks for them without a lock: workers go on
    /// meanwhile. A message that succeeds again while the call runs is not replayed twice by it.
    ///
    /// ```no_run
    /// # async fn example(inbox: hapax::Inbox<sqlx::Sqlite>) -> Result<(), hapax::store::StoreError> {
    /// use hapax::inbox::{By, Which};
    ///
    /// let by = By::new("ada", "the ledger lost an hour").request("incident-12");
    /// let replayed = inbox.replay(Which::topic("orders").offsets(3, 1000..2000), by).await?;
    /// println!("{} again, {} were still open", replayed.replayed, replayed.open);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// As for [`requeue`](Self::requeue). What was done until then stays done.
    ///
    /// # Cancel safety
    ///
    /// What was done stays done. Asked again under the same [request's id](By::request) it goes on where it was, and the answer counts all of it;
    /// **without one, a second call replays again** what has succeeded by then.
    pub async fn replay(&self, which: Which, by: By) -> Result<Replayed, StoreError> {
        self.core.replay(&which, &by).await
    }

    /// Erases what messages say: Kafka's key, headers and payload, edited payloads, and the error texts of attempts. Identity, fingerprint, position and times stay, so
    /// that a copy is still a duplicate, and the history still tells when what was done.
    ///
    /// What was still to be handled cannot be any more: it is dead, with [`Class::Skipped`](super::Class::Skipped) as its last failure. What is being processed is **not** erased: the
    /// answer counts it, and says when to ask again.
    ///
    /// Digests of the identity, of the payload (the fingerprint), of edited payloads (in the act) and of the key (for the order of keys) stay. The first two are keyed by the
    /// scope's [secret](crate::identity::Scope::secret) if there is one; without one, whoever can guess a value can confirm it. What operators wrote as names and
    /// reasons stays too. Backups, replicas, the database's own logs and the topic itself are not touched.
    ///
    /// A copy that comes after the erasure is a duplicate, and nothing of it is kept, for as long as the identity is: until the message is past retention or purged.
    ///
    /// It goes through the inbox in small steps, as [`replay`](Self::replay) does.
    ///
    /// ```no_run
    /// # async fn example(inbox: hapax::Inbox<sqlx::Sqlite>) -> Result<(), hapax::store::StoreError> {
    /// use hapax::inbox::{By, Which};
    ///
    /// let erased = inbox.erase(Which::keys(["customer-7"]), By::new("ada", "request 88 of the data office")).await?;
    /// assert_eq!(erased.processing, 0, "ask again after {:?}", erased.until);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// As for [`requeue`](Self::requeue). What was done until then stays done.
    ///
    /// # Cancel safety
    ///
    /// What was erased stays so. Asked again, the rest is erased; under the same [request's id](By::request) the answer counts all of it.
    pub async fn erase(&self, which: Which, by: By) -> Result<Erased, StoreError> {
        self.core.erase(&which, &by).await
    }

    /// Forgets messages that are succeeded or dead before their time: rows, history and **identity**: a copy that is produced again is accepted and
    /// handled again. Redelivery is still stopped, by the window of the partition. What is open is left alone.
    ///
    /// It goes through the inbox in small steps, as [`replay`](Self::replay) does. [`purge`](Self::purge) is what takes away what is past retention.
    ///
    /// # Errors
    ///
    /// As for [`requeue`](Self::requeue). What was done until then stays done.
    ///
    /// # Cancel safety
    ///
    /// What was forgotten stays so. Asked again, the rest is; under the same [request's id](By::request) the answer counts all of it.
    pub async fn purge_these(&self, which: Which, by: By) -> Result<Removed, StoreError> {
        self.core.purge_these(&which, &by).await
    }
}
