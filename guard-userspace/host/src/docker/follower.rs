//! What a daemon has said, and what it is being asked. Everything that is asked is asked beside everything
//! else: a question that the daemon does not answer holds up no event and no other question.

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

/// How many containers may be in question at once, those included that the daemon does not answer for: each
/// costs it a connection and a goroutine.
const MOST_QUESTIONS: usize = 256;

/// The first pause after a list that failed. Podman's fails when a container goes while it is made.
const FIRST_PAUSE: Duration = Duration::from_secs(1);

/// What is taken up before the result is told.
const ANSWERS_AT_ONCE: usize = 64;

pub(super) struct Follower {
    client: DockerClient,
    files: Files,
    pub inventory: Inventory,
    /// What the list showed of the containers, until they are inspected.
    listed: HashMap<String, Container>,
    asked: FuturesUnordered<BoxFuture<'static, DockerAnswer>>,
    /// The containers that are being inspected.
    questions: HashMap<String, Inspection>,
    /// Those that will be, in the order of the list.
    queue: VecDeque<String>,
    count: u64,
    networks: Asking,
    /// Networks of another daemon, until this one has been read whole.
    other_networks: Vec<Network>,
    /// The containers that this daemon has named.
    own: BTreeSet<String>,
    /// The containers that have changed since the list was asked for.
    touched: BTreeSet<String>,
    list: List,
    /// Those of the first list that have not been inspected yet.
    unread: BTreeSet<String>,
    /// Containers of another daemon are in the inventory until this one has been read whole.
    keeps_others: bool,
}

struct Inspection {
    number: u64,
    /// It has changed since it was asked for.
    again: bool,
    /// Its budget is over.
    is_late: bool,
}

#[derive(Default)]
struct Asking {
    is_open: bool,
    /// There has been a change since it was asked for.
    again: bool,
    is_known: bool,
}

struct List {
    look_again: Duration,
    /// When it is asked for next; `None`: it is being asked for.
    next: Option<Instant>,
    asked_at: Timestamp,
    pause: Duration,
    /// Events have been lost since it was asked for.
    again: bool,
    /// It has answered once.
    is_known: bool,
    trouble: Option<DockerClientError>,
}

pub(super) enum DockerAnswer {
    Container {
        id: String,
        number: u64,
        /// `None`: it is gone.
        found: Result<Option<Box<Container>>, DockerClientError>,
        /// When the event happened that led to the question.
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

/// What an answer means for who follows.
#[derive(Default)]
pub(super) struct News {
    pub event: Option<Timestamp>,
    /// Of the daemon, as it answers now.
    pub info: Option<Info>,
    /// Events have been lost since that moment.
    pub lost_since: Option<Timestamp>,
}

impl Follower {
    /// `inventory` is what was known before; of this daemon, or of another one.
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
            asked: FuturesUnordered::new(),
            questions: HashMap::new(),
            queue: VecDeque::new(),
            count: 0,
            networks: Asking::default(),
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

    /// Whether each container has been inspected, or has had its time.
    pub fn is_whole(&self) -> bool {
        let is_stuck = self.questions.len() >= MOST_QUESTIONS && self.active() == 0;
        let all_read = self.unread.is_empty() || is_stuck;
        self.list.is_known && all_read && self.networks.is_known
    }

    /// What is known at this moment.
    pub fn inventory(&self) -> Inventory {
        let mut inventory = self.inventory.clone();
        inventory
            .networks
            .extend(self.other_networks.iter().cloned());
        inventory
    }

    /// Once that is so: what is of another daemon goes.
    pub fn forget_others(&mut self) {
        if !self.keeps_others {
            return;
        }
        self.keeps_others = false;
        self.other_networks.clear();
        let own = &self.own;
        self.inventory.containers.retain(|id, _| own.contains(id));
    }

    /// The next answer, and whatever else has come with it. It asks for the list when that is due.
    pub async fn next(&mut self) -> News {
        loop {
            match self.list.next {
                Some(due) if due <= Instant::now() => self.ask_for_list(),
                Some(due) => tokio::select! {
                    Some(answer) = self.asked.next() => return self.learn_all(answer),
                    () = tokio::time::sleep_until(due) => {}
                },
                None => match self.asked.next().await {
                    Some(answer) => return self.learn_all(answer),
                    // The list is among them.
                    None => self.list.next = Some(Instant::now()),
                },
            }
        }
    }

    fn learn_all(&mut self, first: DockerAnswer) -> News {
        let mut news = News::default();
        self.learn(first, &mut news);
        for _ in 1..ANSWERS_AT_ONCE {
            match self.asked.next().now_or_never().flatten() {
                Some(answer) => self.learn(answer, &mut news),
                None => break,
            }
        }
        news
    }

    /// Takes up an event, and returns when it happened.
    pub fn take_up(&mut self, event: EventAnswer) -> Option<Timestamp> {
        let moment = event.moment();
        let actor = event.actor.unwrap_or_default();
        let id = actor.id.filter(|id| is_identifier(id))?;
        let attributes = actor.attributes.unwrap_or_default();
        let action = event.action.unwrap_or_default();
        match (event.kind.as_deref()?, action.as_str()) {
            ("network", _) => {
                self.ask_for_networks();
                // Connected or disconnected, a container's addresses change.
                let container = attributes.get("container");
                if let Some(container) = container.filter(|id| is_identifier(id)) {
                    self.ask(container.clone(), moment);
                }
            }
            ("container", "create") => {
                // One that is known already may come again after a reconnect.
                let is_new = |known: &Container| known.half_known.is_some();
                if self.inventory.containers.get(&id).is_none_or(is_new) {
                    let created = read::created(attributes);
                    let why = "it has just been created";
                    let known = read::half_known(&id, Some(&created), None, &self.files, why);
                    self.inventory.containers.insert(id.clone(), known);
                }
                // Docker may answer when it has been started, and not before.
                self.ask(id, None);
            }
            ("container", "destroy") => {
                self.forget(&id);
                self.touched.insert(id);
            }
            ("container", action) if changes_nothing(action) => return None,
            ("container", _) => self.ask(id, moment),
            _ => return None,
        }
        moment
    }

    /// Events have been lost: everything is asked for again, soon.
    pub fn look_soon(&mut self) {
        let soon = Instant::now() + FIRST_PAUSE;
        match &mut self.list.next {
            Some(next) => *next = soon.min(*next),
            None => self.list.again = true,
        }
    }

    fn forget(&mut self, id: &str) {
        self.inventory.containers.remove(id);
        self.questions.remove(id);
        self.listed.remove(id);
        self.unread.remove(id);
        self.own.remove(id);
    }

    fn active(&self) -> usize {
        let questions = self.questions.values();
        questions.filter(|question| !question.is_late).count()
    }

    /// Asks for a container because of an event.
    fn ask(&mut self, id: String, event: Option<Timestamp>) {
        self.touched.insert(id.clone());
        self.own.insert(id.clone());
        if let Some(question) = self.questions.get_mut(&id) {
            // Docker goes on with a request that is given up: there is one at a time.
            question.again = true;
        } else if self.questions.len() < MOST_QUESTIONS {
            self.inspect(id, event);
        } else if !self.queue.contains(&id) {
            self.queue.push_front(id);
        }
    }

    fn ask_more(&mut self) {
        while self.active() < AT_ONCE && self.questions.len() < MOST_QUESTIONS {
            let Some(id) = self.queue.pop_front() else {
                break;
            };
            if self.inventory.containers.contains_key(&id) && !self.questions.contains_key(&id) {
                self.inspect(id, None);
            }
        }
    }

    fn inspect(&mut self, id: String, event: Option<Timestamp>) {
        self.count += 1;
        let number = self.count;
        let question = Inspection {
            number,
            again: false,
            is_late: false,
        };
        self.questions.insert(id.clone(), question);
        let (client, asked) = (self.client.clone(), id.clone());
        self.asked.push(Box::pin(async move {
            let found = read::container(&client, &asked).await;
            DockerAnswer::Container {
                id: asked,
                number,
                found: found.map(|found| found.map(Box::new)),
                event,
            }
        }));
        self.asked.push(Box::pin(async move {
            sleep(BUDGET_OF_ONE).await;
            DockerAnswer::Late { id, number }
        }));
    }

    fn ask_for_networks(&mut self) {
        if self.networks.is_open {
            self.networks.again = true;
            return;
        }
        self.networks.is_open = true;
        let client = self.client.clone();
        self.asked.push(Box::pin(async move {
            DockerAnswer::Networks(read::networks(&client).await)
        }));
    }

    fn ask_for_list(&mut self) {
        self.list.next = None;
        self.list.asked_at = Timestamp::now();
        self.touched.clear();
        self.ask_for_networks();
        let client = self.client.clone();
        self.asked.push(Box::pin(async move {
            let (listed, info) = tokio::join!(read::list(&client), read::daemon(&client));
            DockerAnswer::List {
                listed,
                info: info.ok(),
            }
        }));
    }

    fn learn(&mut self, answer: DockerAnswer, news: &mut News) {
        match answer {
            DockerAnswer::Container {
                id,
                number,
                found,
                event,
            } => {
                if self.is_open(&id, number) {
                    self.learn_container(id, found);
                    news.event = event.or(news.event);
                }
            }
            DockerAnswer::Late { id, number } => {
                if self.is_open(&id, number) {
                    let why = DockerClientError::Slow(BUDGET_OF_ONE).to_string();
                    self.learn_half(&id, &why);
                    if let Some(question) = self.questions.get_mut(&id) {
                        question.is_late = true;
                    }
                }
            }
            DockerAnswer::Networks(networks) => {
                let again = mem::take(&mut self.networks.again);
                self.networks.is_open = false;
                self.networks.is_known = true;
                self.inventory.take_networks(networks);
                if again {
                    self.ask_for_networks();
                }
            }
            DockerAnswer::List { listed, info } => {
                news.info = info;
                match listed {
                    Ok(listed) => self.learn_list(listed, news),
                    Err(error) => {
                        self.list.next = Some(Instant::now() + self.list.pause);
                        self.list.pause =
                            (self.list.pause * 2).min(self.list.look_again.max(FIRST_PAUSE));
                        self.list.trouble = Some(error);
                    }
                }
            }
        }
        self.ask_more();
    }

    fn is_open(&self, id: &str, number: u64) -> bool {
        let question = self.questions.get(id);
        question.is_some_and(|question| question.number == number)
    }

    fn learn_container(
        &mut self,
        id: String,
        found: Result<Option<Box<Container>>, DockerClientError>,
    ) {
        let question = self.questions.remove(&id);
        match found {
            Ok(Some(found)) => {
                self.unread.remove(&id);
                self.listed.remove(&id);
                self.inventory.containers.insert(id.clone(), *found);
            }
            Ok(None) => self.forget(&id),
            Err(error) => self.learn_half(&id, &error.to_string()),
        }
        if question.is_some_and(|question| question.again) {
            self.inspect(id, None);
        }
    }

    fn learn_half(&mut self, id: &str, why: &str) {
        self.unread.remove(id);
        let known = self.inventory.containers.get(id);
        let half = read::half_known(id, self.listed.get(id), known, &self.files, why);
        if known.is_none_or(|known| known.half_known != half.half_known) {
            warn!(
                container = half.name,
                "the container cannot be inspected: {why}. What it may publish stays closed"
            );
        }
        self.inventory.containers.insert(id.to_owned(), half);
    }

    /// Takes in the list at once, but for what has changed since it was asked for.
    fn learn_list(&mut self, listed: Vec<ListedContainer>, news: &mut News) {
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
        let mut is_unheard_of = containers.keys().any(gone);
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
            is_unheard_of |= known.is_none();
            if known.is_none_or(|known| known.half_known.is_some()) {
                let why = known.and_then(|known| known.half_known.as_deref());
                let why = why.unwrap_or("it has not been inspected yet").to_owned();
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
        // No event has told of it: the stream of events is silent, or events are lost.
        if is_unheard_of && !is_first && !self.keeps_others {
            news.lost_since = Some(self.list.asked_at);
        }
    }
}

/// The health of a container, and what is typed into it or copied out of it.
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
