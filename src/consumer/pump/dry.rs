//! The pump without Kafka, for the benchmarks: its instructions can be counted where times cannot be compared.

use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::mpsc;

use super::{Setup, start};
use crate::consumer::bell::{Bell, Word};
use crate::consumer::gate::Gate;
use crate::consumer::handling::Handling;
use crate::consumer::link::{Delivered, Input, Line, Request};
use crate::consumer::message::{BATCH_MESSAGES, Filling};
use crate::engine::{Assigned, Config, Order};
use crate::frontier::Epoch;
use crate::message::MessageView;

/// Hands messages to `handling` as the Kafka thread would, as many ahead as a consumer takes in with its default settings, and waits until
/// all of them are finished. Answers how many were handled.
///
/// They are of one topic, and of the partitions below `partitions`. Everything runs on the runtime that this is called on. Not for
/// applications: for benchmarks, and outside of semantic versioning. Dropped, it leaves what is in hand to its claims' leases.
pub async fn dry_run<H: Handling, M: MessageView>(
    handling: H,
    order: Order,
    concurrency: usize,
    partitions: i32,
    messages: impl IntoIterator<Item = M>,
) -> u64 {
    const LONG: Duration = Duration::from_secs(3600);
    let bell = Arc::new(Bell::default());
    let gate = Arc::new(Gate::new(Arc::clone(&bell)));
    let line = Line::new(Arc::clone(&bell), Arc::clone(&gate));
    let (inputs, waiting) = mpsc::unbounded_channel();
    let needs = handling.needs();
    let mut config = Config { order, concurrency, ..Config::default() };
    needs.fill(&needs.retry, &mut config);
    let bound = config.messages as u64;
    let windows = handling.windows();
    let setup = Setup { config, retry: needs.retry, letters: None, line, probe: Default::default(), drain: LONG };
    let task = start(&Handle::current(), Arc::new(handling), setup, waiting);
    let epoch = |partition: i32| Epoch::new(u64::from(partition.unsigned_abs()) + 1);
    let mut messages = messages.into_iter().peekable();
    let topic: Arc<str> = messages.peek().map_or("", |first| first.topic()).into();
    if let Some(windows) = &windows {
        for partition in 0..partitions {
            let place = (topic.to_string(), partition);
            windows.begin(&place, epoch(partition), Some(0), Arc::new(|next| Some(next.to_string())));
        }
    }
    let assigned =
        |partition| Assigned { topic: Arc::clone(&topic), partition, epoch: epoch(partition), committed: None };
    let _ = inputs.send(Input::Assigned((0..partitions).map(assigned).collect()));
    let mut filling = Filling::new(Arc::clone(&gate));
    let (mut sent, mut idle) = (0_u64, 0_u32);
    let mut words = Vec::new();
    loop {
        let before = gate.returned();
        while sent < gate.returned() + bound && messages.peek().is_some() {
            for message in messages.by_ref().take(BATCH_MESSAGES) {
                filling.push(&message);
                sent += 1;
            }
            let delivered = filling.seal().map(|row| Delivered { epoch: epoch(row.first().partition()), row });
            let _ = inputs.send(Input::Delivered(delivered.collect()));
        }
        bell.take(&mut words);
        for word in words.drain(..) {
            if let Word::Request(Request::Commit(positions)) = word {
                let _ = inputs.send(Input::Committed { positions, accepted: true });
            }
        }
        if messages.peek().is_none() && gate.returned() >= sent || task.is_finished() {
            break;
        }
        tokio::task::yield_now().await;
        // Looking again and again is no work of the pump's.
        idle = if gate.returned() == before { idle + 1 } else { 0 };
        if idle > 4 {
            tokio::time::sleep(Duration::from_micros(200)).await;
        }
    }
    let (answer, _answered) = std::sync::mpsc::channel();
    let _ = inputs.send(Input::Close { by: std::time::Instant::now() + LONG, answer });
    task.await.map_or(0, |tally| tally.handled)
}
