//! The flags.

use std::fmt;

use hapax::identity::{Identify, InsecureMd5, Sha256, digest, header, json, position, record_key};

pub const HELP: &str = "\
Shows hapax at work: messages that are produced twice, a consumer that leaves without
committing what it did, and an effect for each message all the same, once.

Usage: cargo run --release --example quickstart -- [FLAGS]

  --brokers HOST:PORT   a real Kafka, several with commas (default: a mock cluster in this process)
  --store URL           where hapax remembers: memory:, sqlite:PATH, postgres://…, mysql://…, redis://…
                        (default: SQLite in a temporary folder)
  --messages N          distinct messages (default: 10000)
  --copies N            copies that are produced again, on other partitions (default: 5000)
  --identity KIND       what makes two messages the same (default: header):
                        header    the header message-id
                        key       the record key
                        json      /id in the payload
                        sha256    the digest of the payload
                        md5       the same with MD5, which an attacker can collide
                        position  topic, partition and offset: tells redelivery only, each copy is a message of its own
  --help                this text

The last line says OK and the exit code is 0 only if every message had its effect, once.
RUST_LOG=hapax=info shows what the consumers say meanwhile.";

/// What makes two messages the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum By {
    Header,
    Key,
    Json,
    Sha256,
    Md5,
    Position,
}

impl By {
    const ALL: [(&str, Self); 6] = [
        ("header", Self::Header),
        ("key", Self::Key),
        ("json", Self::Json),
        ("md5", Self::Md5),
        ("sha256", Self::Sha256),
        ("position", Self::Position),
    ];

    pub fn identity(self) -> Box<dyn Identify> {
        match self {
            Self::Header => Box::new(header("message-id")),
            Self::Key => Box::new(record_key()),
            Self::Json => Box::new(json("/id")),
            Self::Sha256 => Box::new(digest(Sha256)),
            Self::Md5 => Box::new(digest(InsecureMd5)),
            Self::Position => Box::new(position()),
        }
    }
}

impl fmt::Display for By {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = Self::ALL.iter().find(|(_, by)| by == self).map_or("", |(name, _)| *name);
        f.write_str(name)
    }
}

#[derive(Debug)]
pub struct Args {
    pub brokers: Option<String>,
    pub store: Option<String>,
    pub messages: u32,
    pub copies: u32,
    pub by: By,
}

/// What the flags ask for; `None` for `--help`.
pub fn parse() -> Result<Option<Args>, String> {
    use lexopt::prelude::{Long, Short, ValueExt as _};
    let mut args = Args { brokers: None, store: None, messages: 10_000, copies: 5_000, by: By::Header };
    let mut parser = lexopt::Parser::from_env();
    let see = "; --help shows all flags";
    while let Some(arg) = parser.next().map_err(|e| format!("{e}{see}"))? {
        let name = match arg {
            Long("help") | Short('h') => return Ok(None),
            Long(name) => name.to_owned(),
            other => return Err(format!("{}{see}", other.unexpected())),
        };
        if !["brokers", "store", "messages", "copies", "identity"].contains(&name.as_str()) {
            return Err(format!("there is no flag --{name}{see}"));
        }
        let value = parser.value().and_then(|value| value.string()).map_err(|e| format!("{e}{see}"))?;
        let number = || value.parse::<u32>().ok().filter(|n| *n <= 10_000_000);
        match name.as_str() {
            "brokers" => args.brokers = Some(brokers(value)?),
            "store" => args.store = Some(value),
            "messages" => {
                args.messages = number()
                    .filter(|n| *n > 0)
                    .ok_or(format!("--messages {value}: give a number from 1 to 10000000"))?;
            }
            "copies" => args.copies = number().ok_or(format!("--copies {value}: give a number from 0 to 10000000"))?,
            _ => {
                let found = By::ALL.iter().find(|(name, _)| *name == value);
                let names = By::ALL.map(|(name, _)| name).join(", ");
                args.by = found.map(|(_, by)| *by).ok_or(format!("--identity {value}: choose one of {names}"))?;
            }
        }
    }
    Ok(Some(args))
}

fn brokers(value: String) -> Result<String, String> {
    let good =
        |one: &str| one.rsplit_once(':').is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok());
    if value.split(',').all(|one| good(one.trim())) {
        Ok(value)
    } else {
        Err(format!("--brokers {value}: give HOST:PORT, such as 127.0.0.1:9092, several with commas"))
    }
}
