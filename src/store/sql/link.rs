//! Connections: of the store's own, or borrowed from a user's pool.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use sqlx::pool::PoolConnection;
use sqlx::{ConnectOptions, Connection, Pool};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::dialect::{Conn, Dialect};

/// An own connection that nobody used for this long is closed instead of used: a firewall may have forgotten it.
const IDLE: Duration = Duration::from_secs(60);

type Options<D> = <Conn<D> as Connection>::Options;

/// Where connections come from.
///
/// A connection of the store's own stays out of sqlx's pool, which tests it with a round trip on every release.
/// It is owned by whoever uses it and comes back only after a statement that ended: a future dropped in the middle
/// of one drops the connection, so none in an unknown state is ever used again.
pub(crate) enum Links<D: Dialect> {
    Own(Own<D>),
    Pool(Pool<D::Db>),
}

pub(crate) struct Own<D: Dialect> {
    options: Options<D>,
    permits: Arc<Semaphore>,
    idle: Mutex<Vec<Idle<D>>>,
    keep_idle: bool,
}

struct Idle<D: Dialect> {
    conn: Conn<D>,
    since: Instant,
    patience: Duration,
}

enum Held<D: Dialect> {
    Own(Idle<D>, OwnedSemaphorePermit),
    Pool(PoolConnection<D::Db>),
}

/// A connection in use.
pub(crate) struct Link<'a, D: Dialect> {
    links: &'a Links<D>,
    held: Option<Held<D>>,
}

impl<D: Dialect> Links<D> {
    /// At most `size` connections. One that only lives as long as its data is kept, however long it is idle.
    pub(crate) fn own(options: Options<D>, size: usize, keep_idle: bool) -> Self {
        Self::Own(Own { options, permits: Arc::new(Semaphore::new(size)), idle: Mutex::new(Vec::new()), keep_idle })
    }

    /// Whether statements are kept prepared: on connections whose planner settings are ours.
    pub(crate) const fn keeps_statements(&self) -> bool {
        matches!(self, Self::Own(_))
    }

    /// How many dead connections may be met in a row before a fresh one.
    pub(crate) fn stale(&self) -> usize {
        match self {
            Self::Own(_) => 1,
            Self::Pool(pool) => pool.num_idle().min(64) + 1,
        }
    }

    /// A connection; a new one, if `fresh` and they are ours.
    pub(crate) async fn take(&self, dialect: &D, patience: Duration, fresh: bool) -> Result<Link<'_, D>, sqlx::Error> {
        let held = match self {
            Self::Pool(pool) => Held::Pool(pool.acquire().await?),
            Self::Own(own) => {
                let permit = own.permits.clone().acquire_owned().await.map_err(|_| sqlx::Error::PoolClosed)?;
                if fresh {
                    own.forget();
                }
                let mut idle = match own.idle() {
                    Some(idle) => idle,
                    None => {
                        let mut conn = own.options.connect().await?;
                        dialect.greet(&mut conn, patience).await?;
                        Idle { conn, since: Instant::now(), patience }
                    }
                };
                if idle.patience != patience {
                    dialect.greet(&mut idle.conn, patience).await?;
                    idle.patience = patience;
                }
                Held::Own(idle, permit)
            }
        };
        Ok(Link { links: self, held: Some(held) })
    }
}

impl<D: Dialect> Own<D> {
    fn idle(&self) -> Option<Idle<D>> {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        if !self.keep_idle {
            idle.retain(|idle| idle.since.elapsed() < IDLE);
        }
        idle.pop()
    }

    /// What broke one connection broke the others too.
    fn forget(&self) {
        if !self.keep_idle {
            self.idle.lock().unwrap_or_else(PoisonError::into_inner).clear();
        }
    }

    fn put(&self, mut idle: Idle<D>) {
        idle.since = Instant::now();
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).push(idle);
    }
}

impl<D: Dialect> Link<'_, D> {
    /// The connection.
    pub(crate) fn conn(&mut self) -> Result<&mut Conn<D>, sqlx::Error> {
        match &mut self.held {
            Some(Held::Own(idle, _)) => Ok(&mut idle.conn),
            Some(Held::Pool(conn)) => Ok(conn),
            None => Err(sqlx::Error::WorkerCrashed),
        }
    }

    /// Gives it back after a statement that ended.
    pub(crate) fn keep(mut self) {
        self.release(true);
    }

    /// Closes it: it is dead.
    pub(crate) fn discard(mut self) {
        self.release(false);
    }

    fn release(&mut self, usable: bool) {
        match (self.held.take(), self.links) {
            (Some(Held::Own(idle, _permit)), Links::Own(own)) if usable => own.put(idle),
            (Some(Held::Pool(mut conn)), _) if !usable => conn.close_on_drop(),
            _ => {}
        }
    }
}

impl<D: Dialect> Drop for Link<'_, D> {
    /// A future was dropped in the middle of a statement.
    fn drop(&mut self) {
        self.release(D::SURVIVES_CANCEL);
    }
}
