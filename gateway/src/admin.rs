//! The admin socket: a unix socket that answers one-line requests with JSON.
//!
//! Whoever can open it may only look. Requests are bounded in length and time, and are answered one
//! after the other.

use std::{
    fs,
    io::{self, BufRead, BufReader, Read, Write},
    os::unix::{
        fs::PermissionsExt,
        net::{UnixListener, UnixStream},
    },
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use crate::status::Status;

/// The longest request, in bytes.
const MAX_REQUEST: u64 = 256;
/// The longest answer that a client reads, in bytes.
const MAX_ANSWER: u64 = 16 << 20;
/// How long a peer may take.
const PATIENCE: Duration = Duration::from_secs(2);

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
}

impl Admin {
    /// Listens at `path`, and answers with what `status` gives, on a thread of its own.
    ///
    /// # Errors
    /// When another gateway listens there, or the path cannot be used.
    pub fn listen(
        path: &Path,
        status: impl Fn() -> Status + Send + 'static,
    ) -> Result<Self, AdminError> {
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
        fs::set_permissions(path, fs::Permissions::from_mode(0o600)).map_err(unusable)?;
        thread::Builder::new()
            .name("admin".into())
            .spawn(move || {
                for stream in listener.incoming().flatten() {
                    if let Err(error) = answer(&stream, &status) {
                        tracing::debug!(%error, "an admin request failed");
                    }
                }
            })
            .map_err(unusable)?;
        Ok(Self { path: path.into() })
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
    let unreachable = |source| AdminError::Unreachable { path: path.into(), source };
    let mut stream = UnixStream::connect(path).map_err(unreachable)?;
    stream.set_read_timeout(Some(PATIENCE)).map_err(unreachable)?;
    stream.write_all(b"status\n").map_err(unreachable)?;
    let mut text = String::new();
    stream.take(MAX_ANSWER).read_to_string(&mut text).map_err(unreachable)?;
    Ok(text)
}

fn answer(mut stream: &UnixStream, status: impl Fn() -> Status) -> io::Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let mut request = Vec::new();
    BufReader::new(stream.take(MAX_REQUEST)).read_until(b'\n', &mut request)?;
    let mut text = match request.trim_ascii() {
        b"status" => serde_json::to_string(&status())?,
        _ => r#"{"error":"unknown request; known are: status"}"#.into(),
    };
    text.push('\n');
    stream.write_all(text.as_bytes())
}

fn is_socket(found: &fs::Metadata) -> bool {
    use std::os::unix::fs::FileTypeExt;
    found.file_type().is_socket()
}
