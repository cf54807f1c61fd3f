//! Letters sent back: once, twice, and after a crash at each step.

use std::time::Duration;

use hapax::consumer::letter::{self, LetterInfo};
use hapax::consumer::{RedriveError, Skip};
use hapax::identity::{Identify as _, header, position};
use hapax::message::MessageView;
use hapax::record::{RequeueOutcome, State};
use hapax::store::{Batch, DedupStore, MemoryStore, SqliteStore};
use hapax::{Once, redrive};
use rdkafka::types::{RDKafkaApiKey, RDKafkaRespErr};

use crate::support::{Kafka, MockKafka, Record, service, unique};
use crate::world::{World, header_of, letters, read_all};

fn order(topic: &str, id: &str) -> Record {
    Record::to(topic).key(format!("customer of {id}")).payload(format!("order {id}")).header("id", id).timestamp(1_234)
}

async fn state(once: &Once, message: &dyn MessageView) -> Option<State> {
    let key = once.key(message)?;
    once.store().get(&Batch::one(key)).await.unwrap().pop()?.map(|record| record.state)
}

/// Dies, is sent back, succeeds; and nothing that is run again repeats its effect.
async fn there_and_back(store: impl DedupStore + 'static) {
    let world = World::new(store).await;
    let placed =
        world.kafka.produce(&[order(&world.orders, "a"), order(&world.orders, "b").null_header("nothing")]).await;
    world.deliver(|id| id == "b").await;
    assert_eq!((world.effects.of("a"), world.effects.of("b")), (1, 0));
    let (letter, info) = letters(&world.kafka, &world.dead).await.pop().expect("b died");
    assert_eq!((&*info.topic, info.partition, info.offset), (&*world.orders, placed[1].0, placed[1].1));
    assert_eq!((info.attempts, info.hops, info.key), (Some(2), 1, world.once.key(&letter_of(&world, &letter))));
    assert_eq!(info.error.as_deref(), Some("no address for b at postgres://***@db"));

    // Dead is dead: a redelivery changes nothing, and its letter is the same letter.
    world.deliver(|_| false).await;
    assert_eq!(world.effects.of("b"), 0);
    let twice = letters(&world.kafka, &world.dead).await;
    assert_eq!(twice.len(), 2);
    assert_eq!(twice[0].1.identity, twice[1].1.identity);

    let seen = world.redrive().dry_run().run().await.unwrap();
    assert_eq!((seen.read, seen.sent), (2, 1));
    assert_eq!(read_all(&world.kafka, &world.orders).await.len(), 2, "only looked at");

    let done = world.redrive().run().await.unwrap();
    assert_eq!((done.read, done.sent, done.skipped.get(&Skip::Repeated)), (2, 1, Some(&1)), "{done}");
    let orders = read_all(&world.kafka, &world.orders).await;
    let back = orders.iter().find(|message| MessageView::header(*message, letter::GENERATION).is_some()).unwrap();
    assert_eq!(back.partition(), placed[1].0, "where it came from");
    assert_eq!(MessageView::payload(back), Some(&b"order b"[..]));
    assert_eq!(MessageView::key(back), Some(&b"customer of b"[..]));
    let mut names = Vec::new();
    back.for_each_header(&mut |name, _| names.push(name.to_owned()));
    let expected =
        ["id", "nothing", letter::GENERATION, letter::REDRIVE_KEY, letter::REDRIVE_TIMESTAMP, letter::REDRIVE_FROM];
    assert_eq!(names, expected);
    assert_eq!(header_of(back, letter::REDRIVE_TIMESTAMP), Some("1234"));
    assert!(LetterInfo::read(back).is_err());

    world.deliver(|_| false).await;
    assert_eq!((world.effects.of("a"), world.effects.of("b")), (1, 1));

    // Again: nothing is left; and from the beginning the store says that it is done.
    let again = world.redrive().run().await.unwrap();
    assert_eq!((again.read, again.sent), (0, 0));
    let all = world.redrive().from_beginning().run().await.unwrap();
    assert_eq!((all.read, all.sent, all.skipped.get(&Skip::Succeeded)), (2, 0, Some(&2)), "{all}");
    world.deliver(|_| false).await;
    assert_eq!(world.effects.all(), 2);
}

/// The message as it stood in its own topic.
fn letter_of(world: &World, letter: &dyn MessageView) -> hapax::message::Parts {
    let copy = hapax::message::Parts::new(&*world.orders).header("id", header_of(letter, "id").unwrap());
    copy.payload(letter.payload().unwrap()).at(0, 0)
}

#[tokio::test]
async fn there_and_back_sqlite() {
    let dir = tempfile::tempdir().unwrap();
    there_and_back(SqliteStore::connect(&format!("sqlite:{}", dir.path().join("r.db").display())).await.unwrap()).await;
}

#[cfg(feature = "postgres")]
#[tokio::test]
async fn there_and_back_postgres() {
    let url = service("HAPAX_TEST_POSTGRES");
    there_and_back(hapax::store::PostgresStore::connect(&url).await.unwrap()).await;
}

#[cfg(feature = "mysql")]
#[tokio::test]
async fn there_and_back_mysql() {
    let url = service("HAPAX_TEST_MYSQL");
    there_and_back(hapax::store::MysqlStore::connect(&url).await.unwrap()).await;
}

#[cfg(feature = "redis")]
#[tokio::test]
async fn there_and_back_redis() {
    let url = service("HAPAX_TEST_REDIS");
    there_and_back(hapax::store::RedisStore::connect(&url).await.unwrap()).await;
}

/// A run that died after it had requeued the records: its successor sends what is due and not there.
#[tokio::test]
async fn a_run_that_died_before_producing_is_made_good() {
    let world = World::new(MemoryStore::new()).await;
    world.kafka.produce(&[order(&world.orders, "a")]).await;
    world.deliver(|_| true).await;
    let key = world.once.key(&letter_of(&world, &letters(&world.kafka, &world.dead).await[0].0)).unwrap();
    assert_eq!(world.once.store().requeue(&Batch::one(key)).await.unwrap(), [RequeueOutcome::Requeued]);
    assert_eq!(world.redrive().run().await.unwrap().sent, 1);
    world.deliver(|_| false).await;
    assert_eq!(world.effects.of("a"), 1);
}

/// A run that died after producing, before its offsets were committed: its successor sends a second copy, and it is the same message.
#[tokio::test]
async fn a_run_that_died_before_committing_repeats_no_effect() {
    let kafka = MockKafka::start(&[("orders", 3), ("dead", 2)]);
    let world = World::on(
        Kafka::at(kafka.bootstrap()),
        "orders".into(),
        "dead".into(),
        unique("group"),
        MemoryStore::new(),
        header("id"),
    )
    .await;
    world.kafka.produce(&[order("orders", "a"), order("orders", "b")]).await;
    world.deliver(|_| true).await;
    for sent_before in 0..2 {
        let refused = [RDKafkaRespErr::RD_KAFKA_RESP_ERR_GROUP_AUTHORIZATION_FAILED];
        kafka.cluster().request_errors(RDKafkaApiKey::OffsetCommit, &refused);
        let error = world.redrive().run().await.expect_err("nothing is committed");
        assert!(matches!(error, RedriveError::Kafka { .. }), "{error}");
        let copies = read_all(&kafka, "orders").await.len() - 2;
        assert!(copies > sent_before, "{copies}");
        kafka.cluster().clear_request_errors(RDKafkaApiKey::OffsetCommit);
    }
    let done = world.redrive().run().await.unwrap();
    assert_eq!(done.sent, 2, "{done}");
    world.deliver(|_| false).await;
    assert_eq!((world.effects.of("a"), world.effects.of("b")), (1, 1));
    assert_eq!(world.redrive().run().await.unwrap().read, 0);
}

/// A message that dies again has a letter of its own; its letters together send it back once.
#[tokio::test]
async fn what_dies_again_has_a_letter_of_its_own() {
    let world = World::new(MemoryStore::new()).await;
    world.kafka.produce(&[order(&world.orders, "a")]).await;
    world.deliver_new(|_| true).await;
    for hops in 2..=3 {
        assert_eq!(world.redrive().run().await.unwrap().sent, 1);
        world.deliver_new(|_| true).await;
        let found = letters(&world.kafka, &world.dead).await;
        assert_eq!(found.iter().map(|(_, info)| info.hops).collect::<Vec<_>>(), (1..=hops).collect::<Vec<_>>());
    }
    let found = letters(&world.kafka, &world.dead).await;
    let identities: std::collections::BTreeSet<_> = found.iter().map(|(_, info)| &info.identity).collect();
    assert_eq!(identities.len(), 3, "one for each death");
    let keys: std::collections::BTreeSet<_> = found.iter().map(|(_, info)| info.key).collect();
    assert_eq!(keys.len(), 1, "and one message");
    // As far as the limit of hops allows, whichever of its letters is looked at.
    let done = world.redrive().from_beginning().dry_run().max_hops(3).run().await.unwrap();
    assert_eq!((done.sent, done.skipped.get(&Skip::TooManyHops)), (0, Some(&3)), "{done}");
    // All its letters together send it back once, as what it is after its last death.
    let all = world.redrive().from_beginning().run().await.unwrap();
    assert_eq!((all.sent, all.skipped.get(&Skip::Repeated)), (1, Some(&2)), "{all}");
    let orders = read_all(&world.kafka, &world.orders).await;
    let generations: Vec<_> = orders.iter().map(|message| header_of(message, letter::GENERATION)).collect();
    assert_eq!(generations, [None, Some("1"), Some("2"), Some("3")]);
    world.deliver_new(|_| false).await;
    world.redrive().from_beginning().run().await.unwrap();
    world.deliver(|_| false).await;
    assert_eq!(world.effects.of("a"), 1);
}

/// Where the position is the identity, a copy is a new message: not sent, unless its first key goes with it.
#[tokio::test]
async fn a_position_is_no_identity_of_a_copy() {
    let world = World::with(Kafka::real(), MemoryStore::new(), position()).await;
    world.kafka.produce(&[order(&world.orders, "a")]).await;
    world.deliver(|_| true).await;
    let done = world.redrive().run().await.unwrap();
    assert_eq!((done.sent, done.skipped.get(&Skip::PositionBound)), (0, Some(&1)), "{done}");
    assert_eq!(state_of_first(&world).await, "dead", "nothing was requeued");
    let accepted = world.redrive().from_beginning().accept_repeats().run().await.unwrap();
    assert_eq!(accepted.sent, 1);
    world.deliver(|_| false).await;
    assert_eq!(world.effects.of("a"), 1);

    let identify = header(letter::REDRIVE_KEY).or(position());
    let world = World::with(Kafka::real(), MemoryStore::new(), identify).await;
    world.kafka.produce(&[order(&world.orders, "b")]).await;
    world.deliver(|_| true).await;
    // Three copies, of one run that stopped and two that knew nothing of it; and one that dies once more.
    world.redrive().run().await.unwrap();
    world.deliver(|_| true).await;
    for group in ["x", "y", "z"] {
        let done = world.redrive().group(unique(group)).run().await.unwrap();
        assert_eq!(done.sent, 1, "{done}");
    }
    assert!(read_all(&world.kafka, &world.orders).await.len() >= 5);
    world.deliver(|_| false).await;
    world.redrive().from_beginning().run().await.unwrap();
    world.deliver(|_| false).await;
    assert_eq!(world.effects.of("b"), 1);
}

async fn state_of_first(world: &World) -> &'static str {
    let first = read_all(&world.kafka, &world.orders).await.remove(0);
    state(&world.once, &first).await.expect("a record").name()
}

/// Another topic: another identity under a scope of topics, and still one for all copies.
#[tokio::test]
async fn to_another_topic() {
    let world = World::new(MemoryStore::new()).await;
    let retry = unique("retry");
    world.kafka.create_topic(&retry, 2).await;
    world.kafka.produce(&[order(&world.orders, "a")]).await;
    world.deliver(|_| true).await;
    for group in ["x", "y"] {
        assert_eq!(world.redrive().to(&*retry).group(unique(group)).run().await.unwrap().sent, 1);
    }
    assert_eq!(read_all(&world.kafka, &retry).await.len(), 2);
    world.deliver_from(&retry, |_| false).await;
    world.deliver(|_| false).await;
    assert_eq!(world.effects.of("a"), 1);
    let later = world.redrive().to(&*retry).from_beginning().run().await.unwrap();
    assert_eq!((later.sent, later.skipped.contains_key(&Skip::Succeeded)), (0, true), "{later}");
}

/// Nothing remembers these: sent as often as it is asked for.
#[tokio::test]
async fn without_a_store() {
    let world = World::new(MemoryStore::new()).await;
    let message = hapax::message::Parts::new(&*world.orders).at(1, 5).payload("x");
    let given_up = letter::GivenUp::new(letter::Cause::Identity);
    world.letters.send(&message, &given_up).await.unwrap();
    let bare = || redrive(world.kafka.consumer_config(&world.group)).from(&*world.dead);
    assert_eq!(bare().run().await.unwrap().sent, 1);
    assert_eq!(bare().run().await.unwrap().sent, 0);
    assert_eq!(bare().from_beginning().run().await.unwrap().sent, 1);
    let sent = read_all(&world.kafka, &world.orders).await;
    assert!(sent.iter().all(|message| message.partition() == 1), "to its own partition");
    assert_eq!(sent.len(), 2);
}

/// Many letters, in several steps; those that come meanwhile are left for the next run.
#[tokio::test]
async fn many_letters_each_once() {
    let world = World::new(MemoryStore::new()).await;
    let records: Vec<Record> = (0..1_300).map(|n| order(&world.orders, &n.to_string())).collect();
    world.kafka.produce(&records).await;
    let orders = read_all(&world.kafka, &world.orders).await;
    let sending = orders.iter().map(|message| async {
        let done = world.once.handle(message, async |_| Err::<(), _>(hapax::Fatal::new("never"))).await.unwrap();
        assert!(matches!(done, hapax::Done::Dead { .. }));
        let given_up = letter::GivenUp::new(letter::Cause::Fatal).key(world.once.key(message).unwrap());
        world.letters.send(message, &given_up).await.unwrap();
    });
    futures_util::future::join_all(sending).await;
    let odd = |letter: &LetterInfo| letter.offset % 2 == 1;
    let wanted = orders.iter().filter(|message| message.offset() % 2 == 1).count() as u64;
    let done = world.redrive().only(odd).patience(Duration::from_secs(120)).run().await.unwrap();
    assert_eq!((done.read, done.sent, done.filtered), (1_300, wanted, 1_300 - wanted), "{done}");
    world.deliver_odd().await;
    assert_eq!(world.effects.all() as u64, wanted);
}
