//! A consumer's run: what is started, in which order it ends, and what is said of it.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use rdkafka::config::FromClientConfigAndContext as _;
use tokio::runtime::Handle;
use tokio::sync::mpsc::{self, UnboundedSender};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::builder::Consumer;
use super::committer::Committer;
use super::config::Settings;
use super::context::{Client, Context, End};
use super::error::ConsumerError;
use super::gate::Gate;
use super::handling::{Handling, Needs};
use super::link::{Input, Line};
use super::pump::{self, Setup};
use super::summary::{Summary, Tally};
use super::thread::{KafkaThread, Stop};
use crate::engine::Config;

/// What the pump may take to end, beyond the drain deadline.
const LATE: Duration = Duration::from_secs(5);

impl Consumer {
    /// Consumes until `shutdown` is cancelled: then begins nothing more, finishes what runs, commits, leaves the group, and says what was done.
    ///
    /// Handlers run on the tokio runtime that this is awaited in. [`shutdown_signal`](super::shutdown_signal) makes a token that SIGTERM and SIGINT cancel.
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
        let gate = Arc::new(Gate::new(Arc::clone(&stop.bell)));
        let line = Line::new(Arc::clone(&stop.bell), Arc::clone(&gate));
        let (inputs, waiting) = mpsc::unbounded_channel();
        let setup = settings.setup(&handling.needs(), line);
        // Ends when the Kafka thread closes it, or is gone.
        let pump = pump::start(&runtime, Arc::new(handling), setup, waiting);
        let (done, mut outcome) = oneshot::channel();
        let drain = settings.drain;
        let thread = {
            let stop = Arc::clone(&stop);
            move || {
                let _ = done.send(consume(settings, inputs, gate, stop));
            }
        };
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
        let tally = tally(pump, drain + LATE).await;
        if let Some(summary) = outcome.as_mut().map_or_else(ConsumerError::summary_mut, Some) {
            summary.add(&tally);
            info!(%summary, "the consumer ended");
        }
        outcome
    }
}

/// What the pump counted, once it has told the store what that has not heard.
async fn tally(mut pump: JoinHandle<Tally>, longest: Duration) -> Tally {
    match tokio::time::timeout(longest, &mut pump).await {
        Ok(Ok(tally)) => return tally,
        Ok(Err(error)) => warn!(%error, "the task that drives the handlers is gone; what it did is not counted"),
        Err(_) => {
            pump.abort();
            warn!("the task that drives the handlers did not end; what it did is not counted");
        }
    }
    Tally::default()
}

/// Ends the Kafka thread when nobody waits for it any more.
struct AbortOnDrop<'a>(&'a Stop);

impl Drop for AbortOnDrop<'_> {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// What runs on the Kafka thread, from the making of the client to its end.
fn consume(
    settings: Settings,
    inputs: UnboundedSender<Input>,
    gate: Arc<Gate>,
    stop: Arc<Stop>,
) -> Result<Summary, ConsumerError> {
    let context = Context::new(settings.clone(), Arc::clone(&stop.bell), Arc::clone(&gate), inputs);
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
    let (summary, end) = KafkaThread { client, gate, drain: settings.drain, stop }.run();
    let summary_box = || Box::new(summary.clone());
    match end {
        None => Ok(summary),
        Some(End::Message { topic, partition, offset, failure }) => {
            Err(ConsumerError::Message { topic, partition, offset, source: failure, summary: summary_box() })
        }
        Some(End::Gone) => Err(ConsumerError::Gone { summary: summary_box() }),
        Some(End::Kafka { reason, source }) => Err(ConsumerError::Kafka { reason, source, summary: summary_box() }),
    }
}

impl Settings {
    /// What the pump works with.
    fn setup(&self, needs: &Needs, line: Line) -> Setup {
        let options = &self.options;
        let retry = options.retry.unwrap_or(needs.retry);
        let mut config = Config {
            order: options.order,
            step_aside: options.step_aside,
            concurrency: options.concurrency,
            partition_messages: options.partition_messages,
            commit_every: options.commit_every,
            commit_after: options.commit_after,
            ..Config::default()
        };
        needs.fill(&retry, &mut config);
        Setup { config, retry, letters: None, line, drain: self.drain }
    }
}

/// The start-up report.
fn report<H: Handling>(settings: &Settings, handling: &H) {
    let options = &settings.options;
    info!(
        group = settings.group,
        topics = ?settings.topics,
        handling = %handling.describe(),
        order = ?options.order,
        concurrency = options.concurrency,
        max_messages = options.max_messages,
        max_bytes = options.max_bytes,
        commit_every = ?options.commit_every,
        drain_deadline = ?settings.drain,
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
