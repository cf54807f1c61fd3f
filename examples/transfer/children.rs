//! The service's processes: started, killed, stopped, told to end.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use crate::service;

const END: Duration = Duration::from_secs(30);

pub struct Member {
    /// Its number in the ledger.
    pub number: i64,
    /// Whose place it has: a successor has the same.
    pub name: &'static str,
    child: Child,
    log: PathBuf,
    trace: PathBuf,
}

impl Member {
    pub fn start(number: i64, name: &'static str, folder: &Path, flags: &[(&str, String)]) -> Result<Self, String> {
        let log = folder.join(format!("service-{number}.log"));
        let trace = folder.join(format!("service-{number}.begun"));
        let start = || {
            let out = File::create(&log)?;
            let mut command = Command::new(std::env::current_exe()?);
            command.arg(service::COMMAND).args(["--member", &number.to_string(), "--trace"]).arg(&trace);
            for (flag, value) in flags {
                command.args([format!("--{flag}"), value.clone()]);
            }
            // It ends when this pipe does, and so with this process.
            command.stdin(Stdio::piped()).stdout(out.try_clone()?).stderr(out).spawn()
        };
        let child = start().map_err(|e| format!("the service cannot be started: {e}"))?;
        Ok(Self { number, name, child, log, trace })
    }

    /// SIGKILL.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// SIGSTOP, SIGCONT, SIGTERM.
    pub fn signal(&self, name: &str) {
        let _ = Command::new("sh").args(["-c", &format!("kill -s {name} {}", self.child.id())]).status();
    }

    /// Why it is no longer there, if so.
    pub fn ended(&mut self) -> Option<String> {
        let status = self.child.try_wait().ok().flatten()?;
        Some(format!("the service has ended by itself ({status}): {}", self.last_words()))
    }

    /// Asks it to end, and waits.
    pub async fn end(mut self) -> Result<(), String> {
        self.signal("TERM");
        let started = Instant::now();
        loop {
            match self.child.try_wait() {
                Ok(Some(status)) => return self.was_good(status),
                Ok(None) if started.elapsed() < END => tokio::time::sleep(Duration::from_millis(20)).await,
                Ok(None) => return Err(format!("the service does not end within {END:?}: {}", self.last_words())),
                Err(error) => return Err(error.to_string()),
            }
        }
    }

    fn was_good(&self, status: ExitStatus) -> Result<(), String> {
        if status.success() {
            Ok(())
        } else {
            Err(format!("the service ended badly ({status}): {}", self.last_words()))
        }
    }

    pub fn last_words(&self) -> String {
        let log = fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(3)..].join(" / ")
    }

    /// Transfers whose accounts it had changed, in a transaction that may or may not have been committed.
    pub fn begun(trace: &Path) -> Vec<String> {
        let text = fs::read_to_string(trace).unwrap_or_default();
        // A kill may have cut the last line short.
        let whole = text.rfind('\n').map_or("", |end| &text[..end]);
        whole.lines().map(str::to_owned).collect()
    }

    pub fn trace(&self) -> PathBuf {
        self.trace.clone()
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        self.kill();
    }
}
