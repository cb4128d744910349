//! Takes connections, and bounds what their clients can take: one that is slow, or many that say nothing,
//! keep nobody from an answer.

use std::{collections::VecDeque, pin::pin, time::Duration};

use axum::{Router, serve::Listener};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::{task::AbortHandle, time::timeout};

/// How long a client may take to ask, and to say nothing between two questions.
const PATIENCE: Duration = Duration::from_secs(10);

/// How long a connection may last, whatever it is used for.
const LONGEST: Duration = Duration::from_secs(600);

/// How many connections there are at most. For one more the oldest is closed.
const MAX_CONNECTIONS: usize = 2_048;

/// How many files this process may have open: every connection is one.
const FILES: u64 = 1 << 16;

/// Lets this process have as many connections open as it takes, where the host allows it.
pub fn raise_file_limit() {
    if let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) {
        // With fewer, the oldest are closed earlier.
        let _result = setrlimit(Resource::RLIMIT_NOFILE, soft.max(hard.min(FILES)), hard);
    }
}

/// Answers until this is dropped.
pub async fn serve<L: Listener>(mut listener: L, router: Router)
where
    L::Io: 'static,
{
    let mut connections: VecDeque<AbortHandle> = VecDeque::new();
    loop {
        let (stream, _) = listener.accept().await;
        let router = router.clone();
        let connection = tokio::spawn(async move {
            let service = TowerToHyperService::new(router);
            let mut builder = hyper::server::conn::http1::Builder::new();
            let builder = builder
                .timer(TokioTimer::new())
                .header_read_timeout(PATIENCE);
            let connection = builder.serve_connection(TokioIo::new(stream), service);
            // What goes wrong is the client's.
            let _result = timeout(LONGEST, pin!(connection)).await;
        });
        connections.retain(|connection| !connection.is_finished());
        connections.push_back(connection.abort_handle());
        if connections.len() > MAX_CONNECTIONS
            && let Some(oldest) = connections.pop_front()
        {
            oldest.abort();
        }
    }
}
