//! A primary that dies, and sentinels that name another.

use std::fs;
use std::process::{Child, Command, Stdio};

use hapax::record::{ClaimOutcome, SettleOutcome};
use hapax::store::{Ask, Batch, DedupStore, RedisStore, StoreErrorKind};

use crate::common::{
    acquire, claim, first_token, granted, message, owner, persist, prefixed, settle, success, with_prefix,
};
use crate::support::{PATIENCE, ThrowawayRedis, eventually, net, redis_sentinel, unique};

/// A primary, a replica, and one sentinel that makes up its mind alone and quickly.
struct Group {
    primary: ThrowawayRedis,
    replica: ThrowawayRedis,
    sentinel: Child,
    port: u16,
    _folder: tempfile::TempDir,
}

impl Drop for Group {
    fn drop(&mut self) {
        let _ = self.sentinel.kill();
        let _ = self.sentinel.wait();
    }
}

impl Group {
    async fn start() -> Self {
        let settings = [("appendonly", "yes"), ("replica-announce-ip", "127.0.0.1")];
        let primary = ThrowawayRedis::start(&settings);
        let replica = ThrowawayRedis::start(&settings);
        let followed = replica.command(&["REPLICAOF", "127.0.0.1", &primary.port().to_string()]).unwrap();
        assert_eq!(followed, "+OK");
        eventually(PATIENCE, "the replica is in step", async || {
            replica.command(&["INFO", "replication"]).unwrap().contains("master_link_status:up")
        })
        .await;
        let folder = tempfile::tempdir().unwrap();
        let port = net::free_port();
        let config = folder.path().join("sentinel.conf");
        let text = format!(
            "port {port}\nbind 127.0.0.1\nprotected-mode no\ndir {}\nsentinel monitor prime 127.0.0.1 {} 1\n\
             sentinel down-after-milliseconds prime 1000\nsentinel failover-timeout prime 5000\n",
            folder.path().display(),
            primary.port()
        );
        fs::write(&config, text).unwrap();
        let sentinel = Command::new("redis-server")
            .arg(&config)
            .arg("--sentinel")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let group = Self { primary, replica, sentinel, port, _folder: folder };
        eventually(PATIENCE, "the sentinel knows the replica", async || {
            group
                .sentinel_says(&["INFO", "sentinel"])
                .is_some_and(|info| info.contains("status=ok") && info.contains("slaves=1"))
        })
        .await;
        group
    }

    fn sentinel_says(&self, words: &[&str]) -> Option<String> {
        let client = redis::Client::open(self.url()).ok()?;
        let mut connection = client.get_connection_with_timeout(std::time::Duration::from_secs(5)).ok()?;
        let mut command = redis::cmd(words[0]);
        for word in &words[1..] {
            command.arg(word);
        }
        command.query(&mut connection).ok()
    }

    fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failover_is_followed() {
    let mut group = Group::start().await;
    let prefix = format!("{}:", unique("faults"));
    // A sentinel that is down is passed over.
    let nobody = format!("redis://127.0.0.1:{}", net::free_port());
    let store = with_prefix(&prefix).sentinel([nobody, group.url()], "prime").await.unwrap();
    let terms = owner();
    let asks: Batch<Ask> = (0..200).map(|n| Ask::from(message(n))).collect();
    store.claim(&terms, &asks).await.unwrap();
    for n in 0..100 {
        let settled = settle(&store, &message(n), first_token(&terms), success()).await.unwrap();
        assert_eq!(settled, SettleOutcome::Settled);
    }
    eventually(PATIENCE, "the replica has all of it", async || {
        let position = |server: &ThrowawayRedis, field: &str| {
            let info = server.command(&["INFO", "replication"]).unwrap();
            info.lines().find_map(|line| line.strip_prefix(field)).map(|text| text.trim().to_owned())
        };
        position(&group.primary, "master_repl_offset:") == position(&group.replica, "slave_repl_offset:")
    })
    .await;
    group.primary.kill9();
    // Retryable until the sentinel has promoted the replica; then the same store goes on there.
    let outcome = persist("a claim at the new primary", async || claim(&store, &owner(), &message(1)).await).await;
    assert!(matches!(outcome, ClaimOutcome::Duplicate { .. }), "{outcome:?}");
    assert!(group.replica.command(&["ROLE"]).is_ok());
    assert!(group.replica.command(&["INFO", "replication"]).unwrap().contains("role:master"));
    // What was claimed before is settled there; what is new is claimed there.
    let settled = settle(&store, &message(150), first_token(&terms), success()).await.unwrap();
    assert_eq!(settled, SettleOutcome::Settled);
    acquire(&store, &terms, &message(500)).await;

    // The old primary comes back: as a primary at first, until it is told. The store stays with the new one.
    group.primary.restart();
    eventually(PATIENCE, "the old primary follows", async || {
        group.primary.command(&["INFO", "replication"]).is_ok_and(|info| info.contains("role:slave"))
    })
    .await;
    let outcome = persist("a claim", async || claim(&store, &owner(), &message(500)).await).await;
    assert!(matches!(outcome, ClaimOutcome::InFlight { .. }), "{outcome:?}");
    let again = with_prefix(&prefix).sentinel([group.url()], "prime").await.unwrap();
    assert!(matches!(claim(&again, &owner(), &message(500)).await.unwrap(), ClaimOutcome::InFlight { .. }));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f35_a_primary_that_is_demoted_while_connected_is_left_for_the_new_one() {
    let group = Group::start().await;
    let store = prefixed().sentinel([group.url()], "prime").await.unwrap();
    let terms = owner();
    acquire(&store, &terms, &message(1)).await;
    eventually(PATIENCE, "the sentinel finds the replica good enough, and begins a failover", async || {
        group.sentinel_says(&["SENTINEL", "FAILOVER", "prime"]).is_some()
    })
    .await;
    eventually(PATIENCE, "the old primary is a replica", async || {
        group.primary.command(&["INFO", "replication"]).is_ok_and(|info| info.contains("role:slave"))
            && group.replica.command(&["INFO", "replication"]).is_ok_and(|info| info.contains("role:master"))
    })
    .await;
    let outcome = persist("a claim", async || claim(&store, &terms, &message(2)).await).await;
    assert_eq!(granted(outcome).attempt, 1);
    let report = store.check().await.unwrap();
    assert!(!report.names("role"), "{report:?}");
}

#[tokio::test]
async fn sentinels_that_do_not_know_the_name_say_so() {
    let (urls, master) = redis_sentinel();
    let error = RedisStore::sentinel(&urls, "nobody").await.unwrap_err();
    assert_eq!(error.kind(), StoreErrorKind::Refused, "{error}");
    let error = RedisStore::sentinel(Vec::<String>::new(), &master).await.unwrap_err();
    assert_eq!(error.kind(), StoreErrorKind::Refused, "{error}");
    let nobody = format!("redis://127.0.0.1:{}", net::free_port());
    assert!(RedisStore::sentinel([nobody], &master).await.unwrap_err().is_retryable());
    let store = prefixed().sentinel(&urls, &master).await.unwrap();
    acquire(&store, &owner(), &message(1)).await;
    assert!(!store.check().await.unwrap().names("role"));
}
