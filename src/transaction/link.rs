//! A connection inside a transaction of ours.

use std::sync::Arc;
use std::time::Duration;

use sqlx::Pool;
use sqlx::pool::PoolConnection;
use sqlx_core::transaction::TransactionManager;
use tokio::sync::{Mutex, OwnedMutexGuard};

use super::dialect::{Manager, Transact};
use super::sealed::Sealed;
use crate::store::sql::{Conn, Dialect, Fault};

pub(crate) fn sorted<D: Dialect>(error: &sqlx::Error) -> Fault {
    Fault::of(error, D::fault)
}

/// An open transaction. Dropped, its connection is closed: none goes back to the pool but after a commit or rollback that ended well.
pub(crate) struct Tx<DB: Sealed> {
    conn: Option<PoolConnection<DB>>,
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
    pub(crate) async fn begin(pool: &Pool<DB>, turns: &Arc<Mutex<()>>, patience: Duration) -> Result<Self, Fault> {
        let _turn = match DB::Dialect::ONE_WRITER {
            true => Some(Arc::clone(turns).lock_owned().await),
            false => None,
        };
        let conn = pool.acquire().await.map_err(|error| sorted::<DB::Dialect>(&error))?;
        let mut tx = Self { conn: Some(conn), _turn };
        let begun = match &mut tx.conn {
            Some(conn) => DB::DIALECT.begin(conn, patience).await,
            None => Err(sqlx::Error::WorkerCrashed),
        };
        begun.map(|()| tx).map_err(|error| sorted::<DB::Dialect>(&error))
    }

    /// The connection.
    pub(crate) fn conn(&mut self) -> Result<&mut Conn<DB::Dialect>, Fault> {
        match &mut self.conn {
            Some(conn) => Ok(conn),
            None => Err(sorted::<DB::Dialect>(&sqlx::Error::WorkerCrashed)),
        }
    }

    /// Whether the handler left no transaction of its own open, and ended none, as far as the client knows.
    pub(crate) fn is_level(&self) -> bool {
        self.conn.as_ref().is_some_and(|conn| Manager::<DB::Dialect>::get_transaction_depth(conn) == 1)
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

    /// The transaction is over: the connection goes back as it came.
    async fn give_back(&mut self) {
        let Ok(conn) = self.conn() else { return };
        if Manager::<DB::Dialect>::get_transaction_depth(conn) == 0 && DB::DIALECT.restore(conn).await.is_ok() {
            self.conn = None;
        }
    }
}

impl<DB: Sealed> Drop for Tx<DB> {
    fn drop(&mut self) {
        if let Some(conn) = &mut self.conn {
            conn.close_on_drop();
        }
    }
}
