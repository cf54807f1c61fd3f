//! A TCP relay between a client and a server that breaks what passes through it, on command.
//!
//! It runs on a thread and runtime of its own: a test may block, or stop tokio's clock, and the relay goes on.

use std::collections::HashMap;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::watch;

use super::{PATIENCE, eventually_blocking, net};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    ToServer,
    ToClient,
}

/// What the relay does to the bytes now. Every connection watches it.
#[derive(Clone, Debug, Default)]
struct Faults {
    refusing: bool,
    /// Connections opened before the last cut are reset.
    cuts: usize,
    delay: [Duration; 2],
    held: [bool; 2],
}

type Predicate = Box<dyn FnMut(&[u8]) -> bool + Send>;

/// A trap for one request.
struct Trap {
    matches: Predicate,
    /// The server gets the request, and its reply is swallowed; otherwise the request itself is swallowed.
    deliver: bool,
}

#[derive(Default)]
struct Shared {
    trap: Mutex<Option<Trap>>,
    sprung: AtomicUsize,
    opened: AtomicUsize,
    /// Open connections: their number, and how many cuts there had been when they came.
    live: Mutex<HashMap<usize, usize>>,
}

pub struct Relay {
    address: SocketAddr,
    faults: watch::Sender<Faults>,
    listening: watch::Receiver<bool>,
    shared: Arc<Shared>,
}

impl Relay {
    /// Relays to a server, given as `host:port` or as a URL.
    pub fn start(target: &str) -> Self {
        let target = net::split_url(target).1.to_owned();
        let (faults, watching) = watch::channel(Faults::default());
        let (tell, listening) = watch::channel(false);
        let shared = Arc::new(Shared::default());
        let port = net::free_port();
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let of_thread = shared.clone();
        std::thread::Builder::new()
            .name("relay".into())
            .spawn(move || {
                tokio::runtime::Builder::new_current_thread()
                    .enable_all()
                    .build()
                    .unwrap()
                    .block_on(accept(address, target, watching, tell, of_thread));
            })
            .unwrap();
        let relay = Self { address, faults, listening, shared };
        relay.wait_listening(true);
        relay
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The same URL (or `host:port`), by way of this relay.
    pub fn url(&self, url: &str) -> String {
        let (before, _, after) = net::split_url(url);
        format!("{before}{}{after}", self.address)
    }

    /// Resets every connection there is, at once. New ones are accepted.
    pub fn cut(&self) {
        let cuts = {
            // No connection may come between the count and its change.
            let _live = self.shared.live.lock().unwrap();
            self.faults.send_modify(|f| f.cuts += 1);
            self.faults.borrow().cuts
        };
        eventually_blocking(PATIENCE, "the relay's connections are cut", || {
            self.shared.live.lock().unwrap().values().all(|born| *born >= cuts)
        });
    }

    /// New connections are refused from now on; those that are open stay. Returns when nothing listens any more.
    pub fn refuse(&self) {
        self.faults.send_modify(|f| f.refusing = true);
        self.wait_listening(false);
    }

    /// A server that is gone: [`refuse`](Self::refuse) and [`cut`](Self::cut).
    pub fn down(&self) {
        self.refuse();
        self.cut();
    }

    /// Every piece of data in this direction arrives this much later.
    pub fn delay(&self, direction: Direction, delay: Duration) {
        self.faults.send_modify(|f| f.delay[direction as usize] = delay);
    }

    /// Nothing passes in this direction and nobody is told, as when a network drops packets. What was sent meanwhile arrives after
    /// [`restore`](Self::restore), as TCP would have it; [`cut`](Self::cut) loses it.
    pub fn black_hole(&self, direction: Direction) {
        self.faults.send_modify(|f| f.held[direction as usize] = true);
    }

    /// The next request for which `matches` is true reaches the server; its reply does not reach the client, whose connection is reset
    /// when the server has answered. `matches` sees the bytes as they come, up to 64 KiB at a time.
    ///
    /// For a request that arrives in pieces, match on the last one: the rest would be lost.
    pub fn cut_reply_to(&self, matches: impl FnMut(&[u8]) -> bool + Send + 'static) {
        *self.shared.trap.lock().unwrap() = Some(Trap { matches: Box::new(matches), deliver: true });
    }

    /// [`cut_reply_to`](Self::cut_reply_to) the next request, whatever it is.
    pub fn cut_next_reply(&self) {
        self.cut_reply_to(|_| true);
    }

    /// The next request for which `matches` is true never reaches the server: both sides are reset instead.
    pub fn cut_request(&self, matches: impl FnMut(&[u8]) -> bool + Send + 'static) {
        *self.shared.trap.lock().unwrap() = Some(Trap { matches: Box::new(matches), deliver: false });
    }

    /// How many requests [`cut_reply_to`](Self::cut_reply_to) and [`cut_request`](Self::cut_request) have caught: a test asserts it, or it may have proved nothing.
    pub fn caught(&self) -> usize {
        self.shared.sprung.load(Ordering::SeqCst)
    }

    /// Everything passes again: no delay, no black hole, no trap, new connections accepted. Returns when it listens.
    pub fn restore(&self) {
        *self.shared.trap.lock().unwrap() = None;
        self.faults.send_modify(|f| *f = Faults { cuts: f.cuts, ..Faults::default() });
        self.wait_listening(true);
    }

    /// Connections opened so far.
    pub fn opened(&self) -> usize {
        self.shared.opened.load(Ordering::SeqCst)
    }

    /// Connections open now.
    pub fn live(&self) -> usize {
        self.shared.live.lock().unwrap().len()
    }

    fn wait_listening(&self, wanted: bool) {
        let what = if wanted { "the relay listens" } else { "the relay no longer listens" };
        eventually_blocking(PATIENCE, what, || *self.listening.borrow() == wanted);
    }
}

impl std::fmt::Debug for Relay {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Relay").field("address", &self.address).field("live", &self.live()).finish_non_exhaustive()
    }
}

async fn accept(
    address: SocketAddr,
    target: String,
    mut faults: watch::Receiver<Faults>,
    listening: watch::Sender<bool>,
    shared: Arc<Shared>,
) {
    // Every await ends when the `Relay` is dropped, because its sender goes with it.
    loop {
        if faults.wait_for(|f| !f.refusing).await.is_err() {
            return;
        }
        let Ok(listener) = listen(address) else {
            // The port is taken for a moment.
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        };
        listening.send_replace(true);
        let mut refusing = faults.clone();
        loop {
            tokio::select! {
                client = listener.accept() => if let Ok((client, _)) = client {
                    let id = shared.opened.fetch_add(1, Ordering::SeqCst);
                    let born = {
                        let mut live = shared.live.lock().unwrap();
                        let born = faults.borrow().cuts;
                        live.insert(id, born);
                        born
                    };
                    tokio::spawn(connection(client, id, born, target.clone(), faults.clone(), shared.clone()));
                },
                changed = refusing.wait_for(|f| f.refusing) => {
                    if changed.is_err() {
                        return;
                    }
                    break;
                }
            }
        }
        drop(listener);
        listening.send_replace(false);
    }
}

fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = TcpSocket::new_v4()?;
    // Connections of before may linger on this port.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(1024)
}

async fn connection(
    client: TcpStream,
    id: usize,
    born: usize,
    target: String,
    mut faults: watch::Receiver<Faults>,
    shared: Arc<Shared>,
) {
    let watching = faults.clone();
    // Either way the streams are dropped here, and reset unless both sides have ended in order. Also when the relay itself is
    // dropped: then `wait_for` fails.
    tokio::select! {
        _ = pass(client, &target, watching, &shared) => {}
        _ = faults.wait_for(|f| f.cuts != born) => {}
    }
    shared.live.lock().unwrap().remove(&id);
}

/// Passes bytes both ways until both sides are done or something breaks. Streams are set to reset on drop, and set back to an
/// orderly end when both sides have ended in order.
async fn pass(client: TcpStream, target: &str, faults: watch::Receiver<Faults>, shared: &Shared) -> io::Result<()> {
    client.set_nodelay(true)?;
    client.set_zero_linger()?;
    let server = TcpStream::connect(target).await?;
    server.set_nodelay(true)?;
    server.set_zero_linger()?;
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_server, mut to_server) = server.into_split();
    // Set when a request was caught: from then on replies are swallowed.
    let (caught, swallow) = watch::channel(false);
    let mut of_requests = faults.clone();
    let requests = async {
        let mut buffer = vec![0; 65_536];
        while let Some(piece) = next(&mut from_client, &mut buffer, &mut of_requests, Direction::ToServer).await? {
            if let Some(deliver) = spring(shared, piece) {
                if !deliver {
                    shared.sprung.fetch_add(1, Ordering::SeqCst);
                    return Err(io::ErrorKind::ConnectionReset.into());
                }
                caught.send_replace(true);
            }
            to_server.write_all(piece).await?;
        }
        to_server.shutdown().await
    };
    let mut of_replies = faults.clone();
    let replies = async {
        let mut buffer = vec![0; 65_536];
        let mut swallow = swallow;
        loop {
            if *swallow.borrow() {
                return swallow_reply(&mut from_server, &mut buffer, shared).await;
            }
            let piece = tokio::select! {
                biased;
                _ = swallow.wait_for(|s| *s) => continue,
                piece = next(&mut from_server, &mut buffer, &mut of_replies, Direction::ToClient) => piece?,
            };
            let Some(piece) = piece else { break };
            to_client.write_all(piece).await?;
        }
        to_client.shutdown().await
    };
    tokio::try_join!(requests, replies)?;
    // Both ended in order, and both ends were passed on: nothing is left to lose.
    let _ = from_client.reunite(to_client).map(orderly);
    let _ = from_server.reunite(to_server).map(orderly);
    Ok(())
}

#[allow(deprecated)] // tokio names no other way back from `set_zero_linger`; without a time it does not block
fn orderly(stream: TcpStream) {
    let _ = stream.set_linger(None);
}

/// The next piece in this direction, held and delayed as the faults say; `None` at the end.
async fn next<'b>(
    from: &mut OwnedReadHalf,
    buffer: &'b mut [u8],
    faults: &mut watch::Receiver<Faults>,
    direction: Direction,
) -> io::Result<Option<&'b [u8]>> {
    let n = from.read(buffer).await?;
    let delay = faults.borrow().delay[direction as usize];
    if !delay.is_zero() {
        tokio::time::sleep(delay).await;
    }
    let gone = faults.wait_for(|f| !f.held[direction as usize]).await.is_err();
    if gone {
        return Err(io::ErrorKind::ConnectionReset.into());
    }
    Ok((n > 0).then_some(&buffer[..n]))
}

/// Whether this piece is the one the trap waits for, and if so, whether the server gets it.
fn spring(shared: &Shared, piece: &[u8]) -> Option<bool> {
    let mut trap = shared.trap.lock().unwrap();
    if !(trap.as_mut()?.matches)(piece) {
        return None;
    }
    trap.take().map(|t| t.deliver)
}

/// Reads the reply and keeps it. A server that has answered and fallen silent has done what it was asked; then everything is reset.
async fn swallow_reply(from: &mut OwnedReadHalf, buffer: &mut [u8], shared: &Shared) -> io::Result<()> {
    let mut quiet = Duration::from_secs(10);
    while let Ok(Ok(n)) = tokio::time::timeout(quiet, from.read(buffer)).await {
        if n == 0 {
            break;
        }
        quiet = Duration::from_millis(100);
    }
    shared.sprung.fetch_add(1, Ordering::SeqCst);
    Err(io::ErrorKind::ConnectionReset.into())
}
