//! What a producer writes so that its messages can be told apart by number.

use std::fmt;
use std::sync::Arc;

use super::encode::{Encoder, Piece, tag};
use super::error::{Field, IdentityConfigError};
use super::sequence::{SEQUENCE_HEADER, SOURCE_HEADER};
use super::source::check_header_name;
use crate::message::MessageView;

/// Writes a source and a number into the headers of what a producer sends; read by [`sequence`](super::sequence()).
///
/// It counts nothing: the number is the caller's, and has to come out the same when the same message is sent again, also by another process after
/// a restart. See [`sequence`](super::sequence()) for what does and what does not.
///
/// ```
/// use hapax::identity::{Identify, Stamper, sequence};
/// use hapax::message::Parts;
///
/// // An outbox: the row's id is the number.
/// let stamper = Stamper::new("orders-outbox")?;
/// let row_id = 4711;
/// let message = stamper.stamp(row_id).pairs().into_iter().fold(
///     Parts::new("orders").payload("one coffee"),
///     |message, (name, value)| message.header(name, value),
/// );
/// let (_, number) = sequence().of(&message)?;
/// assert_eq!(number, 4711);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// Consume, transform, produce: the place of what was read is the number of what is written, whoever reads it again.
///
/// ```
/// # use hapax::identity::{Identify, Stamper, sequence};
/// # use hapax::message::Parts;
/// let stamper = Stamper::new("billing")?; // this step
/// let order = Parts::new("orders").at(3, 42); // what was read
/// let stamp = stamper.following(&order)?;
/// assert_eq!(stamp.pairs(), [("hapax-source", &b"billing/orders/3"[..]), ("hapax-sequence", &b"42"[..])]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// Where one message read makes several written to one topic, give each place a step of its own (`billing-0`, `billing-1`, …): two messages with
/// one number are taken for one.
#[derive(Clone, Debug)]
pub struct Stamper {
    name: Arc<str>,
    source: Arc<str>,
    number: Arc<str>,
}

impl Stamper {
    /// A stamper for the source of this name. Two sources that number by themselves must not share one.
    ///
    /// # Errors
    ///
    /// [`IdentityConfigError::EmptyName`] and [`IdentityConfigError::NameTooLong`]; neither is retryable.
    pub fn new(source: impl Into<Arc<str>>) -> Result<Self, IdentityConfigError> {
        let name = source.into();
        super::source::check_name("source", &name)?;
        Ok(Self { name, source: SOURCE_HEADER.into(), number: SEQUENCE_HEADER.into() })
    }

    /// Other names of the two headers: of the source, and of the number.
    ///
    /// # Errors
    ///
    /// An [`IdentityConfigError`] of either name; not retryable.
    pub fn headers(
        mut self,
        source: impl Into<Arc<str>>,
        number: impl Into<Arc<str>>,
    ) -> Result<Self, IdentityConfigError> {
        (self.source, self.number) = (source.into(), number.into());
        check_header_name(&self.source)?;
        check_header_name(&self.number)?;
        if self.source == self.number {
            return Err(IdentityConfigError::Repeated { what: "header name" });
        }
        Ok(self)
    }

    /// The stamp of the message with this number.
    #[must_use]
    pub fn stamp(&self, number: u64) -> Stamp {
        self.stamp_of(Arc::clone(&self.name), number)
    }

    /// The stamp of what is made of this message: the source is this one's name with topic and partition of `read`, the number its offset.
    ///
    /// # Errors
    ///
    /// [`IdentityError::Missing`](super::IdentityError::Missing) if `read` stands in no partition, and
    /// [`IdentityError::Oversize`](super::IdentityError::Oversize) if names are too long; neither is retryable.
    pub fn following(&self, read: &dyn MessageView) -> Result<Stamp, super::IdentityError> {
        let (topic, partition) = (read.topic(), read.partition());
        let missing = super::IdentityError::Missing { field: Field::Position };
        let number = u64::try_from(read.offset()).ok().filter(|_| !topic.is_empty() && partition >= 0);
        let number = number.ok_or(missing)?;
        // A topic's name has no slash, so that this is read from the right in one way only.
        let source = format!("{}/{topic}/{partition}", self.name);
        let pieces = [Piece::Prefixed(source.as_bytes()), Piece::Fixed(&number.to_be_bytes())];
        Encoder::new().component(tag::SEQUENCE, &pieces, || Field::Header(Arc::clone(&self.source)))?;
        Ok(self.stamp_of(source.into(), number))
    }

    fn stamp_of(&self, source: Arc<str>, number: u64) -> Stamp {
        let names = [Arc::clone(&self.source), Arc::clone(&self.number)];
        Stamp { names, source, number: number.to_string() }
    }
}

/// The headers of one message; made by a [`Stamper`]. With the feature `kafka`, `Stamp::onto` adds them to rdkafka's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stamp {
    names: [Arc<str>; 2],
    source: Arc<str>,
    number: String,
}

impl Stamp {
    /// Names and values of the headers, to be added behind those that are there: the last one of a name counts.
    #[must_use]
    pub fn pairs(&self) -> [(&str, &[u8]); 2] {
        let [source, number] = &self.names;
        [(source, self.source.as_bytes()), (number, self.number.as_bytes())]
    }
}

impl fmt::Display for Stamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.source, self.number)
    }
}
