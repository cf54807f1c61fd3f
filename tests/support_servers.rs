//! The tests' own throw-away servers start, die, come back with their data, and leave nothing behind.

mod support;

use std::net::TcpStream;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use support::{PATIENCE, ThrowawayMariadb, ThrowawayPostgres, ThrowawayRedis, eventually_blocking};

#[test]
fn redis_with_a_log_survives_kill_9() {
    let mut redis = ThrowawayRedis::start(&[("appendonly", "yes"), ("appendfsync", "always")]);
    assert_eq!(redis.command(&["SET", "k", "v"]).unwrap(), "+OK");
    redis.kill9();
    assert!(TcpStream::connect(redis.address()).is_err());
    redis.restart();
    assert_eq!(redis.command(&["GET", "k"]).unwrap(), "v");
}

#[test]
fn redis_without_a_log_forgets_at_kill_9() {
    let mut redis = ThrowawayRedis::start(&[]);
    assert_eq!(redis.command(&["SET", "k", "v"]).unwrap(), "+OK");
    redis.restart();
    assert_eq!(redis.command(&["GET", "k"]).unwrap(), "$-1");
}

#[test]
fn redis_takes_settings() {
    let redis = ThrowawayRedis::start(&[("maxmemory", "3mb"), ("maxmemory-policy", "allkeys-lru")]);
    let info = redis.command(&["INFO", "memory"]).unwrap();
    assert!(info.contains("maxmemory:3145728\r\n") && info.contains("maxmemory_policy:allkeys-lru\r\n"), "{info}");
}

#[test]
fn redis_can_hang_and_come_back() {
    let redis = ThrowawayRedis::start(&[]);
    redis.pause();
    let stream = TcpStream::connect(redis.address()).expect("a hanging server still has its port");
    stream.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
    std::io::Write::write_all(&mut &stream, b"PING\r\n").unwrap();
    let mut reply = [0; 7];
    assert!(std::io::Read::read_exact(&mut &stream, &mut reply).is_err());
    redis.resume();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    std::io::Read::read_exact(&mut &stream, &mut reply).unwrap();
    assert_eq!(&reply, b"+PONG\r\n");
}

#[test]
fn postgres_survives_kill_9_and_takes_settings() {
    let mut postgres = ThrowawayPostgres::start(&[("synchronous_commit", "off")]);
    assert_eq!(postgres.sql("SHOW synchronous_commit").unwrap().trim(), "off");
    postgres.sql("CREATE TABLE t (n int)").unwrap();
    postgres.sql("SET synchronous_commit = on; INSERT INTO t VALUES (7)").unwrap();
    postgres.kill9();
    assert!(postgres.sql("SELECT 1").is_err());
    postgres.restart();
    assert_eq!(postgres.sql("SELECT n FROM t").unwrap().trim(), "7");
    postgres.stop();
    postgres.restart();
    assert_eq!(postgres.sql("SELECT n FROM t").unwrap().trim(), "7");
}

#[test]
fn mariadb_survives_kill_9_and_takes_settings() {
    let mut mariadb = ThrowawayMariadb::start(&[("sql-mode", "")]);
    assert_eq!(mariadb.sql("SELECT @@global.sql_mode").unwrap().trim(), "");
    mariadb.sql("CREATE TABLE t (n int)").unwrap();
    mariadb.sql("INSERT INTO t VALUES (7)").unwrap();
    mariadb.kill9();
    assert!(mariadb.sql("SELECT 1").is_err());
    mariadb.restart();
    assert_eq!(mariadb.sql("SELECT n FROM t").unwrap().trim(), "7");
}

#[test]
fn a_dropped_server_is_gone_with_its_folder() {
    let redis = ThrowawayRedis::start(&[("appendonly", "yes")]);
    let (address, folder) = (redis.address(), redis.folder().to_owned());
    assert!(folder.exists());
    drop(redis);
    assert!(TcpStream::connect(address).is_err());
    assert!(!folder.exists());
}

/// Started by the test below in a process of its own, which is then killed.
#[test]
fn a_server_does_not_outlive_its_test_process() {
    const INNER: &str = "HAPAX_TEST_INNER_FILE";
    if let Ok(file) = std::env::var(INNER) {
        let redis = ThrowawayRedis::start(&[]);
        std::fs::write(&file, format!("{} {}", redis.address(), redis.folder().display())).unwrap();
        // The parent kills this process.
        std::thread::sleep(10 * PATIENCE);
        return;
    }
    support::native_servers();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("address");
    let mut inner = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "a_server_does_not_outlive_its_test_process"])
        .env(INNER, &file)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let (mut address, mut data) = (String::new(), String::new());
    eventually_blocking(PATIENCE, "the inner test has its server", || {
        let told = std::fs::read_to_string(&file).unwrap_or_default();
        let (a, d) = told.split_once(' ').unwrap_or_default();
        (address, data) = (a.to_owned(), d.to_owned());
        Path::new(&data).is_dir() && TcpStream::connect(&address).is_ok()
    });
    inner.kill().unwrap();
    inner.wait().unwrap();
    eventually_blocking(PATIENCE, "the server is gone with the process that started it", || {
        TcpStream::connect(&address).is_err() && !Path::new(&data).exists()
    });
}
