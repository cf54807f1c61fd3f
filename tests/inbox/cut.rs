//! Connections that break at every single statement of taking, ending, sweeping and of an operator's call: with the statement, or with its reply.
//! What is asked then is judged by rows that are read on another way.

use std::time::Duration;

use hapax::inbox::bare::{Ends, Held, Wrote};
use hapax::inbox::rules::Class;
use hapax::inbox::{By, MessageId, Requeued};
use hapax::{Inbox, Retry};

use crate::base::{Base, Site, everywhere_served};
use crate::support::{PATIENCE, Relay, eventually};
use crate::world::{World, is_commit, message};

const LONG: Duration = Duration::from_secs(3_600);
/// More statements than any call needs.
const STATEMENTS: usize = 60;

/// An inbox that is reached in two ways, one of them through a relay.
struct Ground<DB: Base> {
    world: World<DB>,
    inbox: Inbox<DB>,
    relay: Relay,
    relayed: Inbox<DB>,
    locker: tokio::sync::Mutex<DB::Connection>,
}

impl<DB: Base> Ground<DB> {
    async fn new(messages: i64) -> Self {
        let world = World::<DB>::new().await;
        let inbox = world.inbox().await;
        let messages: Vec<_> = (0..messages).map(|id| message(id, &format!("k{}", id % 3), 0, id)).collect();
        assert!(inbox.accept_batch(&messages).await.outcomes.iter().all(Result::is_ok));
        let relay = Relay::start(&world.site.url);
        let pool = DB::pool(&Site::at(relay.url(&world.site.url)), 3).await;
        let relayed = world.builder_over(&pool).build().await.unwrap();
        let locker = tokio::sync::Mutex::new(world.session().await);
        Self { world, inbox, relay, relayed, locker }
    }

    /// Cuts what is sent next but `step`, before it reaches the server; or the reply to the next commit but `step`.
    fn trap(&self, step: usize, commits: bool) {
        let mut seen = 0;
        let mut is = move || {
            seen += 1;
            seen == step + 1
        };
        match commits {
            // What is lost in the middle of a transaction rolls it back either way.
            true => self.relay.cut_reply_to(move |bytes| is_commit(bytes) && is()),
            false => self.relay.cut_request(move |_| is()),
        }
    }

    /// Sessions that were cut off are gone, and so are their locks.
    async fn unlocked(&self) {
        let mut conn = self.locker.lock().await;
        let probe = |end| format!("SELECT 1 FROM {} FOR UPDATE NOWAIT", self.world.table(end));
        let probe = ["_handlers", "_runs", "_open", ""].map(probe).join("; ");
        eventually(PATIENCE, "nobody holds a lock", async || DB::run(&mut conn, &probe).await.is_ok()).await;
    }

    async fn count(&self, end: &str, condition: &str) -> i64 {
        self.world.count(end, condition).await
    }

    /// Cuts at each statement of a call in turn, and at the reply to each commit, until the call has none that was not cut. Says how many there
    /// were of both.
    async fn at_each(&self, mut case: impl AsyncFnMut(&str)) -> [usize; 2] {
        let mut steps = [0, 0];
        for commits in [false, true] {
            let what = if commits { "the reply to commit" } else { "statement" };
            for step in 0.. {
                assert!(step < STATEMENTS, "it never comes to an end");
                let before = self.relay.caught();
                self.trap(step, commits);
                case(&format!("{}: {what} {step} was cut", DB::KIND)).await;
                if self.relay.caught() == before {
                    break;
                }
                steps[usize::from(commits)] += 1;
            }
            self.relay.restore();
        }
        steps
    }
}

fn ends() -> [(usize, Ends); 3] {
    [(0, Ends::Succeeded), (1, Ends::Failed(Class::Retryable, LONG)), (2, Ends::Released)]
}

everywhere_served! {
    async fn f07_taking_burns_no_attempt_that_nobody_has<DB>() {
        let ground = Ground::<DB>::new(6).await;
        for by_key in [false, true] {
            let mut taken = 0;
            let steps = ground
                .at_each(async |what| {
                    let took = ground.relayed.bare_take(4, by_key, true, LONG).await;
                    ground.unlocked().await;
                    let run = took.ok().flatten();
                    let (number, messages) = run.as_ref().map_or((-1, 0), |run| (run.number(), run.taken().count()));
                    // What is in hands is what was answered, and no other attempt counts.
                    let held = ground.count("_open", &format!("run = {number} AND attempts = 1")).await;
                    assert_eq!(held, i64::try_from(messages).unwrap(), "{what}");
                    assert_eq!(ground.count("_open", &format!("run <> {number} AND (run <> 0 OR attempts <> 0)")).await, 0, "{what}");
                    assert_eq!(ground.count("_runs", &format!("run <> {number} AND ended IS NULL")).await, 0, "{what}");
                    if let Some(run) = run {
                        taken += 1;
                        let back: Vec<(usize, Ends)> = (0..messages).map(|at| (at, Ends::Released)).collect();
                        assert_eq!(ground.inbox.bare_conclude(&run, &back, true).await.unwrap(), vec![Wrote::Written; messages]);
                    }
                })
                .await;
            // A transaction: begin, look, write, commit. A commit whose reply is lost was one all the same, and the call that nothing cut.
            assert!(steps[0] >= 4 && steps[1] == 1 && taken >= 3, "{steps:?} steps, {taken} runs");
        }
    }
}

everywhere_served! {
    async fn f07_a_transaction_that_ends_a_run_does_so_once<DB>() {
        let ground = Ground::<DB>::new(200).await;
        let (mut ended, mut not) = (0, 0);
        let steps = ground
            .at_each(async |what| {
                let run = ground.inbox.bare_take(3, false, true, LONG).await.unwrap().unwrap();
                let said = ground.relayed.bare_finish(&run, &ends()).await;
                ground.unlocked().await;
                let number = run.number();
                let stands = ground.count("_runs", &format!("run = {number} AND ended IS NULL AND done IS NULL")).await == 1;
                assert!(!(stands && said == Ok(true)), "{what}: it was told to be committed");
                let held = ground.count("_open", &format!("run = {number} AND lot = 0 AND attempts = 1")).await;
                let failed = ground.count("_attempts", &format!("run = {number}")).await;
                assert_eq!((held, failed), if stands { (3, 0) } else { (0, 1) }, "{what}: half of it was done");
                (ended, not) = if stands { (ended, not + 1) } else { (ended + 1, not) };
                // Once more, on another way: done where it was not, and not done twice.
                assert_eq!(ground.inbox.bare_finish(&run, &ends()).await, Ok(stands), "{what}");
                assert_eq!(ground.count("_attempts", &format!("run = {number}")).await, 1, "{what}");
            })
            .await;
        assert!(steps[0] >= 4 && steps[1] == 1 && ended >= 3 && not >= 4, "{steps:?} steps: {ended} ended, {not} did not");
    }
}

everywhere_served! {
    async fn f07_ends_of_effects_elsewhere_are_written_once<DB>() {
        let ground = Ground::<DB>::new(200).await;
        let steps = ground
            .at_each(async |what| {
                let run = ground.inbox.bare_take(3, false, false, LONG).await.unwrap().unwrap();
                // It is looked up what became of it, and said as if nothing had happened.
                assert_eq!(ground.relayed.bare_conclude(&run, &ends(), true).await, Ok(vec![Wrote::Written; 3]), "{what}");
                let number = run.number();
                let [succeeded, failed, released] = run.taken().map(|(id, ..)| id).collect::<Vec<_>>().try_into().unwrap();
                assert_eq!(ground.count("_open", &format!("id = {succeeded}")).await, 0, "{what}");
                assert_eq!(ground.count("_open", &format!("id = {failed} AND lot = 1 AND attempts = 1 AND run = 0")).await, 1, "{what}");
                assert_eq!(ground.count("_open", &format!("id = {released} AND lot = 0 AND attempts = 0 AND run = 0")).await, 1, "{what}");
                assert_eq!(ground.count("_attempts", &format!("run = {number}")).await, 1, "{what}");
                assert_eq!(ground.count("_runs", &format!("run = {number} AND ended IS NOT NULL")).await, 1, "{what}");
                ground.unlocked().await;
            })
            .await;
        assert!(steps[0] >= 4 && steps[1] >= 1, "{steps:?} steps");
    }
}

everywhere_served! {
    async fn f07_what_is_lost_is_lost_once<DB>() {
        let ground = Ground::<DB>::new(200).await;
        let retry = Retry::fixed(LONG);
        let steps = ground
            .at_each(async |what| {
                let run = ground.inbox.bare_take(3, false, true, LONG).await.unwrap().unwrap();
                let number = run.number();
                let lapse = format!("UPDATE {} SET lease = 1 WHERE run = {number}", ground.world.table("_runs"));
                ground.world.run(&lapse).await;
                let first = ground.relayed.bare_sweep(&retry).await;
                ground.unlocked().await;
                let second = ground.inbox.bare_sweep(&retry).await.unwrap();
                // Whoever heard of it, they were lost, and once.
                assert!(second == (3, 0) || second == (0, 0), "{what}: {second:?}");
                assert!(first.is_err() || first == Ok((3, 0)) && second == (0, 0), "{what}: {first:?} {second:?}");
                assert_eq!(ground.count("_attempts", &format!("run = {number} AND class = 3 AND attempt = 1")).await, 3, "{what}");
                assert_eq!(ground.count("_open", &format!("run = {number}")).await, 0, "{what}");
            })
            .await;
        let lost = ground.count("_attempts", "1 = 1").await;
        assert_eq!(ground.count("_open", "lot = 1 AND alone = 1 AND attempts = 1").await, lost);
        assert!(steps[0] >= 4 && steps[1] >= 1, "{steps:?} steps");
    }
}

everywhere_served! {
    async fn f07_an_operators_call_is_done_once<DB>() {
        let ground = Ground::<DB>::new(1).await;
        let run = ground.inbox.bare_take(1, false, true, LONG).await.unwrap().unwrap();
        let (id, ..) = run.taken().next().unwrap();
        assert_eq!(ground.inbox.bare_finish(&run, &[(0, Ends::Dead(Class::Fatal))]).await, Ok(true));
        let mut generation = 1;
        let steps = ground
            .at_each(async |what| {
                generation += 1;
                let by = By::new("ada", "fixed in 1.4.2");
                let said = ground.relayed.requeue(MessageId(id), by).await;
                assert_eq!(said.unwrap(), Requeued::Requeued { generation }, "{what}");
                assert_eq!(ground.count("", &format!("generation = {generation}")).await, 1, "{what}");
                assert_eq!(ground.count("_acts", "1 = 1").await, i64::from(generation) - 1, "{what}");
                ground.unlocked().await;
                let dead = format!("UPDATE {} SET lot = 2, turn = 7, attempts = 1", ground.world.table("_open"));
                ground.world.run(&dead).await;
            })
            .await;
        assert!(steps[0] >= 4 && steps[1] >= 1, "{steps:?} steps");
    }
}
