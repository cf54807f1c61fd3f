//! What makes two messages the same.
//!
//! An [`Identify`] finds the [`Identity`] of a message; a [`Scope`] says where it is unique and turns it into the fixed-width
//! [`Key`] that stores keep. Beside the key stands a [`Fingerprint`] of what the message says, so that one id with two
//! different bodies is a *conflict* and not a duplicate.
//!
//! ```
//! use hapax::identity::{FingerprintBy, Identify, Scope, Sha256, digest, header};
//! use hapax::message::Parts;
//!
//! let identify = header("message-id").or(digest(Sha256));
//! let scope = Scope::new("payments", "charge")?;
//!
//! let message = Parts::new("orders").payload("one coffee").header("message-id", "7d0c");
//! let again = Parts::new("orders").at(3, 9000).payload("one coffee").header("message-id", "7d0c");
//! let key = |message: &Parts| Ok::<_, hapax::identity::IdentityError>(scope.key(&identify.identity(message)?, "orders"));
//! assert_eq!(key(&message)?, key(&again)?);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # Which one to take
//!
//! | identity | tells apart | beware |
//! |---|---|---|
//! | [`header`] | messages to which the producer gave an id | the producer chooses the id |
//! | `json` (feature `json`) | the same, the id being in the payload | the payload is parsed |
//! | [`record_key`] | messages whose key names them | a key often names a thing, not a message |
//! | [`digest`](digest()) | messages that say different things | equal bodies collapse into one |
//! | [`position`] | places in Kafka: redelivery only | what is produced again is new |
//! | [`sequence`](sequence()) | what a producer numbered | the number must survive the producer's restart |
//! | [`by`] | whatever your code finds | the same answer for every copy |
//!
//! [`Identify::or`] takes another where the first is absent, [`Identify::and`] joins two. [`Identify::and_then`] keeps two memories: a
//! [window](crate::window) by the first, one row however many messages there are, and a record for each by the second. A message without an
//! identity is an error whose fate is a policy, [`OnMissing`]; it never gets a random or a shared one. A tombstone
//! has no payload, so it has no digest and no JSON identity.
//!
//! # The encoding, version 1
//!
//! No separators, so no value can pass for another (`x:y` is never `x` and `y`). `len` is LEB128, integers are big-endian.
//! Bytes are never changed: case, trailing spaces, accents, NUL and what is not UTF-8 all count.
//!
//! | component | bytes |
//! |---|---|
//! | text | `01` len text |
//! | byte string | `02` len bytes |
//! | integer | `03` 16 bytes, two's complement |
//! | header | `04` len name, len value |
//! | record key | `05` len key |
//! | JSON string | `06` len pointer, len string |
//! | JSON integer | `07` len pointer, 16 bytes, two's complement |
//! | position | `08` len topic, 4 bytes partition, 8 bytes offset |
//! | digest | `09` algorithm (`01` SHA-256, `02` BLAKE3, `03` MD5), part (`01` payload, `02` key, `03` header: len name), digest |
//! | sequence | `0a` len source, 8 bytes number |
//!
//! A scope is `01` (the version), `21` len group, `22` len handler, and with a tenant `23` len tenant. Its hash with BLAKE3's
//! `derive_key`, context `hapax identity v1 scope`, is the key of keyed BLAKE3 over `01` (the version), the topic
//! (`11` len topic, or `10` for none) and the components; the first 16 bytes of that are the [`Key`]. With a secret, the scope's
//! bytes are hashed by keyed BLAKE3 instead, its key being `derive_key` of the secret with context `hapax identity v1 secret`.
//!
//! A fingerprint is the first 16 bytes of keyed BLAKE3 over the payload, the key being `derive_key` of nothing with context
//! `hapax identity v1 fingerprint payload`; of nothing, with `… fingerprint null`, for a null payload; with
//! `… fingerprint parts` over `31` len payload (`30` if null) and per header `33` len name, len value (`32` len name if
//! there is none) if headers are covered. With a secret, keys are keyed BLAKE3 of the context under the secret's key. A fingerprint of nothing is 16 zeros.
//!
//! Vectors made by another implementation are part of the tests: a later version cannot change any of this unnoticed.

mod combine;
mod digest;
mod encode;
mod error;
mod fingerprint;
#[cfg(feature = "json")]
mod json;
mod key;
mod scope;
mod sequence;
mod source;
mod stamp;

use std::fmt;
use std::sync::Arc;

pub use combine::{And, AndThen, Or};
pub use digest::DigestKind::{Blake3, InsecureMd5, Sha256};
pub use digest::{Digest, DigestKind, Part, digest};
pub use encode::{Encoder, Identity, IntoIdentity};
pub use error::{Field, IdentityConfigError, IdentityError, JsonKind};
pub use fingerprint::FingerprintBy;
#[cfg(feature = "json")]
pub use json::{Json, MAX_JSON_BYTES, json};
pub use key::{Fingerprint, Key};
pub use scope::{MIN_SECRET_BYTES, Scope};
pub use sequence::{SEQUENCE_HEADER, SOURCE_HEADER, Sequence, WindowBy, sequence};
pub use source::{By, Header, Position, RecordKey, by, header, position, record_key};
pub use stamp::{Stamp, Stamper};

use crate::message::MessageView;

/// The largest identity, in bytes as encoded: values, the names of headers or pointers, and a few bytes for types and
/// lengths. Checked before anything is copied or hashed.
pub const MAX_IDENTITY_BYTES: usize = 4096;

/// The longest name of a consumer group, handler, tenant, header or JSON pointer, in bytes.
pub const MAX_NAME_BYTES: usize = 1024;

/// Finds the identity of a message.
///
/// Every copy of a message must get the same identity, in every process and every release, and different messages
/// different ones. So: no clock, no counter, no randomness, nothing that is read from elsewhere.
///
/// The trait is object-safe; a boxed, shared or borrowed one works as well.
pub trait Identify: Send + Sync + fmt::Debug {
    /// Writes the components of the identity. What was written before an error is thrown away by the caller.
    ///
    /// # Errors
    ///
    /// Any [`IdentityError`]: the message has no identity of this kind. None is retryable.
    fn identify(&self, message: &dyn MessageView, into: &mut Encoder) -> Result<(), IdentityError>;

    /// Checks how it is configured. Called once, when a wrapper or consumer is built.
    ///
    /// # Errors
    ///
    /// An [`IdentityConfigError`] that says what to mend; not retryable.
    fn validate(&self) -> Result<(), IdentityConfigError> {
        Ok(())
    }

    /// Which window answers for such messages where windows are kept; `None` for none.
    ///
    /// [`position`] and [`sequence`](sequence()) have one, and so has what begins with them by [`Identify::and_then`]. Parts of an
    /// [`Identify::or`] or [`Identify::and`] have none: they are identities of records.
    fn window(&self) -> Option<WindowBy> {
        None
    }

    /// Whether there is a record for each message where windows are kept: not for what has a window alone.
    fn records(&self) -> bool {
        self.window().is_none()
    }

    /// The identity of `message`.
    ///
    /// # Errors
    ///
    /// Any [`IdentityError`]: the message has no identity of this kind. None is retryable.
    fn identity(&self, message: &dyn MessageView) -> Result<Identity, IdentityError> {
        let mut into = Encoder::new();
        self.identify(message, &mut into)?;
        into.finish()
    }

    /// This identity; where it is missing, null or empty, `other`.
    ///
    /// Only there. An identity that is oversize or malformed is an error: if it fell through, a producer could choose which of
    /// the two counts for one message. If both are absent, the error speaks of the first.
    ///
    /// A re-sent copy must carry the same parts as the first: one with the header and one without are two messages.
    fn or<B: Identify>(self, other: B) -> Or<Self, B>
    where
        Self: Sized,
    {
        Or { first: self, second: other }
    }

    /// Both identities together: messages are the same if both are. Either one missing is an error.
    fn and<B: Identify>(self, other: B) -> And<Self, B>
    where
        Self: Sized,
    {
        And { first: self, second: other }
    }

    /// A window by this identity, which is [`position`] or [`sequence`](sequence()), and a record by `other`: messages are the same if either
    /// says so.
    ///
    /// `position().and_then(header("id"))` stops redelivery by one row for each partition, and what is produced again by one row for each message.
    /// Where no windows are kept (levels L0 and L1), it is the identity `other`.
    fn and_then<B: Identify>(self, other: B) -> AndThen<Self, B>
    where
        Self: Sized,
    {
        AndThen { window: self, record: other }
    }
}

macro_rules! forward {
    ($($type:ty),*) => {$(
        impl<I: Identify + ?Sized> Identify for $type {
            fn identify(&self, message: &dyn MessageView, into: &mut Encoder) -> Result<(), IdentityError> {
                (**self).identify(message, into)
            }

            fn validate(&self) -> Result<(), IdentityConfigError> {
                (**self).validate()
            }

            fn window(&self) -> Option<WindowBy> {
                (**self).window()
            }

            fn records(&self) -> bool {
                (**self).records()
            }
        }
    )*};
}

forward!(&I, Box<I>, Arc<I>);

/// What happens to a message without a usable identity, whatever [`IdentityError`] it is.
///
/// To fall back to another identity is not a policy but part of the identity: [`Identify::or`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum OnMissing {
    /// The message is refused: the handler does not run, and the caller gets the [`IdentityError`].
    #[default]
    Reject,
    /// The handler runs and nothing is remembered: every copy of the message is handled, as in *at least once*. Counted.
    HandleWithoutDedup,
}
