//! A Kafka thread played by hand.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::super::{Letters, Setup, start};
use crate::consumer::bell::{Bell, Word};
use crate::consumer::gate::Gate;
use crate::consumer::handling::Handling;
use crate::consumer::link::{Delivered, Drained, Input, Line, Request};
use crate::consumer::message::{Filling, Message};
use crate::consumer::summary::Tally;
use crate::engine::{Assigned, Config, OnDead};
use crate::frontier::Epoch;
use crate::message::{MessageView, Parts};
use crate::retry::Retry;

/// How a desk is set.
#[derive(Default)]
pub(super) struct Set {
    pub(super) config: Config,
    pub(super) retry: Option<Retry>,
    pub(super) letters: Option<Arc<dyn Letters>>,
}

/// What a stop says: the offset, and why.
pub(super) type Stopped = (i64, String);

pub(super) struct Desk {
    inputs: mpsc::UnboundedSender<Input>,
    bell: Arc<Bell>,
    gate: Arc<Gate>,
    filling: Filling,
    task: JoinHandle<Tally>,
    epochs: BTreeMap<i32, Epoch>,
    last_epoch: Epoch,
    /// What was asked to be committed, by partition.
    pub(super) committed: BTreeMap<i32, i64>,
    pub(super) stopped: Option<Stopped>,
    pub(super) paused: BTreeSet<u64>,
    /// How often a partition was paused.
    pub(super) pauses: usize,
    pub(super) gone: bool,
}

impl Desk {
    /// A pump that owns partition 0.
    pub(super) fn new<H: Handling>(handling: H) -> Self {
        Self::with(handling, Set::default())
    }

    pub(super) fn with<H: Handling>(handling: H, set: Set) -> Self {
        let bell = Arc::new(Bell::default());
        let gate = Arc::new(Gate::new(Arc::clone(&bell)));
        let line = Line::new(Arc::clone(&bell), Arc::clone(&gate));
        let (inputs, waiting) = mpsc::unbounded_channel();
        let needs = handling.needs();
        let Set { mut config, retry, letters } = set;
        let retry = retry.unwrap_or(needs.retry);
        needs.fill(&retry, &mut config);
        if letters.is_some() {
            config.on_dead = OnDead::Letter;
        }
        let (probe, drain) = (Default::default(), Duration::from_secs(5));
        let setup = Setup { config, retry, letters, line, probe, drain };
        let task = start(&Handle::current(), Arc::new(handling), setup, waiting);
        let filling = Filling::new(Arc::clone(&gate));
        let mut desk = Self {
            inputs,
            bell,
            gate,
            filling,
            task,
            epochs: BTreeMap::new(),
            last_epoch: Epoch::new(0),
            committed: BTreeMap::new(),
            stopped: None,
            paused: BTreeSet::new(),
            pauses: 0,
            gone: false,
        };
        desk.assign(&[0]);
        desk
    }

    fn send(&self, input: Input) {
        let _ = self.inputs.send(input);
    }

    pub(super) fn assign(&mut self, partitions: &[i32]) {
        let mut assigned = Vec::new();
        for partition in partitions {
            self.last_epoch = self.last_epoch.next();
            self.epochs.insert(*partition, self.last_epoch);
            let committed = self.committed.get(partition).copied();
            assigned.push(Assigned { topic: "t".into(), partition: *partition, epoch: self.last_epoch, committed });
        }
        self.send(Input::Assigned(assigned));
    }

    /// Delivers messages, in batches as the Kafka thread does.
    pub(super) fn deliver(&mut self, messages: &[Parts]) {
        for messages in messages.chunks(512) {
            messages.iter().for_each(|message| self.filling.push(message));
            let epochs = &self.epochs;
            let delivered =
                self.filling.seal().map(|row| Delivered { epoch: epochs[&row.first().partition()], row }).collect();
            self.send(Input::Delivered(delivered));
        }
    }

    /// Does what the pump asked for.
    pub(super) fn turn(&mut self) {
        let mut words = Vec::new();
        self.bell.take(&mut words);
        for word in words {
            let Word::Request(request) = word else { panic!("nobody answers commits here") };
            match request {
                Request::Pause(epochs) => {
                    self.pauses += epochs.len();
                    self.paused.extend(epochs.iter().map(|epoch| epoch.get()));
                }
                Request::Resume(epochs) => epochs.iter().for_each(|epoch| {
                    self.paused.remove(&epoch.get());
                }),
                Request::Commit(positions) => {
                    for position in &positions {
                        assert_eq!(
                            self.epochs.get(&position.partition),
                            Some(&position.epoch),
                            "an epoch that is over"
                        );
                        let before = self.committed.insert(position.partition, position.offset);
                        assert!(before < Some(position.offset), "committed backwards or twice: {position:?}");
                    }
                    self.send(Input::Committed { positions, accepted: true });
                }
                Request::Stop { offset, failure, .. } => {
                    assert!(self.stopped.is_none(), "stopped twice");
                    self.stopped = Some((offset, failure.to_string()));
                }
                Request::Gone => self.gone = true,
            }
        }
    }

    /// Messages that came back.
    pub(super) fn returned(&self) -> u64 {
        self.gate.returned()
    }

    /// Waits until something is so, on paused time.
    pub(super) async fn until(&mut self, what: &str, mut is_so: impl FnMut(&mut Self) -> bool) {
        let mut pause = Duration::from_millis(1);
        for _ in 0..20_000 {
            self.turn();
            if is_so(self) {
                return;
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 11 / 10).min(Duration::from_millis(100));
        }
        panic!("never came about: {what}");
    }

    /// Waits until so many messages are finished or dropped.
    pub(super) async fn finished(&mut self, messages: u64) {
        self.until("messages are finished", |desk| desk.returned() >= messages).await;
    }

    pub(super) async fn until_stopped(&mut self) -> Stopped {
        self.until("the consumer is asked to end", |desk| desk.stopped.is_some()).await;
        self.stopped.clone().unwrap()
    }

    async fn answer(&mut self, answer: &std::sync::mpsc::Receiver<Drained>) -> Drained {
        loop {
            match answer.try_recv() {
                Ok(drained) => {
                    // What was asked before it was said.
                    self.turn();
                    for position in &drained.commit {
                        self.committed.insert(position.partition, position.offset);
                    }
                    return drained;
                }
                Err(std::sync::mpsc::TryRecvError::Empty) => {
                    self.turn();
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
                Err(std::sync::mpsc::TryRecvError::Disconnected) => panic!("the pump did not answer"),
            }
        }
    }

    /// Takes partitions away, and waits for the pump to agree.
    pub(super) async fn revoke(&mut self, partitions: &[i32], lost: bool, within: Duration) -> Drained {
        let epochs = partitions.iter().map(|partition| self.epochs[partition]).collect();
        let (answer, answered) = std::sync::mpsc::channel();
        self.turn();
        self.send(Input::Revoke { epochs, lost, by: (Instant::now() + within).into_std(), answer });
        let drained = self.answer(&answered).await;
        self.turn();
        partitions.iter().for_each(|partition| {
            self.epochs.remove(partition);
        });
        drained
    }

    /// Ends it, and waits for that.
    pub(super) async fn close(mut self, within: Duration) -> (Drained, Tally, BTreeMap<i32, i64>) {
        let (answer, answered) = std::sync::mpsc::channel();
        self.turn();
        self.send(Input::Close { by: (Instant::now() + within).into_std(), answer });
        let drained = self.answer(&answered).await;
        let tally = self.task.await.unwrap();
        (drained, tally, self.committed)
    }

    /// Ends the task where it waits.
    pub(super) async fn kill(self) {
        self.task.abort();
        let _ = self.task.await;
    }
}

pub(super) const SOON: Duration = Duration::from_secs(10);

/// The identity of a message.
pub(super) fn id(message: &Message) -> String {
    String::from_utf8(MessageView::header(message, "id").unwrap().to_vec()).unwrap()
}
