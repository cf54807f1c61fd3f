//! Hearing of new work without asking for it.

use std::fmt;

use crate::inbox::core::Core;
use crate::store::sql::Conn;
use crate::transaction::sealed::Sealed;

use super::dialect::Sql;

/// Hears of new work, where the database can tell. One for each worker.
pub(crate) struct Listener {
    #[cfg(feature = "postgres")]
    ear: Option<super::postgres::Ear>,
}

impl fmt::Debug for Listener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Listener").finish_non_exhaustive()
    }
}

impl Listener {
    /// Where nothing is told.
    pub(crate) const fn deaf() -> Self {
        Self {
            #[cfg(feature = "postgres")]
            ear: None,
        }
    }

    #[cfg(feature = "postgres")]
    pub(super) const fn hearing(ear: super::postgres::Ear) -> Self {
        Self { ear: Some(ear) }
    }

    /// Whether it ever hears anything.
    pub(crate) const fn hears(&self) -> bool {
        #[cfg(feature = "postgres")]
        return self.ear.is_some();
        #[cfg(not(feature = "postgres"))]
        return false;
    }

    /// Waits until there may be new work: somebody accepted, requeued or resumed, or it could not be heard for a moment. For ever where
    /// nothing is told. A connection that is lost is opened again. Keeps one connection, beside the pool.
    ///
    /// Cancel safe: a notice that was heard and not told is told next time, or was followed by a look at the queue.
    pub(crate) async fn heard(&mut self) {
        #[cfg(feature = "postgres")]
        if let Some(ear) = &mut self.ear {
            let mut failures = 0;
            loop {
                match ear.heard().await {
                    Ok(()) => return,
                    Err(error) => {
                        tracing::debug!(error = %crate::transaction::sorted::<crate::store::postgres::Postgres>(&error),
                            "cannot listen for new messages");
                        ear.forget();
                        failures += 1;
                        tokio::time::sleep(crate::store::sql::jitter(failures) * 16).await;
                    }
                }
            }
        }
        std::future::pending::<()>().await;
    }
}

impl<DB: Sealed> Core<DB> {
    /// What this inbox's notices are called: a name for its tables and its number, no longer than names may be.
    fn channel(&self) -> String {
        let digest = blake3::hash(self.tables.open.as_bytes());
        let digest = super::dialect::hex(digest.as_bytes().first_chunk::<8>().map_or(&[], |chunk| chunk));
        format!("hapax_inbox_{digest}_{}", self.number)
    }

    /// Hears of new work. Takes a connection for itself, beside the pool, where there is something to hear.
    pub(crate) fn listen(&self) -> Listener {
        <DB::Dialect as Sql>::ear(&self.pool, self.channel())
    }

    /// Tells all workers, when the transaction commits, that there is work. Many calls in one transaction are heard as one.
    pub(crate) async fn notify(&self, conn: &mut Conn<DB::Dialect>) -> Result<(), sqlx::Error> {
        match <DB::Dialect as Sql>::notice(&self.channel()) {
            Some(text) => Sql::send(&DB::DIALECT, conn, text).await.map(drop),
            None => Ok(()),
        }
    }
}
