//! What Redis and its client say, as this crate's errors: kind, and a sentence without addresses, keys or values.

use redis::{ErrorKind, RedisError, ServerError, Value};

use crate::store::StoreError;

/// The store's name.
pub(super) const NAME: &str = "redis";

/// What the client library reports.
pub(super) fn client(operation: &'static str, error: RedisError) -> StoreError {
    match error.kind() {
        ErrorKind::Io => {
            let text = error.to_string();
            let message = if text.contains("failed to lookup address") {
                "the host's name could not be resolved: check the URL, or the name service"
            } else if error.is_connection_refusal() {
                "the connection was refused: nobody listens there"
            } else {
                "the connection failed"
            };
            StoreError::unavailable(NAME, operation, message).with_source(error)
        }
        ErrorKind::Server(_) | ErrorKind::Extension => match error.code() {
            Some(code) => server_code(operation, code, error.detail()),
            None => StoreError::unavailable(NAME, operation, "the server refused a command"),
        },
        ErrorKind::AuthenticationFailed => {
            StoreError::refused(NAME, operation, "user or password is wrong. Put the right ones into the URL.")
        }
        ErrorKind::InvalidClientConfig => bad_url(operation, &error),
        ErrorKind::RESP3NotSupported => {
            StoreError::refused(NAME, operation, "the server does not speak RESP3. Leave it out of the URL.")
        }
        ErrorKind::Parse | ErrorKind::UnexpectedReturnType => {
            StoreError::unavailable(NAME, operation, "the server's answer could not be read")
        }
        _ => StoreError::unavailable(NAME, operation, "the client gave up"),
    }
}

fn bad_url(operation: &'static str, error: &RedisError) -> StoreError {
    let message = if error.to_string().contains("feature") {
        "the URL asks for TLS, which is not built in. Turn on the feature redis-tls-rustls or redis-tls-native."
    } else {
        "the URL is not valid. It looks like redis://user:password@host:6379/0, or rediss:// for TLS."
    };
    StoreError::refused(NAME, operation, message)
}

/// What the server answers instead of a value.
pub(super) fn server(operation: &'static str, error: &ServerError) -> StoreError {
    server_code(operation, error.code(), error.details())
}

fn server_code(operation: &'static str, code: &str, details: Option<&str>) -> StoreError {
    let details = details.unwrap_or_default();
    match code {
        "WRONGTYPE" => corrupt(operation),
        "NOAUTH" | "WRONGPASS" => {
            StoreError::refused(NAME, operation, "user or password is wrong. Put the right ones into the URL.")
        }
        // Names the user and the command or the key pattern, nothing else.
        "NOPERM" => StoreError::refused(NAME, operation, format!("a right is missing: {details}")),
        "READONLY" => {
            StoreError::unavailable(NAME, operation, "the server is a replica now. Its primary must be asked.")
        }
        "OOM" => StoreError::unavailable(
            NAME,
            operation,
            "the server has reached its maxmemory. Give it more, or shorten the retention.",
        ),
        "MISCONF" => {
            StoreError::unavailable(NAME, operation, "the server cannot write to its disk and stopped writing")
        }
        "NOREPLICAS" => StoreError::unavailable(NAME, operation, "the server has too few replicas to write"),
        "LOADING" | "MASTERDOWN" | "CLUSTERDOWN" | "TRYAGAIN" | "BUSY" | "MOVED" | "ASK" => {
            StoreError::unavailable(NAME, operation, format!("the server answered {code}: it is not ready"))
        }
        "ERR" if details.contains("max number of clients") => {
            StoreError::unavailable(NAME, operation, "the server has no room for another client")
        }
        "ERR" if details.contains("syntax error") || details.contains("unknown command") => StoreError::refused(
            NAME,
            operation,
            "the server does not know a command. Redis 7.0 or newer is needed, without renamed commands.",
        ),
        "ERR" if details.contains("DB index") => StoreError::refused(
            NAME,
            operation,
            "the server has no database of that number. Put another one behind the last / of the URL, or leave it out.",
        ),
        // Details may quote arguments, which are not for logs.
        "ERR" => StoreError::refused(NAME, operation, "the server answered ERR"),
        "CROSSSLOT" | "NOPROTO" | "NOSCRIPT" | "EXECABORT" => {
            StoreError::refused(NAME, operation, format!("the server answered {code}"))
        }
        _ => StoreError::unavailable(NAME, operation, "the server answered with an error that has no name here"),
    }
}

/// Something stands there that this crate did not write.
pub(super) fn corrupt(operation: &'static str) -> StoreError {
    StoreError::corrupt(
        NAME,
        operation,
        "a key with this prefix holds something else, or a newer version wrote it. Use another prefix, or the newer version.",
    )
}

/// An answer of an unexpected shape.
pub(super) fn shape(operation: &'static str, value: &Value) -> StoreError {
    match value {
        Value::ServerError(error) => server(operation, error),
        _ => StoreError::unavailable(NAME, operation, "the server's answer has an unexpected shape"),
    }
}

/// The answer did not come in time: nothing is known about what was done.
pub(super) fn timed_out(operation: &'static str) -> StoreError {
    StoreError::unavailable(NAME, operation, "no answer came in time; what was asked may or may not have been done")
}
