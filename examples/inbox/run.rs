//! The parent's story: orders come while nobody works, then workers come, and an operator; and what came of it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use hapax::inbox::{By, Requeued};

use crate::args::Args;
use crate::broker::Kafka;
use crate::children::Member;
use crate::database::on;
use crate::judge::{Standing, Verdict, judge};
use crate::ledger::Ledger;
use crate::operator::{Hand, hand};
use crate::orders::{self, Order, PARTITIONS, Produced};
use crate::play::{self, Still};
use crate::producer;
use crate::random::Random;
use crate::service::{CONSUMER, WORKER};

/// How long nothing may happen.
const PATIENCE: Duration = Duration::from_secs(90);
const TICK: Duration = Duration::from_millis(10);
const TELL: Duration = Duration::from_secs(2);

pub struct Run {
    args: Args,
    kafka: Arc<Kafka>,
    ledger: Ledger,
    inbox: Box<dyn Hand>,
    url: String,
    random: Random,
    folder: tempfile::TempDir,
    members: Vec<Member>,
    started_members: i64,
    kills: u64,
    /// Of the workers: 1 does not know every currency.
    version: u64,
    requeued: u64,
    started: Instant,
    told: Instant,
}

impl Run {
    /// Whatever the user may have given wrongly shows here.
    pub async fn prepare(args: Args) -> Result<Self, String> {
        let folder = play::folder("hapax-inbox-")?;
        let own = || format!("sqlite:{}", folder.path().join("orders.db").display());
        let url = args.database.clone().unwrap_or_else(own);
        // Before the broker is touched: a database that is away must not cost a topic.
        let ledger = Ledger::open(&url, play::run_number()).await?;
        let kafka = Arc::new(Kafka::start(args.brokers.as_deref(), "hapax-inbox", PARTITIONS).await?);
        let inbox = on!(&ledger.database, pool => hand(pool.clone(), &kafka.topic, args.dedup).await);
        let inbox = inbox.map_err(|e| format!("--database: {e}"))?;
        println!(
            "broker: {}; database: {}{}; seed {}; {}",
            kafka.what(),
            ledger.database.name(),
            if args.database.is_none() { " in a temporary folder" } else { "" },
            args.seed,
            if args.dedup { "an order is known by its id" } else { "an order is known by its position: --dedup off" }
        );
        let random = Random::new(args.seed ^ 0x5eed);
        let now = Instant::now();
        Ok(Self {
            args,
            kafka,
            ledger,
            inbox,
            url,
            random,
            folder,
            members: Vec::new(),
            started_members: 0,
            kills: 0,
            version: 1,
            requeued: 0,
            started: now,
            told: now,
        })
    }

    /// Runs to the last line. Whether it is an OK.
    pub async fn go(mut self) -> Result<bool, String> {
        self.started = Instant::now();
        let (produced, orders) = orders::draw(self.args.orders, self.args.failing, self.args.seed);
        let ran = self.story(&produced, orders).await;
        let good = match &ran {
            Ok(()) => self.verdict(&produced).await?,
            Err(_) => false,
        };
        self.members.clear();
        self.kafka.clean_up().await;
        if self.args.database.is_some() {
            self.ledger.clean_up().await;
        }
        if let Err(wrong) = ran {
            self.folder.disable_cleanup(true);
            return Err(format!("{wrong}; logs are in {}", self.folder.path().display()));
        }
        Ok(good)
    }

    async fn story(&mut self, produced: &Produced, orders: Vec<Order>) -> Result<(), String> {
        self.arrive(produced, orders).await?;
        self.work().await?;
        self.operate(produced).await?;
        for member in std::mem::take(&mut self.members) {
            member.end().await?;
        }
        Ok(())
    }

    // ---- Kafka to table ----

    /// Every order is stored, and nobody works.
    async fn arrive(&mut self, produced: &Produced, orders: Vec<Order>) -> Result<(), String> {
        let (all, sent) = (produced.orders.len() as u64, orders.len() as u64);
        self.start(CONSUMER)?;
        let kafka = Arc::clone(&self.kafka);
        let producing = tokio::spawn(async move { producer::produce(&kafka, &orders).await });
        let began = Instant::now();
        if self.args.kills > 0 {
            self.until("orders are stored", |standing, _| standing.accepted >= all / 2).await?;
            self.kill(CONSUMER).await?;
        }
        producing.await.map_err(|e| format!("the orders could not be produced: {e}"))?;
        let expected = if self.args.dedup { all } else { sent };
        self.until("all orders are stored", |standing, _| standing.accepted >= expected).await?;
        let took = began.elapsed().as_secs_f32();
        let mut still = Still::new();
        while let lag = self.kafka.lag().await
            && lag.is_none_or(|lag| lag.behind > 0)
        {
            if still.is_so_for(lag, PATIENCE) {
                return Err(format!("nothing was committed for {PATIENCE:?}, {lag:?}: {}", self.last_words()));
            }
            self.look().await?;
        }
        let (standing, open) = self.standing().await?;
        self.say(&format!(
            "{} orders of {sent} messages are stored, {:.0} a second, and Kafka has nothing left; {open} wait, and nobody works",
            standing.accepted,
            standing.accepted as f32 / took
        ));
        Ok(())
    }

    // ---- table to effect ----

    /// Workers come, and some of them are killed. Until only the dead are left.
    async fn work(&mut self) -> Result<(), String> {
        let began = Instant::now();
        for _ in 0..self.args.workers {
            self.start(WORKER)?;
        }
        let kills = self.args.kills.saturating_sub(1);
        for kill in 1..=kills {
            let due = self.args.orders * kill / (kills + 1);
            self.until("orders are worked", |standing, _| standing.succeeded >= due).await?;
            self.kill(WORKER).await?;
        }
        self.until("all orders are worked", |_, open| open == 0).await?;
        let (standing, _) = self.standing().await?;
        self.say(&format!(
            "{} orders are worked, {:.0} a second; {} dead",
            standing.succeeded,
            standing.succeeded as f32 / began.elapsed().as_secs_f32(),
            standing.dead
        ));
        Ok(())
    }

    // ---- the operator ----

    /// Looks at what is dead, and brings it back to workers of a new version.
    async fn operate(&mut self, produced: &Produced) -> Result<(), String> {
        let failed = |e: crate::service::Failure| format!("the operator could not: {e}");
        let dead = self.inbox.dead().await.map_err(failed)?;
        for one in &dead {
            self.say(&format!("the operator looks at what is dead: {}", one.described));
            for line in &one.history {
                self.say(&format!("    {line}"));
            }
        }
        if !(dead.len() as u64 >= 1 && dead.iter().any(|one| one.described.contains(&produced.poison))) {
            return Err(format!("order {} was to die, and the operator finds {} others", produced.poison, dead.len()));
        }
        self.say("a new version of the workers knows the currency");
        self.version = 2;
        for member in std::mem::take(&mut self.members) {
            if member.command == WORKER { member.end().await? } else { self.members.push(member) }
        }
        for _ in 0..self.args.workers {
            self.start(WORKER)?;
        }
        for one in dead {
            // Asked twice under one request, as a click is: it happens once.
            for _ in 0..2 {
                let by = By::new("ada", "fixed in 1.4.2").request(format!("requeue {} of {}", one.id, self.ledger.run));
                let answer = self.inbox.requeue(one.id, by).await.map_err(failed)?;
                self.say(&format!("the operator requeues message {}: {answer:?}", one.id));
                if answer != (Requeued::Requeued { generation: 2 }) {
                    return Err(format!("message {} was not requeued: {answer:?}", one.id));
                }
            }
            self.requeued += 1;
        }
        self.until("what was requeued is worked", |standing, open| open == 0 && standing.dead == 0).await
    }

    // ---- what goes on meanwhile ----

    fn start(&mut self, command: &'static str) -> Result<(), String> {
        self.started_members += 1;
        let number = self.started_members;
        // Static members: a successor on a real broker has its place at once.
        let name = if command == CONSUMER { "a" } else { "w" };
        let mut flags = vec![
            ("database", self.url.clone()),
            ("topic", self.kafka.topic.clone()),
            ("dedup", if self.args.dedup { "on" } else { "off" }.to_owned()),
        ];
        if command == CONSUMER {
            flags.push(("on-reset", if self.kafka.is_mock() { "warn" } else { "refuse" }.to_owned()));
            flags.push(("kafka", self.kafka.member(name)));
        } else {
            flags.push(("run", self.ledger.run.to_string()));
            flags.push(("version", self.version.to_string()));
        }
        self.members.push(Member::start(command, number, name, self.folder.path(), &flags)?);
        Ok(())
    }

    /// Kills one of them; another one takes its place.
    async fn kill(&mut self, command: &'static str) -> Result<(), String> {
        let those: Vec<usize> = (0..self.members.len()).filter(|at| self.members[*at].command == command).collect();
        let mut member = self.members.remove(self.random.pick(&those));
        member.kill();
        self.kills += 1;
        let (Standing { accepted, succeeded, .. }, open) = self.standing().await?;
        self.say(&format!(
            "{command} {} is killed, with {accepted} stored, {succeeded} done and {open} open; another one takes its place",
            member.number
        ));
        self.start(command)
    }

    /// Waits until the inbox, and what is open of it, is like this. Something has to go on meanwhile.
    async fn until(&mut self, what: &str, is_so: impl Fn(Standing, u64) -> bool) -> Result<(), String> {
        let mut still = Still::new();
        loop {
            let now = self.standing().await?;
            if is_so(now.0, now.1) {
                return Ok(());
            }
            if still.is_so_for(now, PATIENCE) {
                return Err(format!("{what}: nothing happens for {PATIENCE:?}: {now:?}: {}", self.last_words()));
            }
            self.look().await?;
        }
    }

    /// Passes a little time, and watches meanwhile.
    async fn look(&mut self) -> Result<(), String> {
        tokio::time::sleep(TICK).await;
        if let Some(wrong) = self.members.iter_mut().find_map(Member::ended) {
            return Err(wrong);
        }
        if self.told.elapsed() > TELL {
            self.told = Instant::now();
            let (Standing { accepted, succeeded, dead }, open) = self.standing().await?;
            self.say(&format!("{accepted} stored, {succeeded} done, {open} open, {dead} dead"));
        }
        Ok(())
    }

    async fn standing(&self) -> Result<(Standing, u64), String> {
        self.inbox.standing().await.map_err(|e| format!("the inbox does not answer: {e}"))
    }

    fn last_words(&self) -> String {
        self.members.iter().map(Member::last_words).collect::<Vec<_>>().join(" / ")
    }

    // ---- the end ----

    async fn verdict(&self, produced: &Produced) -> Result<bool, String> {
        let failed = |e: sqlx::Error| format!("the ledger cannot be read: {e}");
        let entries = self.ledger.entries().await.map_err(failed)?;
        let (standing, open) = self.standing().await?;
        let verdict = judge(produced, &entries, &self.ledger.spent().await.map_err(failed)?, standing);
        for wrong in &verdict.wrong {
            self.say(wrong);
        }
        let Verdict { succeeded, retried, lost, doubled, out_of_order, .. } = verdict;
        if doubled > 0 && !self.args.dedup {
            self.say("orders that were produced again had their effect again: that is what --dedup off means");
        }
        // A run in which nothing happened shows nothing.
        let stumbling = produced.orders.values().filter(|order| order.stumbles > 0).count() as u64;
        let happened = self.kills == self.args.kills && retried >= stumbling && self.requeued > 0 && open == 0;
        let good = verdict.is_good() && happened && self.args.dedup;
        println!(
            "{} accepted={} succeeded={succeeded} retried={retried} dead={} requeued={} copies={} kills={} lost={lost} doubled={doubled} \
             out_of_order={out_of_order}",
            if good { "OK" } else { "FAILED" },
            standing.accepted,
            standing.dead,
            self.requeued,
            produced.copies,
            self.kills
        );
        Ok(good)
    }

    fn say(&self, what: &str) {
        println!("{:5.1} s  {what}", self.started.elapsed().as_secs_f32());
    }
}
