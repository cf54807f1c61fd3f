//! The table: every case, what it must come to, and the processes that show it.

use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Mutex;
use std::time::Duration;

use crate::member::ORDER;
use crate::support::{self, eventually_blocking};

/// Where a member is killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Point {
    BeforeClaim,
    AfterClaim,
    AfterEffect,
    AfterSettle,
}

/// Who goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Started again after the kill.
    SameMember,
    /// Started before it, and standing by.
    OtherMember,
}

/// How a member handles its messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    Loop,
    Batch,
}

#[derive(Clone, Copy, Debug)]
pub struct Case {
    pub point: Point,
    pub next: Next,
    pub lease_live: bool,
    pub way: Way,
}

impl Case {
    pub fn all(way: Way) -> Vec<Self> {
        let mut all = Vec::new();
        for point in [Point::BeforeClaim, Point::AfterClaim, Point::AfterEffect, Point::AfterSettle] {
            for next in [Next::SameMember, Next::OtherMember] {
                for lease_live in [false, true] {
                    all.push(Self { point, next, lease_live, way });
                }
            }
        }
        all
    }

    /// A lease that surely still runs when the next member comes, or one that is soon over.
    fn lease(&self) -> Duration {
        if self.lease_live { Duration::from_secs(15) } else { Duration::from_secs(1) }
    }
}

/// Messages in the partition; the second is the one at which a member is killed.
pub const MESSAGES: usize = 3;
pub const TARGET: usize = 1;

/// Cases at a time: each is two processes at most.
const AT_ONCE: usize = 4;

/// Runs every case on the store at the URL that `url` gives for a folder.
pub fn run_table(way: Way, url: impl Fn(&Path) -> String + Sync) {
    let cases = Mutex::new(Case::all(way));
    let failures = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(|| {
                loop {
                    let Some(case) = cases.lock().unwrap().pop() else { return };
                    let ended = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| run(&case, &url)));
                    if ended.is_err() {
                        failures.lock().unwrap().push(case);
                    }
                }
            });
        }
    });
    let failures = failures.into_inner().unwrap();
    assert!(failures.is_empty(), "{} of 16 cases failed: {failures:#?}", failures.len());
}

/// A process that is ended with the test.
struct Member(Child);

impl Member {
    fn ended(mut self, what: &str) -> ExitStatus {
        let mut status = None;
        eventually_blocking(Duration::from_secs(180), what, || {
            status = self.0.try_wait().unwrap();
            status.is_some()
        });
        status.unwrap()
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

struct World {
    dir: PathBuf,
    url: String,
    group: String,
    lease: Duration,
    way: Way,
}

impl World {
    fn start(&self, name: &str, killed_at: Option<Point>, stands_by: bool) -> Member {
        let order = [
            self.url.clone(),
            self.group.clone(),
            self.lease.as_millis().to_string(),
            format!("{:?}", self.way),
            self.dir.display().to_string(),
            name.to_owned(),
            killed_at.map(|point| format!("{point:?}")).unwrap_or_default(),
            stands_by.to_string(),
        ];
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "member_process", "--ignored", "--nocapture", "--test-threads=1"])
            .env(ORDER, order.join("\n"))
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        Member(child)
    }

    fn read(&self, name: &str) -> String {
        std::fs::read_to_string(self.dir.join(name)).unwrap_or_default()
    }

    fn effects(&self, message: usize) -> usize {
        self.read("effects").lines().filter(|line| **line == format!("m{message}")).count()
    }

    /// A number that a member reported.
    fn count(&self, member: &str, what: &str) -> u64 {
        let report = self.read(&format!("{member}.report"));
        let line = report.lines().find_map(|line| line.strip_prefix(what)?.strip_prefix('='));
        line.unwrap_or_else(|| panic!("{member} reported no {what}: {report:?}")).parse().unwrap()
    }
}

fn run(case: &Case, url: &(impl Fn(&Path) -> String + Sync)) {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().to_owned();
    let world = World { url: url(&dir), dir, group: support::unique("crash"), lease: case.lease(), way: case.way };

    let standing_by = (case.next == Next::OtherMember).then(|| {
        let member = world.start("next", None, true);
        eventually_blocking(Duration::from_secs(120), "the other member stands by", || {
            !world.read("next.ready").is_empty()
        });
        member
    });
    let killed = world.start("first", Some(case.point), false).ended("the first member is killed");
    assert_eq!(killed.signal(), Some(9), "{case:?}: it was not killed where it should be: {killed:?}");
    if !case.lease_live {
        // Until the store's clock is past the lease. Nothing can be awaited here: nobody is told when a lease runs out.
        std::thread::sleep(world.lease + Duration::from_secs(1));
    }
    let next = match standing_by {
        Some(member) => {
            std::fs::write(world.dir.join("next.go"), "go").unwrap();
            member
        }
        None => world.start("next", None, false),
    };
    let ended = next.ended("the next member has handled everything");
    assert!(ended.success(), "{case:?}: the next member ended with {ended:?}");
    check(case, &world);
}

fn check(case: &Case, world: &World) {
    let effects: Vec<usize> = (0..MESSAGES).map(|message| world.effects(message)).collect();
    assert_eq!(world.read("committed"), MESSAGES.to_string(), "{case:?}: what was committed; effects {effects:?}");

    // Level L1 (and L0): an effect repeats only if the member was killed between effect and settle, and then once.
    let expected = if case.point == Point::AfterEffect { 2 } else { 1 };
    assert_eq!(effects[TARGET], expected, "{case:?}: effects {effects:?}");
    for (message, effects) in effects.iter().enumerate().filter(|(message, _)| *message != TARGET) {
        // A batch is settled together: what ended just before the kill may not have been told.
        let most = if case.way == Way::Batch && message < TARGET && case.point == Point::AfterEffect { 2 } else { 1 };
        assert!((1..=most).contains(effects), "{case:?}: {effects} effects of message {message}");
    }

    let claimed = matches!(case.point, Point::AfterClaim | Point::AfterEffect);
    let (took_over, waited) = (world.count("next", "took_over"), world.count("next", "waited"));
    let duplicates = world.count("next", "duplicates");
    if case.way == Way::Loop {
        // Taking over says that an effect may have happened; only a live lease is waited for.
        assert_eq!(took_over, u64::from(claimed), "{case:?}: claims taken over");
        assert_eq!(waited, u64::from(claimed && case.lease_live), "{case:?}: leases waited for");
        assert_eq!(duplicates, u64::from(case.point == Point::AfterSettle), "{case:?}: redeliveries suppressed");
    } else {
        assert!((took_over > 0) == claimed, "{case:?}: {took_over} claims taken over");
        assert!(waited == 0 || claimed && case.lease_live, "{case:?}: {waited} leases waited for");
    }
}
