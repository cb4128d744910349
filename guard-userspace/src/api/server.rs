//! The agent's end of the control API. It answers from what the agent and the kernel know; nothing
//! here can reach the packet path.

use std::{
    fs::{self, Permissions},
    io::{self, ErrorKind},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use axum::{
    Json, Router,
    extract::{Query, State},
    http::StatusCode,
    response::{IntoResponse, Response},
    routing::get,
};
use nix::unistd::{Group, chown};
use tokio::{
    net::{UnixListener, UnixStream},
    time::timeout,
};

use super::{Counter, ErrorBody, Question, Status, Talker};
use crate::{
    agent::Agent,
    explain::{Destination, Explanation},
};

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

    /// Answers until it fails, or this is dropped.
    pub async fn serve(self, agent: Arc<Agent>) -> io::Result<()> {
        let Self { listener, _file } = self;
        let router = Router::new()
            .route("/v1/status", get(status))
            .route("/v1/counters", get(counters))
            .route("/v1/talkers", get(talkers))
            .route("/v1/explain", get(explain))
            .fallback(unknown)
            .with_state(agent);
        axum::serve(listener, router).await
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

async fn status(State(agent): State<Arc<Agent>>) -> Result<Json<Status>, ApiError> {
    Ok(Json(agent.status().await?))
}

async fn counters(State(agent): State<Arc<Agent>>) -> Result<Json<Vec<Counter>>, ApiError> {
    Ok(Json(agent.counters()?))
}

async fn talkers(State(agent): State<Arc<Agent>>) -> Result<Json<Vec<Talker>>, ApiError> {
    Ok(Json(agent.talkers()?))
}

async fn explain(
    State(agent): State<Arc<Agent>>,
    Query(Question { from, to }): Query<Question>,
) -> Result<Json<Explanation>, Response> {
    let to = to
        .parse::<Destination>()
        .map_err(|error| (StatusCode::BAD_REQUEST, Json(ErrorBody { error })).into_response())?;
    let explanation = agent.explain(from, &to).await;
    explanation
        .map(Json)
        .map_err(|error| ApiError(error).into_response())
}

async fn unknown() -> Response {
    let body = ErrorBody {
        error:
            "there is no such resource: /v1/status, /v1/counters, /v1/talkers and /v1/explain are"
                .to_owned(),
    };
    (StatusCode::NOT_FOUND, Json(body)).into_response()
}

/// What went wrong inside the agent, as an answer.
struct ApiError(anyhow::Error);

impl<E: Into<anyhow::Error>> From<E> for ApiError {
    fn from(error: E) -> Self {
        Self(error.into())
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let Self(error) = self;
        let body = ErrorBody {
            error: format!("{error:#}"),
        };
        (StatusCode::INTERNAL_SERVER_ERROR, Json(body)).into_response()
    }
}
