//! What the log says to whoever looks at nothing else.

use std::io;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use hapax::consumer::Message;
use hapax::identity::header;
use hapax::store::MemoryStore;
use hapax::{Claim, ErrorClass, HandlerError, Once, Retry};
use tracing::subscriber::DefaultGuard;

use crate::dedup::Shaky;
use crate::support::{MockKafka, PATIENCE, eventually, unique};
use crate::world::{Counter, Effects, Member, consumer, records};

const TOPIC: &str = "logged";

/// The lines of the log, at level INFO and above.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Log {
    /// For all tasks of this thread's runtime.
    fn heard() -> (Self, DefaultGuard) {
        let log = Self::default();
        let writer = log.clone();
        let subscriber = tracing_subscriber::fmt().with_ansi(false).with_writer(move || writer.clone()).finish();
        (log, tracing::subscriber::set_default(subscriber))
    }

    fn lines(&self, with: &str) -> Vec<String> {
        let text = String::from_utf8(self.0.lock().unwrap().clone()).unwrap();
        text.lines().filter(|line| line.contains(with)).map(str::to_owned).collect()
    }
}

impl io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[derive(Debug)]
struct Wrong(ErrorClass);

impl std::fmt::Display for Wrong {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "postgres://ada:secret@db/x says {:?}", self.0)
    }
}

impl HandlerError for Wrong {
    fn class(&self) -> ErrorClass {
        self.0
    }
}

#[tokio::test]
async fn a_store_that_is_away_is_said_to_be_and_to_be_back_once_each() {
    let (log, _guard) = Log::heard();
    let kafka = MockKafka::start(&[(TOPIC, 1)]);
    kafka.produce(&records(TOPIC, 1, 10)).await;
    let shaky = Shaky::default();
    let once = Once::builder(shaky.clone()).scope("log", "note").identify(header("id")).build().await.unwrap();
    shaky.away.store(true, Ordering::SeqCst);
    let effects = Effects::default();
    let member = Member::start(consumer(kafka.consumer_config(&unique("log")), TOPIC), {
        let effects = effects.clone();
        once.each(move |message: Message, _: Claim| {
            effects.note(&message);
            std::future::ready(Ok::<_, String>(()))
        })
    });
    eventually(PATIENCE, "the store was asked in vain, again and again", async || shaky.refused.get() > 4).await;
    let away = log.lines("the store is away");
    assert_eq!(away.len(), 1, "{away:?}");
    assert!(away[0].contains("WARN") && away[0].contains("it is away"), "with the store's own words: {away:?}");
    assert!(log.lines("answers again").is_empty());
    shaky.away.store(false, Ordering::SeqCst);
    effects.reach(10).await;
    member.stop().await;
    assert_eq!(log.lines("the store answers again").len(), 1);
    assert!(log.lines("given up topic=").is_empty());
}

#[tokio::test]
async fn what_handlers_need_and_what_is_given_up_are_said_without_secrets() {
    let (log, _guard) = Log::heard();
    let kafka = MockKafka::start(&[(TOPIC, 1)]);
    kafka.produce(&records(TOPIC, 1, 10)).await;
    let once = Once::builder(MemoryStore::new())
        .scope("log", "note")
        .identify(header("id"))
        .retry(Retry::fixed(Duration::from_millis(1)).attempts(2))
        .build()
        .await
        .unwrap();
    let (effects, calls) = (Effects::default(), Counter::default());
    let member = Member::start(consumer(kafka.consumer_config(&unique("log")), TOPIC), {
        let effects = effects.clone();
        once.each(move |message: Message, _: Claim| {
            std::future::ready(match message.offset() {
                0 if calls.up() <= 3 => Err(Wrong(ErrorClass::Unavailable)),
                4 => Err(Wrong(ErrorClass::Fatal)),
                7 => Err(Wrong(ErrorClass::Retryable)),
                _ => {
                    effects.note(&message);
                    Ok(())
                }
            })
        })
    });
    effects.reach(8).await;
    let summary = member.stop().await;
    assert_eq!(summary.dead, 2);
    let (away, back) = (log.lines("what the handlers need is away"), log.lines("what the handlers need is back"));
    assert_eq!((away.len(), back.len()), (1, 1), "{away:?} {back:?}");
    let dead = log.lines("given up topic=");
    assert_eq!(dead.len(), 2, "{dead:?}");
    assert!(dead[0].contains("offset=4") && dead[0].contains("says Fatal"), "{dead:?}");
    assert!(dead[1].contains("offset=7") && dead[1].contains("attempts=2"), "{dead:?}");
    assert!(log.lines("secret").is_empty(), "passwords are masked");
    assert_eq!(log.lines("db/x says").len(), 3, "nothing else is said of them");
}
