//! Follows what Docker does, on a thread of its own. Events come first: they are followed before everything is
//! listed, and whatever is learnt is told at once. A container that is named in an event is asked for at once,
//! and everything is read again now and then and after each reconnect.

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

/// The first pause before Docker is tried again, and the longest.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// How many events that have come at once are answered at once.
const EVENTS_AT_ONCE: usize = 64;

/// How often a quiet daemon is asked whether it is still there, and for everything, in case an event was
/// lost.
const LOOK_AGAIN: Duration = Duration::from_secs(30);

/// How often it is looked whether the socket is still the same.
const SOCKET_CHECK: Duration = Duration::from_secs(1);

/// What is known of Docker at a moment.
#[derive(Clone, Debug)]
pub struct ObservedRuntime {
    pub runtime: Runtime,
    /// When the event happened that led to this, by Docker's clock.
    pub event: Option<Timestamp>,
}

/// A thread that follows Docker at a socket until this is dropped. It is one of its own, so that nothing
/// that the agent is busy with holds it up.
pub struct Watch {
    socket: String,
    seen: watch::Receiver<ObservedRuntime>,
    /// Held for its drop, which ends the thread.
    _end: oneshot::Sender<Infallible>,
}

impl Watch {
    /// `hear` is told of everything that is new, at once.
    pub fn start(socket: &str, hear: impl Fn(&ObservedRuntime) + Send + Sync + 'static) -> Self {
        Self::start_at(socket, LOOK_AGAIN, hear)
    }

    /// `look_again`: how often everything is read again.
    pub(super) fn start_at(
        socket: &str,
        look_again: Duration,
        hear: impl Fn(&ObservedRuntime) + Send + Sync + 'static,
    ) -> Self {
        let (sender, seen) = watch::channel(ObservedRuntime {
            runtime: Runtime::new(socket),
            event: None,
        });
        let hear = Box::new(hear);
        let teller = Teller {
            sender,
            hear,
            was_whole: false,
            look_again,
        };
        let (end, ended) = oneshot::channel();
        let followed = socket.to_owned();
        thread::spawn(move || run(&followed, teller, ended));
        Self {
            socket: socket.to_owned(),
            seen,
            _end: end,
        }
    }

    pub fn socket(&self) -> &str {
        &self.socket
    }

    /// What is known at this moment.
    pub fn seen(&self) -> ObservedRuntime {
        self.seen.borrow().clone()
    }

    /// Waits until Docker has answered everything, or could not, or has had its time.
    pub async fn first(&mut self, patience: Duration) -> ObservedRuntime {
        let known = |seen: &ObservedRuntime| seen.runtime.connection != ConnectionState::Reading;
        // It fails if the thread has ended; then what it has told last is all there is.
        let _result = timeout(patience, self.seen.wait_for(known)).await.map(drop);
        self.seen()
    }
}

fn run(socket: &str, mut teller: Teller, ended: oneshot::Receiver<Infallible>) {
    let runtime = runtime::Builder::new_current_thread()
        .on_thread_park(privileges::follow)
        .enable_all()
        .build();
    match runtime {
        Ok(runtime) => runtime.block_on(async {
            tokio::select! {
                () = follow(socket, &mut teller) => {}
                _ = ended => {}
            }
        }),
        Err(error) => teller.tell_trouble(&api_error(socket, &error.into())),
    }
}

struct Teller {
    sender: watch::Sender<ObservedRuntime>,
    hear: Box<dyn Fn(&ObservedRuntime) + Send + Sync>,
    /// What the daemon's containers publish has been known.
    was_whole: bool,
    look_again: Duration,
}

impl Teller {
    fn runtime(&self) -> Runtime {
        self.sender.borrow().runtime.clone()
    }

    fn tell(&self, runtime: Runtime, event: Option<Timestamp>) {
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
        (self.hear)(&seen);
    }

    fn tell_trouble(&self, trouble: &DockerError) {
        let mut runtime = self.runtime();
        runtime.connection = self.troubled(runtime.connection, trouble);
        self.tell(runtime, None);
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

    /// Tells of everything that a follower knows.
    fn tell_all(
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
        self.tell(runtime, event);
    }
}

async fn follow(socket: &str, teller: &mut Teller) {
    let mut pause = FIRST_PAUSE;
    loop {
        let started = Instant::now();
        let trouble = match follow_once(socket, teller).await {
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
        teller.tell_trouble(&trouble);
        // One that is not there costs little to look for, and may start containers as soon as it is.
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

/// Why a daemon is followed no longer.
enum Ended {
    OtherDaemon,
    Otherwise(DockerClientError),
}

impl From<DockerClientError> for Ended {
    fn from(error: DockerClientError) -> Self {
        Self::Otherwise(error)
    }
}

async fn follow_once(socket: &str, teller: &mut Teller) -> Ended {
    let ended = try_follow(socket, teller).await;
    let Err(ended) = ended;
    ended
}

type Events = ReadyChunks<Pin<Box<dyn Stream<Item = Result<EventLine, DockerClientError>> + Send>>>;

async fn try_follow(socket: &str, teller: &mut Teller) -> Result<Infallible, Ended> {
    // From before everything is read, so that nothing falls in between.
    let started = Timestamp::now();
    let place = place(socket).map_err(DockerClientError::from)?;
    let client = DockerClient::connect(Path::new(socket)).await?;
    let info = read::daemon(&client).await.ok();
    let mut daemon = info.as_ref().and_then(|info| read::identity(&client, info));
    let root = info
        .as_ref()
        .and_then(|info| info.docker_root_dir.as_deref());
    let before = teller.runtime();
    let is_same = daemon.is_some() && before.daemon == daemon;
    let mut follower = Follower::new(
        client.clone(),
        Files::below(root),
        before.inventory.as_ref().clone(),
        is_same,
        teller.look_again,
    );
    let mut events = events(&client, started);
    let mut look_at_socket = interval(SOCKET_CHECK);
    look_at_socket.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        // Not biased: a stream of events without a pause must not hold up the answers.
        let event = tokio::select! {
            chunk = events.next() => {
                let mut moment = None;
                for line in chunk.ok_or(DockerClientError::Ended)? {
                    match parse(line?) {
                        Some(event) => moment = follower.take_up(event).or(moment),
                        None => follower.look_soon(),
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
                    warn!(socket, "Docker has not told of all its events: following them anew");
                    events = self::events(&client, since);
                }
                news.event
            }
            _ = look_at_socket.tick() => {
                // Requests go to who is there now, events come from who was.
                match self::place(socket) {
                    Ok(now) if now != place => return Err(Ended::OtherDaemon),
                    _ => continue,
                }
            }
        };
        teller.tell_all(&mut follower, daemon.as_ref(), event);
    }
}

/// Where a socket is: another one at its path is another daemon's, or a daemon's that has started again.
fn place(socket: &str) -> io::Result<(u64, u64)> {
    let found = fs::metadata(socket)?;
    Ok((found.dev(), found.ino()))
}

fn events(client: &DockerClient, since: Timestamp) -> Events {
    // Docker reads seconds with a fraction. The filter is {"type":["container","network"]}.
    let path = format!(
        "/events?since={}.{:09}&filters=%7B%22type%22%3A%5B%22container%22%2C%22network%22%5D%7D",
        since.as_second(),
        since.subsec_nanosecond()
    );
    let lines: Pin<Box<dyn Stream<Item = _> + Send>> = Box::pin(client.lines(&path));
    lines.ready_chunks(EVENTS_AT_ONCE)
}

/// `None`: it must be read what it was about.
fn parse(line: EventLine) -> Option<super::answers::EventAnswer> {
    match line {
        EventLine::Text(text) => serde_json::from_str(&text).ok(),
        EventLine::TooLong => None,
    }
}
