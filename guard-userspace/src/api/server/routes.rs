//! The resources of the control API. The router and the OpenAPI document are made from the same list, [`resources`].

use std::{
    collections::BTreeSet,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, SystemTime},
};

use axum::{
    Extension, Json, Router,
    extract::{
        DefaultBodyLimit, Path, Query, Request, State,
        rejection::{PathRejection, QueryRejection},
    },
    http::{Method, StatusCode},
    middleware::{self, Next},
    response::{IntoResponse as _, Response},
};
use jiff::Timestamp;
use tokio::sync::Semaphore;
use tracing::info;
use utoipa::{OpenApi, openapi};
use utoipa_axum::{router::OpenApiRouter, routes};

use super::errors::{ApiError, ApiResult, ClientInput, wrong};
use crate::{
    agent::{Agent, ChangeError},
    api::{
        Applied, Changed, Counter, Detached, EnteredEntry, EntryRequest, ErrorBody, ExplainRequest,
        ListedEntry, ModeChange, NewTrial, PolicyText, Reload, Revocation, SourceRequest, Status,
        Talker,
        actor::Actor,
        capture::{self, CaptureRequest},
        client::{ASKED, DEADLINE},
        listen::LongLived,
    },
    explain::{Explanation, SourceExplanation},
    host::timebase,
    policy::Entry,
};

/// All resources, for the router and the OpenAPI document.
fn resources() -> OpenApiRouter<ApiState> {
    OpenApiRouter::with_openapi(Description::openapi())
        .routes(routes!(description))
        .routes(routes!(status))
        .routes(routes!(policy))
        .routes(routes!(counters))
        .routes(routes!(talkers))
        .routes(routes!(explain))
        .routes(routes!(explain_source))
        .routes(routes!(capture))
        .routes(routes!(entries, enter))
        .routes(routes!(revoke))
        .routes(routes!(mode))
        .routes(routes!(reload))
        .routes(routes!(try_policy))
        .routes(routes!(confirm))
        .routes(routes!(detach))
}

/// The head of the OpenAPI 3.1 document.
#[derive(OpenApi)]
#[openapi(
    info(
        title = "guard's control API",
        description = "HTTP over a Unix socket. Only root and the group guard may connect.",
    ),
    components(schemas(ErrorBody))
)]
struct Description;

/// The control API.
pub fn router(served: ApiState) -> Router {
    let (router, document) = resources().split_for_parts();
    let no_such_resource = no_such_resource(&document);
    router
        .fallback(async move || unknown(no_such_resource))
        .layer(Extension(Arc::new(document)))
        .layer(DefaultBodyLimit::max(MAX_BODY))
        .layer(middleware::from_fn_with_state(
            served.clone(),
            refuse_late_requests,
        ))
        .layer(middleware::from_fn(log_changes))
        .with_state(served)
}

/// The error for an unknown resource, which lists all resources.
fn no_such_resource(document: &openapi::OpenApi) -> String {
    let paths = document.paths.paths.keys();
    let resources: BTreeSet<&str> = paths
        .map(|path| {
            path.split_once("/{")
                .map_or(path.as_str(), |(path, _)| path)
        })
        .collect();
    let resources: Vec<&str> = resources.into_iter().collect();
    format!(
        "there is no such resource; there are {}",
        resources.join(", ")
    )
}

fn unknown(error: String) -> Response {
    let body = ErrorBody {
        error,
        is_policy: false,
    };
    (StatusCode::NOT_FOUND, Json(body)).into_response()
}

/// The most characters of a path in the log: a client can send any path, and those of the resources are shorter.
const LONGEST_LOGGED_PATH: usize = 100;

/// Logs every request for a change, with the user that sent it.
async fn log_changes(Extension(by): Extension<Actor>, request: Request, next: Next) -> Response {
    if request.method() == Method::GET {
        return next.run(request).await;
    }
    let path: String = request
        .uri()
        .path()
        .chars()
        .take(LONGEST_LOGGED_PATH)
        .collect();
    let logged = format!("{} {path}", request.method());
    let response = next.run(request).await;
    let status = response.status().as_u16();
    info!(by = by.to_string(), status, "{logged}");
    response
}

/// The number in a header that guard's own client sends.
fn number(request: &Request, header: &str) -> Option<u64> {
    let value = request.headers().get(header)?;
    value.to_str().ok()?.parse().ok()
}

/// Refuses requests that waited in the socket while the agent hung, and changes that were sent before the guard was
/// switched off without the agent. The client has given up or has switched off without the agent, and an operator may
/// have made another change since.
async fn refuse_late_requests(
    State(served): State<ApiState>,
    request: Request,
    next: Next,
) -> Response {
    let is_over = number(&request, DEADLINE)
        .zip(timebase().ok())
        .is_some_and(|(deadline, now)| deadline < now.boot_ns);
    let asked = number(&request, ASKED).map(|ns| SystemTime::UNIX_EPOCH + Duration::from_nanos(ns));
    let is_change = request.method() != Method::GET;
    let is_undone = is_change && asked.is_some_and(|asked| served.agent.is_off_since(asked));
    let (status, error) = match (is_over, is_undone) {
        (false, false) => return next.run(request).await,
        (true, _) => (
            StatusCode::REQUEST_TIMEOUT,
            "the client's deadline is over: the request was not carried out",
        ),
        (false, true) => (
            StatusCode::CONFLICT,
            "the guard was switched off after this request was sent: it was not carried out; send it again",
        ),
    };
    let body = ErrorBody {
        error: error.to_owned(),
        is_policy: false,
    };
    (status, Json(body)).into_response()
}

/// The state that the resources use.
#[derive(Clone)]
pub struct ApiState {
    agent: Agent,
    /// Its only permit is held by the client that captures.
    capture: Arc<Semaphore>,
    /// A client waits for the answer to `/v1/detach`.
    pub is_asked_to_detach: Arc<AtomicBool>,
}

impl ApiState {
    /// The state for the resources of this agent.
    pub fn new(agent: Agent) -> Self {
        Self {
            agent,
            capture: Arc::new(Semaphore::new(1)),
            is_asked_to_detach: Arc::default(),
        }
    }
}

/// The largest request body: 64 MiB. A policy with 100,000 denied prefixes has about 3 MB.
const MAX_BODY: usize = 1 << 26;

/// Returns this OpenAPI document.
#[utoipa::path(
    get,
    path = "/v1/openapi.json",
    responses((status = 200, body = serde_json::Value))
)]
async fn description(
    Extension(document): Extension<Arc<openapi::OpenApi>>,
) -> Json<openapi::OpenApi> {
    Json(openapi::OpenApi::clone(&document))
}

/// Returns whether the guard is attached and enforcing, and on which interfaces.
#[utoipa::path(
    get,
    path = "/v1/status",
    responses((status = 200, body = Status), ApiError)
)]
async fn status(State(served): State<ApiState>) -> ApiResult<Status> {
    Ok(Json(served.agent.status().await?))
}

/// Returns the policy in force, as it was written.
#[utoipa::path(
    get,
    path = "/v1/policy",
    responses((status = 200, body = PolicyText), ApiError)
)]
async fn policy(State(served): State<ApiState>) -> ApiResult<PolicyText> {
    Ok(Json(served.agent.snapshot().policy_text()))
}

/// Returns how many packets passed and were dropped, by interface, service and reason.
#[utoipa::path(
    get,
    path = "/v1/counters",
    responses((status = 200, body = Vec<Counter>), ApiError)
)]
async fn counters(State(served): State<ApiState>) -> ApiResult<Vec<Counter>> {
    Ok(Json(served.agent.counters().await?))
}

/// Returns the sources that send most, estimated from a sample.
#[utoipa::path(
    get,
    path = "/v1/talkers",
    responses((status = 200, body = Vec<Talker>), ApiError)
)]
async fn talkers(State(served): State<ApiState>) -> ApiResult<Vec<Talker>> {
    Ok(Json(served.agent.talkers().await?))
}

/// Explains the verdict for a packet from a source to a destination.
#[utoipa::path(
    get,
    path = "/v1/explain",
    params(("from" = String, Query, description = "The source's address"), ("to" = String, Query, description = "The destination, such as `8000/tcp` or `203.0.113.5:8000/tcp`, or the name of a service")),
    responses((status = 200, body = Explanation), ApiError)
)]
async fn explain(
    State(served): State<ApiState>,
    question: Result<Query<ExplainRequest>, QueryRejection>,
) -> ApiResult<Explanation> {
    let Query(ExplainRequest { from, to }) = question.map_err(wrong)?;
    Ok(Json(served.agent.explain(from, &to).await?))
}

/// Explains what becomes of a source at each service and at every other port.
#[utoipa::path(
    get,
    path = "/v1/source",
    params(("from" = String, Query, description = "The source's address")),
    responses((status = 200, body = SourceExplanation), ApiError)
)]
async fn explain_source(
    State(served): State<ApiState>,
    question: Result<Query<SourceRequest>, QueryRejection>,
) -> ApiResult<SourceExplanation> {
    let Query(SourceRequest { from }) = question.map_err(wrong)?;
    Ok(Json(served.agent.explain_source(from).await?))
}

/// Streams packets with the reasons of their verdicts, until the client closes the connection. One client at a time.
#[utoipa::path(
    get,
    path = "/v1/capture",
    params(CaptureRequest),
    responses(
        (status = 200, content(
            (Vec<u8> = "application/x-pcapng"),
            (capture::Line = "application/x-ndjson"),
        )),
        ApiError,
    )
)]
async fn capture(
    State(served): State<ApiState>,
    Extension(lasting): Extension<LongLived>,
    Extension(by): Extension<Actor>,
    request: Result<Query<CaptureRequest>, QueryRejection>,
) -> Result<Response, ApiError> {
    let Query(request) = request.map_err(wrong)?;
    let turn = Arc::clone(&served.capture).try_acquire_owned();
    let turn = turn.map_err(|_| {
        ChangeError::Lockout(
            "another client captures already, and only one capture runs at a time: end it first"
                .to_owned(),
        )
    })?;
    let tap = served.agent.tap(&request)?;
    lasting.set();
    info!(
        reasons = request.reasons,
        service = request.service,
        source = request.source.map(|source| source.to_string()),
        all = request.all,
        by = by.to_string(),
        "a capture begins"
    );
    Ok(capture::answer(&request, tap, turn))
}

/// Returns the temporary allow and deny entries of operators.
#[utoipa::path(
    get,
    path = "/v1/entries",
    responses((status = 200, body = Vec<ListedEntry>), ApiError)
)]
async fn entries(State(served): State<ApiState>) -> ApiResult<Vec<ListedEntry>> {
    let snapshot = served.agent.snapshot();
    Ok(Json(ListedEntry::list(
        snapshot.entries(),
        Timestamp::now(),
    )))
}

/// Allows or denies a source for a while. The entry is in force when the answer is sent.
#[utoipa::path(
    post,
    path = "/v1/entries",
    request_body = EntryRequest,
    responses((status = 200, body = Changed<EnteredEntry>), ApiError)
)]
async fn enter(
    State(served): State<ApiState>,
    Extension(by): Extension<Actor>,
    ClientInput(Json(request)): ClientInput<Json<EntryRequest>>,
) -> ApiResult<Changed<EnteredEntry>> {
    Ok(Json(served.agent.enter(request, by).await?))
}

/// Ends an entry.
#[utoipa::path(
    delete,
    path = "/v1/entries/{id}",
    params(("id" = u64, Path, description = "The entry's id"), ("operator" = Option<String>, Query, description = "The operator's SSH session, as in `SSH_CONNECTION`"), ("force" = Option<bool>, Query, description = "Apply the change even if it closes the operator's own way in")),
    responses((status = 200, body = Changed<Entry>), ApiError)
)]
async fn revoke(
    State(served): State<ApiState>,
    Extension(by): Extension<Actor>,
    id: Result<Path<u64>, PathRejection>,
    request: Result<Query<Revocation>, QueryRejection>,
) -> ApiResult<Changed<Entry>> {
    let Path(id) = id.map_err(wrong)?;
    let Query(request) = request.map_err(wrong)?;
    Ok(Json(served.agent.revoke(id, request, by).await?))
}

/// Sets the mode of the host or of a service, or returns it to the mode of the policy.
#[utoipa::path(
    post,
    path = "/v1/mode",
    request_body = ModeChange,
    responses((status = 200, body = Changed<Applied>), ApiError)
)]
async fn mode(
    State(served): State<ApiState>,
    Extension(by): Extension<Actor>,
    ClientInput(Json(request)): ClientInput<Json<ModeChange>>,
) -> ApiResult<Changed<Applied>> {
    Ok(Json(served.agent.set_mode(request, by).await?))
}

/// Reads the policy file again and puts it in force.
#[utoipa::path(
    post,
    path = "/v1/reload",
    request_body = Reload,
    responses((status = 200, body = Changed<Applied>), ApiError)
)]
async fn reload(
    State(served): State<ApiState>,
    ClientInput(Json(request)): ClientInput<Json<Reload>>,
) -> ApiResult<Changed<Applied>> {
    Ok(Json(served.agent.reload(request).await?))
}

/// Puts a policy in force on trial: the previous policy comes back unless this one is confirmed in time.
#[utoipa::path(
    post,
    path = "/v1/try",
    request_body = NewTrial,
    responses((status = 200, body = Changed<Applied>), ApiError)
)]
async fn try_policy(
    State(served): State<ApiState>,
    Extension(by): Extension<Actor>,
    ClientInput(Json(request)): ClientInput<Json<NewTrial>>,
) -> ApiResult<Changed<Applied>> {
    Ok(Json(served.agent.try_policy(request, by).await?))
}

/// Keeps the policy on trial.
#[utoipa::path(
    post,
    path = "/v1/confirm",
    responses((status = 200, body = Changed<Applied>), ApiError)
)]
async fn confirm(State(served): State<ApiState>) -> ApiResult<Changed<Applied>> {
    Ok(Json(served.agent.confirm().await?))
}

/// Detaches the guard from every interface, and ends the agent.
#[utoipa::path(
    post,
    path = "/v1/detach",
    responses(
        (status = 200, body = Detached, description = "The guard is detached and the agent ends; the body lists what is left or not kept"),
        (status = 204, description = "Nothing of the guard is left in the kernel"),
    )
)]
async fn detach(State(served): State<ApiState>) -> Response {
    // Set before detaching, which ends the agent: the process then waits until this client has its answer.
    served.is_asked_to_detach.store(true, Ordering::Release);
    let detached = served.agent.detach().await;
    if detached == Detached::default() {
        return StatusCode::NO_CONTENT.into_response();
    }
    Json(detached).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_resource_is_described_and_listed_for_an_unknown_path() {
        let (_, document) = resources().split_for_parts();
        assert_eq!(
            no_such_resource(&document),
            "there is no such resource; there are /v1/capture, /v1/confirm, /v1/counters, /v1/detach, \
             /v1/entries, /v1/explain, /v1/mode, /v1/openapi.json, /v1/policy, /v1/reload, /v1/source, \
             /v1/status, /v1/talkers, /v1/try"
        );
        let document = serde_json::to_value(&document).unwrap();
        assert!(document["components"]["schemas"]["ErrorBody"].is_object());
        for (path, methods) in document["paths"].as_object().unwrap() {
            for (method, described) in methods.as_object().unwrap() {
                let is_summed_up = described["summary"].is_string();
                assert!(is_summed_up, "{method} {path}: {described}");
            }
        }
    }
}
