//! Where commands go: one server, a cluster's nodes, or a connection that the user brought.

#[cfg(feature = "redis-cluster")]
use std::any::Any;
use std::fmt;
use std::sync::Arc;

use redis::aio::ConnectionLike;
use redis::{ConnectionAddr, ConnectionInfo, Value};

use super::calls::{Calls, Run, Script, read_all};
#[cfg(feature = "redis-cluster")]
use super::cluster::Nodes;
use super::errors;
#[cfg(feature = "redis-cluster")]
use super::given::Apart;
use super::given::{self, Cloned, Given};
use super::link::{Clock, Link, Patience, count_checked, integer};
use crate::identity::Key;
use crate::record::Millis;
use crate::store::{Batch, StoreError};

enum Way {
    One(Link),
    #[cfg(feature = "redis-cluster")]
    Cluster(Box<Nodes>),
    Given {
        given: Box<dyn Given>,
        /// Each command goes alone, to a node of its own.
        apart: bool,
    },
}

/// Most keys that one command reads, so that no other client waits long for it.
const MOST_KEYS: usize = 1024;

/// Sends a store's commands.
pub(super) struct Wire {
    way: Way,
    clock: Arc<Clock>,
    patience: Patience,
}

impl fmt::Debug for Wire {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.way {
            Way::One(_) => "server",
            #[cfg(feature = "redis-cluster")]
            Way::Cluster(_) => "cluster",
            Way::Given { .. } => "connection",
        })
    }
}

impl Wire {
    /// Over a link; connects at once.
    pub(super) async fn one(link: Link, clock: Arc<Clock>, patience: Patience) -> Result<Self, StoreError> {
        link.connection().await?;
        Ok(Self { way: Way::One(link), clock, patience })
    }

    #[cfg(feature = "redis-cluster")]
    pub(super) async fn cluster(nodes: Nodes, clock: Arc<Clock>, patience: Patience) -> Result<Self, StoreError> {
        nodes.learn().await?;
        Ok(Self { way: Way::Cluster(Box::new(nodes)), clock, patience })
    }

    pub(super) fn given<C: ConnectionLike + Clone + Send + Sync + 'static>(connection: C, patience: Patience) -> Self {
        #[cfg(feature = "redis-cluster")]
        let apart = (&connection as &dyn Any).is::<redis::cluster_async::ClusterConnection>();
        #[cfg(feature = "redis-cluster")]
        let given: Box<dyn Given> = if apart { Box::new(Apart(connection)) } else { Box::new(Cloned(connection)) };
        #[cfg(not(feature = "redis-cluster"))]
        let (given, apart): (Box<dyn Given>, bool) = (Box::new(Cloned(connection)), false);
        Self { way: Way::Given { given, apart }, clock: Arc::default(), patience }
    }

    /// The server's clock, as the client knows it.
    pub(super) async fn now(&self) -> Millis {
        if !self.clock.is_set() {
            let time = self.send("read the time", &Calls::of([redis::cmd("TIME")])).await;
            self.clock.set(time.ok().as_ref().and_then(|answers| answers.first()));
        }
        self.clock.now()
    }

    /// Sends commands with keys and returns their answers, of which none is an error.
    pub(super) async fn run(&self, operation: &'static str, calls: &Calls) -> Result<Vec<Value>, StoreError> {
        no_error(operation, self.send(operation, calls).await?)
    }

    async fn send(&self, operation: &'static str, calls: &Calls) -> Result<Vec<Value>, StoreError> {
        if calls.len() == 0 {
            return Ok(Vec::new());
        }
        match &self.way {
            Way::One(link) => link.send(operation, &calls.pipeline).await,
            #[cfg(feature = "redis-cluster")]
            Way::Cluster(nodes) => nodes.send(operation, calls).await,
            Way::Given { given, .. } => given::send(given.as_ref(), operation, &calls.pipeline, self.patience).await,
        }
    }

    /// Reads the values of keys, which hold strings: in one command where all keys are on one server, in one each otherwise.
    pub(super) async fn read(
        &self,
        operation: &'static str,
        prefix: &str,
        keys: &Batch<Key>,
    ) -> Result<Vec<Option<Vec<u8>>>, StoreError> {
        let one_server = match &self.way {
            Way::One(_) => true,
            #[cfg(feature = "redis-cluster")]
            Way::Cluster(_) => false,
            Way::Given { apart, .. } => !apart,
        };
        let answers = if one_server && keys.len() > 1 {
            let keys: Vec<Key> = keys.keys().collect();
            let reads = keys.chunks(MOST_KEYS).map(|keys| read_all(prefix, keys));
            let mut answers = Vec::with_capacity(keys.len());
            for part in self.run(operation, &Calls::of(reads)).await? {
                match part {
                    Value::Array(part) => answers.extend(part),
                    other => return Err(errors::shape(operation, &other)),
                }
            }
            answers
        } else {
            let mut calls = Calls::new(prefix, keys.len());
            for key in keys.keys() {
                calls.get(prefix, key);
            }
            self.run(operation, &calls).await?
        };
        let value = |answer| match answer {
            Value::Nil => Ok(None),
            Value::BulkString(bytes) => Ok(Some(bytes)),
            other => Err(errors::shape(operation, &other)),
        };
        count_checked(operation, answers, keys.len())?.into_iter().map(value).collect()
    }

    /// Runs a script on many keys and returns what it answered, of which none is an error. One pipeline by digest; where a
    /// server does not know the script (new, restarted, flushed), those once more by text.
    pub(super) async fn script(
        &self,
        operation: &'static str,
        prefix: &str,
        script: &Script,
        runs: &[Run],
    ) -> Result<Vec<Value>, StoreError> {
        let mut calls = Calls::new(prefix, runs.len());
        for run in runs {
            calls.script(prefix, script, false, run);
        }
        let mut answers = self.send(operation, &calls).await?;
        let unknown = |answer: &Value| matches!(answer, Value::ServerError(error) if error.code() == "NOSCRIPT");
        let places: Vec<usize> = (0..runs.len()).filter(|place| unknown(&answers[*place])).collect();
        if !places.is_empty() {
            let mut calls = Calls::new(prefix, places.len());
            for place in &places {
                calls.script(prefix, script, true, &runs[*place]);
            }
            for (place, answer) in places.into_iter().zip(self.send(operation, &calls).await?) {
                answers[place] = answer;
            }
        }
        no_error(operation, answers)
    }

    /// The same for a script that answers 1 or 0.
    pub(super) async fn ask_script(
        &self,
        operation: &'static str,
        prefix: &str,
        script: &Script,
        runs: &[Run],
    ) -> Result<Vec<bool>, StoreError> {
        let answers = self.script(operation, prefix, script, runs).await?;
        let one = |answer: &Value| integer(answer).map(|one| one == 1).ok_or_else(|| errors::shape(operation, answer));
        answers.iter().map(one).collect()
    }

    /// Sends commands without keys to every server that holds records. The answers of each, errors among them.
    pub(super) async fn each(&self, operation: &'static str, calls: &Calls) -> Result<Vec<Vec<Value>>, StoreError> {
        match &self.way {
            #[cfg(feature = "redis-cluster")]
            Way::Cluster(nodes) => nodes.each(operation, calls).await,
            _ => Ok(vec![self.send(operation, calls).await?]),
        }
    }
}

fn no_error(operation: &'static str, answers: Vec<Value>) -> Result<Vec<Value>, StoreError> {
    let error = answers.iter().find_map(|answer| match answer {
        Value::ServerError(error) => Some(errors::server(operation, error)),
        _ => None,
    });
    error.map_or(Ok(answers), Err)
}

/// The same settings at another address.
#[cfg_attr(not(any(feature = "redis-cluster", feature = "redis-sentinel")), expect(dead_code))]
pub(super) fn at(info: &ConnectionInfo, host: &str, port: u16) -> ConnectionInfo {
    let addr = match info.addr() {
        ConnectionAddr::TcpTls { insecure, tls_params, .. } => {
            ConnectionAddr::TcpTls { host: host.to_owned(), port, insecure: *insecure, tls_params: tls_params.clone() }
        }
        _ => ConnectionAddr::Tcp(host.to_owned(), port),
    };
    info.clone().set_addr(addr)
}
