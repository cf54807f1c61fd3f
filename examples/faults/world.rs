//! What stands around the members: a Kafka, an effects database, a store, and a relay on every way there.

use std::fs;
use std::path::PathBuf;

use crate::schedule::{Link, SESSION, SLOTS, Trouble};
use crate::support::relay::{Direction, Relay};
use crate::support::{Kafka, ThrowawayKafka, ThrowawayMariadb, ThrowawayPostgres, ThrowawayRedis, net};

/// What all runs share: the broker and the effects database, which nobody harms.
pub struct Ground {
    kafka: ThrowawayKafka,
    /// A way to the broker for each place.
    brokers: Vec<Relay>,
    effects: ThrowawayPostgres,
}

impl Ground {
    pub fn start() -> Self {
        let own: Vec<u16> = (0..SLOTS).map(|_| net::free_port()).collect();
        let brokers: Vec<Relay> = own.iter().map(|port| Relay::start(&format!("127.0.0.1:{port}"))).collect();
        let relayed: Vec<(u16, u16)> =
            own.iter().zip(&brokers).map(|(own, relay)| (*own, relay.address().port())).collect();
        let session = SESSION.as_millis().to_string();
        let kafka = ThrowawayKafka::start(&relayed, &[("group.consumer.session.timeout.ms", &session)]);
        let effects = ThrowawayPostgres::start(&[("fsync", "off")]);
        Self { kafka, brokers, effects }
    }

    /// For producers and onlookers: not through a relay.
    pub fn kafka(&self) -> Kafka {
        Kafka::at(&self.kafka.address())
    }

    pub fn brokers(&self, slot: usize) -> String {
        self.brokers[slot].address().to_string()
    }

    pub fn effects_url(&self) -> String {
        self.effects.url()
    }

    /// The answer, a row a line, its columns separated by `|`.
    pub fn effects(&self, statement: &str) -> String {
        self.effects.sql(statement).expect("the effects database answers")
    }
}

/// A store under test.
pub struct Store {
    server: Server,
    /// A way to it for each place; none to a file.
    ways: Vec<Relay>,
}

enum Server {
    Redis(ThrowawayRedis),
    Postgres(ThrowawayPostgres),
    Mariadb(ThrowawayMariadb),
    Sqlite(tempfile::TempDir),
}

pub const STORES: [&str; 4] = ["redis", "postgres", "mariadb", "sqlite"];

impl Store {
    pub fn start(name: &str) -> Self {
        let (server, address) = match name {
            "redis" => {
                // Level L0 is what an outage leaves of it; a plain restart forgets nothing.
                let server = ThrowawayRedis::start(&[("appendonly", "yes"), ("maxmemory-policy", "noeviction")]);
                let address = server.address();
                (Server::Redis(server), Some(address))
            }
            "postgres" => {
                let server = ThrowawayPostgres::start(&[]);
                let address = server.address();
                (Server::Postgres(server), Some(address))
            }
            "mariadb" => {
                let server = ThrowawayMariadb::start(&[]);
                let address = server.address();
                (Server::Mariadb(server), Some(address))
            }
            _ => (Server::Sqlite(tempfile::tempdir().expect("a temporary folder")), None),
        };
        let ways = address.map_or_else(Vec::new, |address| (0..SLOTS).map(|_| Relay::start(&address)).collect());
        Self { server, ways }
    }

    pub fn url(&self, slot: usize) -> String {
        let direct = match &self.server {
            Server::Redis(server) => server.url(),
            Server::Postgres(server) => server.url(),
            Server::Mariadb(server) => server.url(),
            Server::Sqlite(folder) => format!("sqlite:{}", folder.path().join("records.db").display()),
        };
        self.ways.get(slot).map_or(direct.clone(), |way| way.url(&direct))
    }

    pub const fn level(&self) -> &'static str {
        match self.server {
            Server::Redis(_) => "L0",
            Server::Postgres(_) | Server::Mariadb(_) | Server::Sqlite(_) => "L1",
        }
    }

    /// A file has no server that could be killed.
    pub const fn is_server(&self) -> bool {
        !matches!(self.server, Server::Sqlite(_))
    }

    pub const fn may_forget(&self) -> bool {
        matches!(self.server, Server::Redis(_))
    }

    pub fn kill(&mut self) {
        match &mut self.server {
            Server::Redis(server) => server.kill9(),
            Server::Postgres(server) => server.kill9(),
            Server::Mariadb(server) => server.kill9(),
            Server::Sqlite(_) => {}
        }
    }

    pub fn start_again(&mut self) {
        match &mut self.server {
            Server::Redis(server) => server.restart(),
            Server::Postgres(server) => server.restart(),
            Server::Mariadb(server) => server.restart(),
            Server::Sqlite(_) => {}
        }
    }

    /// Between [`kill`](Self::kill) and [`start_again`](Self::start_again).
    pub fn empty(&mut self) {
        if let Server::Redis(server) = &self.server {
            let logs: PathBuf = server.folder().join("appendonlydir");
            fs::remove_dir_all(logs).expect("Redis keeps its log there");
        }
    }
}

/// The relays of a link: that of one place, or all.
pub fn ways<'w>(ground: &'w Ground, store: &'w Store, link: Link, slot: Option<usize>) -> Vec<&'w Relay> {
    let all = match link {
        Link::Store => &store.ways,
        Link::Broker => &ground.brokers,
    };
    match slot {
        Some(slot) => all.get(slot).into_iter().collect(),
        None => all.iter().collect(),
    }
}

/// Begins trouble; [`Relay::restore`] ends it.
pub fn trouble(way: &Relay, trouble: Trouble) {
    match trouble {
        Trouble::Cut => way.cut(),
        Trouble::CutReply => way.cut_next_reply(),
        Trouble::Down(_) => way.down(),
        Trouble::Delay(delay, _) => {
            way.delay(Direction::ToServer, delay / 2);
            way.delay(Direction::ToClient, delay / 2);
        }
        Trouble::ToServerLost(_) => way.black_hole(Direction::ToServer),
        Trouble::ToClientLost(_) => way.black_hole(Direction::ToClient),
    }
}
