//! A relay between the guard and Docker's socket. It delays, garbles or drops Docker's answers.

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

/// How the relay treats Docker's answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RelayMode {
    /// It forwards them.
    Forward,
    /// It forwards each part after this delay.
    Delay(Duration),
    /// It replaces their bytes.
    Garbage,
    /// It drops them.
    Silent,
}

/// The failure of a request that Docker does not receive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RelayFault {
    /// The answer is Docker's error for a container whose layer is missing.
    Refused,
    /// No answer comes, as while Docker starts a container.
    Held,
}

/// A text in the first line of a request, and the failure of that request.
type Faults = Vec<(String, RelayFault)>;

/// The relay's socket, which the guard opens instead of Docker's. It is removed when this is dropped.
pub struct Relay {
    socket: PathBuf,
    mode: Arc<Mutex<RelayMode>>,
    faults: Arc<Mutex<Faults>>,
    stop: Arc<AtomicBool>,
}

impl Relay {
    /// Listens at `socket`, and forwards to Docker's socket.
    pub fn start(socket: &Path, docker: &Path) -> Result<Self> {
        let listener = UnixListener::bind(socket)?;
        listener.set_nonblocking(true)?;
        let relay = Self {
            socket: socket.to_owned(),
            mode: Arc::new(Mutex::new(RelayMode::Forward)),
            faults: Arc::default(),
            stop: Arc::new(AtomicBool::new(false)),
        };
        let (docker, mode, faults, stop) = (
            docker.to_owned(),
            Arc::clone(&relay.mode),
            Arc::clone(&relay.faults),
            Arc::clone(&relay.stop),
        );
        thread::spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                match listener.accept() {
                    // If Docker does not run, `serve` fails and closes the client's connection.
                    Ok((client, _)) => {
                        let (docker, mode) = (docker.clone(), Arc::clone(&mode));
                        let faults = Arc::clone(&faults);
                        thread::spawn(move || drop(serve(client, &docker, &mode, &faults)));
                    }
                    Err(_) => thread::sleep(Duration::from_millis(5)),
                }
            }
        });
        Ok(relay)
    }

    /// Sets the mode from now on, also for open connections.
    pub fn set(&self, mode: RelayMode) {
        *self.mode.lock().unwrap_or_else(PoisonError::into_inner) = mode;
    }

    /// From now on, requests fail whose first line contains this text.
    pub fn fail_requests(&self, text: &str, fault: RelayFault) {
        let mut faults = self.faults.lock().unwrap_or_else(PoisonError::into_inner);
        faults.push((text.to_owned(), fault));
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        // If this fails, the socket is removed with the lab's folder.
        let _result = fs::remove_file(&self.socket);
    }
}

fn serve(
    mut client: UnixStream,
    docker: &Path,
    mode: &Arc<Mutex<RelayMode>>,
    faults: &Mutex<Faults>,
) -> Result<()> {
    client.set_nonblocking(false)?;
    let mut request = [0; 1 << 14];
    let length = client.read(&mut request)?;
    let request = &request[..length];
    let line = String::from_utf8_lossy(request);
    let line = line.lines().next().unwrap_or_default();
    let fault = {
        let faults = faults.lock().unwrap_or_else(PoisonError::into_inner);
        let fault = faults.iter().find(|(text, _)| line.contains(text.as_str()));
        fault.map(|(_, fault)| *fault)
    };
    match fault {
        Some(RelayFault::Refused) => {
            let body = "{\"message\":\"layer does not exist\"}";
            let head = "HTTP/1.1 500 Internal Server Error\r\nConnection: close";
            let length = body.len();
            write!(client, "{head}\r\nContent-Length: {length}\r\n\r\n{body}")?;
            return Ok(());
        }
        Some(RelayFault::Held) => {
            // Until the client closes the connection.
            while client.read(&mut [0; 64])? > 0 {}
            return Ok(());
        }
        None => {}
    }
    let mut docker = UnixStream::connect(docker)?;
    docker.write_all(request)?;
    let (asks, answers) = (client.try_clone()?, docker.try_clone()?);
    thread::spawn(move || pass(asks, docker, || RelayMode::Forward));
    let mode = Arc::clone(mode);
    pass(answers, client, || {
        *mode.lock().unwrap_or_else(PoisonError::into_inner)
    });
    Ok(())
}

fn pass(mut from: UnixStream, mut to: UnixStream, mode: impl Fn() -> RelayMode) {
    let mut buffer = [0; 1 << 14];
    while let Ok(length @ 1..) = from.read(&mut buffer) {
        let written = match mode() {
            RelayMode::Forward => to.write_all(&buffer[..length]),
            RelayMode::Delay(pause) => {
                thread::sleep(pause);
                to.write_all(&buffer[..length])
            }
            RelayMode::Garbage => {
                let noise: Vec<u8> = buffer[..length].iter().map(|byte| byte ^ 0x55).collect();
                to.write_all(&noise)
            }
            RelayMode::Silent => Ok(()),
        };
        if written.is_err() {
            break;
        }
    }
    let _result = to.shutdown(Shutdown::Both);
    let _result = from.shutdown(Shutdown::Both);
}
