//! The lab's own Docker. Its daemons run in the guarded host's namespace, so its bridge, its addresses and its NAT
//! rules are real and end with the lab. The machine's own Docker is not touched.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context as _, Result};

use crate::{
    process::{Daemon, run, wait_for},
    sweep,
    topology::Lab,
};

/// The invoices that the container serves.
pub const INVOICES: &str = r#"[{"invoice": 4711, "customer": "ACME", "total": "1290.00"}]"#;

/// The port that the server in the container listens on.
pub const CONTAINER_PORT: u16 = 8000;

/// The image of the container that serves the invoices.
pub const IMAGE: &str = "guard-lab/invoices";

const PATIENCE: Duration = Duration::from_secs(60);

/// The folders of dockerd's plugin sockets. dockerd has no option to move them.
const PLUGINS: [&str; 2] = ["/run/docker/plugins", "/run/docker"];

/// Fields are dropped in order: dockerd stops its containers while containerd still runs.
pub struct Docker {
    dockerd: Daemon,
    containerd: Daemon,
    socket: PathBuf,
    lab: String,
    /// Plugin folders that dockerd created; they are removed at the end.
    created_folders: Vec<&'static Path>,
}

impl Docker {
    /// Starts Docker in the guarded host, with the image of the invoices.
    pub fn start(lab: &Lab) -> Result<Self> {
        let folder = lab.folder().join("docker");
        fs::create_dir(&folder)?;
        let created_folders = PLUGINS.iter().map(Path::new).filter(|path| !path.exists());
        let created_folders = created_folders.collect();
        let containerd_socket = folder.join("containerd.sock");
        let mut containerd = Daemon::start(
            lab.host
                .command("containerd")
                .arg("--root")
                .arg(folder.join("containerd"))
                .arg("--state")
                .arg(folder.join("containerd-state"))
                .arg("--address")
                .arg(&containerd_socket),
            &lab.folder().join("containerd.log"),
        )?;
        wait_for(PATIENCE, || {
            containerd.check_alive()?;
            anyhow::ensure!(containerd_socket.exists(), "containerd has no socket yet");
            Ok(())
        })?;
        let dockerd = start_dockerd(lab)?;
        let mut docker = Self {
            dockerd,
            containerd,
            socket: folder.join("docker.sock"),
            lab: lab.name().to_owned(),
            created_folders,
        };
        wait_for(PATIENCE, || {
            docker.dockerd.check_alive()?;
            docker.containerd.check_alive()?;
            docker.run(&["version"])
        })?;
        docker.import_invoices(lab)?;
        Ok(docker)
    }

    /// Stops the daemon and starts it again, as an upgrade does.
    pub fn restart(&mut self, lab: &Lab) -> Result<()> {
        self.dockerd.stop()?;
        self.dockerd = start_dockerd(lab)?;
        wait_for(PATIENCE, || {
            self.dockerd.check_alive()?;
            self.run(&["version"])
        })?;
        Ok(())
    }

    /// The socket of the daemon.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Runs `docker` with these arguments.
    pub fn run(&self, arguments: &[&str]) -> Result<String> {
        run(Command::new("docker")
            .arg("--host")
            .arg(format!("unix://{}", self.socket.display()))
            .args(arguments))
    }

    /// Runs a container that serves the invoices, with `-p` as given.
    pub fn run_invoices(&self, name: &str, publish: &[&str]) -> Result<()> {
        let publish = publish.iter().flat_map(|port| ["--publish", port]);
        let arguments: Vec<&str> = ["run", "--detach", "--name", name]
            .into_iter()
            .chain(publish)
            .chain([IMAGE])
            .collect();
        self.run(&arguments)?;
        Ok(())
    }

    /// Removes a container, running or not.
    pub fn remove(&self, name: &str) -> Result<()> {
        self.run(&["rm", "--force", name])?;
        Ok(())
    }

    /// Runs a program to its end in a new container that mounts the lab's folder.
    pub fn run_once(&self, lab: &Lab, image: &str, command: &[String]) -> Result<String> {
        let folder = lab.folder().display();
        let volume = format!("{folder}:{folder}");
        let mut arguments = vec!["run", "--rm", "--volume", &volume, image];
        arguments.extend(command.iter().map(String::as_str));
        self.run(&arguments)
    }

    /// Makes an image of the files below `root`.
    pub fn import(&self, root: &Path, image: &str, changes: &[&str]) -> Result<()> {
        let archive = root.with_extension("tar");
        run(Command::new("tar")
            .arg("--create")
            .arg("--file")
            .arg(&archive)
            .arg("--directory")
            .arg(root)
            .arg("."))?;
        let archive = archive
            .to_str()
            .context("the archive's path is not UTF-8")?;
        let changes = changes.iter().flat_map(|change| ["--change", change]);
        let arguments: Vec<&str> = ["import"]
            .into_iter()
            .chain(changes)
            .chain([archive, image])
            .collect();
        self.run(&arguments)?;
        Ok(())
    }

    /// Imports an image that holds only a static busybox and the invoices.
    fn import_invoices(&self, lab: &Lab) -> Result<()> {
        let root = lab.folder().join("image");
        make_invoices_root(&root)?;
        let command = invoices_command("").join("\",\"");
        self.import(&root, IMAGE, &[&format!("CMD [\"{command}\"]")])
    }
}

fn start_dockerd(lab: &Lab) -> Result<Daemon> {
    let folder = lab.folder().join("docker");
    Daemon::start(
        lab.host
            .command("dockerd")
            .arg("--containerd")
            .arg(folder.join("containerd.sock"))
            .arg("--data-root")
            .arg(folder.join("data"))
            .arg("--exec-root")
            .arg(folder.join("run"))
            .arg("--pidfile")
            .arg(folder.join("docker.pid"))
            .arg("--host")
            .arg(format!("unix://{}", folder.join("docker.sock").display()))
            .arg("--cgroup-parent")
            .arg(format!("/{}", lab.name()))
            .args(["--ipv6", "--fixed-cidr-v6", "2001:db8:d0c::/64"])
            // Before Docker 27 `--ip6tables` needs `--experimental`.
            .args(["--experimental", "--ip6tables"]),
        &lab.folder().join("dockerd.log"),
    )
}

impl Drop for Docker {
    fn drop(&mut self) {
        let containers = self.run(&["ps", "--all", "--quiet"]).unwrap_or_default();
        let containers: Vec<&str> = containers.lines().collect();
        // One `docker rm` removes all containers in parallel.
        let remove = [&["rm", "--force"], containers.as_slice()].concat();
        if !containers.is_empty()
            && let Err(error) = self.run(&remove)
        {
            eprintln!("containers cannot be removed: {error:#}");
        }
        for daemon in [&mut self.dockerd, &mut self.containerd] {
            if let Err(error) = daemon.stop() {
                eprintln!("a daemon of Docker cannot be stopped: {error:#}");
            }
        }
        if let Err(error) = sweep::remove_cgroups(&self.lab) {
            eprintln!("Docker's cgroups cannot be removed: {error:#}");
        }
        for folder in &self.created_folders {
            // remove_dir fails, and the folder stays, if another process put files there.
            let _result = fs::remove_dir(folder);
        }
    }
}

/// Creates the files of the web server that serves the invoices.
pub fn make_invoices_root(root: &Path) -> Result<()> {
    for folder in ["bin", "etc", "www"] {
        fs::create_dir_all(root.join(folder))?;
    }
    let busybox = run(Command::new("which").arg("busybox"))?;
    fs::copy(busybox.trim(), root.join("bin/busybox"))?;
    fs::write(root.join("etc/httpd.conf"), ".json:application/json\n")?;
    fs::write(root.join("www/invoices.json"), INVOICES)?;
    Ok(())
}

/// The command line of the web server, with its files below `root`.
pub fn invoices_command(root: &str) -> [String; 9] {
    [
        format!("{root}/bin/busybox"),
        "httpd".to_owned(),
        "-f".to_owned(),
        "-p".to_owned(),
        CONTAINER_PORT.to_string(),
        "-c".to_owned(),
        format!("{root}/etc/httpd.conf"),
        "-h".to_owned(),
        format!("{root}/www"),
    ]
}
