//! What a store would know a message by, for those who do not claim it.

use super::Once;
use super::shared::Subject;
use crate::identity::{IdentityError, Key};
use crate::message::MessageView;
use crate::record::Sighting;

impl Once {
    /// What the store knows `message` by: for a dead letter, or to look its record up with
    /// [`DedupStore::get`](crate::store::DedupStore::get). `None` if it has no record: it has no identity, or nothing is remembered.
    #[must_use]
    pub fn key(&self, message: &dyn MessageView) -> Option<Key> {
        self.sighting(message).ok().flatten().map(|sighting| sighting.key)
    }

    /// Where its identities are unique.
    #[cfg(feature = "kafka")]
    pub(crate) fn scope(&self) -> &crate::identity::Scope {
        &self.shared.scope
    }

    /// Whether a store remembers what it handles.
    #[cfg(feature = "kafka")]
    pub(crate) fn remembers(&self) -> bool {
        self.shared.config.mode != super::Mode::AtLeastOnce
    }

    /// What the store knows the message by; `None` if it is handled without a record.
    ///
    /// # Errors
    ///
    /// The message has no usable identity, and is refused; not retryable.
    pub(crate) fn sighting(&self, message: &dyn MessageView) -> Result<Option<Sighting>, IdentityError> {
        Ok(match self.shared.subject(message)? {
            Subject::Known(sighting) => Some(sighting),
            Subject::Bare { .. } => None,
        })
    }
}
