//! The client of the control API, for the command line.

use std::{
    io::{self, ErrorKind},
    os::unix::net::UnixStream,
    path::Path,
    time::{Duration, SystemTime},
};

use reqwest::{RequestBuilder, StatusCode};
use serde::{Serialize, de::DeserializeOwned};
use tokio::time::timeout;

use super::{
    Applied, Changed, Counter, Detached, EnteredEntry, EntryRequest, ErrorBody, ExplainRequest,
    Explanation, ListedEntry, ModeChange, NewTrial, PolicyText, Reload, Revocation,
    SourceExplanation, SourceRequest, Status, Talker, capture::CaptureRequest,
};
use crate::{
    causes::{http_failure, io_error},
    host::timebase,
    policy::Entry,
};

/// A request's header: the time until which its client waits, in nanoseconds of CLOCK_BOOTTIME.
pub const DEADLINE: &str = "guard-deadline";

/// A request's header: the time when it was sent, in nanoseconds since 1970. `guard mode off` or `guard detach` may
/// have run without the agent since.
pub const ASKED: &str = "guard-asked";

fn nanoseconds(patience: Duration) -> u64 {
    u64::try_from(patience.as_nanos()).unwrap_or(u64::MAX)
}

/// How long the agent may take to answer, and to make a change: verifying the program and filling the tables of a large
/// policy takes a while.
const PATIENCE: Duration = Duration::from_secs(5);
/// To explain a verdict, the agent loads a copy of the program, as for a change.
const PATIENCE_TO_EXPLAIN: Duration = Duration::from_secs(30);
const PATIENCE_FOR_CHANGES: Duration = Duration::from_secs(60);

/// Why a request failed.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    #[error(
        "no agent answers at {socket} ({reason}): start one with `guard run`, or name its socket with --socket; if you \
         started one, its log says why it ended"
    )]
    Absent { socket: String, reason: String },
    #[error(
        "you may not open the control socket {socket}: join group guard (`sudo adduser YOU guard`, then log in again), \
         or use sudo"
    )]
    NotPermitted { socket: String },
    /// No agent answers, and no interface has pins.
    #[error(
        "guard is not attached: nothing is pinned below {pins}, and no agent answers at {socket} ({reason}). Start one \
         with `guard run`, or name other places with --pins and --socket; if you started one, its log says why it ended"
    )]
    NotAttached {
        pins: String,
        socket: String,
        reason: String,
    },
    /// No agent answers, and this user may not read the pins. `refusal` is the error of the pins.
    #[error("no agent answers at {socket} ({reason}), and {refusal}")]
    PinsNotReadable {
        socket: String,
        reason: String,
        refusal: String,
    },
    #[error(
        "the agent at {socket} has not answered within {seconds} s: `journalctl -u guard` shows what it does, and `guard \
         mode off` and `guard detach` work without it"
    )]
    Silent { socket: String, seconds: u64 },
    #[error("the agent at {socket} says: {error}")]
    Refused { socket: String, error: String },
    /// A policy is invalid. The text begins with its file and line.
    #[error("{0}")]
    Policy(String),
    #[error(
        "the answer of the agent at {socket} cannot be read ({reason}): it may be of another version, `systemctl restart \
         guard` starts the installed one"
    )]
    Garbled { socket: String, reason: String },
    #[error("the control socket cannot be used: {0}")]
    Unable(String),
}

impl ClientError {
    /// Whether no agent answers: it does not run, or it hangs.
    pub const fn is_without_agent(&self) -> bool {
        matches!(
            self,
            Self::Absent { .. } | Self::NotAttached { .. } | Self::Silent { .. }
        )
    }

    /// Whether this user may not access the socket or the pins.
    pub const fn is_refusal(&self) -> bool {
        matches!(
            self,
            Self::NotPermitted { .. } | Self::PinsNotReadable { .. }
        )
    }
}

type ClientResult<T> = Result<T, ClientError>;

/// A client of the control socket.
pub struct Client {
    http: reqwest::Client,
    socket: String,
}

impl Client {
    /// A client of this socket. It connects with the first request.
    pub fn new(socket: &Path) -> ClientResult<Self> {
        let http = reqwest::Client::builder().unix_socket(socket).build();
        Ok(Self {
            http: http.map_err(|error| ClientError::Unable(http_failure(&error)))?,
            socket: socket.display().to_string(),
        })
    }

    /// `GET /v1/status`.
    pub async fn status(&self) -> ClientResult<Status> {
        self.get("status").await
    }

    /// `GET /v1/policy`.
    pub async fn policy(&self) -> ClientResult<PolicyText> {
        self.get("policy").await
    }

    /// `GET /v1/counters`.
    pub async fn counters(&self) -> ClientResult<Vec<Counter>> {
        self.get("counters").await
    }

    /// `GET /v1/talkers`.
    pub async fn talkers(&self) -> ClientResult<Vec<Talker>> {
        self.get("talkers").await
    }

    /// Starts a capture. The response streams packets in the requested form.
    pub async fn capture(&self, request: &CaptureRequest) -> ClientResult<reqwest::Response> {
        let sent = self.http.get(address("capture")).query(request).send();
        let response = timeout(PATIENCE, sent).await;
        let response = response.map_err(|_| self.silent(PATIENCE))?;
        let response = response.map_err(|error| self.absent(&error))?;
        if response.status().is_success() {
            return Ok(response);
        }
        Err(self.refusal(response).await)
    }

    /// `GET /v1/explain`.
    pub async fn explain(&self, question: &ExplainRequest) -> ClientResult<Explanation> {
        let request = self.http.get(address("explain")).query(question);
        self.answer(request, PATIENCE_TO_EXPLAIN).await
    }

    /// `GET /v1/source`.
    pub async fn explain_source(
        &self,
        question: &SourceRequest,
    ) -> ClientResult<SourceExplanation> {
        let request = self.http.get(address("source")).query(question);
        self.answer(request, PATIENCE_TO_EXPLAIN).await
    }

    /// `GET /v1/entries`.
    pub async fn entries(&self) -> ClientResult<Vec<ListedEntry>> {
        self.get("entries").await
    }

    /// `POST /v1/entries`: an `allow` or `deny` entry.
    pub async fn enter(&self, request: &EntryRequest) -> ClientResult<EnteredEntry> {
        self.change("entries", request).await
    }

    /// Enters without a warning on standard error, for `guard top`.
    pub async fn enter_silently(
        &self,
        request: &EntryRequest,
    ) -> ClientResult<Changed<EnteredEntry>> {
        let request = self.http.post(address("entries")).json(request);
        self.answer(request, PATIENCE_FOR_CHANGES).await
    }

    /// `DELETE /v1/entries/ID`.
    pub async fn revoke(&self, id: u64, request: &Revocation) -> ClientResult<Entry> {
        let address = address(&format!("entries/{id}"));
        let request = self.http.delete(address).query(request);
        self.changed(request, PATIENCE_FOR_CHANGES).await
    }

    /// Revokes without a warning on standard error, for `guard top`.
    pub async fn revoke_silently(
        &self,
        id: u64,
        request: &Revocation,
    ) -> ClientResult<Changed<Entry>> {
        let address = address(&format!("entries/{id}"));
        let request = self.http.delete(address).query(request);
        self.answer(request, PATIENCE_FOR_CHANGES).await
    }

    /// Changes a mode. `off` has a short timeout: `guard mode off` then works without the agent.
    pub async fn set_mode(&self, request: &ModeChange) -> ClientResult<Applied> {
        let patience = if request.mode.as_deref() == Some("off") {
            PATIENCE
        } else {
            PATIENCE_FOR_CHANGES
        };
        let request = self.http.post(address("mode")).json(request);
        self.changed(request, patience).await
    }

    /// `POST /v1/reload`.
    pub async fn reload(&self, request: &Reload) -> ClientResult<Applied> {
        self.change("reload", request).await
    }

    /// `POST /v1/try`.
    pub async fn try_policy(&self, request: &NewTrial) -> ClientResult<Applied> {
        self.change("try", request).await
    }

    /// `POST /v1/confirm`.
    pub async fn confirm(&self) -> ClientResult<Applied> {
        self.change("confirm", &()).await
    }

    /// `POST /v1/detach`.
    pub async fn detach(&self) -> ClientResult<Detached> {
        let request = self.http.post(address("detach"));
        let response = self.send(request, PATIENCE).await?;
        if response.status() == StatusCode::NO_CONTENT {
            return Ok(Detached::default());
        }
        if !response.status().is_success() {
            return Err(self.refusal(response).await);
        }
        let detached = response.json().await;
        detached.map_err(|error| self.garbled(&error))
    }

    /// Whether an agent listens on the socket, or may listen: this user is not allowed to open it.
    pub fn has_agent(&self) -> bool {
        let connected = UnixStream::connect(&self.socket);
        connected.map_or_else(
            |error| error.kind() == ErrorKind::PermissionDenied,
            |_| true,
        )
    }

    async fn get<T: DeserializeOwned>(&self, resource: &str) -> ClientResult<T> {
        self.answer(self.http.get(address(resource)), PATIENCE)
            .await
    }

    async fn change<T: DeserializeOwned>(
        &self,
        resource: &str,
        body: &impl Serialize,
    ) -> ClientResult<T> {
        let request = self.http.post(address(resource)).json(body);
        self.changed(request, PATIENCE_FOR_CHANGES).await
    }

    /// Returns the change that was made. Warns on standard error if a restart would lose it.
    async fn changed<T: DeserializeOwned>(
        &self,
        request: RequestBuilder,
        patience: Duration,
    ) -> ClientResult<T> {
        let Changed { done, not_kept } = self.answer(request, patience).await?;
        if let Some(not_kept) = not_kept {
            eprintln!("guard: in force, but lost at the agent's next start: {not_kept}");
        }
        Ok(done)
    }

    async fn answer<T: DeserializeOwned>(
        &self,
        request: RequestBuilder,
        patience: Duration,
    ) -> ClientResult<T> {
        let response = self.send(request, patience).await?;
        if !response.status().is_success() {
            return Err(self.refusal(response).await);
        }
        response.json().await.map_err(|error| {
            if error.is_timeout() {
                self.silent(patience)
            } else {
                self.garbled(&error)
            }
        })
    }

    async fn send(
        &self,
        mut request: RequestBuilder,
        patience: Duration,
    ) -> ClientResult<reqwest::Response> {
        if let Ok(now) = timebase() {
            let deadline = now.boot_ns.saturating_add(nanoseconds(patience));
            request = request.header(DEADLINE, deadline);
        }
        if let Ok(now) = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH) {
            request = request.header(ASKED, now.as_nanos().to_string());
        }
        let sent = request.timeout(patience).send().await;
        sent.map_err(|error| {
            if error.is_timeout() {
                self.silent(patience)
            } else {
                self.absent(&error)
            }
        })
    }

    fn absent(&self, error: &reqwest::Error) -> ClientError {
        let socket = self.socket.clone();
        match io_error(error).map(io::Error::kind) {
            Some(ErrorKind::PermissionDenied) => ClientError::NotPermitted { socket },
            _ => ClientError::Absent {
                socket,
                reason: http_failure(error),
            },
        }
    }

    async fn refusal(&self, response: reqwest::Response) -> ClientError {
        match response.json().await {
            Ok(ErrorBody {
                error,
                is_policy: true,
            }) => ClientError::Policy(error),
            Ok(ErrorBody { error, .. }) => ClientError::Refused {
                socket: self.socket.clone(),
                error,
            },
            Err(error) => self.garbled(&error),
        }
    }

    fn silent(&self, patience: Duration) -> ClientError {
        ClientError::Silent {
            socket: self.socket.clone(),
            seconds: patience.as_secs(),
        }
    }

    fn garbled(&self, error: &reqwest::Error) -> ClientError {
        ClientError::Garbled {
            socket: self.socket.clone(),
            reason: http_failure(error),
        }
    }
}

/// The URL of a resource. A Unix socket needs no host name, so any will do.
fn address(resource: &str) -> String {
    format!("http://guard/v1/{resource}")
}

#[cfg(test)]
mod tests {
    use std::{
        io::{Read as _, Write as _},
        os::unix::net::UnixListener,
        thread,
    };

    use super::*;

    /// The error for an agent that sends these bytes, and closes the connection.
    async fn failure(answer: &'static [u8]) -> String {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("guard.sock");
        let listener = UnixListener::bind(&socket).unwrap();
        let agent = thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut request = [0; 4096];
            let _read = stream.read(&mut request).unwrap();
            stream.write_all(answer).unwrap();
        });
        let client = Client::new(&socket).unwrap();
        let error = client.entries().await.unwrap_err().to_string();
        agent.join().unwrap();
        error.replace(&socket.display().to_string(), "SOCKET")
    }

    #[tokio::test]
    async fn what_answers_wrongly_at_the_socket_is_described_without_the_words_of_a_library() {
        let mut errors = Vec::new();
        for answer in [
            &b""[..],
            b"220 mail.example.org ESMTP\r\n",
            b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n[{",
            b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}",
            b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\noops",
            b"HTTP/1.1 500 Internal Server Error\r\ncontent-length: 4\r\n\r\noops",
        ] {
            errors.push(failure(answer).await);
        }
        let missing = Client::new(Path::new("/nowhere/guard.sock")).unwrap();
        errors.push(missing.entries().await.unwrap_err().to_string());
        let errors = errors.join("\n");
        for word in ["hyper", "reqwest", "serde", "client error", "legacy"] {
            assert!(!errors.contains(word), "{word}: {errors}");
        }
        insta::assert_snapshot!(errors, @r#"
        no agent answers at SOCKET (it closed the connection before the end of its answer): start one with `guard run`, or name its socket with --socket; if you started one, its log says why it ended
        no agent answers at SOCKET (its answer is not HTTP): start one with `guard run`, or name its socket with --socket; if you started one, its log says why it ended
        the answer of the agent at SOCKET cannot be read (it closed the connection before the end of its answer): it may be of another version, `systemctl restart guard` starts the installed one
        the answer of the agent at SOCKET cannot be read (its fields are others than expected): it may be of another version, `systemctl restart guard` starts the installed one
        the answer of the agent at SOCKET cannot be read (it is not JSON): it may be of another version, `systemctl restart guard` starts the installed one
        the answer of the agent at SOCKET cannot be read (it is not JSON): it may be of another version, `systemctl restart guard` starts the installed one
        no agent answers at /nowhere/guard.sock (No such file or directory (os error 2)): start one with `guard run`, or name its socket with --socket; if you started one, its log says why it ended
        "#);
    }
}
