//! Stored first, worked later: messages go through an inbox in the effects' database. `--role accept` puts them there, `--role work` handles them,
//! each in the transaction that has its effect (level L2).

use std::time::{Duration, Instant};

use hapax::inbox::{self, Inbox, Order, WorkError, WorkSummary};
use hapax::{Consumer, ConsumerError, Retry, Summary, TransactionalDatabase};
use sqlx::Pool;
use tokio_util::sync::CancellationToken;

use crate::args::Args;
use crate::effects::Table;
use crate::handler::Handler;

/// Runs the consumer until `shutdown`. The outer error is for what is wrong before the first message is taken.
pub async fn accept<DB: TransactionalDatabase>(
    pool: Pool<DB>,
    args: Args,
    consumer: Consumer,
    shutdown: CancellationToken,
) -> Result<Result<Summary, ConsumerError>, String> {
    let inbox = open(pool, &args).await?;
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
    let inbox = open(pool, &args).await?;
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
    let handler = Handler::new(args.work, &args.member);
    let each = async move |message: inbox::Message, tx: &mut DB::Connection| handler.handle_stored(&message, tx).await;
    Ok(worker.run(each, shutdown).await)
}

async fn open<DB: TransactionalDatabase>(pool: Pool<DB>, args: &Args) -> Result<Inbox<DB>, String> {
    Inbox::builder(pool)
        .scope(&args.kafka.group, "service")
        .identify(args.once.identity.identity())
        .build()
        .await
        .map_err(|e| format!("--effects: {e}"))
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
