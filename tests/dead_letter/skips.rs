//! What is not sent back, and why; and what cannot be asked for.

use std::time::Duration;

use hapax::consumer::letter::{Cause, GivenUp};
use hapax::consumer::{RedriveError, Skip};
use hapax::identity::header;
use hapax::message::Parts;
use hapax::store::MemoryStore;
use hapax::{Done, Once, Retry, redrive};
use rdkafka::ClientConfig;

use crate::support::{Kafka, MockKafka, Record, unique};
use crate::world::{World, read_all};

async fn world(kafka: &MockKafka) -> World {
    let kafka = Kafka::at(kafka.bootstrap());
    World::on(kafka, "orders".into(), "dead".into(), unique("group"), MemoryStore::new(), header("id")).await
}

fn mock() -> MockKafka {
    MockKafka::start(&[("orders", 2), ("dead", 2)])
}

fn order(id: &str) -> Parts {
    Parts::new("orders").at(0, 7).payload(format!("order {id}")).header("id", id)
}

/// Makes it dead, and its letter.
async fn kill(world: &World, message: &Parts) {
    let done = world.once.handle(message, async |_| Err::<(), _>(hapax::Fatal::new("never"))).await.unwrap();
    assert!(matches!(done, Done::Dead { .. }));
    let given_up = GivenUp::new(Cause::Fatal).key(world.once.key(message).unwrap());
    world.letters.send(message, &given_up).await.unwrap();
}

async fn only_skip(world: &World, skip: Skip) {
    let done = world.redrive().run().await.unwrap();
    assert_eq!((done.sent, done.skipped.get(&skip), done.skipped()), (0, Some(&done.read), done.read), "{done}");
    assert!(done.read > 0);
    assert_eq!(read_all(&world.kafka, "orders").await.len(), 0, "nothing was sent");
    assert!(done.to_string().contains(&skip.to_string()), "{done}");
}

#[tokio::test]
async fn what_is_no_letter() {
    let kafka = mock();
    let world = world(&kafka).await;
    kafka.produce(&[Record::to("dead").payload("x"), Record::to("dead").header("hapax-dead-topic", "orders")]).await;
    only_skip(&world, Skip::NotALetter).await;
}

#[tokio::test]
async fn what_another_handler_gave_up() {
    let kafka = mock();
    let world = world(&kafka).await;
    let of = |group: &str, handler: &str| hapax::DeadLetter::topic("dead").scope(group.to_owned(), handler.to_owned());
    for letters in [of(&world.group, "bill"), of("others", "ship")] {
        let letters = letters.connect(&kafka.consumer_config("g")).await.unwrap();
        letters.send(&order("a"), &GivenUp::new(Cause::Fatal)).await.unwrap();
    }
    only_skip(&world, Skip::OtherHandler).await;
}

#[tokio::test]
async fn what_came_from_the_letters_themselves() {
    let kafka = MockKafka::start(&[("orders", 1), ("dead", 1), ("deader", 1)]);
    let world = world(&kafka).await;
    let deader = hapax::DeadLetter::topic("deader").connect(&kafka.consumer_config("g")).await.unwrap();
    deader.send(&Parts::new("deader-than-dead").at(0, 1), &GivenUp::new(Cause::Fatal)).await.unwrap();
    // A consumer of `dead` whose own letters go to `dead` is refused; by hand it can be done.
    deader.send(&Parts::new("dead").at(0, 1), &GivenUp::new(Cause::Fatal)).await.unwrap();
    let copied = read_all(&kafka, "deader").await.pop().unwrap();
    let mut record = Record::to("dead");
    hapax::message::MessageView::for_each_header(&copied, &mut |name, value| {
        record = std::mem::take(&mut record).header(name, value.unwrap());
    });
    kafka.produce_one(record).await;
    let done = redrive(kafka.consumer_config("g")).from("dead").run().await.unwrap();
    assert_eq!((done.read, done.skipped.get(&Skip::Loop)), (1, Some(&1)), "{done}");
    drop(world);
}

#[tokio::test]
async fn what_is_dead_in_a_store_that_is_not_named() {
    let kafka = mock();
    let world = world(&kafka).await;
    kill(&world, &order("a")).await;
    let done = redrive(kafka.consumer_config("g")).from("dead").run().await.unwrap();
    assert_eq!((done.sent, done.skipped.get(&Skip::NoStore)), (0, Some(&1)), "{done}");
}

#[tokio::test]
async fn what_has_no_identity() {
    let kafka = mock();
    let world = world(&kafka).await;
    world.letters.send(&Parts::new("orders").at(0, 1), &GivenUp::new(Cause::Identity)).await.unwrap();
    only_skip(&world, Skip::NoIdentity).await;
}

#[tokio::test]
async fn what_conflicts() {
    let kafka = mock();
    let world = world(&kafka).await;
    let handled = world.once.handle(&order("a"), async |_| Ok::<_, String>(())).await.unwrap();
    assert!(matches!(handled, Done::Handled(())));
    let key = world.once.key(&order("a")).unwrap();
    let other = order("a").payload("says something else").at(0, 8);
    world.letters.send(&other, &GivenUp::new(Cause::Conflict).key(key)).await.unwrap();
    only_skip(&world, Skip::Conflict).await;
}

#[tokio::test]
async fn what_the_store_has_forgotten() {
    let kafka = mock();
    let world = world(&kafka).await;
    world.letters.send(&order("a"), &kill_elsewhere(&world).await).await.unwrap();
    only_skip(&world, Skip::Forgotten).await;
    let done = world.redrive().from_beginning().accept_forgotten().run().await.unwrap();
    assert_eq!(done.sent, 1, "{done}");
    world.deliver(|_| false).await;
    assert_eq!(world.effects.of("a"), 1);
}

/// Dead in a store that is gone.
async fn kill_elsewhere(world: &World) -> GivenUp {
    let gone = Once::builder(MemoryStore::new())
        .scope(&*world.group, "ship")
        .identify(header("id"))
        .retry(Retry::none())
        .accept_unsafe_settings()
        .build()
        .await
        .unwrap();
    GivenUp::new(Cause::Fatal).key(gone.key(&order("a")).unwrap())
}

#[tokio::test]
async fn what_cannot_be_asked_for() {
    let client = || {
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", "localhost:1").set("group.id", "orders");
        config
    };
    for wish in [
        redrive(client()),
        redrive(client()).from("dead").to("dead"),
        redrive(client()).from("dead").to(""),
        redrive(client()).from("dead").group("orders"),
        redrive(ClientConfig::new()).from("dead"),
    ] {
        let shown = format!("{wish:?}");
        let error = wish.run().await.expect_err("refused");
        assert!(matches!(error, RedriveError::Config(_)), "{shown}: {error}");
    }
    let kafka = mock();
    let error = redrive(kafka.consumer_config("g")).from("missing").run().await.expect_err("missing");
    assert!(matches!(&error, RedriveError::NoTopic { topic } if topic == "missing"), "{error}");
}

#[tokio::test]
async fn a_message_that_kafka_refuses_stands_in_the_way_and_can_be_left_out() {
    let (kafka, gone) = (Kafka::real(), unique("gone"));
    let world = World::with(kafka, MemoryStore::new(), header("id")).await;
    let lost = Parts::new(&*gone).at(0, 1).payload("x").header("id", "lost");
    kill(&world, &lost).await;
    kill(&world, &Parts::new(&*world.orders).at(0, 1).payload("y").header("id", "kept")).await;
    let mut config = world.kafka.consumer_config(&world.group);
    config.set("topic.metadata.propagation.max.ms", "1000");
    let wish = || redrive(config.clone()).from(&*world.dead).known_to(&world.once);
    let error = wish().run().await.expect_err("no such topic");
    let RedriveError::Send { source, .. } = &error else { panic!("{error}") };
    assert!(!source.is_retryable(), "{error}");
    let gone = gone.clone();
    let done = wish().only(move |letter| letter.topic != gone).run().await.unwrap();
    assert_eq!((done.filtered, done.sent), (1, 1), "{done}");
    world.deliver(|_| false).await;
    assert_eq!((world.effects.of("kept"), world.effects.of("lost")), (1, 0));
}

#[tokio::test]
async fn a_store_that_is_away_is_waited_for_and_nothing_is_sent_without_it() {
    use crate::world::Flaky;
    let kafka = mock();
    let store = Flaky::default();
    let connection = Kafka::at(kafka.bootstrap());
    let world =
        World::on(connection, "orders".into(), "dead".into(), unique("group"), store.clone(), header("id")).await;
    kill(&world, &order("a")).await;
    store.fail(u32::MAX);
    let error = world.redrive().patience(Duration::from_millis(500)).run().await.expect_err("away");
    assert!(matches!(&error, RedriveError::Store(error) if error.is_retryable()), "{error}");
    assert_eq!(read_all(&kafka, "orders").await.len(), 0);
    store.fail(3);
    assert_eq!(world.redrive().run().await.unwrap().sent, 1);
    let description = world.once.store().describe();
    assert_eq!(description.store, "memory");
    world.deliver(|_| false).await;
    assert_eq!(world.effects.of("a"), 1);
}
