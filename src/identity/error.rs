//! What can be wrong with an identity, or with the way one is asked for.

use std::fmt;
use std::sync::Arc;

use super::MAX_IDENTITY_BYTES;

/// The place in a message where an identity was looked for.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Field {
    /// The header of this name.
    Header(Arc<str>),
    /// The Kafka record key.
    RecordKey,
    /// The payload.
    Payload,
    /// What this JSON pointer points at.
    Json(Arc<str>),
    /// Topic, partition and offset.
    Position,
    /// A text, a byte string or a number that was given directly.
    Value,
    /// All components of the identity together.
    Whole,
}

impl fmt::Display for Field {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Header(name) => write!(f, "header `{name}`"),
            Self::RecordKey => f.write_str("record key"),
            Self::Payload => f.write_str("payload"),
            Self::Json(pointer) => write!(f, "value at JSON pointer `{pointer}`"),
            Self::Position => f.write_str("position (topic, partition, offset)"),
            Self::Value => f.write_str("identity given by the program"),
            Self::Whole => f.write_str("identity"),
        }
    }
}

/// What stands at a JSON pointer instead of a string or an integer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum JsonKind {
    /// `true` or `false`: two values cannot tell messages apart.
    Bool,
    /// A number with a fraction or an exponent, or an integer that does not fit 64 bits: parsers round it differently.
    Number,
    /// An array.
    Array,
    /// An object.
    Object,
}

impl fmt::Display for JsonKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Bool => "a boolean",
            Self::Number => "a number that is no 64-bit integer",
            Self::Array => "an array",
            Self::Object => "an object",
        })
    }
}

/// Why a message has no usable identity.
///
/// None of these is retryable: the same message gives the same error. What happens to such a message is decided by
/// [`OnMissing`](super::OnMissing). No variant holds anything out of the message; only sizes and configured names.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum IdentityError {
    /// The message has no such part, or it is null.
    #[error(
        "the message has no {field}: let the producer set it, name another identity with `.or(…)`, or choose \
         `OnMissing::HandleWithoutDedup`"
    )]
    Missing {
        /// What was looked for.
        field: Field,
    },

    /// The part is there and has no bytes. All such messages would share one identity.
    #[error(
        "the {field} is empty, which would make all such messages the same: let the producer fill it, name another \
         identity with `.or(…)`, or choose `OnMissing::HandleWithoutDedup`"
    )]
    Empty {
        /// What was empty.
        field: Field,
    },

    /// The part is larger than what is accepted as, or searched for, an identity.
    #[error(
        "the {field} makes {size} bytes, more than the {cap} that are accepted: identify by a digest of that part, as in \
         `digest(Sha256).of([Part::Key])`, or raise the limit if it is one of JSON"
    )]
    Oversize {
        /// What was too large.
        field: Field,
        /// Its size, in bytes.
        size: usize,
        /// The largest size accepted, in bytes.
        cap: usize,
    },

    /// The payload is not one JSON document.
    #[error(
        "the payload is not one JSON document (line {line}, column {column}): identify by a header or a digest, or mend \
         the producer"
    )]
    NotJson {
        /// Line of the fault, counted from 1.
        line: usize,
        /// Column of the fault, in bytes, counted from 1.
        column: usize,
    },

    /// The value is neither a string nor a 64-bit integer.
    #[error("JSON pointer `{pointer}` meets {found}: point at a string or an integer")]
    JsonType {
        /// The pointer.
        pointer: Arc<str>,
        /// What stands there.
        found: JsonKind,
    },

    /// A member name on the way to the value stands twice in one object, so that two parsers may see two identities.
    #[error("a name on the way of JSON pointer `{pointer}` stands twice in one object: mend the producer")]
    JsonRepeated {
        /// The pointer.
        pointer: Arc<str>,
    },

    /// The part is there and is not what it should be: a sequence number that is none.
    #[error("the {field} is no number: let the producer write decimal digits, or 8 bytes, as `Stamper` does")]
    Malformed {
        /// What was malformed.
        field: Field,
    },

    /// The user's own code refused the message.
    #[error("the message was refused: {reason}")]
    Refused {
        /// The reason it gave. Fixed text, so that nothing of a message gets into logs.
        reason: &'static str,
    },
}

impl IdentityError {
    /// A refusal by a user's own [`Identify`](super::Identify) or closure, which `.or(…)` does not pass by.
    #[must_use]
    pub const fn refused(reason: &'static str) -> Self {
        Self::Refused { reason }
    }

    /// Whether there was simply nothing: missing, null or empty. Only then does `.or(…)` try its other side.
    #[must_use]
    pub const fn is_absent(&self) -> bool {
        matches!(self, Self::Missing { .. } | Self::Empty { .. })
    }

    pub(super) const fn oversize(field: Field, size: usize) -> Self {
        Self::Oversize { field, size, cap: MAX_IDENTITY_BYTES }
    }
}

/// A fault in how identities are configured, found before the first message.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum IdentityConfigError {
    /// A name that must say something is empty.
    #[error("the {what} is empty: give it a name")]
    EmptyName {
        /// Which name.
        what: &'static str,
    },

    /// A name is longer than [`MAX_NAME_BYTES`](super::MAX_NAME_BYTES).
    #[error("the {what} has {size} bytes, at most {cap} are accepted: shorten it")]
    NameTooLong {
        /// Which name.
        what: &'static str,
        /// Its size, in bytes.
        size: usize,
        /// The largest size accepted, in bytes.
        cap: usize,
    },

    /// A header name begins or ends with white space or has control characters: nobody means that.
    #[error("the {what} has control characters, or white space at an end: remove them")]
    NameNotPlain {
        /// Which name.
        what: &'static str,
    },

    /// Not a JSON pointer as RFC 6901 has it.
    #[error("`{pointer}` is no JSON pointer: {reason}")]
    Pointer {
        /// The pointer as given.
        pointer: Arc<str>,
        /// What is wrong with it, and what would be right.
        reason: &'static str,
    },

    /// `and_then` was asked for behind an identity that has no window.
    #[error(
        "`.and_then(…)` has no window before it: begin with `position()` or `sequence()`, or join identities by `.and(…)`"
    )]
    NoWindow,

    /// A window of no numbers, or of too many.
    #[error("the span of a sequence window is {span}: choose one from 1 to {most}")]
    Span {
        /// The span asked for.
        span: u32,
        /// The longest one.
        most: u32,
    },

    /// A digest over nothing.
    #[error("the digest has no parts: give it at least one, as in `.of([Part::Payload])`")]
    NoParts,

    /// A part or a header is named twice.
    #[error("the {what} is named twice: name it once")]
    Repeated {
        /// What is named twice.
        what: &'static str,
    },

    /// The secret is too short to be one.
    #[error("the secret has {size} bytes, at least {least} are needed: take random ones")]
    SecretTooShort {
        /// Its size, in bytes.
        size: usize,
        /// The smallest size accepted, in bytes.
        least: usize,
    },
}
