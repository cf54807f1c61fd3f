//! Records in Redis: one server, Sentinel, Cluster, or a connection of the user's own.

mod calls;
mod cells;
mod check;
#[cfg(feature = "redis-cluster")]
mod cluster;
mod errors;
mod given;
mod link;
#[cfg(feature = "redis-sentinel")]
mod sentinel;
mod value;
mod wire;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use redis::aio::ConnectionLike;

use super::{Ask, Batch, DedupStore, Description, Purged, Report, Retention, StoreError, cells as rules};
use crate::identity::Key;
use crate::level::Level;
use crate::record::{
    ClaimOutcome, Extend, ExtendOutcome, Record, RequeueOutcome, Settle, SettleOutcome, Terms, Verdict,
};
use errors::NAME;
use link::{Clock, Link, Opener, Patience};
use wire::Wire;

/// Keeps records in Redis 7.0 or newer, one key each: level L0.
///
/// **L0 means:** no message is lost, but an effect may repeat after a lease that ran out, after a crash between effect and settle, **and
/// whenever Redis forgets**: replication is asynchronous, so a failover can forget acknowledged claims and successes; a restart without
/// `appendonly` forgets all since the last snapshot; eviction forgets at any time; a step of the server's clock ends leases early or late.
/// [`check`](DedupStore::check) names the settings that matter. Where a second effect costs money, use a SQL store.
///
/// # What it costs
///
/// - A batch of new messages: one pipeline of `SET … NX GET PX`, one command a message. Duplicates too.
/// - What is read first (a hint of the filter, see `Prechecked`): one `MGET`, cheaper still.
/// - What stands and is not final (in flight, failed): one more pipeline to learn its age, and one more where it is taken over.
/// - Successes: one pipeline of `SET … GET PX`. Failing, releasing, giving up, extending and requeueing: one pipeline of `EVALSHA`, one key each.
/// - In Cluster: the same, as one pipeline to each node, all nodes at once. Over the client library's own cluster connection
///   ([`with_connection`](Self::with_connection)), which takes no pipeline across slots, each command goes alone.
///
/// # Time
///
/// The server's clock decides: each value holds the time to live it was written with, and what is left of it tells its age.
/// Times in answers are Unix milliseconds by the server's clock, as learnt when the connection was made: good to show, not to decide by.
///
/// # Connection
///
/// A broken connection is made anew, once for all who wait, and what met it is sent once more: every command may be repeated. A call
/// that gets no answer in time fails as [`Unavailable`](super::StoreErrorKind::Unavailable), its outcome unknown, and its connection is given up.
/// A primary that became a replica is left; with Sentinel the sentinels are asked again. All of this is retryable.
///
/// # Rights
///
/// An ACL user needs `~PREFIX* +set +get +mget +pttl +evalsha +eval +time +role`, for the check `+info +config|get`, in Cluster `+cluster|slots +asking`;
/// `+role` and `+time` may be missing.
///
/// Clones share one connection. No future of its methods does harm when dropped: each record is then moved or not moved, as after a lost reply.
#[derive(Clone)]
pub struct RedisStore {
    wire: Arc<Wire>,
    prefix: Arc<str>,
    retention: Retention,
}

impl RedisStore {
    /// Connects to one server, `redis://user:password@host:6379/0`, or `rediss://` for TLS, with default settings. Level L0.
    ///
    /// # Errors
    ///
    /// Retryable when the server is not reached or is a replica; not when the URL or the credentials are wrong.
    pub async fn connect(url: &str) -> Result<Self, StoreError> {
        Self::builder().connect(url).await
    }

    /// Connects to a cluster, of which some nodes are named, with default settings. Level L0.
    ///
    /// # Errors
    ///
    /// As for [`connect`](Self::connect).
    #[cfg(feature = "redis-cluster")]
    pub async fn cluster<U: AsRef<str>>(urls: impl IntoIterator<Item = U>) -> Result<Self, StoreError> {
        Self::builder().cluster(urls).await
    }

    /// Connects to the primary that sentinels name, with default settings. Level L0.
    ///
    /// User, password and database of the data nodes: [`RedisBuilder::sentinel_nodes`].
    ///
    /// # Errors
    ///
    /// As for [`connect`](Self::connect); not retryable when the sentinels do not know the name.
    #[cfg(feature = "redis-sentinel")]
    pub async fn sentinel<U: AsRef<str>>(
        urls: impl IntoIterator<Item = U>,
        master_name: &str,
    ) -> Result<Self, StoreError> {
        Self::builder().sentinel(urls, master_name).await
    }

    /// Uses a connection of the user's own, with default settings. Level L0.
    ///
    /// It must reach a primary, and must not read from replicas. Its own time-outs hold too; it mends itself if it can (a
    /// `ConnectionManager` does, a `MultiplexedConnection` does not).
    #[must_use]
    pub fn with_connection<C>(connection: C) -> Self
    where
        C: ConnectionLike + Clone + Send + Sync + 'static,
    {
        let builder = Self::builder();
        let patience = builder.patience;
        builder.store(Wire::given(connection, patience))
    }

    /// Settings other than the defaults.
    #[must_use]
    pub fn builder() -> RedisBuilder {
        RedisBuilder::default()
    }
}

impl fmt::Debug for RedisStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisStore")
            .field("to", &self.wire)
            .field("prefix", &self.prefix)
            .field("retention", &self.retention)
            .finish()
    }
}

/// Settings of a [`RedisStore`].
#[derive(Clone)]
pub struct RedisBuilder {
    prefix: String,
    retention: Retention,
    patience: Patience,
    #[cfg(feature = "redis-sentinel")]
    node: Option<String>,
}

impl Default for RedisBuilder {
    fn default() -> Self {
        Self {
            prefix: "hapax:".to_owned(),
            retention: Retention::default(),
            patience: Patience { connect: Duration::from_secs(5), response: Duration::from_secs(5) },
            #[cfg(feature = "redis-sentinel")]
            node: None,
        }
    }
}

impl fmt::Debug for RedisBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisBuilder")
            .field("prefix", &self.prefix)
            .field("retention", &self.retention)
            .field("patience", &self.patience)
            .finish_non_exhaustive()
    }
}

impl RedisBuilder {
    /// What every key begins with; the message's 16 binary bytes follow. Default: `hapax:`.
    ///
    /// 1 to 64 printable ASCII characters without space and braces (braces would put all records of a cluster on one node).
    #[must_use]
    pub fn prefix(mut self, prefix: impl Into<String>) -> Self {
        self.prefix = prefix.into();
        self
    }

    /// How long records are kept. Redis removes them by itself. Durations over 100 years are cut.
    #[must_use]
    pub const fn retention(mut self, retention: Retention) -> Self {
        self.retention = retention;
        self
    }

    /// How long to wait for an answer; an answer that comes later is an unknown outcome. Default: 5 seconds.
    #[must_use]
    pub const fn response_timeout(mut self, timeout: Duration) -> Self {
        self.patience.response = timeout;
        self
    }

    /// How long to wait for a connection that serves. Default: 5 seconds.
    #[must_use]
    pub const fn connect_timeout(mut self, timeout: Duration) -> Self {
        self.patience.connect = timeout;
        self
    }

    /// With Sentinel: the URL whose user, password, database and TLS hold for the data nodes. Its host is not used.
    /// Default: none of them.
    #[cfg(feature = "redis-sentinel")]
    #[must_use]
    pub fn sentinel_nodes(mut self, url: impl Into<String>) -> Self {
        self.node = Some(url.into());
        self
    }

    /// Connects to one server.
    ///
    /// # Errors
    ///
    /// As for [`RedisStore::connect`]; not retryable when the prefix is not allowed.
    pub async fn connect(self, url: &str) -> Result<RedisStore, StoreError> {
        self.validate()?;
        let clock = Arc::<Clock>::default();
        let opener = Opener::Server { info: Box::new(link::parse(url)?), primary: true };
        let link = Link::new(opener, Arc::clone(&clock), self.patience);
        let wire = Wire::one(link, clock, self.patience).await?;
        Ok(self.store(wire))
    }

    /// Connects to a cluster. The first URL's user, password and TLS hold for all nodes.
    ///
    /// # Errors
    ///
    /// As for [`connect`](Self::connect).
    #[cfg(feature = "redis-cluster")]
    pub async fn cluster<U: AsRef<str>>(self, urls: impl IntoIterator<Item = U>) -> Result<RedisStore, StoreError> {
        self.validate()?;
        let seeds = urls.into_iter().map(|url| link::parse(url.as_ref())).collect::<Result<Vec<_>, _>>()?;
        let node = seeds.first().cloned().ok_or_else(no_url)?;
        let clock = Arc::<Clock>::default();
        let nodes = cluster::Nodes::new(node, &seeds, Arc::clone(&clock), self.patience);
        let wire = Wire::cluster(nodes, clock, self.patience).await?;
        Ok(self.store(wire))
    }

    /// Connects to the primary that sentinels name. Each URL's user, password and TLS are those of its sentinel.
    ///
    /// # Errors
    ///
    /// As for [`RedisStore::sentinel`].
    #[cfg(feature = "redis-sentinel")]
    pub async fn sentinel<U: AsRef<str>>(
        self,
        urls: impl IntoIterator<Item = U>,
        master_name: &str,
    ) -> Result<RedisStore, StoreError> {
        self.validate()?;
        let sentinels = urls.into_iter().map(|url| link::parse(url.as_ref())).collect::<Result<Vec<_>, _>>()?;
        if sentinels.is_empty() {
            return Err(no_url());
        }
        let node = link::parse(self.node.as_deref().unwrap_or("redis://localhost"))?;
        let clock = Arc::<Clock>::default();
        let opener = Opener::Sentinel(Box::new(sentinel::Sentinels::new(sentinels, master_name.to_owned(), node)));
        let link = Link::new(opener, Arc::clone(&clock), self.patience);
        let wire = Wire::one(link, clock, self.patience).await?;
        Ok(self.store(wire))
    }

    /// Uses a connection of the user's own. See [`RedisStore::with_connection`].
    ///
    /// # Errors
    ///
    /// When the prefix is not allowed.
    pub fn with_connection<C>(self, connection: C) -> Result<RedisStore, StoreError>
    where
        C: ConnectionLike + Clone + Send + Sync + 'static,
    {
        self.validate()?;
        let wire = Wire::given(connection, self.patience);
        Ok(self.store(wire))
    }

    fn store(self, wire: Wire) -> RedisStore {
        RedisStore { wire: Arc::new(wire), prefix: self.prefix.into(), retention: self.retention }
    }

    fn validate(&self) -> Result<(), StoreError> {
        let allowed = |byte: u8| byte.is_ascii_graphic() && !matches!(byte, b'{' | b'}');
        if matches!(self.prefix.len(), 1..=64) && self.prefix.bytes().all(allowed) {
            return Ok(());
        }
        Err(StoreError::refused(
            NAME,
            "connect",
            "the key prefix is not allowed. Use 1 to 64 printable ASCII characters without space and braces.",
        ))
    }
}

#[cfg(any(feature = "redis-cluster", feature = "redis-sentinel"))]
fn no_url() -> StoreError {
    StoreError::refused(NAME, "connect", "no URL was given. Name at least one node.")
}

#[async_trait]
impl DedupStore for RedisStore {
    fn describe(&self) -> Description {
        Description::new(NAME, Level::L0)
    }

    fn retention(&self) -> Retention {
        self.retention
    }

    async fn claim(&self, terms: &Terms, asks: &Batch<Ask>) -> Result<Vec<ClaimOutcome>, StoreError> {
        rules::claim(self, terms, asks).await
    }

    async fn settle(&self, settles: &Batch<Settle>) -> Result<Vec<SettleOutcome>, StoreError> {
        let is_success = |settle: &Settle| matches!(settle.verdict, Verdict::Succeeded { .. });
        let successes: Vec<&Settle> = settles.items().iter().filter(|settle| is_success(settle)).collect();
        if successes.len() == settles.len() {
            return self.succeed(&successes).await;
        }
        let others = settles.filter(|settle| !is_success(settle));
        let (facts, rights) = tokio::join!(self.succeed(&successes), rules::settle(self, &others));
        let (mut facts, mut rights) = (facts?.into_iter(), rights?.into_iter());
        let next = |settle| if is_success(settle) { facts.next() } else { rights.next() };
        settles
            .items()
            .iter()
            .map(next)
            .collect::<Option<Vec<SettleOutcome>>>()
            .ok_or_else(|| StoreError::corrupt(NAME, "settle", "it answered too few items"))
    }

    async fn extend(&self, claims: &Batch<Extend>) -> Result<Vec<ExtendOutcome>, StoreError> {
        rules::extend(self, claims).await
    }

    async fn get(&self, keys: &Batch<Key>) -> Result<Vec<Option<Record>>, StoreError> {
        rules::get(self, keys).await
    }

    async fn requeue(&self, keys: &Batch<Key>) -> Result<Vec<RequeueOutcome>, StoreError> {
        rules::requeue(self, keys).await
    }

    /// Removes nothing: Redis expires records by itself.
    async fn purge(&self, _limit: usize) -> Result<Purged, StoreError> {
        Ok(Purged::default())
    }

    /// Creates nothing; refuses a server older than Redis 7.0.
    async fn ensure_schema(&self) -> Result<(), StoreError> {
        check::check_version(&self.wire).await
    }

    async fn check(&self) -> Result<Report, StoreError> {
        check::check(&self.wire).await
    }
}
