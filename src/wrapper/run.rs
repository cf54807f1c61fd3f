//! Runs one handler: panics caught, time bounded.

use std::any::Any;
use std::future::Future;
use std::panic::AssertUnwindSafe;

use futures_util::FutureExt;
use futures_util::future::Either;

use super::Claim;
use super::class::Failure;
use super::shared::Shared;

/// Longest panic message kept, in bytes.
const MESSAGE: usize = 200;

/// Runs a handler. Its state is not looked at after a panic, so that nothing half-changed can be seen.
///
/// Made of combinators: an `async fn` would keep room for the handler's future twice, and a consumer moves futures for each message.
pub(super) fn run<T, E>(
    shared: &Shared,
    claim: &Claim,
    handler: impl Future<Output = Result<T, E>>,
) -> impl Future<Output = Result<T, Failure<E>>> {
    let guarded = caught(handler);
    let ended = match shared.config.handler_timeout {
        None => Either::Left(guarded),
        Some(longest) => Either::Right(tokio::time::timeout(longest, guarded).map(move |ended| {
            ended.unwrap_or_else(|_| {
                shared.counters.timed_out.one();
                tracing::debug!(?claim, ?longest, "the handler timed out and was dropped");
                Err(Failure::TimedOut(longest))
            })
        })),
    };
    ended.inspect(move |ended| {
        if let Err(Failure::Panicked(_)) = ended {
            shared.counters.panicked.one();
            tracing::debug!(?claim, "the handler panicked");
        }
    })
}

/// Runs a handler, and catches its panic.
pub(crate) fn caught<T, E>(handler: impl Future<Output = Result<T, E>>) -> impl Future<Output = Result<T, Failure<E>>> {
    AssertUnwindSafe(handler).catch_unwind().map(|ended| match ended {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) => Err(Failure::Error(error)),
        Err(panic) => Err(Failure::Panicked(message(panic.as_ref()))),
    })
}

fn message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().copied().or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    let text = text.unwrap_or("without a message");
    text.get(..text.floor_char_boundary(MESSAGE)).unwrap_or(text).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_message_is_cut_between_characters() {
        let long: Box<dyn Any + Send> = Box::new("ö".repeat(1000));
        assert_eq!(message(long.as_ref()), "ö".repeat(MESSAGE / 2));
        let other: Box<dyn Any + Send> = Box::new(7);
        assert_eq!(message(other.as_ref()), "without a message");
    }
}
