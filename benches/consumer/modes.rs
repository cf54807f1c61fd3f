//! The modes of the consumer at full speed.

use std::future::Ready;
use std::sync::Arc;

use hapax::consumer::{Consumer, MemoryWindows, Message, Plain, plain};
use hapax::identity::{Identify, header, position};
use hapax::store::{Cached, DedupStore, MemoryStore};
use hapax::{Claim, Mode, Once};

use crate::figures::{Bar, Failure, Figures, Run, Side};
use crate::kinds::Kind;
use crate::loops;
use crate::ours::Clock;
use crate::topics::{Filling, Topics, config};

pub async fn measure(figures: &mut Figures, topics: &mut Topics) -> Result<(), Failure> {
    fast(figures, topics).await?;
    stores(figures, topics).await?;
    cached(figures, topics).await?;
    by_hand(figures, topics).await
}

/// The topic, unless nobody wants the figure.
pub async fn topic(
    figures: &Figures,
    topics: &mut Topics,
    names: &[&str],
    filling: Filling,
) -> Result<String, Failure> {
    let wanted = !figures.args.list && figures.wants_any(names);
    if wanted { topics.with(filling).await } else { Ok(String::new()) }
}

async fn fast(figures: &mut Figures, topics: &mut Topics) -> Result<(), Failure> {
    let messages = figures.args.number("messages");
    let topic =
        topic(figures, topics, &["plain", "position_memory", "position_memory_records"], Filling::distinct(messages))
            .await?;
    let brokers = topics.brokers.clone();
    let bare = async || loops::bare(config(&brokers), topic.clone(), messages).await;
    let without = async |side| match side {
        Side::Bare => bare().await,
        Side::Ours => {
            let clock = Clock::new(messages);
            let handling = looking(&clock);
            clock.run(Consumer::new(config(&brokers)).topics([&*topic]), handling, messages).await
        }
    };
    figures.measure("plain", Bar::Ratio(0.9), without).await?;
    let windows = async |side| match side {
        Side::Bare => bare().await,
        Side::Ours => {
            let clock = Clock::new(messages);
            let handling = looking(&clock).windows(&MemoryWindows::new());
            clock.run(Consumer::new(config(&brokers)).topics([&*topic]), handling, messages).await
        }
    };
    figures.measure("position_memory", Bar::Ratio(0.85), windows).await?;
    let mode = Mode::Deduplicated;
    let records = async |side| match side {
        Side::Bare => bare().await,
        Side::Ours => ours(&brokers, &topic, mode, position(), MemoryStore::new(), messages, messages).await,
    };
    figures.measure("position_memory_records", Bar::None, records).await
}

/// A handler without a store that does nothing.
fn looking(clock: &Clock) -> Plain<impl Fn(Message) -> Ready<Result<(), Failure>> + Send + Sync + use<>> {
    let clock = clock.clone();
    plain(move |message: Message| {
        clock.handle(&message);
        std::future::ready(Ok(()))
    })
}

/// A consumer with default settings and a handler that does nothing.
pub async fn ours(
    brokers: &str,
    topic: &str,
    mode: Mode,
    identity: impl Identify + 'static,
    store: impl DedupStore + 'static,
    handled: usize,
    delivered: usize,
) -> Result<Run, Failure> {
    let clock = Clock::new(handled);
    let store = clock.on(store);
    let once = Once::builder(store).scope("bench", "read").identify(identity).mode(mode).build().await?;
    let consumer = Consumer::new(config(brokers)).topics([topic]);
    let handler = {
        let clock = clock.clone();
        move |message: Message, _claim: Claim| {
            clock.handle(&message);
            std::future::ready(Ok::<(), Failure>(()))
        }
    };
    clock.run(consumer, once.each(handler), delivered).await
}

/// Claims and settles in each store there is.
async fn stores(figures: &mut Figures, topics: &mut Topics) -> Result<(), Failure> {
    let messages = figures.args.number("messages") / 4;
    let (kinds, without) = Kind::available();
    if !without.is_empty() && !figures.args.list {
        println!("# without {}", without.join(", "));
    }
    for kind in &kinds {
        let name = format!("header_{}", kind.name());
        let bar = if matches!(kind, Kind::Sqlite) { 0.5 } else { 0.7 };
        let topic = topic(figures, topics, &[&name], Filling::distinct(messages)).await?;
        let brokers = topics.brokers.clone();
        let side = async |side| match side {
            Side::Ours => {
                let opened = kind.ours().await?;
                let store = Arc::clone(&opened.side);
                let run =
                    ours(&brokers, &topic, Mode::Deduplicated, header("message-id"), store, messages, messages).await?;
                opened.close().await?;
                Ok(run)
            }
            Side::Bare => {
                let read = loops::bare(config(&brokers), topic.clone(), messages).await?;
                let kept = loops::store(kind, messages).await?;
                Ok(if read.per_second() < kept.per_second() { read } else { kept })
            }
        };
        figures.measure(&name, Bar::Ratio(bar), side).await?;
    }
    Ok(())
}

/// Nine of ten messages are duplicates, each so far behind the first one that it was settled long ago.
async fn cached(figures: &mut Figures, topics: &mut Topics) -> Result<(), Failure> {
    let delivered = figures.args.number("messages") / 10 * 10;
    let distinct = delivered / 10;
    let names = ["duplicates_cached", "duplicates_cached_redis"];
    let filling = Filling { ids: distinct, ..Filling::distinct(delivered) };
    let topic = topic(figures, topics, &names, filling).await?;
    let brokers = topics.brokers.clone();
    let bare = async || loops::bare(config(&brokers), topic.clone(), delivered).await;
    let mode = Mode::Deduplicated;
    let memory = async |side| match side {
        Side::Bare => bare().await,
        Side::Ours => {
            let store = Cached::new(MemoryStore::new());
            ours(&brokers, &topic, mode, header("message-id"), store, distinct, delivered).await
        }
    };
    figures.measure(names[0], Bar::Ratio(0.8), memory).await?;
    let Some(kind) = Kind::available().0.into_iter().find(|kind| matches!(kind, Kind::Redis(_))) else { return Ok(()) };
    let remote = async |side| match side {
        Side::Bare => bare().await,
        Side::Ours => {
            let opened = kind.ours().await?;
            let store = Cached::new(Arc::clone(&opened.side));
            let run = ours(&brokers, &topic, mode, header("message-id"), store, distinct, delivered).await?;
            opened.close().await?;
            Ok(run)
        }
    };
    figures.measure(names[1], Bar::None, remote).await
}

/// Redis, against what people write.
async fn by_hand(figures: &mut Figures, topics: &mut Topics) -> Result<(), Failure> {
    let Some(kind) = Kind::available().0.into_iter().find(|kind| matches!(kind, Kind::Redis(_))) else { return Ok(()) };
    let Kind::Redis(url) = &kind else { return Ok(()) };
    let messages = figures.args.number("messages") / 4;
    let names = ["hand_written_redis", "hand_written_pipelined"];
    let topic = topic(figures, topics, &names, Filling::distinct(messages)).await?;
    let brokers = topics.brokers.clone();
    let ours = async || {
        let opened = kind.ours().await?;
        let store = Arc::clone(&opened.side);
        let run = ours(&brokers, &topic, Mode::Deduplicated, header("message-id"), store, messages, messages).await?;
        opened.close().await?;
        Ok::<Run, Failure>(run)
    };
    let slow = async |side| match side {
        Side::Ours => ours().await,
        // A part of them is enough: this takes long.
        Side::Bare => loops::one_at_a_time(config(&brokers), &topic, messages / 10, url).await,
    };
    figures.measure(names[0], Bar::Ratio(10.0), slow).await?;
    let quick = async |side| match side {
        Side::Ours => ours().await,
        Side::Bare => loops::pipelined(config(&brokers), topic.clone(), messages, url).await,
    };
    figures.measure(names[1], Bar::Ratio(0.6), quick).await
}
