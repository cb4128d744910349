//! HTTP with a container daemon over its Unix socket. The daemon's answers are not trusted: the size and the time of
//! each answer are limited, and so is the size of each event.
//!
//! Not `bollard`: 0.21 reads bodies of any size, and one container in a state that its models do not list
//! (Podman's `stopped`) makes the whole list unreadable (bollard's issues 293 and 701).

use std::{
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use futures_util::{Stream, StreamExt as _, TryStreamExt, stream};
use http_body_util::{BodyExt as _, BodyStream, Empty, LengthLimitError, Limited};
use hyper::{
    Request, Response, StatusCode,
    body::{Bytes, Incoming},
    client::conn::http1,
    header::HOST,
};
use hyper_util::rt::TokioIo;
use serde::{Deserialize, de::DeserializeOwned};
use tokio::{net::UnixStream, time::timeout};
use tokio_util::{
    bytes::BytesMut,
    codec::{Decoder, FramedRead, LinesCodec, LinesCodecError},
    io::StreamReader,
    task::AbortOnDropHandle,
};

use super::text;
use crate::causes::http_failure;

/// The newest version of Docker's API that has been tried (Docker 29).
const API: (u32, u32) = (1, 53);

const MIB: usize = 1 << 20;

/// The largest size of an answer, and the longest time for it.
#[derive(Clone, Copy, Debug)]
pub(super) struct AnswerLimit {
    pub bytes: usize,
    pub time: Duration,
}

/// For the list of all containers or networks. Docker needs about 3 kB for a container.
pub(super) const WHOLE_LIST: AnswerLimit = AnswerLimit {
    bytes: 64 * MIB,
    time: Duration::from_secs(5),
};

/// For facts about the daemon itself.
pub(super) const DAEMON: AnswerLimit = AnswerLimit {
    bytes: MIB,
    time: Duration::from_secs(5),
};

/// For one container. Docker does not answer while it starts the container, and goes on with the request after the
/// client has hung up. So the request stays open for longer than the time until the container counts as half known.
pub(super) const ONE_CONTAINER: AnswerLimit = AnswerLimit {
    bytes: 8 * MIB,
    time: Duration::from_secs(120),
};

/// The longest event in bytes. It has all labels of its container.
const LONGEST_EVENT: usize = 8 * MIB;

/// The longest body of a refusal in bytes.
const LONGEST_REFUSAL: usize = 64 << 10;

#[derive(Debug, thiserror::Error)]
pub(super) enum DockerClientError {
    #[error("{0}")]
    Socket(#[from] io::Error),
    #[error("{}", http_failure(.0))]
    Http(#[from] hyper::Error),
    #[error("its answer is larger than {} MiB", .0 / MIB)]
    TooLarge(usize),
    #[error("no answer within {} s", .0.as_secs())]
    Slow(Duration),
    #[error("it answers {status}: {message}")]
    Refused { status: u16, message: String },
    #[error("its answer cannot be read: {0}")]
    Json(#[from] serde_json::Error),
    #[error("it has closed the connection")]
    Ended,
}

/// A line of the event stream.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum EventLine {
    Text(String),
    /// The event is skipped, and everything must be read again.
    TooLong,
}

/// A daemon at a socket. Each request has its own connection.
#[derive(Clone, Debug)]
pub(super) struct DockerClient {
    socket: PathBuf,
    /// `/v1.53`: the version of the API, before each path.
    version: String,
    pub is_podman: bool,
    /// The version of the daemon, such as `28.5.1`.
    pub release: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
struct Version {
    version: Option<String>,
    api_version: Option<String>,
    #[serde(rename = "MinAPIVersion")]
    min_api_version: Option<String>,
    components: Option<Vec<Component>>,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
struct Component {
    name: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Refusal {
    message: Option<String>,
}

impl DockerClient {
    pub async fn connect(socket: &Path) -> Result<Self, DockerClientError> {
        let mut client = Self {
            socket: socket.to_owned(),
            version: String::new(),
            is_podman: false,
            release: None,
        };
        let version: Version = client.get_unversioned("/version", DAEMON).await?;
        let numbers = |text: Option<String>| parse_version(&text?);
        // Docker 29 refuses API versions below 1.44. Every daemon refuses versions above its own.
        let newest = numbers(version.api_version).unwrap_or(API).min(API);
        let (major, minor) = newest.max(numbers(version.min_api_version).unwrap_or(newest));
        let components = version.components.unwrap_or_default();
        let mut names = components
            .iter()
            .filter_map(|component| component.name.as_deref());
        client.is_podman = names.any(|name| name.starts_with("Podman"));
        client.version = format!("/v{major}.{minor}");
        client.release = version.version.map(|version| text::plain(&version));
        Ok(client)
    }

    /// Sends a GET request for `path` below the version of the API, and parses the answer.
    pub async fn get<T: DeserializeOwned>(
        &self,
        path: &str,
        limit: AnswerLimit,
    ) -> Result<T, DockerClientError> {
        self.get_unversioned(&format!("{}{path}", self.version), limit)
            .await
    }

    pub async fn get_unversioned<T: DeserializeOwned>(
        &self,
        path: &str,
        limit: AnswerLimit,
    ) -> Result<T, DockerClientError> {
        let answer = async {
            // The connection is held until the body is read.
            let (response, _connection) = self.send(path).await?;
            let body = body(response.into_body(), limit.bytes).await?;
            Ok(serde_json::from_slice(&body)?)
        };
        match timeout(limit.time, answer).await {
            Ok(answer) => answer,
            Err(_) => Err(DockerClientError::Slow(limit.time)),
        }
    }

    /// Sends a GET request for `path`, and returns the lines of an answer that does not end.
    pub fn lines(
        &self,
        path: &str,
    ) -> impl Stream<Item = Result<EventLine, DockerClientError>> + Send + use<> {
        let (client, path) = (self.clone(), format!("{}{path}", self.version));
        // Older versions of Podman send the head of the response with the first event, so the request must not be
        // awaited before the stream is polled.
        stream::once(async move {
            let (response, connection) = client.send(&path).await?;
            let frames = BodyStream::new(response.into_body());
            let frames = TryStreamExt::map_err(frames, io::Error::other);
            let data = frames.try_filter_map(async |frame| Ok(frame.into_data().ok()));
            let lines = FramedRead::new(StreamReader::new(Box::pin(data)), EventLineCodec::new());
            Ok::<_, DockerClientError>(lines.map(move |line| {
                let _held = &connection;
                line
            }))
        })
        .try_flatten()
    }

    async fn send(
        &self,
        path: &str,
    ) -> Result<(Response<Incoming>, AbortOnDropHandle<()>), DockerClientError> {
        let stream = UnixStream::connect(&self.socket).await?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        let connection = AbortOnDropHandle::new(tokio::spawn(async move {
            // If the connection fails, the request fails as well.
            let _result = connection.await;
        }));
        let mut request = Request::new(Empty::<Bytes>::new());
        *request.uri_mut() = path.parse().map_err(io::Error::other)?;
        let host = hyper::header::HeaderValue::from_static("docker");
        request.headers_mut().insert(HOST, host);
        let response = sender.send_request(request).await?;
        if response.status() == StatusCode::OK {
            return Ok((response, connection));
        }
        let status = response.status().as_u16();
        let refusal = body(response.into_body(), LONGEST_REFUSAL).await?;
        let message = serde_json::from_slice::<Refusal>(&refusal).unwrap_or_default();
        let message = text::plain(&message.message.unwrap_or_default());
        Err(DockerClientError::Refused { status, message })
    }
}

async fn body(body: Incoming, limit: usize) -> Result<Bytes, DockerClientError> {
    match Limited::new(body, limit).collect().await {
        Ok(whole) => Ok(whole.to_bytes()),
        Err(error) if error.is::<LengthLimitError>() => Err(DockerClientError::TooLarge(limit)),
        Err(error) => Err(match error.downcast::<hyper::Error>() {
            Ok(error) => DockerClientError::Http(*error),
            Err(error) => DockerClientError::Socket(io::Error::other(error)),
        }),
    }
}

fn parse_version(text: &str) -> Option<(u32, u32)> {
    let (major, minor) = text.split_once('.')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

/// Splits a stream into lines of at most [`LONGEST_EVENT`] bytes.
struct EventLineCodec(LinesCodec);

impl EventLineCodec {
    fn new() -> Self {
        Self(LinesCodec::new_with_max_length(LONGEST_EVENT))
    }
}

impl Decoder for EventLineCodec {
    type Item = EventLine;
    type Error = DockerClientError;

    fn decode(&mut self, source: &mut BytesMut) -> Result<Option<EventLine>, DockerClientError> {
        match self.0.decode(source) {
            Ok(line) => Ok(line.map(EventLine::Text)),
            Err(LinesCodecError::MaxLineLengthExceeded) => Ok(Some(EventLine::TooLong)),
            Err(LinesCodecError::Io(error)) => Err(error.into()),
        }
    }

    fn decode_eof(
        &mut self,
        _source: &mut BytesMut,
    ) -> Result<Option<EventLine>, DockerClientError> {
        Err(DockerClientError::Ended)
    }
}
