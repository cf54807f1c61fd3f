//! Identities that a message carries as they are: a header, the record key, its position; and a user's own code.

use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;

use super::encode::{Encoder, IntoIdentity, Piece, tag};
use super::error::{Field, IdentityConfigError, IdentityError};
use super::sequence::WindowBy;
use super::{Identify, MAX_NAME_BYTES};
use crate::message::MessageView;

/// Checks the name of a header.
pub(super) fn check_header_name(name: &str) -> Result<(), IdentityConfigError> {
    let what = "header name";
    check_name(what, name)?;
    if name.trim() != name || name.chars().any(char::is_control) {
        return Err(IdentityConfigError::NameNotPlain { what });
    }
    Ok(())
}

/// Checks that a name is there and not too long.
pub(super) fn check_name(what: &'static str, name: &str) -> Result<(), IdentityConfigError> {
    if name.is_empty() {
        return Err(IdentityConfigError::EmptyName { what });
    }
    if name.len() > MAX_NAME_BYTES {
        return Err(IdentityConfigError::NameTooLong { what, size: name.len(), cap: MAX_NAME_BYTES });
    }
    Ok(())
}

/// The value of the header `name`, byte for byte: `message-id`, `ce_id`, `idempotency-key`, …
///
/// If the name stands more than once, the last value counts. The name is part of the identity: the value `7` in the
/// header `order-id` is not the value `7` in the header `message-id`. Where one id may stand under several names, say so
/// with [`Header::or_name`].
///
/// Producers choose it: whoever publishes an id first makes later messages of that id duplicates, or conflicts if they
/// say something else. Where tenants must not reach each other, put the tenant in front, as in
/// `header("tenant").and(header("message-id"))`, if the tenant's header can be trusted.
#[must_use]
pub fn header(name: impl Into<Arc<str>>) -> Header {
    Header { name: name.into(), others: Vec::new() }
}

/// An identity out of a header; made by [`header`].
#[derive(Debug, Clone)]
pub struct Header {
    name: Arc<str>,
    others: Vec<Arc<str>>,
}

impl Header {
    /// Another name the **same** id may stand under, as while producers move from one name to another.
    ///
    /// It is looked at where the names before it are missing or empty. The identity is the same under each of them;
    /// renaming the first one changes all identities.
    #[must_use]
    pub fn or_name(mut self, name: impl Into<Arc<str>>) -> Self {
        self.others.push(name.into());
        self
    }
}

impl Identify for Header {
    fn identify(&self, message: &dyn MessageView, into: &mut Encoder) -> Result<(), IdentityError> {
        let mut found = message.header(&self.name);
        for other in &self.others {
            if found.is_some_and(|value| !value.is_empty()) {
                break;
            }
            found = message.header(other).or(found);
        }
        let field = || Field::Header(Arc::clone(&self.name));
        let value = present(found, field)?;
        into.component(tag::HEADER, &[Piece::Prefixed(self.name.as_bytes()), Piece::Prefixed(value)], field)
    }

    fn validate(&self) -> Result<(), IdentityConfigError> {
        check_header_name(&self.name)?;
        for (at, other) in self.others.iter().enumerate() {
            check_header_name(other)?;
            if *other == self.name || self.others.iter().take(at).any(|before| before == other) {
                return Err(IdentityConfigError::Repeated { what: "header name" });
            }
        }
        Ok(())
    }
}

/// The Kafka record key, byte for byte.
///
/// Only for topics whose key names one message. On a compacted topic, and wherever keys are there for ordering, a key names a
/// *thing* that many messages speak of: all but the first of them would come out as duplicates or conflicts.
#[must_use]
pub const fn record_key() -> RecordKey {
    RecordKey(())
}

/// An identity out of the record key; made by [`record_key`].
#[derive(Debug, Clone, Copy)]
pub struct RecordKey(());

impl Identify for RecordKey {
    fn identify(&self, message: &dyn MessageView, into: &mut Encoder) -> Result<(), IdentityError> {
        let field = || Field::RecordKey;
        let key = present(message.key(), field)?;
        into.component(tag::RECORD_KEY, &[Piece::Prefixed(key)], field)
    }
}

/// Topic, partition and offset: tells redelivery, never re-production.
///
/// Always holds the topic, also under a scope that spans topics. A topic that is deleted and made again counts its
/// offsets from 0 again: keep the fingerprint of the payload on, so that such a message comes out as a conflict, or
/// change the handler's name in the scope.
#[must_use]
pub const fn position() -> Position {
    Position(())
}

/// An identity out of topic, partition and offset; made by [`position`].
#[derive(Debug, Clone, Copy)]
pub struct Position(());

impl Identify for Position {
    fn identify(&self, message: &dyn MessageView, into: &mut Encoder) -> Result<(), IdentityError> {
        let (topic, partition, offset) = (message.topic(), message.partition(), message.offset());
        // Without this, all messages that never were in a partition would be one.
        if topic.is_empty() || partition < 0 || offset < 0 {
            return Err(IdentityError::Missing { field: Field::Position });
        }
        let pieces = [
            Piece::Prefixed(topic.as_bytes()),
            Piece::Fixed(&partition.to_be_bytes()),
            Piece::Fixed(&offset.to_be_bytes()),
        ];
        into.component(tag::POSITION, &pieces, || Field::Position)
    }

    fn window(&self) -> Option<WindowBy> {
        Some(WindowBy::Position)
    }
}

/// An identity that your own code finds: a closure from the message to anything that is [`IntoIdentity`].
///
/// ```
/// use hapax::identity::{Identify, Identity, IdentityError, by};
/// use hapax::message::{MessageView, Parts};
///
/// // The first 16 bytes of a binary payload.
/// let identify = by(|message: &dyn MessageView| {
///     let payload = message.payload().ok_or(IdentityError::refused("tombstone"))?;
///     Identity::bytes(payload.get(..16).ok_or(IdentityError::refused("shorter than its header"))?)
/// });
/// assert!(identify.identity(&Parts::new("t").payload([7; 20])).is_ok());
/// ```
///
/// The closure must give the same answer for every copy of a message: no clock, no counter, no random number.
pub fn by<F, I>(find: F) -> By<F, I>
where
    F: Fn(&dyn MessageView) -> I + Send + Sync,
    I: IntoIdentity,
{
    By { find, identity: PhantomData }
}

/// An identity out of a closure; made by [`by`].
pub struct By<F, I> {
    find: F,
    identity: PhantomData<fn() -> I>,
}

impl<F: Clone, I> Clone for By<F, I> {
    fn clone(&self) -> Self {
        Self { find: self.find.clone(), identity: PhantomData }
    }
}

impl<F, I> fmt::Debug for By<F, I> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("By(closure)")
    }
}

impl<F, I> Identify for By<F, I>
where
    F: Fn(&dyn MessageView) -> I + Send + Sync,
    I: IntoIdentity,
{
    fn identify(&self, message: &dyn MessageView, into: &mut Encoder) -> Result<(), IdentityError> {
        into.identity(&(self.find)(message).into_identity()?)
    }
}

/// The value, if it is there and not empty.
pub(super) fn present(value: Option<&[u8]>, field: impl Fn() -> Field) -> Result<&[u8], IdentityError> {
    match value {
        None => Err(IdentityError::Missing { field: field() }),
        Some([]) => Err(IdentityError::Empty { field: field() }),
        Some(value) => Ok(value),
    }
}
