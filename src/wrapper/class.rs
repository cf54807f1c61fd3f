//! Whether a handler's error is worth another try.

use std::convert::Infallible;
use std::error::Error;
use std::fmt;
use std::time::Duration;

/// Whether the same message may succeed later.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ErrorClass {
    /// Try again, as [`Retry`](crate::Retry) says.
    Retryable,
    /// Never will: the message is dead at once.
    Fatal,
    /// What the handler needs is down, whatever the message: a database, a remote service.
    ///
    /// A consumer burns no attempt for it: the claim is released, everything waits, and one message at a time probes with back-off
    /// until it is back. [`Once::handle`](crate::Once::handle) and its like have nothing else to hold back: under
    /// [`Retry::none`](crate::Retry::none) they release the claim too, and otherwise try again as for [`Retryable`](Self::Retryable),
    /// and burn the attempt. Under [`Mode::AtMostOnce`](crate::Mode::AtMostOnce) a message is settled before its handler runs, and one whose
    /// handler says this is given up as after any other failure: only those behind it wait.
    Unavailable,
}

/// An error that a handler may return. Implement it for your own type, and say in it which errors are fatal.
///
/// ```
/// use hapax::{ErrorClass, HandlerError};
///
/// #[derive(Debug, thiserror::Error)]
/// enum ShipError {
///     #[error("the carrier does not answer")]
///     Carrier,
///     #[error("there is no such address")]
///     Address,
/// }
///
/// impl HandlerError for ShipError {
///     fn class(&self) -> ErrorClass {
///         match self {
///             Self::Carrier => ErrorClass::Retryable,
///             Self::Address => ErrorClass::Fatal,
///         }
///     }
/// }
/// ```
///
/// Texts, I/O errors, boxed errors and the errors of the clients behind this crate's features are retryable.
/// A boxed error is fatal if it was made by [`Fatal`], and says that what it needs is down if it was made by [`Unavailable`]. For `anyhow` and its like, return `Box<dyn Error + Send + Sync>`,
/// to which `?` converts.
#[diagnostic::on_unimplemented(
    message = "`{Self}` does not say whether an error is retryable or fatal",
    note = "implement `hapax::HandlerError` for it, or return `Box<dyn std::error::Error + Send + Sync>`"
)]
pub trait HandlerError: fmt::Debug + fmt::Display {
    /// Its class. Default: retryable.
    fn class(&self) -> ErrorClass {
        ErrorClass::Retryable
    }

    /// Whether a database gave a statement of the handler up in favour of another: a deadlock, a serialization failure, a lock that
    /// somebody kept for too long. Under [`Once::transactional`](crate::Once::transactional) the batch is then run again in another
    /// transaction, and no attempt is burnt; elsewhere nobody asks. Default: `false`; `sqlx::Error` and boxed errors know. If yours
    /// wraps one, ask it.
    fn is_contention(&self) -> bool {
        false
    }
}

impl HandlerError for String {}
impl HandlerError for &str {}
impl HandlerError for std::io::Error {}
impl HandlerError for fmt::Error {}
impl HandlerError for tokio::time::error::Elapsed {}
impl HandlerError for crate::store::StoreError {
    fn class(&self) -> ErrorClass {
        if self.is_retryable() { ErrorClass::Retryable } else { ErrorClass::Fatal }
    }
}
#[cfg(any(feature = "postgres", feature = "mysql", feature = "sqlite"))]
impl HandlerError for sqlx::Error {
    fn is_contention(&self) -> bool {
        crate::store::is_contention(self)
    }
}
#[cfg(feature = "redis")]
impl HandlerError for redis::RedisError {}
#[cfg(feature = "kafka")]
impl HandlerError for rdkafka::error::KafkaError {}

/// What is no JSON today will not be tomorrow.
#[cfg(feature = "json")]
impl HandlerError for serde_json::Error {
    fn class(&self) -> ErrorClass {
        if self.is_io() { ErrorClass::Retryable } else { ErrorClass::Fatal }
    }
}

impl HandlerError for Infallible {
    fn class(&self) -> ErrorClass {
        match *self {}
    }
}

impl HandlerError for Box<dyn Error + Send + Sync> {
    fn class(&self) -> ErrorClass {
        if self.is::<Fatal>() {
            ErrorClass::Fatal
        } else if self.is::<Unavailable>() {
            ErrorClass::Unavailable
        } else {
            ErrorClass::Retryable
        }
    }

    #[cfg(any(feature = "postgres", feature = "mysql", feature = "sqlite"))]
    fn is_contention(&self) -> bool {
        let mut next: Option<&(dyn Error + 'static)> = Some(&**self);
        while let Some(error) = next {
            if error.downcast_ref::<sqlx::Error>().is_some_and(HandlerError::is_contention) {
                return true;
            }
            next = error.source();
        }
        false
    }
}

macro_rules! marker {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Debug)]
        pub struct $name(Box<dyn Error + Send + Sync>);

        impl $name {
            /// Marks `error`; takes a text as well.
            pub fn new(error: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
                Self(error.into())
            }

            /// The error that was marked.
            #[must_use]
            pub fn into_inner(self) -> Box<dyn Error + Send + Sync> {
                self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl Error for $name {
            fn source(&self) -> Option<&(dyn Error + 'static)> {
                self.0.source()
            }
        }

        impl HandlerError for $name {
            fn class(&self) -> ErrorClass {
                ErrorClass::$name
            }
        }
    };
}

marker! {
    /// Marks an error as fatal: `return Err(Fatal::new("no such account").into())`.
    Fatal
}

marker! {
    /// Marks an error as the sign that what the handler needs is down: `return Err(Unavailable::new("the bank does not answer").into())`.
    Unavailable
}

/// Why an attempt failed. Closed: match on it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure<E> {
    /// The handler returned an error.
    Error(E),
    /// The handler panicked, with this message, cut short.
    Panicked(String),
    /// The handler took longer than it may, and was dropped.
    TimedOut(Duration),
}

impl<E> Failure<E> {
    /// The handler's own error, if it returned one.
    pub fn into_error(self) -> Option<E> {
        match self {
            Self::Error(error) => Some(error),
            Self::Panicked(_) | Self::TimedOut(_) => None,
        }
    }

    /// The same failure with another error type.
    pub fn map<F>(self, change: impl FnOnce(E) -> F) -> Failure<F> {
        match self {
            Self::Error(error) => Failure::Error(change(error)),
            Self::Panicked(message) => Failure::Panicked(message),
            Self::TimedOut(after) => Failure::TimedOut(after),
        }
    }
}

impl<E: HandlerError> Failure<E> {
    /// Whether the same message may succeed later: a panic and a time-out may.
    pub fn class(&self) -> ErrorClass {
        match self {
            Self::Error(error) => error.class(),
            Self::Panicked(_) | Self::TimedOut(_) => ErrorClass::Retryable,
        }
    }
}

impl<E: fmt::Display> fmt::Display for Failure<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Error(error) => error.fmt(f),
            Self::Panicked(message) => write!(f, "the handler panicked: {message}"),
            Self::TimedOut(after) => write!(f, "the handler did not end within {after:?}"),
        }
    }
}

impl<E: fmt::Debug + fmt::Display> Error for Failure<E> {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_boxed_error_is_fatal_if_it_was_marked() {
        let plain: Box<dyn Error + Send + Sync> = "later".into();
        let marked: Box<dyn Error + Send + Sync> = Fatal::new("never").into();
        let down: Box<dyn Error + Send + Sync> = Unavailable::new("down").into();
        assert_eq!(down.class(), ErrorClass::Unavailable);
        assert_eq!(plain.class(), ErrorClass::Retryable);
        assert_eq!(marked.class(), ErrorClass::Fatal);
        assert_eq!(marked.to_string(), "never");
    }

    #[cfg(feature = "json")]
    #[test]
    fn what_is_no_json_is_fatal() {
        let error = serde_json::from_str::<u32>("{").unwrap_err();
        assert_eq!(error.class(), ErrorClass::Fatal);
    }

    #[test]
    fn a_panic_and_a_time_out_are_retryable() {
        assert_eq!(Failure::<Fatal>::Panicked("x".into()).class(), ErrorClass::Retryable);
        assert_eq!(Failure::<Fatal>::TimedOut(Duration::ZERO).class(), ErrorClass::Retryable);
        assert_eq!(Failure::Error(Fatal::new("x")).class(), ErrorClass::Fatal);
    }
}
