//! Follows what Docker does. Everything is read again after each reconnect, and a container that is
//! named in an event is asked for at once.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    convert::Infallible,
    sync::Arc,
    time::Duration,
};

use bollard::{
    Docker,
    errors::Error,
    models::{EventMessage, EventMessageTypeEnum},
    query_parameters::EventsOptionsBuilder,
};
use futures_util::{StreamExt as _, future::BoxFuture, stream::FuturesUnordered};
use jiff::Timestamp;
use tokio::{
    sync::watch,
    task::JoinHandle,
    time::{Instant, interval_at, sleep, timeout},
};
use tracing::{info, warn};

use super::{
    Container, DockerError, Inventory, PATIENCE, Publication,
    read::{self, Files, api_error, connect, patient},
};

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

/// A task that follows Docker at a socket until this is dropped.
pub struct Watch {
    socket: String,
    seen: watch::Receiver<Seen>,
    task: JoinHandle<()>,
}

impl Watch {
    /// `hear` is told of everything that is new, at once.
    pub fn start(socket: &str, hear: impl Fn(&Seen) + Send + Sync + 'static) -> Self {
        let (sender, seen) = watch::channel(Seen::default());
        let hear = Box::new(hear);
        let teller = Teller { sender, hear };
        Self {
            socket: socket.to_owned(),
            seen,
            task: tokio::spawn(follow(socket.to_owned(), teller)),
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

impl Drop for Watch {
    fn drop(&mut self) {
        self.task.abort();
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

async fn follow(socket: String, teller: Teller) {
    let mut pause = FIRST_PAUSE;
    loop {
        let started = Instant::now();
        let trouble = match follow_once(&socket, &teller).await {
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
    let mut follower = Follower {
        inventory: patient(socket, read::inventory(&docker, &files)).await?,
        docker: &docker,
        files,
        asked: FuturesUnordered::new(),
        newest: HashMap::new(),
        count: 0,
    };
    if teller.sender.borrow().trouble.is_some() {
        info!(socket, "Docker answers again");
    }
    teller.tell_inventory(follower.inventory.clone(), None);
    let events = docker.events(Some(options)).ready_chunks(EVENTS_AT_ONCE);
    tokio::pin!(events);
    let mut look_again = interval_at(Instant::now() + LOOK_AGAIN, LOOK_AGAIN);
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
                patient(socket, follower.take_up(&chunk)).await?;
                chunk.iter().rev().find_map(moment)
            }
            Some(Asked { id, number, event, found }) = follower.asked.next() => {
                let found = found.map_err(|error| api_error(socket, &error))?;
                follower.learn(id, number, found);
                event
            }
            _ = look_again.tick() => {
                let all = read::inventory(&docker, &follower.files);
                follower.inventory = patient(socket, all).await?;
                None
            }
        };
        teller.tell_inventory(follower.inventory.clone(), event);
    }
}

/// What Docker has said, and what it is being asked.
struct Follower<'a> {
    docker: &'a Docker,
    files: Files,
    inventory: Inventory,
    /// One that Docker holds must not hold up the others.
    asked: FuturesUnordered<BoxFuture<'a, Asked>>,
    /// The newest question about each container, which alone counts.
    newest: HashMap<String, u64>,
    count: u64,
}

/// A question about a container, and its answer.
struct Asked {
    id: String,
    number: u64,
    event: Option<Timestamp>,
    found: Result<Found, Error>,
}

enum Found {
    Container(Box<Container>),
    Gone,
    /// Docker has not answered; what was known holds.
    Unknown,
}

impl<'a> Follower<'a> {
    async fn take_up(&mut self, events: &[EventMessage]) -> Result<(), Error> {
        let mut networks = false;
        for event in events {
            let actor = event.actor.as_ref();
            let Some(id) = actor.and_then(|actor| actor.id.clone()) else {
                continue;
            };
            match (event.typ, event.action.as_deref().unwrap_or_default()) {
                (Some(EventMessageTypeEnum::NETWORK), _) => networks = true,
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
                }
                // Health checks and what is typed into a container change no port.
                (_, action) if action.starts_with("exec_") => {}
                (Some(EventMessageTypeEnum::CONTAINER), _) => self.ask(id, moment(event)),
                _ => {}
            }
        }
        if networks {
            self.inventory.networks = read::networks(self.docker).await?;
        }
        Ok(())
    }

    fn ask(&mut self, id: String, event: Option<Timestamp>) {
        self.count += 1;
        let number = self.count;
        self.newest.insert(id.clone(), number);
        let docker = self.docker;
        self.asked.push(Box::pin(async move {
            let found = match timeout(PATIENCE, read::container(docker, &id)).await {
                Ok(Ok(Some(container))) => Ok(Found::Container(Box::new(container))),
                Ok(Ok(None)) => Ok(Found::Gone),
                Ok(Err(error)) => Err(error),
                Err(_) => Ok(Found::Unknown),
            };
            Asked {
                id,
                number,
                event,
                found,
            }
        }));
    }

    fn learn(&mut self, id: String, number: u64, found: Found) {
        if self.newest.get(&id) != Some(&number) {
            return;
        }
        self.newest.remove(&id);
        match found {
            Found::Container(container) => {
                self.inventory.containers.insert(id, *container);
            }
            Found::Gone => {
                self.inventory.containers.remove(&id);
            }
            Found::Unknown => {}
        }
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
