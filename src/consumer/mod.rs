//! Nothing but the handler: hapax runs the Kafka consumer.
//!
//! ```no_run
//! # #[cfg(feature = "memory")]
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! use hapax::consumer::{Consumer, Message};
//! use hapax::identity::header;
//! use hapax::store::MemoryStore;
//! use hapax::{Claim, Once};
//! use tokio_util::sync::CancellationToken;
//!
//! async fn ship(message: &Message, idempotency_key: String) -> Result<(), std::io::Error> {
//!     println!("{:?} under {idempotency_key}", message.payload());
//!     Ok(())
//! }
//!
//! let once = Once::builder(MemoryStore::new()).scope("orders", "ship").identify(header("message-id")).build().await?;
//! let mut kafka = rdkafka::ClientConfig::new();
//! kafka.set("bootstrap.servers", "localhost:9092").set("group.id", "orders");
//! let shutdown = CancellationToken::new(); // cancel it on SIGTERM
//!
//! let summary = Consumer::new(kafka)
//!     .topics(["orders"])
//!     .run(once.each(async |m: Message, claim: Claim| ship(&m, claim.idempotency_key()).await), shutdown)
//!     .await?;
//! println!("{summary}");
//! # Ok(())
//! # }
//! ```
//!
//! # What it does
//!
//! One OS thread polls Kafka; one task for each assigned partition, its *lane*, handles that partition's messages strictly in
//! order. Side by side run as many handlers as there are partitions.
//!
//! - **Commits**: only the finished prefix of a partition, about once a second, and at once when a partition is revoked or the
//!   consumer ends. `enable.auto.commit` and `enable.auto.offset.store` are refused where they are on.
//! - **Back-pressure**: a partition whose lane is full is paused, and polling goes on; so a handler may take longer than
//!   `max.poll.interval.ms` without costing the membership.
//! - **Rebalance** (eager, cooperative and KIP-848): the lanes of revoked partitions begin no further message, the running ones are
//!   waited for, at most for the drain deadline, and what is finished is committed before the partition goes. When partitions are *lost*,
//!   nothing is committed, and what their running handlers come to is decided by their claim, never by this consumer's memory.
//! - **A store that is away**: the lane waits, the partition fills up and is paused, nothing is committed, nothing is lost.

mod bell;
mod committer;
mod config;
mod context;
mod each;
mod error;
mod handling;
mod lane;
mod message;
mod partitions;
mod summary;
mod thread;

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::config::FromClientConfigAndContext as _;
use tokio::runtime::Handle;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

pub use config::ConfigError;
pub use error::ConsumerError;
pub use handling::{Ending, Failure, Handling};
pub use message::Message;
pub use summary::{PartitionSummary, Summary};

use committer::Committer;
use config::{Settings, Wishes};
use context::{Client, Context, End};
use lane::Lane;
use thread::{KafkaThread, Stop};

/// A Kafka consumer that handles each message once. See the [module](self) for what it does.
#[derive(Clone, Debug)]
#[must_use = "a consumer does nothing until it runs"]
pub struct Consumer {
    wishes: Wishes,
}

impl Consumer {
    /// A consumer with rdkafka's own settings: `group.id` and `bootstrap.servers` at least.
    ///
    /// Added where they are not set: `enable.auto.commit=false`, `enable.auto.offset.store=false`, and `fetch.queue.backoff.ms=10`, without which
    /// librdkafka stops fetching for a second whenever its queue is full.
    pub fn new(client: ClientConfig) -> Self {
        Self { wishes: Wishes::new(client) }
    }

    /// Which topics to read. A name that begins with `^` is a regular expression, as in librdkafka.
    pub fn topics<T: Into<String>>(mut self, topics: impl IntoIterator<Item = T>) -> Self {
        self.wishes.topics = topics.into_iter().map(Into::into).collect();
        self
    }

    /// Time between two commits while partitions are owned. Default: one second.
    ///
    /// A member that is killed leaves at most so much behind to be delivered again; the store knows that it was handled.
    pub const fn commit_every(mut self, every: Duration) -> Self {
        self.wishes.commit_every = every;
        self
    }

    /// Commit earlier when so many messages finished. Default: 50,000.
    pub const fn commit_after(mut self, messages: u64) -> Self {
        self.wishes.commit_after = messages;
        self
    }

    /// How long running handlers are waited for when their partition is revoked or the consumer ends. Default: 10 seconds,
    /// but never more than half of `max.poll.interval.ms`.
    ///
    /// A handler that takes longer is dropped where it waits; its message is delivered again, to whoever gets the partition.
    pub const fn drain_deadline(mut self, deadline: Duration) -> Self {
        self.wishes.drain = Some(deadline);
        self
    }

    /// How many messages of one partition may be delivered and unfinished; beyond that the partition is paused. Default: 2,048.
    ///
    /// That bounds the memory that messages take here; librdkafka's own queue is bounded by `queued.max.messages.kbytes`.
    pub const fn intake(mut self, messages: usize) -> Self {
        self.wishes.intake = messages;
        self
    }

    /// Consumes until `shutdown` is cancelled: then finishes what runs, commits, leaves the group, and says what was done.
    ///
    /// Handlers run on the tokio runtime that this is awaited in.
    ///
    /// # Errors
    ///
    /// [`ConsumerError`]: a setting was refused, or something that needs a person ended the consumer early. Brokers that are away are no error:
    /// librdkafka tries for ever, and the log says so.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future aborts: running handlers are dropped where they wait, what was finished is committed, and the group is left,
    /// in the background. To finish what runs, cancel `shutdown` instead.
    // Not an `async fn`: that it is `Send` is said here, where it can be shown, and not left to be found out in every caller's `spawn`.
    pub fn run<H: Handling>(
        self,
        handling: H,
        shutdown: CancellationToken,
    ) -> impl Future<Output = Result<Summary, ConsumerError>> + Send {
        self.go(handling, shutdown)
    }

    async fn go<H: Handling>(self, handling: H, shutdown: CancellationToken) -> Result<Summary, ConsumerError> {
        let settings = self.wishes.check()?;
        let runtime = Handle::try_current().map_err(|_| ConsumerError::NoRuntime)?;
        report(&settings, &handling);
        let stop = Arc::new(Stop::default());
        let (done, mut outcome) = oneshot::channel();
        let handling = Arc::new(handling);
        let (drain, thread) = (settings.drain, {
            let stop = Arc::clone(&stop);
            let handling = Arc::clone(&handling);
            move || {
                let _ = done.send(consume(settings, runtime, handling, stop));
            }
        });
        std::thread::Builder::new()
            .name("hapax-kafka".into())
            .spawn(thread)
            .map_err(|error| ConsumerError::Thread { what: format!("could not be started: {error}") })?;
        let abort = AbortOnDrop(&stop);
        let outcome = tokio::select! {
            outcome = &mut outcome => outcome,
            () = shutdown.cancelled() => {
                stop.drain();
                outcome.await
            }
        };
        drop(abort);
        let mut outcome = outcome.unwrap_or_else(|_| Err(ConsumerError::Thread { what: "panicked".into() }));
        let unsettled = handling.finish(drain).await;
        if let Some(summary) = outcome.as_mut().map_or_else(ConsumerError::summary_mut, Some) {
            summary.unsettled = unsettled;
            info!(%summary, "the consumer ended");
        }
        outcome
    }
}

/// Ends the Kafka thread when nobody waits for it any more.
struct AbortOnDrop<'a>(&'a Stop);

impl Drop for AbortOnDrop<'_> {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// What runs on the Kafka thread, from the making of the client to its end.
fn consume<H: Handling>(
    settings: Settings,
    runtime: Handle,
    handling: Arc<H>,
    stop: Arc<Stop>,
) -> Result<Summary, ConsumerError> {
    let bell = Arc::clone(&stop.bell);
    let start_lane = Box::new(move |epoch| Lane::start(&runtime, Arc::clone(&handling), Arc::clone(&bell), epoch));
    let context = Context::new(settings.clone(), Arc::clone(&stop.bell), start_lane);
    let made = Client::from_config_and_context(&settings.client, context);
    let mut client = made.map_err(|source| ConsumerError::Client { source })?;
    let ringer = Arc::clone(&stop.bell);
    client.set_nonempty_callback(move || ringer.ring());
    let client = Arc::new(client);
    let committer = Committer::start(Arc::downgrade(&client), Arc::clone(&stop.bell))
        .map_err(|error| ConsumerError::Thread { what: format!("that commits could not be started: {error}") })?;
    rdkafka::consumer::Consumer::context(&*client).attach(committer);
    let topics: Vec<&str> = settings.topics.iter().map(String::as_str).collect();
    rdkafka::consumer::Consumer::subscribe(&*client, &topics).map_err(|source| ConsumerError::Client { source })?;
    let (summary, end) = KafkaThread { client, settings, stop }.run();
    let summary_box = || Box::new(summary.clone());
    match end {
        None => Ok(summary),
        Some(End::Message { topic, partition, offset, failure }) => {
            Err(ConsumerError::Message { topic, partition, offset, source: failure, summary: summary_box() })
        }
        Some(End::Lane { topic, partition }) => Err(ConsumerError::Lane { topic, partition, summary: summary_box() }),
        Some(End::Kafka { reason, source }) => Err(ConsumerError::Kafka { reason, source, summary: summary_box() }),
    }
}

/// The start-up report.
fn report<H: Handling>(settings: &Settings, handling: &H) {
    info!(
        group = settings.group,
        topics = ?settings.topics,
        handling = %handling.describe(),
        order = "by partition",
        commit_every = ?settings.commit_every,
        drain_deadline = ?settings.drain,
        intake = settings.intake,
        "the consumer starts"
    );
    if !settings.backoff_set {
        info!(
            "fetch.queue.backoff.ms is set to 10; with librdkafka's 1000 a full queue stops the fetcher for a second"
        );
    }
    if let Some(stall) = settings.stall {
        warn!(
            stall = ?stall,
            "if this member is killed, nobody gets its partitions for the session time-out; set group.instance.id so that its restart gets them \
             back at once, or a shorter session.timeout.ms"
        );
    }
}
