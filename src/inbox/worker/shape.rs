//! How a handler inside a transaction takes its messages.

use std::future::Future;
use std::marker::PhantomData;

use sqlx::Database;

use crate::inbox::Message;
use crate::wrapper::HandlerError;

/// A handler inside a transaction.
pub(super) trait Shape<DB: Database>: Send + Sync + 'static {
    /// How it fails.
    type Error: HandlerError + 'static;

    /// Whether it takes all messages at once.
    const TOGETHER: bool;

    /// Runs it.
    fn call(&self, messages: &[Message], conn: &mut DB::Connection) -> impl Future<Output = Result<(), Self::Error>>;
}

/// A handler of one message.
pub(super) struct OneByOne<F, T, E> {
    handler: F,
    returns: PhantomData<fn() -> (T, E)>,
}

/// A handler of many messages.
pub(super) struct AllAtOnce<F, T, E> {
    handler: F,
    returns: PhantomData<fn() -> (T, E)>,
}

impl<F, T, E> OneByOne<F, T, E> {
    pub(super) const fn new(handler: F) -> Self {
        Self { handler, returns: PhantomData }
    }
}

impl<F, T, E> AllAtOnce<F, T, E> {
    pub(super) const fn new(handler: F) -> Self {
        Self { handler, returns: PhantomData }
    }
}

impl<DB, F, T, E> Shape<DB> for OneByOne<F, T, E>
where
    DB: Database,
    F: AsyncFn(Message, &mut DB::Connection) -> Result<T, E> + Send + Sync + 'static,
    T: 'static,
    E: HandlerError + 'static,
{
    type Error = E;

    const TOGETHER: bool = false;

    async fn call(&self, messages: &[Message], conn: &mut DB::Connection) -> Result<(), E> {
        for message in messages {
            (self.handler)(message.clone(), conn).await?;
        }
        Ok(())
    }
}

impl<DB, F, T, E> Shape<DB> for AllAtOnce<F, T, E>
where
    DB: Database,
    F: AsyncFn(&[Message], &mut DB::Connection) -> Result<T, E> + Send + Sync + 'static,
    T: 'static,
    E: HandlerError + 'static,
{
    type Error = E;

    const TOGETHER: bool = true;

    async fn call(&self, messages: &[Message], conn: &mut DB::Connection) -> Result<(), E> {
        (self.handler)(messages, conn).await.map(drop)
    }
}
