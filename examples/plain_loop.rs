//! A hand-written consumer loop that handles each message at least once. `wrap_existing_loop.rs` is the same with hapax.
//!
//! `cargo run --example plain_loop -- 127.0.0.1:9092 orders`

use std::error::Error;

use rdkafka::consumer::{CommitMode, Consumer, StreamConsumer};
use rdkafka::message::BorrowedMessage;
use rdkafka::{ClientConfig, Message};

async fn charge(message: &BorrowedMessage<'_>) -> Result<(), String> {
    let payload = message.payload().ok_or("nothing to charge")?;
    println!("{}/{}: {} bytes", message.partition(), message.offset(), payload.len());
    Ok(())
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args().skip(1);
    let (Some(brokers), Some(topic)) = (args.next(), args.next()) else {
        return Err("say where to read: HOST:PORT TOPIC".into());
    };
    let consumer: StreamConsumer = ClientConfig::new()
        .set("bootstrap.servers", brokers)
        .set("group.id", "payments")
        .set("auto.offset.reset", "earliest")
        .set("enable.auto.commit", "false")
        .create()?;
    consumer.subscribe(&[&topic])?;
    loop {
        let message = consumer.recv().await?;
        charge(&message).await?;
        consumer.commit_message(&message, CommitMode::Async)?;
    }
}
