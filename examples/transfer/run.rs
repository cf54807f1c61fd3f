//! The parent's story: what happens to the service when, and what came of it.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::args::Args;
use crate::bank::Bank;
use crate::broker::Kafka;
use crate::children::Member;
use crate::judge::{Verdict, judge, undone};
use crate::money::{ACCOUNTS, OPENING, PARTITIONS};
use crate::play::{self, Still};
use crate::producer::{Produced, Traffic};
use crate::random::Random;
use crate::service::COMMAND;

/// How long the service may take to do something, and to finish at the end.
const PATIENCE: Duration = Duration::from_secs(90);
const TICK: Duration = Duration::from_millis(10);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Event {
    Kill,
    Pause,
}

pub struct Run {
    args: Args,
    kafka: Arc<Kafka>,
    bank: Bank,
    url: String,
    random: Random,
    folder: tempfile::TempDir,
    members: Vec<Member>,
    /// Where each one noted what it began.
    traces: BTreeMap<i64, PathBuf>,
    killed: Vec<i64>,
    pauses_begun: u64,
    paused: u64,
    started: Instant,
    told: Instant,
}

impl Run {
    /// Whatever the user may have given wrongly shows here.
    pub async fn prepare(args: Args) -> Result<Self, String> {
        let folder = play::folder("hapax-transfer-")?;
        let own = || format!("sqlite:{}", folder.path().join("bank.db").display());
        let url = args.database.clone().unwrap_or_else(own);
        // Before the broker is touched: a database that is away must not cost a topic.
        let bank = Bank::open(&url, play::run_number()).await?;
        let kafka = Arc::new(Kafka::start(args.brokers.as_deref(), "hapax-transfer", PARTITIONS).await?);
        println!(
            "broker: {}; database: {}{}; seed {}; {}",
            kafka.what(),
            bank.database.name(),
            if args.database.is_none() { " in a temporary folder" } else { "" },
            args.seed,
            if args.dedup { "hapax: effect and memory in one transaction (L2)" } else { "no hapax: --dedup off" }
        );
        let random = Random::new(args.seed ^ 0x5eed);
        let now = Instant::now();
        Ok(Self {
            args,
            kafka,
            bank,
            url,
            random,
            folder,
            members: Vec::new(),
            traces: BTreeMap::new(),
            killed: Vec::new(),
            pauses_begun: 0,
            paused: 0,
            started: now,
            told: now,
        })
    }

    /// Runs to the last line. Whether it is an OK.
    pub async fn go(mut self) -> Result<bool, String> {
        let before = self.bank.balances().await.map_err(|e| e.to_string())?.values().sum();
        self.say(&format!("{ACCOUNTS} accounts with {} each", money(OPENING)));
        self.started = Instant::now();
        let traffic = Traffic::start(Arc::clone(&self.kafka), &self.args);
        let ran = self.run(&traffic).await;
        let ran = match ran {
            Ok(()) => self.drain(traffic).await,
            Err(wrong) => Err(wrong),
        };
        let good = match &ran {
            Ok(produced) => self.verdict(produced, before).await?,
            Err(_) => false,
        };
        self.kafka.clean_up().await;
        if self.args.database.is_some() {
            self.bank.clean_up().await;
        }
        if let Err(wrong) = ran {
            self.members.clear();
            self.folder.disable_cleanup(true);
            return Err(format!("{wrong}; logs are in {}", self.folder.path().display()));
        }
        Ok(good)
    }

    // ---- what happens ----

    async fn run(&mut self, traffic: &Traffic) -> Result<(), String> {
        self.allow(traffic);
        self.start("a")?;
        for (at, event) in self.plan() {
            // Kills that find nobody at work would show nothing: it waits for its moment, and until the service has done something.
            self.work_is_done(self.newest(), at).await?;
            tokio::time::sleep(self.random.millis(0, 200)).await;
            match event {
                Event::Kill => self.kill()?,
                Event::Pause => self.pause(traffic).await?,
            }
            self.allow(traffic);
        }
        Ok(())
    }

    /// Random moments, in order.
    fn plan(&mut self) -> Vec<(Duration, Event)> {
        let (kills, pauses) = (self.args.kills, self.args.pauses);
        let mut events: Vec<Event> = (0..kills).map(|_| Event::Kill).chain((0..pauses).map(|_| Event::Pause)).collect();
        self.random.shuffle(&mut events);
        let length = u64::try_from(self.args.length.as_millis()).unwrap_or(u64::MAX);
        let mut moments: Vec<_> = events.iter().map(|_| self.random.millis(length / 50, length * 48 / 50)).collect();
        moments.sort();
        moments.into_iter().zip(events).collect()
    }

    /// Some of the transfers are held back, so that there is something to do behind each event, however late it comes.
    fn allow(&self, traffic: &Traffic) {
        let (done, all) =
            (self.killed.len() as u64 + self.pauses_begun + self.paused, self.args.kills + self.args.pauses * 2);
        let held_back = self.args.transfers / 10;
        traffic.allow(self.args.transfers - held_back + held_back * (done + 1) / (all + 1));
    }

    fn newest(&self) -> i64 {
        self.members.last().map_or(0, |member| member.number)
    }

    /// Waits until this moment of the run, and until that process has committed something.
    async fn work_is_done(&mut self, member: i64, at: Duration) -> Result<(), String> {
        let since = Instant::now();
        while self.started.elapsed() < at || self.applied(Some(member)).await? == 0 {
            self.look().await?;
            if self.started.elapsed() >= at && since.elapsed() > PATIENCE + at {
                let words = self.members.last().map(Member::last_words).unwrap_or_default();
                return Err(format!("the service does nothing for {PATIENCE:?}: {words}"));
            }
        }
        Ok(())
    }

    /// Passes a little time, and watches meanwhile.
    async fn look(&mut self) -> Result<(), String> {
        tokio::time::sleep(TICK).await;
        if let Some(wrong) = self.members.iter_mut().find_map(Member::ended) {
            return Err(wrong);
        }
        if self.told.elapsed() > Duration::from_secs(2) {
            self.told = Instant::now();
            let applied = self.applied(None).await?;
            self.say(&format!("{applied} transfers applied, {} kills, {} pauses", self.killed.len(), self.paused));
        }
        Ok(())
    }

    async fn applied(&self, member: Option<i64>) -> Result<u64, String> {
        self.bank.applied(member).await.map_err(|e| format!("the database does not answer: {e}"))
    }

    fn start(&mut self, name: &'static str) -> Result<(), String> {
        let number = self.traces.len() as i64 + 1;
        let mut flags = vec![
            ("database", self.url.clone()),
            ("run", self.bank.run.to_string()),
            ("topic", self.kafka.topic.clone()),
            ("on-reset", if self.kafka.is_mock() { "warn" } else { "refuse" }.to_owned()),
            ("dedup", if self.args.dedup { "on" } else { "off" }.to_owned()),
            ("handler", if self.args.batches { "batch" } else { "each" }.to_owned()),
            ("work-ms", self.args.work.as_millis().to_string()),
        ];
        flags.push(("kafka", self.kafka.member(name)));
        let trace = self.folder.path().join(format!("service-{number}.begun"));
        flags.push(("trace", trace.display().to_string()));
        let member = Member::start(COMMAND, number, name, self.folder.path(), &flags)?;
        self.traces.insert(number, trace);
        self.members.push(member);
        Ok(())
    }

    /// Kills one; another one takes its place.
    fn kill(&mut self) -> Result<(), String> {
        let index = self.random.index(self.members.len());
        let mut member = self.members.remove(index);
        member.kill();
        self.killed.push(member.number);
        // Behind a pause there are two of them.
        if self.members.is_empty() { self.start(member.name) } else { Ok(()) }
    }

    /// Stops one with messages in hand for longer than the broker waits for it, until another one has done some of its work.
    async fn pause(&mut self, traffic: &Traffic) -> Result<(), String> {
        let failed = |e: sqlx::Error| format!("the database does not answer: {e}");
        let index = self.random.index(self.members.len());
        let (stopped, name) = (self.members[index].number, self.members[index].name);
        let held = self.bank.nobody_writes().await.map_err(failed)?;
        let was_outside = held.is_some();
        self.members[index].signal("STOP");
        self.bank.let_write(held).await.map_err(failed)?;
        // Behind an earlier pause there are two of them already.
        if self.members.len() == 1 {
            self.start(if name == "a" { "b" } else { "a" })?;
        }
        self.say(&format!("process {stopped} is stopped; process {} takes its place", self.newest()));
        let other = self.members.iter().find(|member| member.number != stopped).map_or(0, |member| member.number);
        let before = self.applied(Some(other)).await?;
        self.pauses_begun += 1;
        self.allow(traffic);
        let (since, length) = (Instant::now(), self.kafka.session() * 2 + self.random.millis(500, 1_500));
        // Where it was stopped inside of a transaction, its locks keep the other one out until it goes on.
        let longest = if was_outside { length + PATIENCE } else { length * 2 };
        while since.elapsed() < length || self.applied(Some(other)).await? == before {
            self.look().await?;
            if since.elapsed() > longest && was_outside {
                return Err(format!("process {other} does nothing in the place of one that is stopped"));
            }
            if since.elapsed() > longest {
                break;
            }
        }
        if let Some(member) = self.members.iter().find(|member| member.number == stopped) {
            member.signal("CONT");
        }
        self.paused += 1;
        self.say(&format!("process {stopped} goes on, with what it had in hand"));
        Ok(())
    }

    // ---- the end ----

    /// Waits until everything is committed, and tells the service to end.
    async fn drain(&mut self, traffic: Traffic) -> Result<Produced, String> {
        let produced = traffic.finish().await?;
        self.say(&format!(
            "{} transfers were produced, and {} of them again; nothing more happens to the service",
            produced.transfers.len(),
            produced.copies
        ));
        let mut still = Still::new();
        loop {
            let lag = self.kafka.lag().await;
            if lag.is_some_and(|lag| lag.behind == 0) {
                break;
            }
            if still.is_so_for(lag, PATIENCE) {
                let words: Vec<String> = self.members.iter().map(Member::last_words).collect();
                return Err(format!("nothing was committed for {PATIENCE:?}, {lag:?}: {}", words.join(" / ")));
            }
            for _ in 0..20 {
                self.look().await?;
            }
        }
        for member in self.members.drain(..) {
            member.end().await?;
        }
        Ok(produced)
    }

    async fn verdict(&self, produced: &Produced, before: i64) -> Result<bool, String> {
        let failed = |e: sqlx::Error| format!("the ledger cannot be read: {e}");
        let ledger = self.bank.ledger().await.map_err(failed)?;
        let verdict = judge(&produced.transfers, &ledger, &self.bank.balances().await.map_err(failed)?);
        let begun = self.traces.iter().map(|(member, trace)| (*member, begun_in(trace))).collect();
        let (open, undone) = undone(&begun, &ledger, &self.killed);
        self.say(&format!(
            "{open} of {} kills found a transaction open; {undone} times a transfer was undone with its transaction",
            self.killed.len()
        ));
        let Verdict { lost, doubled, redelivered, strange, wrong_balances, total } = verdict;
        if strange + wrong_balances > 0 {
            self.say(&format!("{strange} rows of the ledger and {wrong_balances} balances cannot be explained"));
        }
        if doubled > 0 {
            self.say(&format!(
                "{doubled} times a transfer was applied again: {} times because it was produced again, {redelivered} times because it was \
                 delivered again{}",
                doubled - redelivered,
                if self.args.dedup { "" } else { ". That is what --dedup off means" }
            ));
        } else if !self.args.dedup {
            self.say("nothing was doubled without hapax: this run shows nothing");
        }
        let happened = self.killed.len() as u64 == self.args.kills && self.paused == self.args.pauses;
        let good = verdict.is_good(before) && happened && self.args.dedup;
        println!(
            "{} transfers={} kills={} pauses={} lost={lost} doubled={doubled} total_before={} total_after={}",
            if good { "OK" } else { "FAILED" },
            produced.transfers.len(),
            self.killed.len(),
            self.paused,
            money(before),
            money(total)
        );
        Ok(good)
    }

    fn say(&self, what: &str) {
        println!("{:5.1} s  {what}", self.started.elapsed().as_secs_f32());
    }
}

/// Transfers whose accounts a process had changed, in a transaction that may or may not have been committed.
fn begun_in(trace: &Path) -> Vec<String> {
    let text = fs::read_to_string(trace).unwrap_or_default();
    // A kill may have cut the last line short.
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    whole.lines().map(str::to_owned).collect()
}

fn money(cents: i64) -> String {
    format!("{}.{:02}", cents / 100, cents.unsigned_abs() % 100)
}
