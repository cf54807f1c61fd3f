//! What of a message its fingerprint covers.

use std::sync::Arc;

use super::encode::{Length, tag};
use super::error::IdentityConfigError;
use super::key::Fingerprint;
use super::source::check_header_name;
use crate::message::MessageView;

/// What of a message its [`Fingerprint`] covers: the payload, unless chosen otherwise.
///
/// A message of a known identity whose fingerprint differs is a *conflict*, not a duplicate. Choose less where re-sent copies
/// differ harmlessly (a time of sending in the payload), more where headers carry meaning.
/// Changing the choice makes every message that was remembered under the other one a conflict.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FingerprintBy {
    payload: bool,
    headers: Vec<Arc<str>>,
}

impl FingerprintBy {
    /// The payload; null and empty differ. The default.
    #[must_use]
    pub const fn payload() -> Self {
        Self { payload: true, headers: Vec::new() }
    }

    /// Nothing: all messages have one fingerprint, and no message is ever a conflict.
    ///
    /// A different message under an identity already used is then dropped as a duplicate without a word. Two messages
    /// made to share an MD5 identity are such a case.
    #[must_use]
    pub const fn nothing() -> Self {
        Self { payload: false, headers: Vec::new() }
    }

    /// Covers the value of the header `name` as well. A missing header, a null one and an empty one: the first two are alike.
    /// Order counts.
    #[must_use]
    pub fn and_header(mut self, name: impl Into<Arc<str>>) -> Self {
        self.headers.push(name.into());
        self
    }

    /// Checks the names of the headers.
    ///
    /// # Errors
    ///
    /// An [`IdentityConfigError`] about a header's name; not retryable.
    pub fn validate(&self) -> Result<(), IdentityConfigError> {
        for (at, name) in self.headers.iter().enumerate() {
            check_header_name(name)?;
            if self.headers.iter().take(at).any(|before| before == name) {
                return Err(IdentityConfigError::Repeated { what: "header of the fingerprint" });
            }
        }
        Ok(())
    }
}

impl Default for FingerprintBy {
    fn default() -> Self {
        Self::payload()
    }
}

/// The keys of the three hashes behind fingerprints. One key per kind, so that no kind can be taken for another
/// and a payload is hashed where it lies.
#[derive(Clone)]
pub(super) struct FingerprintKeys {
    payload: [u8; 32],
    null: [u8; 32],
    parts: [u8; 32],
}

impl FingerprintKeys {
    /// Derives them; `derive` gives an independent key for each context.
    pub(super) fn derive(derive: impl Fn(&'static str) -> [u8; 32]) -> Self {
        Self {
            payload: derive("hapax identity v1 fingerprint payload"),
            null: derive("hapax identity v1 fingerprint null"),
            parts: derive("hapax identity v1 fingerprint parts"),
        }
    }

    pub(super) fn of_payload(&self, payload: Option<&[u8]>) -> Fingerprint {
        let hash = match payload {
            Some(payload) => blake3::keyed_hash(&self.payload, payload),
            None => blake3::keyed_hash(&self.null, &[]),
        };
        Fingerprint::from_bytes(half(hash))
    }

    pub(super) fn of_message(&self, by: &FingerprintBy, message: &dyn MessageView) -> Fingerprint {
        if by.headers.is_empty() {
            return if by.payload { self.of_payload(message.payload()) } else { Fingerprint::from_bytes([0; 16]) };
        }
        let mut hasher = blake3::Hasher::new_keyed(&self.parts);
        if by.payload {
            match message.payload() {
                Some(payload) => prefixed(hasher.update(&[tag::PAYLOAD]), payload),
                None => hasher.update(&[tag::NULL_PAYLOAD]),
            };
        }
        for name in &by.headers {
            match message.header(name) {
                Some(value) => {
                    prefixed(hasher.update(&[tag::HEADER_VALUE]), name.as_bytes());
                    prefixed(&mut hasher, value);
                }
                None => {
                    prefixed(hasher.update(&[tag::NO_HEADER]), name.as_bytes());
                }
            }
        }
        Fingerprint::from_bytes(half(hasher.finalize()))
    }
}

fn prefixed<'h>(hasher: &'h mut blake3::Hasher, bytes: &[u8]) -> &'h mut blake3::Hasher {
    hasher.update(Length::of(bytes).as_bytes()).update(bytes)
}

/// The first 128 bits of a BLAKE3 hash, which are as good as any others.
pub(super) fn half(hash: blake3::Hash) -> [u8; 16] {
    let mut first = [0; 16];
    for (to, from) in first.iter_mut().zip(hash.as_bytes()) {
        *to = *from;
    }
    first
}
