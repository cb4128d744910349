//! A real web server, and clients that send requests repeatedly over persistent connections.

use std::{
    fs,
    io::{self, ErrorKind, Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    time::Duration,
};

use anyhow::{Result, ensure};
use lab::{
    process::{Daemon, wait_for},
    topology::{HOST_V4, Lab},
};

use super::{cpu, pin_thread};
use crate::policies::WEB_PORT;

/// A priority above all other processes of this machine, and below the flood's.
const NICE: i32 = -10;

/// The number of clients.
pub const CLIENTS: usize = 8;

/// How long a client waits for an answer before it checks whether it should end.
const PATIENCE: Duration = Duration::from_millis(200);

const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nHost: bench\r\n\r\n";

/// The last bytes of every answer.
const LAST: &[u8] = b"\r\n\r\nserved";

/// Starts nginx on the flooded CPU.
pub fn serve(lab: &Lab) -> Result<Daemon> {
    let folder = lab.folder().join("server");
    fs::create_dir(&folder)?;
    let place = folder.display();
    let config = format!(
        "daemon off;
         user root;
         worker_processes 1;
         pid {place}/pid;
         error_log stderr warn;
         events {{ worker_connections 512; }}
         http {{
             access_log off;
             keepalive_requests 1000000000;
             client_body_temp_path {place}/body;
             proxy_temp_path {place}/proxy;
             fastcgi_temp_path {place}/fastcgi;
             uwsgi_temp_path {place}/uwsgi;
             scgi_temp_path {place}/scgi;
             server {{ listen 0.0.0.0:{WEB_PORT}; return 200 served; }}
         }}\n"
    );
    let path = folder.join("nginx.conf");
    fs::write(&path, config)?;
    let mut nginx = Daemon::start(
        lab.host
            .command("taskset")
            .args(["--cpu-list", &cpu::FLOODED.to_string()])
            .args(["nice", "-n", &NICE.to_string()])
            .args(["nginx", "-e", "stderr", "-p"])
            .arg(&folder)
            .arg("-c")
            .arg(&path),
        &lab.folder().join("nginx.log"),
    )?;
    wait_for(Duration::from_secs(10), || {
        nginx.check_alive()?;
        ensure!(folder.join("pid").exists(), "nginx has not started yet");
        Ok(())
    })?;
    Ok(nginx)
}

/// Sends requests until it is told to stop. Must be called in the clients' namespace.
pub fn send_requests(answered: &AtomicU64, stop: &AtomicBool) -> Result<()> {
    pin_thread(cpu::CLIENTS, NICE)?;
    let server = SocketAddr::new(HOST_V4, WEB_PORT);
    while !stop.load(Ordering::Relaxed) {
        if let Ok(stream) = TcpStream::connect_timeout(&server, PATIENCE) {
            // A broken connection is opened again.
            let _result = send_over(stream, answered, stop);
        }
    }
    Ok(())
}

fn send_over(mut stream: TcpStream, answered: &AtomicU64, stop: &AtomicBool) -> io::Result<()> {
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut answer = Vec::new();
    let mut bytes = [0; 1024];
    while !stop.load(Ordering::Relaxed) {
        stream.write_all(REQUEST)?;
        answer.clear();
        while !answer.ends_with(LAST) {
            match stream.read(&mut bytes) {
                Ok(0) => return Ok(()),
                Ok(count) => answer.extend(bytes.iter().take(count)),
                Err(error)
                    if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) =>
                {
                    if stop.load(Ordering::Relaxed) {
                        return Ok(());
                    }
                }
                Err(error) => return Err(error),
            }
        }
        answered.fetch_add(1, Ordering::Relaxed);
    }
    Ok(())
}
