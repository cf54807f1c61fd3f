//! The start-up check: what of the server's settings breaks a promise, or weakens one.

use std::collections::HashMap;

use redis::{Cmd, Value};

use super::calls::Calls;
use super::errors;
use super::link::text;
use super::wire::Wire;
use crate::store::{Report, StoreError};

const NEEDED: (u32, u32) = (7, 0);

/// What `INFO` and `CONFIG GET` answered.
type Fields = HashMap<String, String>;

/// Looks at every server that holds records.
pub(super) async fn check(wire: &Wire) -> Result<Report, StoreError> {
    let mut report = Report::new();
    for answers in wire.each("check", &Calls::of([info(), config()])).await? {
        let [info, config] = answers.as_slice() else { return Err(errors::shape("check", &Value::Nil)) };
        let config = match config {
            Value::ServerError(error) if is_missing_right(error.code(), error.details()) => {
                report.warning(
                    "config",
                    "the user may not run CONFIG GET, so appendfsync is not known.",
                    "Grant +config|get, or see for yourself that it is not `no`.",
                );
                Fields::new()
            }
            Value::ServerError(error) => return Err(errors::server("check", error)),
            value => pairs(value),
        };
        match info {
            Value::ServerError(error) if is_missing_right(error.code(), error.details()) => {
                report.warning(
                    "info",
                    "the user may not run INFO, so version, role, eviction and persistence are not known.",
                    "Grant +info, or see for yourself: Redis 7.0 or newer, a primary, maxmemory-policy noeviction, appendonly yes.",
                );
                look(&config, &config, &mut report);
            }
            Value::ServerError(error) => return Err(errors::server("check", error)),
            value => {
                for info in infos(value) {
                    look(&info, &config, &mut report);
                }
            }
        }
    }
    Ok(report)
}

/// Refuses a server that is too old; a server that does not say its version is taken as new enough.
pub(super) async fn check_version(wire: &Wire) -> Result<(), StoreError> {
    for answers in wire.each("check", &Calls::of([info()])).await? {
        match answers.first() {
            Some(Value::ServerError(error)) if !is_missing_right(error.code(), error.details()) => {
                return Err(errors::server("check", error));
            }
            Some(value) => {
                for info in infos(value) {
                    if let Some(version) = too_old(&info) {
                        let problem = format!("the server is Redis {version}; 7.0 or newer is needed");
                        return Err(StoreError::refused(errors::NAME, "check", problem));
                    }
                }
            }
            None => {}
        }
    }
    Ok(())
}

fn info() -> Cmd {
    redis::cmd("INFO")
}

fn config() -> Cmd {
    let mut command = redis::cmd("CONFIG");
    command.arg("GET").arg("maxmemory").arg("maxmemory-policy").arg("appendonly").arg("appendfsync");
    command
}

/// Managed services leave `CONFIG` out altogether.
fn is_missing_right(code: &str, details: Option<&str>) -> bool {
    code == "NOPERM" || (code == "ERR" && details.is_some_and(|details| details.contains("unknown command")))
}

/// One server's answer, or several servers' where a cluster connection asked them all.
fn infos(value: &Value) -> Vec<Fields> {
    let parse = |value: &Value| text(value).map(fields);
    match value {
        Value::Map(nodes) => nodes.iter().filter_map(|(_, info)| parse(info)).collect(),
        other => parse(other).into_iter().collect(),
    }
}

fn fields(info: &str) -> Fields {
    info.lines()
        .filter_map(|line| line.trim_end().split_once(':'))
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect()
}

fn pairs(value: &Value) -> Fields {
    let pair = |(name, value): (&Value, &Value)| Some((text(name)?.to_owned(), text(value)?.to_owned()));
    match value {
        Value::Map(pairs) => pairs.iter().filter_map(|(name, value)| pair((name, value))).collect(),
        Value::Array(flat) => flat.chunks_exact(2).filter_map(|two| pair((&two[0], &two[1]))).collect(),
        _ => Fields::new(),
    }
}

fn too_old(info: &Fields) -> Option<&str> {
    let version = info.get("redis_version")?;
    let mut parts = version.split('.').map_while(|part| part.parse::<u32>().ok());
    let found = (parts.next()?, parts.next().unwrap_or(0));
    (found < NEEDED).then_some(version)
}

fn look(info: &Fields, config: &Fields, report: &mut Report) {
    let field = |name: &str| info.get(name).map(String::as_str);
    let setting = |name: &str| config.get(name).map(String::as_str);
    if let Some(version) = too_old(info) {
        report.error(
            "redis_version",
            format!("the server is Redis {version}, which cannot claim and read in one command."),
            "Use Redis 7.0 or newer.",
        );
    }
    if field("role") == Some("slave") {
        report.error(
            "role",
            "the server is a replica: what it says is old, and it takes no claims.",
            "Connect to the primary.",
        );
    }
    let policy = field("maxmemory_policy").or(setting("maxmemory-policy"));
    let limit = field("maxmemory").or(setting("maxmemory")).unwrap_or("0");
    match policy {
        Some("noeviction") | None => {}
        // Every record has a time to live, so the volatile policies evict them as the others do.
        Some(policy) if limit != "0" => report.error(
            "maxmemory-policy",
            format!("it is {policy}: once {limit} bytes are used, the server forgets claims and successes, silently."),
            "Set it to noeviction, or give the records a server of their own.",
        ),
        Some(policy) => report.warning(
            "maxmemory-policy",
            format!(
                "it is {policy}, without a maxmemory so far: with one, the server would forget claims and successes."
            ),
            "Set it to noeviction.",
        ),
    }
    if let Some(evicted) = field("evicted_keys").filter(|count| *count != "0") {
        report.warning(
            "evicted_keys",
            format!("the server has evicted {evicted} keys since it started; records may be among them."),
            "Set maxmemory-policy to noeviction, and give it enough memory.",
        );
    }
    let appends = field("aof_enabled").map(|on| on == "1").or(setting("appendonly").map(|on| on == "yes"));
    if appends == Some(false) {
        report.warning(
            "appendonly",
            "it is off: a restart forgets everything since the last snapshot, and those messages are handled again.",
            "Set it to yes.",
        );
    } else if setting("appendfsync") == Some("no") {
        report.warning(
            "appendfsync",
            "it is no: a power loss forgets up to half a minute or more.",
            "Set it to everysec, or always.",
        );
    }
    if field("aof_last_write_status").is_some_and(|status| status != "ok") {
        report.warning("aof_last_write_status", "the server's last write to its log failed.", "Look at its disk.");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn looked(info: &str) -> Report {
        let mut report = Report::new();
        look(&fields(info), &Fields::new(), &mut report);
        report
    }

    #[test]
    fn versions_are_compared_as_numbers() {
        for old in ["2.8.24", "6.2.14", "6.3.4"] {
            assert!(looked(&format!("redis_version:{old}\r\n")).names("redis_version"), "{old}");
        }
        for new in ["7.0.15", "7.2.4", "8.0.0", "10.1.0"] {
            assert!(!looked(&format!("redis_version:{new}\r\n")).names("redis_version"), "{new}");
        }
    }

    #[test]
    fn eviction_is_an_error_only_with_a_limit() {
        let with = looked("maxmemory:1000\r\nmaxmemory_policy:volatile-lru\r\n");
        assert_eq!(with.errors().count(), 1);
        let without = looked("maxmemory:0\r\nmaxmemory_policy:volatile-lru\r\n");
        assert_eq!((without.errors().count(), without.warnings().count()), (0, 1));
        assert!(looked("maxmemory:1000\r\nmaxmemory_policy:noeviction\r\n").findings().is_empty());
    }
}
