//! A consumer's run: what is started, in which order it ends, and what is said of it.

use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rdkafka::config::FromClientConfigAndContext as _;
use tokio::runtime::Handle;
use tokio::sync::mpsc::{self, UnboundedSender};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::bell::Bell;
use super::builder::Consumer;
use super::committer::Committer;
use super::config::Settings;
use super::context::{Client, Context, End};
use super::continuity::Discontinuity;
use super::dead_letter::{DeadLetter, DeadLetterError};
use super::error::{ConsumerError, unsaid};
use super::finding::OnReset;
use super::gate::Gate;
use super::handling::{Handling, Needs};
use super::link::{Input, Line};
use super::observe::Probe;
use super::pump::{self, Letters, Setup};
use super::report::Report;
use super::retention;
use super::summary::{Summary, Tally};
use super::thread::{Came, KafkaThread, Stop, leave};
use super::windows::Windowed;
use crate::engine::{Config, OnDead};
use crate::level::Level;
use crate::wrapper::{Described, Mode};

/// How often librdkafka tells its statistics, in milliseconds.
const STATISTICS: &str = "statistics.interval.ms";
/// For how long a static member whose place the broker still keeps tries to join: twice the longest session that a broker allows by default
/// (`group.consumer.max.session.timeout.ms`).
const RELEASE: Duration = Duration::from_secs(120);
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
        let Self { wishes, mut probe } = self;
        let mut settings = wishes.check()?;
        let runtime = Handle::try_current().map_err(|_| ConsumerError::NoRuntime)?;
        let once = handling.described();
        if once.as_ref().and_then(|once| once.level) == Some(Level::L2) {
            settings.reads_committed()?;
        }
        handling.retry(&settings.options.retry.unwrap_or_else(|| handling.needs().retry));
        settings.windows = handling.windows().map(|windows| Windowed { windows, runtime: runtime.clone() });
        remembers(&mut settings, once.as_ref()).await?;
        let letters = match settings.dead_letter.clone() {
            Some(dead_letter) => Some(dead_letter.of(once.as_ref()).connect(&settings.client).await?),
            None => None,
        };
        report(&settings, &handling.needs(), once.as_ref());
        if probe.is_watched() && settings.client.get(STATISTICS).is_none() {
            // Where partitions end: librdkafka tells it with its statistics.
            settings.client.set(STATISTICS, "1000");
        }
        probe.started(&settings.group, once.as_ref().map(|once| &*once.handler));
        let _ended = EndedOnDrop(probe.clone());
        let stop = Arc::new(Stop::default());
        let gate = Arc::new(Gate::new(Arc::clone(&stop.bell)));
        let line = Line::new(Arc::clone(&stop.bell), Arc::clone(&gate));
        let (inputs, waiting) = mpsc::unbounded_channel();
        let letters = letters.map(|letters| Arc::new(letters) as Arc<dyn Letters>);
        let setup = settings.setup(&handling.needs(), letters, line, probe.clone());
        // Ends when the Kafka thread closes it, or is gone.
        let pump = pump::start(&runtime, Arc::new(handling), setup, waiting);
        let (done, mut outcome) = oneshot::channel();
        let drain = settings.drain;
        let thread = {
            let (stop, probe) = (Arc::clone(&stop), probe.clone());
            move || {
                let _ = done.send(consume(settings, inputs, gate, stop, probe));
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
                probe.closing();
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

/// Sets the policy for resets where the user did not, and compares what the store remembers with what the topics keep.
async fn remembers(settings: &mut Settings, once: Option<&Described>) -> Result<(), ConsumerError> {
    let strict = once.and_then(|once| once.level).is_some_and(|level| level >= Level::L1);
    let policy = if strict { OnReset::Refuse } else { OnReset::Warn };
    let policy = *settings.options.on_reset.get_or_insert(policy);
    let Some(once) = once.filter(|once| once.mode != Mode::AtLeastOnce) else { return Ok(()) };
    let strict = policy == OnReset::Refuse;
    let (client, topics, reset) = (settings.client.clone(), settings.topics.clone(), settings.reset);
    let kept = once.retention;
    let check = async move {
        let report = retention::check(&client, &topics, kept, reset, strict).await;
        report.warnings().for_each(|finding| warn!("{finding}"));
        report
    };
    if !strict {
        // Nothing but warnings can come of it: nobody has to wait for those.
        drop(tokio::spawn(check));
        return Ok(());
    }
    let report = check.await;
    if report.errors().next().is_some() { Err(ConsumerError::Retention { report }) } else { Ok(()) }
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

/// Tells the monitor that the consumer is no more, however it ended.
struct EndedOnDrop(Probe);

impl Drop for EndedOnDrop {
    fn drop(&mut self) {
        self.0.ended();
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
fn consume(
    settings: Settings,
    inputs: UnboundedSender<Input>,
    gate: Arc<Gate>,
    stop: Arc<Stop>,
    probe: Probe,
) -> Result<Summary, ConsumerError> {
    let mut patience = None;
    let mut context = Context::new(settings.clone(), Arc::clone(&stop.bell), Arc::clone(&gate), inputs, probe);
    let (summary, end) = loop {
        let client = connect(&settings, context, &stop.bell)?;
        let thread = KafkaThread::new(client, Arc::clone(&gate), settings.drain, Arc::clone(&stop), patience);
        let before = match thread.run() {
            Came::Ended(outcome) => break *outcome,
            Came::Refused(client) => {
                patience.get_or_insert_with(|| {
                    let instance = settings.client.get("group.instance.id").unwrap_or_default();
                    warn!(
                        instance,
                        "the broker keeps the place of this static member, which did not leave in good order, until its session is \
                         over: joining is tried for {} s",
                        RELEASE.as_secs()
                    );
                    Instant::now() + RELEASE
                });
                client
            }
            Came::Outlived(client) => client,
        };
        context = rdkafka::consumer::Consumer::context(&*before).again();
        leave(before);
    };
    let summary_box = || Box::new(summary.clone());
    match end {
        None => Ok(summary),
        Some(End::Message { topic, partition, offset, failure }) => {
            Err(ConsumerError::Message { topic, partition, offset, source: failure, summary: summary_box() })
        }
        Some(End::Discontinuity(Discontinuity { topic, partition, finding })) => {
            Err(ConsumerError::Discontinuity { topic, partition, finding, summary: summary_box() })
        }
        Some(End::Windows(source)) => Err(ConsumerError::Windows { source, summary: summary_box() }),
        Some(End::DeadLetter(error)) => Err(DeadLetterError::Topic(error).into()),
        Some(End::Gone) => Err(ConsumerError::Gone { summary: summary_box() }),
        Some(End::Kafka { reason, source }) => Err(ConsumerError::Kafka { reason, source, summary: summary_box() }),
    }
}

/// Makes a client that is about to join its group.
fn connect(settings: &Settings, context: Context, bell: &Arc<Bell>) -> Result<Arc<Client>, ConsumerError> {
    let made = Client::from_config_and_context(&settings.client, context);
    let mut client = made.map_err(|source| ConsumerError::Client { source: unsaid(source) })?;
    let ringer = Arc::clone(bell);
    client.set_nonempty_callback(move || ringer.ring());
    let client = Arc::new(client);
    let committer = Committer::start(Arc::downgrade(&client), Arc::clone(bell))
        .map_err(|error| ConsumerError::Thread { what: format!("that commits could not be started: {error}") })?;
    rdkafka::consumer::Consumer::context(&*client).attach(committer);
    let topics: Vec<&str> = settings.topics.iter().map(String::as_str).collect();
    rdkafka::consumer::Consumer::subscribe(&*client, &topics).map_err(|source| ConsumerError::Client { source })?;
    Ok(client)
}

impl Settings {
    /// What the pump works with.
    fn setup(&self, needs: &Needs, letters: Option<Arc<dyn Letters>>, line: Line, probe: Probe) -> Setup {
        let options = &self.options;
        let retry = options.retry.unwrap_or(needs.retry);
        let mut config = Config {
            order: options.order,
            step_aside: options.step_aside,
            concurrency: options.concurrency,
            messages: options.max_messages,
            partition_messages: options.partition_messages,
            commit_every: options.commit_every,
            commit_after: options.commit_after,
            on_dead: match (letters.is_some(), needs.keeps_dead) {
                (true, _) => OnDead::Letter,
                (false, true) => OnDead::Record,
                (false, false) => OnDead::Stop,
            },
            ..Config::default()
        };
        needs.fill(&retry, &mut config);
        Setup { config, retry, letters, line, probe, drain: self.drain }
    }
}

/// The start-up report: one screen in the log.
fn report(settings: &Settings, needs: &Needs, once: Option<&Described>) {
    let options = &settings.options;
    let retry = options.retry.unwrap_or(needs.retry);
    let report = Report {
        group: &settings.group,
        instance: settings.client.get("group.instance.id").filter(|instance| !instance.trim().is_empty()),
        new_protocol: settings.client.get("group.protocol").is_some_and(|own| own.eq_ignore_ascii_case("consumer")),
        topics: &settings.topics,
        order: options.order,
        step_aside: options.step_aside,
        concurrency: options.concurrency,
        batch: needs.batch,
        once,
        attempts: retry.max_attempts().get(),
        retries: retry.is_in_place(),
        dead_letter: settings.dead_letter.as_ref().map(DeadLetter::name),
        on_reset: options.on_reset.map(|on_reset| match on_reset {
            OnReset::Refuse => "refused: where the group cannot go on where it left off, the consumer ends",
            OnReset::Warn => "said in the log, and gone on",
            OnReset::Accept => "accepted",
        }),
        partition_messages: options.partition_messages,
        max_messages: options.max_messages,
        max_bytes: options.max_bytes,
        commit_every: options.commit_every,
        commit_after: options.commit_after,
        drain: settings.drain,
        stall: settings.stall,
        backoff_set_here: !settings.backoff_set,
    };
    info!("the consumer starts\n{report}");
}
