//! A connection that the user brought.

use async_trait::async_trait;
#[cfg(feature = "redis-cluster")]
use futures_util::future::join_all;
#[cfg(feature = "redis-cluster")]
use redis::RedisError;
use redis::aio::ConnectionLike;
use redis::{Pipeline, RedisResult, Value};

use super::errors;
use super::link::{Patience, count_checked};
use crate::store::StoreError;

/// Any connection, behind one type.
#[async_trait]
pub(super) trait Given: Send + Sync {
    async fn send(&self, pipeline: &Pipeline) -> RedisResult<Vec<Value>>;
}

/// A connection of which each call takes a clone.
pub(super) struct Cloned<C>(pub(super) C);

#[async_trait]
impl<C: ConnectionLike + Clone + Send + Sync> Given for Cloned<C> {
    async fn send(&self, pipeline: &Pipeline) -> RedisResult<Vec<Value>> {
        self.0.clone().req_packed_commands(pipeline, 0, pipeline.len()).await
    }
}

/// The client library's own cluster connection: it takes no pipeline over several slots, so each command goes alone, all at once.
#[cfg(feature = "redis-cluster")]
pub(super) struct Apart<C>(pub(super) C);

#[cfg(feature = "redis-cluster")]
#[async_trait]
impl<C: ConnectionLike + Clone + Send + Sync> Given for Apart<C> {
    async fn send(&self, pipeline: &Pipeline) -> RedisResult<Vec<Value>> {
        let one = |command| {
            let mut connection = self.0.clone();
            async move { connection.req_packed_command(command).await }
        };
        join_all(pipeline.cmd_iter().map(one)).await.into_iter().map(|answer| answer.or_else(as_value)).collect()
    }
}

/// A server's answer stands in its place; everything else fails the call.
#[cfg(feature = "redis-cluster")]
fn as_value(error: RedisError) -> RedisResult<Value> {
    match error.clone().into_server_errors() {
        Some(errors) if errors.len() == 1 => Ok(Value::ServerError(errors[0].1.clone())),
        _ => Err(error),
    }
}

/// Sends commands. What met a broken connection is sent once more: a connection manager has made a new one by then.
pub(super) async fn send(
    given: &dyn Given,
    operation: &'static str,
    pipeline: &Pipeline,
    patience: Patience,
) -> Result<Vec<Value>, StoreError> {
    let mut again = true;
    loop {
        match tokio::time::timeout(patience.response, given.send(pipeline)).await {
            Err(_) => return Err(errors::timed_out(operation)),
            Ok(Ok(answers)) => return count_checked(operation, answers, pipeline.len()),
            Ok(Err(error)) if again && error.is_unrecoverable_error() => again = false,
            Ok(Err(error)) => return Err(errors::client(operation, error)),
        }
    }
}
