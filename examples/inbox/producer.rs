//! Produces as fast as the broker takes it.

use crate::broker::Kafka;
use crate::orders::{ID, Order};
use crate::support::Record;

const AT_ONCE: usize = 1_000;

pub async fn produce(kafka: &Kafka, orders: &[Order]) {
    for some in orders.chunks(AT_ONCE) {
        let records: Vec<Record> = some.iter().map(|order| record(&kafka.topic, order)).collect();
        kafka.producer().produce(&records).await;
    }
}

fn record(topic: &str, order: &Order) -> Record {
    Record::to(topic)
        .partition(order.partition())
        .key(format!("customer {}", order.customer))
        .payload(order.payload())
        .header(ID, &order.id)
}
