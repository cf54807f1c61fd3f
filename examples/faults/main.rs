//! The real thing under faults: `service` processes on a real Kafka and a real store, killed, stopped, cut off and restarted by a seeded
//! schedule, while messages and copies of them are produced. At the end a judge counts effects. `scripts/faults` builds and runs it.
//!
//! Everything it starts is its own, on loopback and in temporary folders, and ends with it.

#![cfg(unix)]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

/// Which messages never succeed; what becomes of the others is the members' business.
#[allow(dead_code)]
#[path = "../shared/injection.rs"]
mod injection;
mod judge;
#[path = "../shared/lag.rs"]
mod lag;
mod letters;
mod members;
#[path = "../shared/random.rs"]
#[allow(dead_code)]
mod random;
mod run;
mod schedule;
#[path = "../../tests/support/mod.rs"]
mod support;
mod traffic;
mod world;

use std::path::PathBuf;
use std::process::ExitCode;

use run::Run;
use world::{Ground, Subject};

const HELP: &str = "\
Holds hapax to its promises while everything around it breaks.

Usage: scripts/faults [FLAGS]

  --seconds N        how long each store is harmed (default: 60); draining comes on top
  --seed S           which faults, when (default: 1)
  --stores LIST      of redis (level L0), postgres, mariadb, sqlite (L1: effects in another database), and
                     postgres-l2-records, …-window, …-both, mariadb-l2-…, sqlite-l2-… (L2: effect and memory in one
                     transaction; the server that is killed holds both), and postgres-inbox, mariadb-inbox, sqlite-inbox (L2:
                     some members store messages in a table, others work them from there, by key), and …-inbox-outside (the same
                     under leases, L1: effects in another database); or l0, l1, l2, inbox, all (default: all)
  --protocol KIND    cooperative, classic or consumer (default: by the seed, another one for each store)
  --order KIND       partition, key or unordered (default: by the seed)
  --rate N           distinct messages a second (default: 200); 40 copies are produced for each 100
  --keep             keeps the folder of logs and journals; after a failure it is kept anyway
  --sabotage KIND    shows that the judge can tell; the run must fail:
                     lose      members settle before they handle
                     no-dedup  members do not ask the store
                     double    an effect is written twice
                     remove    an effect is taken away
                     reorder   an effect changes its place (for an inbox)
  --debug            a debug build (of the script; default: release)

For each store a line `FAULTS store=… … OK`, or FAILED; the exit code is 0 only if all are OK.";

pub struct Orders {
    seconds: u64,
    seed: u64,
    subjects: Vec<Subject>,
    protocol: Option<&'static str>,
    order: Option<&'static str>,
    rate: u64,
    keep: bool,
    sabotage: Option<Sabotage>,
    service: PathBuf,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sabotage {
    Lose,
    NoDedup,
    Double,
    Remove,
    Reorder,
}

fn main() -> ExitCode {
    let orders = match read() {
        Ok(Some(orders)) => orders,
        Ok(None) => {
            println!("{HELP}");
            return ExitCode::SUCCESS;
        }
        Err(wrong) => {
            eprintln!("{wrong}");
            return ExitCode::from(2);
        }
    };
    let mut folder = tempfile::Builder::new().prefix("hapax-faults-").tempdir().expect("a temporary folder");
    eprintln!("starting Kafka and the effects database; logs and journals are in {}", folder.path().display());
    let ground = Ground::start();
    let mut good = true;
    for subject in &orders.subjects {
        good &= Run::prepare(&orders, &ground, *subject, folder.path()).go();
    }
    if orders.keep || !good {
        folder.disable_cleanup(true);
        eprintln!("logs and journals: {}", folder.path().display());
    }
    if good { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn read() -> Result<Option<Orders>, String> {
    use lexopt::prelude::{Long, Short, ValueExt as _};
    let beside = std::env::current_exe().map_err(|e| e.to_string())?.with_file_name("service");
    let mut orders = Orders {
        seconds: 60,
        seed: 1,
        subjects: world::SUBJECTS.to_vec(),
        protocol: None,
        order: None,
        rate: 200,
        keep: false,
        sabotage: None,
        service: beside,
    };
    let mut parser = lexopt::Parser::from_env();
    let wrong = |e: lexopt::Error| format!("{e}; --help shows all flags");
    while let Some(arg) = parser.next().map_err(wrong)? {
        match arg {
            Long("help") | Short('h') => return Ok(None),
            Long("seconds") => orders.seconds = parser.value().and_then(|v| v.parse()).map_err(wrong)?,
            Long("seed") => orders.seed = parser.value().and_then(|v| v.parse()).map_err(wrong)?,
            Long("rate") => orders.rate = parser.value().and_then(|v| v.parse()).map_err(wrong)?,
            Long("keep") => orders.keep = true,
            Long("stores") => {
                let list = parser.value().and_then(|v| v.string()).map_err(wrong)?;
                orders.subjects = Subject::read(&list)?;
            }
            Long("protocol") => {
                let name = parser.value().and_then(|v| v.string()).map_err(wrong)?;
                let known = ["cooperative", "classic", "consumer"].into_iter().find(|known| *known == name);
                orders.protocol = Some(known.ok_or("--protocol: choose cooperative, classic or consumer")?);
            }
            Long("order") => {
                let name = parser.value().and_then(|v| v.string()).map_err(wrong)?;
                let known = ["partition", "key", "unordered"].into_iter().find(|known| *known == name);
                orders.order = Some(known.ok_or("--order: choose partition, key or unordered")?);
            }
            Long("sabotage") => {
                let name = parser.value().and_then(|v| v.string()).map_err(wrong)?;
                orders.sabotage = Some(match name.as_str() {
                    "lose" => Sabotage::Lose,
                    "no-dedup" => Sabotage::NoDedup,
                    "double" => Sabotage::Double,
                    "remove" => Sabotage::Remove,
                    "reorder" => Sabotage::Reorder,
                    _ => return Err("--sabotage: choose lose, no-dedup, double, remove or reorder".into()),
                });
            }
            other => return Err(wrong(other.unexpected())),
        }
    }
    if orders.seconds < 10 || orders.rate == 0 {
        return Err("give --seconds of at least 10, and a --rate of at least 1".into());
    }
    let lose = "--sabotage lose: an inbox has no such mode; choose another sabotage, or other --stores";
    if orders.sabotage == Some(Sabotage::Lose) && orders.subjects.iter().any(Subject::is_inbox) {
        return Err(lose.into());
    }
    if !orders.service.exists() {
        return Err(format!("{} is missing; scripts/faults builds it", orders.service.display()));
    }
    Ok(Some(orders))
}
