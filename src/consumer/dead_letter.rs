//! Where dead letters go, and how.

use std::fmt;
use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, ResourceSpecifier, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::config::FromClientConfigAndContext as _;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use tokio::runtime::Handle;
use tracing::{debug, info, warn};

use super::config::ConfigError;
use super::error::{lacking, unsaid};
use super::letter::{LetterError, LetterSender, Log, Terms, Wire};
use crate::wrapper::Described;
#[cfg(doc)]
use crate::wrapper::Once;

const MAX_HOPS: u32 = 8;
const ERROR_TEXT: usize = 1024;
/// How long the broker is asked about the topic.
const LOOK: Duration = Duration::from_secs(10);
/// What a topic made by [`DeadLetter::create`] keeps letters for: as long as stores keep dead records by default.
const RETENTION_MS: &str = "7776000000";

/// A topic that messages go to which are given up; for [`Consumer::dead_letter`](super::Consumer::dead_letter).
///
/// ```
/// use hapax::consumer::DeadLetter;
///
/// let letters = DeadLetter::topic("orders.dead").create(3, 1).max_hops(4);
/// ```
///
/// A letter holds the whole message, with headers that say where it stood and why it was given up: see [`letter`](super::letter). It is
/// produced by an idempotent producer and acknowledged by all in-sync replicas *before* the message is settled as dead and
/// committed; so a message that is given up is never lost, and its letter may come twice, with the same identity.
///
/// Letters of one record key go to one partition; those with a null key to the one that has the number of the message's own partition.
///
/// A letter is as old as its being produced, so that the topic's retention counts from then; the message's own timestamp
/// is in a header. See [`keep_timestamps`](Self::keep_timestamps).
///
/// Broker, security and connection settings are the consumer's; see [`producer`](Self::producer).
#[derive(Clone, Debug)]
#[must_use = "it does nothing until a consumer has it"]
pub struct DeadLetter {
    topic: String,
    producer: Option<ClientConfig>,
    create: Option<(i32, i32)>,
    max_hops: u32,
    error_text: usize,
    keep_timestamps: bool,
    scope: Option<(String, String)>,
}

impl DeadLetter {
    /// Sends them to this topic. It must exist, unless [`create`](Self::create) is said.
    pub fn topic(topic: impl Into<String>) -> Self {
        Self {
            topic: topic.into(),
            producer: None,
            create: None,
            max_hops: MAX_HOPS,
            error_text: ERROR_TEXT,
            keep_timestamps: false,
            scope: None,
        }
    }

    /// Creates the topic at the start where it is missing, with so many partitions and replicas of each. Default: a missing
    /// topic is an error.
    ///
    /// It keeps letters for 90 days, and is not compacted.
    pub const fn create(mut self, partitions: i32, replication: i32) -> Self {
        self.create = Some((partitions, replication));
        self
    }

    /// Producer settings of your own. If `bootstrap.servers` is among them they are all that is used, since nobody's
    /// credentials are sent to another cluster; else they are put over what is taken from the consumer's: its broker,
    /// security and connection settings.
    ///
    /// `enable.idempotence=false`, `acks` below all and `transactional.id` are refused. Set where you do not:
    /// `message.timeout.ms=30000`, `message.max.bytes=104857600` (the topic's own limit decides), `allow.auto.create.topics=false`
    /// and `partitioner=murmur2_random`, which puts keys where Java producers put them.
    pub fn producer(mut self, settings: ClientConfig) -> Self {
        self.producer = Some(settings);
        self
    }

    /// Sets how often one message may become a dead letter. Default: 8; at least 1.
    ///
    /// Each time that a letter is sent back and dies again it has one hop more. A message over the limit ends the consumer,
    /// rather than going round for ever; [`redrive`](super::redrive()) does not send back what has reached its own limit.
    pub const fn max_hops(mut self, most: u32) -> Self {
        self.max_hops = most;
        self
    }

    /// Sets how many bytes of an error's text a letter holds. Default: 1,024; 0 leaves errors out.
    ///
    /// The text is what the error's `Display` says, without stack traces; passwords in URLs and after `password=` and its like
    /// are masked, as far as they are recognised. What else handlers write into their errors stands in the topic.
    pub const fn error_text(mut self, bytes: usize) -> Self {
        self.error_text = bytes;
        self
    }

    /// Gives letters the timestamps of their messages, instead of the time when they are produced.
    ///
    /// Only for a topic that keeps letters for longer than messages are old when they die: Kafka's retention goes by these
    /// timestamps, so a letter of a message that is older than `retention.ms` is removed within minutes.
    pub const fn keep_timestamps(mut self) -> Self {
        self.keep_timestamps = true;
        self
    }

    /// Names the consumer group and the handler that letters speak of. A consumer sets it to the scope of its
    /// [`Once`]; by itself, the group is `group.id`.
    pub fn scope(mut self, group: impl Into<String>, handler: impl Into<String>) -> Self {
        self.scope = Some((group.into(), handler.into()));
        self
    }

    /// Makes the sender of letters, for a loop of your own. `client` holds the consumer's settings.
    ///
    /// # Errors
    ///
    /// [`DeadLetterError`]. A broker that cannot be asked within 10 seconds is none: the topic is looked at again before
    /// the first letter, and a warning says so.
    ///
    /// # Cancel safety
    ///
    /// Safe. The topic may have been created.
    pub async fn connect(&self, client: &ClientConfig) -> Result<LetterSender, DeadLetterError> {
        self.check(&[])?;
        let config = self.settings(client)?;
        let wire = Wire::new(config.clone()).map_err(|source| DeadLetterError::Client { source })?;
        let (group, handler) = match &self.scope {
            Some((group, handler)) => (Some(group.clone()), Some(handler.clone())),
            None => (client.get("group.id").map(str::to_owned), None),
        };
        let terms = Terms {
            group,
            handler,
            error_text: self.error_text,
            keep_timestamp: self.keep_timestamps,
            max_hops: self.max_hops,
        };
        let runtime = Handle::try_current().map_err(|_| DeadLetterError::NoRuntime)?;
        let (topic, create) = (self.topic.clone(), self.create);
        let look = move || look(&runtime, &connection(&config), &topic, create);
        let sender = LetterSender::new(wire, self.topic.clone(), terms, look);
        match sender.check().await {
            Ok(()) => Ok(sender),
            Err(error) if error.is_retryable() => {
                warn!(%error, "the dead letter topic could not be looked at; that is done before the first letter");
                Ok(sender)
            }
            Err(error) => Err(error.into()),
        }
    }

    pub(super) fn name(&self) -> &str {
        &self.topic
    }

    /// For the handler of this wrapper, if there is one.
    pub(super) fn of(self, once: Option<&Described>) -> Self {
        match once {
            Some(once) if self.scope.is_none() => self.scope(once.group.clone(), once.handler.clone()),
            _ => self,
        }
    }

    /// What can be seen without a broker.
    pub(super) fn check(&self, topics: &[String]) -> Result<(), ConfigError> {
        let name = &self.topic;
        if name.is_empty()
            || name.len() > 249
            || matches!(name.as_str(), "." | "..")
            || !name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
        {
            let problem = format!("{name:?} is no name of a topic.");
            return Err(refuse(problem, "Use up to 249 letters, digits, dots, underscores and hyphens."));
        }
        // Whether a regular expression takes it in too is seen when it does: then no letter is sent.
        if topics.contains(name) {
            let problem = format!("`{name}` is read by the consumer itself: what is given up would go round for ever.");
            return Err(refuse(problem, "Choose another topic for dead letters, or do not read this one."));
        }
        if self.max_hops == 0 {
            return Err(refuse("max_hops is zero, so that no letter could be sent.", "Allow at least 1."));
        }
        if self.create.is_some_and(|(partitions, replication)| partitions < 1 || replication < 1) {
            return Err(refuse("the topic to create needs partitions and replicas.", "Give at least 1 of each."));
        }
        Ok(())
    }

    /// The producer's settings.
    fn settings(&self, client: &ClientConfig) -> Result<ClientConfig, ConfigError> {
        let own = self.producer.as_ref();
        let elsewhere = own.is_some_and(|own| own.get("bootstrap.servers").is_some());
        let mut config = if elsewhere { ClientConfig::new() } else { connection(client) };
        if let Some(own) = own {
            own.config_map().into_keys().for_each(|name| {
                config.set(name, own.get(name).unwrap_or_default());
            });
        }
        idempotent(config)
    }
}

/// Completes a producer's settings; refuses those with which an acknowledged letter could be lost.
pub(super) fn idempotent(mut config: ClientConfig) -> Result<ClientConfig, ConfigError> {
    if ["bootstrap.servers", "metadata.broker.list"].iter().all(|name| config.get(name).is_none_or(str::is_empty)) {
        return Err(refuse("no broker is known.", "Give bootstrap.servers, to the consumer or with .producer(…)."));
    }
    if config.get("enable.idempotence").is_some_and(|value| !matches!(value.trim(), "true" | "t" | "1")) {
        let problem = "enable.idempotence is turned off: a producer's own retries could repeat and reorder letters.";
        return Err(refuse(problem, "Leave it out."));
    }
    if ["acks", "request.required.acks"].iter().any(|name| config.get(name).is_some_and(|acks| !is_all(acks))) {
        return Err(refuse("acks is below all: an acknowledged letter could be lost.", "Leave it out."));
    }
    if config.get("transactional.id").is_some() {
        return Err(refuse("transactional.id is set, and letters are not sent in transactions.", "Leave it out."));
    }
    config.set("enable.idempotence", "true");
    let defaults = [
        (&["message.timeout.ms", "delivery.timeout.ms"][..], "30000"),
        (&["message.max.bytes"], "104857600"),
        (&["partitioner"], "murmur2_random"),
        // A topic that is gone is missed, not made again by the broker with settings that nobody chose.
        (&["allow.auto.create.topics"], "false"),
    ];
    for (names, value) in defaults {
        if names.iter().all(|name| config.get(name).is_none()) {
            config.set(names[0], value);
        }
    }
    Ok(config)
}

fn is_all(acks: &str) -> bool {
    matches!(acks.trim(), "all" | "-1")
}

fn refuse(problem: impl Into<String>, cure: &'static str) -> ConfigError {
    ConfigError { setting: "dead_letter", problem: problem.into(), cure }
}

/// Those settings of a client that say how to reach a cluster, whatever kind of client it is.
pub(super) fn connection(client: &ClientConfig) -> ClientConfig {
    const NAMES: [&str; 19] = [
        "bootstrap.servers",
        "metadata.broker.list",
        "client.id",
        "client.rack",
        "client.dns.lookup",
        "security.protocol",
        "enable.sasl.oauthbearer.unsecure.jwt",
        "enable.ssl.certificate.verification",
        "broker.address.family",
        "broker.address.ttl",
        "broker.version.fallback",
        "api.version.request",
        "api.version.request.timeout.ms",
        "connections.max.idle.ms",
        "metadata.max.age.ms",
        "metadata.recovery.strategy",
        "retry.backoff.ms",
        "retry.backoff.max.ms",
        "debug",
    ];
    const FAMILIES: [&str; 6] = ["ssl.", "sasl.", "socket.", "reconnect.", "https.", "topic.metadata."];
    let mut config = ClientConfig::new();
    // The map's values are masked where they are secret: they are read one by one.
    for name in client.config_map().into_keys() {
        if NAMES.contains(&name) || FAMILIES.iter().any(|family| name.starts_with(family)) {
            config.set(name, client.get(name).unwrap_or_default());
        }
    }
    config
}

/// Asks the broker for the topic's partitions, creating it if that is wished, and looks whether letters would stay in it.
fn look(runtime: &Handle, config: &ClientConfig, topic: &str, create: Option<(i32, i32)>) -> Result<i32, LetterError> {
    let failed = |source| LetterError::of(topic, source);
    // A consumer: asking as a producer would make brokers create the topic on the quiet.
    let asker: BaseConsumer<Log> =
        BaseConsumer::from_config_and_context(config, Log::default()).map_err(unsaid).map_err(failed)?;
    let Some(found) = partitions(&asker, topic)? else {
        let Some((partitions, replication)) = create else {
            return Err(LetterError::NoTopic { topic: topic.to_owned() });
        };
        runtime.block_on(make(config, topic, partitions, replication))?;
        return Ok(partitions);
    };
    match runtime.block_on(cleanup_policy(config, topic, &asker)) {
        Ok(Some(policy)) if policy.contains("compact") => {
            return Err(LetterError::Compacted { topic: topic.to_owned() });
        }
        Ok(_) => {}
        // Not everybody may read a topic's settings, and not every broker tells them.
        Err(error) => debug!(%error, topic, "the settings of the dead letter topic cannot be read"),
    }
    Ok(found)
}

/// How many partitions the topic has; `None` if it does not exist.
pub(super) fn partitions(asker: &BaseConsumer<Log>, topic: &str) -> Result<Option<i32>, LetterError> {
    let failed = |source| LetterError::of(topic, source);
    let metadata = match asker.fetch_metadata(Some(topic), LOOK) {
        Ok(metadata) => metadata,
        Err(error) if is_unknown(&error) => return Ok(None),
        Err(error) => return Err(failed(error)),
    };
    let Some(found) = metadata.topics().iter().find(|found| found.name() == topic) else { return Ok(None) };
    if let Some(error) = found.error() {
        let error = KafkaError::MetadataFetch(RDKafkaErrorCode::from(error));
        return if is_unknown(&error) { Ok(None) } else { Err(failed(error)) };
    }
    Ok(i32::try_from(found.partitions().len()).ok().filter(|count| *count > 0))
}

fn is_unknown(error: &KafkaError) -> bool {
    let code = error.rdkafka_error_code();
    matches!(code, Some(RDKafkaErrorCode::UnknownTopic | RDKafkaErrorCode::UnknownTopicOrPartition))
}

fn admin(config: &ClientConfig) -> Result<AdminClient<DefaultClientContext>, KafkaError> {
    AdminClient::from_config_and_context(config, DefaultClientContext).map_err(unsaid)
}

fn admin_options() -> AdminOptions {
    AdminOptions::new().request_timeout(Some(LOOK)).operation_timeout(Some(LOOK))
}

async fn make(config: &ClientConfig, topic: &str, partitions: i32, replication: i32) -> Result<(), LetterError> {
    let failed = |source| LetterError::of(topic, source);
    let new = NewTopic::new(topic, partitions, TopicReplication::Fixed(replication))
        .set("cleanup.policy", "delete")
        .set("retention.ms", RETENTION_MS);
    let made = admin(config).map_err(failed)?.create_topics([&new], &admin_options()).await.map_err(failed)?;
    for result in made {
        match result {
            // Another member was quicker.
            Ok(_) | Err((_, RDKafkaErrorCode::TopicAlreadyExists)) => {
                info!(topic, partitions, "created for dead letters")
            }
            Err((_, code @ (RDKafkaErrorCode::InvalidPartitions | RDKafkaErrorCode::InvalidReplicationFactor))) => {
                let cure = "It could not be created so: give a number of partitions and replicas that the cluster has brokers for.";
                return Err(LetterError::Refused { topic: topic.to_owned(), cure, source: KafkaError::AdminOp(code) });
            }
            Err((_, code)) => return Err(failed(KafkaError::AdminOp(code))),
        }
    }
    Ok(())
}

async fn cleanup_policy(
    config: &ClientConfig,
    topic: &str,
    asker: &BaseConsumer<Log>,
) -> Result<Option<String>, KafkaError> {
    // Any broker knows it: not to wait for the controller, which may be moving.
    let broker = asker.fetch_metadata(Some(topic), LOOK)?.brokers().first().map(|broker| broker.id());
    let options = admin_options().broker_id(broker);
    let answers = admin(config)?.describe_configs([&ResourceSpecifier::Topic(topic)], &options).await?;
    for answer in answers {
        let resource = answer.map_err(KafkaError::AdminOp)?;
        if let Some(entry) = resource.get("cleanup.policy") {
            return Ok(entry.value.clone());
        }
    }
    Ok(None)
}

/// Why letters cannot be sent, found at the start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DeadLetterError {
    /// A setting was refused. Not retryable.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The producer refused its settings. Not retryable.
    #[error("the producer of dead letters could not be made: {source}{}", lacking(source))]
    Client {
        /// rdkafka's error.
        source: KafkaError,
    },
    /// The topic is not there, not fit for letters, or could not be looked at. Retryable where [`LetterError::is_retryable`].
    #[error(transparent)]
    Topic(#[from] LetterError),
    /// There is no tokio runtime. Not retryable.
    #[error("dead letters need a tokio runtime: connect inside of one")]
    NoRuntime,
}

impl DeadLetterError {
    /// Whether the same may succeed later.
    #[must_use]
    pub const fn is_retryable(&self) -> bool {
        match self {
            Self::Topic(error) => error.is_retryable(),
            Self::Config(_) | Self::Client { .. } | Self::NoRuntime => false,
        }
    }
}

impl fmt::Display for DeadLetter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "topic {}", self.topic)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client(settings: &[(&str, &str)]) -> ClientConfig {
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", "localhost:1").set("group.id", "g");
        for (name, value) in settings {
            config.set(*name, *value);
        }
        config
    }

    #[test]
    fn only_what_every_client_has_is_taken_from_the_consumer() {
        let config = client(&[
            ("sasl.password", "s3cret"),
            ("ssl.ca.location", "/ca"),
            ("security.protocol", "SASL_SSL"),
            ("session.timeout.ms", "6000"),
            ("enable.auto.commit", "false"),
            ("test.mock.num.brokers", "1"),
            ("socket.timeout.ms", "1000"),
        ]);
        let own = DeadLetter::topic("dead").settings(&config).expect("complete");
        for (name, value) in [
            ("bootstrap.servers", Some("localhost:1")),
            ("sasl.password", Some("s3cret")),
            ("ssl.ca.location", Some("/ca")),
            ("security.protocol", Some("SASL_SSL")),
            ("socket.timeout.ms", Some("1000")),
            ("enable.idempotence", Some("true")),
            ("message.timeout.ms", Some("30000")),
            ("group.id", None),
            ("session.timeout.ms", None),
            ("enable.auto.commit", None),
            ("test.mock.num.brokers", None),
        ] {
            assert_eq!(own.get(name), value, "{name}");
        }
        assert!(!format!("{:?}", DeadLetter::topic("dead").producer(own)).contains("s3cret"));
    }

    #[test]
    fn settings_of_another_cluster_stand_alone() {
        let mut over = ClientConfig::new();
        over.set("linger.ms", "20").set("delivery.timeout.ms", "5000");
        let consumer = client(&[("sasl.password", "s3cret")]);
        let same = DeadLetter::topic("dead").producer(over.clone()).settings(&consumer).expect("complete");
        assert_eq!((same.get("linger.ms"), same.get("sasl.password")), (Some("20"), Some("s3cret")));
        assert_eq!(same.get("message.timeout.ms"), None, "the user's own, under its other name");
        over.set("bootstrap.servers", "elsewhere:1");
        let other = DeadLetter::topic("dead").producer(over).settings(&consumer).expect("complete");
        assert_eq!((other.get("bootstrap.servers"), other.get("sasl.password")), (Some("elsewhere:1"), None));
    }

    #[test]
    fn what_could_lose_or_repeat_letters_is_refused() {
        for (name, value) in
            [("enable.idempotence", "false"), ("acks", "1"), ("request.required.acks", "0"), ("transactional.id", "x")]
        {
            let mut own = ClientConfig::new();
            own.set(name, value);
            let error = DeadLetter::topic("dead").producer(own).settings(&client(&[])).expect_err(name);
            assert_eq!(error.setting, "dead_letter");
            assert!(error.to_string().contains(name.rsplit('.').next().expect("a word")), "{error}");
        }
        for acks in ["all", "-1"] {
            let mut own = ClientConfig::new();
            own.set("acks", acks).set("enable.idempotence", "true");
            assert!(DeadLetter::topic("dead").producer(own).settings(&client(&[])).is_ok());
        }
        let mut lost = ClientConfig::new();
        lost.set("test.mock.num.brokers", "1");
        assert!(DeadLetter::topic("dead").settings(&lost).is_err());
    }

    #[test]
    fn a_topic_that_is_read_is_no_topic_for_letters() {
        let read = ["orders".to_owned(), "orders.dead".to_owned()];
        let error = DeadLetter::topic("orders.dead").check(&read).expect_err("a loop");
        assert!(error.problem.contains("round"), "{error}");
        assert!(DeadLetter::topic("orders.DEAD").check(&read).is_ok());
        for name in ["", ".", "..", "a b", "^orders", "dead/letter", &"x".repeat(250)] {
            assert!(DeadLetter::topic(name).check(&[]).is_err(), "{name:?}");
        }
        assert!(DeadLetter::topic("d").max_hops(0).check(&[]).is_err());
        assert!(DeadLetter::topic("d").create(0, 1).check(&[]).is_err());
        assert!(DeadLetter::topic("d").create(1, 1).max_hops(1).check(&[]).is_ok());
    }
}
