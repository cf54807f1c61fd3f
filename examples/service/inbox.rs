//! Stored first, worked later: messages go through an inbox. `--role accept` puts them there, `--role work` handles them, each in the transaction that has
//! its effect (level L2); `--role work-outside` handles them under a lease, with effects wherever they are (level L1).

use std::sync::Arc;
use std::time::{Duration, Instant};

use hapax::inbox::{self, Inbox, Order, WorkError, WorkSummary, Worker};
use hapax::observe::{Metrics, Observed, Observer};
use hapax::{Claim, Consumer, ConsumerError, Retry, Summary, TransactionalDatabase};
use sqlx::Pool;
use tokio_util::sync::CancellationToken;

use crate::args::Args;
use crate::effects::{Effects, Table};
use crate::handler::Handler;
use crate::http;

/// How often somebody looks how the inbox stands.
const LOOK: Duration = Duration::from_secs(1);

/// Runs the consumer until `shutdown`. The outer error is for what is wrong before the first message is taken.
pub async fn accept<DB: TransactionalDatabase>(
    pool: Pool<DB>,
    args: Args,
    consumer: Consumer,
    metrics: Option<Arc<Metrics>>,
    shutdown: CancellationToken,
) -> Result<Result<Summary, ConsumerError>, String> {
    let inbox = open(pool, &args).await?;
    if let Some(metrics) = metrics {
        tokio::spawn(inbox.watch(LOOK, metrics, shutdown.clone()));
    }
    Ok(consumer.run(inbox.accept(), shutdown).await)
}

/// Runs a worker until `shutdown`.
pub async fn work<DB>(
    pool: Pool<DB>,
    args: Args,
    shutdown: CancellationToken,
) -> Result<Result<WorkSummary, WorkError>, String>
where
    DB: TransactionalDatabase,
    DB::Connection: Table,
{
    let worker = worker(pool, &args, &shutdown).await?;
    let handler = Handler::new(args.work, &args.member);
    let each = async move |message: inbox::Message, tx: &mut DB::Connection| handler.handle_stored(&message, tx).await;
    Ok(worker.run(each, shutdown).await)
}

/// The same with effects elsewhere.
pub async fn work_outside<DB: TransactionalDatabase>(
    pool: Pool<DB>,
    args: Args,
    effects: Effects,
    shutdown: CancellationToken,
) -> Result<Result<WorkSummary, WorkError>, String> {
    let worker = worker(pool, &args, &shutdown).await?.concurrency(args.flow.concurrency);
    let handler = Handler::new(args.work, &args.member);
    let each = move |message: inbox::Message, claim: Claim| {
        let (handler, effects) = (handler.clone(), effects.clone());
        async move { handler.handle_outside(&message, &claim, &effects).await }
    };
    Ok(worker.run_outside(each, shutdown).await)
}

/// Hears how the inbox stands, for the page.
struct Watcher {
    metrics: Arc<Metrics>,
    standing: http::Standing,
}

impl Observer for Watcher {
    fn on(&self, event: &Observed<'_>) {
        self.metrics.on(event);
        self.standing.on(event);
    }
}

/// With a page, if one is wanted.
async fn worker<DB: TransactionalDatabase>(
    pool: Pool<DB>,
    args: &Args,
    shutdown: &CancellationToken,
) -> Result<Worker<DB>, String> {
    let inbox = open(pool, args).await?;
    if let Some(quiet) = args.exit_when_idle {
        tokio::spawn(end_when_idle(inbox.clone(), quiet, shutdown.clone()));
    }
    let worker = inbox
        .worker()
        .order(Order::Key)
        .batch_size(args.once.most)
        .lease(args.once.lease)
        .retry(Retry::exponential(args.once.retry).attempts(args.once.attempts))
        .name(&args.member);
    let Some(port) = args.metrics_port else { return Ok(worker) };
    let (health, standing) = http::Health::of_inbox();
    let page = http::Page::new(health)?;
    let metrics = Arc::new(Metrics::new());
    tokio::spawn(inbox.watch(LOOK, Watcher { metrics: Arc::clone(&metrics), standing }, shutdown.clone()));
    tokio::spawn(http::serve(http::listen(port).await?, page));
    Ok(worker.observer(metrics))
}

async fn open<DB: TransactionalDatabase>(pool: Pool<DB>, args: &Args) -> Result<Inbox<DB>, String> {
    Inbox::builder(pool)
        .scope(&args.kafka.group, "service")
        .identify(args.once.identity.identity())
        .build()
        .await
        .map_err(|e| format!("the inbox: {e}"))
}

/// Ends the worker when nothing has been left to work for so long.
async fn end_when_idle<DB: TransactionalDatabase>(inbox: Inbox<DB>, quiet: Duration, shutdown: CancellationToken) {
    let mut since = Instant::now();
    while since.elapsed() < quiet {
        if inbox.census().await.is_ok_and(|census| census.backlog() > 0) {
            since = Instant::now();
        }
        tokio::time::sleep(Duration::from_millis(250)).await;
    }
    shutdown.cancel();
}
