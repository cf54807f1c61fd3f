//! Why a consumer ended by itself.

use std::error::Error;

use rdkafka::error::{KafkaError, RDKafkaErrorCode};

use super::config::ConfigError;
use super::dead_letter::DeadLetterError;
use super::finding::Finding;
use super::summary::Summary;
use crate::store::{Report, StoreError};
use crate::wrapper::{HandleError, in_conflict};

/// Why [`Consumer::run`](super::Consumer::run) ended before it was told to.
///
/// What was finished before has been committed, and the group left, as far as that was possible. Starting again is safe:
/// what was not committed is delivered again.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConsumerError {
    /// A setting was refused; nothing was started. Not retryable.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// There is no tokio runtime to run handlers on. Not retryable.
    #[error("the consumer needs a tokio runtime: await run() inside of one")]
    NoRuntime,
    /// The Kafka client refused its settings or could not be made. Not retryable.
    #[error("the Kafka client could not be made: {source}{}", lacking(source))]
    Client {
        /// rdkafka's error.
        source: KafkaError,
    },
    /// Kafka refuses for good: fenced, not authorised, or the group does not let this member in (a session time-out that the brokers do not allow, a group
    /// that is full, a protocol or an assignor that they do not know). Not retryable without a change, but for a group that is full.
    ///
    /// Also where messages cannot be read: compressed by what this build cannot undo, or damaged (found where they are compressed, or with
    /// `check.crcs=true`). Nothing of that partition beyond them is handled or committed. Retryable where they are damaged, since that may have happened on their
    /// way.
    ///
    /// A member whose assignors the others do not know (`InconsistentGroupProtocol`) is refused as long as a group changes them member by member. That ends
    /// a consumer that never joined, once it has lasted for two minutes.
    #[error("Kafka ended the consumer: {reason} ({source})")]
    Kafka {
        /// librdkafka's words, which name the topic, or the cure where one is known.
        reason: String,
        /// rdkafka's error.
        source: KafkaError,
        /// What was done before.
        summary: Box<Summary>,
    },
    /// A message could not be finished, and policy is to stop rather than to pass it by. Delivered again at the next start. Not retryable without a
    /// change: somebody is to look at it.
    #[error("the consumer stopped at topic `{topic}`, partition {partition}, offset {offset}: {}", Here(&**source))]
    Message {
        /// Its topic.
        topic: String,
        /// Its partition.
        partition: i32,
        /// Its offset.
        offset: i64,
        /// Why.
        source: Box<dyn Error + Send + Sync>,
        /// What was done before.
        summary: Box<Summary>,
    },
    /// A partition does not go on where the group left off. Nothing beyond that was handled or committed. Not retryable without a
    /// decision: see [`Finding::cure`].
    #[error("topic `{topic}`, partition {partition}: {finding}. {}", finding.cure())]
    Discontinuity {
        /// Its topic.
        topic: String,
        /// Its partition.
        partition: i32,
        /// What was found.
        finding: Finding,
        /// What was done before, and [all that was found](Summary::found).
        summary: Box<Summary>,
    },
    /// The store forgets messages that can still come again. Nothing was started. Not retryable.
    #[error("the consumer does not start: {}", Errors(report))]
    Retention {
        /// What was compared.
        report: Report,
    },
    /// The windows of partitions could not be read when those were assigned, for a reason that does not pass: without them nothing may be handled. Nothing of
    /// those partitions was. (A database that is away is waited for.) Retryable, if [the source](StoreError::is_retryable) is.
    #[error("the windows of the assigned partitions could not be read: {source}")]
    Windows {
        /// What the database said.
        source: StoreError,
        /// What was done before.
        summary: Box<Summary>,
    },
    /// Dead letters cannot be sent: their topic is missing, or unfit, or read by the consumer itself. Retryable where
    /// [`DeadLetterError::is_retryable`].
    #[error(transparent)]
    DeadLetter(#[from] DeadLetterError),
    /// The task that drives the handlers is gone: the runtime was shut down, or there is a bug in this crate. Not retryable in this runtime.
    #[error("the task that drives the handlers is gone: was the runtime shut down?")]
    Gone {
        /// What was done before.
        summary: Box<Summary>,
    },
    /// The thread that talks to Kafka could not be started, or is gone. Retryable.
    #[error("the Kafka thread {what}")]
    Thread {
        /// What happened to it.
        what: String,
    },
}

/// Why a message cannot finish, where it is said already which one.
pub(super) struct Here<'a>(pub(super) &'a (dyn Error + Send + Sync + 'static));

impl std::fmt::Display for Here<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0.downcast_ref::<HandleError<String>>() {
            Some(HandleError::Identity { error, .. }) => write!(f, "{error}"),
            Some(HandleError::Conflict { first, .. }) => write!(f, "it {}", in_conflict(first)),
            _ => write!(f, "{}", self.0),
        }
    }
}

/// The errors of a report.
struct Errors<'a>(&'a Report);

impl std::fmt::Display for Errors<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (at, finding) in self.0.errors().enumerate() {
            write!(f, "{}{finding}", if at == 0 { "" } else { "; " })?;
        }
        Ok(())
    }
}

/// The summary inside of an error, borrowed as the error is.
macro_rules! summary_in {
    ($error:expr) => {
        match $error {
            Self::Kafka { summary, .. }
            | Self::Message { summary, .. }
            | Self::Gone { summary }
            | Self::Windows { summary, .. }
            | Self::Discontinuity { summary, .. } => Some(summary),
            Self::Config(_)
            | Self::NoRuntime
            | Self::Client { .. }
            | Self::Thread { .. }
            | Self::Retention { .. }
            | Self::DeadLetter(_) => None,
        }
    };
}

impl ConsumerError {
    /// Whether starting again, without a change, can help: what a supervisor asks.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Windows { source, .. } => source.is_retryable(),
            Self::DeadLetter(error) => error.is_retryable(),
            Self::Thread { .. } => true,
            Self::Kafka { source, .. } => matches!(
                source.rdkafka_error_code(),
                // Until another member leaves; what is damaged may have been damaged on its way.
                Some(
                    RDKafkaErrorCode::GroupMaxSizeReached
                        | RDKafkaErrorCode::BadMessage
                        | RDKafkaErrorCode::BadCompression
                )
            ),
            Self::Config(_)
            | Self::NoRuntime
            | Self::Client { .. }
            | Self::Message { .. }
            | Self::Discontinuity { .. }
            | Self::Retention { .. }
            | Self::Gone { .. } => false,
        }
    }

    /// What was done before, where the consumer had started.
    #[must_use]
    pub fn summary(&self) -> Option<&Summary> {
        summary_in!(self)
    }

    /// The same, for what is counted after the error was made.
    pub(super) fn summary_mut(&mut self) -> Option<&mut Summary> {
        summary_in!(self)
    }
}

/// An error without the value of the setting that it is about: under a misspelt name that may be a password.
pub(super) fn unsaid(error: KafkaError) -> KafkaError {
    match error {
        KafkaError::ClientConfig(code, text, key, _) => KafkaError::ClientConfig(code, text, key, "…".to_owned()),
        error => error,
    }
}

/// Which feature of this crate turns on what librdkafka says it was built without; empty for other errors.
pub(super) fn lacking(source: &KafkaError) -> &'static str {
    let text = source.to_string();
    if !text.contains("not available at build time") && !text.contains("recompile librdkafka") {
        ""
    } else if text.contains("zstd") {
        ". Turn on hapax's feature kafka-zstd"
    } else if text.contains("zlib") || text.contains("gzip") {
        ". Turn on hapax's feature kafka-gzip"
    } else if text.to_ascii_lowercase().contains("ssl") {
        ". Turn on hapax's feature kafka-tls, or kafka-tls-vendored"
    } else {
        ". Turn it on in a dependency of your own on rdkafka, of the same version"
    }
}

/// What would let this client read messages that it cannot read, of which librdkafka said `reason`; `None` where it spoke of something else.
///
/// None of them may be left to librdkafka: it asks for ever for what it cannot decompress, and passes what its checksum shows to be damaged.
pub(super) fn unreadable(code: RDKafkaErrorCode, reason: &str) -> Option<&'static str> {
    use RDKafkaErrorCode as Code;
    if !["Decompression (codec ", " failed CRC", "MagicByte"].iter().any(|words| reason.contains(words)) {
        return None;
    }
    match code {
        Code::NotImplemented if reason.contains("(codec 0x1)") => {
            Some("they are compressed by gzip: turn on hapax's feature kafka-gzip")
        }
        Code::NotImplemented if reason.contains("(codec 0x4)") => {
            Some("they are compressed by zstd: turn on hapax's feature kafka-zstd")
        }
        Code::NotImplemented => Some("they are written in a way that this version of librdkafka does not know"),
        Code::BadMessage | Code::BadCompression => Some(
            "they are damaged, on their way or in the log: start again, and if they stay so, restore them or commit an offset behind \
             them with a tool (at level L2 change the window's row in the database)",
        ),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::super::handling::Failure;
    use super::*;
    use crate::identity::{Field, IdentityError};
    use crate::record::{Origin, Seen};
    use crate::wrapper::At;

    #[test]
    fn a_message_is_named_once_whatever_it_stopped_for() {
        let origin = |offset| Origin { topic: "orders".into(), partition: 3, offset };
        let first = Seen { origin: origin(41), at: Default::default() };
        let missing = || IdentityError::Missing { field: Field::Header("message-id".into()) };
        let causes: [(Failure, &str); 3] = [
            (
                Box::new(HandleError::<String>::Identity { at: At(origin(42)), error: missing() }),
                "offset 42: the message has no header `message-id`: let ",
            ),
            (
                Box::new(HandleError::<String>::Conflict { at: At(origin(42)), first }),
                "offset 42: it has the identity of the message at topic `orders`, partition 3, offset 41, and says ",
            ),
            ("the disk is full".into(), "offset 42: the disk is full"),
        ];
        for (source, told) in causes {
            let summary = Box::default();
            let error = ConsumerError::Message { topic: "orders".into(), partition: 3, offset: 42, source, summary };
            let text = error.to_string();
            assert!(text.contains(told) && text.matches("offset 42").count() == 1, "{text}");
        }
    }

    #[test]
    fn the_value_of_a_misspelt_setting_is_not_said() {
        use rdkafka::config::FromClientConfig as _;
        let mut config = rdkafka::ClientConfig::new();
        config.set("sasl.pasword", "open sesame");
        let Err(error) = rdkafka::consumer::BaseConsumer::from_config(&config) else {
            panic!("there is such a setting")
        };
        assert!(error.to_string().contains("open sesame"), "{error}");
        let error = ConsumerError::Client { source: unsaid(error) };
        for text in [error.to_string(), format!("{error:?}")] {
            assert!(text.contains("sasl.pasword") && !text.contains("open sesame"), "{text}");
        }
    }

    #[test]
    fn what_the_client_was_built_without_names_the_feature() {
        for (setting, value, feature) in [
            ("security.protocol", "ssl", "kafka-tls"),
            ("security.protocol", "sasl_ssl", "kafka-tls"),
            ("compression.type", "zstd", "kafka-zstd"),
            ("security.protocol", "carrier pigeon", ""),
        ] {
            let source = KafkaError::ClientConfig(
                rdkafka::types::RDKafkaConfRes::RD_KAFKA_CONF_INVALID,
                match feature {
                    "kafka-tls" => "OpenSSL not available at build time",
                    "kafka-zstd" => "libzstd not available at build time",
                    _ => "Invalid value",
                }
                .into(),
                setting.into(),
                value.into(),
            );
            let text = ConsumerError::Client { source }.to_string();
            assert_eq!(text.contains("hapax's feature"), !feature.is_empty(), "{text}");
            assert!(text.contains(feature), "{text}");
        }
    }

    #[test]
    fn what_cannot_be_read_names_the_feature_or_the_way_on() {
        use RDKafkaErrorCode as Code;
        let of = |codec| {
            format!("Decompression (codec 0x{codec}) of message at 7 of 90 bytes failed: Local: Not implemented")
        };
        assert!(unreadable(Code::NotImplemented, &of(1)).is_some_and(|cure| cure.contains("kafka-gzip")));
        assert!(unreadable(Code::NotImplemented, &of(4)).is_some_and(|cure| cure.contains("kafka-zstd")));
        assert!(unreadable(Code::NotImplemented, &of(7)).is_some_and(|cure| !cure.contains("kafka-")));
        assert!(unreadable(Code::BadCompression, &of(1)).is_some_and(|cure| cure.contains("damaged")));
        let crc = "MessageSet at offset 7 (90 bytes) failed CRC32C check (original 0x1 != calculated 0x2)";
        assert!(unreadable(Code::BadMessage, crc).is_some_and(|cure| cure.contains("damaged")));
        for (code, reason) in
            [(Code::BadMessage, "JoinGroup failed: Local: Bad message format"), (Code::BrokerTransportFailure, crc)]
        {
            assert_eq!(unreadable(code, reason), None, "{reason}");
        }
    }
}
