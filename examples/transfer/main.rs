//! Money moves once, whatever happens to who moves it.
//!
//! `cargo run --release --example transfer` needs nothing but Rust, gcc and make; `--help` shows what else it can do.
//!
//! This process holds a Kafka (librdkafka's own mock cluster), produces transfers between accounts, some of them twice, and judges at the
//! end. What moves the money is another process, the same program again: [`service`] is what you would write. It is killed with SIGKILL at
//! random moments, and stopped for so long that another one takes its place while it still has messages in hand. Balances, ledger and what
//! hapax remembers are in one database.

#![cfg(unix)]

mod args;
mod bank;
#[path = "../shared/broker.rs"]
mod broker;
#[path = "../shared/children.rs"]
mod children;
#[path = "../shared/database.rs"]
mod database;
#[path = "../shared/flags.rs"]
#[allow(dead_code)]
mod flags;
mod judge;
#[path = "../shared/lag.rs"]
mod lag;
mod money;
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
    if words.peek().is_some_and(|word| word == service::COMMAND) {
        return service::main(words.skip(1)).await;
    }
    play::play(args::read(words), args::help, run::Run::prepare, run::Run::go).await
}
