//! The signals that end a service.

use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;
use tracing::error;

/// A token that is cancelled when the process gets SIGTERM or SIGINT (Ctrl-C); elsewhere than on Unix, at Ctrl-C. Hand it to
/// [`Consumer::run`](crate::Consumer::run).
///
/// From this call on these signals no longer end the process by themselves, a second one neither: what is in hand is finished within
/// [`drain_deadline`](crate::Consumer::drain_deadline).
///
/// Call it inside of a tokio runtime that has its I/O driver (`enable_all`, as `#[tokio::main]` does). Where there is none, the log says so,
/// the token is never cancelled, and signals end the process as they always did: safe, but what is in hand is then delivered again.
#[must_use = "signals are caught from now on: hand the token to whatever is to end"]
pub fn shutdown_signal() -> CancellationToken {
    let token = CancellationToken::new();
    let Ok(runtime) = Handle::try_current() else {
        error!("signals are not heard: shutdown_signal() was called outside of a tokio runtime");
        return token;
    };
    match listen() {
        Ok(heard) => {
            let token = token.clone();
            drop(runtime.spawn(async move {
                let signal = heard.await;
                tracing::info!(signal, "the process is asked to end");
                token.cancel();
            }));
        }
        Err(error) => error!(error, "signals are not heard"),
    }
    token
}

/// Catches the signals from now on; the future says which came.
#[cfg(unix)]
fn listen() -> Result<impl Future<Output = &'static str> + Send, String> {
    use tokio::signal::unix::{Signal, SignalKind, signal};
    // Tokio panics where the runtime has no I/O driver, and offers no way to ask.
    let catch = |kind| -> Result<Signal, String> {
        std::panic::catch_unwind(|| signal(kind))
            .map_err(|_| "the tokio runtime has no I/O driver".to_owned())?
            .map_err(|error| error.to_string())
    };
    let (mut terminate, mut interrupt) = (catch(SignalKind::terminate())?, catch(SignalKind::interrupt())?);
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => "SIGTERM",
            _ = interrupt.recv() => "SIGINT",
        }
    })
}

#[cfg(not(unix))]
fn listen() -> Result<impl Future<Output = &'static str> + Send, String> {
    Ok(async {
        if tokio::signal::ctrl_c().await.is_err() {
            std::future::pending::<()>().await;
        }
        "Ctrl-C"
    })
}
