//! Handlers that wait: a thousand at once, in key order.

use std::time::{Duration, Instant};

use hapax::consumer::{Consumer, Message, Order};
use hapax::identity::header;
use hapax::{Claim, Once};

use crate::figures::{Bar, Failure, Figures, Run, Side};
use crate::kinds::Kind;
use crate::modes::topic;
use crate::ours::Clock;
use crate::topics::{Filling, Topics, config};

const CONCURRENCY: usize = 1_000;
const WAIT: Duration = Duration::from_millis(10);

pub async fn measure(figures: &mut Figures, topics: &mut Topics) -> Result<(), Failure> {
    let Some(kind) = Kind::available().0.into_iter().find(|kind| matches!(kind, Kind::Redis(_))) else { return Ok(()) };
    let messages = figures.args.number("messages") / 4;
    let names = ["slow_by_key", "slow_by_key_timer"];
    let filling = Filling { keys: CONCURRENCY, ..Filling::distinct(messages) };
    let topic = topic(figures, topics, &names, filling).await?;
    let brokers = topics.brokers.clone();
    let ideal = async |side| match side {
        Side::Ours => ours(&brokers, &topic, messages, &kind).await,
        Side::Bare => Ok(Run { messages: CONCURRENCY, took: WAIT }),
    };
    figures.measure(names[0], Bar::Ratio(0.9), ideal).await?;
    let timer = async |side| match side {
        Side::Ours => ours(&brokers, &topic, messages, &kind).await,
        Side::Bare => waiting(messages).await,
    };
    figures.measure(names[1], Bar::None, timer).await
}

async fn ours(brokers: &str, topic: &str, messages: usize, kind: &Kind) -> Result<Run, Failure> {
    let opened = kind.ours().await?;
    let clock = Clock::new(messages);
    let store = clock.on(std::sync::Arc::clone(&opened.side));
    let once = Once::builder(store).scope("bench", "wait").identify(header("message-id")).build().await?;
    let consumer = Consumer::new(config(brokers)).topics([topic]).order(Order::Key).concurrency(CONCURRENCY);
    let handler = {
        let clock = clock.clone();
        move |message: Message, _claim: Claim| {
            let clock = clock.clone();
            async move {
                tokio::time::sleep(WAIT).await;
                clock.handle(&message);
                Ok::<(), Failure>(())
            }
        }
    };
    let run = clock.run(consumer, once.each(handler), messages).await?;
    opened.close().await?;
    Ok(run)
}

/// What the runtime's timer gives to tasks that do nothing but wait.
async fn waiting(messages: usize) -> Result<Run, Failure> {
    let each = messages / CONCURRENCY;
    let started = Instant::now();
    let tasks: Vec<_> = (0..CONCURRENCY)
        .map(|_| {
            tokio::spawn(async move {
                for _ in 0..each {
                    tokio::time::sleep(WAIT).await;
                }
            })
        })
        .collect();
    for task in tasks {
        task.await?;
    }
    Ok(Run { messages: each * CONCURRENCY, took: started.elapsed() })
}
