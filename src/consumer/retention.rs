//! Whether the store remembers for as long as messages can come again: compared before anything is consumed.

use std::fmt;
use std::thread;
use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, ConfigResource, OwnedResourceSpecifier, ResourceSpecifier};
use rdkafka::client::DefaultClientContext;
use rdkafka::error::KafkaResult;
use tokio::sync::oneshot;
use tracing::debug;

use super::error::unsaid;
use super::resume::Reset;
use crate::store::{Report, Retention};

/// How long the brokers may take to tell.
const PATIENCE: Duration = Duration::from_secs(5);
const TOPIC: &str = "retention";
const GROUP: &str = "offsets.retention.minutes";

/// How long something is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Keeps {
    For(Duration),
    Ever,
}

impl fmt::Display for Keeps {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self::For(time) = self else { return f.write_str("for ever") };
        let seconds = time.as_secs();
        match seconds {
            0 => write!(f, "{} ms", time.as_millis()),
            _ if seconds % 86_400 == 0 => write!(f, "{} days", seconds / 86_400),
            _ if seconds % 3_600 == 0 => write!(f, "{} hours", seconds / 3_600),
            _ => write!(f, "{seconds} s"),
        }
    }
}

/// What the brokers told.
#[derive(Debug, Default)]
struct Told {
    /// For each topic: how long messages are kept, or why that is not known.
    topics: Vec<(String, Result<Keeps, String>)>,
    /// How long the offsets of a group without members are kept.
    offsets: Option<Duration>,
}

/// Compares. `strict`: a store that forgets too early is an error, not a warning.
pub(super) async fn check(
    client: &ClientConfig,
    topics: &[String],
    store: Retention,
    reset: Reset,
    strict: bool,
) -> Report {
    let (names, patterns): (Vec<String>, Vec<String>) =
        topics.iter().cloned().partition(|topic| !topic.starts_with('^'));
    let config = admin_config(client);
    let asked = names.clone();
    let (answer, told) = oneshot::channel();
    // Making and ending a client blocks. Not on the runtime's blocking threads: its end would wait for them.
    let work = move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let told = runtime.map_err(|error| error.to_string());
        let told = told.and_then(|runtime| runtime.block_on(ask(&config, &asked)).map_err(|error| error.to_string()));
        let _ = answer.send(told);
    };
    let told = match thread::Builder::new().name("hapax-retention".into()).spawn(work) {
        Ok(_) => told.await.unwrap_or_else(|_| Err("the thread that asks is gone".to_owned())),
        Err(error) => Err(error.to_string()),
    };
    let mut told = told.unwrap_or_else(|why| nothing(&names, &why));
    let why = "a pattern names its topics only while it runs";
    told.topics.extend(patterns.into_iter().map(|pattern| (pattern, Err(why.to_owned()))));
    compare(&told, store, reset, strict)
}

fn nothing(names: &[String], why: &str) -> Told {
    Told { topics: names.iter().map(|name| (name.clone(), Err(why.to_owned()))).collect(), offsets: None }
}

fn compare(told: &Told, store: Retention, reset: Reset, strict: bool) -> Report {
    let mut report = Report::new();
    let shortest = [("succeeded", store.succeeded), ("dead", store.dead), ("unsettled", store.unsettled)]
        .into_iter()
        .min_by_key(|(_, keep)| *keep);
    for (topic, kept) in &told.topics {
        let kept = match kept {
            Ok(kept) => *kept,
            Err(why) => {
                report.warning(
                    TOPIC,
                    format!("how long topic `{topic}` keeps messages could not be compared with the store: {why}."),
                    "See to it that the store remembers for longer.",
                );
                continue;
            }
        };
        if let Some((what, keep)) = shortest
            && !remembers(keep, kept)
        {
            let problem = format!(
                "topic `{topic}` keeps messages {}, and the store keeps {what} records {}: what is delivered again after that is handled again.",
                Words(kept),
                Words(Keeps::For(keep))
            );
            let cure = format!(
                "Give the store a Retention of {what} of at least that (Duration::MAX is for ever), or shorten the topic's; or accept it with on_reset(OnReset::Warn)."
            );
            if strict { report.error(TOPIC, problem, cure) } else { report.warning(TOPIC, problem, cure) }
        }
        if let Some(offsets) = told.offsets
            && reset == Reset::Latest
            && kept > Keeps::For(offsets)
        {
            report.warning(
                GROUP,
                format!(
                    "a group without members loses its offsets after {}, while topic `{topic}` keeps messages {}: with auto.offset.reset=latest, what came \
                     meanwhile would be passed.",
                    Keeps::For(offsets),
                    Words(kept)
                ),
                "Set auto.offset.reset=earliest; the store knows what was handled.",
            );
        }
    }
    report
}

/// `for 14 days`, `for ever`.
struct Words(Keeps);

impl fmt::Display for Words {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Keeps::Ever => self.0.fmt(f),
            Keeps::For(_) => write!(f, "for {}", self.0),
        }
    }
}

/// Longer than anybody lives to see.
const EVER: Duration = Duration::from_secs(100 * 365 * 24 * 60 * 60);

fn remembers(store: Duration, topic: Keeps) -> bool {
    store >= EVER || topic <= Keeps::For(store)
}

async fn ask(config: &ClientConfig, topics: &[String]) -> KafkaResult<Told> {
    let admin: AdminClient<DefaultClientContext> = config.create().map_err(unsaid)?;
    let options = AdminOptions::new().request_timeout(Some(PATIENCE)).operation_timeout(Some(PATIENCE));
    let mut told = Told::default();
    if !topics.is_empty() {
        let wanted: Vec<ResourceSpecifier<'_>> = topics.iter().map(|topic| ResourceSpecifier::Topic(topic)).collect();
        let found = admin.describe_configs(&wanted, &options).await?;
        for (topic, found) in topics.iter().zip(found) {
            told.topics.push(match found {
                Ok(resource) => {
                    // In the order asked for; what it is about is taken from the answer all the same.
                    let OwnedResourceSpecifier::Topic(topic) = &resource.specifier else { continue };
                    (topic.clone(), topic_keeps(|name| value(&resource, name)))
                }
                Err(code) => (topic.clone(), Err(code.to_string())),
            });
        }
    }
    told.offsets = offsets_kept(&admin, &options).await;
    Ok(told)
}

/// Best effort: it needs rights that a consumer seldom has.
async fn offsets_kept(admin: &AdminClient<DefaultClientContext>, options: &AdminOptions) -> Option<Duration> {
    let broker = admin.inner().fetch_metadata(None, PATIENCE).ok()?.brokers().first()?.id();
    let found = admin.describe_configs(&[ResourceSpecifier::Broker(broker)], options).await;
    let resource = found.ok()?.into_iter().next()?;
    let Ok(resource) = resource else {
        debug!("the brokers' settings may not be read, so {GROUP} is not known");
        return None;
    };
    let minutes: u64 = value(&resource, GROUP)?.parse().ok()?;
    Some(Duration::from_secs(minutes.saturating_mul(60)))
}

fn value(resource: &ConfigResource, name: &str) -> Option<String> {
    resource.get(name)?.value.clone()
}

/// How long a topic keeps messages, by its settings.
fn topic_keeps(setting: impl Fn(&str) -> Option<String>) -> Result<Keeps, String> {
    let policy = setting("cleanup.policy").unwrap_or_default();
    if !policy.split(',').any(|word| word.trim() == "delete") {
        return match policy.trim() {
            "" => Err("cleanup.policy was not told".to_owned()),
            _ => Ok(Keeps::Ever),
        };
    }
    let told = setting("retention.ms").ok_or("retention.ms was not told")?;
    match told.trim().parse::<i64>() {
        Ok(-1) => Ok(Keeps::Ever),
        Ok(ms) => u64::try_from(ms).map(|ms| Keeps::For(Duration::from_millis(ms))).map_err(|error| error.to_string()),
        Err(error) => Err(format!("retention.ms is {told:?}: {error}")),
    }
}

/// What an admin client understands of a consumer's settings: librdkafka warns of each of the others.
fn admin_config(client: &ClientConfig) -> ClientConfig {
    let mut config = client.clone();
    let consumers = [
        "auto.commit.enable",
        "auto.commit.interval.ms",
        "auto.offset.reset",
        "check.crcs",
        "coordinator.query.interval.ms",
        "enable.auto.commit",
        "enable.auto.offset.store",
        "enable.partition.eof",
        "fetch.error.backoff.ms",
        "fetch.max.bytes",
        "fetch.message.max.bytes",
        "fetch.min.bytes",
        "fetch.queue.backoff.ms",
        "fetch.wait.max.ms",
        "group.id",
        "group.instance.id",
        "group.protocol",
        "group.protocol.type",
        "group.remote.assignor",
        "heartbeat.interval.ms",
        "isolation.level",
        "max.partition.fetch.bytes",
        "max.poll.interval.ms",
        "partition.assignment.strategy",
        "queued.max.messages.kbytes",
        "queued.min.messages",
        "session.timeout.ms",
        "statistics.interval.ms",
    ];
    for name in consumers {
        config.remove(name);
    }
    config
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    const HOUR: Duration = Duration::from_secs(3_600);
    const DAY: Duration = Duration::from_secs(86_400);

    fn keeps(settings: &[(&str, &str)]) -> Result<Keeps, String> {
        let settings: HashMap<_, _> = settings.iter().copied().collect();
        topic_keeps(|name| settings.get(name).map(|value| (*value).to_owned()))
    }

    fn told(kept: Keeps, offsets: Option<Duration>) -> Told {
        Told { topics: vec![("orders".into(), Ok(kept))], offsets }
    }

    #[test]
    fn what_a_topic_keeps() {
        let week = Keeps::For(DAY * 7);
        assert_eq!(keeps(&[("cleanup.policy", "delete"), ("retention.ms", "604800000")]), Ok(week));
        assert_eq!(keeps(&[("cleanup.policy", "compact, delete"), ("retention.ms", "604800000")]), Ok(week));
        assert_eq!(keeps(&[("cleanup.policy", "delete"), ("retention.ms", "-1")]), Ok(Keeps::Ever));
        assert_eq!(keeps(&[("cleanup.policy", "compact"), ("retention.ms", "604800000")]), Ok(Keeps::Ever));
        for untold in
            [&[][..], &[("cleanup.policy", "delete")], &[("cleanup.policy", "delete"), ("retention.ms", "-2")]]
        {
            assert!(keeps(untold).is_err(), "{untold:?}");
        }
    }

    #[test]
    fn a_store_that_forgets_early_is_named() {
        let store = Retention::default().succeeded(DAY * 6);
        for (strict, errors) in [(true, 1), (false, 0)] {
            let report = compare(&told(Keeps::For(DAY * 7), None), store, Reset::Earliest, strict);
            assert_eq!((report.findings().len(), report.errors().count()), (1, errors));
            let text = report.findings()[0].to_string();
            assert!(
                text.contains("`orders` keeps messages for 7 days") && text.contains("succeeded records for 6 days"),
                "{text}"
            );
        }
        let dead = Retention::default().dead(HOUR);
        let report = compare(&told(Keeps::For(DAY), None), dead, Reset::Earliest, true);
        assert!(report.findings()[0].to_string().contains("dead records for 1 hours"));
        for enough in [Retention::default(), store.succeeded(DAY * 7)] {
            assert!(compare(&told(Keeps::For(DAY * 7), None), enough, Reset::Latest, true).findings().is_empty());
        }
        // For ever is longer than anything but for ever.
        let ever = Retention::default().succeeded(Duration::MAX).dead(Duration::MAX).unsettled(Duration::MAX);
        assert!(compare(&told(Keeps::Ever, None), ever, Reset::Earliest, true).findings().is_empty());
        assert_eq!(compare(&told(Keeps::Ever, None), Retention::default(), Reset::Earliest, true).errors().count(), 1);
    }

    #[test]
    fn offsets_that_expire_are_a_warning_where_that_loses_messages() {
        let told = told(Keeps::For(DAY * 7), Some(DAY));
        assert!(compare(&told, Retention::default(), Reset::Earliest, true).findings().is_empty());
        let report = compare(&told, Retention::default(), Reset::Latest, true);
        assert_eq!((report.errors().count(), report.names(GROUP)), (0, true));
    }

    #[test]
    fn what_could_not_be_compared_is_said() {
        let report = compare(&nothing(&["orders".into()], "no rights"), Retention::default(), Reset::Earliest, true);
        assert_eq!((report.errors().count(), report.warnings().count()), (0, 1));
        assert!(report.findings()[0].to_string().contains("no rights"));
    }
}
