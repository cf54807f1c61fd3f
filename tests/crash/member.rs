//! A member: handles the messages of one partition from the committed offset on, and is killed where it was told to be.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use hapax::identity::{Key, Scope, header};
use hapax::message::Parts;
use hapax::record::Settle;
use hapax::store::{Ask, Batch, DedupStore};
use hapax::{Claim, Once};

use crate::support::store::{Looks, Watched};
use crate::table::{MESSAGES, Point, TARGET, Way};

/// The variable that holds what a member is to do.
pub const ORDER: &str = "HAPAX_CRASH_MEMBER";

struct Order {
    url: String,
    group: String,
    lease: Duration,
    way: Way,
    dir: PathBuf,
    name: String,
    killed_at: Option<Point>,
    stands_by: bool,
}

impl Order {
    fn read(text: &str) -> Self {
        let mut lines = text.split('\n');
        let mut next = || lines.next().unwrap().to_owned();
        Self {
            url: next(),
            group: next(),
            lease: Duration::from_millis(next().parse().unwrap()),
            way: if next() == "Loop" { Way::Loop } else { Way::Batch },
            dir: next().into(),
            name: next(),
            killed_at: match next().as_str() {
                "" => None,
                "BeforeClaim" => Some(Point::BeforeClaim),
                "AfterClaim" => Some(Point::AfterClaim),
                "AfterEffect" => Some(Point::AfterEffect),
                "AfterSettle" => Some(Point::AfterSettle),
                other => panic!("no such point: {other}"),
            },
            stands_by: next() == "true",
        }
    }
}

/// Ends this process as the kernel would: no destructor runs, nothing is said.
fn die() -> ! {
    let _ = std::process::Command::new("sh").args(["-c", &format!("kill -9 {}", std::process::id())]).status();
    loop {
        std::thread::park();
    }
}

pub fn run(order: &str) {
    let order = Order::read(order);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(live(order));
}

fn message(at: usize) -> Parts {
    Parts::new("t").at(0, at as i64).payload(format!("payload {at}")).header("id", format!("m{at}"))
}

async fn live(order: Order) {
    let scope = Scope::new(&*order.group, "handler").unwrap();
    let identity = {
        use hapax::identity::Identify;
        header("id").identity(&message(TARGET)).unwrap()
    };
    let target = scope.key(&identity, "t");
    let store = Watched::new(connect(&order.url).await, Killing { at: order.killed_at, target });
    let once = Once::builder(store)
        .in_scope(scope)
        .identify(header("id"))
        .lease(order.lease)
        .accept_unsafe_settings()
        .build()
        .await
        .unwrap();
    let file = |name: &str| order.dir.join(name);
    if order.stands_by {
        std::fs::write(file(&format!("{}.ready", order.name)), "ready").unwrap();
        while !file(&format!("{}.go", order.name)).exists() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
    let from: usize = std::fs::read_to_string(file("committed")).map_or(0, |offset| offset.parse().unwrap());
    let effect = |at: usize| {
        let mut effects = std::fs::OpenOptions::new().append(true).create(true).open(file("effects")).unwrap();
        effects.write_all(format!("m{at}\n").as_bytes()).unwrap();
        if order.killed_at == Some(Point::AfterEffect) && at == TARGET {
            die();
        }
    };
    match order.way {
        Way::Loop => {
            for at in from..MESSAGES {
                let message = message(at);
                let done = once.handle(&message, async |_| {
                    effect(at);
                    Ok::<_, String>(())
                });
                assert!(done.await.unwrap().may_commit());
                commit(&order.dir, at + 1);
            }
        }
        Way::Batch => {
            let messages: Vec<Parts> = (from..MESSAGES).map(message).collect();
            let effect = &effect;
            let handled = once.handle_batch(&messages, |message: &Parts, _: Claim| async move {
                use hapax::message::MessageView;
                effect(message.offset() as usize);
                Ok::<_, String>(())
            });
            assert!(handled.await.all_finished());
            commit(&order.dir, MESSAGES);
        }
    }
    assert!(order.killed_at.is_none(), "it was not killed");
    let counts = once.counts();
    let report = format!(
        "took_over={}\nwaited={}\nduplicates={}\nhandled={}\n",
        counts.took_over, counts.waited, counts.duplicates, counts.handled
    );
    std::fs::write(file(&format!("{}.report", order.name)), report).unwrap();
}

/// Replaces the committed offset at once, as a broker does.
fn commit(dir: &Path, offset: usize) {
    let next = dir.join("committed.next");
    std::fs::write(&next, offset.to_string()).unwrap();
    std::fs::rename(next, dir.join("committed")).unwrap();
}

async fn connect(url: &str) -> Box<dyn DedupStore> {
    match url.split_once(':').unwrap().0 {
        #[cfg(feature = "sqlite")]
        "sqlite" => Box::new(hapax::store::SqliteStore::connect(url).await.unwrap()),
        #[cfg(feature = "postgres")]
        "postgres" | "postgresql" => Box::new(hapax::store::PostgresStore::connect(url).await.unwrap()),
        #[cfg(feature = "mysql")]
        "mysql" => Box::new(hapax::store::MysqlStore::connect(url).await.unwrap()),
        #[cfg(feature = "redis")]
        "redis" => Box::new(hapax::store::RedisStore::connect(url).await.unwrap()),
        other => panic!("no store for {other}"),
    }
}

/// Where among a store's calls the process is killed.
struct Killing {
    at: Option<Point>,
    target: Key,
}

impl Killing {
    fn pass(&self, point: Point, mut keys: impl Iterator<Item = Key>) {
        if self.at == Some(point) && keys.any(|key| key == self.target) {
            die();
        }
    }
}

impl Looks for Killing {
    fn claiming(&self, asks: &Batch<Ask>) {
        self.pass(Point::BeforeClaim, asks.keys());
    }

    fn claimed(&self, asks: &Batch<Ask>) {
        self.pass(Point::AfterClaim, asks.keys());
    }

    fn settled(&self, settles: &Batch<Settle>) {
        self.pass(Point::AfterSettle, settles.keys());
    }
}
