//! Follows what Docker does. Everything is read again after each reconnect, and a container that is
//! named in an event is asked for at once.

use std::{
    collections::{BTreeSet, HashMap},
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
use futures_util::{StreamExt as _, future::try_join_all};
use jiff::Timestamp;
use tokio::{
    sync::{Notify, watch},
    task::JoinHandle,
    time::{Instant, sleep, timeout},
};
use tracing::{info, warn};

use super::{
    DockerError, Inventory,
    read::{self, api_error, connect, patient},
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
    /// `changed` is told of everything that is new.
    pub fn start(socket: &str, changed: Arc<Notify>) -> Self {
        let (sender, seen) = watch::channel(Seen::default());
        let teller = Teller { sender, changed };
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
    changed: Arc<Notify>,
}

impl Teller {
    fn known(&self) -> Option<Arc<Inventory>> {
        self.sender.borrow().inventory.clone()
    }

    fn tell(&self, seen: Seen) {
        self.sender.send_replace(seen);
        self.changed.notify_one();
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
    // Events from before everything is read, so that nothing falls in between.
    let options = EventsOptionsBuilder::default()
        .since(&since(Timestamp::now()))
        .filters(&HashMap::from([("type", vec!["container", "network"])]))
        .build();
    let mut inventory = patient(socket, read::inventory(&docker)).await?;
    if teller.sender.borrow().trouble.is_some() {
        info!(socket, "Docker answers again");
    }
    teller.tell_inventory(inventory.clone(), None);
    let events = docker.events(Some(options)).ready_chunks(EVENTS_AT_ONCE);
    tokio::pin!(events);
    loop {
        let event = match timeout(LOOK_AGAIN, events.next()).await {
            Ok(None) => {
                return Err(DockerError::Api {
                    socket: socket.to_owned(),
                    error: "it has ended the connection".to_owned(),
                });
            }
            Ok(Some(chunk)) => {
                let chunk: Result<Vec<EventMessage>, Error> = chunk.into_iter().collect();
                let chunk = chunk.map_err(|error| api_error(socket, &error))?;
                patient(socket, take_up(&docker, &mut inventory, &chunk)).await?;
                chunk.iter().rev().find_map(moment)
            }
            Err(_quiet) => {
                inventory = patient(socket, read::inventory(&docker)).await?;
                None
            }
        };
        teller.tell_inventory(inventory.clone(), event);
    }
}

/// Asks again for what events name.
async fn take_up(
    docker: &Docker,
    inventory: &mut Inventory,
    events: &[EventMessage],
) -> Result<(), Error> {
    let mut containers = BTreeSet::new();
    let mut networks = false;
    for event in events {
        let id = event.actor.as_ref().and_then(|actor| actor.id.clone());
        match (event.typ, event.action.as_deref()) {
            (Some(EventMessageTypeEnum::NETWORK), _) => networks = true,
            // Health checks and what is typed into a container change no port.
            (_, Some(action)) if action.starts_with("exec_") => {}
            (Some(EventMessageTypeEnum::CONTAINER), _) => containers.extend(id),
            _ => {}
        }
    }
    let asked = containers.iter().map(|id| read::container(docker, id));
    let found = try_join_all(asked).await?;
    for (id, container) in containers.into_iter().zip(found) {
        match container {
            Some(container) => inventory.containers.insert(id, container),
            None => inventory.containers.remove(&id),
        };
    }
    if networks {
        inventory.networks = read::networks(docker).await?;
    }
    Ok(())
}

/// Docker reads seconds with a fraction.
fn since(moment: Timestamp) -> String {
    format!("{}.{:09}", moment.as_second(), moment.subsec_nanosecond())
}

fn moment(event: &EventMessage) -> Option<Timestamp> {
    Timestamp::from_nanosecond(event.time_nano?.into()).ok()
}
