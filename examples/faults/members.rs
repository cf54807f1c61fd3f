//! The members: `service` processes, started, killed, stopped and asked to leave.

use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use crate::judge::Pid;

/// A `service` process.
pub struct Member {
    child: Child,
    pub pid: Pid,
    pub paused: bool,
    /// It was asked to leave.
    pub leaving: Option<Instant>,
    /// It will abort by itself.
    pub will_abort: bool,
    /// What it writes: `.journal`, `.log`, `.out`.
    files: PathBuf,
    /// Where it tells its health.
    port: u16,
}

impl Member {
    /// `files` is the path of its files, without their ends.
    pub fn start(service: &Path, flags: &[String], files: PathBuf, port: u16, will_abort: bool) -> Self {
        let out = File::create(files.with_extension("out")).expect("the run's folder can be written to");
        // Should this process be killed, the members go with it, be they stopped or not. setpriv execs: the process id is the member's.
        let child = Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "--"])
            .arg(service)
            .args(flags)
            .arg("--log")
            .arg(files.with_extension("log"))
            .arg("--journal")
            .arg(files.with_extension("journal"))
            .env("RUST_LOG", "hapax=info")
            // They panic on purpose.
            .env("RUST_BACKTRACE", "0")
            .stdin(Stdio::null())
            .stdout(out.try_clone().expect("one more handle"))
            .stderr(out)
            .spawn()
            .expect("setpriv of util-linux is there");
        Self { pid: child.id(), child, paused: false, leaving: None, will_abort, files, port }
    }

    pub fn signal(&self, name: &str) {
        let _ = Command::new("sh").args(["-c", &format!("kill -s {name} {}", self.pid)]).stderr(Stdio::null()).status();
    }

    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().expect("it is our child")
    }

    /// Kills it, and waits until it is gone.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    pub fn wait(&mut self, deadline: Duration) -> Option<ExitStatus> {
        let started = Instant::now();
        while started.elapsed() < deadline {
            if let Some(status) = self.ended() {
                return Some(status);
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        None
    }

    /// What it answers on its port.
    pub fn ask(&self, path: &str) -> std::io::Result<String> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port))?;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        stream.write_all(format!("GET {path} HTTP/1.1\r\n\r\n").as_bytes())?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    }

    /// What it says of itself, on one line.
    pub fn health(&self) -> String {
        match self.ask("/health") {
            Ok(answer) => answer.lines().last().unwrap_or_default().to_owned(),
            Err(error) => format!("does not answer: {error}"),
        }
    }

    /// The last words of its output.
    pub fn last_words(&self) -> String {
        let out = fs::read_to_string(self.files.with_extension("out")).unwrap_or_default();
        let lines: Vec<&str> = out.lines().collect();
        lines[lines.len().saturating_sub(8)..].join(" / ")
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        self.kill();
    }
}

/// How a process ended, in words.
pub fn in_words(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit code {code}"),
        (None, Some(signal)) => format!("signal {signal}"),
        (None, None) => "for no known reason".into(),
    }
}
