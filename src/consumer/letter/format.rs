//! What stands in a letter, written and read. Pure: no clock, no I/O.

use std::fmt;
use std::str::FromStr;

use super::clean::clean;
use crate::engine::Cause;
use crate::identity::Key;
use crate::message::{MessageView, Parts};
use crate::wrapper::ErrorClass;

/// What the names of all headers begin with that a letter adds.
pub const PREFIX: &str = "hapax-dead-";
/// The topic that the message stood in.
pub const TOPIC: &str = "hapax-dead-topic";
/// The partition that the message stood in.
pub const PARTITION: &str = "hapax-dead-partition";
/// The offset that the message stood at.
pub const OFFSET: &str = "hapax-dead-offset";
/// The message's timestamp, in milliseconds since 1970.
pub const TIMESTAMP: &str = "hapax-dead-timestamp";
/// Why the message was given up.
pub const CAUSE: &str = "hapax-dead-cause";
/// The class of the last error.
pub const CLASS: &str = "hapax-dead-class";
/// What the last error said.
pub const ERROR: &str = "hapax-dead-error";
/// Attempts made.
pub const ATTEMPTS: &str = "hapax-dead-attempts";
/// When the first attempt began, in milliseconds since 1970.
pub const FIRST_AT: &str = "hapax-dead-first-at";
/// When the last attempt began, in milliseconds since 1970.
pub const LAST_AT: &str = "hapax-dead-last-at";
/// How often the message has been a dead letter, from 1.
pub const HOPS: &str = "hapax-dead-hops";
/// The consumer group that gave it up.
pub const GROUP: &str = "hapax-dead-group";
/// The handler that gave it up.
pub const HANDLER: &str = "hapax-dead-handler";
/// What the store knows the message by.
pub const KEY: &str = "hapax-dead-key";
/// What makes two letters the same.
pub const IDENTITY: &str = "hapax-dead-identity";

/// What the names of all headers begin with that sending back adds.
pub const REDRIVE_PREFIX: &str = "hapax-redrive-";
/// How often a message that was sent back has been a dead letter.
pub const GENERATION: &str = "hapax-redrive-generation";
/// What the store knew the message by when it first became a dead letter.
pub const REDRIVE_KEY: &str = "hapax-redrive-key";
/// The timestamp that the message had at first, in milliseconds since 1970.
pub const REDRIVE_TIMESTAMP: &str = "hapax-redrive-timestamp";
/// Where the letter stood.
pub const REDRIVE_FROM: &str = "hapax-redrive-from";

/// Why and how a message was given up: what a letter says beside the message itself.
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use]
pub struct GivenUp {
    pub(in crate::consumer) cause: Cause,
    pub(in crate::consumer) class: Option<ErrorClass>,
    pub(in crate::consumer) error: Option<String>,
    pub(in crate::consumer) attempts: Option<u32>,
    pub(in crate::consumer) first_at: Option<i64>,
    pub(in crate::consumer) last_at: Option<i64>,
    pub(in crate::consumer) key: Option<Key>,
}

impl GivenUp {
    /// Given up for this cause; nothing else is known.
    pub const fn new(cause: Cause) -> Self {
        Self { cause, class: None, error: None, attempts: None, first_at: None, last_at: None, key: None }
    }

    /// Sets what the last error was, and its class.
    pub fn error(mut self, class: ErrorClass, error: impl fmt::Display) -> Self {
        self.class = Some(class);
        self.error = Some(error.to_string());
        self
    }

    /// Sets how many attempts were made, over all processes.
    pub const fn attempts(mut self, attempts: u32) -> Self {
        self.attempts = Some(attempts);
        self
    }

    /// Sets when the first and the last attempt began, in milliseconds since 1970.
    pub const fn between(mut self, first_at: i64, last_at: i64) -> Self {
        self.first_at = Some(first_at);
        self.last_at = Some(last_at);
        self
    }

    /// Sets what the store knows the message by. Without it the letter is told from others by the message's position.
    pub const fn key(mut self, key: Key) -> Self {
        self.key = Some(key);
        self
    }
}

/// Who gives up, and on what terms.
#[derive(Clone, Debug)]
pub(super) struct Sender {
    pub(super) group: Option<String>,
    pub(super) handler: Option<String>,
    /// Bytes of an error's text at most.
    pub(super) error_text: usize,
    /// Whether the letter keeps the message's timestamp as its own.
    pub(super) keep_timestamp: bool,
}

/// Writes the letter that goes to `topic`.
pub(super) fn write(message: &dyn MessageView, given_up: &GivenUp, sender: &Sender, topic: &str) -> Parts {
    let mut letter = copy(message, topic, |name| !name.starts_with(PREFIX));
    if let Some(timestamp) = message.timestamp_ms().filter(|_| sender.keep_timestamp) {
        letter = letter.timestamp(timestamp);
    }
    let hops = hops_before(message).saturating_add(1);
    // A conflict has no record of its own: the key is another message's.
    let key = given_up.key.filter(|_| given_up.cause != Cause::Conflict);
    let identity = match key {
        Some(key) => format!("{key}.{hops}"),
        None => format!("{}.{hops}", position(message)),
    };
    let error = given_up.error.as_deref().map(|error| clean(error, sender.error_text)).filter(|text| !text.is_empty());
    let text = |value: Option<i64>| value.map(|value| value.to_string());
    let added = [
        (TOPIC, Some(message.topic().to_owned())),
        (PARTITION, Some(message.partition().to_string())),
        (OFFSET, Some(message.offset().to_string())),
        (TIMESTAMP, text(message.timestamp_ms())),
        (CAUSE, Some(cause_name(given_up.cause).to_owned())),
        (CLASS, given_up.class.map(|class| class_name(class).to_owned())),
        (ERROR, error),
        (ATTEMPTS, given_up.attempts.map(|attempts| attempts.to_string())),
        (FIRST_AT, text(given_up.first_at)),
        (LAST_AT, text(given_up.last_at)),
        (HOPS, Some(hops.to_string())),
        (GROUP, sender.group.clone()),
        (HANDLER, sender.handler.clone()),
        (KEY, key.map(|key| key.to_string())),
        (IDENTITY, Some(identity)),
    ];
    added.into_iter().fold(letter, |letter, (name, value)| match value {
        Some(value) => letter.header(name, value),
        None => letter,
    })
}

/// Writes the message that is sent back to `topic`.
pub(in crate::consumer) fn redriven(letter: &dyn MessageView, info: &LetterInfo, topic: &str) -> Parts {
    // The first letter's key and timestamp stay; the rest is of this letter.
    let keep = |name: &str| !name.starts_with(PREFIX) && name != GENERATION && name != REDRIVE_FROM;
    let mut message = copy(letter, topic, keep).header(GENERATION, info.hops.to_string());
    if let Some(key) = info.key.filter(|_| letter.header(REDRIVE_KEY).is_none()) {
        message = message.header(REDRIVE_KEY, key.to_string());
    }
    if let Some(timestamp) = info.timestamp_ms.filter(|_| letter.header(REDRIVE_TIMESTAMP).is_none()) {
        message = message.header(REDRIVE_TIMESTAMP, timestamp.to_string());
    }
    message.header(REDRIVE_FROM, position(letter))
}

/// Key, payload and those headers that `keep` picks by name.
fn copy(message: &dyn MessageView, topic: &str, keep: impl Fn(&str) -> bool) -> Parts {
    let mut parts = Parts::new(topic);
    if let Some(key) = message.key() {
        parts = parts.key(key);
    }
    if let Some(payload) = message.payload() {
        parts = parts.payload(payload);
    }
    let mut headers = Vec::new();
    message.for_each_header(&mut |name, value| {
        if keep(name) {
            headers.push((name.to_owned(), value.map(<[u8]>::to_vec)));
        }
    });
    headers.into_iter().fold(parts, |parts, (name, value)| match value {
        Some(value) => parts.header(name, value),
        None => parts.null_header(name),
    })
}

/// How often the message has been a dead letter so far: whatever brought it back, a redrive or a plain copy.
pub(super) fn hops_before(message: &dyn MessageView) -> u32 {
    let read = |name| read_text(message, name).and_then(|text| text.parse().ok()).unwrap_or(0);
    u32::max(read(HOPS), read(GENERATION))
}

/// `orders[3]@42`: no topic's name holds a bracket.
fn position(message: &dyn MessageView) -> String {
    format!("{}[{}]@{}", message.topic(), message.partition(), message.offset())
}

const fn cause_name(cause: Cause) -> &'static str {
    match cause {
        Cause::Attempts => "attempts",
        Cause::Fatal => "fatal",
        Cause::Failed => "failed",
        Cause::DeadBefore => "dead-before",
        Cause::Identity => "identity",
        Cause::Conflict => "conflict",
    }
}

fn cause_of(name: &str) -> Option<Cause> {
    use Cause::{Attempts, Conflict, DeadBefore, Failed, Fatal, Identity};
    [Attempts, Fatal, Failed, DeadBefore, Identity, Conflict].into_iter().find(|cause| cause_name(*cause) == name)
}

const fn class_name(class: ErrorClass) -> &'static str {
    match class {
        ErrorClass::Retryable => "retryable",
        ErrorClass::Fatal => "fatal",
        ErrorClass::Unavailable => "unavailable",
    }
}

fn class_of(name: &str) -> Option<ErrorClass> {
    use ErrorClass::{Fatal, Retryable, Unavailable};
    [Retryable, Fatal, Unavailable].into_iter().find(|class| class_name(*class) == name)
}

/// What a letter says of the message in it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct LetterInfo {
    /// The topic that the message stood in.
    pub topic: String,
    /// The partition that the message stood in.
    pub partition: i32,
    /// The offset that the message stood at.
    pub offset: i64,
    /// The message's timestamp, in milliseconds since 1970, if it had one.
    pub timestamp_ms: Option<i64>,
    /// Why it was given up.
    pub cause: Cause,
    /// The class of the last error, if there was one.
    pub class: Option<ErrorClass>,
    /// What the last error said, cleaned and cut.
    pub error: Option<String>,
    /// Attempts made, if that is known.
    pub attempts: Option<u32>,
    /// When the process that gave it up began its first attempt, in milliseconds since 1970, by its clock.
    pub first_at: Option<i64>,
    /// When that process began its last attempt.
    pub last_at: Option<i64>,
    /// How often the message has been a dead letter, from 1.
    pub hops: u32,
    /// The consumer group that gave it up.
    pub group: Option<String>,
    /// The handler that gave it up.
    pub handler: Option<String>,
    /// What the store knows the message by, if it has a record.
    pub key: Option<Key>,
    /// What makes two letters the same.
    pub identity: String,
}

impl LetterInfo {
    /// Reads what a letter says of the message in it. Key, payload and the message's own headers are the letter's.
    ///
    /// # Errors
    ///
    /// [`NotALetter`]; not retryable.
    pub fn read(letter: &dyn MessageView) -> Result<Self, NotALetter> {
        let text = |name| read_text(letter, name).map(str::to_owned);
        Ok(Self {
            topic: needed(TOPIC, text(TOPIC))?,
            partition: needed(PARTITION, number(letter, PARTITION)?)?,
            offset: needed(OFFSET, number(letter, OFFSET)?)?,
            timestamp_ms: number(letter, TIMESTAMP)?,
            cause: needed(CAUSE, parsed(letter, CAUSE, cause_of)?)?,
            class: parsed(letter, CLASS, class_of)?,
            error: text(ERROR),
            attempts: number(letter, ATTEMPTS)?,
            first_at: number(letter, FIRST_AT)?,
            last_at: number(letter, LAST_AT)?,
            hops: needed(HOPS, number(letter, HOPS)?)?,
            group: text(GROUP),
            handler: text(HANDLER),
            key: parsed(letter, KEY, key_of)?,
            identity: needed(IDENTITY, text(IDENTITY))?,
        })
    }
}

/// A message that is no dead letter of this crate: a header of one is missing, or says what none would say.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no dead letter: the header {header} is missing or malformed")]
pub struct NotALetter {
    /// Which header.
    pub header: &'static str,
}

fn read_text<'a>(letter: &'a dyn MessageView, name: &str) -> Option<&'a str> {
    std::str::from_utf8(letter.header(name)?).ok()
}

fn needed<T>(header: &'static str, value: Option<T>) -> Result<T, NotALetter> {
    value.ok_or(NotALetter { header })
}

/// A value that may be missing, but not malformed.
fn parsed<T>(
    letter: &dyn MessageView,
    header: &'static str,
    parse: impl FnOnce(&str) -> Option<T>,
) -> Result<Option<T>, NotALetter> {
    match letter.header(header) {
        None => Ok(None),
        Some(bytes) => match std::str::from_utf8(bytes).ok().and_then(parse) {
            Some(value) => Ok(Some(value)),
            None => Err(NotALetter { header }),
        },
    }
}

fn number<T: FromStr>(letter: &dyn MessageView, header: &'static str) -> Result<Option<T>, NotALetter> {
    parsed(letter, header, |text| text.parse().ok())
}

fn key_of(text: &str) -> Option<Key> {
    if text.len() != 32 || !text.bytes().all(|digit| matches!(digit, b'0'..=b'9' | b'a'..=b'f')) {
        return None;
    }
    u128::from_str_radix(text, 16).ok().map(|key| Key::from_bytes(key.to_be_bytes()))
}

/// A message of the same content at another place: to see whether its identity depends on that.
pub(in crate::consumer) fn unread(message: &Parts, partition: i32, offset: i64) -> Parts {
    message.clone().at(partition, offset)
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::option;
    use proptest::prelude::*;

    use super::*;

    fn sender() -> Sender {
        Sender { group: Some("shop".into()), handler: Some("ship".into()), error_text: 1024, keep_timestamp: false }
    }

    fn headers(message: &dyn MessageView) -> Vec<(String, Option<Vec<u8>>)> {
        let mut all = Vec::new();
        message.for_each_header(&mut |name, value| all.push((name.to_owned(), value.map(<[u8]>::to_vec))));
        all
    }

    fn names() -> impl Strategy<Value = String> {
        prop_oneof![
            4 => "[a-z-]{1,12}",
            1 => Just(HOPS.to_owned()),
            1 => Just(IDENTITY.to_owned()),
            1 => Just(ERROR.to_owned()),
            1 => Just("hapax-dead-unheard-of".to_owned()),
            1 => Just(GENERATION.to_owned()),
            1 => Just(REDRIVE_KEY.to_owned()),
        ]
    }

    fn bytes() -> impl Strategy<Value = Vec<u8>> {
        prop_oneof![vec(any::<u8>(), 0..20), "[0-9]{1,3}".prop_map(String::into_bytes)]
    }

    prop_compose! {
        fn messages()(
            topic in "[a-zA-Z0-9._-]{1,20}",
            partition in 0_i32..1000,
            offset in 0_i64..i64::MAX,
            timestamp in option::of(any::<i64>()),
            key in option::of(bytes()),
            payload in option::of(vec(any::<u8>(), 0..200)),
            headers in vec((names(), option::of(bytes())), 0..8),
        ) -> Parts {
            let mut message = Parts::new(topic).at(partition, offset);
            if let Some(timestamp) = timestamp { message = message.timestamp(timestamp); }
            if let Some(key) = key { message = message.key(key); }
            if let Some(payload) = payload { message = message.payload(payload); }
            headers.into_iter().fold(message, |message, (name, value)| match value {
                Some(value) => message.header(name, value),
                None => message.null_header(name),
            })
        }
    }

    fn causes() -> impl Strategy<Value = Cause> {
        use Cause::{Attempts, Conflict, DeadBefore, Failed, Fatal, Identity};
        prop::sample::select(vec![Attempts, Fatal, Failed, DeadBefore, Identity, Conflict])
    }

    prop_compose! {
        fn given_up()(
            cause in causes(),
            class in option::of(prop::sample::select(vec![ErrorClass::Retryable, ErrorClass::Fatal, ErrorClass::Unavailable])),
            error in option::of(".{0,60}"),
            attempts in option::of(any::<u32>()),
            first_at in option::of(any::<i64>()),
            last_at in option::of(any::<i64>()),
            key in option::of(any::<[u8; 16]>().prop_map(Key::from_bytes)),
        ) -> GivenUp {
            GivenUp { cause, class, error, attempts, first_at, last_at, key }
        }
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(message in messages(), given_up in given_up()) {
            let letter = write(&message, &given_up, &sender(), "dead");
            let info = LetterInfo::read(&letter).expect("a letter");
            prop_assert_eq!(&*info.topic, message.topic());
            prop_assert_eq!((info.partition, info.offset), (message.partition(), message.offset()));
            prop_assert_eq!(info.timestamp_ms, message.timestamp_ms());
            prop_assert_eq!((info.cause, info.class), (given_up.cause, given_up.class));
            prop_assert_eq!(info.attempts, given_up.attempts);
            prop_assert_eq!((info.first_at, info.last_at), (given_up.first_at, given_up.last_at));
            prop_assert_eq!(info.hops, hops_before(&message).saturating_add(1));
            prop_assert_eq!((info.group.as_deref(), info.handler.as_deref()), (Some("shop"), Some("ship")));
            prop_assert_eq!(info.key, given_up.key.filter(|_| given_up.cause != Cause::Conflict));
            let error = given_up.error.as_deref().map(|error| clean(error, 1024)).filter(|error| !error.is_empty());
            prop_assert_eq!(info.error, error);
            // The message itself is untouched, but for what an earlier letter left.
            prop_assert_eq!(letter.topic(), "dead");
            prop_assert_eq!(body(&letter), body(&message));
            let kept: Vec<_> = headers(&letter).into_iter().filter(|(name, _)| !name.starts_with(PREFIX)).collect();
            let given: Vec<_> = headers(&message).into_iter().filter(|(name, _)| !name.starts_with(PREFIX)).collect();
            prop_assert_eq!(kept, given);
            // No header of a letter stands twice.
            let mut added: Vec<_> = headers(&letter).into_iter().map(|(name, _)| name).filter(|name| name.starts_with(PREFIX)).collect();
            let count = added.len();
            added.sort();
            added.dedup();
            prop_assert_eq!(added.len(), count);
        }

        #[test]
        fn what_is_sent_back_is_the_message(message in messages(), given_up in given_up()) {
            let letter = write(&message, &given_up, &sender(), "dead").at(0, 17);
            let info = LetterInfo::read(&letter).expect("a letter");
            let back = redriven(&letter, &info, message.topic());
            prop_assert_eq!(back.topic(), message.topic());
            prop_assert_eq!(body(&back), body(&message));
            let own = |message: &dyn MessageView| {
                let all = headers(message).into_iter();
                all.filter(|(name, _)| !name.starts_with(PREFIX) && !name.starts_with(REDRIVE_PREFIX)).collect::<Vec<_>>()
            };
            prop_assert_eq!(own(&back), own(&message));
            prop_assert_eq!(value(&back, REDRIVE_FROM), Some(&b"dead[0]@17"[..]));
            prop_assert!(LetterInfo::read(&back).is_err(), "it is no letter");
            // Dead again: one hop more, whoever counts.
            prop_assert_eq!(hops_before(&back), info.hops);
            let again = LetterInfo::read(&write(&back.clone().at(1, 9), &given_up, &sender(), "dead")).expect("a letter");
            prop_assert_eq!(again.hops, info.hops.saturating_add(1));
            // The first letter's key goes with it for good.
            let first = value(&back, REDRIVE_KEY).map(<[u8]>::to_vec);
            let second = write(&back, &GivenUp::new(Cause::Fatal).key(Key::from_bytes([9; 16])), &sender(), "dead");
            let second = redriven(&second, &LetterInfo::read(&second).expect("a letter"), "t");
            if first.is_some() {
                prop_assert_eq!(value(&second, REDRIVE_KEY).map(<[u8]>::to_vec), first);
            }
        }

        #[test]
        fn letters_are_the_same_only_if_message_and_hops_are(message in messages(), one in given_up(), two in given_up()) {
            let identity = |message: &Parts, given_up: &GivenUp| {
                LetterInfo::read(&write(message, given_up, &sender(), "dead")).expect("a letter").identity
            };
            // Whatever was said of it the second time.
            let mut later = two;
            later.key = one.key;
            if (one.cause == Cause::Conflict) == (later.cause == Cause::Conflict) || one.key.is_none() {
                prop_assert_eq!(identity(&message, &one), identity(&message, &later));
            }
            let moved = message.clone().at(message.partition(), message.offset() - 1);
            let told_by_key = one.key.is_some() && one.cause != Cause::Conflict;
            prop_assert_eq!(identity(&message, &one) == identity(&moved, &one), told_by_key);
            if hops_before(&message) < u32::MAX - 1 {
                let hopped = message.clone().header(HOPS, (hops_before(&message) + 1).to_string());
                prop_assert_ne!(identity(&message, &one), identity(&hopped, &one));
            }
        }
    }

    fn body(message: &dyn MessageView) -> (Option<&[u8]>, Option<&[u8]>) {
        (message.key(), message.payload())
    }

    fn value<'m>(message: &'m dyn MessageView, name: &str) -> Option<&'m [u8]> {
        message.header(name)
    }

    #[test]
    fn malformed_letters_are_refused_by_the_name_of_the_header() {
        let letter = write(&Parts::new("t").at(1, 2), &GivenUp::new(Cause::Fatal), &sender(), "dead");
        assert!(LetterInfo::read(&letter).is_ok());
        for (header, value) in [
            (PARTITION, "one"),
            (OFFSET, ""),
            (CAUSE, "boredom"),
            (CLASS, "first"),
            (HOPS, "-1"),
            (KEY, "00112233445566778899AABBCCDDEEFF"),
            (KEY, "0011"),
            (ATTEMPTS, "many"),
        ] {
            let wrong = LetterInfo::read(&letter.clone().header(header, value));
            assert_eq!(wrong, Err(NotALetter { header }), "{header}={value}");
        }
        assert_eq!(LetterInfo::read(&Parts::new("t")), Err(NotALetter { header: TOPIC }));
        assert_eq!(LetterInfo::read(&letter.clone().null_header(IDENTITY)), Err(NotALetter { header: IDENTITY }));
    }

    #[test]
    fn the_timestamp_is_kept_where_that_is_asked_for() {
        let message = Parts::new("t").at(1, 2).timestamp(77);
        let given_up = GivenUp::new(Cause::Fatal);
        assert_eq!(write(&message, &given_up, &sender(), "dead").timestamp_ms(), None);
        let keeping = Sender { keep_timestamp: true, ..sender() };
        assert_eq!(write(&message, &given_up, &keeping, "dead").timestamp_ms(), Some(77));
    }
}
