//! Identities that are a digest of what a message says.

use std::sync::Arc;

use md5::Md5;
use sha2::{Digest as _, Sha256 as Sha2};

use super::Identify;
use super::encode::{Encoder, Piece, tag};
use super::error::{Field, IdentityConfigError, IdentityError};
use super::source::{check_header_name, present};
use crate::message::MessageView;

/// A digest algorithm.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum DigestKind {
    /// SHA-256. The default: fastest for short parts where the processor has SHA instructions.
    #[default]
    Sha256,
    /// BLAKE3. As safe; faster for long parts, and everywhere without SHA instructions.
    Blake3,
    /// MD5, for systems that already name messages by it. **Not collision-resistant**: whoever writes messages can make two
    /// that share an identity, and slower than the other two. The fingerprint is never MD5, so such a pair
    /// comes out as a conflict and not as a duplicate, as long as the fingerprint is not switched off.
    InsecureMd5,
}

/// One part of a message that a digest covers.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Part {
    /// The payload.
    Payload,
    /// The record key.
    Key,
    /// The value of the header of this name.
    Header(Arc<str>),
}

impl Part {
    /// The value of the header `name`.
    #[must_use]
    pub fn header(name: impl Into<Arc<str>>) -> Self {
        Self::Header(name.into())
    }

    fn field(&self) -> Field {
        match self {
            Self::Payload => Field::Payload,
            Self::Key => Field::RecordKey,
            Self::Header(name) => Field::Header(Arc::clone(name)),
        }
    }
}

/// A digest of the payload, or of the parts named with [`Digest::of`].
///
/// Messages that *say* the same *are* the same under it: two orders of one coffee each, with nothing to tell them
/// apart, are one order. Use it where the payload holds an id, a sequence number or a precise time.
///
/// Each part is digested on its own, so the digest of a payload is the one other tools print.
#[must_use]
pub fn digest(kind: DigestKind) -> Digest {
    Digest { kind, parts: vec![Part::Payload] }
}

/// An identity out of digests; made by [`digest`].
#[derive(Debug, Clone)]
pub struct Digest {
    kind: DigestKind,
    parts: Vec<Part>,
}

impl Digest {
    /// Covers these parts instead of the payload alone. Their order counts.
    ///
    /// Every one of them must be there and not empty: a tombstone has no payload, and all tombstones would share one
    /// identity (of one key: every deletion after the first would be lost). Name what is to happen to them with `.or(…)`.
    #[must_use]
    pub fn of(mut self, parts: impl IntoIterator<Item = Part>) -> Self {
        self.parts = parts.into_iter().collect();
        self
    }

    fn part(&self, part: &Part, value: &[u8], into: &mut Encoder) -> Result<(), IdentityError> {
        let (short, long): ([u8; 16], [u8; 32]);
        let (algorithm, digest): (u8, &[u8]) = match self.kind {
            DigestKind::Sha256 => {
                long = Sha2::digest(value).into();
                (1, &long)
            }
            DigestKind::Blake3 => {
                long = blake3::hash(value).into();
                (2, &long)
            }
            DigestKind::InsecureMd5 => {
                short = Md5::digest(value).into();
                (3, &short)
            }
        };
        let digest = Piece::Fixed(digest);
        let field = || part.field();
        match part {
            Part::Payload => into.component(tag::DIGEST, &[Piece::Fixed(&[algorithm, 1]), digest], field),
            Part::Key => into.component(tag::DIGEST, &[Piece::Fixed(&[algorithm, 2]), digest], field),
            Part::Header(name) => {
                let pieces = [Piece::Fixed(&[algorithm, 3]), Piece::Prefixed(name.as_bytes()), digest];
                into.component(tag::DIGEST, &pieces, field)
            }
        }
    }
}

impl Identify for Digest {
    fn identify(&self, message: &dyn MessageView, into: &mut Encoder) -> Result<(), IdentityError> {
        for part in &self.parts {
            self.part(part, present(read(message, part), || part.field())?, into)?;
        }
        Ok(())
    }

    fn validate(&self) -> Result<(), IdentityConfigError> {
        if self.parts.is_empty() {
            return Err(IdentityConfigError::NoParts);
        }
        for (at, part) in self.parts.iter().enumerate() {
            if let Part::Header(name) = part {
                check_header_name(name)?;
            }
            if self.parts.iter().take(at).any(|before| before == part) {
                return Err(IdentityConfigError::Repeated { what: "part of a digest" });
            }
        }
        Ok(())
    }
}

fn read<'m>(message: &'m dyn MessageView, part: &Part) -> Option<&'m [u8]> {
    match part {
        Part::Payload => message.payload(),
        Part::Key => message.key(),
        Part::Header(name) => message.header(name),
    }
}
