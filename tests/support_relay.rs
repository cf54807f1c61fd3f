//! The tests' own relay does to a connection what it says.

mod support;

use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use support::{Direction, PATIENCE, Relay, eventually_blocking};

/// A server that answers every four bytes with the same four, and counts the bytes it read.
fn echo() -> (String, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let read = Arc::new(AtomicUsize::new(0));
    let counter = read.clone();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let counter = counter.clone();
            std::thread::spawn(move || {
                let mut four = [0; 4];
                while stream.read_exact(&mut four).is_ok() {
                    counter.fetch_add(4, Ordering::SeqCst);
                    if stream.write_all(&four).is_err() {
                        break;
                    }
                }
            });
        }
    });
    (address, read)
}

fn connect(relay: &Relay) -> TcpStream {
    let stream = TcpStream::connect(relay.address()).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

fn ask(stream: &mut TcpStream, what: &[u8; 4]) -> std::io::Result<[u8; 4]> {
    stream.write_all(what)?;
    let mut reply = [0; 4];
    stream.read_exact(&mut reply)?;
    Ok(reply)
}

fn is_broken(e: &std::io::Error) -> bool {
    matches!(
        e.kind(),
        ErrorKind::ConnectionReset | ErrorKind::BrokenPipe | ErrorKind::UnexpectedEof | ErrorKind::ConnectionAborted
    )
}

/// Nothing arrives for a third of a second. (Late is what a busy machine makes of it, and late passes here.)
fn silent(stream: &TcpStream) -> bool {
    stream.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
    let nothing =
        matches!(stream.peek(&mut [0]), Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut));
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    nothing
}

#[test]
fn passes_both_ways_and_counts_connections() {
    let (server, read) = echo();
    let relay = Relay::start(&server);
    let mut a = connect(&relay);
    let mut b = connect(&relay);
    assert_eq!(&ask(&mut a, b"1111").unwrap(), b"1111");
    assert_eq!(&ask(&mut b, b"2222").unwrap(), b"2222");
    assert_eq!((relay.opened(), relay.live(), read.load(Ordering::SeqCst)), (2, 2, 8));
    drop(a);
    eventually_blocking(PATIENCE, "one connection is left", || relay.live() == 1);
}

#[test]
fn a_client_that_ends_in_order_gets_its_whole_answer() {
    // Half-closed: the last replies still come, and the end is an end, not a reset.
    let (server, _) = echo();
    let relay = Relay::start(&server);
    let mut client = connect(&relay);
    client.write_all(b"lastword").unwrap();
    client.shutdown(std::net::Shutdown::Write).unwrap();
    let mut all = Vec::new();
    client.read_to_end(&mut all).unwrap();
    assert_eq!(all, b"lastword");
}

#[test]
fn cut_resets_what_is_open_and_lets_new_ones_in() {
    let (server, _) = echo();
    let relay = Relay::start(&server);
    let mut old = connect(&relay);
    ask(&mut old, b"fine").unwrap();
    relay.cut();
    assert_eq!(relay.live(), 0);
    assert!(is_broken(&ask(&mut old, b"dead").unwrap_err()));
    assert_eq!(&ask(&mut connect(&relay), b"new!").unwrap(), b"new!");
}

#[test]
fn refuse_keeps_what_is_open_and_lets_nobody_in() {
    let (server, _) = echo();
    let relay = Relay::start(&server);
    let mut old = connect(&relay);
    ask(&mut old, b"fine").unwrap();
    relay.refuse();
    assert_eq!(TcpStream::connect(relay.address()).unwrap_err().kind(), ErrorKind::ConnectionRefused);
    assert_eq!(&ask(&mut old, b"stay").unwrap(), b"stay");
    relay.down();
    assert!(is_broken(&ask(&mut old, b"dead").unwrap_err()));
    relay.restore();
    assert_eq!(&ask(&mut connect(&relay), b"back").unwrap(), b"back");
}

#[test]
fn delay_makes_it_late() {
    let (server, _) = echo();
    let relay = Relay::start(&server);
    let mut client = connect(&relay);
    relay.delay(Direction::ToClient, Duration::from_millis(400));
    let started = Instant::now();
    assert_eq!(&ask(&mut client, b"slow").unwrap(), b"slow");
    assert!(started.elapsed() >= Duration::from_millis(400));
}

#[test]
fn a_black_hole_to_the_client_swallows_the_reply_not_the_request() {
    let (server, read) = echo();
    let relay = Relay::start(&server);
    let mut client = connect(&relay);
    relay.black_hole(Direction::ToClient);
    client.write_all(b"hey!").unwrap();
    eventually_blocking(PATIENCE, "the server reads the request", || read.load(Ordering::SeqCst) == 4);
    assert!(silent(&client));
    // Lost packets are sent again: the reply arrives after all.
    relay.restore();
    let mut reply = [0; 4];
    client.read_exact(&mut reply).unwrap();
    assert_eq!(&reply, b"hey!");
}

#[test]
fn a_black_hole_to_the_server_swallows_the_request() {
    let (server, read) = echo();
    let relay = Relay::start(&server);
    let mut client = connect(&relay);
    ask(&mut client, b"fine").unwrap();
    relay.black_hole(Direction::ToServer);
    client.write_all(b"hey!").unwrap();
    assert!(silent(&client));
    assert_eq!(read.load(Ordering::SeqCst), 4);
    // What a cut loses stays lost.
    relay.cut();
    relay.restore();
    assert!(is_broken(&client.read_exact(&mut [0; 4]).unwrap_err()));
    assert_eq!(&ask(&mut connect(&relay), b"next").unwrap(), b"next");
    assert_eq!(read.load(Ordering::SeqCst), 8);
}

#[test]
fn cut_reply_lets_the_request_through_and_loses_the_reply() {
    let (server, read) = echo();
    let relay = Relay::start(&server);
    let mut client = connect(&relay);
    relay.cut_reply_to(|bytes| bytes == b"mark");
    assert_eq!(&ask(&mut client, b"free").unwrap(), b"free");
    assert_eq!(relay.caught(), 0);
    assert!(is_broken(&ask(&mut client, b"mark").unwrap_err()));
    eventually_blocking(PATIENCE, "the trap has sprung", || relay.caught() == 1);
    assert_eq!(read.load(Ordering::SeqCst), 8, "the server got it");
    // Once only.
    assert_eq!(&ask(&mut connect(&relay), b"mark").unwrap(), b"mark");
    assert_eq!(relay.caught(), 1);
}

#[test]
fn cut_request_keeps_it_from_the_server() {
    let (server, read) = echo();
    let relay = Relay::start(&server);
    let mut client = connect(&relay);
    relay.cut_request(|bytes| bytes == b"mark");
    assert_eq!(&ask(&mut client, b"free").unwrap(), b"free");
    assert!(is_broken(&ask(&mut client, b"mark").unwrap_err()));
    assert_eq!((relay.caught(), read.load(Ordering::SeqCst)), (1, 4));
}

#[test]
fn a_server_that_is_gone_breaks_the_connection() {
    let nobody = support::net::free_port();
    let relay = Relay::start(&format!("127.0.0.1:{nobody}"));
    let mut client = connect(&relay);
    assert!(is_broken(&ask(&mut client, b"hey!").unwrap_err()));
}

#[test]
fn a_dropped_relay_is_gone() {
    let (server, _) = echo();
    let relay = Relay::start(&server);
    let address = relay.address();
    let mut client = connect(&relay);
    ask(&mut client, b"fine").unwrap();
    drop(relay);
    eventually_blocking(PATIENCE, "nobody listens", || TcpStream::connect(address).is_err());
    assert!(is_broken(&ask(&mut client, b"dead").unwrap_err()));
}

#[test]
fn urls_pass_through_it() {
    let (server, _) = echo();
    let relay = Relay::start(&server);
    let to = relay.address();
    assert_eq!(relay.url("redis://127.0.0.1:6379"), format!("redis://{to}"));
    assert_eq!(relay.url("redis://127.0.0.1:6379/3"), format!("redis://{to}/3"));
    assert_eq!(
        relay.url("postgres://user:p%40ss@db.example:5432/name?x=y"),
        format!("postgres://user:p%40ss@{to}/name?x=y")
    );
    assert_eq!(relay.url("127.0.0.1:9092"), to.to_string());
}
