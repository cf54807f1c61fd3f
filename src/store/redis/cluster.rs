//! A cluster: one link to each primary, one pipeline to each per batch.
//!
//! The client library's own cluster connection takes no pipeline over several slots, and was seen to hang for good after a
//! primary's return. Here every wait has an end, and each node's link mends itself.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures_util::future::join_all;
use redis::cluster_routing::Slot;
use redis::{Cmd, ConnectionAddr, ConnectionInfo, Pipeline, Value};

use super::calls::Calls;
use super::errors;
use super::link::{Clock, Link, Opener, Patience, integer, text};
use super::wire::at;
use crate::store::StoreError;

/// Rounds of asking again where a slot has moved.
const ROUNDS: usize = 5;
const LEARN: &str = "learn the cluster's slots";

type Address = (String, u16);

struct Node {
    address: Address,
    link: Arc<Link>,
}

/// Who serves which slot, as last heard.
#[derive(Default)]
struct Map {
    /// Counts what was heard, so that many who saw one change ask once.
    version: u64,
    /// The place of each slot's primary among the nodes.
    owners: HashMap<Slot, usize, foldhash::fast::RandomState>,
    nodes: Vec<Node>,
}

pub(super) struct Nodes {
    /// User, password and TLS of every node; its address is not used.
    node: ConnectionInfo,
    seeds: Vec<Address>,
    clock: Arc<Clock>,
    patience: Patience,
    map: Mutex<Map>,
    learning: tokio::sync::Mutex<()>,
}

impl fmt::Debug for Nodes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Nodes").finish_non_exhaustive()
    }
}

/// What is sent to one node.
struct Parcel {
    node: usize,
    link: Arc<Link>,
    /// Where its commands stand among all.
    places: Vec<usize>,
    pipeline: Pipeline,
}

/// Commands sorted by the node that serves their slot.
struct Sorted {
    parcels: Vec<Parcel>,
    /// Those whose slot nobody is known to serve.
    homeless: Vec<usize>,
    version: u64,
}

impl Nodes {
    /// `node`: what every node is connected to with. `seeds`: whom to ask first.
    pub(super) fn new(node: ConnectionInfo, seeds: &[ConnectionInfo], clock: Arc<Clock>, patience: Patience) -> Self {
        let seeds = seeds.iter().filter_map(|seed| address_of(seed.addr())).collect();
        Self { node, seeds, clock, patience, map: Mutex::default(), learning: tokio::sync::Mutex::default() }
    }

    fn map(&self) -> MutexGuard<'_, Map> {
        self.map.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The node's place in the map; it is added where it is new.
    fn place(&self, map: &mut Map, address: &Address) -> usize {
        if let Some(place) = map.nodes.iter().position(|node| node.address == *address) {
            return place;
        }
        let info = Box::new(at(&self.node, &address.0, address.1));
        // A replica is not refused: it answers MOVED, which says where to go.
        let opener = Opener::Server { info, primary: false };
        let link = Arc::new(Link::new(opener, Arc::clone(&self.clock), self.patience));
        map.nodes.push(Node { address: address.clone(), link });
        map.nodes.len() - 1
    }

    /// Asks the cluster who serves what.
    pub(super) async fn learn(&self) -> Result<(), StoreError> {
        let seen = self.map().version;
        self.relearn(seen).await
    }

    /// The same, unless another caller has done so since the map had this version.
    async fn relearn(&self, seen: u64) -> Result<(), StoreError> {
        let _one_at_a_time = self.learning.lock().await;
        if self.map().version != seen {
            return Ok(());
        }
        let known: Vec<(Address, Arc<Link>)> = {
            let mut map = self.map();
            for seed in &self.seeds {
                self.place(&mut map, seed);
            }
            map.nodes.iter().map(|node| (node.address.clone(), Arc::clone(&node.link))).collect()
        };
        let mut command = Cmd::new();
        command.arg("CLUSTER").arg("SLOTS");
        let slots = Calls::of([command]).pipeline;
        let mut last = StoreError::unavailable(errors::NAME, LEARN, "no node was given");
        // All at once: a dead node must not use up the time for the others.
        let mut heard: Vec<(u16, u16, Address)> = Vec::new();
        let answers = join_all(known.iter().map(|(_, link)| link.send(LEARN, &slots))).await;
        for ((asked, _), answer) in known.iter().zip(answers) {
            match answer.as_deref() {
                Ok([Value::ServerError(error)]) => last = errors::server(LEARN, error),
                Ok(values) => {
                    let ranges = values.first().and_then(|value| read_slots(value, &asked.0)).unwrap_or_default();
                    // A node that has just come back may know of fewer slots than the others.
                    let served = |ranges: &[(u16, u16, Address)]| -> usize {
                        ranges.iter().map(|(start, end, _)| usize::from(end.saturating_sub(*start)) + 1).sum()
                    };
                    if served(&ranges) > served(&heard) {
                        heard = ranges;
                    }
                }
                Err(error) => last = error.clone(),
            }
        }
        if heard.is_empty() {
            return Err(last);
        }
        self.take(&heard);
        Ok(())
    }

    fn take(&self, ranges: &[(u16, u16, Address)]) {
        let mut map = self.map();
        // Links to nodes that left go with them; those in use live until they are done.
        map.nodes.retain(|node| ranges.iter().any(|(_, _, owner)| *owner == node.address));
        map.owners.clear();
        for (start, end, address) in ranges {
            let place = self.place(&mut map, address);
            for slot in (*start..=*end).filter_map(Slot::new) {
                map.owners.insert(slot, place);
            }
        }
        map.version += 1;
    }

    fn sort(&self, commands: &[&Cmd], slots: &[Slot], open: &[usize]) -> Sorted {
        let map = self.map();
        let mut parcels: Vec<Parcel> = Vec::with_capacity(map.nodes.len());
        let mut homeless = Vec::new();
        for place in open {
            let Some(node) = map.owners.get(&slots[*place]) else {
                homeless.push(*place);
                continue;
            };
            let found = parcels.iter().position(|parcel| parcel.node == *node);
            let parcel = found.unwrap_or_else(|| {
                let pipeline = Pipeline::with_capacity(open.len());
                parcels.push(Parcel {
                    node: *node,
                    link: Arc::clone(&map.nodes[*node].link),
                    places: Vec::with_capacity(open.len()),
                    pipeline,
                });
                parcels.len() - 1
            });
            parcels[parcel].places.push(*place);
            parcels[parcel].pipeline.add_command(commands[*place].clone());
        }
        Sorted { parcels, homeless, version: map.version }
    }

    /// Sends each command to the node that serves its slot, one pipeline to each node, all at once.
    pub(super) async fn send(&self, operation: &'static str, calls: &Calls) -> Result<Vec<Value>, StoreError> {
        let slots: Vec<Slot> = calls.names().map(Slot::for_key).collect();
        if slots.len() != calls.len() {
            // Commands without keys: any node may answer.
            let mut all = self.each(operation, calls).await?;
            return all.pop().ok_or_else(|| errors::shape(operation, &Value::Nil));
        }
        let commands: Vec<&Cmd> = calls.pipeline.cmd_iter().collect();
        let mut answers: Vec<Option<Value>> = vec![None; calls.len()];
        let mut open: Vec<usize> = (0..calls.len()).collect();
        for _ in 0..ROUNDS {
            let Sorted { parcels, homeless, version } = self.sort(&commands, &slots, &open);
            let sent = join_all(parcels.iter().map(|parcel| parcel.link.send(operation, &parcel.pipeline))).await;
            let mut moved: Vec<(usize, Address)> = Vec::new();
            let mut asked: HashMap<Address, Vec<usize>> = HashMap::new();
            let mut failed: Vec<(usize, Arc<Link>, StoreError)> = Vec::new();
            for (parcel, sent) in parcels.into_iter().zip(sent) {
                match sent {
                    Ok(values) => {
                        for (place, value) in parcel.places.into_iter().zip(values) {
                            match redirected(&value) {
                                Some((true, address)) => asked.entry(address).or_default().push(place),
                                Some((false, address)) => moved.push((place, address)),
                                None => answers[place] = Some(value),
                            }
                        }
                    }
                    Err(error) => failed.extend(
                        parcel.places.into_iter().map(|place| (place, Arc::clone(&parcel.link), error.clone())),
                    ),
                }
            }
            for (address, places) in asked {
                self.ask_there(operation, &commands, &address, &places, &mut answers).await?;
            }
            if moved.is_empty() && failed.is_empty() && homeless.is_empty() {
                break;
            }
            let learnt = self.relearn(version).await;
            if !failed.is_empty() || !homeless.is_empty() {
                learnt?;
            }
            self.believe(&slots, &moved);
            // Its link has tried again by itself: another try helps only where another node has taken over.
            for (place, link, error) in &failed {
                if self.serves(link, slots[*place]) {
                    return Err(error.clone());
                }
            }
            open = homeless;
            open.extend(moved.into_iter().map(|(place, _)| place));
            open.extend(failed.into_iter().map(|(place, _, _)| place));
        }
        let on_the_move = || StoreError::unavailable(errors::NAME, operation, "slots are on the move or not served");
        answers.into_iter().collect::<Option<Vec<Value>>>().ok_or_else(on_the_move)
    }

    /// Takes a node's word for where slots went, over the map of one that may not have heard yet.
    fn believe(&self, slots: &[Slot], moved: &[(usize, Address)]) {
        let mut map = self.map();
        for (place, address) in moved {
            let node = self.place(&mut map, address);
            map.owners.insert(slots[*place], node);
        }
    }

    fn serves(&self, link: &Arc<Link>, slot: Slot) -> bool {
        let map = self.map();
        map.owners.get(&slot).is_some_and(|node| Arc::ptr_eq(&map.nodes[*node].link, link))
    }

    /// A slot on its way to another node: this once, ask there.
    async fn ask_there(
        &self,
        operation: &'static str,
        commands: &[&Cmd],
        address: &Address,
        places: &[usize],
        answers: &mut [Option<Value>],
    ) -> Result<(), StoreError> {
        let mut pipeline = Pipeline::with_capacity(2 * places.len());
        for place in places {
            pipeline.cmd("ASKING").add_command(commands[*place].clone());
        }
        let link = {
            let mut map = self.map();
            let node = self.place(&mut map, address);
            Arc::clone(&map.nodes[node].link)
        };
        let values = link.send(operation, &pipeline).await?;
        for (place, value) in places.iter().zip(values.into_iter().skip(1).step_by(2)) {
            answers[*place] = Some(value);
        }
        Ok(())
    }

    /// Sends commands without keys to every primary.
    pub(super) async fn each(&self, operation: &'static str, calls: &Calls) -> Result<Vec<Vec<Value>>, StoreError> {
        self.learn().await?;
        let links: Vec<Arc<Link>> = self.map().nodes.iter().map(|node| Arc::clone(&node.link)).collect();
        join_all(links.iter().map(|link| link.send(operation, &calls.pipeline))).await.into_iter().collect()
    }
}

fn address_of(addr: &ConnectionAddr) -> Option<Address> {
    match addr {
        ConnectionAddr::Tcp(host, port) | ConnectionAddr::TcpTls { host, port, .. } => Some((host.clone(), *port)),
        _ => None,
    }
}

/// Where an answer sends the caller: for this once (`ASK`), or for good (`MOVED`).
fn redirected(value: &Value) -> Option<(bool, Address)> {
    let Value::ServerError(error) = value else { return None };
    let once = match error.code() {
        "ASK" => true,
        "MOVED" => false,
        _ => return None,
    };
    let address = error.details()?.split_ascii_whitespace().nth(1)?;
    let (host, port) = address.rsplit_once(':')?;
    Some((once, (host.to_owned(), port.parse().ok()?)))
}

/// What `CLUSTER SLOTS` answered; a node without a name is the one that was asked.
fn read_slots(value: &Value, asked: &str) -> Option<Vec<(u16, u16, Address)>> {
    let Value::Array(ranges) = value else { return None };
    ranges
        .iter()
        .map(|range| {
            let Value::Array(range) = range else { return None };
            let [start, end, primary, ..] = range.as_slice() else { return None };
            let Value::Array(primary) = primary else { return None };
            let host = primary.first().and_then(text).filter(|host| !host.is_empty() && *host != "?").unwrap_or(asked);
            let port = u16::try_from(integer(primary.get(1)?)?).ok()?;
            let slot = |value| u16::try_from(integer(value)?).ok();
            Some((slot(start)?, slot(end)?, (host.to_owned(), port)))
        })
        .collect()
}
