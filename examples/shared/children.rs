//! Processes of this same program: started, killed, stopped, told to end.

use std::fmt::Display;
use std::fs::{self, File};
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use tracing_subscriber::EnvFilter;

const END: Duration = Duration::from_secs(30);

pub struct Member {
    /// Its number in the ledger.
    pub number: i64,
    /// Whose place it has: a successor has the same.
    pub name: &'static str,
    /// The word that makes this program what it is.
    pub command: &'static str,
    child: Child,
    log: PathBuf,
}

impl Member {
    /// Its first word is the command, and one of its flags its number. Its log is in the folder.
    pub fn start(
        command: &'static str,
        number: i64,
        name: &'static str,
        folder: &Path,
        flags: &[(&str, String)],
    ) -> Result<Self, String> {
        let log = folder.join(format!("{command}-{number}.log"));
        let start = || {
            let out = File::create(&log)?;
            let mut process = Command::new(std::env::current_exe()?);
            process.arg(command).args(["--member", &number.to_string()]);
            for (flag, value) in flags {
                process.args([format!("--{flag}"), value.clone()]);
            }
            // It ends when this pipe does, and so with this process.
            process.stdin(Stdio::piped()).stdout(out.try_clone()?).stderr(out).spawn()
        };
        let child = start().map_err(|e| format!("the {command} cannot be started: {e}"))?;
        Ok(Self { number, name, command, child, log })
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
        Some(format!("the {} has ended by itself ({status}): {}", self.command, self.last_words()))
    }

    /// Asks it to end, and waits.
    pub async fn end(mut self) -> Result<(), String> {
        self.signal("TERM");
        let started = Instant::now();
        loop {
            match self.child.try_wait() {
                Ok(Some(status)) => return self.was_good(status),
                Ok(None) if started.elapsed() < END => tokio::time::sleep(Duration::from_millis(20)).await,
                Ok(None) => {
                    return Err(format!("the {} does not end within {END:?}: {}", self.command, self.last_words()));
                }
                Err(error) => return Err(error.to_string()),
            }
        }
    }

    fn was_good(&self, status: ExitStatus) -> Result<(), String> {
        if status.success() {
            Ok(())
        } else {
            Err(format!("the {} ended badly ({status}): {}", self.command, self.last_words()))
        }
    }

    pub fn last_words(&self) -> String {
        let log = fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(3)..].join(" / ")
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A child's life. Its last line says what it did, or why it ended.
pub async fn live<E: Display>(work: impl Future<Output = Result<String, E>>) -> ExitCode {
    begin();
    match work.await {
        Ok(did) => {
            println!("DONE {did}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

/// Its log goes to the file that the parent gave it, and it ends when the parent does, who holds the other end of standard input.
fn begin() {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("hapax=info"));
    tracing_subscriber::fmt().with_env_filter(filter).with_ansi(false).with_writer(std::io::stderr).init();
    std::thread::spawn(|| {
        let _ = std::io::stdin().read_to_end(&mut Vec::new());
        std::process::exit(3);
    });
}
