//! What these tests share: a topic, a group, a database, and handlers that leave one row for each message.

use std::time::Duration;

use hapax::consumer::{Consumer, Handling};
use hapax::identity::Identify;
use hapax::{Message, Once, Retry, Transactional};
use rdkafka::ClientConfig;
use sqlx::Pool;

use crate::base::{Base, Site, Tables, id_of};
use crate::support::{Kafka, PATIENCE, Record, eventually, unique};

pub struct Ground<DB: Base> {
    pub kafka: Kafka,
    pub topic: String,
    pub group: String,
    pub site: Site,
    pub pool: Pool<DB>,
    pub tables: Tables,
}

impl<DB: Base> Ground<DB> {
    pub async fn new(partitions: i32) -> Self {
        let kafka = Kafka::real();
        let topic = unique("consuming");
        kafka.create_topic(&topic, partitions).await;
        let site = DB::site();
        let pool = DB::pool(&site, 8).await;
        let tables = Tables::make::<DB>(&mut DB::session(&site).await).await;
        Self { kafka, topic, group: unique("g"), site, pool, tables }
    }

    pub fn config(&self) -> ClientConfig {
        self.kafka.consumer_config(&self.group)
    }

    pub fn consumer(&self) -> Consumer {
        crate::world::consumer(self.config(), &self.topic)
    }

    pub async fn once(&self, identify: impl Identify + 'static) -> Transactional<DB> {
        let builder = Once::transactional(self.pool.clone())
            .scope("tests", &self.tables.effects)
            .identify(identify)
            .retry(Retry::fixed(Duration::from_millis(20)).attempts(5))
            .with_table(&self.tables.records)
            .with_windows_table(&self.tables.windows);
        builder.build().await.unwrap()
    }

    /// A handler that leaves its row.
    pub async fn noting<I: Identify + 'static>(&self, identify: I) -> impl Handling + use<DB, I> {
        let table = self.tables.effects.clone();
        self.once(identify)
            .await
            .each(async move |message: Message, tx: &mut DB::Connection| DB::effect(tx, &table, id_of(&message)).await)
    }

    /// Messages with these ids, spread over the partitions in turn, and over five keys.
    pub async fn produce(&self, partitions: i32, ids: impl Iterator<Item = i64>) {
        let partition = |id: i64| i32::try_from(id % i64::from(partitions)).unwrap();
        let record = |id: i64| {
            let id_text = id.to_string();
            let record = Record::to(&self.topic).partition(partition(id)).key(format!("key {}", id % 5));
            record.payload(format!("order {id}")).header("id", id_text)
        };
        self.kafka.produce(&ids.map(record).collect::<Vec<_>>()).await;
    }

    pub async fn effects(&self) -> i64 {
        let mut conn = DB::session(&self.site).await;
        DB::number(&mut conn, &format!("SELECT COUNT(*) FROM {}", self.tables.effects)).await.unwrap()
    }

    pub async fn reach(&self, count: i64) {
        eventually(PATIENCE, &format!("{count} effects"), async || self.effects().await >= count).await;
    }

    /// Each of these has one effect, and no others have any.
    pub async fn judge(&self, ids: impl Iterator<Item = i64>) {
        self.tables.judge::<DB>(&mut DB::session(&self.site).await, ids).await;
    }

    /// Waits until these offsets are committed, one for each partition from 0.
    pub async fn committed(&self, expected: &[i64]) {
        crate::world::committed(&self.kafka, &self.group, &self.topic, expected).await;
    }

    /// Where the windows stand, one for each partition.
    pub async fn marks(&self) -> Vec<i64> {
        let text = format!("SELECT next FROM {} ORDER BY next", self.tables.windows);
        DB::numbers(&mut DB::session(&self.site).await, &text).await.unwrap()
    }
}
