//! Follows the host: reads its picture again whenever the kernel notifies of a change.
//!
//! A notification (rtnetlink(7)) is only a hint, and its content is not read: the picture is always read whole. So
//! notifications that are lost (ENOBUFS) or arrive in another order than the changes cost a moment, and no correctness.

use std::{
    io, mem,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use futures_util::FutureExt as _;
use netlink_sys::{
    AsyncSocket as _, AsyncSocketExt as _, SocketAddr, TokioSocket, protocols::NETLINK_ROUTE,
};
use nix::{
    errno::Errno,
    sys::socket::{setsockopt, sockopt},
};
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::{Instant, sleep_until},
};
use tracing::{debug, warn};

use super::{Host, privileges::spawn_blocking, read, tick_ns};

/// How long more notifications are awaited after the first: they are usually about the same change.
const DEBOUNCE: Duration = Duration::from_millis(20);
/// The shortest pause between two readings, as a time and as a multiple of the last reading's duration: a host with a
/// million routes must not be read all the time.
const GAP: Duration = Duration::from_millis(100);
const GAP_PER_READING: u32 = 4;
/// The longest time between two readings. The kernel does not notify of sysctls, and notifications may be lost.
const READ_ANYWAY: Duration = Duration::from_secs(30);
/// The pause after a reading that failed. It doubles each time, up to the last.
const FIRST_RETRY: Duration = Duration::from_millis(100);
const LAST_RETRY: Duration = Duration::from_secs(5);
/// A notification takes up to 4 KiB of the buffer: room for hundreds, while a picture is read.
const RECEIVE_BUFFER: usize = 1 << 20;

/// The most notifications that are taken before other tasks of the runtime get their turn.
const AT_ONCE: usize = 1_024;

/// Multicast groups of route netlink (RTNLGRP_* in linux/rtnetlink.h).
const GROUPS: [u32; 6] = [
    1,  // LINK
    5,  // IPV4_IFADDR
    7,  // IPV4_ROUTE
    9,  // IPV6_IFADDR
    11, // IPV6_ROUTE
    32, // NEXTHOP
];

/// The newest picture of the host. Clones share it. When the last clone is dropped, the host is not followed any
/// longer.
#[derive(Clone, Debug)]
pub struct HostWatch {
    pictures: watch::Receiver<Arc<Host>>,
    requests: mpsc::UnboundedSender<PictureRequest>,
    lost: Arc<AtomicU64>,
}

#[derive(Debug)]
struct PictureRequest {
    also: Option<OnDemand>,
    /// Receives the picture that was read for this request.
    done: oneshot::Sender<Arc<Host>>,
}

/// Parts of the picture that are read on demand: the kernel does not notify of them, and reading takes long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum OnDemand {
    Listeners,
    Nat,
}

impl HostWatch {
    /// Starts to follow the host, and returns when everything was read once. The picture has the error of each part
    /// that cannot be read. Must be called inside a tokio runtime, which follows the host.
    ///
    /// # Errors
    /// The kernel's notifications cannot be subscribed to, or its tick cannot be read.
    pub async fn start() -> io::Result<Self> {
        Self::with_receive_buffer(RECEIVE_BUFFER).await
    }

    /// Like [`Self::start`], with another size in bytes for the buffer of notifications.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub async fn with_receive_buffer(bytes: usize) -> io::Result<Self> {
        // Subscribed before the first picture is read, so that no change is missed in between.
        let notifications = Notifications::subscribe(bytes)?;
        let host = Arc::new(Host::unread(tick_ns()?));
        let (sender, pictures) = watch::channel(host);
        let (requests, receiver) = mpsc::unbounded_channel();
        let lost = Arc::new(AtomicU64::new(0));
        let follower = HostFollower {
            notifications: Some(notifications),
            receive_buffer: bytes,
            requests: receiver,
            pictures: sender,
            lost: Arc::clone(&lost),
        };
        tokio::spawn(follower.run());
        let watch = Self {
            pictures,
            requests,
            lost,
        };
        watch.read_again().await?;
        Ok(watch)
    }

    /// The newest picture, without waiting.
    pub fn borrow(&self) -> Arc<Host> {
        Arc::clone(&self.pictures.borrow())
    }

    /// Waits for a picture that differs from the last one that this returned. `None`: the runtime ends, so there will
    /// be no more.
    pub async fn changed(&mut self) -> Option<Arc<Host>> {
        self.pictures.changed().await.ok()?;
        Some(Arc::clone(&self.pictures.borrow_and_update()))
    }

    /// Reads everything now, and returns a picture whose reading began after the call.
    ///
    /// # Errors
    /// The host is not followed any longer, since the runtime ends. A failed reading is no error here: the picture has
    /// its error.
    pub async fn read_again(&self) -> io::Result<Arc<Host>> {
        self.request(None).await
    }

    /// Like [`Self::read_again`], and reads the listening sockets as well.
    ///
    /// # Errors
    /// As [`Self::read_again`].
    pub async fn read_listeners(&self) -> io::Result<Arc<Host>> {
        self.request(Some(OnDemand::Listeners)).await
    }

    /// Like [`Self::read_again`], and reads the NAT rules as well: runs `nft` and, if there are rules of theirs, the
    /// `iptables` programs.
    ///
    /// # Errors
    /// As [`Self::read_again`].
    pub async fn read_nat(&self) -> io::Result<Arc<Host>> {
        self.request(Some(OnDemand::Nat)).await
    }

    async fn request(&self, also: Option<OnDemand>) -> io::Result<Arc<Host>> {
        let ended = || io::Error::other("the host is not followed any longer");
        let (done, picture) = oneshot::channel();
        let request = PictureRequest { also, done };
        self.requests.send(request).map_err(|_| ended())?;
        picture.await.map_err(|_| ended())
    }

    /// How many times notifications were lost because they came faster than they were read.
    pub fn losses(&self) -> u64 {
        self.lost.load(Ordering::Relaxed)
    }
}

struct HostFollower {
    /// `None`: the socket failed, and will be opened again.
    notifications: Option<Notifications>,
    receive_buffer: usize,
    requests: mpsc::UnboundedReceiver<PictureRequest>,
    pictures: watch::Sender<Arc<Host>>,
    lost: Arc<AtomicU64>,
}

/// Why the follower stopped waiting.
enum Woken {
    Due,
    Notified(io::Result<()>),
    Requested(Option<PictureRequest>),
}

impl HostFollower {
    /// Follows the host. Ends when the last [`HostWatch`] is dropped.
    async fn run(mut self) {
        let mut due = Instant::now() + READ_ANYWAY;
        let mut earliest = Instant::now();
        let mut retry = FIRST_RETRY;
        let mut waiting = Vec::new();
        loop {
            let woken = tokio::select! {
                request = self.requests.recv() => Woken::Requested(request),
                () = sleep_until(due) => Woken::Due,
                result = next(self.notifications.as_mut()) => Woken::Notified(result),
            };
            match woken {
                Woken::Requested(None) => return,
                Woken::Requested(Some(request)) => {
                    waiting.push(request);
                    while let Ok(request) = self.requests.try_recv() {
                        waiting.push(request);
                    }
                }
                Woken::Notified(result) => {
                    self.note(result);
                    due = due.min(earliest.max(Instant::now() + DEBOUNCE));
                    continue;
                }
                Woken::Due => {}
            }
            let began = Instant::now();
            if self.notifications.is_none() {
                self.subscribe_again();
            }
            let is_whole = self.read(mem::take(&mut waiting)).await;
            let now = Instant::now();
            earliest = now + GAP.max((now - began) * GAP_PER_READING);
            if is_whole && self.notifications.is_some() {
                retry = FIRST_RETRY;
                due = now + READ_ANYWAY;
            } else {
                due = earliest.max(now + retry);
                retry = (retry * 2).min(LAST_RETRY);
            }
        }
    }

    fn note(&mut self, result: io::Result<()>) {
        let Err(error) = result else { return };
        if error.raw_os_error() == Some(Errno::ENOBUFS as i32) {
            self.lost.fetch_add(1, Ordering::Relaxed);
            debug!("notifications of the kernel were lost: everything is read again");
        } else {
            warn!(%error, "the kernel's notifications cannot be read: subscribing to them again");
            self.notifications = None;
        }
    }

    fn subscribe_again(&mut self) {
        match Notifications::subscribe(self.receive_buffer) {
            Ok(notifications) => self.notifications = Some(notifications),
            Err(error) => warn!(%error, "the kernel's notifications cannot be subscribed to"),
        }
    }

    /// Reads the picture, publishes it if it differs, and answers the requests. Returns whether everything was read.
    async fn read(&self, requests: Vec<PictureRequest>) -> bool {
        let mut host = Host::clone(&self.pictures.borrow());
        let is_wanted = |what| requests.iter().any(|request| request.also == Some(what));
        let with_listeners = is_wanted(OnDemand::Listeners);
        let with_nat = is_wanted(OnDemand::Nat);
        let read = spawn_blocking(move || {
            let is_whole = host.read_again();
            if with_listeners {
                host.listeners.renew(read::listeners());
            }
            if with_nat {
                host.read_nat();
            }
            (host, is_whole)
        });
        // It fails when the runtime ends, or if reading panics: the next attempt may succeed.
        let Ok((host, is_whole)) = read.await else {
            return false;
        };
        self.pictures.send_if_modified(|last| {
            let differs = **last != host;
            if differs {
                *last = Arc::new(host);
            }
            differs
        });
        for PictureRequest { done, .. } in requests {
            // A caller that does not wait any longer needs no answer.
            drop(done.send(Arc::clone(&self.pictures.borrow())));
        }
        is_whole
    }
}

async fn next(notifications: Option<&mut Notifications>) -> io::Result<()> {
    match notifications {
        Some(notifications) => notifications.next().await,
        None => std::future::pending().await,
    }
}

/// The kernel's notifications of links, addresses and routes.
struct Notifications {
    socket: TokioSocket,
}

impl Notifications {
    fn subscribe(receive_buffer: usize) -> io::Result<Self> {
        let mut socket = TokioSocket::new(NETLINK_ROUTE)?;
        // SO_RCVBUFFORCE, which needs CAP_NET_ADMIN, is not limited by net.core.rmem_max.
        let inner = socket.socket_mut();
        setsockopt(inner, sockopt::RcvBufForce, &receive_buffer)
            .or_else(|_| setsockopt(inner, sockopt::RcvBuf, &receive_buffer))?;
        inner.bind(&SocketAddr::new(0, 0))?;
        for group in GROUPS {
            match inner.add_membership(group) {
                // An older kernel does not have every group: nexthop objects came with Linux 5.3.
                Err(error) if error.raw_os_error() == Some(Errno::EINVAL as i32) => {}
                result => result?,
            }
        }
        Ok(Self { socket })
    }

    /// Waits for a notification, and takes all that have arrived. ENOBUFS: some were lost.
    async fn next(&mut self) -> io::Result<()> {
        // Longer messages are cut, because their content is not read.
        let mut buffer = [0; 64];
        self.socket.recv(&mut buffer.as_mut_slice()).await?;
        for _ in 0..AT_ONCE {
            match self.socket.recv(&mut buffer.as_mut_slice()).now_or_never() {
                Some(result) => result?,
                None => break,
            }
        }
        Ok(())
    }
}
