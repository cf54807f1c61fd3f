//! The inbox as the consumer drives it: messages go into its table, in the transactions that move their windows.

use std::fmt;
use std::sync::Arc;

use super::message::Message;
use super::transactional::{Came, InTransaction, Nobodys, Shape};
use crate::engine::Ending;
use crate::inbox::core::Core;
use crate::inbox::{BringError, Brought, Inbox, Refusal};
use crate::store::StoreError;
use crate::transaction::TransactionalDatabase;
use crate::wrapper::drive::Fault;
use crate::wrapper::{Described, ErrorClass};

impl<DB: TransactionalDatabase> Inbox<DB> {
    /// What a consumer runs to store first and process later: each message goes into the inbox's table once, in the transaction that moves the
    /// window of its partition. Level L2 as to the table.
    ///
    /// What is waiting goes into one transaction, [`batch_size`](crate::InboxBuilder::batch_size) messages at most; then its offsets may be committed.
    /// A message whose identity stands is a duplicate, and passed. One that has no identity, or is too large, or is in conflict, is given up as
    /// [`Consumer`](crate::Consumer) says: to the dead letter, or the consumer stops; unless a policy passes it.
    ///
    /// Ids ascend along each partition, or along each key of it, as [`Consumer::order`](crate::Consumer::order) says, over all owners of the partition:
    /// workers in the order of keys go by them. A message that was given up, and comes again later (re-driven from the dead letter topic, or because its
    /// producer was mended), stands behind those of its key that were accepted meanwhile.
    ///
    /// # What the database refuses
    ///
    /// A message is given up for what is wrong with itself: its size, a value that its column does not take, a check of the tables' owner. Such a message is found
    /// by halving its batch; the others are accepted. Locks, deadlocks, an outage, a full disk and a server that became read-only are waited for: nothing is given up,
    /// and no attempt burnt. What has to be mended first (a missing right, table or column, ids that were drawn twice) ends the consumer with an error that says so.
    ///
    /// What somebody's open transaction holds is waited for up to [`lock_timeout`](crate::InboxBuilder::lock_timeout), once for the batch; then it is halved, and what is
    /// held is left and asked for again, while the others go on.
    ///
    /// A header whose name is not UTF-8 is left out: rdkafka cannot read it.
    ///
    /// # Cancel safety
    ///
    /// A batch is dropped where it waits when its partition is lost, or when the drain deadline has passed; its transaction is rolled back.
    pub fn accept(&self) -> InTransaction<DB, Accepting<DB>> {
        InTransaction::new(&self.core.windows(), Accepting { core: Arc::clone(&self.core) })
    }
}

/// Messages on their way into an inbox. Made by [`Inbox::accept`].
pub struct Accepting<DB: TransactionalDatabase> {
    core: Arc<Core<DB>>,
}

impl<DB: TransactionalDatabase> fmt::Debug for Accepting<DB> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Accepting").field("core", &self.core).finish()
    }
}

impl<DB: TransactionalDatabase> Shape<DB> for Accepting<DB> {
    type Error = BringError;
    type Left = Brought;

    const TOGETHER: bool = true;
    const ENDS_NOTHING: bool = true;

    async fn ready(&self, messages: usize) -> Result<(), StoreError> {
        self.core.ready(messages).await
    }

    async fn call(
        &self,
        messages: &[Message],
        conn: &mut DB::Connection,
        into: &mut Vec<Brought>,
    ) -> Result<(), BringError> {
        self.core.bring(messages, conn, into).await
    }

    fn fault(&self, error: &BringError) -> Option<Nobodys> {
        error.fault().map(Nobodys)
    }

    fn passes(&self, brought: &Brought) -> bool {
        brought.passes()
    }

    fn came(&self, brought: Brought) -> Came {
        self.core.taken_in.note(&brought);
        let given_up = |refusal: Refusal| {
            let kind = if matches!(refusal, Refusal::Identity(_)) { "identity" } else { "size" };
            let fault = *Fault::new(kind, refusal.to_string());
            Came::Fault(Box::new(Fault { class: ErrorClass::Fatal, attempt: Some(1), ..fault }))
        };
        match brought {
            Brought::New(_) => Came::Well,
            Brought::Duplicate(_) => Came::Duplicate,
            Brought::Conflict { skipped: true, .. } => Came::Ended(Ending::Conflict),
            Brought::Conflict { first, .. } => Came::Conflict { first },
            Brought::Refused(refusal) => given_up(refusal),
        }
    }

    fn described(&self, described: Described) -> Described {
        let identity = format!("{:?} (in the inbox, and a window of each partition)", self.core.settings.identify);
        let on_missing = self.core.settings.on_missing;
        Described { identity, on_missing, retention: self.core.settings.retention, ..described }
    }
}
