//! Other topics under the same name, and messages of transactions that were aborted.

use std::time::Duration;

use hapax::consumer::{ConsumerError, Finding, OnReset};
use hapax::identity::position;
use rdkafka::producer::{BaseRecord, Producer as _, ThreadedProducer};
use rdkafka::{ClientConfig, producer::DefaultProducerContext};
use sqlx::{Postgres, Sqlite};

use crate::ground::Ground;
use crate::support::{Kafka, PATIENCE, unique};
use crate::world::Member;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_topic_made_again_ends_the_consumer_and_goes_on_where_that_is_accepted() {
    // Shorter than the old one, and longer.
    for count in [10, 60] {
        let mut ground = Ground::<Sqlite>::new(1).await;
        ground.produce(1, 0..40).await;
        let member = Member::start(ground.consumer(), ground.noting(position()).await);
        ground.committed(&[40]).await;
        member.stop().await;
        let bootstrap = ground.kafka.bootstrap().to_owned();
        // A producer that still knows the topic would have the broker make it again by itself.
        ground.kafka = Kafka::at(&bootstrap);
        ground.kafka.delete_topic(&ground.topic).await;
        ground.kafka.create_topic(&ground.topic, 1).await;
        ground.produce(1, 100..100 + count).await;
        let member = Member::start(ground.consumer(), ground.noting(position()).await);
        match member.end().await {
            Err(ConsumerError::Discontinuity { finding: Finding::PastEnd { next: 40, .. }, .. }) if count == 10 => {}
            Err(ConsumerError::Discontinuity { finding: Finding::OtherMessage { next: 40, .. }, .. })
                if count == 60 => {}
            other => panic!("must be refused: {other:?}"),
        }
        assert_eq!(ground.effects().await, 40);
        let accepting = ground.consumer().on_reset(OnReset::Accept);
        let member = Member::start(accepting, ground.noting(position()).await);
        ground.committed(&[count]).await;
        member.stop().await;
        ground.judge((0..40).chain(100..100 + count)).await;
        assert_eq!(ground.marks().await, [count], "the window stands where the new topic does");
        // And from there as ever.
        ground.produce(1, 1_000..1_010).await;
        let member = Member::start(ground.consumer(), ground.noting(position()).await);
        ground.committed(&[count + 10]).await;
        member.stop().await;
        ground.judge((0..40).chain(100..100 + count).chain(1_000..1_010)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f22_messages_of_an_aborted_transaction_have_no_effect() {
    let ground = Ground::<Postgres>::new(1).await;
    let (bootstrap, topic) = (ground.kafka.bootstrap().to_owned(), ground.topic.clone());
    let send = move || {
        let producer: ThreadedProducer<DefaultProducerContext> = ClientConfig::new()
            .set("bootstrap.servers", bootstrap)
            .set("transactional.id", unique("tx"))
            .create()
            .unwrap();
        producer.init_transactions(PATIENCE).unwrap();
        for (ids, good) in [(0..10, true), (10..20, false), (20..30, true), (30..40, false)] {
            producer.begin_transaction().unwrap();
            for id in ids {
                let (id, payload) = (format!("{id}"), format!("order {id}"));
                let headers = rdkafka::message::OwnedHeaders::new()
                    .insert(rdkafka::message::Header { key: "id", value: Some(&id) });
                let record = BaseRecord::to(&topic).partition(0).key(&id).payload(&payload).headers(headers);
                producer.send(record).map_err(|(error, _)| error).unwrap();
            }
            producer.flush(PATIENCE).unwrap();
            match good {
                true => producer.commit_transaction(PATIENCE).unwrap(),
                false => producer.abort_transaction(PATIENCE).unwrap(),
            }
        }
    };
    tokio::task::spawn_blocking(send).await.unwrap();
    let mut careless = ground.config();
    careless.set("isolation.level", "read_uncommitted");
    let refused = Member::start(crate::world::consumer(careless, &ground.topic), ground.noting(position()).await);
    match refused.end().await {
        Err(ConsumerError::Config(error)) => assert_eq!(error.setting, "isolation.level"),
        other => panic!("must be refused: {other:?}"),
    }
    let member = Member::start(ground.consumer(), ground.noting(position()).await);
    ground.reach(20).await;
    // One more, so that the last aborted ones have been passed for sure.
    ground.produce(1, 40..41).await;
    ground.reach(21).await;
    tokio::time::timeout(Duration::from_secs(60), member.stop()).await.unwrap();
    ground.judge((0..10).chain(20..30).chain(40..41)).await;
}
