//! `/metrics` for Prometheus and `/health` for whoever restarts processes. Small enough to need no server crate.

use std::fmt::Write as _;
use std::net::Ipv4Addr;
use std::time::Duration;

use hapax::{Counts, Once};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

/// Longer than a scraper takes to send its request.
const PATIENCE: Duration = Duration::from_secs(5);

pub async fn listen(port: u16) -> Result<TcpListener, String> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await;
    listener.map_err(|e| format!("--metrics-port {port}: {e}; choose another port"))
}

/// Answers until it is dropped.
pub async fn serve(listener: TcpListener, once: Once) {
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            // Out of file descriptors, most likely: that may pass.
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        let once = once.clone();
        tokio::spawn(async move {
            let _ = tokio::time::timeout(PATIENCE, answer(stream, &once)).await;
        });
    }
}

async fn answer(mut stream: TcpStream, once: &Once) -> std::io::Result<()> {
    let mut request = Vec::new();
    while !request.windows(4).any(|end| end == b"\r\n\r\n") && request.len() < 8_192 {
        if stream.read_buf(&mut request).await? == 0 {
            break;
        }
    }
    let line = String::from_utf8_lossy(request.split(|byte| *byte == b'\r').next().unwrap_or_default()).into_owned();
    let (status, kind, body) = match line.split(' ').collect::<Vec<_>>()[..] {
        ["GET", "/metrics", _] => ("200 OK", "text/plain; version=0.0.4", metrics(&once.counts())),
        ["GET", "/health", _] => ("200 OK", "application/json", health(once)),
        ["GET", ..] => ("404 Not Found", "text/plain", "there are /metrics and /health\n".to_owned()),
        _ => ("405 Method Not Allowed", "text/plain", "GET only\n".to_owned()),
    };
    let head = format!(
        "HTTP/1.1 {status}\r\ncontent-type: {kind}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).await?;
    stream.write_all(body.as_bytes()).await?;
    stream.shutdown().await
}

fn metrics(counts: &Counts) -> String {
    let mut text = String::new();
    let counters = [
        ("handled", "handlers that ended well", counts.handled),
        ("duplicates", "messages that had been handled before", counts.duplicates),
        ("conflicts", "messages whose identity had been used by another one", counts.conflicts),
        ("failed", "attempts that failed", counts.failed),
        ("dead", "messages given up", counts.dead),
        ("took_over", "claims taken over from an owner whose lease had run out", counts.took_over),
        ("lost", "leases lost while the handler ran", counts.lost),
        ("late", "successes remembered although the claim had been taken over", counts.late),
        ("refused", "ends that the store refused", counts.refused),
        ("waited", "times that a message held by another owner was waited for", counts.waited),
        ("store_failures", "calls to the store that failed", counts.store_failures),
    ];
    for (name, help, value) in counters {
        let _ = writeln!(
            text,
            "# HELP hapax_{name}_total {help}\n# TYPE hapax_{name}_total counter\nhapax_{name}_total {value}"
        );
    }
    text
}

fn health(once: &Once) -> String {
    let counts = once.counts();
    serde_json::json!({
        "store": once.store().describe().store,
        "level": once.level().map(|level| level.to_string()),
        "owner": once.owner().to_string(),
        "handled": counts.handled,
        "duplicates": counts.duplicates,
        "dead": counts.dead,
        "store_failures": counts.store_failures,
    })
    .to_string()
}
