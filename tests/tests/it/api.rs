//! The control socket and clients that mean no good.

use std::{
    io::{Read as _, Write as _},
    os::unix::net::UnixStream,
    path::PathBuf,
    thread,
    time::{Duration, Instant},
};

use lab::guard::Guard;

use crate::site::{OPEN_80, Site};

fn connect(socket: &PathBuf) -> UnixStream {
    let stream = UnixStream::connect(socket).unwrap();
    stream
        .set_read_timeout(Some(Duration::from_secs(30)))
        .unwrap();
    stream
}

fn ask(socket: &PathBuf) -> String {
    let mut stream = connect(socket);
    stream
        .write_all(b"GET /v1/status HTTP/1.1\r\nHost: guard\r\nConnection: close\r\n\r\n")
        .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

/// The next good request is answered, and soon.
fn is_well(socket: &PathBuf, guard: &Guard, what: &str) {
    let start = Instant::now();
    let answer = ask(socket);
    assert!(answer.starts_with("HTTP/1.1 200"), "{what}: {answer}");
    assert!(start.elapsed() < Duration::from_secs(2), "{what}");
    assert_eq!(guard.json("status").unwrap()["enforcing"], true, "{what}");
}

#[test]
fn whatever_clients_do_the_next_good_request_is_answered() {
    let site = Site::new();
    let guard = site.start("enforce", OPEN_80);
    let socket = site.lab.folder().join("guard.sock");
    is_well(&socket, &guard, "at first");

    let clients: Vec<_> = (0..1_000)
        .map(|_| {
            let socket = socket.clone();
            thread::spawn(move || ask(&socket))
        })
        .collect();
    let answers = clients.into_iter().map(|client| client.join().unwrap());
    let answered = answers.filter(|answer| answer.starts_with("HTTP/1.1 200"));
    assert_eq!(answered.count(), 1_000, "all of a thousand at once");
    is_well(&socket, &guard, "a thousand at once");

    let silent: Vec<UnixStream> = (0..1_000).map(|_| connect(&socket)).collect();
    is_well(&socket, &guard, "a thousand that say nothing");
    let half: Vec<UnixStream> = (0..1_000)
        .map(|_| {
            let mut stream = connect(&socket);
            stream
                .write_all(b"POST /v1/reload HTTP/1.1\r\nHost: gu")
                .unwrap();
            stream
        })
        .collect();
    is_well(&socket, &guard, "a thousand halves of requests");
    drop((silent, half));

    let mut slow = connect(&socket);
    let head = "POST /v1/mode HTTP/1.1\r\nHost: guard\r\nContent-Type: application/json\r\n\
                Content-Length: 100\r\n\r\n{\"mode\":";
    slow.write_all(head.as_bytes()).unwrap();
    is_well(&socket, &guard, "a body that does not come");
    let mut answer = String::new();
    slow.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 400"), "it is told: {answer}");

    let mut rng = fastrand::Rng::with_seed(1);
    let garbage: Vec<u8> = (0..1 << 20).map(|_| rng.u8(..)).collect();
    // It may be hung up on before it has said everything.
    let _result = connect(&socket).write_all(&garbage);
    is_well(&socket, &guard, "a megabyte of garbage");
    let mut long = connect(&socket);
    let _result = long.write_all(
        b"POST /v1/try HTTP/1.1\r\nHost: guard\r\nContent-Type: \
        application/json\r\nContent-Length: 1000000000\r\n\r\n",
    );
    let mut answer = String::new();
    long.read_to_string(&mut answer).unwrap();
    assert!(
        answer.starts_with("HTTP/1.1 4"),
        "more than a request may have: {answer}"
    );
    is_well(&socket, &guard, "a gigabyte that is announced");
}
