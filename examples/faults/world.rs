//! What stands around the members: a Kafka, an effects database, a store, and a relay on every way there.

use std::fs;
use std::path::PathBuf;

use crate::schedule::{Link, SESSION, SLOTS, STEADY, Trouble};
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

    /// The effects database's answer to a statement: its rows and their columns.
    pub fn sql(&self, statement: &str) -> Vec<Vec<String>> {
        rows(&self.effects.sql(statement).expect("the effects database answers"), '|')
    }
}

fn rows(answer: &str, between: char) -> Vec<Vec<String>> {
    answer.lines().map(|row| row.split(between).map(str::to_owned).collect()).collect()
}

/// As psql would print it; every column as text.
fn sqlite(url: &str, statement: &str) -> Result<String, String> {
    use sqlx::{AssertSqlSafe, Connection as _, Row as _, SqliteConnection};
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|e| e.to_string())?;
    let answer = async {
        let mut connection = SqliteConnection::connect(url).await?;
        let rows = sqlx::query(AssertSqlSafe(statement)).fetch_all(&mut connection).await?;
        connection.close().await?;
        let column = |row: &sqlx::sqlite::SqliteRow, at: usize| {
            row.try_get_unchecked::<String, _>(at)
                .or_else(|_| row.try_get::<i64, _>(at).map(|number| number.to_string()))
        };
        let row = |row| (0..sqlx::Row::len(row)).map(|at| column(row, at)).collect::<Result<Vec<_>, _>>();
        rows.iter().map(row).collect::<Result<Vec<_>, sqlx::Error>>()
    };
    let rows = runtime.block_on(answer).map_err(|e: sqlx::Error| e.to_string())?;
    Ok(rows.iter().map(|row| row.join("|") + "\n").collect())
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

/// What a run holds to its promises.
#[derive(Clone, Copy, Debug)]
pub struct Subject {
    /// As `--stores` calls it.
    pub name: &'static str,
    pub server: &'static str,
    /// At level L2: what is remembered in the effects' own transactions, as `service --memory` calls it.
    pub memory: Option<&'static str>,
    /// An inbox whose effects are in another database: level L1.
    pub outside: bool,
}

/// What a member does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Handles what it reads.
    Service,
    /// Stores what it reads.
    Accept,
    /// Handles what is stored.
    Work,
}

const fn subject(name: &'static str, server: &'static str, memory: Option<&'static str>) -> Subject {
    Subject { name, server, memory, outside: false }
}

const fn outside(name: &'static str, server: &'static str) -> Subject {
    Subject { name, server, memory: Some(INBOX), outside: true }
}

/// What `memory` is called where messages are stored first, and handled by other processes.
const INBOX: &str = "inbox";

pub const SUBJECTS: [Subject; 19] = [
    subject("redis", "redis", None),
    subject("postgres", "postgres", None),
    subject("mariadb", "mariadb", None),
    subject("sqlite", "sqlite", None),
    subject("postgres-l2-records", "postgres", Some("records")),
    subject("postgres-l2-window", "postgres", Some("window")),
    subject("postgres-l2-both", "postgres", Some("both")),
    subject("mariadb-l2-records", "mariadb", Some("records")),
    subject("mariadb-l2-window", "mariadb", Some("window")),
    subject("mariadb-l2-both", "mariadb", Some("both")),
    subject("sqlite-l2-records", "sqlite", Some("records")),
    subject("sqlite-l2-window", "sqlite", Some("window")),
    subject("sqlite-l2-both", "sqlite", Some("both")),
    subject("postgres-inbox", "postgres", Some(INBOX)),
    subject("mariadb-inbox", "mariadb", Some(INBOX)),
    subject("sqlite-inbox", "sqlite", Some(INBOX)),
    outside("postgres-inbox-outside", "postgres"),
    outside("mariadb-inbox-outside", "mariadb"),
    outside("sqlite-inbox-outside", "sqlite"),
];

impl Subject {
    /// What `--stores` lists: names, and groups of them.
    pub fn read(list: &str) -> Result<Vec<Self>, String> {
        let mut found = Vec::new();
        for word in list.split(',') {
            let before = found.len();
            found.extend(
                SUBJECTS.into_iter().filter(|subject| subject.name == word || subject.groups().contains(&word)),
            );
            if found.len() == before {
                let names: Vec<&str> = SUBJECTS.iter().map(|subject| subject.name).collect();
                return Err(format!(
                    "--stores: there is no `{word}`; choose of {}, l0, l1, l2, inbox, all",
                    names.join(", ")
                ));
            }
        }
        Ok(found)
    }

    fn groups(&self) -> [&'static str; 2] {
        [
            "all",
            if self.is_inbox() {
                INBOX
            } else if self.memory.is_some() {
                "l2"
            } else if self.server == "redis" {
                "l0"
            } else {
                "l1"
            },
        ]
    }

    pub fn level(&self) -> &'static str {
        match (self.memory, self.server) {
            (Some(_), _) if self.outside => "L1",
            (Some(_), _) => "L2",
            (None, "redis") => "L0",
            (None, _) => "L1",
        }
    }

    /// Whether effect and memory commit together.
    pub const fn is_transactional(&self) -> bool {
        self.memory.is_some() && !self.outside
    }

    pub fn is_inbox(&self) -> bool {
        self.memory == Some(INBOX)
    }

    /// What the member in that place does: of the steady ones of an inbox the first stores and the others work, and so do those that come and go.
    pub fn role(&self, slot: usize) -> Role {
        match slot % STEADY {
            _ if !self.is_inbox() => Role::Service,
            0 => Role::Accept,
            _ => Role::Work,
        }
    }

    /// A window alone tells what is delivered again, and takes what is produced again for another message.
    pub fn knows_copies(&self) -> bool {
        self.memory != Some("window")
    }
}

impl Store {
    pub fn start(subject: Subject) -> Self {
        let (server, address) = match subject.server {
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

    /// The answer to a statement, its rows and their columns. Straight to the server, which is up.
    pub fn sql(&self, statement: &str) -> Vec<Vec<String>> {
        let (answer, between) = match &self.server {
            Server::Redis(_) => unreachable!("Redis holds no effects"),
            Server::Postgres(server) => (server.sql(statement), '|'),
            Server::Mariadb(server) => (server.sql(statement), '\t'),
            Server::Sqlite(_) => (sqlite(&self.url(0), statement), '|'),
        };
        rows(&answer.expect("the database answers"), between)
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
