//! Numbers that a producer gives its messages, and which window an identity asks for.

use std::sync::Arc;

use super::Identify;
use super::encode::{Encoder, Identity, Piece, tag};
use super::error::{Field, IdentityConfigError, IdentityError};
use super::source::{check_header_name, present};
use crate::message::MessageView;
use crate::window::Sequences;

/// The header that names the source, where no other is given.
pub const SOURCE_HEADER: &str = "hapax-source";

/// The header with the number, where no other is given.
pub const SEQUENCE_HEADER: &str = "hapax-sequence";

/// Which [window](crate::window) answers for redelivered or re-produced messages, beside or instead of a record for each.
#[derive(Debug, Clone)]
pub enum WindowBy {
    /// That of the message's partition, by offset: [`Window`](crate::window::Window).
    Position,
    /// That of the producer's source, by number: [`Sequences`].
    Sequence(Sequence),
}

/// The producer's own number of a message: the headers `hapax-source` and `hapax-sequence`, as a [`Stamper`](super::Stamper) writes them.
///
/// Two messages are the same if source and number are. Where a window is kept (level L2), one row for each source stops what is produced again,
/// across partitions, sessions and restarts; numbers may come out of order and have gaps, as far as the window's [span](Sequence::span)
/// reaches. Elsewhere it is an identity like any other, with a record for each message.
///
/// # Which number
///
/// One that comes out the same when the message is produced again after the producer was restarted, and that no other message of the source
/// has:
///
/// | number | source |
/// |---|---|
/// | the row id of an outbox | the outbox, one per database |
/// | the position in a log (LSN, binlog offset as one number) | that log |
/// | the offset of the message this one was made from | topic and partition of that one: [`Stamper::following`](super::Stamper::following) |
/// | a line's number | the file |
///
/// A counter that starts anew with the producer does **not** do. After a restart it counts from 0: new messages get the numbers of old ones and are
/// *taken for duplicates*, so they are lost; and what is sent again gets a new number, so it is handled twice. A random source name for each
/// start loses nothing, and stops nothing that is sent again by another start. A clock does not do either: it steps back, and two messages may
/// share a tick.
///
/// # Values
///
/// The source is any bytes. The number is decimal digits, at most [`u64::MAX`]; or 8 bytes, big-endian, if they are not 8 digits. It is
/// malformed otherwise, which [`Identify::or`] does not pass by.
///
/// Producers choose both: one that sends a very high number makes everything below it too old to tell.
#[must_use]
pub fn sequence() -> Sequence {
    Sequence { source: SOURCE_HEADER.into(), number: SEQUENCE_HEADER.into(), span: Sequences::SPAN }
}

/// An identity out of a source and its number; made by [`sequence`].
#[derive(Debug, Clone)]
pub struct Sequence {
    source: Arc<str>,
    number: Arc<str>,
    span: u32,
}

impl Sequence {
    /// The header that names the source. Not part of the identity.
    #[must_use]
    pub fn source_header(mut self, name: impl Into<Arc<str>>) -> Self {
        self.source = name.into();
        self
    }

    /// The header with the number. Not part of the identity.
    #[must_use]
    pub fn sequence_header(mut self, name: impl Into<Arc<str>>) -> Self {
        self.number = name.into();
        self
    }

    /// How many numbers up to the highest one a window tells apart; 4,096 unless given, at least 64, at most 65,536. A message further
    /// below is too old to tell. One row grows by up to a bit for each.
    #[must_use]
    pub const fn span(mut self, numbers: u32) -> Self {
        self.span = numbers;
        self
    }

    /// The span of its windows.
    #[must_use]
    pub const fn get_span(&self) -> u32 {
        self.span
    }

    /// Source and number of a message.
    ///
    /// # Errors
    ///
    /// [`IdentityError::Missing`] and [`IdentityError::Empty`] of either header, [`IdentityError::Malformed`] of the number, and
    /// [`IdentityError::Oversize`] of the source; none is retryable.
    pub fn of(&self, message: &dyn MessageView) -> Result<(Identity, u64), IdentityError> {
        let (source, number) = self.read(message)?;
        let mut into = Encoder::new();
        into.component(tag::BYTES, &[Piece::Prefixed(source)], || Field::Header(Arc::clone(&self.source)))?;
        Ok((into.finish()?, number))
    }

    fn read<'m>(&self, message: &'m dyn MessageView) -> Result<(&'m [u8], u64), IdentityError> {
        let source = present(message.header(&self.source), || Field::Header(Arc::clone(&self.source)))?;
        let field = || Field::Header(Arc::clone(&self.number));
        let digits = present(message.header(&self.number), field)?;
        let number = number(digits).ok_or_else(|| IdentityError::Malformed { field: field() })?;
        Ok((source, number))
    }
}

impl Identify for Sequence {
    fn identify(&self, message: &dyn MessageView, into: &mut Encoder) -> Result<(), IdentityError> {
        let (source, number) = self.read(message)?;
        let pieces = [Piece::Prefixed(source), Piece::Fixed(&number.to_be_bytes())];
        into.component(tag::SEQUENCE, &pieces, || Field::Header(Arc::clone(&self.source)))
    }

    fn validate(&self) -> Result<(), IdentityConfigError> {
        check_header_name(&self.source)?;
        check_header_name(&self.number)?;
        if self.source == self.number {
            return Err(IdentityConfigError::Repeated { what: "header name" });
        }
        if self.span == 0 || self.span > Sequences::MOST_SPAN {
            return Err(IdentityConfigError::Span { span: self.span, most: Sequences::MOST_SPAN });
        }
        Ok(())
    }

    fn window(&self) -> Option<WindowBy> {
        Some(WindowBy::Sequence(self.clone()))
    }
}

/// Decimal digits, or 8 bytes that are not all digits.
fn number(value: &[u8]) -> Option<u64> {
    if value.iter().all(u8::is_ascii_digit) {
        return value
            .iter()
            .try_fold(0_u64, |number, digit| number.checked_mul(10)?.checked_add(u64::from(digit.wrapping_sub(b'0'))));
    }
    value.try_into().ok().map(u64::from_be_bytes)
}
