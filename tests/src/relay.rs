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

/// A socket of its own, before Docker's. It is removed when this is dropped.
pub struct Relay {
    socket: PathBuf,
    mood: Arc<Mutex<Mood>>,
    stop: Arc<AtomicBool>,
}

impl Relay {
    pub fn start(socket: &Path, docker: &Path) -> Result<Self> {
        let listener = UnixListener::bind(socket)?;
        listener.set_nonblocking(true)?;
        let relay = Self {
            socket: socket.to_owned(),
            mood: Arc::new(Mutex::new(Mood::Well)),
            stop: Arc::new(AtomicBool::new(false)),
        };
        let (docker, mood, stop) = (
            docker.to_owned(),
            Arc::clone(&relay.mood),
            Arc::clone(&relay.stop),
        );
        thread::spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                match listener.accept() {
                    // Docker may be gone for the moment: the client is hung up on.
                    Ok((client, _)) => drop(serve(client, &docker, &mood)),
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
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        // The lab's folder goes with it anyway.
        let _result = fs::remove_file(&self.socket);
    }
}

fn serve(client: UnixStream, docker: &Path, mood: &Arc<Mutex<Mood>>) -> Result<()> {
    client.set_nonblocking(false)?;
    let docker = UnixStream::connect(docker)?;
    let (asks, answers) = (client.try_clone()?, docker.try_clone()?);
    thread::spawn(move || pass(asks, docker, || Mood::Well));
    let mood = Arc::clone(mood);
    thread::spawn(move || {
        pass(answers, client, || {
            *mood.lock().unwrap_or_else(PoisonError::into_inner)
        });
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
