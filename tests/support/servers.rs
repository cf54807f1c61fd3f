//! Throw-away servers: native programs on a temporary folder and a port of their own, to be killed, stopped, restarted and badly
//! configured. They end with the value that holds them, and also when the test process dies.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use super::{leave_out_or_fail, net};

/// How long a server may take to answer after its start: a crashed one replays its log first, and the machine may be busy.
const READY: Duration = Duration::from_secs(90);

/// Runs "$@" in the background, tells its process id, waits for a word on standard input, then kills it. So the server cannot outlive
/// the process that holds the other end of the pipe, however that one ends; an end without a word takes the folder along.
const WATCHDOG: &str = r#"
trap '' INT TERM HUP
folder=$1; log=$2; shift 2
"$@" </dev/null >>"$log" 2>&1 &
pid=$!
echo $pid
read -r word
kill -9 $pid 2>/dev/null
wait $pid 2>/dev/null
[ "$word" = keep ] || { cd /; rm -rf "$folder"; }
"#;

struct Process {
    watchdog: Child,
    /// Its end is the server's end.
    leash: Option<ChildStdin>,
    pid: u32,
}

impl Process {
    fn start(command: &[String], folder: &Path, log: &Path) -> Self {
        let mut watchdog = Command::new("sh")
            .args(["-c", WATCHDOG, "watchdog"])
            .arg(folder)
            .arg(log)
            .args(command)
            .current_dir(folder)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            // Ctrl-C at the terminal is for the tests; the server goes when they are gone.
            .process_group(0)
            .spawn()
            .expect("sh starts");
        let leash = watchdog.stdin.take();
        let mut line = String::new();
        BufReader::new(watchdog.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let pid = line.trim().parse().expect("the watchdog tells the server's process id");
        Self { watchdog, leash, pid }
    }

    fn signal(&self, name: &str) {
        let _ = Command::new("sh").args(["-c", &format!("kill -s {name} {}", self.pid)]).stderr(Stdio::null()).status();
    }

    /// Gone, or a zombie that its watchdog has not waited for yet.
    fn ended(&self) -> bool {
        match fs::read_to_string(format!("/proc/{}/stat", self.pid)) {
            Ok(stat) => stat.rsplit(')').next().is_some_and(|rest| rest.trim_start().starts_with(['Z', 'X'])),
            Err(_) => true,
        }
    }

    fn wait_ended(&self, deadline: Duration) -> bool {
        let started = Instant::now();
        while !self.ended() {
            if started.elapsed() > deadline {
                return false;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        true
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // The folder goes with the `Server`, which may start another process on it first.
        if let Some(mut leash) = self.leash.take() {
            let _ = leash.write_all(b"keep\n");
        }
        let _ = self.watchdog.wait();
    }
}

/// What the three kinds share.
struct Server {
    kind: &'static str,
    port: u16,
    folder: TempDir,
    process: Option<Process>,
    command: Vec<String>,
}

impl Server {
    fn log(&self) -> PathBuf {
        self.folder.path().join("server.log")
    }

    fn start(&mut self, ready: impl Fn() -> bool) {
        let began = Instant::now();
        while let Err(why) = self.try_start(&ready) {
            // The children of a PostgreSQL that was killed outlive it for a moment, and hold its memory.
            let held = why.contains("pre-existing shared memory block");
            assert!(held && began.elapsed() < READY, "{why}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    fn try_start(&mut self, ready: &impl Fn() -> bool) -> Result<(), String> {
        assert!(self.process.is_none(), "{} runs already", self.kind);
        let process = Process::start(&self.command, self.folder.path(), &self.log());
        let started = Instant::now();
        loop {
            let ended = process.ended();
            if !ended && ready() {
                self.process = Some(process);
                return Ok(());
            }
            if ended || started.elapsed() > READY {
                let log = fs::read_to_string(self.log()).unwrap_or_default();
                let tail: Vec<&str> = log.lines().rev().take(20).collect();
                let tail: Vec<&str> = tail.into_iter().rev().collect();
                let what = if ended { "ended at once" } else { "does not answer" };
                return Err(format!("the throw-away {} {what}; its log ends:\n{}", self.kind, tail.join("\n")));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn process(&self) -> &Process {
        self.process.as_ref().unwrap_or_else(|| panic!("the throw-away {} does not run", self.kind))
    }

    fn kill9(&mut self) {
        let process = self.process();
        process.signal("KILL");
        assert!(process.wait_ended(READY), "a killed {} ends", self.kind);
        self.process = None;
    }

    fn stop(&mut self, signal: &str) {
        let process = self.process();
        process.signal(signal);
        assert!(process.wait_ended(READY), "{} ends on SIG{signal}", self.kind);
        self.process = None;
    }
}

/// The methods every kind has, and `Debug`.
macro_rules! server_methods {
    ($type:ident, $stop:literal) => {
        impl $type {
            pub fn port(&self) -> u16 {
                self.server.port
            }

            /// `127.0.0.1:port`.
            pub fn address(&self) -> String {
                format!("127.0.0.1:{}", self.server.port)
            }

            /// Kills it with SIGKILL and returns when it is gone. Its data stay.
            pub fn kill9(&mut self) {
                self.server.kill9();
            }

            /// Ends it in order (SIG
            #[doc = $stop]
            /// ). Its data stay.
            pub fn stop(&mut self) {
                self.server.stop($stop);
            }

            /// Starts it again on the same data and port, after [`kill9`](Self::kill9) or [`stop`](Self::stop); a running one is killed first.
            /// Returns when it answers.
            pub fn restart(&mut self) {
                if self.server.process.is_some() {
                    self.server.kill9();
                }
                let ready = self.ready();
                self.server.start(ready);
            }

            /// Stops its clock, as a machine that hangs: connections stay open, nothing answers.
            pub fn pause(&self) {
                self.server.process().signal("STOP");
            }

            /// The end of a [`pause`](Self::pause).
            pub fn resume(&self) {
                self.server.process().signal("CONT");
            }

            /// Its temporary folder.
            pub fn folder(&self) -> &Path {
                self.server.folder.path()
            }

            /// What it wrote to its log so far.
            pub fn log(&self) -> String {
                fs::read_to_string(self.server.log()).unwrap_or_default()
            }
        }

        impl std::fmt::Debug for $type {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.debug_struct(stringify!($type)).field("port", &self.server.port).finish_non_exhaustive()
            }
        }
    };
}

/// A redis-server. Nothing is kept on disk unless the settings say so.
pub struct ThrowawayRedis {
    server: Server,
    settings: Vec<(String, String)>,
}

server_methods!(ThrowawayRedis, "TERM");

impl ThrowawayRedis {
    /// With settings of redis.conf, such as `("appendonly", "yes")`, `("appendfsync", "always")`, `("maxmemory", "2mb")`.
    pub fn start(settings: &[(&str, &str)]) -> Self {
        let program = program("redis-server", &[], "redis-server");
        let settings: Vec<_> = settings.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        let server = started("redis-server", |port, folder| {
            let mut command = vec![program.clone()];
            for (key, value) in [("bind", "127.0.0.1"), ("daemonize", "no"), ("save", ""), ("appendonly", "no")] {
                if !settings.iter().any(|(k, _)| k == key) {
                    command.extend([format!("--{key}"), value.to_owned()]);
                }
            }
            command.extend(["--port".into(), port.to_string(), "--dir".into(), folder.display().to_string()]);
            command.extend(settings.iter().flat_map(|(k, v)| [format!("--{k}"), v.clone()]));
            (command, redis_ready(port))
        });
        Self { server, settings }
    }

    pub fn url(&self) -> String {
        format!("redis://{}", self.address())
    }

    /// One command and the first line of its reply: for tests without a client.
    pub fn command(&self, words: &[&str]) -> std::io::Result<String> {
        redis_command(self.server.port, words)
    }

    fn ready(&self) -> impl Fn() -> bool + use<> {
        redis_ready(self.server.port)
    }
}

fn redis_ready(port: u16) -> impl Fn() -> bool + use<> {
    // A server that loads its data answers -LOADING.
    move || redis_command(port, &["PING"]).is_ok_and(|reply| reply == "+PONG")
}

fn redis_command(port: u16, words: &[&str]) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(("127.0.0.1", port))?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    let mut request = format!("*{}\r\n", words.len());
    for word in words {
        request.push_str(&format!("${}\r\n{word}\r\n", word.len()));
    }
    stream.write_all(request.as_bytes())?;
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    reader.read_line(&mut line)?;
    if let Some(length) = line.strip_prefix('$').and_then(|l| l.trim_end().parse::<usize>().ok()) {
        let mut value = vec![0; length];
        reader.read_exact(&mut value)?;
        return Ok(String::from_utf8_lossy(&value).into_owned());
    }
    Ok(line.trim_end().to_owned())
}

/// A PostgreSQL server with a database and a superuser `postgres`, reached without a password.
pub struct ThrowawayPostgres {
    server: Server,
    bin: PathBuf,
}

server_methods!(ThrowawayPostgres, "INT");

impl ThrowawayPostgres {
    /// With settings of postgresql.conf, such as `("synchronous_commit", "off")`.
    pub fn start(settings: &[(&str, &str)]) -> Self {
        let bin = postgres_bin();
        let server = started("postgres", |port, folder| {
            let data = folder.join("db");
            if !data.exists() {
                let mut initdb = as_user("postgres", folder);
                initdb.extend([
                    bin.join("initdb").display().to_string(),
                    "-D".into(),
                    data.display().to_string(),
                    "-U".into(),
                    "postgres".into(),
                    "--auth=trust".into(),
                    "-EUTF8".into(),
                    "--locale=C".into(),
                    "--no-sync".into(),
                ]);
                run(&initdb, folder);
            }
            let mut command = as_user("postgres", folder);
            command.extend([
                bin.join("postgres").display().to_string(),
                "-D".into(),
                data.display().to_string(),
                "-p".into(),
                port.to_string(),
            ]);
            let own = [
                ("listen_addresses", "127.0.0.1"),
                ("unix_socket_directories", ""),
                ("shared_buffers", "16MB"),
                ("max_connections", "60"),
            ];
            for (key, value) in own.iter().chain(settings) {
                command.extend(["-c".into(), format!("{key}={value}")]);
            }
            (command, postgres_ready(&bin, port))
        });
        Self { server, bin }
    }

    pub fn url(&self) -> String {
        format!("postgres://postgres@{}/postgres", self.address())
    }

    /// One statement, and what psql prints for it: for tests without a client.
    pub fn sql(&self, statement: &str) -> Result<String, String> {
        output(Command::new(self.bin.join("psql")).args([
            "-XqAt",
            "-v",
            "ON_ERROR_STOP=1",
            "-d",
            &self.url(),
            "-c",
            statement,
        ]))
    }

    fn ready(&self) -> impl Fn() -> bool + use<> {
        postgres_ready(&self.bin, self.server.port)
    }
}

fn postgres_ready(bin: &Path, port: u16) -> impl Fn() -> bool + use<> {
    let program = bin.join("pg_isready");
    move || {
        let status = Command::new(&program)
            .args(["-q", "-h", "127.0.0.1", "-U", "postgres", "-t", "5", "-p", &port.to_string()])
            .stdin(Stdio::null())
            .status();
        status.is_ok_and(|s| s.success())
    }
}

fn postgres_bin() -> PathBuf {
    let mut found: Vec<(u32, PathBuf)> = fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|version| Some((version.file_name().to_str()?.parse().ok()?, version.path().join("bin"))))
        .filter(|(_, bin)| bin.join("initdb").exists() && bin.join("postgres").exists())
        .collect();
    found.sort();
    if let Some((_, bin)) = found.pop() {
        return bin;
    }
    let initdb = program("initdb", &[], "postgresql");
    Path::new(&initdb).parent().unwrap().to_owned()
}

/// A Kafka broker with listeners behind relays.
pub struct ThrowawayKafka {
    server: Server,
}

server_methods!(ThrowawayKafka, "TERM");

impl ThrowawayKafka {
    /// Each pair is one more listener: the port it listens on, and the port that its clients are told to come back to, where a
    /// [`Relay`](super::Relay) to the first stands. With settings of server.properties, such as `("group.consumer.session.timeout.ms", "6000")`.
    pub fn start(relayed: &[(u16, u16)], settings: &[(&str, &str)]) -> Self {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/services");
        let server = started("kafka", |port, folder| {
            let lines: String = settings.iter().map(|(key, value)| format!("{key}={value}\n")).collect();
            fs::write(folder.join("settings"), lines).unwrap();
            let mut command =
                vec!["env".into(), "KAFKA_HEAP=512m".into(), script.display().to_string(), "broker".into()];
            command.extend([folder.display().to_string(), port.to_string(), net::free_port().to_string()]);
            command.extend(relayed.iter().map(|(own, advertised)| format!("{own}:{advertised}")));
            (command, kafka_ready(port, folder.join("server.log")))
        });
        Self { server }
    }

    fn ready(&self) -> impl Fn() -> bool + use<> {
        kafka_ready(self.server.port, self.server.log())
    }
}

fn kafka_ready(port: u16, log: PathBuf) -> impl Fn() -> bool + use<> {
    // The log may be that of an earlier start.
    move || {
        fs::read_to_string(&log).is_ok_and(|log| log.contains("Kafka Server started"))
            && TcpStream::connect(("127.0.0.1", port)).is_ok()
    }
}

/// A MariaDB server with a database `hapax` and a user `hapax` (password `hapax`) who may do everything.
pub struct ThrowawayMariadb {
    server: Server,
    client: String,
}

server_methods!(ThrowawayMariadb, "TERM");

impl ThrowawayMariadb {
    /// With options of mariadbd without their dashes, such as `("sql-mode", "")`, `("read-only", "1")`.
    pub fn start(settings: &[(&str, &str)]) -> Self {
        let daemon = program("mariadbd", &[], "mariadb-server");
        let install = program("mariadb-install-db", &[], "mariadb-server");
        let client = program("mariadb", &[], "mariadb-server");
        let server = started("mariadbd", |port, folder| {
            let data = folder.join("db");
            let user = if is_root() { "mysql".to_owned() } else { whoami() };
            if !data.exists() {
                own(folder, "mysql");
                run(
                    &[
                        install.clone(),
                        "--no-defaults".into(),
                        "--auth-root-authentication-method=normal".into(),
                        "--skip-test-db".into(),
                        format!("--user={user}"),
                        format!("--datadir={}", data.display()),
                        "--innodb-log-file-size=8M".into(),
                    ],
                    folder,
                );
                let init = "CREATE DATABASE IF NOT EXISTS hapax CHARACTER SET utf8mb4;\n\
                            CREATE USER IF NOT EXISTS 'hapax'@'%' IDENTIFIED BY 'hapax';\n\
                            GRANT ALL PRIVILEGES ON *.* TO 'hapax'@'%' WITH GRANT OPTION;\n";
                fs::write(folder.join("init.sql"), init).unwrap();
                run(&["chmod".into(), "644".into(), folder.join("init.sql").display().to_string()], folder);
            }
            let mut command = vec![
                daemon.clone(),
                "--no-defaults".into(),
                format!("--user={user}"),
                format!("--datadir={}", data.display()),
                // A server that starts deletes what others have in the same folder for temporary tables.
                format!("--tmpdir={}", folder.display()),
                format!("--port={port}"),
                "--bind-address=127.0.0.1".into(),
                // Relative to the data folder: a long path does not fit a socket address.
                "--socket=s".into(),
                "--pid-file=p".into(),
                "--skip-name-resolve".into(),
                "--skip-log-bin".into(),
                "--innodb-buffer-pool-size=32M".into(),
                "--innodb-log-file-size=8M".into(),
                "--character-set-server=utf8mb4".into(),
                format!("--init-file={}", folder.join("init.sql").display()),
            ];
            command.extend(settings.iter().map(|(k, v)| format!("--{k}={v}")));
            (command, mariadb_ready(&client, port))
        });
        Self { server, client }
    }

    pub fn url(&self) -> String {
        format!("mysql://hapax:hapax@{}/hapax", self.address())
    }

    /// One statement, and what the client prints for it: for tests without a client of their own.
    pub fn sql(&self, statement: &str) -> Result<String, String> {
        mariadb(&self.client, self.server.port, statement)
    }

    fn ready(&self) -> impl Fn() -> bool + use<> {
        mariadb_ready(&self.client, self.server.port)
    }
}

fn mariadb_ready(client: &str, port: u16) -> impl Fn() -> bool + use<> {
    let client = client.to_owned();
    move || mariadb(&client, port, "SELECT 1").is_ok()
}

fn mariadb(client: &str, port: u16, statement: &str) -> Result<String, String> {
    let port = format!("--port={port}");
    output(Command::new(client).args([
        "--no-defaults",
        "--connect-timeout=5",
        "--host=127.0.0.1",
        &port,
        "--user=hapax",
        "--password=hapax",
        "-BN",
        "hapax",
        "-e",
        statement,
    ]))
}

/// Makes a folder and starts a server in it; another process may take the port first, so a few times.
fn started<R: Fn() -> bool>(kind: &'static str, prepare: impl Fn(u16, &Path) -> (Vec<String>, R)) -> Server {
    super::native_servers();
    // The servers' own users must be able to get there; a root user's temporary folder may be private.
    let base = if is_root() { PathBuf::from("/var/tmp") } else { std::env::temp_dir() };
    let mut last = String::new();
    for _ in 0..3 {
        let folder = tempfile::Builder::new().prefix("hapax-test-").tempdir_in(&base).unwrap();
        let port = net::free_port();
        let (command, ready) = prepare(port, folder.path());
        let mut server = Server { kind, port, folder, process: None, command };
        match server.try_start(&ready) {
            Ok(()) => return server,
            Err(why) => last = why,
        }
    }
    panic!("{last}");
}

/// Where a program is; Debian keeps some outside an ordinary user's PATH.
fn program(name: &str, more: &[&str], package: &str) -> String {
    let path = std::env::var("PATH").unwrap_or_default();
    path.split(':')
        .chain(["/usr/sbin", "/usr/local/sbin", "/usr/bin"])
        .chain(more.iter().copied())
        .map(|folder| Path::new(folder).join(name))
        .find(|candidate| candidate.is_file())
        .map_or_else(
            || {
                leave_out_or_fail(&format!(
                    "this test starts a {name} of its own to kill, and there is none: apt-get install {package} (scripts/test installs what it needs)"
                ))
            },
            |found| found.display().to_string(),
        )
}

fn is_root() -> bool {
    fs::metadata("/proc/self").is_ok_and(|m| m.uid() == 0)
}

fn whoami() -> String {
    output(Command::new("id").arg("-un")).unwrap().trim().to_owned()
}

/// Gives the folder to a server's own user, where we are root and the server would not run as such.
fn own(folder: &Path, user: &str) {
    if is_root() {
        run(&["chown".into(), user.into(), folder.display().to_string()], Path::new("/"));
    }
}

/// The words that run what follows as that user, and the folder given to it. `setpriv` execs: the process id stays.
fn as_user(user: &str, folder: &Path) -> Vec<String> {
    if !is_root() {
        return Vec::new();
    }
    own(folder, user);
    ["setpriv".into(), format!("--reuid={user}"), format!("--regid={user}"), "--init-groups".into(), "--".into()].into()
}

fn run(command: &[String], folder: &Path) {
    let result = output(Command::new(&command[0]).args(&command[1..]).current_dir(folder));
    if let Err(why) = result {
        panic!("{} failed: {why}", command.join(" "));
    }
}

fn output(command: &mut Command) -> Result<String, String> {
    let output = command.stdin(Stdio::null()).output().map_err(|e| e.to_string())?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    if output.status.success() { Ok(text) } else { Err(format!("{text}{}", String::from_utf8_lossy(&output.stderr))) }
}
