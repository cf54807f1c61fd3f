//! Where identities are unique, and how one becomes a key.

use std::fmt;

use super::encode::{Identity, Length, tag};
use super::error::IdentityConfigError;
use super::fingerprint::{FingerprintBy, FingerprintKeys, half};
use super::key::{Fingerprint, Key};
use super::source::check_name;
use crate::message::MessageView;

/// The least length of a secret, in bytes.
pub const MIN_SECRET_BYTES: usize = 16;

/// Keys up to this size are hashed in one go on the stack; longer ones piece by piece.
const ON_STACK: usize = 256;

/// Where identities are unique: consumer group and handler, the topic unless told otherwise, and a tenant if there is one.
///
/// Two applications, or two handlers of one application, may share a store: their keys differ. Renaming a group or a
/// handler forgets everything remembered under the old name.
///
/// # Keys
///
/// A [`Key`] is the first 128 bits of keyed BLAKE3. That is enough: among 10¹² remembered messages the chance that any
/// two share a key by accident is below 2⁻⁴⁸. An attacker who may choose ids needs about 2⁶⁴ hashes for one pair of
/// his own ids, and gets a conflict for it, since the fingerprint differs; with a [secret](Scope::secret) he
/// cannot even try.
///
/// `Debug` shows the names, and whether there is a secret; never the secret or what is derived from it.
#[derive(Clone)]
pub struct Scope {
    group: String,
    handler: String,
    tenant: Option<String>,
    across_topics: bool,
    /// Derived from the user's secret, which itself is not kept.
    secret: Option<[u8; 32]>,
    key: [u8; 32],
    fingerprint: FingerprintKeys,
}

impl Scope {
    /// The scope of `handler` in the consumer group `group`. The group is Kafka's `group.id`; the handler's name tells apart
    /// what one group does with a message, and stays the same over releases.
    ///
    /// # Errors
    ///
    /// [`IdentityConfigError::EmptyName`] and [`IdentityConfigError::NameTooLong`]; neither is retryable.
    pub fn new(group: impl Into<String>, handler: impl Into<String>) -> Result<Self, IdentityConfigError> {
        let (group, handler) = (group.into(), handler.into());
        check_name("consumer group", &group)?;
        check_name("handler", &handler)?;
        Ok(Self {
            group,
            handler,
            tenant: None,
            across_topics: false,
            secret: None,
            key: [0; 32],
            fingerprint: FingerprintKeys::derive(|_| [0; 32]),
        }
        .derived())
    }

    /// Narrows the scope to one tenant: ids of other tenants cannot make its messages duplicates.
    ///
    /// Where one consumer serves several tenants, put the tenant into the identity instead, as in
    /// `header("tenant").and(header("message-id"))`.
    ///
    /// # Errors
    ///
    /// [`IdentityConfigError::EmptyName`] and [`IdentityConfigError::NameTooLong`]; neither is retryable.
    pub fn tenant(mut self, tenant: impl Into<String>) -> Result<Self, IdentityConfigError> {
        let tenant = tenant.into();
        check_name("tenant", &tenant)?;
        self.tenant = Some(tenant);
        Ok(self.derived())
    }

    /// Leaves the topic out of the key: one id on two topics is then one message, as with a retry topic, or after a move to
    /// another topic. Only where ids are unique over all topics that are read.
    #[must_use]
    pub const fn across_topics(mut self) -> Self {
        self.across_topics = true;
        self
    }

    /// Keys the hashes with a secret of at least [`MIN_SECRET_BYTES`]: nobody without it can compute the key of an id or guess a
    /// payload from its fingerprint. All consumers of the scope need the same one. Changing it forgets everything
    /// remembered.
    ///
    /// # Errors
    ///
    /// [`IdentityConfigError::SecretTooShort`]; not retryable.
    pub fn secret(mut self, secret: impl AsRef<[u8]>) -> Result<Self, IdentityConfigError> {
        let secret = secret.as_ref();
        if secret.len() < MIN_SECRET_BYTES {
            return Err(IdentityConfigError::SecretTooShort { size: secret.len(), least: MIN_SECRET_BYTES });
        }
        self.secret = Some(blake3::derive_key("hapax identity v1 secret", secret));
        Ok(self.derived())
    }

    /// The consumer group.
    #[must_use]
    pub fn group(&self) -> &str {
        &self.group
    }

    /// The handler.
    #[must_use]
    pub fn handler(&self) -> &str {
        &self.handler
    }

    /// The tenant, if the scope is narrowed to one.
    #[must_use]
    pub fn tenant_name(&self) -> Option<&str> {
        self.tenant.as_deref()
    }

    /// Whether the topic is left out of keys.
    #[must_use]
    pub const fn spans_topics(&self) -> bool {
        self.across_topics
    }

    /// The key of an identity found in a message of `topic`.
    #[must_use]
    pub fn key(&self, identity: &Identity, topic: &str) -> Key {
        self.key_of_encoded(identity.encoded(), topic)
    }

    /// The same for an identity that is not to be kept: nothing is moved.
    pub(crate) fn key_of_encoded(&self, identity: &[u8], topic: &str) -> Key {
        self.hash(Some(topic).filter(|_| !self.across_topics), identity)
    }

    /// The key of an identity that belongs to no topic: a call, or a message under a scope that spans topics. The two share
    /// keys then.
    #[must_use]
    pub fn key_of(&self, identity: &Identity) -> Key {
        self.hash(None, identity.encoded())
    }

    /// The fingerprint of a message. Does not depend on group, handler, tenant and topic, only on the secret.
    #[must_use]
    pub fn fingerprint(&self, by: &FingerprintBy, message: &dyn MessageView) -> Fingerprint {
        self.fingerprint.of_message(by, message)
    }

    /// The fingerprint of a payload that is not in a message; equal to that of a message with this payload under
    /// [`FingerprintBy::payload`]. `None` is a null payload, which is not an empty one.
    #[must_use]
    pub fn fingerprint_of(&self, payload: Option<&[u8]>) -> Fingerprint {
        self.fingerprint.of_payload(payload)
    }

    /// The bytes that group, handler and tenant are hashed as, so that another program can compute keys.
    #[must_use]
    pub fn encoded(&self) -> Vec<u8> {
        let mut bytes = vec![tag::VERSION];
        let tenant = self.tenant.as_deref().map(|tenant| (tag::TENANT, tenant));
        for (tag, name) in [(tag::GROUP, &*self.group), (tag::HANDLER, &*self.handler)].into_iter().chain(tenant) {
            bytes.push(tag);
            bytes.extend_from_slice(Length::of(name.as_bytes()).as_bytes());
            bytes.extend_from_slice(name.as_bytes());
        }
        bytes
    }

    /// The bytes that a key is the hash of, given what [`Scope::encoded`] leads to as the hash's key. They hold the identity
    /// itself: keep them out of logs.
    #[must_use]
    pub fn encoded_key(&self, identity: &Identity, topic: &str) -> Vec<u8> {
        pieces(Some(topic).filter(|_| !self.across_topics), identity.encoded(), &Length::of(topic.as_bytes())).concat()
    }

    fn hash(&self, topic: Option<&str>, identity: &[u8]) -> Key {
        let length = Length::of(topic.unwrap_or_default().as_bytes());
        let pieces = pieces(topic, identity, &length);
        let mut stack = [0; ON_STACK];
        let mut used = 0;
        for piece in pieces {
            let Some(slot) = stack.get_mut(used..used + piece.len()) else {
                let mut hasher = blake3::Hasher::new_keyed(&self.key);
                for piece in pieces {
                    hasher.update(piece);
                }
                return Key::from_bytes(half(hasher.finalize()));
            };
            slot.copy_from_slice(piece);
            used += piece.len();
        }
        Key::from_bytes(half(blake3::keyed_hash(&self.key, stack.get(..used).unwrap_or_default())))
    }

    /// Brings the derived keys up to date.
    fn derived(mut self) -> Self {
        let encoded = self.encoded();
        match self.secret {
            None => {
                self.key = blake3::derive_key("hapax identity v1 scope", &encoded);
                self.fingerprint = FingerprintKeys::derive(|context| blake3::derive_key(context, &[]));
            }
            Some(secret) => {
                // The encoding begins with the version, a context with a letter: no input serves twice.
                self.key = blake3::keyed_hash(&secret, &encoded).into();
                self.fingerprint =
                    FingerprintKeys::derive(|context| blake3::keyed_hash(&secret, context.as_bytes()).into());
            }
        }
        self
    }
}

/// Version, topic, identity: one after the other, what a key is the hash of. `length` is the topic's.
fn pieces<'a>(topic: Option<&'a str>, identity: &'a [u8], length: &'a Length) -> [&'a [u8]; 4] {
    match topic {
        Some(topic) => [&[tag::VERSION, tag::TOPIC], length.as_bytes(), topic.as_bytes(), identity],
        None => [&[tag::VERSION, tag::NO_TOPIC], &[], &[], identity],
    }
}

impl fmt::Debug for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Scope")
            .field("group", &self.group)
            .field("handler", &self.handler)
            .field("tenant", &self.tenant)
            .field("across_topics", &self.across_topics)
            .field("secret", &self.secret.is_some())
            .finish_non_exhaustive()
    }
}
