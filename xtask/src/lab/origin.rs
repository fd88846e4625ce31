//! A small HTTP/1.1 origin for what nginx does not do: answers made from a seed, hashes of uploads,
//! and misbehaviour on purpose. It runs on threads of this process inside a lab's namespace.

use std::io::{self, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{setsockopt, sockopt};

use super::{Namespace, pattern};

/// What the origin does with a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Behaviour {
    /// `GET /bytes/N?seed=S` answers with N bytes of the [`pattern`] of S; `PUT /hash` with the
    /// SHA-256 of the body, in hexadecimal; anything else with 404.
    Serve,
    /// As `Serve`, but resets the connection (RST) after this many bytes of the response body.
    ResetAfter(u64),
    /// As `Serve`, but closes the connection (FIN) after this many bytes of the response body.
    CloseAfter(u64),
    /// Accepts and reads, and never answers.
    Silent,
    /// Accepts and resets at once.
    ResetAtOnce,
    /// Accepts and closes at once.
    CloseAtOnce,
}

/// A running origin. Dropping it closes its sockets and ends its threads.
#[derive(Debug)]
pub struct Origin {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    behaviour: Behaviour,
    stop: AtomicBool,
    accepted: AtomicU64,
    /// Addresses that connections came from.
    peers: Mutex<Vec<SocketAddr>>,
    open: Mutex<Vec<(u64, TcpStream)>>,
}

impl Origin {
    /// Starts an origin in `namespace` that listens on each of `listen`.
    pub fn start(
        namespace: &Namespace,
        listen: &[SocketAddr],
        behaviour: Behaviour,
    ) -> Result<Origin> {
        let shared = Arc::new(Shared {
            behaviour,
            stop: AtomicBool::new(false),
            accepted: AtomicU64::new(0),
            peers: Mutex::default(),
            open: Mutex::default(),
        });
        let mut origin = Origin { shared: Arc::clone(&shared), threads: Vec::new() };
        for address in listen {
            let listener = namespace
                .enter(|| TcpListener::bind(address))?
                .with_context(|| format!("the origin cannot listen on {address}"))?;
            listener.set_nonblocking(true)?;
            let shared = Arc::clone(&shared);
            origin.threads.push(std::thread::spawn(move || accept(&listener, &shared)));
        }
        Ok(origin)
    }

    /// Connections accepted so far.
    pub fn accepted(&self) -> u64 {
        self.shared.accepted.load(Ordering::Relaxed)
    }

    /// Where the connections came from, oldest first.
    pub fn peers(&self) -> Vec<SocketAddr> {
        self.shared.peers.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for Origin {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        for (_, stream) in self.shared.open.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            let _ = stream.shutdown(Shutdown::Both);
        }
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

fn accept(listener: &TcpListener, shared: &Arc<Shared>) {
    while !shared.stop.load(Ordering::Relaxed) {
        let mut wait = [PollFd::new(listener.as_fd(), PollFlags::POLLIN)];
        let _ = poll(&mut wait, PollTimeout::from(100_u8));
        let Ok((stream, peer)) = listener.accept() else { continue };
        let number = shared.accepted.fetch_add(1, Ordering::Relaxed);
        let mut open = shared.open.lock().unwrap_or_else(PoisonError::into_inner);
        if open.len() >= MAX_CONNECTIONS {
            continue;
        }
        let Ok(copy) = stream.try_clone() else { continue };
        open.push((number, copy));
        drop(open);
        shared.peers.lock().unwrap_or_else(PoisonError::into_inner).push(peer);
        let shared = Arc::clone(shared);
        std::thread::spawn(move || {
            // A client that goes away is no concern of the origin's.
            let _ = converse(&stream, shared.behaviour);
            // The clone goes first: with it open, dropping `stream` would close nothing.
            let mut open = shared.open.lock().unwrap_or_else(PoisonError::into_inner);
            open.retain(|(other, _)| *other != number);
        });
    }
}

fn converse(stream: &TcpStream, behaviour: Behaviour) -> io::Result<()> {
    stream.set_nonblocking(false)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    match behaviour {
        Behaviour::ResetAtOnce => reset(stream),
        Behaviour::CloseAtOnce => Ok(()),
        Behaviour::Silent => io::copy(&mut &*stream, &mut io::sink()).map(drop),
        Behaviour::Serve => serve(stream, u64::MAX).map(drop),
        Behaviour::CloseAfter(limit) => {
            if serve(stream, limit)? {
                stream.shutdown(Shutdown::Write)?;
                io::copy(&mut &*stream, &mut io::sink())?;
            }
            Ok(())
        }
        Behaviour::ResetAfter(limit) => match serve(stream, limit)? {
            true => reset(stream),
            false => Ok(()),
        },
    }
}

/// Answers requests until the client closes. Returns true as soon as a response's body has been cut
/// off at `limit` bytes.
fn serve(stream: &TcpStream, limit: u64) -> io::Result<bool> {
    let mut input = BufReader::with_capacity(65536, stream);
    while let Some(request) = read_head(&mut input)? {
        if request.expects_continue {
            (&*stream).write_all(b"HTTP/1.1 100 Continue\r\n\r\n")?;
        }
        let (hash, length) = pattern::sha256_of(&mut (&mut input).take(request.body))?;
        if length < request.body {
            return Ok(false);
        }
        let answer = match (request.method.as_str(), parse_target(&request.target)) {
            ("GET", Some((length, seed))) => Answer::Pattern { length, seed },
            ("PUT", _) if request.target == "/hash" => Answer::Text("200 OK", hash),
            _ => Answer::Text("404 Not Found", "nothing here\n".to_owned()),
        };
        if respond(stream, &answer, limit)? {
            return Ok(true);
        }
    }
    Ok(false)
}

enum Answer {
    Pattern { length: u64, seed: u64 },
    Text(&'static str, String),
}

fn respond(mut stream: &TcpStream, answer: &Answer, limit: u64) -> io::Result<bool> {
    let (status, length) = match answer {
        Answer::Pattern { length, .. } => ("200 OK", *length),
        Answer::Text(status, text) => (*status, text.len() as u64),
    };
    write!(stream, "HTTP/1.1 {status}\r\nContent-Length: {length}\r\n\r\n")?;
    match answer {
        Answer::Pattern { seed, .. } => pattern::write(&mut stream, length.min(limit), *seed)?,
        Answer::Text(_, text) => {
            stream.write_all(&text.as_bytes()[..length.min(limit) as usize])?;
        }
    }
    Ok(length > limit)
}

/// Closing with a linger time of zero sends RST instead of FIN.
fn reset(stream: &TcpStream) -> io::Result<()> {
    let at_once = nix::libc::linger { l_onoff: 1, l_linger: 0 };
    setsockopt(&stream, sockopt::Linger, &at_once)?;
    Ok(())
}

#[derive(Debug)]
struct Head {
    method: String,
    target: String,
    body: u64,
    expects_continue: bool,
}

/// Reads up to the empty line; `None` when the connection ends before a request begins.
fn read_head(input: &mut impl Read) -> io::Result<Option<Head>> {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        if input.read(&mut byte)? == 0 {
            return match head.is_empty() {
                true => Ok(None),
                false => Err(io::ErrorKind::UnexpectedEof.into()),
            };
        }
        head.push(byte[0]);
        if head.len() > MAX_HEAD {
            return Err(invalid("a request head of more than 16 KiB"));
        }
    }
    parse_head(&head).map(Some)
}

fn parse_head(head: &[u8]) -> io::Result<Head> {
    let mut headers = [httparse::EMPTY_HEADER; 64];
    let mut request = httparse::Request::new(&mut headers);
    request.parse(head).map_err(|error| invalid(&error.to_string()))?;
    let (mut body, mut expects_continue) = (0, false);
    for header in request.headers.iter() {
        let value = String::from_utf8_lossy(header.value);
        if header.name.eq_ignore_ascii_case("content-length") {
            body = value.trim().parse().map_err(|_| invalid("a bad Content-Length"))?;
        } else if header.name.eq_ignore_ascii_case("transfer-encoding") {
            return Err(invalid("a body without Content-Length"));
        } else if header.name.eq_ignore_ascii_case("expect") {
            expects_continue = true;
        }
    }
    Ok(Head {
        method: request.method.unwrap_or_default().to_owned(),
        target: request.path.unwrap_or_default().to_owned(),
        body,
        expects_continue,
    })
}

/// Length and seed of `/bytes/N?seed=S`; the seed is 0 when it is not given.
fn parse_target(target: &str) -> Option<(u64, u64)> {
    let rest = target.strip_prefix("/bytes/")?;
    match rest.split_once("?seed=") {
        Some((length, seed)) => Some((length.parse().ok()?, seed.parse().ok()?)),
        None => Some((rest.parse().ok()?, 0)),
    }
}

fn invalid(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

const MAX_CONNECTIONS: usize = 2048;
const MAX_HEAD: usize = 16384;
const PATIENCE: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_read() {
        let head = parse_head(
            b"PUT /hash HTTP/1.1\r\nHost: x\r\ncontent-length: 12\r\nExpect: 100-continue\r\n\r\n",
        )
        .unwrap();
        assert_eq!((head.method.as_str(), head.target.as_str()), ("PUT", "/hash"));
        assert_eq!((head.body, head.expects_continue), (12, true));
        assert_eq!(parse_target("/bytes/100?seed=7"), Some((100, 7)));
        assert_eq!(parse_target("/bytes/5"), Some((5, 0)));
        assert_eq!(parse_target("/bytes/x"), None);
        assert!(parse_head(b"GET / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n").is_err());
        assert!(read_head(&mut &b""[..]).unwrap().is_none());
        assert!(read_head(&mut &b"GET /"[..]).is_err());
    }
}
