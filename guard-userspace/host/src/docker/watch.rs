//! Follows what Docker does. Everything is read again after each reconnect, and a container that is
//! named in an event is asked for at once.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    convert::Infallible,
    sync::Arc,
    thread,
    time::Duration,
};

use bollard::{
    Docker,
    errors::Error,
    models::{EventMessage, EventMessageTypeEnum},
    query_parameters::EventsOptionsBuilder,
};
use futures_util::{StreamExt as _, future::BoxFuture, stream::FuturesUnordered};
use guard_policy::ContainerNetwork;
use jiff::Timestamp;
use tokio::{
    net::UnixStream,
    runtime,
    sync::{oneshot, watch},
    time::{Instant, interval_at, sleep, timeout},
};
use tracing::{info, warn};

use super::{
    Container, DockerError, Inventory, PATIENCE, Publication,
    read::{self, Files, api_error, connect, patient},
};
use crate::privileges;

/// How often a quiet Docker is asked whether it is still there, and for everything, in case an event was
/// lost.
const LOOK_AGAIN: Duration = Duration::from_secs(30);

/// The first pause before Docker is tried again, and the longest.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// How many events that have come at once are answered at once.
const EVENTS_AT_ONCE: usize = 64;

/// What is known of Docker at a moment.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    /// The last that it said; `None`: it has not said anything yet.
    pub inventory: Option<Arc<Inventory>>,
    /// Why it says no more.
    pub trouble: Option<DockerError>,
    /// When the event happened that led to this, by Docker's clock.
    pub event: Option<Timestamp>,
}

/// A thread that follows Docker at a socket until this is dropped. It is one of its own, so that nothing
/// that the agent is busy with holds it up.
pub struct Watch {
    socket: String,
    seen: watch::Receiver<Seen>,
    /// Held for its drop, which ends the thread.
    _end: oneshot::Sender<Infallible>,
}

impl Watch {
    /// `hear` is told of everything that is new, at once.
    pub fn start(socket: &str, hear: impl Fn(&Seen) + Send + Sync + 'static) -> Self {
        let (sender, seen) = watch::channel(Seen::default());
        let hear = Box::new(hear);
        let teller = Teller { sender, hear };
        let (end, ended) = oneshot::channel();
        let followed = socket.to_owned();
        thread::spawn(move || {
            let runtime = runtime::Builder::new_current_thread()
                .on_thread_park(privileges::follow)
                .enable_all()
                .build();
            match runtime {
                Ok(runtime) => runtime.block_on(async {
                    tokio::select! {
                        () = follow(&followed, &teller) => {}
                        _ = ended => {}
                    }
                }),
                Err(error) => teller.tell(Seen {
                    trouble: Some(DockerError::Api {
                        socket: followed,
                        error: error.to_string(),
                    }),
                    ..Seen::default()
                }),
            }
        });
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
    pub fn seen(&self) -> Seen {
        self.seen.borrow().clone()
    }

    /// Waits until Docker has answered, or could not.
    pub async fn first(&mut self) -> Seen {
        let known = |seen: &Seen| seen.inventory.is_some() || seen.trouble.is_some();
        match self.seen.wait_for(known).await {
            Ok(seen) => seen.clone(),
            // The task goes on for as long as this lives.
            Err(_) => Seen::default(),
        }
    }
}

struct Teller {
    sender: watch::Sender<Seen>,
    hear: Box<dyn Fn(&Seen) + Send + Sync>,
}

impl Teller {
    fn known(&self) -> Option<Arc<Inventory>> {
        self.sender.borrow().inventory.clone()
    }

    fn tell(&self, seen: Seen) {
        self.sender.send_replace(seen.clone());
        (self.hear)(&seen);
    }

    fn tell_inventory(&self, inventory: Inventory, event: Option<Timestamp>) {
        let before = self.sender.borrow().clone();
        if before.trouble.is_none() && before.inventory.as_deref() == Some(&inventory) {
            return;
        }
        self.tell(Seen {
            inventory: Some(Arc::new(inventory)),
            trouble: None,
            event,
        });
    }
}

async fn follow(socket: &str, teller: &Teller) {
    let mut pause = FIRST_PAUSE;
    loop {
        let started = Instant::now();
        let trouble = match follow_once(socket, teller).await {
            Err(trouble) => trouble,
            Ok(never) => match never {},
        };
        if started.elapsed() > LONGEST_PAUSE {
            pause = FIRST_PAUSE;
        }
        let was_known = teller.sender.borrow().trouble.is_some();
        if !was_known {
            warn!("{trouble}: trying again");
        }
        teller.tell(Seen {
            inventory: teller.known(),
            trouble: Some(trouble),
            event: None,
        });
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

async fn follow_once(socket: &str, teller: &Teller) -> Result<Infallible, DockerError> {
    let docker = patient(socket, connect(socket)).await?;
    let files = timeout(PATIENCE, Files::find(&docker)).await;
    let files = files.map_err(|_| DockerError::Hung {
        socket: socket.to_owned(),
    })?;
    // Events from before everything is read, so that nothing falls in between.
    let options = EventsOptionsBuilder::default()
        .since(&since(Timestamp::now()))
        .filters(&HashMap::from([("type", vec!["container", "network"])]))
        .build();
    let known = teller.known().unwrap_or_default();
    let inventory = patient(socket, read::inventory(&docker, &files, &known)).await?;
    let mut follower = Follower {
        inventory,
        docker: &docker,
        files: &files,
        asked: FuturesUnordered::new(),
        newest: HashMap::new(),
        count: 0,
        touched: BTreeSet::new(),
    };
    if teller.sender.borrow().trouble.is_some() {
        info!(socket, "Docker answers again");
    }
    teller.tell_inventory(follower.inventory.clone(), None);
    let events = docker.events(Some(options)).ready_chunks(EVENTS_AT_ONCE);
    tokio::pin!(events);
    let mut look_again = interval_at(Instant::now() + LOOK_AGAIN, LOOK_AGAIN);
    // What takes Docker its time must not hold up what it says meanwhile.
    let mut looking: Option<BoxFuture<'_, Result<Inventory, DockerError>>> = None;
    loop {
        let event = tokio::select! {
            biased;
            chunk = events.next() => {
                let Some(chunk) = chunk else {
                    return Err(DockerError::Api {
                        socket: socket.to_owned(),
                        error: "it has ended the connection".to_owned(),
                    });
                };
                let chunk: Result<Vec<EventMessage>, Error> = chunk.into_iter().collect();
                let chunk = chunk.map_err(|error| api_error(socket, &error))?;
                follower.take_up(&chunk);
                chunk.iter().rev().find_map(moment)
            }
            Some(Asked { event, answer }) = follower.asked.next() => {
                let answer = answer.map_err(|error| api_error(socket, &error))?;
                follower.learn(answer);
                event
            }
            Some(all) = async { Some(looking.as_mut()?.await) } => {
                looking = None;
                follower.replace(all?);
                None
            }
            _ = look_again.tick(), if looking.is_none() => {
                let known = follower.inventory.clone();
                let (docker, files) = (&docker, &files);
                follower.touched.clear();
                looking = Some(Box::pin(async move {
                    patient(socket, read::inventory(docker, files, &known)).await
                }));
                continue;
            }
        };
        teller.tell_inventory(follower.inventory.clone(), event);
    }
}

/// What Docker has said, and what it is being asked.
struct Follower<'a> {
    docker: &'a Docker,
    files: &'a Files,
    inventory: Inventory,
    /// One that Docker holds must not hold up the others.
    asked: FuturesUnordered<BoxFuture<'a, Asked>>,
    /// The newest question about each container, which alone counts.
    newest: HashMap<String, u64>,
    count: u64,
    /// The containers that have changed since everything was last asked for.
    touched: BTreeSet<String>,
}

/// The answer to a question, and the event that led to it.
struct Asked {
    event: Option<Timestamp>,
    answer: Result<Answer, Error>,
}

enum Answer {
    Container {
        id: String,
        number: u64,
        /// `None`: it is gone.
        found: Option<Box<Container>>,
    },
    Networks(Vec<ContainerNetwork>),
    /// Docker has not answered in time; what was known holds.
    Unknown,
}

impl<'a> Follower<'a> {
    fn take_up(&mut self, events: &[EventMessage]) {
        for event in events {
            let actor = event.actor.as_ref();
            let Some(id) = actor.and_then(|actor| actor.id.clone()) else {
                continue;
            };
            match (event.typ, event.action.as_deref().unwrap_or_default()) {
                (Some(EventMessageTypeEnum::NETWORK), "create" | "destroy" | "update") => {
                    self.ask_for_networks(moment(event));
                }
                (Some(EventMessageTypeEnum::CONTAINER), "create") => {
                    let attributes = actor.and_then(|actor| actor.attributes.clone());
                    let container = created(attributes, self.files.publishes(&id));
                    self.inventory.containers.insert(id.clone(), container);
                    // Docker may answer when it has been started, and not before.
                    self.ask(id, None);
                }
                (Some(EventMessageTypeEnum::CONTAINER), "destroy") => {
                    self.inventory.containers.remove(&id);
                    self.newest.remove(&id);
                    self.touched.insert(id);
                }
                // Health checks and what is typed into a container change no port.
                (_, action) if action.starts_with("exec_") => {}
                (Some(EventMessageTypeEnum::CONTAINER), _) => self.ask(id, moment(event)),
                _ => {}
            }
        }
    }

    fn ask(&mut self, id: String, event: Option<Timestamp>) {
        self.count += 1;
        let number = self.count;
        self.newest.insert(id.clone(), number);
        self.touched.insert(id.clone());
        let docker = self.docker;
        self.asked.push(Box::pin(async move {
            let answer = match timeout(PATIENCE, read::container(docker, &id)).await {
                Ok(Ok(found)) => Ok(Answer::Container {
                    id,
                    number,
                    found: found.map(Box::new),
                }),
                Ok(Err(error)) => Err(error),
                Err(_) => Ok(Answer::Unknown),
            };
            Asked { event, answer }
        }));
    }

    fn ask_for_networks(&self, event: Option<Timestamp>) {
        let docker = self.docker;
        self.asked.push(Box::pin(async move {
            let answer = match timeout(PATIENCE, read::networks(docker)).await {
                Ok(networks) => networks.map(Answer::Networks),
                Err(_) => Ok(Answer::Unknown),
            };
            Asked { event, answer }
        }));
    }

    fn learn(&mut self, answer: Answer) {
        match answer {
            Answer::Container { id, number, found } if self.newest.get(&id) == Some(&number) => {
                self.newest.remove(&id);
                match found {
                    Some(container) => self.inventory.containers.insert(id, *container),
                    None => self.inventory.containers.remove(&id),
                };
            }
            Answer::Networks(networks) => self.inventory.networks = networks,
            Answer::Container { .. } | Answer::Unknown => {}
        }
    }

    /// Takes in everything at once, but for what has changed since it was asked for.
    fn replace(&mut self, all: Inventory) {
        let Inventory {
            containers,
            networks,
        } = all;
        let touched = &self.touched;
        let is_touched = |id: &String| touched.contains(id);
        self.inventory.containers.retain(|id, _| is_touched(id));
        let others = containers.into_iter().filter(|(id, _)| !is_touched(id));
        self.inventory.containers.extend(others);
        self.inventory.networks = networks;
    }
}

/// A container of which only its event is known: the attributes are its name, its image and its labels.
fn created(
    attributes: Option<HashMap<String, String>>,
    publishes: BTreeSet<Publication>,
) -> Container {
    let mut labels: BTreeMap<String, String> = attributes.unwrap_or_default().into_iter().collect();
    Container {
        name: labels.remove("name").unwrap_or_default(),
        image: labels.remove("image").unwrap_or_default(),
        labels,
        publishes,
        ..Container::default()
    }
}

/// Docker reads seconds with a fraction.
fn since(moment: Timestamp) -> String {
    format!("{}.{:09}", moment.as_second(), moment.subsec_nanosecond())
}

fn moment(event: &EventMessage) -> Option<Timestamp> {
    Timestamp::from_nanosecond(event.time_nano?.into()).ok()
}
