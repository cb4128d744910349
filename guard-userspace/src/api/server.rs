//! The agent's end of the control API. It answers from what the agent and the kernel know; nothing
//! here can reach the packet path.

use std::{
    fs::{self, Permissions},
    io::{self, ErrorKind},
    os::unix::fs::PermissionsExt as _,
    path::{self, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use axum::{
    Extension, Json, Router,
    extract::{
        DefaultBodyLimit, FromRequest, Path, Query, Request, State,
        rejection::{PathRejection, QueryRejection},
    },
    http::{Method, StatusCode},
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::{delete, get, post},
};
use nix::unistd::{Group, chown};
use tokio::{
    net::{UnixListener, UnixStream},
    sync::{Mutex, Notify, Semaphore},
    time::timeout,
};
use tracing::info;
use utoipa::OpenApi;

use super::{
    Applied, Changed, Counter, Detached, EntryRequest, ErrorBody, ModeChange, NewTrial, PolicyText,
    Question, Reload, Revocation, Status, Talker,
    capture::{self, CaptureRequest},
    listen::{self, Client, Lasting},
};
use crate::{
    agent::{Agent, ChangeError},
    explain::Explanation,
    policy::Entry,
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
    pub async fn bind(path: &path::Path) -> Result<Self, SocketError> {
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

    fn replace(path: &path::Path) -> io::Result<Self> {
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
    pub async fn serve(self, served: Served) {
        let Self { listener, _file } = self;
        let router = Router::new()
            .route("/v1/openapi.json", get(description))
            .route("/v1/status", get(status))
            .route("/v1/policy", get(policy))
            .route("/v1/counters", get(counters))
            .route("/v1/talkers", get(talkers))
            .route("/v1/explain", get(explain))
            .route("/v1/capture", get(capture))
            .route("/v1/entries", get(entries).post(enter))
            .route("/v1/entries/{id}", delete(revoke))
            .route("/v1/mode", post(mode))
            .route("/v1/reload", post(reload))
            .route("/v1/try", post(try_policy))
            .route("/v1/confirm", post(confirm))
            .route("/v1/detach", post(detach))
            .fallback(unknown)
            .layer(DefaultBodyLimit::max(MAX_BODY))
            .layer(middleware::from_fn(told))
            .with_state(served);
        listen::serve(listener, router).await;
    }
}

/// The control API, described as OpenAPI 3.1 has it.
#[derive(OpenApi)]
#[openapi(
    info(
        title = "guard's control API",
        description = "HTTP over a Unix socket, for root and the group guard alone.",
    ),
    paths(
        status, policy, counters, talkers, explain, capture, entries, enter, revoke, mode, reload,
        try_policy, confirm, detach
    )
)]
pub struct Description;

/// Every request for a change is in the log, with who asked for it.
async fn told(Extension(Client(by)): Extension<Client>, request: Request, next: Next) -> Response {
    if request.method() == Method::GET {
        return next.run(request).await;
    }
    let asked = format!("{} {}", request.method(), request.uri().path());
    let response = next.run(request).await;
    let status = response.status().as_u16();
    info!(by, status, "{asked}");
    response
}

async fn description() -> Json<utoipa::openapi::OpenApi> {
    Json(Description::openapi())
}

/// What the answers come from.
#[derive(Clone)]
pub struct Served {
    pub agent: Arc<Mutex<Agent>>,
    /// Who captures has it.
    pub capture: Arc<Semaphore>,
    /// Told when the guard has been taken off, and the agent must end.
    pub detached: Arc<Notify>,
    pub is_asked_to_detach: Arc<AtomicBool>,
}

fn agent(served: &Served) -> Arc<Mutex<Agent>> {
    Arc::clone(&served.agent)
}

/// How long a client may take to send what it asks for.
const PATIENCE_FOR_BODY: Duration = Duration::from_secs(10);

/// A policy with a hundred thousand denied prefixes has about three million bytes.
const MAX_BODY: usize = 1 << 26;

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

/// Makes a change to its end, also if the client that asked for it hangs up meanwhile.
async fn whole<T: Send + 'static>(
    agent: Arc<Mutex<Agent>>,
    change: impl Future<Output = Result<T, ChangeError>> + Send + 'static,
) -> Answer<Changed<T>> {
    let made = tokio::spawn(async move {
        let done = change.await?;
        let not_kept = agent.lock().await.not_kept().map(str::to_owned);
        Ok::<_, ChangeError>(Changed { done, not_kept })
    });
    Ok(Json(made.await.map_err(anyhow::Error::from)??))
}

type Answer<T> = Result<Json<T>, ApiError>;

/// Whether and where the guard is at work.
#[utoipa::path(
    get,
    path = "/v1/status",
    responses(
        (status = 200, body = Status),
        (status = "4XX", body = ErrorBody, description = "What is wrong with the request, or with the policy"),
        (status = "5XX", body = ErrorBody, description = "What went wrong inside the agent"),
    )
)]
async fn status(State(served): State<Served>) -> Answer<Status> {
    Ok(Json(served.agent.lock().await.status().await?))
}

/// The policy in force, as it was written.
#[utoipa::path(
    get,
    path = "/v1/policy",
    responses(
        (status = 200, body = PolicyText),
        (status = "4XX", body = ErrorBody, description = "What is wrong with the request, or with the policy"),
        (status = "5XX", body = ErrorBody, description = "What went wrong inside the agent"),
    )
)]
async fn policy(State(served): State<Served>) -> Answer<PolicyText> {
    Ok(Json(served.agent.lock().await.policy_text()))
}

/// What became of the packets, by interface, service and reason.
#[utoipa::path(
    get,
    path = "/v1/counters",
    responses(
        (status = 200, body = Vec<Counter>),
        (status = "4XX", body = ErrorBody, description = "What is wrong with the request, or with the policy"),
        (status = "5XX", body = ErrorBody, description = "What went wrong inside the agent"),
    )
)]
async fn counters(State(served): State<Served>) -> Answer<Vec<Counter>> {
    Ok(Json(served.agent.lock().await.counters()?))
}

/// The sources that send most, estimated from a sample.
#[utoipa::path(
    get,
    path = "/v1/talkers",
    responses(
        (status = 200, body = Vec<Talker>),
        (status = "4XX", body = ErrorBody, description = "What is wrong with the request, or with the policy"),
        (status = "5XX", body = ErrorBody, description = "What went wrong inside the agent"),
    )
)]
async fn talkers(State(served): State<Served>) -> Answer<Vec<Talker>> {
    Ok(Json(served.agent.lock().await.talkers()?))
}

/// Why a packet from there to here gets its verdict.
#[utoipa::path(
    get,
    path = "/v1/explain",
    params(("from" = String, Query, description = "The source's address"), ("to" = String, Query, description = "Such as `8000/tcp` or `203.0.113.5:8000/tcp`")),
    responses(
        (status = 200, body = Explanation),
        (status = "4XX", body = ErrorBody, description = "What is wrong with the request, or with the policy"),
        (status = "5XX", body = ErrorBody, description = "What went wrong inside the agent"),
    )
)]
async fn explain(
    State(served): State<Served>,
    question: Result<Query<Question>, QueryRejection>,
) -> Answer<Explanation> {
    let Query(Question { from, to }) = question.map_err(wrong)?;
    let agent = served.agent.lock().await;
    let to = agent.destination(&to)?;
    Ok(Json(agent.explain(from, &to).await?))
}

/// Packets as they come, with their reasons, until the client hangs up. One client at a time.
#[utoipa::path(
    get,
    path = "/v1/capture",
    params(CaptureRequest),
    responses(
        (status = 200, content(
            (Vec<u8> = "application/x-pcapng"),
            (capture::Line = "application/x-ndjson"),
        )),
        (status = "4XX", body = ErrorBody, description = "What is wrong with the request, or that somebody captures already"),
        (status = "5XX", body = ErrorBody, description = "What went wrong inside the agent"),
    )
)]
async fn capture(
    State(served): State<Served>,
    Extension(lasting): Extension<Lasting>,
    Extension(Client(by)): Extension<Client>,
    request: Result<Query<CaptureRequest>, QueryRejection>,
) -> Result<Response, ApiError> {
    let Query(request) = request.map_err(wrong)?;
    let turn = Arc::clone(&served.capture).try_acquire_owned();
    let turn = turn.map_err(|_| {
        ChangeError::Harmful(
            "somebody captures already, and there is one at a time: end that one first".to_owned(),
        )
    })?;
    let taps = served.agent.lock().await.taps(&request)?;
    lasting.set();
    info!(
        reasons = request.reasons,
        service = request.service,
        source = request.source.map(|source| source.to_string()),
        all = request.all,
        by,
        "a capture begins"
    );
    Ok(capture::answer(&request, taps, turn))
}

/// What operators let through or drop for a while.
#[utoipa::path(
    get,
    path = "/v1/entries",
    responses(
        (status = 200, body = Vec<Entry>),
        (status = "4XX", body = ErrorBody, description = "What is wrong with the request, or with the policy"),
        (status = "5XX", body = ErrorBody, description = "What went wrong inside the agent"),
    )
)]
async fn entries(State(served): State<Served>) -> Answer<Vec<Entry>> {
    Ok(Json(served.agent.lock().await.entries().to_vec()))
}

/// Lets a source through or drops it for a while. In force when it is answered.
#[utoipa::path(
    post,
    path = "/v1/entries",
    request_body = EntryRequest,
    responses(
        (status = 200, body = Changed<Entry>),
        (status = "4XX", body = ErrorBody, description = "What is wrong with the request, or with the policy"),
        (status = "5XX", body = ErrorBody, description = "What went wrong inside the agent"),
    )
)]
async fn enter(
    State(served): State<Served>,
    Asked(Json(request)): Asked<Json<EntryRequest>>,
) -> Answer<Changed<Entry>> {
    whole(agent(&served), async move {
        served.agent.lock().await.enter(request).await
    })
    .await
}

/// Ends an entry.
#[utoipa::path(
    delete,
    path = "/v1/entries/{id}",
    params(("id" = u64, Path, description = "Its number"), ("operator" = Option<String>, Query, description = "Where the operator came in, as `SSH_CONNECTION` has it"), ("force" = Option<bool>, Query, description = "Do it even if it closes the operator's own way in")),
    responses(
        (status = 200, body = Changed<Entry>),
        (status = "4XX", body = ErrorBody, description = "What is wrong with the request, or with the policy"),
        (status = "5XX", body = ErrorBody, description = "What went wrong inside the agent"),
    )
)]
async fn revoke(
    State(served): State<Served>,
    id: Result<Path<u64>, PathRejection>,
    request: Result<Query<Revocation>, QueryRejection>,
) -> Answer<Changed<Entry>> {
    let Path(id) = id.map_err(wrong)?;
    let Query(request) = request.map_err(wrong)?;
    whole(agent(&served), async move {
        served.agent.lock().await.revoke(id, request).await
    })
    .await
}

/// Sets the mode of the host or of a service, or gives it back to the policy.
#[utoipa::path(
    post,
    path = "/v1/mode",
    request_body = ModeChange,
    responses(
        (status = 200, body = Changed<Applied>),
        (status = "4XX", body = ErrorBody, description = "What is wrong with the request, or with the policy"),
        (status = "5XX", body = ErrorBody, description = "What went wrong inside the agent"),
    )
)]
async fn mode(
    State(served): State<Served>,
    Asked(Json(request)): Asked<Json<ModeChange>>,
) -> Answer<Changed<Applied>> {
    whole(agent(&served), async move {
        served.agent.lock().await.set_mode(request).await
    })
    .await
}

/// Reads the policy file again and puts it in force.
#[utoipa::path(
    post,
    path = "/v1/reload",
    request_body = Reload,
    responses(
        (status = 200, body = Changed<Applied>),
        (status = "4XX", body = ErrorBody, description = "What is wrong with the request, or with the policy"),
        (status = "5XX", body = ErrorBody, description = "What went wrong inside the agent"),
    )
)]
async fn reload(
    State(served): State<Served>,
    Asked(Json(request)): Asked<Json<Reload>>,
) -> Answer<Changed<Applied>> {
    whole(agent(&served), async move {
        served.agent.lock().await.reload(&request).await
    })
    .await
}

/// Puts a policy in force that goes back by itself.
#[utoipa::path(
    post,
    path = "/v1/try",
    request_body = NewTrial,
    responses(
        (status = 200, body = Changed<Applied>),
        (status = "4XX", body = ErrorBody, description = "What is wrong with the request, or with the policy"),
        (status = "5XX", body = ErrorBody, description = "What went wrong inside the agent"),
    )
)]
async fn try_policy(
    State(served): State<Served>,
    Asked(Json(request)): Asked<Json<NewTrial>>,
) -> Answer<Changed<Applied>> {
    whole(agent(&served), async move {
        served.agent.lock().await.try_policy(request).await
    })
    .await
}

/// Keeps the policy on trial.
#[utoipa::path(
    post,
    path = "/v1/confirm",
    responses(
        (status = 200, body = Changed<Applied>),
        (status = "4XX", body = ErrorBody, description = "What is wrong with the request, or with the policy"),
        (status = "5XX", body = ErrorBody, description = "What went wrong inside the agent"),
    )
)]
async fn confirm(State(served): State<Served>) -> Answer<Changed<Applied>> {
    whole(agent(&served), async move {
        served.agent.lock().await.confirm().await
    })
    .await
}

/// Takes the guard off every interface, and ends the agent.
#[utoipa::path(
    post,
    path = "/v1/detach",
    responses(
        (status = 200, body = Detached, description = "The guard is off and the agent ends, but something is to be told"),
        (status = 204, description = "Nothing of the guard is left in the kernel"),
        (status = "5XX", body = ErrorBody, description = "What went wrong inside the agent"),
    )
)]
async fn detach(State(served): State<Served>) -> Response {
    let mut agent = served.agent.lock().await;
    // Before it is: whoever looks after the agent may see that first, and must know that somebody waits for an answer.
    served.is_asked_to_detach.store(true, Ordering::Release);
    let detached = agent.detach();
    // Whatever went wrong.
    served.detached.notify_one();
    if detached == Detached::default() {
        return StatusCode::NO_CONTENT.into_response();
    }
    Json(detached).into_response()
}

/// What a client sends, with what is wrong in the shape of every other error.
struct Asked<T>(T);

impl<S, T> FromRequest<S> for Asked<T>
where
    S: Send + Sync,
    T: FromRequest<S>,
    T::Rejection: std::fmt::Display,
{
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &S) -> Result<Self, ApiError> {
        let asked = timeout(PATIENCE_FOR_BODY, T::from_request(request, state)).await;
        match asked {
            Ok(asked) => asked.map(Self).map_err(|rejection| wrong(rejection).into()),
            Err(_) => Err(wrong("the request does not come to its end").into()),
        }
    }
}

/// What is wrong with a request, in axum's words.
fn wrong(rejection: impl std::fmt::Display) -> ChangeError {
    ChangeError::Wrong(rejection.to_string())
}

async fn unknown() -> Response {
    let body = ErrorBody {
        error: "there is no such resource: /v1/openapi.json, status, policy, counters, talkers, \
                explain, capture, entries, mode, reload, try, confirm and detach are"
            .to_owned(),
        is_policy: false,
    };
    (StatusCode::NOT_FOUND, Json(body)).into_response()
}

/// What went wrong inside the agent, as an answer.
struct ApiError(ChangeError);

impl<E: Into<ChangeError>> From<E> for ApiError {
    fn from(error: E) -> Self {
        Self(error.into())
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let Self(error) = self;
        let (status, is_policy) = match error {
            ChangeError::Policy(_) => (StatusCode::UNPROCESSABLE_ENTITY, true),
            ChangeError::Wrong(_) => (StatusCode::BAD_REQUEST, false),
            ChangeError::Harmful(_) => (StatusCode::CONFLICT, false),
            ChangeError::Keep(_) | ChangeError::Other(_) => {
                (StatusCode::INTERNAL_SERVER_ERROR, false)
            }
        };
        let body = ErrorBody {
            error: format!("{:#}", anyhow::Error::from(error)),
            is_policy,
        };
        (status, Json(body)).into_response()
    }
}
