//! `/metrics` for Prometheus and `/health` for whoever restarts processes. Small enough to need no server crate.

use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hapax::consumer::Monitor;
use hapax::observe::{self, InboxSnapshot, Observed, Observer};
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

/// Longer than a scraper takes to send its request.
const PATIENCE: Duration = Duration::from_secs(5);

/// Kafka is polled all the time: a consumer that has not for so long is stuck.
const POLLED_WITHIN: Duration = Duration::from_secs(60);
/// Upper bounds of the histograms that count seconds.
const SECONDS: [f64; 9] = [0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0];
/// And of those that count messages.
const MESSAGES: [f64; 6] = [1.0, 4.0, 16.0, 64.0, 256.0, 1_024.0];

/// What there is to show.
#[derive(Clone)]
pub struct Page {
    metrics: PrometheusHandle,
    health: Health,
}

/// Where a health check looks.
#[derive(Clone)]
pub enum Health {
    Consumer(Monitor),
    Inbox(Standing),
}

impl Health {
    pub const fn of_consumer(monitor: Monitor) -> Self {
        Self::Consumer(monitor)
    }

    /// And what is to be told how the inbox stands.
    pub fn of_inbox() -> (Self, Standing) {
        let standing = Standing::default();
        (Self::Inbox(standing.clone()), standing)
    }
}

/// How an inbox stood when somebody looked last.
#[derive(Clone, Default)]
pub struct Standing(Arc<Mutex<InboxSnapshot>>);

impl Observer for Standing {
    fn on(&self, event: &Observed<'_>) {
        if let Observed::Inbox(snapshot) = event {
            self.0.lock().unwrap_or_else(PoisonError::into_inner).clone_from(snapshot);
        }
    }
}

impl Page {
    /// From now on what goes through the `metrics` facade is kept for Prometheus.
    pub fn new(health: Health) -> Result<Self, String> {
        let builder = PrometheusBuilder::new().set_buckets(&SECONDS);
        let matcher = metrics_exporter_prometheus::Matcher::Full("hapax_store_batch".into());
        let builder = builder.and_then(|builder| builder.set_buckets_for_metric(matcher, &MESSAGES));
        let metrics = builder.and_then(PrometheusBuilder::install_recorder);
        let metrics = metrics.map_err(|e| format!("--metrics-port: {e}; leave it out"))?;
        Ok(Self { metrics, health })
    }

    fn metrics(&self) -> String {
        self.metrics.run_upkeep();
        self.metrics.render()
    }

    /// Waiting for something that is down is no reason to be restarted.
    fn health(&self) -> (&'static str, String) {
        let snapshot = match &self.health {
            Health::Consumer(monitor) => monitor.snapshot(),
            Health::Inbox(standing) => {
                return ("200 OK", format!("{}\n", standing.0.lock().unwrap_or_else(PoisonError::into_inner)));
            }
        };
        let status = match snapshot.health(POLLED_WITHIN) {
            observe::Health::Well | observe::Health::Waiting(_) => "200 OK",
            observe::Health::Stuck(_) => "503 Service Unavailable",
        };
        (status, format!("{snapshot}\n"))
    }
}

pub async fn listen(port: u16) -> Result<TcpListener, String> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await;
    listener.map_err(|e| format!("--metrics-port {port}: {e}; choose another port"))
}

/// Answers until it is dropped.
pub async fn serve(listener: TcpListener, page: Page) {
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            // Out of file descriptors, most likely: that may pass.
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        let page = page.clone();
        tokio::spawn(async move {
            let _ = tokio::time::timeout(PATIENCE, answer(stream, &page)).await;
        });
    }
}

async fn answer(mut stream: TcpStream, page: &Page) -> std::io::Result<()> {
    let mut request = Vec::new();
    while !request.windows(4).any(|end| end == b"\r\n\r\n") && request.len() < 8_192 {
        if stream.read_buf(&mut request).await? == 0 {
            break;
        }
    }
    let line = String::from_utf8_lossy(request.split(|byte| *byte == b'\r').next().unwrap_or_default()).into_owned();
    let (status, kind, body) = match line.split(' ').collect::<Vec<_>>()[..] {
        ["GET", "/metrics", _] => ("200 OK", "text/plain; version=0.0.4", page.metrics()),
        ["GET", "/health", _] => {
            let (status, health) = page.health();
            (status, "application/json", health)
        }
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
