//! Stands between the guard and Docker's socket, and treats what Docker says as a bad day would.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::Shutdown,
    os::unix::net::{UnixListener, UnixStream},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use anyhow::Result;

/// What becomes of Docker's answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mood {
    /// They pass.
    Well,
    /// They take this long.
    Slow(Duration),
    /// They are noise.
    Garbage,
    /// There are none.
    Silent,
}

/// What becomes of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RelayFault {
    /// Its answer is the error that Docker gives for a container whose layer is missing.
    Refused,
    /// It is never answered, as while Docker starts a container.
    Held,
}

/// Requests whose first line contains the text.
type Fates = Vec<(String, RelayFault)>;

/// A socket of its own, before Docker's. It is removed when this is dropped.
pub struct Relay {
    socket: PathBuf,
    mood: Arc<Mutex<Mood>>,
    fates: Arc<Mutex<Fates>>,
    stop: Arc<AtomicBool>,
}

impl Relay {
    pub fn start(socket: &Path, docker: &Path) -> Result<Self> {
        let listener = UnixListener::bind(socket)?;
        listener.set_nonblocking(true)?;
        let relay = Self {
            socket: socket.to_owned(),
            mood: Arc::new(Mutex::new(Mood::Well)),
            fates: Arc::default(),
            stop: Arc::new(AtomicBool::new(false)),
        };
        let (docker, mood, fates, stop) = (
            docker.to_owned(),
            Arc::clone(&relay.mood),
            Arc::clone(&relay.fates),
            Arc::clone(&relay.stop),
        );
        thread::spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                match listener.accept() {
                    // Docker may be gone for the moment: the client is hung up on.
                    Ok((client, _)) => {
                        let (docker, mood) = (docker.clone(), Arc::clone(&mood));
                        let fates = Arc::clone(&fates);
                        thread::spawn(move || drop(serve(client, &docker, &mood, &fates)));
                    }
                    Err(_) => thread::sleep(Duration::from_millis(5)),
                }
            }
        });
        Ok(relay)
    }

    /// From now on, for connections that are there as well.
    pub fn set(&self, mood: Mood) {
        *self.mood.lock().unwrap_or_else(PoisonError::into_inner) = mood;
    }

    /// From now on, for requests whose first line contains this text.
    pub fn decide(&self, text: &str, fate: RelayFault) {
        let mut fates = self.fates.lock().unwrap_or_else(PoisonError::into_inner);
        fates.push((text.to_owned(), fate));
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        // The lab's folder goes with it anyway.
        let _result = fs::remove_file(&self.socket);
    }
}

fn serve(
    mut client: UnixStream,
    docker: &Path,
    mood: &Arc<Mutex<Mood>>,
    fates: &Mutex<Fates>,
) -> Result<()> {
    client.set_nonblocking(false)?;
    let mut request = [0; 1 << 14];
    let length = client.read(&mut request)?;
    let request = &request[..length];
    let line = String::from_utf8_lossy(request);
    let line = line.lines().next().unwrap_or_default();
    let fate = {
        let fates = fates.lock().unwrap_or_else(PoisonError::into_inner);
        let fate = fates.iter().find(|(text, _)| line.contains(text.as_str()));
        fate.map(|(_, fate)| *fate)
    };
    match fate {
        Some(RelayFault::Refused) => {
            let body = "{\"message\":\"layer does not exist\"}";
            let head = "HTTP/1.1 500 Internal Server Error\r\nConnection: close";
            let length = body.len();
            write!(client, "{head}\r\nContent-Length: {length}\r\n\r\n{body}")?;
            return Ok(());
        }
        Some(RelayFault::Held) => {
            // Until the client hangs up.
            while client.read(&mut [0; 64])? > 0 {}
            return Ok(());
        }
        None => {}
    }
    let mut docker = UnixStream::connect(docker)?;
    docker.write_all(request)?;
    let (asks, answers) = (client.try_clone()?, docker.try_clone()?);
    thread::spawn(move || pass(asks, docker, || Mood::Well));
    let mood = Arc::clone(mood);
    pass(answers, client, || {
        *mood.lock().unwrap_or_else(PoisonError::into_inner)
    });
    Ok(())
}

fn pass(mut from: UnixStream, mut to: UnixStream, mood: impl Fn() -> Mood) {
    let mut buffer = [0; 1 << 14];
    while let Ok(length @ 1..) = from.read(&mut buffer) {
        let written = match mood() {
            Mood::Well => to.write_all(&buffer[..length]),
            Mood::Slow(pause) => {
                thread::sleep(pause);
                to.write_all(&buffer[..length])
            }
            Mood::Garbage => {
                let noise: Vec<u8> = buffer[..length].iter().map(|byte| byte ^ 0x55).collect();
                to.write_all(&noise)
            }
            Mood::Silent => Ok(()),
        };
        if written.is_err() {
            break;
        }
    }
    let _result = to.shutdown(Shutdown::Both);
    let _result = from.shutdown(Shutdown::Both);
}
