//! The consumer on a real Kafka, against the loops that people write.

use std::time::{Duration, Instant};

use hapax::Message;
use hapax::consumer::Consumer;
use hapax::observe::{Observed, Observer};
use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer as _, StreamConsumer};
use rdkafka::message::BorrowedMessage;
use sqlx::{Connection as _, Pool};
use tokio::runtime::Handle;

use crate::data::{BATCH, expect};
use crate::database::{Base, Place, Row, rows};
use crate::direct::{Kept, remembered, transactional};
use crate::figures::{Bar, Failure, Figures, Run, Side};
use crate::loops::{Next, poll_batch};
use crate::ours::Clock;
use crate::topics::{Filling, PATIENCE, Topics, config};

/// Of so many messages that ours handle, the slowest loop handles one: it takes long.
const PART: usize = 20;

pub async fn measure<B: Base>(figures: &mut Figures, topics: &mut Topics) -> Result<(), Failure> {
    let names = ["hand_written_batch", "hand_written"].map(|name| format!("{}_{name}", B::WORD));
    let messages = figures.args.number("messages");
    let wanted = !figures.args.list && figures.wants_any(&names);
    let topic = if wanted {
        topics.with(Filling { spread: true, ..Filling::distinct(messages) }).await?
    } else {
        String::new()
    };
    let brokers = topics.brokers.clone();
    let batch = async |side| match side {
        Side::Ours => ours::<B>(&brokers, &topic, messages, true).await,
        Side::Bare => best::<B>(config(&brokers), topic.clone(), messages).await,
    };
    figures.measure(&names[0], Bar::Ratio(0.9), batch).await?;
    let each = async |side| match side {
        Side::Ours => ours::<B>(&brokers, &topic, messages, false).await,
        Side::Bare => one_by_one::<B>(config(&brokers), &topic, messages / PART).await,
    };
    // A single writer that does not wait for the disk: only stated.
    let bar = if B::WORD == "sqlite" { Bar::None } else { Bar::Ratio(10.0) };
    figures.measure(&names[1], bar, each).await
}

/// Notes when the last messages were finished: committed in the database.
struct Finished(Clock);

impl Observer for Finished {
    fn on(&self, event: &Observed<'_>) {
        if let Observed::Finished { .. } = event {
            self.0.settled();
        }
    }
}

async fn ours<B: Base>(brokers: &str, topic: &str, messages: usize, together: bool) -> Result<Run, Failure> {
    let place = Place::<B>::new().await?;
    let once = transactional(&place.pool, Kept::Records).await?;
    let clock = Clock::new(messages);
    let consumer = Consumer::new(config(brokers)).topics([topic]).observer(Finished(clock.clone()));
    let ticks = clock.clone();
    let run = if together {
        let handler = async move |messages: &[Message], tx: &mut B::Connection| {
            B::effects(tx, &rows(messages)).await?;
            messages.iter().for_each(|_| ticks.tick());
            Ok::<(), sqlx::Error>(())
        };
        clock.run(consumer, once.batch(handler), messages).await?
    } else {
        let handler = async move |message: Message, tx: &mut B::Connection| {
            B::effect(tx, Row::of(&message)).await?;
            ticks.tick();
            Ok::<(), sqlx::Error>(())
        };
        clock.run(consumer, once.each(handler), messages).await?
    };
    expect("effects", place.effects().await?, messages)?;
    drop(once);
    place.close().await?;
    Ok(run)
}

/// The best loop that people write: no answer to a message that fails, no conflict, nobody else's handler is waited for.
async fn best<B: Base>(config: ClientConfig, topic: String, messages: usize) -> Result<Run, Failure> {
    let place = Place::<B>::new().await?;
    let (pool, runtime) = (place.pool.clone(), Handle::current());
    let took = tokio::task::spawn_blocking(move || poll::<B>(&config, &topic, messages, &pool, &runtime)).await??;
    expect("effects", place.effects().await?, messages)?;
    place.close().await?;
    Ok(Run { messages, took })
}

fn poll<B: Base>(
    config: &ClientConfig,
    topic: &str,
    messages: usize,
    pool: &Pool<B>,
    runtime: &Handle,
) -> Result<Duration, Failure> {
    let consumer: BaseConsumer = config.create()?;
    consumer.subscribe(&[topic])?;
    let mut conn = runtime.block_on(pool.acquire())?;
    let mut next = Next::default();
    let (mut handled, mut first) = (0, None);
    let begun = Instant::now();
    while handled < messages {
        let batch = poll_batch(&consumer, BATCH)?;
        if batch.is_empty() {
            if begun.elapsed() > PATIENCE {
                return Err(format!("the loop read {handled} of {messages} messages").into());
            }
            continue;
        }
        first.get_or_insert_with(Instant::now);
        let rows: Vec<Row<'_>> = batch.iter().map(Row::of).collect();
        handled += runtime.block_on(async {
            let mut tx = conn.begin().await?;
            let new = remembered::<B>(&mut tx, &rows).await?;
            tx.commit().await?;
            Ok::<usize, sqlx::Error>(new)
        })?;
        batch.iter().for_each(|message| next.saw(message));
        next.commit(&consumer, topic, CommitMode::Async)?;
    }
    first.map(|first| first.elapsed()).ok_or_else(|| "no messages".into())
}

/// What people write: one message at a time.
async fn one_by_one<B: Base>(config: ClientConfig, topic: &str, messages: usize) -> Result<Run, Failure> {
    let place = Place::<B>::new().await?;
    let consumer: StreamConsumer = config.create()?;
    consumer.subscribe(&[topic])?;
    let mut conn = place.pool.acquire().await?;
    let mut first = None;
    for _ in 0..messages {
        let message: BorrowedMessage<'_> = tokio::time::timeout(PATIENCE, consumer.recv()).await??;
        first.get_or_insert_with(Instant::now);
        let row = Row::of(&message);
        let mut tx = conn.begin().await?;
        if B::process_one(&mut tx, row).await? {
            B::effect(&mut tx, row).await?;
        }
        tx.commit().await?;
        consumer.commit_message(&message, CommitMode::Async)?;
    }
    let took = first.map(|first| first.elapsed()).ok_or("no messages")?;
    drop(conn);
    tokio::task::spawn_blocking(move || drop(consumer)).await?;
    expect("effects", place.effects().await?, messages)?;
    place.close().await?;
    Ok(Run { messages, took })
}
