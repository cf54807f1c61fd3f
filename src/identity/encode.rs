//! The typed, length-prefixed encoding of identities. Its layout is fixed: see the module above.

use std::fmt;
use std::hash::{Hash, Hasher};

use super::MAX_IDENTITY_BYTES;
use super::error::{Field, IdentityError};

/// Tags of the encoding. A tag once given never changes its meaning.
pub(super) mod tag {
    pub(crate) const VERSION: u8 = 0x01;

    pub(crate) const TEXT: u8 = 0x01;
    pub(crate) const BYTES: u8 = 0x02;
    pub(crate) const INTEGER: u8 = 0x03;
    pub(crate) const HEADER: u8 = 0x04;
    pub(crate) const RECORD_KEY: u8 = 0x05;
    #[cfg(feature = "json")]
    pub(crate) const JSON_TEXT: u8 = 0x06;
    #[cfg(feature = "json")]
    pub(crate) const JSON_INTEGER: u8 = 0x07;
    pub(crate) const POSITION: u8 = 0x08;
    pub(crate) const DIGEST: u8 = 0x09;
    pub(crate) const SEQUENCE: u8 = 0x0a;

    pub(crate) const NO_TOPIC: u8 = 0x10;
    pub(crate) const TOPIC: u8 = 0x11;

    pub(crate) const GROUP: u8 = 0x21;
    pub(crate) const HANDLER: u8 = 0x22;
    pub(crate) const TENANT: u8 = 0x23;

    pub(crate) const NULL_PAYLOAD: u8 = 0x30;
    pub(crate) const PAYLOAD: u8 = 0x31;
    pub(crate) const NO_HEADER: u8 = 0x32;
    pub(crate) const HEADER_VALUE: u8 = 0x33;
}

/// A length as LEB128: seven bits a byte, the lowest first.
#[derive(Clone, Copy)]
pub(super) struct Length {
    bytes: [u8; 10],
    used: usize,
}

impl Length {
    pub(super) fn of(value: &[u8]) -> Self {
        let mut rest = value.len() as u64;
        let mut bytes = [0; 10];
        if let Ok(short) = u8::try_from(rest)
            && short < 0x80
        {
            // As most are.
            bytes[0] = short;
            return Self { bytes, used: 1 };
        }
        let mut used = 0;
        for slot in &mut bytes {
            used += 1;
            let low = (rest & 0x7f) as u8;
            rest >>= 7;
            if rest == 0 {
                *slot = low;
                break;
            }
            *slot = low | 0x80;
        }
        Self { bytes, used }
    }

    pub(super) fn as_bytes(&self) -> &[u8] {
        self.bytes.get(..self.used).unwrap_or(&self.bytes)
    }
}

/// What follows a tag.
#[derive(Clone, Copy)]
pub(super) enum Piece<'a> {
    /// Its length, then the bytes.
    Prefixed(&'a [u8]),
    /// The bytes alone: what stands before them fixes their number.
    Fixed(&'a [u8]),
}

impl Piece<'_> {
    fn size(&self) -> usize {
        match self {
            Self::Prefixed(bytes) => Length::of(bytes).used + bytes.len(),
            Self::Fixed(bytes) => bytes.len(),
        }
    }
}

/// What is kept without an allocation. Room for two ids of 36 bytes with the names of their headers, and more.
const INLINE: usize = 232;

/// Bytes that stand inline while they are few.
#[derive(Clone)]
struct Bytes {
    inline: [u8; INLINE],
    len: usize,
    /// Holds everything as soon as `spilled`.
    heap: Vec<u8>,
    spilled: bool,
}

impl Bytes {
    const fn new() -> Self {
        Self { inline: [0; INLINE], len: 0, heap: Vec::new(), spilled: false }
    }

    fn as_slice(&self) -> &[u8] {
        let all = if self.spilled { &self.heap[..] } else { &self.inline[..] };
        all.get(..self.len).unwrap_or_default()
    }

    fn push(&mut self, bytes: &[u8]) {
        self.room(bytes.len()).copy_from_slice(bytes);
    }

    /// The next `size` bytes, to be written to.
    fn room(&mut self, size: usize) -> &mut [u8] {
        let (start, end) = (self.len, self.len + size);
        self.len = end;
        if !self.spilled {
            if end <= INLINE {
                return self.inline.get_mut(start..end).unwrap_or_default();
            }
            self.heap.clear();
            self.heap.reserve(end.max(2 * INLINE));
            self.heap.extend_from_slice(self.inline.get(..start).unwrap_or_default());
            self.spilled = true;
        }
        self.heap.resize(end, 0);
        self.heap.get_mut(start..).unwrap_or_default()
    }

    fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
    }
}

/// Takes the components of one identity, in order.
///
/// This is what an [`Identify`](super::Identify) writes to. Every component is written with its type and its length,
/// so that no two different sequences of components give the same bytes. Short identities need no allocation.
///
/// An empty text or byte string, or one that would bring the identity over
/// [`MAX_IDENTITY_BYTES`], is refused; what was written before it stays.
#[derive(Clone)]
pub struct Encoder {
    bytes: Bytes,
    components: usize,
}

/// A place in an [`Encoder`] to go back to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Mark {
    len: usize,
    components: usize,
}

impl Encoder {
    /// An encoder without components.
    #[must_use]
    pub const fn new() -> Self {
        Self { bytes: Bytes::new(), components: 0 }
    }

    /// Adds a text.
    ///
    /// # Errors
    ///
    /// [`IdentityError::Empty`] and [`IdentityError::Oversize`]; neither is retryable.
    pub fn text(&mut self, text: &str) -> Result<(), IdentityError> {
        if text.is_empty() {
            return Err(IdentityError::Empty { field: Field::Value });
        }
        self.component(tag::TEXT, &[Piece::Prefixed(text.as_bytes())], || Field::Value)
    }

    /// Adds a byte string. It is never equal to a text of the same bytes.
    ///
    /// # Errors
    ///
    /// [`IdentityError::Empty`] and [`IdentityError::Oversize`]; neither is retryable.
    pub fn bytes(&mut self, bytes: &[u8]) -> Result<(), IdentityError> {
        if bytes.is_empty() {
            return Err(IdentityError::Empty { field: Field::Value });
        }
        self.component(tag::BYTES, &[Piece::Prefixed(bytes)], || Field::Value)
    }

    /// Adds an integer. The type it came from does not matter: `7_u8` and `7_i64` are the same.
    ///
    /// # Errors
    ///
    /// [`IdentityError::Oversize`]; not retryable.
    pub fn integer(&mut self, integer: impl Into<i128>) -> Result<(), IdentityError> {
        self.component(tag::INTEGER, &[Piece::Fixed(&integer.into().to_be_bytes())], || Field::Value)
    }

    /// Adds all components of another identity.
    ///
    /// # Errors
    ///
    /// [`IdentityError::Oversize`]; not retryable.
    pub fn identity(&mut self, identity: &Identity) -> Result<(), IdentityError> {
        let size = self.bytes.len + identity.encoded().len();
        if size > MAX_IDENTITY_BYTES {
            return Err(IdentityError::oversize(Field::Whole, size));
        }
        self.bytes.push(identity.encoded());
        self.components += identity.components;
        Ok(())
    }

    /// How many components were written.
    #[must_use]
    pub const fn components(&self) -> usize {
        self.components
    }

    /// The bytes written, if they are an identity.
    pub(crate) fn encoded(&self) -> Result<&[u8], IdentityError> {
        if self.components == 0 {
            return Err(IdentityError::Empty { field: Field::Whole });
        }
        Ok(self.bytes.as_slice())
    }

    /// Ends the identity.
    ///
    /// # Errors
    ///
    /// [`IdentityError::Empty`] if nothing was written; not retryable.
    pub fn finish(self) -> Result<Identity, IdentityError> {
        self.encoded()?;
        Ok(Identity { bytes: self.bytes, components: self.components })
    }

    /// Adds a component of `tag`. The caller has seen to it that the value is not empty.
    pub(super) fn component(
        &mut self,
        tag: u8,
        pieces: &[Piece<'_>],
        field: impl FnOnce() -> Field,
    ) -> Result<(), IdentityError> {
        let size = 1 + pieces.iter().map(Piece::size).sum::<usize>();
        if self.bytes.len + size > MAX_IDENTITY_BYTES {
            return Err(IdentityError::oversize(field(), self.bytes.len + size));
        }
        let mut room = self.bytes.room(size);
        room = put(room, &[tag]);
        for piece in pieces {
            room = match piece {
                Piece::Prefixed(bytes) => put(put(room, Length::of(bytes).as_bytes()), bytes),
                Piece::Fixed(bytes) => put(room, bytes),
            };
        }
        self.components += 1;
        Ok(())
    }

    pub(super) const fn mark(&self) -> Mark {
        Mark { len: self.bytes.len, components: self.components }
    }

    pub(super) fn back_to(&mut self, mark: Mark) {
        self.bytes.truncate(mark.len);
        self.components = mark.components;
    }
}

/// Writes at the beginning; gives what is left.
fn put<'r>(room: &'r mut [u8], bytes: &[u8]) -> &'r mut [u8] {
    let (here, rest) = room.split_at_mut(bytes.len());
    here.copy_from_slice(bytes);
    rest
}

impl Default for Encoder {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Encoder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Encoder").field("components", &self.components).field("bytes", &self.bytes.len).finish()
    }
}

/// What makes a message the same as another: one or more typed components, at least one, none of them empty,
/// at most [`MAX_IDENTITY_BYTES`] when encoded.
///
/// It says nothing yet of where it is unique; a [`Scope`](super::Scope) turns it into a [`Key`](super::Key).
/// `Debug` shows sizes only, since an identity may be somebody's name.
#[derive(Clone)]
pub struct Identity {
    bytes: Bytes,
    components: usize,
}

impl Identity {
    /// An identity of one text. Case, white space and Unicode form all count.
    ///
    /// # Errors
    ///
    /// [`IdentityError::Empty`] and [`IdentityError::Oversize`]; neither is retryable.
    pub fn text(text: &str) -> Result<Self, IdentityError> {
        let mut into = Encoder::new();
        into.text(text)?;
        into.finish()
    }

    /// An identity of one byte string; never equal to [`Identity::text`] of the same bytes.
    ///
    /// # Errors
    ///
    /// [`IdentityError::Empty`] and [`IdentityError::Oversize`]; neither is retryable.
    pub fn bytes(bytes: &[u8]) -> Result<Self, IdentityError> {
        let mut into = Encoder::new();
        into.bytes(bytes)?;
        into.finish()
    }

    /// An identity of one integer; never equal to [`Identity::text`] of its digits.
    #[must_use]
    pub fn integer(integer: impl Into<i128>) -> Self {
        let mut into = Bytes::new();
        into.push(&[tag::INTEGER]);
        into.push(&integer.into().to_be_bytes());
        Self { bytes: into, components: 1 }
    }

    /// This identity and then the components of `other`. Both must be equal for the whole to be equal; order counts.
    ///
    /// # Errors
    ///
    /// [`IdentityError::Oversize`]; not retryable.
    pub fn and(self, other: &Identity) -> Result<Self, IdentityError> {
        let mut into = Encoder { bytes: self.bytes, components: self.components };
        into.identity(other)?;
        into.finish()
    }

    /// The encoded components. They hold the identity itself: compare them, but keep them out of logs.
    #[must_use]
    pub fn encoded(&self) -> &[u8] {
        self.bytes.as_slice()
    }

    /// How many components there are.
    #[must_use]
    pub const fn components(&self) -> usize {
        self.components
    }
}

impl PartialEq for Identity {
    fn eq(&self, other: &Self) -> bool {
        self.encoded() == other.encoded()
    }
}

impl Eq for Identity {}

impl Hash for Identity {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.encoded().hash(state);
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity").field("components", &self.components).field("bytes", &self.bytes.len).finish()
    }
}

/// What can be turned into an [`Identity`]: texts, byte strings, integers, pairs of such, and results and options of them.
///
/// A missing [`Option`] is [`IdentityError::Missing`]; an empty text is [`IdentityError::Empty`].
pub trait IntoIdentity {
    /// The identity.
    ///
    /// # Errors
    ///
    /// Any [`IdentityError`]; none is retryable.
    fn into_identity(self) -> Result<Identity, IdentityError>;
}

impl IntoIdentity for Identity {
    fn into_identity(self) -> Result<Identity, IdentityError> {
        Ok(self)
    }
}

impl IntoIdentity for &Identity {
    fn into_identity(self) -> Result<Identity, IdentityError> {
        Ok(self.clone())
    }
}

impl<I: IntoIdentity> IntoIdentity for Result<I, IdentityError> {
    fn into_identity(self) -> Result<Identity, IdentityError> {
        self?.into_identity()
    }
}

impl<I: IntoIdentity> IntoIdentity for Option<I> {
    fn into_identity(self) -> Result<Identity, IdentityError> {
        self.ok_or(IdentityError::Missing { field: Field::Value })?.into_identity()
    }
}

impl<A: IntoIdentity, B: IntoIdentity> IntoIdentity for (A, B) {
    fn into_identity(self) -> Result<Identity, IdentityError> {
        self.0.into_identity()?.and(&self.1.into_identity()?)
    }
}

impl IntoIdentity for &str {
    fn into_identity(self) -> Result<Identity, IdentityError> {
        Identity::text(self)
    }
}

impl IntoIdentity for String {
    fn into_identity(self) -> Result<Identity, IdentityError> {
        Identity::text(&self)
    }
}

impl IntoIdentity for &String {
    fn into_identity(self) -> Result<Identity, IdentityError> {
        Identity::text(self)
    }
}

impl IntoIdentity for &[u8] {
    fn into_identity(self) -> Result<Identity, IdentityError> {
        Identity::bytes(self)
    }
}

impl IntoIdentity for Vec<u8> {
    fn into_identity(self) -> Result<Identity, IdentityError> {
        Identity::bytes(&self)
    }
}

impl<const N: usize> IntoIdentity for &[u8; N] {
    fn into_identity(self) -> Result<Identity, IdentityError> {
        Identity::bytes(self)
    }
}

impl<const N: usize> IntoIdentity for [u8; N] {
    fn into_identity(self) -> Result<Identity, IdentityError> {
        Identity::bytes(&self)
    }
}

macro_rules! integers {
    ($($type:ty),*) => {$(
        impl IntoIdentity for $type {
            fn into_identity(self) -> Result<Identity, IdentityError> {
                Ok(Identity::integer(self))
            }
        }
    )*};
}

integers!(u8, u16, u32, u64, i8, i16, i32, i64, i128);
