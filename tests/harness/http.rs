//! The smallest HTTP client that can read an agent's pages.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

const TIMEOUT: Duration = Duration::from_mins(1);

/// GETs a path from `address` (host:port) by HTTP/1.0; the answer's status and body.
pub fn get(address: &str, path: &str) -> io::Result<(u16, String)> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.set_write_timeout(Some(TIMEOUT))?;
    write!(stream, "GET {path} HTTP/1.0\r\nHost: {address}\r\n\r\n")?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    let answer = String::from_utf8_lossy(&answer);
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
    let status = head.split(' ').nth(1).and_then(|code| code.parse().ok());
    status
        .map(|status| (status, body.to_owned()))
        .ok_or_else(|| io::Error::other(format!("not an HTTP answer: {head:?}")))
}

/// The value of one series, named with its labels as the page writes them.
pub fn metric(page: &str, series: &str) -> Option<f64> {
    page.lines()
        .filter_map(|line| line.strip_prefix(series)?.strip_prefix(' '))
        .find_map(|value| value.split(' ').next()?.parse().ok())
}
