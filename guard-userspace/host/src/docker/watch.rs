//! Follows Docker, on a thread of its own. It subscribes to events before it requests the list, and publishes each
//! change immediately. A container that an event names is inspected immediately. Everything is read again periodically
//! and after each reconnect.

use std::{
    convert::Infallible, fs, io, os::unix::fs::MetadataExt as _, path::Path, pin::Pin, sync::Arc,
    thread, time::Duration,
};

use futures_util::{Stream, StreamExt as _, stream::ReadyChunks};
use jiff::Timestamp;
use tokio::{
    net::UnixStream,
    runtime,
    sync::{oneshot, watch},
    time::{Instant, MissedTickBehavior, interval, sleep, timeout},
};
use tracing::{info, warn};

use super::{
    ConnectionState, DockerError, Runtime,
    client::{DockerClient, DockerClientError, EventLine},
    files::Files,
    follower::Follower,
    read::{self, api_error},
};
use crate::privileges;

/// The first pause before the next attempt to connect, and the longest.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// The most events that are processed at once.
const EVENTS_AT_ONCE: usize = 64;

/// How often everything is read again, in case an event was lost. It also tests whether a quiet daemon still answers.
const LOOK_AGAIN: Duration = Duration::from_secs(30);

/// How often the socket is tested for being the same file.
const SOCKET_CHECK: Duration = Duration::from_secs(1);

/// The state of the runtime at one moment.
#[derive(Clone, Debug)]
pub struct ObservedRuntime {
    pub runtime: Runtime,
    /// The time of the event that led to this state, by Docker's clock.
    pub event: Option<Timestamp>,
}

/// A thread that follows Docker at a socket until this is dropped. It has its own thread, so that the agent's other
/// work does not delay it.
pub struct Watch {
    socket: String,
    seen: watch::Receiver<ObservedRuntime>,
    /// Held for its drop, which ends the thread.
    _end: oneshot::Sender<Infallible>,
}

impl Watch {
    /// Starts the thread. It calls `on_change` immediately with each new state.
    pub fn start(
        socket: &str,
        on_change: impl Fn(&ObservedRuntime) + Send + Sync + 'static,
    ) -> Self {
        Self::start_at(socket, LOOK_AGAIN, on_change)
    }

    /// Like [`Self::start`]. `look_again`: how often everything is read again.
    pub(super) fn start_at(
        socket: &str,
        look_again: Duration,
        on_change: impl Fn(&ObservedRuntime) + Send + Sync + 'static,
    ) -> Self {
        let (sender, seen) = watch::channel(ObservedRuntime {
            runtime: Runtime::new(socket),
            event: None,
        });
        let on_change = Box::new(on_change);
        let publisher = Publisher {
            sender,
            on_change,
            was_whole: false,
            look_again,
        };
        let (end, ended) = oneshot::channel();
        let followed = socket.to_owned();
        thread::spawn(move || run(&followed, publisher, ended));
        Self {
            socket: socket.to_owned(),
            seen,
            _end: end,
        }
    }

    /// The path of the socket.
    pub fn socket(&self) -> &str {
        &self.socket
    }

    /// The state at this moment.
    pub fn seen(&self) -> ObservedRuntime {
        self.seen.borrow().clone()
    }

    /// Waits until Docker was read whole, or an attempt failed, or `patience` is over, and returns the state.
    pub async fn first(&mut self, patience: Duration) -> ObservedRuntime {
        let known = |seen: &ObservedRuntime| seen.runtime.connection != ConnectionState::Reading;
        // It fails if the thread has ended: then the last state is returned.
        let _result = timeout(patience, self.seen.wait_for(known)).await.map(drop);
        self.seen()
    }
}

fn run(socket: &str, mut publisher: Publisher, ended: oneshot::Receiver<Infallible>) {
    let runtime = runtime::Builder::new_current_thread()
        .on_thread_park(privileges::follow)
        .enable_all()
        .build();
    match runtime {
        Ok(runtime) => runtime.block_on(async {
            tokio::select! {
                () = follow(socket, &mut publisher) => {}
                _ = ended => {}
            }
        }),
        Err(error) => publisher.publish_trouble(&api_error(socket, &error.into())),
    }
}

struct Publisher {
    sender: watch::Sender<ObservedRuntime>,
    on_change: Box<dyn Fn(&ObservedRuntime) + Send + Sync>,
    /// A daemon has been read whole at least once.
    was_whole: bool,
    look_again: Duration,
}

impl Publisher {
    fn runtime(&self) -> Runtime {
        self.sender.borrow().runtime.clone()
    }

    fn publish(&self, runtime: Runtime, event: Option<Timestamp>) {
        let before = self.sender.borrow().runtime.clone();
        if before == runtime {
            return;
        }
        match (&before.connection, &runtime.connection) {
            (
                ConnectionState::Reading | ConnectionState::Connected,
                ConnectionState::Lost { error, .. } | ConnectionState::NeverAnswered { error },
            ) => warn!("{error}: trying again"),
            (
                ConnectionState::Lost { .. } | ConnectionState::NeverAnswered { .. },
                ConnectionState::Connected,
            ) => {
                info!(socket = runtime.socket, "Docker answers again")
            }
            _ => {}
        }
        let seen = ObservedRuntime { runtime, event };
        self.sender.send_replace(seen.clone());
        (self.on_change)(&seen);
    }

    fn publish_trouble(&self, trouble: &DockerError) {
        let mut runtime = self.runtime();
        runtime.connection = self.troubled(runtime.connection, trouble);
        self.publish(runtime, None);
    }

    fn troubled(&self, before: ConnectionState, trouble: &DockerError) -> ConnectionState {
        let error = trouble.to_string();
        match before {
            ConnectionState::Lost { since, .. } => ConnectionState::Lost { error, since },
            _ if self.was_whole => ConnectionState::Lost {
                error,
                since: Timestamp::now(),
            },
            _ => ConnectionState::NeverAnswered { error },
        }
    }

    /// Publishes the state of a follower.
    fn publish_state(
        &mut self,
        follower: &mut Follower,
        daemon: Option<&String>,
        event: Option<Timestamp>,
    ) {
        let mut runtime = self.runtime();
        runtime.connection = match (follower.trouble(), runtime.connection) {
            (Some(trouble), before) => self.troubled(before, &api_error(&runtime.socket, trouble)),
            (None, _) if follower.is_whole() => {
                follower.forget_others();
                runtime.daemon = daemon.cloned();
                self.was_whole = true;
                ConnectionState::Connected
            }
            // Another daemon is being read.
            (None, ConnectionState::Connected) => ConnectionState::Reading,
            (None, before) => before,
        };
        runtime.inventory = Arc::new(follower.inventory());
        self.publish(runtime, event);
    }
}

async fn follow(socket: &str, publisher: &mut Publisher) {
    let mut pause = FIRST_PAUSE;
    loop {
        let started = Instant::now();
        let trouble = match follow_once(socket, publisher).await {
            Ended::Otherwise(trouble) => api_error(socket, &trouble),
            Ended::OtherDaemon => {
                info!(
                    socket,
                    "another daemon answers: it is read from the beginning"
                );
                continue;
            }
        };
        if started.elapsed() > LONGEST_PAUSE {
            pause = FIRST_PAUSE;
        }
        publisher.publish_trouble(&trouble);
        // Looking for a missing daemon costs little, and it may start containers as soon as it is there.
        if UnixStream::connect(socket).await.is_err() {
            while UnixStream::connect(socket).await.is_err() {
                sleep(FIRST_PAUSE).await;
            }
            pause = FIRST_PAUSE;
            continue;
        }
        sleep(pause).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

/// Why a daemon is not followed any longer.
enum Ended {
    OtherDaemon,
    Otherwise(DockerClientError),
}

impl From<DockerClientError> for Ended {
    fn from(error: DockerClientError) -> Self {
        Self::Otherwise(error)
    }
}

async fn follow_once(socket: &str, publisher: &mut Publisher) -> Ended {
    let ended = try_follow(socket, publisher).await;
    let Err(ended) = ended;
    ended
}

type Events = ReadyChunks<Pin<Box<dyn Stream<Item = Result<EventLine, DockerClientError>> + Send>>>;

async fn try_follow(socket: &str, publisher: &mut Publisher) -> Result<Infallible, Ended> {
    // Events are read from this moment on, before everything is read, so that no change is missed in between.
    let started = Timestamp::now();
    let place = place(socket).map_err(DockerClientError::from)?;
    let client = DockerClient::connect(Path::new(socket)).await?;
    let info = read::daemon(&client).await.ok();
    let mut daemon = info.as_ref().and_then(|info| read::identity(&client, info));
    let root = info
        .as_ref()
        .and_then(|info| info.docker_root_dir.as_deref());
    let before = publisher.runtime();
    let is_same = daemon.is_some() && before.daemon == daemon;
    let mut follower = Follower::new(
        client.clone(),
        Files::below(root),
        before.inventory.as_ref().clone(),
        is_same,
        publisher.look_again,
    );
    let mut events = events(&client, started);
    let mut look_at_socket = interval(SOCKET_CHECK);
    look_at_socket.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        // Not biased: a stream of events without a pause must not delay the answers.
        let event = tokio::select! {
            chunk = events.next() => {
                let mut moment = None;
                for line in chunk.ok_or(DockerClientError::Ended)? {
                    match parse(line?) {
                        Some(event) => moment = follower.process_event(event).or(moment),
                        None => follower.request_list_soon(),
                    }
                }
                moment
            }
            news = follower.next() => {
                let now = news.info.as_ref().and_then(|info| read::identity(&client, info));
                if now.is_some() && daemon.is_some() && now != daemon {
                    return Err(Ended::OtherDaemon);
                }
                daemon = daemon.or(now);
                if let Some(since) = news.lost_since {
                    warn!(socket, "Docker has not reported all events: subscribing to them again");
                    events = self::events(&client, since);
                }
                news.event
            }
            _ = look_at_socket.tick() => {
                // Requests go to the daemon at the socket now, while events still come from the earlier one.
                match self::place(socket) {
                    Ok(now) if now != place => return Err(Ended::OtherDaemon),
                    _ => continue,
                }
            }
        };
        publisher.publish_state(&mut follower, daemon.as_ref(), event);
    }
}

/// The device and inode of a socket. They change if another daemon listens at its path, or a daemon was restarted.
fn place(socket: &str) -> io::Result<(u64, u64)> {
    let found = fs::metadata(socket)?;
    Ok((found.dev(), found.ino()))
}

fn events(client: &DockerClient, since: Timestamp) -> Events {
    // `since` is in seconds with a fraction. The filter is {"type":["container","network"]}.
    let path = format!(
        "/events?since={}.{:09}&filters=%7B%22type%22%3A%5B%22container%22%2C%22network%22%5D%7D",
        since.as_second(),
        since.subsec_nanosecond()
    );
    let lines: Pin<Box<dyn Stream<Item = _> + Send>> = Box::pin(client.lines(&path));
    lines.ready_chunks(EVENTS_AT_ONCE)
}

/// Parses an event. `None`: it cannot be parsed, so everything must be read again.
fn parse(line: EventLine) -> Option<super::answers::EventAnswer> {
    match line {
        EventLine::Text(text) => serde_json::from_str(&text).ok(),
        EventLine::TooLong => None,
    }
}
