//! Messages on their way from the Kafka thread to the handlers: batches that own their bytes in one buffer.
//!
//! One heap object for each field of each message, allocated here and freed on another thread, costs more than reading
//! the message from Kafka did. So keys, payloads and headers of up to 1,024 messages go into one buffer, which comes
//! back to be filled again when the last message of the batch is dropped.

use std::fmt;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use super::gate::Gate;
use crate::message::MessageView;

/// Messages that a batch holds at most.
pub(super) const BATCH_MESSAGES: usize = 1024;
/// Bytes from which on a batch takes no further message.
const BATCH_BYTES: usize = 1 << 20;
/// A buffer that grew beyond this is not kept.
const KEPT_EACH: usize = 2 << 20;
/// Bytes of empty buffers kept to be filled again.
const KEPT_BYTES: usize = 4 << 20;
/// And how many of them.
const KEPT_BATCHES: usize = 32;
/// A buffer that is less than half full is cut to what is in it, unless it is smaller than this.
const SMALL_BYTES: usize = 8 << 10;

/// A message delivered by [`Consumer`](super::Consumer): owned, `Send`, and cheap to clone.
///
/// It keeps the bytes of its whole batch (up to 1,024 messages, about 1 MiB, or one larger message) alive, and those count against
/// [`max_bytes`](super::Consumer::max_bytes). Copy out what you keep for longer than its handler runs.
///
/// `Debug` shows where it came from and how long its parts are, never what they say.
#[derive(Clone)]
pub struct Message {
    batch: Arc<Batch>,
    at: u32,
}

impl Message {
    /// Its size: key, payload, headers.
    pub(super) fn bytes(&self) -> u32 {
        self.entry().bytes
    }

    /// The same message in a buffer of its own: for one that waits, so that it does not keep the rest of its batch alive.
    pub(super) fn compact(&self) -> Self {
        if self.batch.content.entries.len() == 1 {
            return self.clone();
        }
        let mut content = Content::default();
        content.bytes.reserve_exact(self.bytes() as usize);
        content.topics.extend(self.batch.content.topics.get(self.entry().topic as usize).cloned());
        content.push(0, self);
        Self { batch: Arc::new(Batch::new(content, Arc::clone(&self.batch.shelf))), at: 0 }
    }

    fn entry(&self) -> &Entry {
        &self.batch.content.entries[self.at as usize]
    }

    fn part(&self, span: Span) -> Option<&[u8]> {
        span.of(&self.batch.content.bytes)
    }

    /// The topic it came from.
    #[must_use]
    pub fn topic(&self) -> &str {
        &self.batch.content.topics[self.entry().topic as usize]
    }

    /// The partition, counted from 0.
    #[must_use]
    pub fn partition(&self) -> i32 {
        self.entry().partition
    }

    /// The offset in its partition, counted from 0.
    #[must_use]
    pub fn offset(&self) -> i64 {
        self.entry().offset
    }

    /// The record's timestamp in milliseconds since 1970-01-01 UTC, if it has one. Producers choose it: never a clock.
    #[must_use]
    pub fn timestamp_ms(&self) -> Option<i64> {
        self.entry().timestamp_ms
    }

    /// The record key; `None` if it is null, which is not the same as empty.
    #[must_use]
    pub fn key(&self) -> Option<&[u8]> {
        self.part(self.entry().key)
    }

    /// The payload; `None` if it is null (a tombstone), which is not the same as empty.
    #[must_use]
    pub fn payload(&self) -> Option<&[u8]> {
        self.part(self.entry().payload)
    }

    /// The value of the last header `name`; `None` if there is none, or if that one is null.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&[u8]> {
        let headers = self.header_entries();
        let (_, value) = headers.iter().rev().find(|(own, _)| self.part(*own) == Some(name.as_bytes()))?;
        self.part(*value)
    }

    /// Every header, in the order of the record. A null value is `None`.
    pub fn headers(&self) -> impl Iterator<Item = (&str, Option<&[u8]>)> {
        self.header_entries().iter().map(|(name, value)| {
            let name = self.part(*name).and_then(|name| std::str::from_utf8(name).ok()).unwrap_or_default();
            (name, self.part(*value))
        })
    }

    fn header_entries(&self) -> &[(Span, Span)] {
        let Range { start, end } = self.entry().headers.clone();
        &self.batch.content.headers[start as usize..end as usize]
    }
}

crate::message::views_itself!(Message);

impl fmt::Debug for Message {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Message")
            .field("topic", &self.topic())
            .field("partition", &self.partition())
            .field("offset", &self.offset())
            .field("timestamp_ms", &self.timestamp_ms())
            .field("key_bytes", &self.key().map(<[u8]>::len))
            .field("payload_bytes", &self.payload().map(<[u8]>::len))
            .field("headers", &self.header_entries().len())
            .finish()
    }
}

/// A place in a batch's buffer; `NULL` for what is null.
#[derive(Clone, Copy)]
struct Span {
    start: u32,
    end: u32,
}

impl Span {
    const NULL: Self = Self { start: 1, end: 0 };

    fn of(self, bytes: &[u8]) -> Option<&[u8]> {
        bytes.get(self.start as usize..self.end as usize)
    }
}

struct Entry {
    offset: i64,
    timestamp_ms: Option<i64>,
    partition: i32,
    topic: u32,
    bytes: u32,
    key: Span,
    payload: Span,
    headers: Range<u32>,
}

#[derive(Default)]
struct Content {
    bytes: Vec<u8>,
    entries: Vec<Entry>,
    headers: Vec<(Span, Span)>,
    topics: Vec<Arc<str>>,
}

impl Content {
    fn clear(&mut self) {
        self.bytes.clear();
        self.entries.clear();
        self.headers.clear();
        self.topics.clear();
    }

    /// What it takes, in bytes. Buffers may have up to as much again in reserve.
    fn size(&self) -> u64 {
        (self.bytes.len() + size_of_val(&*self.entries) + size_of_val(&*self.headers)) as u64
    }

    /// Copies a message in.
    fn push(&mut self, topic: u32, message: &impl MessageView) {
        let (first_byte, first_header) = (self.bytes.len(), self.headers.len() as u32);
        let key = self.put(message.key());
        let payload = self.put(message.payload());
        message.for_each_header(&mut |name, value| {
            let name = self.put(Some(name.as_bytes()));
            let value = self.put(value);
            self.headers.push((name, value));
        });
        self.entries.push(Entry {
            offset: message.offset(),
            timestamp_ms: message.timestamp_ms(),
            partition: message.partition(),
            topic,
            bytes: u32::try_from(self.bytes.len() - first_byte).unwrap_or(u32::MAX),
            key,
            payload,
            headers: first_header..self.headers.len() as u32,
        });
    }

    /// Gives back what is far too much: a few messages would keep all of it for as long as they live.
    fn cut(&mut self) {
        if self.bytes.capacity() > SMALL_BYTES && self.bytes.capacity() > 2 * self.bytes.len() {
            self.bytes.shrink_to(SMALL_BYTES);
        }
    }

    fn put(&mut self, bytes: Option<&[u8]>) -> Span {
        let Some(bytes) = bytes else { return Span::NULL };
        // A batch takes no message beyond BATCH_BYTES, and Kafka's sizes are i32: u32 holds every end.
        let start = u32::try_from(self.bytes.len()).unwrap_or(u32::MAX);
        self.bytes.extend_from_slice(bytes);
        Span { start, end: u32::try_from(self.bytes.len()).unwrap_or(u32::MAX) }
    }
}

/// A full batch, shared by its messages. Its bytes are counted at the gate for as long as it lives.
struct Batch {
    content: Content,
    shelf: Arc<Shelf>,
}

impl Batch {
    fn new(mut content: Content, shelf: Arc<Shelf>) -> Self {
        content.cut();
        shelf.gate.hold(content.size());
        Self { content, shelf }
    }
}

impl Drop for Batch {
    fn drop(&mut self) {
        self.shelf.gate.release(self.content.size());
        self.shelf.put_back(std::mem::take(&mut self.content));
    }
}

/// Empty batches, to be filled again.
#[derive(Default)]
struct Shelf {
    empty: Mutex<Vec<Content>>,
    gate: Arc<Gate>,
}

impl Shelf {
    fn take(&self) -> Content {
        self.empty.lock().unwrap_or_else(PoisonError::into_inner).pop().unwrap_or_default()
    }

    fn put_back(&self, mut content: Content) {
        // Small ones are not worth a place.
        if !(SMALL_BYTES..=KEPT_EACH).contains(&content.bytes.capacity()) {
            return;
        }
        content.clear();
        let mut shelf = self.empty.lock().unwrap_or_else(PoisonError::into_inner);
        let kept: usize = shelf.iter().map(|content| content.bytes.capacity()).sum();
        if shelf.len() < KEPT_BATCHES && kept + content.bytes.capacity() <= KEPT_BYTES {
            shelf.push(content);
        }
    }
}

/// A batch being filled.
#[derive(Default)]
pub(super) struct Filling {
    content: Content,
    shelf: Arc<Shelf>,
    /// Every topic seen, so that a batch clones one pointer for each of its topics.
    names: Vec<Arc<str>>,
}

impl Filling {
    /// A batch whose bytes are counted at this gate.
    pub(super) fn new(gate: Arc<Gate>) -> Self {
        Self {
            content: Content::default(),
            shelf: Arc::new(Shelf { empty: Mutex::default(), gate }),
            names: Vec::new(),
        }
    }

    /// Copies a message in.
    pub(super) fn push(&mut self, message: &impl MessageView) {
        let topic = self.topic(message.topic());
        self.content.push(topic, message);
    }

    fn topic(&mut self, name: &str) -> u32 {
        let topics = &mut self.content.topics;
        if let Some(at) = topics.iter().rposition(|topic| &**topic == name) {
            return at as u32;
        }
        let known = self.names.iter().find(|topic| &***topic == name).cloned();
        let topic = known.unwrap_or_else(|| {
            let topic: Arc<str> = name.into();
            self.names.push(Arc::clone(&topic));
            topic
        });
        topics.push(topic);
        (topics.len() - 1) as u32
    }

    pub(super) fn is_empty(&self) -> bool {
        self.content.entries.is_empty()
    }

    /// Whether it holds enough: a batch, or as many messages or bytes as there is room for.
    pub(super) fn is_full(&self, messages: usize, bytes: usize) -> bool {
        self.content.entries.len() >= BATCH_MESSAGES.min(messages) || self.content.bytes.len() >= BATCH_BYTES.min(bytes)
    }

    /// Drops what was filled in.
    pub(super) fn clear(&mut self) {
        self.content.clear();
    }

    /// Seals the batch and starts the next one. The rows, and the messages in them, come in the order of [`push`](Self::push).
    pub(super) fn seal(&mut self) -> impl Iterator<Item = Row> + use<> {
        let content = std::mem::replace(&mut self.content, self.shelf.take());
        let batch = Arc::new(Batch::new(content, Arc::clone(&self.shelf)));
        let mut from = 0;
        std::iter::from_fn(move || {
            let entries = batch.content.entries.get(from as usize..)?;
            let first = entries.first()?;
            let same = |entry: &&Entry| entry.partition == first.partition && entry.topic == first.topic;
            let at = from..from + entries.iter().take_while(same).count() as u32;
            from = at.end;
            Some(Row { batch: Arc::clone(&batch), at })
        })
    }
}

/// Messages of one partition that came one right after the other: what is asked once for each row is not asked for each message.
#[derive(Clone)]
pub(super) struct Row {
    batch: Arc<Batch>,
    /// Never empty.
    at: Range<u32>,
}

impl Row {
    /// How many messages.
    pub(super) fn len(&self) -> u64 {
        u64::from(self.at.end - self.at.start)
    }

    /// Their size: keys, payloads, headers.
    pub(super) fn bytes(&self) -> u64 {
        let entries = self.batch.content.entries.get(self.at.start as usize..self.at.end as usize);
        entries.unwrap_or_default().iter().map(|entry| u64::from(entry.bytes)).sum()
    }

    pub(super) fn first(&self) -> Message {
        Message { batch: Arc::clone(&self.batch), at: self.at.start }
    }

    pub(super) fn last(&self) -> Message {
        Message { batch: Arc::clone(&self.batch), at: self.at.end - 1 }
    }

    /// The messages, in order.
    pub(super) fn messages(self) -> impl ExactSizeIterator<Item = Message> {
        let Self { batch, at } = self;
        at.map(move |at| Message { batch: Arc::clone(&batch), at })
    }
}

impl fmt::Debug for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Row").field("first", &self.first()).field("messages", &self.len()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::Parts;

    fn parts(at: i64) -> Parts {
        Parts::new(if at % 2 == 0 { "even" } else { "odd" })
            .at(i32::try_from(at % 7).expect("small"), at)
            .timestamp(at * 10)
            .key(format!("key {at}"))
            .payload(vec![u8::try_from(at % 251).expect("a byte"); usize::try_from(at % 40).expect("small")])
            .header("id", format!("id {at}"))
            .header("id", format!("last {at}"))
            .null_header("nothing")
    }

    #[test]
    fn every_part_comes_out_as_it_went_in() {
        let mut filling = Filling::default();
        let mut odd = vec![Parts::new("t").at(0, 1), Parts::new("t").at(1, 2).key("").payload("").header("", "")];
        odd.extend((0..300).map(parts));
        odd.iter().for_each(|parts| filling.push(parts));
        let messages: Vec<Message> = filling.seal().flat_map(Row::messages).collect();
        assert_eq!(messages.len(), odd.len());
        for (message, parts) in messages.iter().zip(&odd) {
            assert_eq!(&Parts::copy_of(message), parts);
            assert_eq!(message.header("id"), MessageView::header(parts, "id"));
            assert_eq!(message.header("nothing"), None);
            assert_eq!(message.header("Id"), None);
        }
        assert!(filling.is_empty());
    }

    #[test]
    fn buffers_are_filled_again_only_when_nobody_reads_them() {
        let mut filling = Filling::default();
        let mut kept: Vec<Message> = Vec::new();
        for round in 0..50 {
            for at in 0..BATCH_MESSAGES as i64 {
                assert!(!filling.is_full(BATCH_MESSAGES + 1, usize::MAX));
                filling.push(&parts(round * 1_000 + at));
            }
            assert!(filling.is_full(BATCH_MESSAGES + 1, usize::MAX));
            kept.extend(filling.seal().flat_map(Row::messages).nth(17));
        }
        for (round, message) in (0..).zip(&kept) {
            assert_eq!(Parts::copy_of(message), parts(round * 1_000 + 17));
        }
        drop(kept);
        let shelf = filling.shelf.empty.lock().expect("no panic");
        assert!((1..=KEPT_BATCHES).contains(&shelf.len()), "{}", shelf.len());
        assert!(shelf.iter().map(|content| content.bytes.capacity()).sum::<usize>() <= KEPT_BYTES);
        assert!(shelf.iter().all(|content| content.entries.is_empty() && content.bytes.capacity() > 0));
    }

    #[test]
    fn large_messages_end_a_batch_and_their_buffer_is_not_kept() {
        let mut filling = Filling::default();
        filling.push(&Parts::new("t").at(0, 0).payload(vec![1; KEPT_EACH + 1]));
        assert!(filling.is_full(usize::MAX, usize::MAX));
        drop(filling.seal());
        assert!(filling.shelf.empty.lock().expect("no panic").is_empty());
    }

    #[test]
    fn bytes_are_counted_as_long_as_a_message_lives() {
        let gate = Arc::new(Gate::default());
        let mut filling = Filling::new(Arc::clone(&gate));
        (0..100).for_each(|at| filling.push(&parts(at)));
        assert_eq!(gate.bytes(), 0, "nothing has left");
        let messages: Vec<Message> = filling.seal().flat_map(Row::messages).collect();
        let all = gate.bytes();
        let parts_alone: u64 = messages.iter().map(|message| u64::from(message.bytes())).sum();
        assert!(all > parts_alone && parts_alone > 100 * 20, "{all} {parts_alone}");
        let one = messages[50].clone();
        drop(messages);
        assert_eq!(gate.bytes(), all, "one message keeps all of its batch");
        let alone = one.compact();
        assert_eq!(Parts::copy_of(&alone), parts(50));
        assert_eq!(alone.bytes(), one.bytes());
        drop(one);
        assert!(gate.bytes() < all / 20, "{} of {all}", gate.bytes());
        let same = alone.compact();
        assert!(Arc::ptr_eq(&same.batch, &alone.batch), "it was alone already");
        drop((alone, same));
        assert_eq!(gate.bytes(), 0);
    }

    #[test]
    fn a_few_messages_do_not_keep_a_large_buffer() {
        let mut filling = Filling::default();
        for at in 0..BATCH_MESSAGES as i64 {
            filling.push(&Parts::new("t").at(0, at).payload(vec![1; 1_000]));
        }
        assert_eq!(filling.seal().flat_map(Row::messages).count(), BATCH_MESSAGES);
        filling.push(&Parts::new("t").at(0, 0).payload("small"));
        filling.seal().flat_map(Row::messages).for_each(drop);
        filling.push(&Parts::new("t").at(0, 1).payload("small"));
        assert!(filling.content.bytes.capacity() > 500_000, "the large buffer is filled again");
        let message = filling.seal().flat_map(Row::messages).next().expect("one");
        assert!(message.batch.content.bytes.capacity() <= 2 * SMALL_BYTES);
        assert_eq!(message.payload(), Some(&b"small"[..]));
    }

    #[test]
    fn debug_shows_no_contents() {
        let mut filling = Filling::default();
        assert!(!filling.is_full(1, 1));
        filling.push(&Parts::new("t").at(3, 9).key("secret").payload("secret").header("secret", "secret"));
        let shown = format!("{:?}", filling.seal().flat_map(Row::messages).next().expect("one"));
        assert!(!shown.contains("secret") && shown.contains("payload_bytes: Some(6)"), "{shown}");
    }
}
