//! Windows in the process's own memory: redelivery is answered by one entry for a partition, with no record for a message.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::fmt;
use std::num::NonZeroU32;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;

use super::in_windows::{Keep, KeepWindows};
use super::look::Place;
use super::windows::{Fenced, Note, Raising, Standing, Windows};
use crate::engine::{Answer, Cause, Ending, Settled, Subject, Ticket, Verdict};
use crate::frontier::Epoch;
use crate::identity::{Fingerprint, Key};
use crate::message::MessageView;
use crate::record::SettleOutcome;
use crate::store::StoreError;
use crate::window::{Known, Window};
use crate::wrapper::drive::{Call, ClaimReply, Fault, Hands, Records, SettleReply, Unfinished, given_up};
use crate::wrapper::{Claim, Described};

#[cfg(test)]
mod tests;

/// When to ask again for a message that another member of this process has in hand.
const LOOK_AGAIN: Duration = Duration::from_millis(20);
/// After how many offsets the mark is noted, with what tells one topic from another of its name.
const NOTE_AFTER: i64 = 4_096;

/// What is finished of each partition, in this process's memory: level L0, and forgotten when it ends. Clones share it.
///
/// Made for [`Plain::windows`](super::Plain::windows). Use one for one consumer group and handler, shared by all members of the group in this process: what one of them
/// handled, or has in hand, the others do not handle when the partition moves to them. A [`Window`] for each partition, so that it
/// does not grow with what was handled.
#[derive(Clone, Default)]
pub struct MemoryWindows {
    parts: Arc<Mutex<HashMap<Place, Arc<Part>, foldhash::fast::RandomState>>>,
}

impl MemoryWindows {
    /// Nothing is finished.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// How many partitions are remembered.
    #[must_use]
    pub fn len(&self) -> usize {
        open(&self.parts).len()
    }

    /// Whether none is.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// What is remembered of a partition.
    #[must_use]
    pub fn window(&self, topic: &str, partition: i32) -> Option<Window> {
        let part = open(&self.parts).get(&(topic.to_owned(), partition)).cloned()?;
        open(&part.inner).window.clone()
    }

    fn part(&self, topic: &str, partition: i32) -> Arc<Part> {
        let mut parts = open(&self.parts);
        let number = parts.len() as u64;
        Arc::clone(
            parts.entry((topic.to_owned(), partition)).or_insert_with(|| {
                Arc::new(Part { topic: topic.to_owned(), partition, number, inner: Mutex::default() })
            }),
        )
    }
}

impl fmt::Debug for MemoryWindows {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryWindows").field("partitions", &self.len()).finish_non_exhaustive()
    }
}

/// Every change under a lock is whole before anything can panic.
fn open<T>(lock: &Mutex<T>) -> MutexGuard<'_, T> {
    lock.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One partition.
struct Part {
    topic: String,
    partition: i32,
    number: u64,
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    /// `None` until something was delivered.
    window: Option<Window>,
    /// The member and assignment that the window is told of by: only one reads a partition from its mark on, in order.
    reader: Option<(u64, Epoch)>,
    /// Grows when the topic is another one: what was begun before says nothing of it.
    topics: u64,
    /// In some member's hand.
    held: Held,
    /// Given up, after so many attempts.
    dead: BTreeMap<i64, u32>,
    /// A mark, and the text that says which message is below it.
    noted: Option<(i64, String)>,
    note: Option<Note>,
}

/// Offsets, ascending. They come in order, and mostly go in order.
#[derive(Default)]
struct Held(VecDeque<i64>);

impl Held {
    /// `false` if it is there.
    fn insert(&mut self, offset: i64) -> bool {
        if self.0.back().is_none_or(|last| *last < offset) {
            self.0.push_back(offset);
            return true;
        }
        match self.0.binary_search(&offset) {
            Ok(_) => false,
            Err(at) => {
                self.0.insert(at, offset);
                true
            }
        }
    }

    fn remove(&mut self, offset: i64) {
        if self.0.front() == Some(&offset) {
            self.0.pop_front();
        } else if let Ok(at) = self.0.binary_search(&offset) {
            self.0.remove(at);
        }
    }

    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl Inner {
    /// What a message is when it is delivered, and whether it is taken in hand at once.
    fn deliver(&mut self, offset: i64) -> bool {
        let mut known = self.window.get_or_insert_with(|| Window::at(offset)).deliver(offset);
        if known == Known::Finished && self.noted.is_none() {
            // Nothing was: reading begins further down than it did before.
            known = self.window.insert(Window::at(offset)).deliver(offset);
        }
        known == Known::Unfinished { attempts: 0 } && self.held.insert(offset)
    }

    fn finish(&mut self, offset: i64) {
        self.held.remove(offset);
        let Some(window) = &mut self.window else { return };
        window.finish(offset);
        let next = window.next();
        let last = self.noted.as_ref().map(|(next, _)| *next);
        if last.is_none_or(|last| next >= last.saturating_add(NOTE_AFTER))
            && let Some(text) = self.note.as_ref().and_then(|note| note(next))
        {
            self.noted = Some((next, text));
        }
    }

    /// Another topic has taken the name, or nothing of this one is finished. A handler that still runs from before is no longer waited for: its
    /// offset may be another message's.
    fn forget(&mut self, window: Option<Window>) {
        let (reader, topics, note) = (self.reader, self.topics + 1, self.note.take());
        *self = Self { window, reader, topics, note, ..Self::default() };
    }
}

impl Windows for Remembered {
    fn assigned<'a>(&'a self, places: &'a [Place]) -> Raising<'a> {
        let standing = |(topic, partition): &Place| {
            let part = self.windows.part(topic, *partition);
            let mut inner = open(&part.inner);
            // What is looked at from now on, before the assignment begins, is of one that is over.
            inner.reader = None;
            let Some((next, text)) = inner.noted.clone() else {
                // Nothing finished: wherever reading begins is right. What another member still has in hand may finish in between.
                if inner.held.is_empty() {
                    inner.window = None;
                }
                return Standing::default();
            };
            if let Some(window) = &mut inner.window {
                window.restart();
            }
            Standing { next: Some(next), note: Some(text) }
        };
        let standings = places.iter().map(standing).collect();
        Box::pin(async move { Ok(standings) })
    }

    fn begin(&self, (topic, partition): &Place, epoch: Epoch, at: Option<i64>, note: Note) {
        let part = self.windows.part(topic, *partition);
        let mut inner = open(&part.inner);
        inner.note = Some(note);
        inner.reader = Some((self.member, epoch));
        let Some(at) = at else { return };
        match &mut inner.window {
            Some(window) if at >= window.next() => {
                window.raise(at);
                window.restart();
            }
            _ => inner.forget(Some(Window::at(at))),
        }
    }

    /// How it stands is noted, so that whoever has the partition next is told what is below the mark.
    fn over(&self, (topic, partition): &Place) {
        let part = self.windows.part(topic, *partition);
        let mut inner = open(&part.inner);
        if inner.noted.is_some()
            && let Some(next) = inner.window.as_ref().map(Window::next)
            && let Some(text) = inner.note.as_ref().and_then(|note| note(next))
        {
            inner.noted = Some((next, text));
        }
    }

    fn is_durable(&self) -> bool {
        false
    }

    /// Nobody is fenced off: members of one process see each other's hands.
    fn watch(&self, _: Fenced) {}
}

/// A message in hand.
pub struct InHand {
    part: Arc<Part>,
    offset: i64,
    topics: u64,
    held: bool,
    /// Its handler ended well: it is finished as it is put down, which follows at once.
    done: bool,
    dead_after: Option<u32>,
}

impl fmt::Debug for InHand {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("InHand").field("offset", &self.offset).finish_non_exhaustive()
    }
}

impl InHand {
    /// The partition, if it still is of the topic that the message is of.
    fn inner(&self) -> Option<MutexGuard<'_, Inner>> {
        Some(open(&self.part.inner)).filter(|inner| inner.topics == self.topics)
    }

    /// Takes it in hand, unless it is finished, given up, or in another hand.
    fn take(&mut self) -> Answer {
        let Some(mut inner) = self.inner() else { return Answer::InFlight { remaining: LOOK_AGAIN } };
        let (attempts, dead) = (
            inner.window.get_or_insert_with(|| Window::at(self.offset)).known(self.offset),
            inner.dead.get(&self.offset).copied(),
        );
        let answer = match (dead, attempts) {
            (Some(_), _) => Answer::Dead,
            (None, Known::Finished) => Answer::Redelivered,
            (None, Known::Unfinished { attempts }) if inner.held.insert(self.offset) => {
                Answer::Acquired { attempt: attempts.saturating_add(1) }
            }
            (None, Known::Unfinished { .. }) => Answer::InFlight { remaining: LOOK_AGAIN },
        };
        drop(inner);
        self.dead_after = dead;
        self.held |= matches!(answer, Answer::Acquired { .. });
        answer
    }

    fn let_go(&mut self) {
        if std::mem::take(&mut self.held)
            && let Some(mut inner) = self.inner()
        {
            inner.held.remove(self.offset);
        }
    }

    /// Lets it go for good, finished if its handler ended well.
    fn put_down(&self, inner: &mut Inner) {
        if inner.topics != self.topics {
            return;
        }
        if self.done {
            inner.finish(self.offset);
        } else if self.held {
            inner.held.remove(self.offset);
        }
    }
}

/// Remembers messages by the windows of their partitions.
#[derive(Debug)]
pub struct Remembered {
    windows: MemoryWindows,
    /// No two members share one.
    member: u64,
    /// The partition of the last message: the next one is mostly of it, too.
    last: Mutex<Option<Arc<Part>>>,
}

impl fmt::Debug for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Part").field("topic", &self.topic).field("partition", &self.partition).finish_non_exhaustive()
    }
}

impl Remembered {
    fn new(windows: &MemoryWindows) -> Self {
        static MEMBERS: AtomicU64 = AtomicU64::new(0);
        let member = MEMBERS.fetch_add(1, Ordering::Relaxed);
        Self { windows: windows.clone(), member, last: Mutex::new(None) }
    }

    fn part(&self, message: &dyn MessageView) -> Arc<Part> {
        let (topic, partition) = (message.topic(), message.partition());
        let mut last = open(&self.last);
        match &*last {
            Some(part) if part.partition == partition && part.topic == topic => Arc::clone(part),
            _ => Arc::clone(last.insert(self.windows.part(topic, partition))),
        }
    }
}

impl Remembered {
    /// What a message that was delivered just now is.
    fn taken(&self, part: &Arc<Part>, inner: &mut Inner, offset: i64, epoch: Epoch) -> (Subject, InHand) {
        // What comes late of an assignment that is over is not delivered in order: the window would take what lies before it for passed.
        let fresh = inner.reader == Some((self.member, epoch)) && inner.deliver(offset);
        // What is new is begun at once; of all else it is asked when its turn comes.
        let subject = if fresh {
            Subject::Own
        } else {
            let number = u128::from(part.number) << 64 | u128::from(offset.unsigned_abs());
            Subject::Known { key: Key::from_bytes(number.to_be_bytes()), fingerprint: Fingerprint::from_bytes([0; 16]) }
        };
        let (part, topics) = (Arc::clone(part), inner.topics);
        (subject, InHand { part, offset, topics, held: fresh, done: false, dead_after: None })
    }
}

impl Records for Remembered {
    type State = InHand;

    fn look(&self, message: &dyn MessageView, epoch: Epoch) -> (Subject, InHand) {
        let part = self.part(message);
        let mut inner = open(&part.inner);
        self.taken(&part, &mut inner, message.offset(), epoch)
    }

    fn look_row<M: MessageView>(
        &self,
        messages: impl Iterator<Item = M>,
        epoch: Epoch,
        mut seen: impl FnMut(M, Subject, InHand),
    ) {
        let mut messages = messages.peekable();
        let Some(part) = messages.peek().map(|first| self.part(first)) else { return };
        let mut inner = open(&part.inner);
        for message in messages {
            let (subject, hand) = self.taken(&part, &mut inner, message.offset(), epoch);
            seen(message, subject, hand);
        }
    }

    fn claim(&self, _: &mut dyn Hands<InHand>, tickets: &[Ticket], _: NonZeroU32) -> Call<ClaimReply> {
        ClaimReply::granted(tickets)
    }

    fn claimed(&self, hands: &mut dyn Hands<InHand>, reply: ClaimReply) -> Result<Vec<(Ticket, Answer)>, StoreError> {
        let mut answers = reply.into_granted()?;
        for (ticket, answer) in &mut answers {
            if let Some(hand) = hands.hand(*ticket) {
                *answer = hand.take();
            }
        }
        Ok(answers)
    }

    fn unclaimed(&self, _: &mut dyn Hands<InHand>, _: &[Ticket]) {}

    fn claim_of(&self, _: &InHand, attempt: u32) -> Claim {
        Claim::bare(Key::from_bytes([0; 16]), attempt)
    }

    fn begun(&self, _: &mut InHand) {}

    fn succeeded(&self, hand: &mut InHand, _: Option<Bytes>) {
        hand.done = true;
    }

    fn failed(&self, hand: &mut InHand, burnt: bool) {
        let (offset, burnt) = (hand.offset, burnt && hand.held);
        if let Some(mut inner) = hand.inner().filter(|_| burnt)
            && let Some(window) = &mut inner.window
        {
            let attempt = window.attempts(offset).saturating_add(1);
            window.fail(offset, attempt);
        }
    }

    fn not_begun(&self, _: &mut InHand) {}

    fn settle(&self, hands: &mut dyn Hands<InHand>, ends: &[(Ticket, Verdict)], _: NonZeroU32) -> Call<SettleReply> {
        let mut tickets = Vec::with_capacity(ends.len());
        for (ticket, verdict) in ends {
            tickets.push(*ticket);
            let Some(hand) = hands.hand(*ticket) else { continue };
            match verdict {
                // Noted when it is put down.
                Verdict::Succeeded => {}
                Verdict::Failed { .. } | Verdict::Released => hand.let_go(),
                Verdict::Dead => {
                    hand.held = false;
                    if let Some(mut inner) = hand.inner() {
                        let attempts = inner.window.as_ref().map_or(0, |window| window.attempts(hand.offset));
                        inner.dead.insert(hand.offset, attempts.max(1));
                        inner.finish(hand.offset);
                    }
                }
            }
        }
        let answer = Ok(vec![SettleOutcome::Settled; tickets.len()]);
        Box::pin(async { SettleReply::of(tickets, answer) })
    }

    fn settled(&self, _: &mut dyn Hands<InHand>, reply: SettleReply) -> Result<Vec<(Ticket, Settled)>, StoreError> {
        reply.into_answers()
    }

    fn finished(&self, _: Ending, _: u64) {}

    fn put_down(&self, hand: InHand) {
        hand.put_down(&mut open(&hand.part.inner));
    }

    fn put_down_all(&self, mut hands: impl Iterator<Item = InHand>) {
        // Those of one partition come one after the other: its lock is taken once for them.
        let mut next = hands.next();
        while let Some(first) = next.take() {
            let part = Arc::clone(&first.part);
            let mut inner = open(&part.inner);
            first.put_down(&mut inner);
            for hand in hands.by_ref() {
                if !Arc::ptr_eq(&hand.part, &part) {
                    next = Some(hand);
                    break;
                }
                hand.put_down(&mut inner);
            }
        }
    }

    fn key(&self, _: &InHand) -> Option<Key> {
        None
    }

    fn attempts(&self, hand: &InHand) -> Option<u32> {
        hand.dead_after
    }

    fn explain(&self, _: &dyn MessageView, _: &InHand, cause: Cause, last: Option<&Fault>) -> Unfinished {
        given_up(cause, last)
    }

    async fn finish(&self, _: Duration) -> u64 {
        0
    }
}

impl Keep for MemoryWindows {
    type Keeper = Remembered;

    fn keeper(&self) -> Arc<Remembered> {
        Arc::new(Remembered::new(self))
    }

    fn windows_of(keeper: &Arc<Remembered>) -> Arc<dyn Windows> {
        Arc::clone(keeper) as Arc<dyn Windows>
    }

    fn describe(&self) -> String {
        "windows in memory, level L0: effects repeat after a restart".to_owned()
    }

    fn described(&self) -> Option<Described> {
        None
    }
}

impl KeepWindows for MemoryWindows {}
