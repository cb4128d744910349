//! The Unix socket of the control API: its permissions, and replacing the socket of a previous agent.

use std::{
    fs::{self, Permissions},
    io::{self, ErrorKind},
    os::unix::fs::{MetadataExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use nix::unistd::{Group, chown};
use tokio::{
    net::{UnixListener, UnixStream},
    time::{sleep, timeout},
};
use tracing::info;

use super::routes::{self, ApiState};
use crate::api::listen;

/// Only root and this group may connect.
const GROUP: &str = "guard";
const SOCKET_MODE: u32 = 0o660;

/// How long to wait for the end of a running agent: it may be about to end.
const PATIENCE: Duration = Duration::from_secs(5);

const STEP: Duration = Duration::from_millis(20);

/// Why the control socket cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    #[error("an agent is already running: it listens at {0}; stop it, or use another --socket")]
    AgentRunning(String),
    #[error("the control socket {socket} cannot be created: {error}")]
    Io { socket: String, error: io::Error },
}

/// The socket, which is removed when this is dropped.
pub struct ControlSocket {
    listener: UnixListener,
    _file: RemovedOnDrop,
}

impl ControlSocket {
    /// Binds the socket. The socket of a dead agent is replaced. If an agent listens on it, this waits for its end.
    ///
    /// # Errors
    /// The other agent does not end soon, or the socket cannot be created.
    pub async fn bind(path: &Path) -> Result<Self, SocketError> {
        let io = |error| SocketError::Io {
            socket: path.display().to_string(),
            error,
        };
        let start = Instant::now();
        let mut is_logged = false;
        while is_listened_at(path).await.map_err(io)? {
            if start.elapsed() >= PATIENCE {
                return Err(SocketError::AgentRunning(path.display().to_string()));
            }
            if !is_logged {
                info!(
                    "another agent listens at {}: waiting for its end",
                    path.display()
                );
                is_logged = true;
            }
            sleep(STEP).await;
        }
        Self::replace(path).map_err(io)
    }

    fn replace(path: &Path) -> io::Result<Self> {
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder)?;
        }
        match fs::symlink_metadata(path) {
            Ok(metadata) if is_socket(&metadata) => fs::remove_file(path)?,
            Ok(_) => return Err(io::Error::other("the file exists and is not a socket")),
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        let listener = UnixListener::bind(path)?;
        let file = RemovedOnDrop {
            path: path.to_owned(),
            inode: fs::symlink_metadata(path)?.ino(),
        };
        if let Some(group) = Group::from_name(GROUP)? {
            chown(path, None, Some(group.gid))?;
        }
        fs::set_permissions(path, Permissions::from_mode(SOCKET_MODE))?;
        Ok(Self {
            listener,
            _file: file,
        })
    }

    /// Serves connections until the future is dropped.
    pub async fn serve(self, served: ApiState) {
        let Self { listener, _file } = self;
        listen::serve(listener, routes::router(served)).await;
    }
}

/// Whether an agent listens. An agent whose queue is full is alive, too.
async fn is_listened_at(path: &Path) -> io::Result<bool> {
    match timeout(PATIENCE, UnixStream::connect(path)).await {
        Ok(Ok(_)) | Err(_) => Ok(true),
        Ok(Err(error)) => match error.kind() {
            ErrorKind::ConnectionRefused | ErrorKind::NotFound => Ok(false),
            ErrorKind::WouldBlock => Ok(true),
            _ => Err(error),
        },
    }
}

fn is_socket(metadata: &fs::Metadata) -> bool {
    use std::os::unix::fs::FileTypeExt as _;
    metadata.file_type().is_socket()
}

struct RemovedOnDrop {
    path: PathBuf,
    inode: u64,
}

impl Drop for RemovedOnDrop {
    fn drop(&mut self) {
        let Self { path, inode } = self;
        // The next agent may have replaced the file as soon as this one stopped listening.
        if fs::symlink_metadata(&*path).is_ok_and(|found| found.ino() == *inode) {
            // An error is harmless: the next agent replaces the file.
            let _result = fs::remove_file(path);
        }
    }
}
