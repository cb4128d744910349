//! The inventory of a daemon, and the requests that are open. All requests run concurrently: one that the daemon does
//! not answer delays no event and no other request.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, VecDeque},
    mem,
    time::Duration,
};

use futures_util::{FutureExt as _, StreamExt as _, future::BoxFuture, stream::FuturesUnordered};
use jiff::Timestamp;
use tokio::time::{Instant, sleep};
use tracing::warn;

use super::{
    Container, Inventory, Network,
    answers::{EventAnswer, Info, is_identifier},
    client::{DockerClient, DockerClientError},
    files::Files,
    read::{self, AT_ONCE, BUDGET_OF_ONE, ListedContainer, Networks},
};

/// The most inspections that are open at once, those included that the daemon does not answer. Each costs the daemon a
/// connection and a goroutine.
const MOST_INSPECTIONS: usize = 256;

/// The first pause after a list that failed. Podman's list fails if a container is removed while the list is made.
const FIRST_PAUSE: Duration = Duration::from_secs(1);

/// The most answers that are processed before the result is published.
const ANSWERS_AT_ONCE: usize = 64;

pub(super) struct Follower {
    client: DockerClient,
    files: Files,
    pub inventory: Inventory,
    /// The containers as the list has them, until they are inspected.
    listed: HashMap<String, Container>,
    requests: FuturesUnordered<BoxFuture<'static, DockerAnswer>>,
    /// The containers that are being inspected.
    inspections: HashMap<String, Inspection>,
    /// The containers that will be inspected, in the order of the list.
    queue: VecDeque<String>,
    count: u64,
    networks: NetworkRequest,
    /// Networks of another daemon, until this daemon has been read whole.
    other_networks: Vec<Network>,
    /// The containers that this daemon has reported.
    own: BTreeSet<String>,
    /// The containers that have changed since the list was requested.
    touched: BTreeSet<String>,
    list: List,
    /// The containers of the first list that have not been inspected yet.
    unread: BTreeSet<String>,
    /// The inventory has containers of another daemon, until this daemon has been read whole.
    keeps_others: bool,
}

struct Inspection {
    number: u64,
    /// The container has changed since the request.
    again: bool,
    /// The time for the request is over.
    is_late: bool,
}

#[derive(Default)]
struct NetworkRequest {
    is_open: bool,
    /// The networks have changed since the request.
    again: bool,
    is_known: bool,
}

struct List {
    look_again: Duration,
    /// When the list is requested next; `None`: a request is open.
    next: Option<Instant>,
    asked_at: Timestamp,
    pause: Duration,
    /// Events have been lost since the request.
    again: bool,
    /// The list has been read at least once.
    is_known: bool,
    trouble: Option<DockerClientError>,
}

pub(super) enum DockerAnswer {
    Container {
        id: String,
        number: u64,
        /// `None`: the container is gone.
        found: Result<Option<Box<Container>>, DockerClientError>,
        /// The time of the event that led to the request.
        event: Option<Timestamp>,
    },
    Late {
        id: String,
        number: u64,
    },
    Networks(Result<Networks, DockerClientError>),
    List {
        listed: Result<Vec<ListedContainer>, DockerClientError>,
        info: Option<Info>,
    },
}

/// The consequences of an answer for [`super::watch`].
#[derive(Default)]
pub(super) struct News {
    pub event: Option<Timestamp>,
    /// The daemon's newest facts about itself.
    pub info: Option<Info>,
    /// Events have been lost since that moment.
    pub lost_since: Option<Timestamp>,
}

impl Follower {
    /// `inventory`: the last known one. `is_same`: it is of this daemon, and not of another.
    pub fn new(
        client: DockerClient,
        files: Files,
        mut inventory: Inventory,
        is_same: bool,
        look_again: Duration,
    ) -> Self {
        let other_networks = match is_same {
            true => Vec::new(),
            false => mem::take(&mut inventory.networks),
        };
        Self {
            client,
            files,
            inventory,
            listed: HashMap::new(),
            requests: FuturesUnordered::new(),
            inspections: HashMap::new(),
            queue: VecDeque::new(),
            count: 0,
            networks: NetworkRequest::default(),
            other_networks,
            own: BTreeSet::new(),
            touched: BTreeSet::new(),
            list: List {
                look_again,
                next: Some(Instant::now()),
                asked_at: Timestamp::now(),
                pause: FIRST_PAUSE,
                again: false,
                is_known: false,
                trouble: None,
            },
            unread: BTreeSet::new(),
            keeps_others: !is_same,
        }
    }

    /// Why the inventory may miss containers.
    pub fn trouble(&self) -> Option<&DockerClientError> {
        self.list.trouble.as_ref()
    }

    /// Whether each container has been inspected, or its time is over.
    pub fn is_whole(&self) -> bool {
        let is_stuck = self.inspections.len() >= MOST_INSPECTIONS && self.active() == 0;
        let all_read = self.unread.is_empty() || is_stuck;
        self.list.is_known && all_read && self.networks.is_known
    }

    /// The inventory at this moment, with the networks of another daemon.
    pub fn inventory(&self) -> Inventory {
        let mut inventory = self.inventory.clone();
        inventory
            .networks
            .extend(self.other_networks.iter().cloned());
        inventory
    }

    /// Removes the containers and networks of another daemon. To be called when [`Self::is_whole`].
    pub fn forget_others(&mut self) {
        if !self.keeps_others {
            return;
        }
        self.keeps_others = false;
        self.other_networks.clear();
        let own = &self.own;
        self.inventory.containers.retain(|id, _| own.contains(id));
    }

    /// Waits for the next answer, and processes all that have arrived. Requests the list when it is due.
    pub async fn next(&mut self) -> News {
        loop {
            match self.list.next {
                Some(due) if due <= Instant::now() => self.request_list(),
                Some(due) => tokio::select! {
                    Some(answer) = self.requests.next() => return self.process_all(answer),
                    () = tokio::time::sleep_until(due) => {}
                },
                None => match self.requests.next().await {
                    Some(answer) => return self.process_all(answer),
                    // No request is open, not even that of the list.
                    None => self.list.next = Some(Instant::now()),
                },
            }
        }
    }

    fn process_all(&mut self, first: DockerAnswer) -> News {
        let mut news = News::default();
        self.process_answer(first, &mut news);
        for _ in 1..ANSWERS_AT_ONCE {
            match self.requests.next().now_or_never().flatten() {
                Some(answer) => self.process_answer(answer, &mut news),
                None => break,
            }
        }
        news
    }

    /// Processes an event, and returns its time. `None`: it changes nothing, or has no time.
    pub fn process_event(&mut self, event: EventAnswer) -> Option<Timestamp> {
        let moment = event.moment();
        let actor = event.actor.unwrap_or_default();
        let id = actor.id.filter(|id| is_identifier(id))?;
        let attributes = actor.attributes.unwrap_or_default();
        let action = event.action.unwrap_or_default();
        match (event.kind.as_deref()?, action.as_str()) {
            ("network", _) => {
                self.request_networks();
                // If a container is connected to a network or disconnected, its addresses change.
                let container = attributes.get("container");
                if let Some(container) = container.filter(|id| is_identifier(id)) {
                    self.request_inspection(container.clone(), moment);
                }
            }
            ("container", "create") => {
                // After a reconnect, the event of a known container may come again.
                let is_new = |known: &Container| known.half_known.is_some();
                if self.inventory.containers.get(&id).is_none_or(is_new) {
                    let created = read::created(attributes);
                    let why = "it was just created";
                    let known = read::half_known(&id, Some(&created), None, &self.files, why);
                    self.inventory.containers.insert(id.clone(), known);
                }
                // Docker may not answer before the container has been started.
                self.request_inspection(id, None);
            }
            ("container", "destroy") => {
                self.forget(&id);
                self.touched.insert(id);
            }
            ("container", action) if changes_nothing(action) => return None,
            ("container", _) => self.request_inspection(id, moment),
            _ => return None,
        }
        moment
    }

    /// Schedules a new list soon, because events were lost.
    pub fn request_list_soon(&mut self) {
        let soon = Instant::now() + FIRST_PAUSE;
        match &mut self.list.next {
            Some(next) => *next = soon.min(*next),
            None => self.list.again = true,
        }
    }

    fn forget(&mut self, id: &str) {
        self.inventory.containers.remove(id);
        self.inspections.remove(id);
        self.listed.remove(id);
        self.unread.remove(id);
        self.own.remove(id);
    }

    fn active(&self) -> usize {
        let inspections = self.inspections.values();
        inspections.filter(|inspection| !inspection.is_late).count()
    }

    /// Requests an inspection because of an event.
    fn request_inspection(&mut self, id: String, event: Option<Timestamp>) {
        self.touched.insert(id.clone());
        self.own.insert(id.clone());
        if let Some(inspection) = self.inspections.get_mut(&id) {
            // Docker goes on with a request that the client gives up, so there is only one per container at a time.
            inspection.again = true;
        } else if self.inspections.len() < MOST_INSPECTIONS {
            self.inspect(id, event);
        } else if !self.queue.contains(&id) {
            self.queue.push_front(id);
        }
    }

    fn start_inspections(&mut self) {
        while self.active() < AT_ONCE && self.inspections.len() < MOST_INSPECTIONS {
            let Some(id) = self.queue.pop_front() else {
                break;
            };
            if self.inventory.containers.contains_key(&id) && !self.inspections.contains_key(&id) {
                self.inspect(id, None);
            }
        }
    }

    fn inspect(&mut self, id: String, event: Option<Timestamp>) {
        self.count += 1;
        let number = self.count;
        let inspection = Inspection {
            number,
            again: false,
            is_late: false,
        };
        self.inspections.insert(id.clone(), inspection);
        let (client, inspected_id) = (self.client.clone(), id.clone());
        self.requests.push(Box::pin(async move {
            let found = read::container(&client, &inspected_id).await;
            DockerAnswer::Container {
                id: inspected_id,
                number,
                found: found.map(|found| found.map(Box::new)),
                event,
            }
        }));
        self.requests.push(Box::pin(async move {
            sleep(BUDGET_OF_ONE).await;
            DockerAnswer::Late { id, number }
        }));
    }

    fn request_networks(&mut self) {
        if self.networks.is_open {
            self.networks.again = true;
            return;
        }
        self.networks.is_open = true;
        let client = self.client.clone();
        self.requests.push(Box::pin(async move {
            DockerAnswer::Networks(read::networks(&client).await)
        }));
    }

    fn request_list(&mut self) {
        self.list.next = None;
        self.list.asked_at = Timestamp::now();
        self.touched.clear();
        self.request_networks();
        let client = self.client.clone();
        self.requests.push(Box::pin(async move {
            let (listed, info) = tokio::join!(read::list(&client), read::daemon(&client));
            DockerAnswer::List {
                listed,
                info: info.ok(),
            }
        }));
    }

    fn process_answer(&mut self, answer: DockerAnswer, news: &mut News) {
        match answer {
            DockerAnswer::Container {
                id,
                number,
                found,
                event,
            } => {
                if self.is_open(&id, number) {
                    self.process_container(id, found);
                    news.event = event.or(news.event);
                }
            }
            DockerAnswer::Late { id, number } => {
                if self.is_open(&id, number) {
                    let why = DockerClientError::Slow(BUDGET_OF_ONE).to_string();
                    self.process_half_known(&id, &why);
                    if let Some(inspection) = self.inspections.get_mut(&id) {
                        inspection.is_late = true;
                    }
                }
            }
            DockerAnswer::Networks(networks) => {
                let again = mem::take(&mut self.networks.again);
                self.networks.is_open = false;
                self.networks.is_known = true;
                self.inventory.take_networks(networks);
                if again {
                    self.request_networks();
                }
            }
            DockerAnswer::List { listed, info } => {
                news.info = info;
                match listed {
                    Ok(listed) => self.process_list(listed, news),
                    Err(error) => {
                        self.list.next = Some(Instant::now() + self.list.pause);
                        self.list.pause =
                            (self.list.pause * 2).min(self.list.look_again.max(FIRST_PAUSE));
                        self.list.trouble = Some(error);
                    }
                }
            }
        }
        self.start_inspections();
    }

    fn is_open(&self, id: &str, number: u64) -> bool {
        let inspection = self.inspections.get(id);
        inspection.is_some_and(|inspection| inspection.number == number)
    }

    fn process_container(
        &mut self,
        id: String,
        found: Result<Option<Box<Container>>, DockerClientError>,
    ) {
        let inspection = self.inspections.remove(&id);
        match found {
            Ok(Some(found)) => {
                self.unread.remove(&id);
                self.listed.remove(&id);
                self.inventory.containers.insert(id.clone(), *found);
            }
            Ok(None) => self.forget(&id),
            Err(error) => self.process_half_known(&id, &error.to_string()),
        }
        if inspection.is_some_and(|inspection| inspection.again) {
            self.inspect(id, None);
        }
    }

    fn process_half_known(&mut self, id: &str, why: &str) {
        self.unread.remove(id);
        let known = self.inventory.containers.get(id);
        let half = read::half_known(id, self.listed.get(id), known, &self.files, why);
        if known.is_none_or(|known| known.half_known != half.half_known) {
            warn!(
                container = half.name,
                "the container cannot be inspected: {why}. The ports that it may publish stay closed"
            );
        }
        self.inventory.containers.insert(id.to_owned(), half);
    }

    /// Processes the list, except containers that have changed since it was requested.
    fn process_list(&mut self, listed: Vec<ListedContainer>, news: &mut News) {
        let is_first = !self.list.is_known;
        self.list.is_known = true;
        self.list.trouble = None;
        self.list.pause = FIRST_PAUSE;
        let pause = match mem::take(&mut self.list.again) {
            true => FIRST_PAUSE,
            false => self.list.look_again,
        };
        self.list.next = Some(Instant::now() + pause);
        let listed: BTreeMap<String, Option<Container>> =
            listed.into_iter().filter_map(read::identified).collect();
        let touched = &self.touched;
        let containers = &mut self.inventory.containers;
        let gone = |id: &String| !listed.contains_key(id) && !touched.contains(id);
        let mut is_event_lost = containers.keys().any(gone);
        if !self.keeps_others {
            containers.retain(|id, _| !gone(id));
        }
        self.listed.clear();
        self.queue.clear();
        for (id, listed) in listed {
            if touched.contains(&id) {
                continue;
            }
            let known = containers.get(&id);
            is_event_lost |= known.is_none();
            if known.is_none_or(|known| known.half_known.is_some()) {
                let why = known.and_then(|known| known.half_known.as_deref());
                let why = why.unwrap_or("it was not inspected yet").to_owned();
                let half = read::half_known(&id, listed.as_ref(), known, &self.files, &why);
                containers.insert(id.clone(), half);
            }
            self.own.insert(id.clone());
            if let Some(listed) = listed {
                self.listed.insert(id.clone(), listed);
            }
            if is_first {
                self.unread.insert(id.clone());
            }
            self.queue.push_back(id);
        }
        // A container came or went without an event: the stream of events is silent, or events were lost.
        if is_event_lost && !is_first && !self.keeps_others {
            news.lost_since = Some(self.list.asked_at);
        }
    }
}

/// Whether an event changes none of the facts in the inventory: health checks, commands run in a container, copies.
fn changes_nothing(action: &str) -> bool {
    const OTHERS: [&str; 9] = [
        "archive-path",
        "attach",
        "commit",
        "copy",
        "detach",
        "export",
        "extract-to-dir",
        "resize",
        "top",
    ];
    let action = action.split(':').next().unwrap_or_default();
    action.starts_with("exec_") || action == "health_status" || OTHERS.contains(&action)
}

impl EventAnswer {
    fn moment(&self) -> Option<Timestamp> {
        Timestamp::from_nanosecond(self.time_ns?.into()).ok()
    }
}
