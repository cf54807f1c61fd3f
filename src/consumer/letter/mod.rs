//! Dead letters: what becomes of a message that is given up, so that somebody can look at it and send it back.
//!
//! A dead letter is the message as it was (key, payload, headers in their order; null stays null), with these headers added.
//! All values are text. Those that an earlier letter left on the message are replaced.
//!
//! | header | says |
//! |---|---|
//! | [`hapax-dead-topic`](TOPIC), [`-partition`](PARTITION), [`-offset`](OFFSET) | where the message stood |
//! | [`hapax-dead-timestamp`](TIMESTAMP) | its timestamp, in milliseconds since 1970; left out if it had none |
//! | [`hapax-dead-cause`](CAUSE) | why it was given up: `attempts`, `fatal`, `failed`, `dead-before`, `identity`, `conflict` (see [`Cause`]) |
//! | [`hapax-dead-class`](CLASS) | the class of the last error: `retryable`, `fatal` or `unavailable`; left out if there was none |
//! | [`hapax-dead-error`](ERROR) | what the last error said, cleaned and cut: see [`DeadLetter::error_text`](super::DeadLetter::error_text) |
//! | [`hapax-dead-attempts`](ATTEMPTS) | attempts made, over all processes; left out if that is not known |
//! | [`hapax-dead-first-at`](FIRST_AT), [`-last-at`](LAST_AT) | when this process began the first and the last of its attempts, in milliseconds since 1970, by its own clock |
//! | [`hapax-dead-hops`](HOPS) | how often this message has been a dead letter, from 1 |
//! | [`hapax-dead-group`](GROUP), [`-handler`](HANDLER) | consumer group and handler that gave it up |
//! | [`hapax-dead-key`](KEY) | what the store knows the message by, 32 hexadecimal digits; left out if it has no record |
//! | [`hapax-dead-identity`](IDENTITY) | what makes two letters the same: see below |
//!
//! rdkafka cannot read a header whose *name* is not UTF-8, so a letter cannot keep it.
//!
//! # A letter may come twice
//!
//! A letter is acknowledged by the broker before the message is settled as dead and committed. A process that dies in between, or an
//! acknowledgement that gets lost, makes it come again; both have the same `hapax-dead-identity`. So a consumer of the dead letter
//! topic handles each once if it says
//!
//! ```
//! use hapax::Once;
//! use hapax::consumer::letter;
//! use hapax::identity::header;
//! # use hapax::store::DedupStore;
//! # fn example(store: impl DedupStore + 'static) -> hapax::OnceBuilder {
//! Once::builder(store).scope("alerts", "tell").identify(header(letter::IDENTITY))
//! # }
//! ```
//!
//! A message that was sent back and died again has a letter of its own, with one hop more and another identity.
//!
//! # Sent back
//!
//! [`redrive`](super::redrive()) sends the message back without the headers above, and with these:
//!
//! | header | says |
//! |---|---|
//! | [`hapax-redrive-generation`](GENERATION) | how often it has been a dead letter before: the hops of the letter |
//! | [`hapax-redrive-key`](REDRIVE_KEY) | the `hapax-dead-key` of its first letter; the same for all later ones |
//! | [`hapax-redrive-timestamp`](REDRIVE_TIMESTAMP) | the timestamp that the message had at first |
//! | [`hapax-redrive-from`](REDRIVE_FROM) | where its letter stood: `orders.dead[0]@17` |

mod clean;
mod format;
mod keep;
mod sender;

pub use crate::engine::Cause;
pub use format::{
    ATTEMPTS, CAUSE, CLASS, ERROR, FIRST_AT, GENERATION, GROUP, GivenUp, HANDLER, HOPS, IDENTITY, KEY, LAST_AT,
    LetterInfo, NotALetter, OFFSET, PARTITION, PREFIX, REDRIVE_FROM, REDRIVE_KEY, REDRIVE_PREFIX, REDRIVE_TIMESTAMP,
    TIMESTAMP, TOPIC,
};
pub use sender::{LetterError, LetterSender};

pub(super) use clean::clean;
pub(super) use format::{redriven, unread};
pub(super) use sender::{Log, Outgoing, Terms, Wire};
