//! Effect and memory in one transaction of the effects' database: level L2.

use hapax::identity::{Identify, position};
use hapax::{Consumer, ConsumerError, Message, Once, Retry, Summary, Transactional, TransactionalDatabase};
use sqlx::Pool;
use tokio_util::sync::CancellationToken;

use crate::args::{Args, Memory};
use crate::effects::Table;
use crate::handler::Handler;

/// Runs the consumer until `shutdown`. The outer error is for what is wrong before the first message is taken.
pub async fn run<DB>(
    pool: Pool<DB>,
    args: Args,
    memory: Memory,
    consumer: Consumer,
    shutdown: CancellationToken,
) -> Result<Result<Summary, ConsumerError>, String>
where
    DB: TransactionalDatabase,
    DB::Connection: Table,
{
    let once = once(pool, &args, memory).await?;
    let handler = Handler::new(args.work, &args.member);
    let each = once.each(async move |message: Message, tx: &mut DB::Connection| handler.handle_in(&message, tx).await);
    Ok(consumer.run(each, shutdown).await)
}

async fn once<DB: TransactionalDatabase>(
    pool: Pool<DB>,
    args: &Args,
    memory: Memory,
) -> Result<Transactional<DB>, String> {
    let identity: Box<dyn Identify> = match memory {
        Memory::Records => args.once.identity.identity(),
        Memory::Window => Box::new(position()),
        Memory::Both => Box::new(position().and_then(args.once.identity.identity())),
    };
    Once::transactional(pool)
        .scope(&args.kafka.group, "service")
        .identify(identity)
        .retry(Retry::exponential(args.once.retry).attempts(args.once.attempts))
        .build()
        .await
        .map_err(|e| format!("--effects: {e}"))
}
