//! Redis: a pipeline of plain commands.

use async_trait::async_trait;
use redis::Value;
use redis::aio::MultiplexedConnection;

use super::Bare;
use crate::data::Row;
use crate::figures::Failure;

const CLAIM_MILLIS: u64 = 60_000;
const DONE_MILLIS: u64 = 14 * 24 * 3600 * 1000;

pub struct Redis {
    connection: MultiplexedConnection,
    prefix: Vec<u8>,
}

async fn connect(url: &str) -> Result<MultiplexedConnection, Failure> {
    let config = redis::AsyncConnectionConfig::new().set_response_timeout(Some(std::time::Duration::from_secs(30)));
    Ok(redis::Client::open(url)?.get_multiplexed_async_connection_with_config(&config).await?)
}

impl Redis {
    pub async fn open(url: &str, prefix: &str) -> Result<Self, Failure> {
        Ok(Self { connection: connect(url).await?, prefix: prefix.as_bytes().to_vec() })
    }

    fn key(&self, row: &Row) -> Vec<u8> {
        [&self.prefix[..], &row.key[..]].concat()
    }
}

fn value(row: &Row) -> [u8; 24] {
    let mut value = [0; 24];
    value[..16].copy_from_slice(&row.fingerprint);
    value[16..].copy_from_slice(&row.number.to_be_bytes());
    value
}

#[async_trait]
impl Bare for Redis {
    async fn insert(&mut self, rows: &[Row]) -> Result<usize, Failure> {
        let mut pipe = redis::Pipeline::with_capacity(rows.len());
        for row in rows {
            pipe.cmd("SET").arg(self.key(row)).arg(&value(row)[..]).arg("NX").arg("PX").arg(CLAIM_MILLIS);
        }
        let answers: Vec<Value> = pipe.query_async(&mut self.connection).await?;
        Ok(answers.iter().filter(|answer| matches!(answer, Value::Okay)).count())
    }

    async fn update(&mut self, rows: &[Row]) -> Result<usize, Failure> {
        let mut pipe = redis::Pipeline::with_capacity(rows.len());
        for row in rows {
            pipe.cmd("SET").arg(self.key(row)).arg(&value(row)[..]).arg("PX").arg(DONE_MILLIS);
        }
        let answers: Vec<Value> = pipe.query_async(&mut self.connection).await?;
        Ok(answers.iter().filter(|answer| matches!(answer, Value::Okay)).count())
    }
}

pub async fn drop_keys(url: &str, prefix: &str) -> Result<(), Failure> {
    let mut connection = connect(url).await?;
    let mut cursor = 0_u64;
    loop {
        let (next, keys): (u64, Vec<Vec<u8>>) = redis::cmd("SCAN")
            .arg(cursor)
            .arg("MATCH")
            .arg(format!("{prefix}*"))
            .arg("COUNT")
            .arg(10_000)
            .query_async(&mut connection)
            .await?;
        if !keys.is_empty() {
            let _: i64 = redis::cmd("UNLINK").arg(keys).query_async(&mut connection).await?;
        }
        if next == 0 {
            return Ok(());
        }
        cursor = next;
    }
}
