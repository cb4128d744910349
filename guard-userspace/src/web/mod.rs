//! The HTTP server: metrics for Prometheus and a page for people. It is off unless the policy names an address. No
//! resource changes anything.

mod floods;
pub mod history;
mod marks;
pub mod metrics;

use std::{
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use axum::{
    Json, Router,
    extract::{Request, State},
    http::{HeaderMap, HeaderValue, StatusCode, header},
    middleware::{self, Next},
    response::{Html, IntoResponse, Response},
    routing::get,
};
use futures_util::{
    FutureExt as _,
    future::{BoxFuture, Shared},
};
use guard_common::reason::Mode;
use jiff::Timestamp;
use serde_json::Value;
use tokio::{
    net::TcpListener,
    sync::watch,
    time::{MissedTickBehavior, interval, sleep, timeout},
};
use tracing::{info, warn};

use self::{
    history::{History, Hour},
    marks::MarkedState,
};
use crate::{
    agent::{Agent, Snapshot},
    api::{Counter, Status, Talker, listen},
    audit::host::{PolicyInForce, Report, Survey},
    host,
    policy::KernelTick,
};

/// How long a request may take, and how many may run at a time.
const PATIENCE: Duration = Duration::from_secs(10);
const MAX_REQUESTS: usize = 64;

/// How long to wait before the next attempt to listen at an address.
const RETRY_AFTER: Duration = Duration::from_secs(5);

/// The page, which loads no resource from elsewhere.
const PAGE: &str = include_str!("page.html");

/// Allows the page's own script and style, and requests to its own origin.
const CONTENT_POLICY: &str = "default-src 'none'; script-src 'unsafe-inline'; style-src \
                              'unsafe-inline'; connect-src 'self'; img-src data:; base-uri 'none'; \
                              form-action 'none'; frame-ancestors 'none'";

#[derive(Clone)]
struct WebState {
    agent: Agent,
    history: Arc<Mutex<History>>,
    exposure: Arc<Mutex<Option<ExposureAudit>>>,
}

impl WebState {
    fn history(&self) -> MutexGuard<'_, History> {
        self.history.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An audit of the exposed ports, running or complete, and when it began.
struct ExposureAudit {
    report: Shared<BoxFuture<'static, Result<Value, String>>>,
    at: Instant,
}

/// How long a report of exposed ports is served again: an audit reads every socket and container.
const REPORT_AGE: Duration = Duration::from_secs(10);

/// Serves at the address that the policy in force names, and changes it with the policy. Never returns.
pub async fn serve(agent: Agent) {
    let snapshots = agent.snapshots();
    let served = WebState {
        agent,
        history: Arc::default(),
        exposure: Arc::default(),
    };
    let followed = served.agent.snapshots();
    tokio::join!(
        record_history(&served, followed),
        listen_at(&served, snapshots)
    );
}

/// Records the counters at intervals, and the changes as they come.
async fn record_history(served: &WebState, mut snapshots: watch::Receiver<Arc<Snapshot>>) {
    let mut tick = interval(Duration::from_secs(history::INTERVAL));
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let state = MarkedState::from(&**snapshots.borrow_and_update());
        served.history().marks.follow(Timestamp::now(), state);
        loop {
            tokio::select! {
                changed = snapshots.changed() => match changed {
                    Ok(()) => break,
                    // The agent's loop has ended.
                    Err(_) => return,
                },
                _ = tick.tick() => record_point(served).await,
            }
        }
    }
}

async fn record_point(served: &WebState) {
    match served.agent.counters().await {
        Ok(counters) => served
            .history()
            .add(Timestamp::now(), Instant::now(), &counters),
        Err(error) => warn!("counters cannot be read: {error:#}"),
    }
    // A failed reading says nothing about the program in the kernel.
    if let Ok(status) = served.agent.status().await {
        let enforcing = (status.mode == Mode::Enforce.name()).then_some(status.enforcing);
        let because = status.not_enforcing_because.join("; ");
        served
            .history()
            .marks
            .follow_enforcing(Timestamp::now(), enforcing, &because);
    }
}

async fn listen_at(served: &WebState, mut snapshots: watch::Receiver<Arc<Snapshot>>) {
    loop {
        let wanted = snapshots.borrow_and_update().web();
        let Some(wanted) = wanted else {
            if snapshots.changed().await.is_err() {
                return;
            }
            continue;
        };
        let is_another = |snapshot: &Arc<Snapshot>| snapshot.web() != Some(wanted);
        // An error of `changed` means that the agent's loop has ended: there are no more snapshots.
        let is_over = match TcpListener::bind(wanted).await {
            Ok(listener) => {
                info!("metrics and the page are at http://{wanted}/");
                tokio::select! {
                    () = listen::serve(listener, router(served.clone())) => false,
                    changed = snapshots.wait_for(is_another) => changed.is_err(),
                }
            }
            Err(error) => {
                warn!("metrics and the page cannot be served at {wanted}: {error}");
                tokio::select! {
                    () = sleep(RETRY_AFTER) => false,
                    changed = snapshots.wait_for(is_another) => changed.is_err(),
                }
            }
        };
        if is_over {
            return;
        }
    }
}

fn router(served: WebState) -> Router {
    let limit = Arc::new(tokio::sync::Semaphore::new(MAX_REQUESTS));
    Router::new()
        .route("/", get(page))
        .route("/metrics", get(metrics))
        .route("/v1/status", get(status))
        .route("/v1/counters", get(counters))
        .route("/v1/talkers", get(talkers))
        .route("/v1/history", get(history))
        .route("/v1/exposure", get(exposure))
        .layer(middleware::from_fn(move |request, next| {
            guarded(Arc::clone(&limit), request, next)
        }))
        .with_state(served)
}

/// Limits the requests of clients, and refuses foreign host names: a browser would let their pages read the answers
/// (DNS rebinding).
async fn guarded(limit: Arc<tokio::sync::Semaphore>, request: Request, next: Next) -> Response {
    if !has_own_host(request.headers()) {
        let error = "guard answers only requests to an IP address or localhost, not to a host name";
        return (StatusCode::MISDIRECTED_REQUEST, error).into_response();
    }
    let Ok(_turn) = limit.try_acquire() else {
        return (StatusCode::SERVICE_UNAVAILABLE, "too many requests at once").into_response();
    };
    let mut response = match timeout(PATIENCE, next.run(request)).await {
        Ok(response) => response,
        Err(_) => {
            let error = format!(
                "no answer within {} s: the agent is busy",
                PATIENCE.as_secs()
            );
            (StatusCode::GATEWAY_TIMEOUT, error).into_response()
        }
    };
    let headers = response.headers_mut();
    for (name, value) in [
        (header::CONTENT_SECURITY_POLICY, CONTENT_POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::CACHE_CONTROL, "no-store"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    response
}

/// Whether the request names this host by an IP address or as localhost, which no DNS record of another host can be.
fn has_own_host(headers: &HeaderMap) -> bool {
    let host = headers
        .get(header::HOST)
        .and_then(|host| host.to_str().ok());
    let Some(host) = host else { return true };
    if host.parse::<SocketAddr>().is_ok() {
        return true;
    }
    let name = host.rsplit_once(':').map_or(host, |(name, _)| name);
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    name == "localhost" || name.parse::<IpAddr>().is_ok() || bare.parse::<IpAddr>().is_ok()
}

async fn page() -> Html<&'static str> {
    Html(PAGE)
}

async fn metrics(State(served): State<WebState>) -> Result<Response, Failed> {
    let agent = &served.agent;
    let snapshot = agent.snapshot();
    let text = metrics::encode(
        &agent.status().await?,
        &agent.counters().await?,
        snapshot.entries(),
        snapshot.flows,
    )?;
    Ok(([(header::CONTENT_TYPE, metrics::CONTENT_TYPE)], text).into_response())
}

async fn status(State(served): State<WebState>) -> Result<Json<Status>, Failed> {
    Ok(Json(served.agent.status().await?))
}

async fn counters(State(served): State<WebState>) -> Result<Json<Vec<Counter>>, Failed> {
    Ok(Json(served.agent.counters().await?))
}

async fn talkers(State(served): State<WebState>) -> Result<Json<Vec<Talker>>, Failed> {
    Ok(Json(served.agent.talkers().await?))
}

async fn history(State(served): State<WebState>) -> Json<Hour> {
    Json(served.history().hour(Timestamp::now()))
}

async fn exposure(State(served): State<WebState>) -> Result<Json<Value>, Failed> {
    // Clients wait for the same audit. The lock is not held meanwhile.
    let report = {
        let mut exposure = served
            .exposure
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        match &*exposure {
            Some(ExposureAudit { report, at }) if at.elapsed() < REPORT_AGE => report.clone(),
            _ => {
                let report = audit_exposure(served.agent.clone()).boxed().shared();
                *exposure = Some(ExposureAudit {
                    report: report.clone(),
                    at: Instant::now(),
                });
                report
            }
        }
    };
    let report = report.await.map_err(|error| anyhow::anyhow!("{error}"))?;
    Ok(Json(report))
}

/// Returns the report of `guard audit --json`. The error is a string: `Shared` clones it for every client.
async fn audit_exposure(agent: Agent) -> Result<Value, String> {
    let report = async {
        let status = agent.status().await?;
        let text = agent.snapshot().policy_text();
        let tick_ns = host::tick_ns()?;
        let in_force = PolicyInForce::answered(text, &status, KernelTick { tick_ns })?;
        let survey = Survey::make(in_force.policy.docker_socket.clone()).await?;
        let report = Report::new(survey, Some(in_force), Vec::new()).await?;
        Ok::<_, anyhow::Error>(serde_json::to_value(report)?)
    };
    report.await.map_err(|error| format!("{error:#}"))
}

struct Failed(anyhow::Error);

impl<E: Into<anyhow::Error>> From<E> for Failed {
    fn from(error: E) -> Self {
        Self(error.into())
    }
}

impl IntoResponse for Failed {
    fn into_response(self) -> Response {
        let Self(error) = self;
        (StatusCode::INTERNAL_SERVER_ERROR, format!("{error:#}")).into_response()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_to_a_foreign_host_name_are_refused() {
        let ask = |host: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::HOST, HeaderValue::from_static(host));
            has_own_host(&headers)
        };
        for ours in [
            "127.0.0.1:9469",
            "localhost:9469",
            "localhost",
            "[::1]:9469",
            "[::1]",
            "10.0.0.1",
        ] {
            assert!(ask(ours), "{ours}");
        }
        for other in [
            "evil.example:9469",
            "evil.example",
            "localhost.evil.example",
            "",
        ] {
            assert!(!ask(other), "{other}");
        }
    }
}
