//! What makes two messages the same.

mod key;

pub use key::{Fingerprint, Key};
