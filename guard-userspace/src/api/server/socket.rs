//! The Unix socket that the control API is served on: who may connect, and what happens to the socket
//! of an agent before this one.

use std::{
    fs::{self, Permissions},
    io::{self, ErrorKind},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

use nix::unistd::{Group, chown};
use tokio::{
    net::{UnixListener, UnixStream},
    time::timeout,
};

use super::routes::{self, ApiState};
use crate::api::listen;

/// Only root and this group may ask.
const GROUP: &str = "guard";
const SOCKET_MODE: u32 = 0o660;

/// How long an agent that may be there already has to take a connection.
const PATIENCE: Duration = Duration::from_secs(2);

#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    #[error("an agent is already running: it listens at {0}; stop it, or use another --socket")]
    AgentRunning(String),
    #[error("the control socket {socket} cannot be made: {error}")]
    Io { socket: String, error: io::Error },
}

/// The socket, which is removed when this is dropped.
pub struct ControlSocket {
    listener: UnixListener,
    _file: RemovedOnDrop,
}

impl ControlSocket {
    /// Binds the socket. One that a dead agent left is replaced; one that somebody listens on is not.
    pub async fn bind(path: &Path) -> Result<Self, SocketError> {
        let socket = || path.display().to_string();
        match timeout(PATIENCE, UnixStream::connect(path)).await {
            // One whose queue is full is alive, too.
            Ok(Ok(_)) | Err(_) => return Err(SocketError::AgentRunning(socket())),
            Ok(Err(error)) => match error.kind() {
                ErrorKind::ConnectionRefused | ErrorKind::NotFound => {}
                ErrorKind::WouldBlock => return Err(SocketError::AgentRunning(socket())),
                _ => {
                    return Err(SocketError::Io {
                        socket: socket(),
                        error,
                    });
                }
            },
        }
        Self::replace(path).map_err(|error| SocketError::Io {
            socket: socket(),
            error,
        })
    }

    fn replace(path: &Path) -> io::Result<Self> {
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder)?;
        }
        match fs::symlink_metadata(path) {
            Ok(metadata) if is_socket(&metadata) => fs::remove_file(path)?,
            Ok(_) => return Err(io::Error::other("a file that is no socket is in its place")),
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        let listener = UnixListener::bind(path)?;
        let file = RemovedOnDrop(path.to_owned());
        if let Some(group) = Group::from_name(GROUP)? {
            chown(path, None, Some(group.gid))?;
        }
        fs::set_permissions(path, Permissions::from_mode(SOCKET_MODE))?;
        Ok(Self {
            listener,
            _file: file,
        })
    }

    /// Answers until this is dropped.
    pub async fn serve(self, served: ApiState) {
        let Self { listener, _file } = self;
        listen::serve(listener, routes::router(served)).await;
    }
}

fn is_socket(metadata: &fs::Metadata) -> bool {
    use std::os::unix::fs::FileTypeExt as _;
    metadata.file_type().is_socket()
}

struct RemovedOnDrop(PathBuf);

impl Drop for RemovedOnDrop {
    fn drop(&mut self) {
        let Self(path) = self;
        // Nothing is lost if it stays: the next agent replaces it.
        let _result = fs::remove_file(path);
    }
}
