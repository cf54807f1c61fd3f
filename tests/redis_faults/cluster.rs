//! A cluster whose nodes die, come back, and hand slots over.

use std::time::Duration;

use hapax::record::{ClaimOutcome, ExtendOutcome, SettleOutcome};
use hapax::store::{Ask, Batch, DedupStore, RedisStore, StoreErrorKind};
use redis::cluster_routing::Slot;

use crate::common::{
    acquire, claim, extend, failure, first_token, granted, message, message_of, owner, persist, plain, prefixed,
    record, settle, success, with_prefix,
};
use crate::support::{PATIENCE, ThrowawayRedis, eventually, net, redis_cluster, unique};

const LAST: u16 = 16_383;

/// Three primaries of the test's own, with a log, serving what they can when one is down.
struct Cluster {
    nodes: Vec<ThrowawayRedis>,
}

impl Cluster {
    async fn start() -> Self {
        let nodes: Vec<ThrowawayRedis> = (0..3)
            .map(|_| {
                let bus = net::free_port().to_string();
                ThrowawayRedis::start(&[
                    ("cluster-enabled", "yes"),
                    ("cluster-port", &bus),
                    ("cluster-node-timeout", "1000"),
                    ("cluster-require-full-coverage", "no"),
                    ("cluster-announce-ip", "127.0.0.1"),
                    ("cluster-announce-bus-port", &bus),
                    ("appendonly", "yes"),
                    ("appendfsync", "always"),
                ])
            })
            .collect();
        let thirds = [(0, 5460), (5461, 10922), (10923, LAST)];
        for (node, (start, end)) in nodes.iter().zip(thirds) {
            let added = node.command(&["CLUSTER", "ADDSLOTSRANGE", &start.to_string(), &end.to_string()]).unwrap();
            assert_eq!(added, "+OK");
        }
        let cluster = Self { nodes };
        for node in &cluster.nodes[1..] {
            let bus = cluster.bus(node);
            let met =
                cluster.nodes[0].command(&["CLUSTER", "MEET", "127.0.0.1", &node.port().to_string(), &bus]).unwrap();
            assert_eq!(met, "+OK");
        }
        cluster.agreed().await;
        cluster
    }

    fn bus(&self, node: &ThrowawayRedis) -> String {
        // `id ip:port@bus flags …`, of which the node's own line says `myself`.
        let nodes = node.command(&["CLUSTER", "NODES"]).unwrap();
        let own = nodes.lines().find(|line| line.contains("myself")).unwrap();
        own.split(['@', ' ', ',']).nth(2).unwrap().to_owned()
    }

    async fn agreed(&self) {
        eventually(PATIENCE, "the nodes agree", async || {
            self.nodes.iter().all(|node| {
                node.command(&["CLUSTER", "INFO"]).is_ok_and(|info| {
                    info.contains("cluster_state:ok")
                        && info.contains("cluster_slots_ok:16384")
                        && info.contains("cluster_known_nodes:3")
                })
            })
        })
        .await;
    }

    fn urls(&self) -> Vec<String> {
        self.nodes.iter().map(ThrowawayRedis::url).collect()
    }

    fn id(&self, node: usize) -> String {
        self.nodes[node].command(&["CLUSTER", "MYID"]).unwrap()
    }
}

/// The slot of a message.
fn slot(prefix: &str, message: &hapax::record::Sighting) -> u16 {
    let slot = Slot::for_key([prefix.as_bytes(), message.key.as_bytes()].concat());
    (0..=LAST).find(|number| Slot::new(*number) == Some(slot)).unwrap()
}

#[tokio::test]
async fn a_batch_over_all_nodes_is_one_batch() {
    let store = prefixed().cluster(redis_cluster()).await.unwrap();
    let terms = owner();
    let asks: Batch<Ask> = (0..5000).map(|n| Ask { sighting: message(n), read_first: n % 7 == 0 }).collect();
    for outcome in store.claim(&terms, &asks).await.unwrap() {
        assert_eq!(granted(outcome).attempt, 1);
    }
    for outcome in store.claim(&owner(), &asks).await.unwrap() {
        assert!(matches!(outcome, ClaimOutcome::InFlight { .. }), "{outcome:?}");
    }
    let settles: Batch<_> = asks
        .items()
        .iter()
        .enumerate()
        .map(|(n, ask)| hapax::record::Settle {
            sighting: ask.sighting.clone(),
            token: first_token(&terms),
            attempt: 1,
            verdict: if n % 3 == 0 { failure() } else { success() },
        })
        .collect();
    assert!(store.settle(&settles).await.unwrap().iter().all(|settled| *settled == SettleOutcome::Settled));
    for (n, outcome) in store.claim(&owner(), &asks).await.unwrap().into_iter().enumerate() {
        match outcome {
            ClaimOutcome::NotDue { .. } => assert_eq!(n % 3, 0),
            ClaimOutcome::Duplicate { .. } => assert_ne!(n % 3, 0),
            other => panic!("{other:?}"),
        }
    }
    // Each node holds a part.
    for url in redis_cluster() {
        let mut node = plain(&url).await;
        let size: usize = redis::cmd("DBSIZE").query_async(&mut node).await.unwrap();
        assert!(size > 500, "{size}");
    }
}

#[tokio::test]
async fn f29_braces_in_keys_find_their_slots() {
    let store = prefixed().cluster(redis_cluster()).await.unwrap();
    let terms = owner();
    for key in [
        *b"{user}1000000000",
        *b"a{}b{c}000000000",
        *b"}{{{{}}}}0000000",
        *b"{000000000000000",
        *b"{\0\xff}000000000000",
    ] {
        let message = message_of(key);
        let token = acquire(&store, &terms, &message).await.token;
        assert_eq!(extend(&store, &message, token).await.unwrap(), ExtendOutcome::Held);
        assert_eq!(settle(&store, &message, token, success()).await.unwrap(), SettleOutcome::Settled);
        assert!(record(&store, &message).await.is_some());
    }
}

#[tokio::test]
async fn the_check_looks_at_every_node() {
    let cluster = Cluster::start().await;
    let store = prefixed().cluster(cluster.urls()).await.unwrap();
    assert_eq!(store.check().await.unwrap().findings(), &[]);
    assert_eq!(cluster.nodes[2].command(&["CONFIG", "SET", "maxmemory-policy", "allkeys-lru"]).unwrap(), "+OK");
    let report = store.check().await.unwrap();
    assert!(report.names("maxmemory-policy"), "{report:?}");
    store.ensure_schema().await.unwrap();
}

#[tokio::test]
async fn a_dead_node_fails_its_batches_only_and_heals() {
    let mut cluster = Cluster::start().await;
    let prefix = format!("{}:", unique("faults"));
    // Only one node is named: the others are found.
    let store =
        with_prefix(&prefix).response_timeout(Duration::from_secs(10)).cluster(&cluster.urls()[..1]).await.unwrap();
    let terms = owner();
    let asks: Batch<Ask> = (0..300).map(|n| Ask::from(message(n))).collect();
    store.claim(&terms, &asks).await.unwrap();
    cluster.nodes[0].kill9();
    let error = store.claim(&terms, &asks).await.unwrap_err();
    assert_eq!(error.kind(), StoreErrorKind::Unavailable, "{error}");
    let (dead, alive): (Vec<_>, Vec<_>) =
        asks.items().iter().cloned().partition(|ask| slot(&prefix, &ask.sighting) <= 5460);
    assert!(!dead.is_empty() && !alive.is_empty());
    let alive: Batch<Ask> = alive.into_iter().collect();
    let outcomes = persist("the other nodes' messages", async || store.claim(&terms, &alive).await).await;
    assert!(outcomes.into_iter().all(|outcome| granted(outcome).attempt == 1));
    cluster.nodes[0].restart();
    cluster.agreed().await;
    let outcomes = persist("all messages", async || store.claim(&terms, &asks).await).await;
    assert!(outcomes.into_iter().all(|outcome| granted(outcome).attempt == 1), "the log kept the claims");
    for ask in dead {
        let settled = settle(&store, &ask.sighting, first_token(&terms), success()).await.unwrap();
        assert_eq!(settled, SettleOutcome::Settled);
    }
}

#[tokio::test]
async fn a_slot_that_moves_is_followed() {
    let cluster = Cluster::start().await;
    let prefix = format!("{}:", unique("faults"));
    let store = with_prefix(&prefix).cluster(cluster.urls()).await.unwrap();
    // Two messages of one slot: the braces make it so.
    let (old, new) = (message_of(*b"{moves}000000001"), message_of(*b"{moves}000000002"));
    let number = slot(&prefix, &old);
    assert_eq!(slot(&prefix, &new), number);
    let from = usize::from(number) * 3 / 16_384;
    let from = [(0, 5460), (5461, 10922), (10923, LAST)]
        .iter()
        .position(|(start, end)| (*start..=*end).contains(&number))
        .unwrap_or(from);
    let to = (from + 1) % 3;
    let terms = owner();
    let token = acquire(&store, &terms, &old).await.token;

    // On its way: what is still there is answered there, what is new goes to the other node (ASK).
    let slot_text = number.to_string();
    let importing = cluster.nodes[to].command(&["CLUSTER", "SETSLOT", &slot_text, "IMPORTING", &cluster.id(from)]);
    assert_eq!(importing.unwrap(), "+OK");
    let migrating = cluster.nodes[from].command(&["CLUSTER", "SETSLOT", &slot_text, "MIGRATING", &cluster.id(to)]);
    assert_eq!(migrating.unwrap(), "+OK");
    assert_eq!(extend(&store, &old, token).await.unwrap(), ExtendOutcome::Held);
    let new_token = acquire(&store, &terms, &new).await.token;
    assert_eq!(extend(&store, &new, new_token).await.unwrap(), ExtendOutcome::Held, "scripts are asked there too");
    assert_eq!(cluster.nodes[to].command(&["DBSIZE"]).unwrap(), ":1");

    // The first message's key moves, and is asked for over there.
    let mut node = plain(&cluster.nodes[from].url()).await;
    let moved: String = redis::cmd("MIGRATE")
        .arg("127.0.0.1")
        .arg(cluster.nodes[to].port())
        .arg([prefix.as_bytes(), old.key.as_bytes()].concat())
        .arg(0)
        .arg(5000)
        .query_async(&mut node)
        .await
        .unwrap();
    assert_eq!(moved, "OK");
    assert!(matches!(claim(&store, &owner(), &old).await.unwrap(), ClaimOutcome::InFlight { .. }));

    // The slot is the other node's now (MOVED), and a store that knew it before follows.
    for node in [to, from, 3 - to - from] {
        let set = cluster.nodes[node].command(&["CLUSTER", "SETSLOT", &slot_text, "NODE", &cluster.id(to)]);
        assert_eq!(set.unwrap(), "+OK");
    }
    assert_eq!(settle(&store, &old, token, success()).await.unwrap(), SettleOutcome::Settled);
    assert_eq!(settle(&store, &new, new_token, success()).await.unwrap(), SettleOutcome::Settled);
    assert!(matches!(claim(&store, &owner(), &old).await.unwrap(), ClaimOutcome::Duplicate { .. }));
}

#[tokio::test]
async fn the_client_librarys_cluster_connection_serves_too() {
    let urls = redis_cluster();
    let prefix = format!("{}:", unique("faults"));
    let connection = redis::cluster::ClusterClient::new(urls.clone()).unwrap().get_async_connection().await.unwrap();
    let given = with_prefix(&prefix).with_connection(connection).unwrap();
    let own = with_prefix(&prefix).cluster(&urls).await.unwrap();
    let terms = owner();
    let asks: Batch<Ask> = (0..500).map(|n| Ask { sighting: message(n), read_first: n % 2 == 0 }).collect();
    assert!(given.claim(&terms, &asks).await.unwrap().into_iter().all(|outcome| granted(outcome).attempt == 1));
    for outcome in own.claim(&owner(), &asks).await.unwrap() {
        assert!(matches!(outcome, ClaimOutcome::InFlight { .. }), "{outcome:?}");
    }
    for n in 0..20 {
        let (message, token) = (message(n), first_token(&terms));
        assert_eq!(extend(&given, &message, token).await.unwrap(), ExtendOutcome::Held);
        assert_eq!(settle(&given, &message, token, success()).await.unwrap(), SettleOutcome::Settled);
    }
    given.ensure_schema().await.unwrap();
    given.check().await.unwrap();
}

#[tokio::test]
async fn no_node_at_all_is_an_error() {
    let error = RedisStore::cluster(Vec::<String>::new()).await.unwrap_err();
    assert_eq!(error.kind(), StoreErrorKind::Refused);
    let nobody = format!("redis://127.0.0.1:{}", net::free_port());
    let error = RedisStore::cluster([nobody]).await.unwrap_err();
    assert!(error.is_retryable(), "{error}");
    // A server that is no cluster.
    let alone = ThrowawayRedis::start(&[]);
    let error = RedisStore::cluster([alone.url()]).await.unwrap_err();
    assert_eq!(error.kind(), StoreErrorKind::Refused, "{error}");
}
