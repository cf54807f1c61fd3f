//! What hapax needs to see of a message, whoever delivered it.
//!
//! The core knows no Kafka client: it reads a message through [`MessageView`]. The feature `kafka` implements it for
//! rdkafka's borrowed and owned messages; [`Parts`] is a plain message for any other loop, and for tests.

use std::fmt;
use std::rc::Rc;
use std::sync::Arc;

/// Read access to one delivered message. Nothing is copied and no method can fail.
///
/// The trait is object-safe. Give your own message type an implementation if neither rdkafka's messages nor [`Parts`] fit.
pub trait MessageView {
    /// The topic it came from; empty for what came from no topic.
    fn topic(&self) -> &str;

    /// The partition, counted from 0; negative for what came from no partition.
    fn partition(&self) -> i32;

    /// The offset in its partition, counted from 0; negative for what has none.
    fn offset(&self) -> i64;

    /// The record's timestamp in milliseconds since 1970-01-01 UTC, if it has one. Producers choose it: never a clock.
    fn timestamp_ms(&self) -> Option<i64>;

    /// The record key; `None` if it is null, which is not the same as empty.
    fn key(&self) -> Option<&[u8]>;

    /// The payload; `None` if it is null (a tombstone), which is not the same as empty.
    fn payload(&self) -> Option<&[u8]>;

    /// The value of the header `name`, compared byte for byte.
    ///
    /// Kafka allows several headers of one name: the **last** one counts, as with the Java client's `lastHeader`.
    /// `None` if there is none, or if that last one is null.
    fn header(&self, name: &str) -> Option<&[u8]>;

    /// Shows every header, in the order of the record. A null value is `None`.
    fn for_each_header(&self, show: &mut dyn FnMut(&str, Option<&[u8]>));
}

/// [`MessageView`] for a message of ours whose own methods say the same.
#[cfg(any(feature = "kafka", feature = "postgres", feature = "mysql", feature = "sqlite"))]
macro_rules! views_itself {
    ($message:ty) => {
        impl $crate::message::MessageView for $message {
            fn topic(&self) -> &str {
                self.topic()
            }
            fn partition(&self) -> i32 {
                self.partition()
            }
            fn offset(&self) -> i64 {
                self.offset()
            }
            fn timestamp_ms(&self) -> Option<i64> {
                self.timestamp_ms()
            }
            fn key(&self) -> Option<&[u8]> {
                self.key()
            }
            fn payload(&self) -> Option<&[u8]> {
                self.payload()
            }
            fn header(&self, name: &str) -> Option<&[u8]> {
                self.header(name)
            }
            fn for_each_header(&self, show: &mut dyn FnMut(&str, Option<&[u8]>)) {
                for (name, value) in self.headers() {
                    show(name, value);
                }
            }
        }
    };
}
#[cfg(any(feature = "kafka", feature = "postgres", feature = "mysql", feature = "sqlite"))]
pub(crate) use views_itself;

macro_rules! forward {
    ($($type:ty),*) => {$(
        impl<M: MessageView + ?Sized> MessageView for $type {
            fn topic(&self) -> &str {
                (**self).topic()
            }
            fn partition(&self) -> i32 {
                (**self).partition()
            }
            fn offset(&self) -> i64 {
                (**self).offset()
            }
            fn timestamp_ms(&self) -> Option<i64> {
                (**self).timestamp_ms()
            }
            fn key(&self) -> Option<&[u8]> {
                (**self).key()
            }
            fn payload(&self) -> Option<&[u8]> {
                (**self).payload()
            }
            fn header(&self, name: &str) -> Option<&[u8]> {
                (**self).header(name)
            }
            fn for_each_header(&self, show: &mut dyn FnMut(&str, Option<&[u8]>)) {
                (**self).for_each_header(show);
            }
        }
    )*};
}

forward!(&M, Box<M>, Rc<M>, Arc<M>);

/// A plain message that owns its parts.
///
/// For loops that are not rdkafka's, and for tests.
///
/// ```
/// use hapax::message::{MessageView, Parts};
///
/// let message = Parts::new("orders").at(3, 42).key("customer-7").payload("{}").header("message-id", "a1");
/// assert_eq!(message.offset(), 42);
/// // The builder's methods have the names of what they set: read those parts through the trait.
/// assert_eq!(MessageView::header(&message, "message-id"), Some(&b"a1"[..]));
/// ```
///
/// `Debug` shows where it came from and how long its parts are, never what they say.
#[derive(Clone, PartialEq, Eq)]
pub struct Parts {
    topic: String,
    partition: i32,
    offset: i64,
    timestamp_ms: Option<i64>,
    key: Option<Vec<u8>>,
    payload: Option<Vec<u8>>,
    headers: Vec<(String, Option<Vec<u8>>)>,
}

impl Parts {
    /// A message of `topic` without position, time, key, payload or headers.
    #[must_use]
    pub fn new(topic: impl Into<String>) -> Self {
        Self {
            topic: topic.into(),
            partition: -1,
            offset: -1,
            timestamp_ms: None,
            key: None,
            payload: None,
            headers: Vec::new(),
        }
    }

    /// Copies everything that `message` shows.
    #[must_use]
    pub fn copy_of(message: &(impl MessageView + ?Sized)) -> Self {
        let mut headers = Vec::new();
        message.for_each_header(&mut |name, value| headers.push((name.to_owned(), value.map(<[u8]>::to_vec))));
        Self {
            topic: message.topic().to_owned(),
            partition: message.partition(),
            offset: message.offset(),
            timestamp_ms: message.timestamp_ms(),
            key: message.key().map(<[u8]>::to_vec),
            payload: message.payload().map(<[u8]>::to_vec),
            headers,
        }
    }

    /// Sets partition and offset.
    #[must_use]
    pub fn at(mut self, partition: i32, offset: i64) -> Self {
        self.partition = partition;
        self.offset = offset;
        self
    }

    /// Sets the timestamp, in milliseconds since 1970-01-01 UTC.
    #[must_use]
    pub fn timestamp(mut self, ms: i64) -> Self {
        self.timestamp_ms = Some(ms);
        self
    }

    /// Sets the record key.
    #[must_use]
    pub fn key(mut self, key: impl Into<Vec<u8>>) -> Self {
        self.key = Some(key.into());
        self
    }

    /// Sets the payload.
    #[must_use]
    pub fn payload(mut self, payload: impl Into<Vec<u8>>) -> Self {
        self.payload = Some(payload.into());
        self
    }

    /// Adds a header behind those that are there.
    #[must_use]
    pub fn header(mut self, name: impl Into<String>, value: impl Into<Vec<u8>>) -> Self {
        self.headers.push((name.into(), Some(value.into())));
        self
    }

    /// Adds a header whose value is null.
    #[must_use]
    pub fn null_header(mut self, name: impl Into<String>) -> Self {
        self.headers.push((name.into(), None));
        self
    }
}

impl MessageView for Parts {
    fn topic(&self) -> &str {
        &self.topic
    }

    fn partition(&self) -> i32 {
        self.partition
    }

    fn offset(&self) -> i64 {
        self.offset
    }

    fn timestamp_ms(&self) -> Option<i64> {
        self.timestamp_ms
    }

    fn key(&self) -> Option<&[u8]> {
        self.key.as_deref()
    }

    fn payload(&self) -> Option<&[u8]> {
        self.payload.as_deref()
    }

    fn header(&self, name: &str) -> Option<&[u8]> {
        let (_, value) = self.headers.iter().rev().find(|(own, _)| own == name)?;
        value.as_deref()
    }

    fn for_each_header(&self, show: &mut dyn FnMut(&str, Option<&[u8]>)) {
        for (name, value) in &self.headers {
            show(name, value.as_deref());
        }
    }
}

impl fmt::Debug for Parts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Parts")
            .field("topic", &self.topic)
            .field("partition", &self.partition)
            .field("offset", &self.offset)
            .field("timestamp_ms", &self.timestamp_ms)
            .field("key_bytes", &self.key.as_ref().map(Vec::len))
            .field("payload_bytes", &self.payload.as_ref().map(Vec::len))
            .field("headers", &self.headers.len())
            .finish()
    }
}
