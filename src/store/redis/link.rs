//! A connection to one server that is made anew when it breaks.

use std::fmt;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use futures_util::FutureExt;
use futures_util::future::{BoxFuture, Shared};
use redis::aio::{ConnectionLike, MultiplexedConnection};
use redis::{AsyncConnectionConfig, Client, ConnectionAddr, ConnectionInfo, IntoConnectionInfo, Pipeline, Value};

use super::errors;
#[cfg(feature = "redis-sentinel")]
use super::sentinel::Sentinels;
use crate::record::{Millis, millis};
use crate::store::StoreError;

/// How long to wait.
#[derive(Clone, Copy, Debug)]
pub(super) struct Patience {
    /// For a connection, with all that it takes until it serves.
    pub(super) connect: Duration,
    /// For an answer.
    pub(super) response: Duration,
}

/// The server's clock, as learnt when a connection was made, carried on by the local monotonic clock.
/// For times that are shown; what decides is measured by the server.
#[derive(Debug)]
pub(super) struct Clock {
    started: Instant,
    /// Server's milliseconds when `started`; the lowest number until it is known.
    origin: AtomicI64,
}

impl Default for Clock {
    fn default() -> Self {
        Self { started: Instant::now(), origin: AtomicI64::new(Millis::MIN) }
    }
}

impl Clock {
    pub(super) fn is_set(&self) -> bool {
        self.origin.load(Ordering::Relaxed) != Millis::MIN
    }

    /// Takes what `TIME` answered; the local clock where that was refused.
    pub(super) fn set(&self, time: Option<&Value>) {
        let local = || SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, millis);
        let now = time.and_then(read_time).unwrap_or_else(local);
        self.origin.store(now.saturating_sub(millis(self.started.elapsed())), Ordering::Relaxed);
    }

    pub(super) fn now(&self) -> Millis {
        let origin = self.origin.load(Ordering::Relaxed);
        if origin == Millis::MIN { 0 } else { origin.saturating_add(millis(self.started.elapsed())) }
    }
}

fn read_time(value: &Value) -> Option<Millis> {
    let Value::Array(parts) = value else { return None };
    let [seconds, micros] = parts.as_slice() else { return None };
    integer(seconds)?.checked_mul(1000)?.checked_add(integer(micros)? / 1000)
}

/// A number, however it was sent.
pub(super) fn integer(value: &Value) -> Option<i64> {
    match value {
        Value::Int(number) => Some(*number),
        _ => text(value)?.parse().ok(),
    }
}

/// A text, however it was sent.
pub(super) fn text(value: &Value) -> Option<&str> {
    match value {
        Value::BulkString(bytes) => std::str::from_utf8(bytes).ok(),
        Value::SimpleString(text) | Value::VerbatimString { text, .. } => Some(text),
        _ => None,
    }
}

/// Reads a URL. TLS without verification is refused.
pub(super) fn parse(url: &str) -> Result<ConnectionInfo, StoreError> {
    let info = url.into_connection_info().map_err(|error| errors::client("connect", error))?;
    if matches!(info.addr(), ConnectionAddr::TcpTls { insecure: true, .. }) {
        return Err(StoreError::refused(
            errors::NAME,
            "connect",
            "the URL turns the verification of TLS off. Leave #insecure out, and trust the server's certificate instead.",
        ));
    }
    Ok(info)
}

/// Whom a link connects to.
pub(super) enum Opener {
    /// One server. `primary`: refuse a replica.
    Server { info: Box<ConnectionInfo>, primary: bool },
    /// The primary that the sentinels name.
    #[cfg(feature = "redis-sentinel")]
    Sentinel(Box<Sentinels>),
}

impl Opener {
    async fn open(&self, clock: &Clock, patience: Patience) -> Result<MultiplexedConnection, StoreError> {
        match self {
            Self::Server { info, primary } => open(info, *primary, clock, patience).await,
            #[cfg(feature = "redis-sentinel")]
            Self::Sentinel(sentinels) => sentinels.open(clock, patience).await,
        }
    }
}

/// Connects to one server, and learns its clock and role.
pub(super) async fn open(
    info: &ConnectionInfo,
    primary: bool,
    clock: &Clock,
    patience: Patience,
) -> Result<MultiplexedConnection, StoreError> {
    let opening = async {
        let client = Client::open(info.clone()).map_err(|error| errors::client("connect", error))?;
        let config = AsyncConnectionConfig::new().set_connection_timeout(None).set_response_timeout(None);
        let mut connection = client
            .get_multiplexed_async_connection_with_config(&config)
            .await
            .map_err(|error| errors::client("connect", error))?;
        let mut hello = Pipeline::with_capacity(2);
        hello.cmd("TIME").cmd("ROLE");
        let answers =
            connection.req_packed_commands(&hello, 0, 2).await.map_err(|error| errors::client("connect", error))?;
        // A right to ask for either may be missing; wrong credentials may not.
        if let Some(Value::ServerError(error)) = answers.first()
            && error.code() != "NOPERM"
        {
            return Err(errors::server("connect", error));
        }
        if primary
            && let Some(Value::Array(role)) = answers.get(1)
            && role.first().and_then(text) == Some("slave")
        {
            return Err(StoreError::unavailable(
                errors::NAME,
                "connect",
                "the server is a replica, which forgets and lags. Connect to its primary.",
            ));
        }
        clock.set(answers.first());
        Ok(connection)
    };
    match tokio::time::timeout(patience.connect, opening).await {
        Ok(opened) => opened,
        Err(_) => Err(StoreError::unavailable(errors::NAME, "connect", "the server did not answer in time")),
    }
}

type Opening = Shared<BoxFuture<'static, Result<MultiplexedConnection, StoreError>>>;

enum Phase {
    Closed,
    /// One attempt, shared by all who wait for it.
    Opening(Opening),
    Open(MultiplexedConnection),
}

struct State {
    /// Counts the attempts, so that a caller leaves only the connection that failed it.
    generation: u64,
    phase: Phase,
}

/// One server's connection, shared by all callers.
pub(super) struct Link {
    opener: Arc<Opener>,
    clock: Arc<Clock>,
    patience: Patience,
    state: Mutex<State>,
}

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Link").finish_non_exhaustive()
    }
}

impl Link {
    pub(super) fn new(opener: Opener, clock: Arc<Clock>, patience: Patience) -> Self {
        let state = Mutex::new(State { generation: 0, phase: Phase::Closed });
        Self { opener: Arc::new(opener), clock, patience, state }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The connection, made if there is none.
    pub(super) async fn connection(&self) -> Result<(u64, MultiplexedConnection), StoreError> {
        let (generation, opening) = {
            let mut state = self.state();
            match &state.phase {
                Phase::Open(connection) => return Ok((state.generation, connection.clone())),
                Phase::Opening(opening) => (state.generation, opening.clone()),
                Phase::Closed => {
                    let (opener, clock, patience) = (Arc::clone(&self.opener), Arc::clone(&self.clock), self.patience);
                    let opening = async move { opener.open(&clock, patience).await }.boxed().shared();
                    state.generation += 1;
                    state.phase = Phase::Opening(opening.clone());
                    (state.generation, opening)
                }
            }
        };
        let opened = opening.await;
        let mut state = self.state();
        if state.generation == generation && matches!(state.phase, Phase::Opening(_)) {
            state.phase = match &opened {
                Ok(connection) => Phase::Open(connection.clone()),
                Err(_) => Phase::Closed,
            };
        }
        opened.map(|connection| (generation, connection))
    }

    /// Gives a connection up, unless another has taken its place.
    fn leave(&self, generation: u64) {
        let mut state = self.state();
        if state.generation == generation && matches!(state.phase, Phase::Open(_)) {
            state.phase = Phase::Closed;
        }
    }

    /// Sends commands and returns one answer each, errors among them. What met a broken connection, or a primary that
    /// was demoted, is sent once more on a new one: every command of this store may be repeated.
    pub(super) async fn send(&self, operation: &'static str, pipeline: &Pipeline) -> Result<Vec<Value>, StoreError> {
        let mut again = true;
        loop {
            let (generation, mut connection) = self.connection().await?;
            let count = pipeline.len();
            let asked = connection.req_packed_commands(pipeline, 0, count);
            match tokio::time::timeout(self.patience.response, asked).await {
                Err(_) => {
                    // The connection may be hanging for good.
                    self.leave(generation);
                    return Err(errors::timed_out(operation));
                }
                Ok(Err(error)) => {
                    self.leave(generation);
                    tracing::debug!(operation, error = %error, again, "a connection to Redis broke");
                    if !(again && (error.is_io_error() || error.is_unrecoverable_error())) {
                        return Err(errors::client(operation, error));
                    }
                }
                Ok(Ok(answers)) => {
                    let demoted = answers.iter().any(is_demoted);
                    if demoted {
                        self.leave(generation);
                    }
                    if !(demoted && again) {
                        return count_checked(operation, answers, count);
                    }
                }
            }
            again = false;
        }
    }
}

/// Whether the answer is that of a primary that became a replica.
pub(super) fn is_demoted(answer: &Value) -> bool {
    matches!(answer, Value::ServerError(error) if error.code() == "READONLY")
}

pub(super) fn count_checked(
    operation: &'static str,
    answers: Vec<Value>,
    count: usize,
) -> Result<Vec<Value>, StoreError> {
    if answers.len() == count { Ok(answers) } else { Err(errors::shape(operation, &Value::Nil)) }
}
