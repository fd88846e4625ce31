//! The admin socket: a unix socket that answers one-line requests with JSON.
//!
//! Whoever can open it may only look. Requests are bounded in length, time and number: a client that
//! sends nothing, too much, or does not read its answer keeps nobody else waiting.

use std::{
    collections::VecDeque,
    fs,
    io::{self, ErrorKind, Read, Write},
    os::{
        fd::AsFd,
        unix::{
            fs::PermissionsExt,
            net::{UnixListener, UnixStream},
        },
    },
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::{status::Status, worker::clock};

/// The longest request, in bytes.
const MAX_REQUEST: usize = 256;
/// The longest answer that a client reads, in bytes.
const MAX_ANSWER: u64 = 16 << 20;
/// How long a peer may take.
const PATIENCE: Duration = Duration::from_secs(2);
/// Clients at a time. For one more, the one that has been there longest has to go.
const MAX_CLIENTS: usize = 64;
/// How long to leave the socket alone when the system refuses to work on it.
const PAUSE: Duration = Duration::from_millis(20);

/// Why the admin socket is not to be had.
#[derive(Debug, thiserror::Error)]
pub enum AdminError {
    /// Another headgate answers there.
    #[error("another headgate serves {}; stop it, or set another [gateway] admin", .0.display())]
    Taken(PathBuf),
    /// The path cannot be used.
    #[error("cannot use {} as admin socket: {source}; set another [gateway] admin", path.display())]
    Unusable {
        /// The path.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Nobody answers there.
    #[error("cannot ask headgate at {}: {source}; is it running? see --socket", path.display())]
    Unreachable {
        /// The path.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The answer is not one of this version's.
    #[error("cannot read the answer of headgate: {0}; does it run another version?")]
    Answer(#[from] serde_json::Error),
}

/// The listening socket; its file goes when this value does.
#[derive(Debug)]
pub struct Admin {
    path: PathBuf,
    listener: UnixListener,
}

impl Admin {
    /// Takes the path, so that no other gateway with the same configuration starts.
    ///
    /// # Errors
    /// When another gateway listens there, or the path cannot be used.
    pub fn bind(path: &Path) -> Result<Self, AdminError> {
        let unusable = |source| AdminError::Unusable { path: path.into(), source };
        if UnixStream::connect(path).is_ok() {
            return Err(AdminError::Taken(path.into()));
        }
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder).map_err(unusable)?;
        }
        match fs::symlink_metadata(path) {
            Ok(found) if is_socket(&found) => fs::remove_file(path).map_err(unusable)?,
            Ok(_) => return Err(unusable(io::Error::other("it exists and is not a socket"))),
            Err(_) => {}
        }
        let listener = UnixListener::bind(path).map_err(unusable)?;
        listener.set_nonblocking(true).map_err(unusable)?;
        let admin = Self { path: path.into(), listener };
        fs::set_permissions(path, fs::Permissions::from_mode(0o600)).map_err(unusable)?;
        Ok(admin)
    }

    /// Answers with what `status` gives, on a thread of its own.
    ///
    /// # Errors
    /// When the system has no thread or descriptor left.
    pub fn serve(&self, status: impl Fn() -> Status + Send + 'static) -> Result<(), AdminError> {
        let unusable = |source| AdminError::Unusable { path: self.path.clone(), source };
        let listener = self.listener.try_clone().map_err(unusable)?;
        thread::Builder::new()
            .name("admin".into())
            .spawn(move || serve(&listener, &status))
            .map_err(unusable)?;
        Ok(())
    }
}

impl Drop for Admin {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

/// Asks the gateway that listens at `path` for its status, as JSON text.
///
/// # Errors
/// When nobody answers, or not in time.
pub fn ask_status(path: &Path) -> Result<String, AdminError> {
    let unreachable = |source: io::Error| {
        let source = match source.kind() {
            // What the system calls "temporarily unavailable".
            ErrorKind::WouldBlock => io::Error::other(format!("no answer within {PATIENCE:?}")),
            _ => source,
        };
        AdminError::Unreachable { path: path.into(), source }
    };
    let mut stream = UnixStream::connect(path).map_err(unreachable)?;
    stream.set_read_timeout(Some(PATIENCE)).map_err(unreachable)?;
    stream.set_write_timeout(Some(PATIENCE)).map_err(unreachable)?;
    stream.write_all(b"status\n").map_err(unreachable)?;
    let mut text = String::new();
    stream.take(MAX_ANSWER).read_to_string(&mut text).map_err(unreachable)?;
    Ok(text)
}

/// A client whose request is not answered yet, or not to the end.
#[derive(Debug)]
struct Client {
    stream: UnixStream,
    until: Duration,
    request: Vec<u8>,
    answer: Vec<u8>,
    written: usize,
}

/// Answers clients for as long as the process lives.
fn serve(listener: &UnixListener, status: &impl Fn() -> Status) {
    let mut clients = VecDeque::with_capacity(MAX_CLIENTS);
    loop {
        wait(listener, &clients);
        let now = clock();
        clients.retain_mut(|client: &mut Client| now < client.until && client.attend(status));
        if let Err(error) = admit(listener, now, &mut clients, status) {
            tracing::debug!(%error, "the admin socket admits nobody");
            thread::park_timeout(PAUSE);
        }
    }
}

/// Sleeps until somebody comes, a client can go on, or the first client's time is over.
fn wait(listener: &UnixListener, clients: &VecDeque<Client>) {
    let mut fds = Vec::with_capacity(clients.len() + 1);
    fds.push(PollFd::new(listener.as_fd(), PollFlags::POLLIN));
    fds.extend(clients.iter().map(|client| {
        let wanted = if client.answer.is_empty() { PollFlags::POLLIN } else { PollFlags::POLLOUT };
        PollFd::new(client.stream.as_fd(), wanted)
    }));
    let limit = match clients.front() {
        Some(oldest) => {
            let millis = oldest.until.saturating_sub(clock()).as_nanos().div_ceil(1_000_000);
            PollTimeout::try_from(millis).unwrap_or(PollTimeout::MAX)
        }
        None => PollTimeout::NONE,
    };
    match poll(&mut fds, limit) {
        Ok(_) | Err(nix::errno::Errno::EINTR) => {}
        Err(_) => thread::park_timeout(PAUSE),
    }
}

/// Takes in everybody who waits. Who has sent the request already is answered at once.
fn admit(
    listener: &UnixListener,
    now: Duration,
    clients: &mut VecDeque<Client>,
    status: &impl Fn() -> Status,
) -> io::Result<()> {
    loop {
        let stream = match listener.accept() {
            Ok((stream, _)) => stream,
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
            Err(error) => return Err(error),
        };
        stream.set_nonblocking(true)?;
        let (request, answer) = (Vec::new(), Vec::new());
        let mut client = Client { stream, until: now + PATIENCE, request, answer, written: 0 };
        if client.attend(status) {
            if clients.len() == MAX_CLIENTS {
                clients.pop_front();
            }
            clients.push_back(client);
        }
    }
}

impl Client {
    /// Goes on as far as possible without waiting; false when there is nothing left to do.
    fn attend(&mut self, status: &impl Fn() -> Status) -> bool {
        match self.advance(status) {
            Ok(()) => false,
            Err(error) if error.kind() == ErrorKind::WouldBlock => true,
            Err(error) => {
                tracing::debug!(%error, "an admin request failed");
                false
            }
        }
    }

    fn advance(&mut self, status: &impl Fn() -> Status) -> io::Result<()> {
        if self.answer.is_empty() {
            self.read_request()?;
            self.answer = answer(&self.request, status)?;
        }
        while self.written < self.answer.len() {
            match self.stream.write(&self.answer[self.written..])? {
                0 => return Err(ErrorKind::WriteZero.into()),
                count => self.written += count,
            }
        }
        Ok(())
    }

    /// Up to the end of a line, the end of what the client has to say, or the limit.
    fn read_request(&mut self) -> io::Result<()> {
        loop {
            let mut bytes = [0; MAX_REQUEST];
            let count = self.stream.read(&mut bytes[self.request.len()..])?;
            let new = &bytes[self.request.len()..][..count];
            let ends = count == 0 || new.contains(&b'\n');
            self.request.extend_from_slice(new);
            if ends || self.request.len() == MAX_REQUEST {
                return Ok(());
            }
        }
    }
}

fn answer(request: &[u8], status: &impl Fn() -> Status) -> io::Result<Vec<u8>> {
    let line = request.split(|byte| *byte == b'\n').next().unwrap_or_default();
    let mut text = match line.trim_ascii() {
        b"status" => serde_json::to_vec(&status())?,
        _ => br#"{"error":"unknown request; known are: status"}"#.to_vec(),
    };
    text.push(b'\n');
    Ok(text)
}

fn is_socket(found: &fs::Metadata) -> bool {
    use std::os::unix::fs::FileTypeExt;
    found.file_type().is_socket()
}
