//! A queue of calls, and the tasks that empty it batch by batch.

use std::collections::VecDeque;
use std::marker::PhantomData;
use std::mem;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures_util::FutureExt as _;
use tokio::runtime::Handle;
use tokio::sync::oneshot;

use super::Shared;
use super::op::Op;
use crate::store::{Batch, DedupStore, Gathered, StoreError};

/// A caller's call, as far as it has not been answered.
struct Waiting<O: Op> {
    /// What is still to be asked, with its place in the call.
    items: Vec<(usize, O::Item)>,
    /// What was answered, by place.
    outcomes: Vec<Option<O::Outcome>>,
    reply: oneshot::Sender<Result<Vec<O::Outcome>, StoreError>>,
}

/// Calls of one group, in the order they came.
type Line<O> = VecDeque<Waiting<O>>;

/// Calls of one kind that wait for the store.
pub(super) struct Lane<O: Op> {
    queue: Mutex<Queue<O>>,
}

struct Queue<O: Op> {
    /// Groups take turns; a group without calls is not here.
    groups: VecDeque<(O::Group, Line<O>)>,
    /// Tasks that empty the queue.
    drivers: usize,
    /// Those of them that wait for the store. The others will look at the queue before they end.
    calling: usize,
}

impl<O: Op> Default for Lane<O> {
    fn default() -> Self {
        Self { queue: Mutex::new(Queue { groups: VecDeque::new(), drivers: 0, calling: 0 }) }
    }
}

impl<O: Op> Lane<O> {
    fn open(&self) -> MutexGuard<'_, Queue<O>> {
        // Nothing that can panic runs while the queue is open.
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<O: Op> Queue<O> {
    /// Adds a call, and says whether a driver must be started for it.
    fn push(&mut self, group: &O::Group, call: Waiting<O>, max_calls: usize) -> bool {
        match self.groups.iter_mut().find(|(known, _)| known == group) {
            Some((_, line)) => line.push_back(call),
            None => self.groups.push_back((group.clone(), Line::from([call]))),
        }
        self.hire(max_calls)
    }

    /// Makes room for one more driver, if calls wait, none of the drivers is about to look, and there may be more.
    fn hire(&mut self, max_calls: usize) -> bool {
        let hire = !self.groups.is_empty() && self.drivers == self.calling && self.drivers < max_calls;
        if hire {
            self.drivers += 1;
        }
        hire
    }

    /// Takes the calls of the group whose turn it is, up to `room` items. A call of more items than that comes alone.
    fn take(&mut self, room: usize) -> Option<(O::Group, Vec<Waiting<O>>)> {
        while let Some((group, mut line)) = self.groups.pop_front() {
            let mut left = room;
            let mut calls = Vec::new();
            while let Some(call) = line.pop_front() {
                if call.reply.is_closed() {
                    continue; // Its caller is gone and it was not asked yet: nobody wants it.
                }
                if call.items.len() > left && !calls.is_empty() {
                    line.push_front(call);
                    break;
                }
                left = left.saturating_sub(call.items.len());
                calls.push(call);
                if left == 0 {
                    break;
                }
            }
            let taken = (!calls.is_empty()).then(|| (group.clone(), calls));
            if !line.is_empty() {
                self.groups.push_back((group, line));
            }
            if taken.is_some() {
                return taken;
            }
        }
        None
    }

    /// Puts calls back that are answered in part, before all others.
    fn put_back(&mut self, group: O::Group, calls: Vec<Waiting<O>>) {
        let mut line = match self.groups.iter().position(|(known, _)| *known == group) {
            Some(place) => self.groups.remove(place).map(|(_, line)| line).unwrap_or_default(),
            None => Line::new(),
        };
        for call in calls.into_iter().rev() {
            line.push_front(call);
        }
        self.groups.push_front((group, line));
    }
}

/// A driver's place in its lane. Given back however the driver ends.
struct Turn<O: Op, S> {
    shared: Arc<Shared<S>>,
    calling: bool,
    ended: bool,
    op: PhantomData<fn() -> O>,
}

impl<O: Op, S> Turn<O, S> {
    fn new(shared: &Arc<Shared<S>>) -> Self {
        Self { shared: Arc::clone(shared), calling: false, ended: false, op: PhantomData }
    }

    fn queue(&self) -> MutexGuard<'_, Queue<O>> {
        O::lane(&self.shared).open()
    }

    /// The next calls to ask for, and whether another driver is needed for what is left; without any calls the turn ends.
    fn take(&mut self) -> Option<(O::Group, Vec<Waiting<O>>, bool)> {
        let limits = self.shared.limits;
        let mut queue = O::lane(&self.shared).open();
        if let Some((group, calls)) = queue.take(limits.max_batch) {
            queue.calling += 1;
            self.calling = true;
            return Some((group, calls, queue.hire(limits.max_calls)));
        }
        // Under the same lock as the look: a call that comes later starts a driver of its own.
        queue.drivers -= 1;
        self.ended = true;
        None
    }

    fn called(&mut self, group: O::Group, rest: Vec<Waiting<O>>) {
        let mut queue = O::lane(&self.shared).open();
        queue.calling -= 1;
        self.calling = false;
        if !rest.is_empty() {
            queue.put_back(group, rest);
        }
    }
}

impl<O: Op, S> Drop for Turn<O, S> {
    fn drop(&mut self) {
        if self.ended {
            return;
        }
        // The runtime is shutting down. Nobody else may be left to answer those who wait: send them away with an error.
        let mut queue = self.queue();
        queue.drivers -= 1;
        if self.calling {
            queue.calling -= 1;
        }
        let left = if queue.drivers == 0 { mem::take(&mut queue.groups) } else { VecDeque::new() };
        drop(queue);
        drop(left);
    }
}

/// Adds a call to its lane and waits for the answer.
pub(super) async fn join<O: Op, S: DedupStore + 'static>(
    shared: &Arc<Shared<S>>,
    group: &O::Group,
    batch: &Batch<O::Item>,
) -> Result<Vec<O::Outcome>, StoreError> {
    if batch.is_empty() {
        return Ok(Vec::new());
    }
    let Ok(runtime) = Handle::try_current() else {
        // Outside tokio nothing can be shared; the store may still answer.
        return O::call(&shared.store, group, batch).await;
    };
    let (reply, answer) = oneshot::channel();
    let call = Waiting {
        items: batch.items().iter().cloned().enumerate().collect(),
        outcomes: batch.items().iter().map(|_| None).collect(),
        reply,
    };
    let start = O::lane(shared).open().push(group, call, shared.limits.max_calls);
    if start {
        start_driver::<O, S>(&runtime, shared);
    }
    answer.await.unwrap_or_else(|_| {
        let name = shared.store.describe().store;
        Err(StoreError::unavailable(name, O::NAME, "the runtime that asked it for several callers was shut down"))
    })
}

/// A task of its own, so that it does not matter whose future is dropped. It holds its turn from the start: the runtime may
/// drop it before it runs.
fn start_driver<O: Op, S: DedupStore + 'static>(runtime: &Handle, shared: &Arc<Shared<S>>) {
    runtime.spawn(drive(Turn::<O, S>::new(shared)));
}

/// Asks the store for what waits, batch after batch, until nothing waits.
async fn drive<O: Op, S: DedupStore + 'static>(mut turn: Turn<O, S>) {
    loop {
        // Lets every task that is ready to run add its call first. No timer: on an idle runtime this returns at once.
        tokio::task::yield_now().await;
        let Some((group, calls, more)) = turn.take() else { return };
        if more {
            start_driver::<O, S>(&Handle::current(), &turn.shared);
        }
        let rest = ask(&turn.shared.store, &group, calls, turn.shared.limits.max_batch).await;
        turn.called(group, rest);
    }
}

/// Asks for the calls in one batch, answers those that are complete, and returns the others.
async fn ask<O: Op, S: DedupStore>(
    store: &S,
    group: &O::Group,
    mut calls: Vec<Waiting<O>>,
    max_batch: usize,
) -> Vec<Waiting<O>> {
    let mut homes = Vec::new();
    let mut items = Vec::new();
    for (call, waiting) in calls.iter_mut().enumerate() {
        let room = max_batch.saturating_sub(items.len()).min(waiting.items.len());
        for (place, item) in waiting.items.drain(..room) {
            homes.push((call, place));
            items.push(item);
        }
    }
    let Gathered { batch, places, later } = Batch::gather(items);
    match call::<O, S>(store, group, &batch).await {
        Ok(outcomes) => {
            for (at, outcome) in places.into_iter().zip(outcomes) {
                let (call, place) = homes[at];
                calls[call].outcomes[place] = Some(outcome);
            }
            for (at, item) in later {
                let (call, place) = homes[at];
                calls[call].items.push((place, item));
            }
            let (done, rest): (Vec<_>, Vec<_>) = calls.into_iter().partition(|call| call.items.is_empty());
            for call in done {
                // A caller that is gone takes no answer.
                let _ = call.reply.send(Ok(call.outcomes.into_iter().flatten().collect()));
            }
            rest
        }
        Err(error) => {
            for call in calls {
                let _ = call.reply.send(Err(error.clone()));
            }
            Vec::new()
        }
    }
}

/// One store call. A panic in it, or too few answers, is an error for everybody in the batch.
async fn call<O: Op, S: DedupStore>(
    store: &S,
    group: &O::Group,
    batch: &Batch<O::Item>,
) -> Result<Vec<O::Outcome>, StoreError> {
    // The store is used again after a panic, as it would be by callers of its own.
    let answered = AssertUnwindSafe(async { O::call(store, group, batch).await }).catch_unwind().await;
    let outcomes = answered.unwrap_or_else(|_| {
        Err(StoreError::unavailable(store.describe().store, O::NAME, "it panicked; the panic's message is on stderr"))
    })?;
    if outcomes.len() == batch.len() {
        return Ok(outcomes);
    }
    let message = format!("it answered {} of {} items", outcomes.len(), batch.len());
    Err(StoreError::corrupt(store.describe().store, O::NAME, message))
}
