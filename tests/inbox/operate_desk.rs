//! An inbox whose rows a test puts where it wants them, by SQL of its own: what operators do is then judged against the tables, not against the rooms
//! that write them.

use std::ops::Range;

use hapax::Inbox;
use hapax::inbox::{By, Class, MessageId};
use hapax::message::{MessageView, Parts};

use crate::base::Base;
use crate::world::{World, message};

/// The database's clock.
pub fn clock<DB: Base>() -> &'static str {
    match DB::KIND {
        "postgres" => "(extract(epoch FROM clock_timestamp()) * 1000)::bigint",
        "mysql" => {
            "CAST(TIMESTAMPDIFF(MICROSECOND, TIMESTAMP'1970-01-01 00:00:00', UTC_TIMESTAMP(3)) DIV 1000 AS SIGNED)"
        }
        _ => "CAST(unixepoch('subsec') * 1000 AS INTEGER)",
    }
}

/// Bytes in a statement.
pub fn bytes<DB: Base>(bytes: &[u8]) -> String {
    let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    if DB::KIND == "postgres" { format!("'\\x{hex}'::bytea") } else { format!("x'{hex}'") }
}

fn varint(into: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        into.push((number & 0x7f) as u8 | 0x80);
        number >>= 7;
    }
    into.push(number as u8);
}

/// A run's list, one group for each message: id, generation, attempt, value. None of them is negative.
pub fn packed(entries: &[(i64, u64, u64, u64)]) -> Vec<u8> {
    let mut packed = vec![1];
    varint(&mut packed, entries.len() as u64);
    let mut before = 0;
    for (id, generation, attempt, value) in entries {
        let step = id - before;
        varint(&mut packed, ((step << 1) ^ (step >> 63)) as u64);
        for number in [1, *generation, *attempt, value << 1] {
            varint(&mut packed, number);
        }
        before = *id;
    }
    packed
}

/// How a message of a run ended, as its list says it.
#[derive(Clone, Copy, Debug)]
pub enum Done {
    Succeeded = 0,
    Late = 1,
    Failed = 2,
    Released = 4,
}

pub fn by() -> By {
    By::new("ada", "fixed in 1.4.2")
}

pub struct Desk<DB: Base> {
    pub world: World<DB>,
    pub inbox: Inbox<DB>,
    pub conn: DB::Connection,
    number: i64,
    runs: i64,
}

impl<DB: Base> Desk<DB> {
    pub async fn new() -> Self {
        let world = World::<DB>::new().await;
        let inbox = world.inbox().await;
        Self::over(world, inbox).await
    }

    pub async fn over(world: World<DB>, inbox: Inbox<DB>) -> Self {
        let mut conn = world.session().await;
        let text = format!("SELECT CAST(MAX(inbox) AS {}) FROM {}_handlers", big::<DB>(), world.prefix);
        let number = DB::number(&mut conn, &text).await.unwrap();
        Self { world, inbox, conn, number, runs: 0 }
    }

    /// The id of a message by its number.
    pub fn id(&self, n: i64) -> MessageId {
        MessageId((self.number << 40) + n)
    }

    /// The number of a message by its id.
    pub fn n(&self, id: MessageId) -> i64 {
        id.0 - (self.number << 40)
    }

    pub async fn run(&mut self, text: &str) -> u64 {
        let text = self.names(text);
        DB::run(&mut self.conn, &text).await.unwrap_or_else(|error| panic!("{text}: {error}"))
    }

    pub async fn count(&mut self, text: &str) -> i64 {
        let text = self.names(&format!("SELECT CAST(({text}) AS {})", big::<DB>()));
        DB::number(&mut self.conn, &text).await.unwrap_or_else(|error| panic!("{text}: {error}"))
    }

    pub async fn text(&mut self, text: &str) -> String {
        let text = self.names(text);
        DB::text(&mut self.conn, &text).await.unwrap_or_else(|error| panic!("{text}: {error}"))
    }

    /// `@_open` and its like are the inbox's tables; `@` alone followed by a blank is that of messages.
    fn names(&self, text: &str) -> String {
        text.replace("@_", &format!("{}_", self.world.prefix)).replace("@ ", &format!("{} ", self.world.prefix))
    }

    pub async fn now(&mut self) -> i64 {
        self.count(&format!("SELECT {}", clock::<DB>())).await
    }

    /// Accepts messages by number: received, of five keys.
    pub async fn accept(&mut self, numbers: Range<i64>) {
        self.put(numbers, true).await;
    }

    /// Messages that succeeded so long ago that nobody knows of their runs.
    pub async fn put(&mut self, numbers: Range<i64>, open: bool) {
        let all: Vec<i64> = numbers.collect();
        for some in all.chunks(500) {
            let (mut wide, mut narrow) = (Vec::new(), Vec::new());
            for n in some {
                let (id, lane, key) = (self.id(*n).0, n % 5, format!("k{}", n % 5));
                let parts: Parts = message(*n, &key, 0, *n);
                let identity = self.inbox.key_of(&parts).unwrap();
                let payload = bytes::<DB>(MessageView::payload(&parts).unwrap());
                let mut headers = vec![0, 0, 0, 2, b'i', b'd'];
                let value = n.to_string();
                headers.extend((value.len() as u32).to_be_bytes());
                headers.extend(value.as_bytes());
                wide.push(format!(
                    "({id}, {lane}, {n}, {n}, {}, NULL, {}, 0, 1, 0, 0, {}, {}, 'orders', {}, {}, {payload})",
                    1_700_000_000_000 + n,
                    self.number,
                    bytes::<DB>(identity.as_bytes()),
                    bytes::<DB>(&[7; 16]),
                    bytes::<DB>(key.as_bytes()),
                    bytes::<DB>(&headers),
                ));
                narrow.push(format!("({id}, {lane}, 0, 0, {}, 1, 0, 0, 0, 0)", self.number));
            }
            self.run(&format!(
                "INSERT INTO @ (id, lane, log_offset, accepted, stamp, not_before, inbox, part, generation, priority, form, message_key, \
                 fingerprint, topic, record_key, headers, payload) VALUES {}",
                wide.join(", ")
            ))
            .await;
            if open {
                self.run(&format!(
                    "INSERT INTO @_open (id, lane, turn, run, inbox, generation, attempts, lot, priority, alone) VALUES {}",
                    narrow.join(", ")
                ))
                .await;
            }
        }
    }

    fn ids(&self, numbers: &[i64]) -> String {
        numbers.iter().map(|n| self.id(*n).0.to_string()).collect::<Vec<_>>().join(", ")
    }

    /// Ids, generations and attempts of open messages.
    async fn standing(&mut self, numbers: &[i64]) -> Vec<(i64, u64, u64)> {
        let among = self.ids(numbers);
        let mut columns = Vec::new();
        for column in ["id", "generation", "attempts"] {
            let big = big::<DB>();
            let text =
                self.names(&format!("SELECT CAST({column} AS {big}) FROM @_open WHERE id IN ({among}) ORDER BY id"));
            columns.push(DB::numbers(&mut self.conn, &text).await.unwrap());
        }
        let [ids, generations, attempts] = columns.try_into().unwrap();
        assert_eq!(ids.len(), numbers.len());
        let rest = generations.into_iter().zip(attempts);
        ids.into_iter().zip(rest).map(|(id, (generation, attempt))| (id, generation as u64, attempt as u64)).collect()
    }

    /// A run takes messages, for so many milliseconds.
    pub async fn take(&mut self, numbers: &[i64], lease: i64) -> i64 {
        self.runs += 1;
        let (run, ids, inbox) = (self.runs, self.ids(numbers), self.number);
        let changed = self
            .run(&format!(
                "UPDATE @_open SET run = {run}, attempts = attempts + 1 WHERE run = 0 AND lot = 0 AND id IN ({ids})"
            ))
            .await;
        assert_eq!(changed, numbers.len() as u64);
        let taken: Vec<(i64, u64, u64, u64)> = self
            .standing(numbers)
            .await
            .into_iter()
            .map(|(id, generation, attempt)| (id, generation, attempt, 0))
            .collect();
        let list = bytes::<DB>(&packed(&taken));
        let (low, high) =
            (taken.iter().map(|entry| entry.0).min().unwrap(), taken.iter().map(|entry| entry.0).max().unwrap());
        self.run(&format!(
            "INSERT INTO @_runs (run, began, lease, ended, low, high, inbox, messages, level, owner, taken, done) \
             SELECT {run}, {now}, {now} + {lease}, NULL, {low}, {high}, {inbox}, {}, 2, 'worker-1', {list}, NULL",
            numbers.len(),
            now = clock::<DB>(),
        ))
        .await;
        run
    }

    /// A run ends, so many milliseconds ago: how each of its messages ended. What failed is due at once.
    pub async fn end(&mut self, run: i64, ends: &[(i64, Done)], ago: i64) {
        let numbers: Vec<i64> = ends.iter().map(|(n, _)| *n).collect();
        let standing = self.standing(&numbers).await;
        let mut done = Vec::new();
        let mut gone = Vec::new();
        for (n, end) in ends {
            let id = self.id(*n).0;
            let (_, generation, attempt) = *standing.iter().find(|standing| standing.0 == id).unwrap();
            done.push((id, generation, attempt, *end as u64));
            match end {
                Done::Succeeded | Done::Late => gone.push(id.to_string()),
                Done::Released => {
                    let text = "UPDATE @_open SET run = 0, attempts = attempts - 1";
                    self.run(&format!("{text} WHERE id = {id} AND run = {run}")).await;
                }
                Done::Failed => {
                    let said = "the carrier does not answer";
                    self.failure(*n, generation as i64, attempt as i64, run, Class::Retryable, said).await;
                    self.run(&format!("UPDATE @_open SET run = 0 WHERE id = {id} AND run = {run}")).await;
                }
            }
        }
        if !gone.is_empty() {
            let text = format!("DELETE FROM @_open WHERE run = {run} AND id IN ({})", gone.join(", "));
            assert_eq!(self.run(&text).await, gone.len() as u64);
        }
        let list = bytes::<DB>(&packed(&done));
        let now = clock::<DB>();
        self.run(&format!("UPDATE @_runs SET ended = {now} - {ago}, done = {list} WHERE run = {run}")).await;
    }

    async fn failure(&mut self, n: i64, generation: i64, attempt: i64, run: i64, class: Class, text: &str) {
        let (id, inbox) = (self.id(n).0, self.number);
        self.run(&format!(
            "INSERT INTO @_attempts (id, run, began, ended, inbox, generation, attempt, class, owner, text) \
             VALUES ({id}, {run}, {}, {}, {inbox}, {generation}, {attempt}, {}, 'worker-1', '{text}')",
            2 * run,
            2 * run + 1,
            class.code(),
        ))
        .await;
    }

    /// A message has one attempt, that failed like this, and waits until then.
    pub async fn fail(&mut self, n: i64, class: Class, due: i64) {
        let (id, generation) = (self.id(n).0, self.generation(n).await);
        self.runs += 1;
        self.failure(n, generation, 1, self.runs, class, "the carrier does not answer").await;
        self.run(&format!("UPDATE @_open SET lot = 1, turn = {due}, attempts = 1 WHERE id = {id}")).await;
    }

    /// A message died at that time, of its only attempt.
    pub async fn die(&mut self, n: i64, at: i64) {
        self.fail(n, Class::Fatal, 0).await;
        let id = self.id(n).0;
        self.run(&format!("UPDATE @_open SET lot = 2, turn = {at} WHERE id = {id}")).await;
    }

    /// A message succeeded, in a run that ended so many milliseconds ago.
    pub async fn succeed(&mut self, numbers: &[i64], ago: i64) -> i64 {
        let run = self.take(numbers, 60_000).await;
        let ends: Vec<(i64, Done)> = numbers.iter().map(|n| (*n, Done::Succeeded)).collect();
        self.end(run, &ends, ago).await;
        run
    }

    pub async fn generation(&mut self, n: i64) -> i64 {
        let id = self.id(n).0;
        self.count(&format!("SELECT generation FROM @ WHERE id = {id}")).await
    }

    /// Everything that may move, as one number for each table.
    pub async fn picture(&mut self) -> Vec<i64> {
        let mut picture = Vec::new();
        for text in [
            "SELECT COUNT(*) FROM @ ",
            "SELECT COALESCE(SUM(generation * 31 + form), 0) FROM @ ",
            "SELECT COALESCE(SUM(length(payload)), 0) FROM @ ",
            "SELECT COALESCE(SUM(lot * 100000 + attempts * 1000 + generation * 10 + run), 0) FROM @_open ",
            "SELECT COALESCE(SUM(turn), 0) FROM @_open ",
            "SELECT COUNT(*) FROM @_attempts ",
            "SELECT COUNT(*) FROM @_edits ",
            "SELECT COUNT(*) FROM @_acts ",
        ] {
            picture.push(self.count(text).await);
        }
        picture
    }

    pub async fn acts(&self) -> usize {
        self.inbox.acts().await.unwrap().len()
    }
}

/// The type of a large number.
pub fn big<DB: Base>() -> &'static str {
    if DB::KIND == "mysql" { "SIGNED" } else { "BIGINT" }
}
