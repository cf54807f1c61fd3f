//! What makes two messages the same: the encoding, its keys, and the faults that a sloppy one lets in.

mod allocation;
mod combine;
mod config;
mod decode;
mod faults;
mod golden;
mod injective;
#[cfg(feature = "json")]
mod json;
mod message;
mod sequence;

use hapax::identity::{Fingerprint, FingerprintBy, Identify, IdentityError, Key, Scope};
use hapax::message::{MessageView, Parts};

fn scope() -> Scope {
    Scope::new("payments", "charge").unwrap()
}

/// Key of a message in the usual scope.
fn key(identify: &impl Identify, message: &Parts) -> Result<Key, IdentityError> {
    Ok(scope().key(&identify.identity(message)?, message.topic()))
}

fn fingerprint(message: &Parts) -> Fingerprint {
    scope().fingerprint(&FingerprintBy::payload(), message)
}

fn order() -> Parts {
    Parts::new("orders").at(3, 42).key("customer-7").payload(r#"{"id":"a1"}"#)
}
