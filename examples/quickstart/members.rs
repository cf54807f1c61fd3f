//! The members of the group: one with a loop of its own that leaves without committing, and two that hapax runs.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::FutureExt as _;
use hapax::message::MessageView;
use hapax::{Claim, Consumer, Done, Message, Once, Summary};
use rdkafka::consumer::{Consumer as _, StreamConsumer};
use tokio_util::sync::CancellationToken;

use crate::args::By;
use crate::effects::Effects;
use crate::kafka::{Kafka, effect_id};
use crate::store::Store;

type Failure = Box<dyn std::error::Error + Send + Sync>;

/// What every member needs.
pub struct World {
    pub kafka: Kafka,
    pub store: Store,
    pub effects: Effects,
    pub by: By,
}

/// What a member did.
#[derive(Debug, Default)]
pub struct Did {
    pub delivered: u64,
    pub handled: u64,
    pub same_id: u64,
    pub redelivered: u64,
    pub commits: u64,
}

impl From<Summary> for Did {
    fn from(summary: Summary) -> Self {
        Self {
            delivered: summary.delivered,
            handled: summary.handled,
            same_id: summary.same_id,
            redelivered: summary.redelivered,
            commits: summary.commits,
        }
    }
}

impl World {
    /// A wrapper of a member's own: another owner in the same scope, as in another process.
    pub async fn once(&self) -> Result<Once, String> {
        Once::builder(self.store.open().await?)
            .scope(&self.kafka.group, "quickstart")
            .identify(self.by.identity())
            .build()
            .await
            .map_err(|e| format!("--store: {e}"))
    }

    async fn effect(&self, message: &impl MessageView, member: &str) -> Result<(), Failure> {
        let id = effect_id(self.by, message.header("message-id"), message.partition(), message.offset());
        self.effects.add(&id, member).await?;
        Ok(())
    }
}

/// A loop of its own around `Once::handle_batch`. It leaves after `quota` messages, and never commits.
pub async fn leaver(world: Arc<World>, once: Once, quota: u64) -> Result<Did, Failure> {
    let consumer: StreamConsumer = world.kafka.member().create()?;
    consumer.subscribe(&[&world.kafka.topic])?;
    let mut did = Did::default();
    let mut last = Instant::now();
    // With few messages it may never get that many.
    while did.delivered < quota && (did.delivered == 0 || last.elapsed() < Duration::from_secs(3)) {
        let Ok(first) = tokio::time::timeout(Duration::from_millis(500), consumer.recv()).await else { continue };
        let mut batch = vec![first?];
        // Whatever has come meanwhile.
        while batch.len() < 64
            && did.delivered + (batch.len() as u64) < quota
            && let Some(message) = consumer.recv().now_or_never()
        {
            batch.push(message?);
        }
        last = Instant::now();
        did.delivered += batch.len() as u64;
        let done = once.handle_batch(&batch, |message, _| world.effect(message, "A")).await;
        for (message, outcome) in batch.iter().zip(done.into_outcomes()) {
            match outcome? {
                Done::Handled(()) => did.handled += 1,
                Done::Duplicate { first, .. } => {
                    let own = (first.origin.partition, first.origin.offset) == (message.partition(), message.offset());
                    *(if own { &mut did.redelivered } else { &mut did.same_id }) += 1;
                }
                other => return Err(format!("member A: {other:?}").into()),
            }
        }
    }
    // Leaving the group blocks.
    tokio::task::spawn_blocking(move || drop(consumer)).await?;
    Ok(did)
}

/// A member that hapax runs, until it is told to stop.
pub async fn runner(
    world: Arc<World>,
    once: Once,
    member: &'static str,
    stop: CancellationToken,
) -> Result<Did, Failure> {
    let consumer =
        Consumer::new(world.kafka.member()).topics([&world.kafka.topic]).commit_every(Duration::from_millis(500));
    let handler = move |message: Message, _: Claim| {
        let world = Arc::clone(&world);
        async move { world.effect(&message, member).await }
    };
    Ok(consumer.run(once.each(handler), stop).await?.into())
}
