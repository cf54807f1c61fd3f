//! The two fixed-width values that stores keep of a message.

use std::fmt;
use std::hash::{Hash, Hasher};

macro_rules! fixed_width {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
        pub struct $name([u8; 16]);

        impl $name {
            /// Takes the 16 bytes as they are.
            #[must_use]
            pub const fn from_bytes(bytes: [u8; 16]) -> Self {
                Self(bytes)
            }

            /// Takes a slice of exactly 16 bytes; `None` for any other length.
            #[must_use]
            pub fn from_slice(bytes: &[u8]) -> Option<Self> {
                bytes.try_into().ok().map(Self)
            }

            /// The 16 bytes.
            #[must_use]
            pub const fn as_bytes(&self) -> &[u8; 16] {
                &self.0
            }
        }

        impl Hash for $name {
            /// As one number: there is no length to tell apart.
            fn hash<H: Hasher>(&self, state: &mut H) {
                state.write_u128(u128::from_ne_bytes(self.0));
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self)
            }
        }
    };
}

fixed_width! {
    /// What a store knows a message by: 128 bits of a digest over scope and identity.
    ///
    /// It shows nothing of the identity itself, so it may stand in logs.
    Key
}

fixed_width! {
    /// 128 bits of a digest over what a message says, kept beside its [`Key`].
    ///
    /// Two messages with one key and different fingerprints are a conflict, not duplicates.
    Fingerprint
}
