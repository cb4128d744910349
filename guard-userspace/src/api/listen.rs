//! Accepts connections, and limits their number and their time: a slow client, or many idle ones, must not keep others
//! from an answer.

use std::{
    collections::VecDeque,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use axum::{Extension, Router, serve::Listener};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use nix::{
    sys::resource::{Resource, getrlimit, setrlimit},
    unistd::Uid,
};
use tokio::{
    net::{TcpStream, UnixStream},
    task::AbortHandle,
    time::timeout,
};

use super::actor::Actor;

/// How long a client may take to send a request's headers, also after the previous answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// The longest time of a connection, and of a capture's.
const LONGEST: Duration = Duration::from_secs(600);
const LASTING: Duration = Duration::from_secs(24 * 3_600);

/// The most connections at a time. Another one closes the oldest that is not a capture.
const MAX_CONNECTIONS: usize = 2_048;

/// The wanted limit of open files: every connection is one.
const FILES: u64 = 1 << 16;

/// Raises the limit of open files for the connections, as far as the host allows it.
pub fn raise_file_limit() {
    if let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) {
        // If this fails, there are fewer connections at a time.
        let _result = setrlimit(Resource::RLIMIT_NOFILE, soft.max(hard.min(FILES)), hard);
    }
}

/// Marks a connection as lasting: a capture has its own limits.
#[derive(Clone, Default)]
pub struct LongLived(Arc<AtomicBool>);

impl LongLived {
    /// The connection lasts.
    pub fn set(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    fn get(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// A connection whose peer can be named.
pub trait KnownPeer {
    /// The user and the process of the peer.
    fn actor(&self) -> Actor;
}

impl KnownPeer for UnixStream {
    fn actor(&self) -> Actor {
        match self.peer_cred() {
            Ok(peer) => {
                // 0: the process is in a PID namespace that is not visible here (pid_vnr in the kernel).
                let process = peer.pid().and_then(|pid| u32::try_from(pid).ok());
                let process = process.filter(|pid| *pid != 0);
                Actor::new(Uid::from_raw(peer.uid()), process)
            }
            Err(_) => unknown(),
        }
    }
}

impl KnownPeer for TcpStream {
    fn actor(&self) -> Actor {
        self.peer_addr().map_or_else(
            |_| unknown(),
            |peer| Actor {
                user: peer.to_string(),
                process: None,
            },
        )
    }
}

fn unknown() -> Actor {
    Actor {
        user: "an unknown user".to_owned(),
        process: None,
    }
}

struct Connection {
    task: AbortHandle,
    lasting: LongLived,
}

/// Serves connections until the future is dropped.
pub async fn serve<L: Listener>(mut listener: L, router: Router)
where
    L::Io: KnownPeer + 'static,
{
    let mut connections: VecDeque<Connection> = VecDeque::new();
    loop {
        let (stream, _) = listener.accept().await;
        let lasting = LongLived::default();
        let router = router.clone().layer(Extension(lasting.clone()));
        let router = router.layer(Extension(stream.actor()));
        let is_lasting = lasting.clone();
        let task = tokio::spawn(async move {
            let service = TowerToHyperService::new(router);
            let mut builder = hyper::server::conn::http1::Builder::new();
            let builder = builder
                .timer(TokioTimer::new())
                .header_read_timeout(PATIENCE);
            let mut connection = pin!(builder.serve_connection(TokioIo::new(stream), service));
            // Errors are the client's: a broken connection or a wrong request.
            if timeout(LONGEST, &mut connection).await.is_err() && is_lasting.get() {
                let _result = timeout(LASTING, connection).await;
            }
        });
        connections.retain(|connection| !connection.task.is_finished());
        connections.push_back(Connection {
            task: task.abort_handle(),
            lasting,
        });
        if connections.len() > MAX_CONNECTIONS {
            let oldest = connections.iter().position(|oldest| !oldest.lasting.get());
            if let Some(oldest) = oldest.and_then(|oldest| connections.remove(oldest)) {
                oldest.task.abort();
            }
        }
    }
}
