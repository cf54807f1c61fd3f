//! A connection inside a transaction of ours.

use std::sync::Arc;

use sqlx_core::transaction::TransactionManager;
use tokio::sync::{Mutex, OwnedMutexGuard};

use super::dialect::{Beginning, Manager, Transact};
use super::sealed::Sealed;
use super::spare::{Spare, Spares, give_back};
use crate::record::Owner;
use crate::store::sql::{Conn, Dialect, Fault};

pub(crate) fn sorted<D: Dialect>(error: &sqlx::Error) -> Fault {
    Fault::of(error, D::fault)
}

/// An open transaction. Dropped, its connection is closed: none goes back to the pool but after a commit or rollback that ended well.
pub(crate) struct Tx<DB: Sealed> {
    conn: Option<Spare<DB>>,
    /// What it remembers of messages is remembered as by this one, whom nobody else is.
    pub(super) owner: Owner,
    spares: Spares<DB>,
    /// The turn to write, where the database has one writer.
    _turn: Option<OwnedMutexGuard<()>>,
}

/// How a commit ended.
#[derive(Debug)]
pub(crate) enum Committed {
    Yes,
    /// Rolled back.
    No(Fault),
    /// The reply was lost.
    Unknown(Fault),
}

impl<DB: Sealed> Tx<DB> {
    /// Begins. Dropped in the middle, the connection is closed.
    pub(super) async fn begin(
        spares: &Spares<DB>,
        turns: &Arc<Mutex<()>>,
        owner: Owner,
        mut how: Beginning,
    ) -> Result<Self, Fault> {
        let _turn = match DB::Dialect::ONE_WRITER {
            true => Some(Arc::clone(turns).lock_owned().await),
            false => None,
        };
        let spare = spares.get().await.map_err(|error| sorted::<DB::Dialect>(&error))?;
        let mut tx = Self { conn: Some(spare), owner, spares: spares.clone(), _turn };
        let begun = match &mut tx.conn {
            Some(spare) => {
                if spare.set.is_some_and(|patience| patience != how.patience) {
                    let restored = DB::DIALECT.restore(&mut spare.conn).await;
                    restored.map_err(|error| sorted::<DB::Dialect>(&error)).inspect_err(|_| spares.distrust())?;
                    spare.set = None;
                }
                how.again = spare.set.is_some();
                spare.set = Some(how.patience);
                DB::DIALECT.begin(&mut spare.conn, how).await
            }
            None => Err(sqlx::Error::WorkerCrashed),
        };
        begun.map_err(|error| sorted::<DB::Dialect>(&error)).inspect_err(|fault| {
            if matches!(fault, Fault::Broken(_)) {
                spares.distrust();
            }
        })?;
        Ok(tx)
    }

    /// The connection.
    pub(crate) fn conn(&mut self) -> Result<&mut Conn<DB::Dialect>, Fault> {
        match &mut self.conn {
            Some(spare) => Ok(&mut spare.conn),
            None => Err(sorted::<DB::Dialect>(&sqlx::Error::WorkerCrashed)),
        }
    }

    /// Whether the handler left no transaction of its own open, and ended none, as far as the client knows.
    pub(crate) fn is_level(&self) -> bool {
        self.conn.as_ref().is_some_and(|spare| Manager::<DB::Dialect>::get_transaction_depth(&spare.conn) == 1)
    }

    /// Commits. To be run to its end.
    pub(crate) async fn commit(mut self) -> Committed {
        let Ok(conn) = self.conn() else { return Committed::No(sorted::<DB::Dialect>(&sqlx::Error::WorkerCrashed)) };
        match Manager::<DB::Dialect>::commit(conn).await {
            Ok(()) => {
                self.give_back().await;
                Committed::Yes
            }
            Err(error) => match sorted::<DB::Dialect>(&error) {
                // Said by the server, for sure: nothing was committed.
                fault @ (Fault::Contended(_) | Fault::Locked(_) | Fault::Refused(_)) => Committed::No(fault),
                fault => Committed::Unknown(fault),
            },
        }
    }

    /// Rolls back. To be run to its end.
    pub(crate) async fn rollback(mut self) {
        let Ok(conn) = self.conn() else { return };
        if Manager::<DB::Dialect>::rollback(conn).await.is_ok() {
            self.give_back().await;
        }
    }

    /// The transaction is over: the connection stays in hand, or goes back as it came.
    async fn give_back(&mut self) {
        if self.conn.as_ref().is_none_or(|spare| Manager::<DB::Dialect>::get_transaction_depth(&spare.conn) != 0) {
            return;
        }
        if let Some(spare) = self.conn.take()
            && let Err(spare) = self.spares.keep(spare)
        {
            give_back(spare).await;
        }
    }
}

impl<DB: Sealed> Drop for Tx<DB> {
    fn drop(&mut self) {
        if let Some(spare) = &mut self.conn {
            spare.conn.close_on_drop();
        }
    }
}
