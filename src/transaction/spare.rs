//! Connections that stay in hand from one batch to the next.
//!
//! A pool asks every connection whether it lives when it gives it out and when it takes it back, and gives out the one that rested longest: two
//! round trips a batch, and a database in a file (SQLite) reads its pages anew whenever another connection wrote. So a connection that is
//! needed again at once is not given back, as long as others find one without it. It is given back when nothing needed it for a moment, when
//! it was in hand for long, and when the pool is closed.

use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use sqlx::Pool;
use sqlx::pool::PoolConnection;
use tokio::runtime::Handle;
use tokio::time::Instant;

use super::dialect::Transact;
use super::sealed::Sealed;
use crate::store::sql::Dialect;

/// For so long a connection that nobody needs is kept.
const REST: Duration = Duration::from_millis(20);
/// For so long a connection is kept that is needed all the time: the pool is to see it now and then, for its own rules.
const LONGEST: Duration = Duration::from_secs(1);
/// For so long a connection may take to be put back as it was.
const RESTORING: Duration = Duration::from_secs(5);
/// Connections that are kept, at most.
const MOST: usize = 4;

/// A connection out of the pool.
pub(super) struct Spare<DB: Sealed> {
    pub(super) conn: PoolConnection<DB>,
    since: Instant,
    /// What lasts as long as it is in hand has been set, for locks to be waited for so long.
    pub(super) set: Option<Duration>,
}

/// Those in hand, and the pool they are of.
pub(super) struct Spares<DB: Sealed>(Arc<Shelf<DB>>);

struct Shelf<DB: Sealed> {
    pool: Pool<DB>,
    kept: Mutex<Kept<DB>>,
}

struct Kept<DB: Sealed> {
    idle: Vec<Spare<DB>>,
    /// How often one was taken.
    taken: u64,
    /// A task gives back what is not needed.
    watched: bool,
}

impl<DB: Sealed> Clone for Spares<DB> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<DB: Sealed> Shelf<DB> {
    fn lock(&self) -> MutexGuard<'_, Kept<DB>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<DB: Sealed> Spares<DB> {
    pub(super) fn new(pool: Pool<DB>) -> Self {
        let kept = Kept { idle: Vec::new(), taken: 0, watched: false };
        Self(Arc::new(Shelf { pool, kept: Mutex::new(kept) }))
    }

    /// One that is in hand, or one of the pool.
    pub(super) async fn get(&self) -> sqlx::Result<Spare<DB>> {
        {
            let mut kept = self.0.lock();
            kept.taken = kept.taken.wrapping_add(1);
            if let Some(spare) = kept.idle.pop() {
                return Ok(spare);
            }
        }
        Ok(Spare { conn: self.0.pool.acquire().await?, since: Instant::now(), set: None })
    }

    /// One of them was found dead: the others may be as dead.
    pub(super) fn distrust(&self) {
        let idle = std::mem::take(&mut self.0.lock().idle);
        close(idle);
    }

    /// Keeps a connection that is in no transaction, or says why not: it is to be given back then.
    pub(super) fn keep(&self, spare: Spare<DB>) -> Result<(), Spare<DB>> {
        let pool = &self.0.pool;
        let room = pool.num_idle() > 0 || pool.size() < pool.options().get_max_connections();
        let Ok(runtime) = Handle::try_current() else { return Err(spare) };
        let mut kept = self.0.lock();
        if !room || pool.is_closed() || kept.idle.len() >= MOST || spare.since.elapsed() >= LONGEST {
            return Err(spare);
        }
        kept.idle.push(spare);
        if !std::mem::replace(&mut kept.watched, true) {
            drop(kept);
            runtime.spawn(Watch { shelf: Arc::clone(&self.0), over: false }.watch());
        }
        Ok(())
    }
}

fn close<DB: Sealed>(idle: Vec<Spare<DB>>) {
    for mut spare in idle {
        spare.conn.close_on_drop();
    }
}

/// Whoever gives back what is not needed. Dropped with its runtime, it leaves nothing behind.
struct Watch<DB: Sealed> {
    shelf: Arc<Shelf<DB>>,
    /// It ended by itself: another may be watching by now.
    over: bool,
}

impl<DB: Sealed> Watch<DB> {
    async fn watch(mut self) {
        let mut closed = pin!(self.shelf.pool.close_event());
        let mut taken = self.shelf.lock().taken;
        loop {
            let closing = tokio::select! {
                biased;
                () = &mut closed => true,
                () = tokio::time::sleep(REST) => false,
            };
            let idle = {
                let mut kept = self.shelf.lock();
                match closing || kept.taken == taken {
                    true => std::mem::take(&mut kept.idle),
                    false => {
                        taken = kept.taken;
                        continue;
                    }
                }
            };
            for spare in idle {
                give_back(spare).await;
            }
            let mut kept = self.shelf.lock();
            if kept.idle.is_empty() {
                kept.watched = false;
                self.over = true;
                return;
            }
        }
    }
}

impl<DB: Sealed> Drop for Watch<DB> {
    fn drop(&mut self) {
        if self.over {
            return;
        }
        let idle = {
            let mut kept = self.shelf.lock();
            kept.watched = false;
            std::mem::take(&mut kept.idle)
        };
        close(idle);
    }
}

/// Gives a connection back as it came; one that cannot be put back as it was is closed.
pub(super) async fn give_back<DB: Sealed>(mut spare: Spare<DB>) {
    if spare.set.is_some()
        && !matches!(tokio::time::timeout(RESTORING, DB::DIALECT.restore(&mut spare.conn)).await, Ok(Ok(())))
    {
        tracing::debug!(database = DB::Dialect::NAME, "a connection could not be put back as it was: it is closed");
        spare.conn.close_on_drop();
    }
}
