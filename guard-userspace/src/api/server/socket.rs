//! The Unix socket that the control API is served on: who may connect, and what happens to the socket
//! of an agent before this one.

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

/// Only root and this group may ask.
const GROUP: &str = "guard";
const SOCKET_MODE: u32 = 0o660;

/// How long an agent that is there already has to end: it may have been told to.
const PATIENCE: Duration = Duration::from_secs(5);

const STEP: Duration = Duration::from_millis(20);

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
    /// Binds the socket. One that a dead agent left is replaced; one that somebody listens on is not, unless that agent
    /// ends soon.
    pub async fn bind(path: &Path) -> Result<Self, SocketError> {
        let io = |error| SocketError::Io {
            socket: path.display().to_string(),
            error,
        };
        let start = Instant::now();
        let mut is_told = false;
        while is_listened_at(path).await.map_err(io)? {
            if start.elapsed() >= PATIENCE {
                return Err(SocketError::AgentRunning(path.display().to_string()));
            }
            if !is_told {
                info!(
                    "an agent listens at {}: waiting for its end",
                    path.display()
                );
                is_told = true;
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
            Ok(_) => return Err(io::Error::other("a file that is no socket is in its place")),
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

    /// Answers until this is dropped.
    pub async fn serve(self, served: ApiState) {
        let Self { listener, _file } = self;
        listen::serve(listener, routes::router(served)).await;
    }
}

/// Whether somebody listens. One whose queue is full is alive, too.
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
        // The next agent may have replaced it, as soon as nobody listens any more.
        if fs::symlink_metadata(&*path).is_ok_and(|found| found.ino() == *inode) {
            // Nothing is lost if it stays.
            let _result = fs::remove_file(path);
        }
    }
}
