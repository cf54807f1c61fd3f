//! Identities made of others.

use super::Identify;
use super::encode::Encoder;
use super::error::{Field, IdentityConfigError, IdentityError};
use super::sequence::WindowBy;
use crate::message::MessageView;

/// The first identity, or the second where the first is absent; made by [`Identify::or`].
#[derive(Debug, Clone)]
pub struct Or<A, B> {
    pub(super) first: A,
    pub(super) second: B,
}

impl<A: Identify, B: Identify> Identify for Or<A, B> {
    fn identify(&self, message: &dyn MessageView, into: &mut Encoder) -> Result<(), IdentityError> {
        let mark = into.mark();
        match written(&self.first, message, into) {
            Err(first) if first.is_absent() => {
                into.back_to(mark);
                match written(&self.second, message, into) {
                    // The first identity is the one the user hoped for: report that one.
                    Err(second) if second.is_absent() => Err(first),
                    other => other,
                }
            }
            other => other,
        }
    }

    fn validate(&self) -> Result<(), IdentityConfigError> {
        self.first.validate()?;
        self.second.validate()
    }
}

/// Both identities together; made by [`Identify::and`].
#[derive(Debug, Clone)]
pub struct And<A, B> {
    pub(super) first: A,
    pub(super) second: B,
}

impl<A: Identify, B: Identify> Identify for And<A, B> {
    fn identify(&self, message: &dyn MessageView, into: &mut Encoder) -> Result<(), IdentityError> {
        written(&self.first, message, into)?;
        written(&self.second, message, into)
    }

    fn validate(&self) -> Result<(), IdentityConfigError> {
        self.first.validate()?;
        self.second.validate()
    }
}

/// A window by the first identity, and a record by the second; made by [`Identify::and_then`].
#[derive(Debug, Clone)]
pub struct AndThen<A, B> {
    pub(super) window: A,
    pub(super) record: B,
}

impl<A: Identify, B: Identify> Identify for AndThen<A, B> {
    fn identify(&self, message: &dyn MessageView, into: &mut Encoder) -> Result<(), IdentityError> {
        self.record.identify(message, into)
    }

    fn validate(&self) -> Result<(), IdentityConfigError> {
        self.window.validate()?;
        self.record.validate()?;
        if self.window.window().is_none() {
            return Err(IdentityConfigError::NoWindow);
        }
        Ok(())
    }

    fn window(&self) -> Option<WindowBy> {
        self.window.window()
    }

    fn records(&self) -> bool {
        true
    }
}

/// An identity that wrote nothing is empty: it must not vanish beside another one.
fn written(identify: &impl Identify, message: &dyn MessageView, into: &mut Encoder) -> Result<(), IdentityError> {
    let before = into.components();
    identify.identify(message, into)?;
    if into.components() == before {
        return Err(IdentityError::Empty { field: Field::Whole });
    }
    Ok(())
}
