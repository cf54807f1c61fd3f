//! A backlog is stored first and worked later, once each, whatever happens to who stores and who works.
//!
//! `cargo run --release --example inbox` needs nothing but Rust, gcc and make; `--help` shows what else it can do.
//!
//! This process holds a Kafka (librdkafka's own mock cluster), produces orders, some of them twice, and judges at the end. What stores them in
//! the inbox and what works them are other processes, the same program again: [`service`] is what you would write. Some of them are killed with
//! SIGKILL. Some orders fail and are tried again; one can never succeed, dies, and is brought back by an operator ([`operator`]) when a new
//! version of the workers can handle it. Orders, their effects and the inbox are in one database.

#![cfg(unix)]

mod args;
#[path = "../shared/broker.rs"]
#[allow(dead_code)]
mod broker;
#[path = "../shared/children.rs"]
#[allow(dead_code)]
mod children;
#[path = "../shared/database.rs"]
mod database;
#[path = "../shared/flags.rs"]
#[allow(dead_code)]
mod flags;
mod judge;
#[path = "../shared/lag.rs"]
mod lag;
mod ledger;
mod operator;
mod orders;
#[path = "../shared/play.rs"]
mod play;
mod producer;
#[path = "../shared/random.rs"]
#[allow(dead_code)]
mod random;
mod run;
mod service;
#[path = "../../tests/support/mod.rs"]
mod support;

use std::process::ExitCode;

#[tokio::main]
async fn main() -> ExitCode {
    let mut words = std::env::args_os().skip(1).peekable();
    if let Some(command) = words.peek().and_then(|word| service::command(word)) {
        return service::main(command, words.skip(1)).await;
    }
    play::play(args::read(words), args::help, run::Run::prepare, run::Run::go).await
}
