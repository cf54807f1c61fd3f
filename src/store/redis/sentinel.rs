//! The primary that a group of sentinels names.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use redis::aio::{ConnectionLike, MultiplexedConnection};
use redis::{AsyncConnectionConfig, Client, ConnectionInfo, Value};

use super::errors;
use super::link::{Clock, Patience, integer, open, text};
use super::wire::at;
use crate::store::StoreError;

/// Longest wait for one sentinel, so that a dead one does not use up the time for the others.
const PER_SENTINEL: Duration = Duration::from_secs(1);

/// Who to ask, and for what.
pub(super) struct Sentinels {
    sentinels: Vec<ConnectionInfo>,
    master_name: String,
    /// User, password, database and TLS of the data nodes; its address is not used.
    node: ConnectionInfo,
    /// The one that answered last.
    first: AtomicUsize,
}

impl Sentinels {
    pub(super) fn new(sentinels: Vec<ConnectionInfo>, master_name: String, node: ConnectionInfo) -> Self {
        Self { sentinels, master_name, node, first: AtomicUsize::new(0) }
    }

    /// Asks one sentinel after the other, until one names a server that says itself that it is the primary.
    pub(super) async fn open(&self, clock: &Clock, patience: Patience) -> Result<MultiplexedConnection, StoreError> {
        let first = self.first.load(Ordering::Relaxed);
        let mut last = StoreError::unavailable(errors::NAME, "connect", "no sentinel was given");
        for step in 0..self.sentinels.len() {
            let which = (first + step) % self.sentinels.len();
            match self.ask(&self.sentinels[which], clock, patience).await {
                Ok(connection) => {
                    self.first.store(which, Ordering::Relaxed);
                    return Ok(connection);
                }
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    async fn ask(
        &self,
        sentinel: &ConnectionInfo,
        clock: &Clock,
        patience: Patience,
    ) -> Result<MultiplexedConnection, StoreError> {
        let asking = async {
            let client = Client::open(sentinel.clone()).map_err(|error| errors::client("connect", error))?;
            let config = AsyncConnectionConfig::new().set_connection_timeout(None).set_response_timeout(None);
            let mut connection = client
                .get_multiplexed_async_connection_with_config(&config)
                .await
                .map_err(|error| errors::client("connect", error))?;
            let mut command = redis::cmd("SENTINEL");
            command.arg("GET-MASTER-ADDR-BY-NAME").arg(&self.master_name);
            connection.req_packed_command(&command).await.map_err(|error| errors::client("ask a sentinel", error))
        };
        let answer = tokio::time::timeout(patience.connect.min(PER_SENTINEL), asking)
            .await
            .map_err(|_| StoreError::unavailable(errors::NAME, "ask a sentinel", "it did not answer in time"))??;
        let Value::Array(address) = &answer else {
            return Err(match answer {
                Value::ServerError(error) => errors::server("ask a sentinel", &error),
                _ => StoreError::refused(errors::NAME, "ask a sentinel", "it does not watch a master of this name"),
            });
        };
        let host = address.first().and_then(text);
        let port = address.get(1).and_then(integer).and_then(|port| u16::try_from(port).ok());
        let (Some(host), Some(port)) = (host, port) else {
            return Err(errors::shape("ask a sentinel", &Value::Nil));
        };
        open(&at(&self.node, host, port), true, clock, patience).await
    }
}
