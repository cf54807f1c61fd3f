//! rdkafka's own messages and the consumer's say the same.

use std::sync::{Arc, Mutex};

use hapax::message::Parts;
use rdkafka::consumer::{Consumer as _, StreamConsumer};

use crate::support::{MockKafka, PATIENCE, Record, eventually};
use crate::world::{Member, consumer, plain};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn borrowed_owned_and_delivered_messages_show_the_same() {
    let kafka = MockKafka::start(&[("orders", 1)]);
    let record = || Record::to("orders").partition(0);
    kafka
        .produce(&[
            record(),
            record().key("").payload(""),
            record()
                .key("k")
                .payload([0u8, 255])
                .timestamp(1_700_000_000_123)
                .header("id", "1")
                .header("id", "2")
                .null_header("id"),
        ])
        .await;
    let stream: StreamConsumer = kafka.consumer_config("stream").create().unwrap();
    stream.subscribe(&["orders"]).unwrap();
    let mut seen = Vec::new();
    for _ in 0..3 {
        let borrowed = tokio::time::timeout(PATIENCE, stream.recv()).await.unwrap().unwrap();
        assert_eq!(Parts::copy_of(&borrowed), Parts::copy_of(&borrowed.detach()));
        seen.push(Parts::copy_of(&borrowed));
    }
    tokio::task::spawn_blocking(move || drop(stream)).await.unwrap();

    let delivered = Arc::new(Mutex::new(Vec::new()));
    let member = Member::start(consumer(kafka.consumer_config("g"), "orders"), {
        let delivered = Arc::clone(&delivered);
        plain(move |message| {
            delivered.lock().unwrap().push(Parts::copy_of(&message));
            std::future::ready(Ok(()))
        })
    });
    eventually(PATIENCE, "all are delivered", async || delivered.lock().unwrap().len() == 3).await;
    member.stop().await;
    assert_eq!(*delivered.lock().unwrap(), seen);
}
