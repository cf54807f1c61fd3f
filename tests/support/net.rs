//! Ports of the tests' own.

use std::net::TcpListener;

/// A port on loopback that nobody listens on now.
///
/// Between 22001 and 31999: below the range from which the kernel gives ports to clients, so that a server that is down for a
/// while finds its port free when it comes back; above the range of `scripts/services`.
pub fn free_port() -> u16 {
    for _ in 0..1000 {
        let port = 22_001 + u16::try_from(super::random() % 9_999).unwrap();
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
    panic!("no free port between 22001 and 31999 on 127.0.0.1");
}

/// `host:port` of a URL (or of a bare `host:port`), with what stands before and after it.
pub fn split_url(url: &str) -> (&str, &str, &str) {
    let start = url.find("://").map_or(0, |i| i + 3);
    let end = url[start..].find(['/', '?', '#']).map_or(url.len(), |i| start + i);
    let start = url[start..end].rfind('@').map_or(start, |i| start + i + 1);
    (&url[..start], &url[start..end], &url[end..])
}
