//! Rules about the host's files, sockets and devices in a container.

use super::super::{
    finding::Finding,
    project::Project,
    rule::{
        Rule::{DockerSocket, HostFiles},
        Severity::{self, High, Low, Medium},
    },
    service::{ComposeService, Mount},
    yaml::{Node, is_true},
};

pub fn judge(project: &Project<'_>, service: &ComposeService<'_>) -> Vec<Finding> {
    let mounts = service.mounts();
    let mounts = mounts
        .iter()
        .filter_map(|mount| mounted(project, service, mount));
    let devices = service.items("devices").iter();
    let devices = devices
        .filter(|item| !item.is_reset())
        .filter_map(|item| device(service, item));
    mounts.chain(devices).chain(api_socket(service)).collect()
}

/// Images that pass only some requests to Docker.
const SOCKET_PROXIES: [&str; 2] = ["docker-socket-proxy", "socket-proxy"];

const SOCKETS: [&str; 5] = [
    "docker.sock",
    "podman.sock",
    "containerd.sock",
    "crio.sock",
    "cri-dockerd.sock",
];

/// Paths of the host, the severity of write access and of read access, and their contents. `*` is any single name.
/// Paths below these do not match.
#[rustfmt::skip]
const FILES: &[(&str, Severity, Option<Severity>, &str)] = &[
    ("/", High, Some(High), "every file of the host, the sockets of its services among them"),
    ("/bin", High, None, PROGRAMS),
    ("/boot", High, Some(Medium), "the host's boot files"),
    ("/dev", High, Some(Medium), "the host's devices"),
    ("/etc", High, Some(Medium), "the host's settings and password hashes"),
    ("/etc/cron.d", High, None, COMMANDS),
    ("/etc/crontab", High, None, COMMANDS),
    ("/etc/docker", High, Some(Low), "the settings of Docker"),
    ("/etc/group", High, None, ACCOUNTS),
    ("/etc/gshadow", High, Some(Medium), ACCOUNTS),
    ("/etc/ld.so.preload", High, None, COMMANDS),
    ("/etc/pam.d", High, None, ACCOUNTS),
    ("/etc/passwd", High, None, ACCOUNTS),
    ("/etc/profile.d", High, None, COMMANDS),
    ("/etc/shadow", High, Some(Medium), "the host's password hashes"),
    ("/etc/ssh", High, Some(Medium), "the keys and settings of the host's SSH server"),
    ("/etc/sudoers", High, Some(Low), ACCOUNTS),
    ("/etc/sudoers.d", High, Some(Low), ACCOUNTS),
    ("/etc/systemd", High, None, COMMANDS),
    ("/etc/systemd/system", High, None, COMMANDS),
    ("/home", High, Some(Medium), "every user's files, keys among them"),
    ("/home/*", High, Some(Medium), "a user's files, keys among them"),
    ("/home/*/.ssh", High, Some(Medium), "a user's SSH keys, and the list of keys that may log in"),
    ("/lib", High, None, PROGRAMS),
    ("/lib/systemd/system", High, None, COMMANDS),
    ("/lib64", High, None, PROGRAMS),
    ("/proc", High, Some(Low), "the kernel's settings and every process of the host"),
    ("/proc/sys", High, None, "the kernel's settings"),
    ("/proc/sys/kernel", High, None, "the kernel's settings"),
    ("/proc/sysrq-trigger", High, None, "the kernel's settings"),
    ("/root", High, Some(Medium), "root's files, keys among them"),
    ("/root/.ssh", High, Some(Medium), "root's SSH keys, and the list of keys that may log in"),
    ("/run", High, Some(High), SERVICES),
    ("/run/containerd", High, Some(High), SERVICES),
    ("/run/crio", High, Some(High), SERVICES),
    ("/run/podman", High, Some(High), SERVICES),
    ("/run/user/*/podman", High, Some(High), SERVICES),
    ("/sbin", High, None, PROGRAMS),
    ("/sys", High, None, "the settings of the kernel and of devices"),
    ("/sys/fs/cgroup", Low, None, "the control groups of the host"),
    ("/sys/kernel", High, None, "the settings of the kernel"),
    ("/usr", High, None, PROGRAMS),
    ("/usr/bin", High, None, PROGRAMS),
    ("/usr/lib", High, None, PROGRAMS),
    ("/usr/lib/systemd/system", High, None, COMMANDS),
    ("/usr/local", High, None, PROGRAMS),
    ("/usr/local/bin", High, None, PROGRAMS),
    ("/usr/local/sbin", High, None, PROGRAMS),
    ("/usr/sbin", High, None, PROGRAMS),
    ("/var", High, Some(Medium), "the data of the host's services, and the files of every container"),
    ("/var/lib", High, Some(Medium), "the data of the host's services, and the files of every container"),
    ("/var/lib/containerd", High, Some(Medium), CONTAINERS),
    ("/var/lib/containers", High, Some(Medium), CONTAINERS),
    ("/var/lib/docker", High, Some(Medium), CONTAINERS),
    ("/var/lib/docker/volumes", High, Some(Medium), "the volumes of every container"),
    ("/var/lib/kubelet", High, Some(Medium), CONTAINERS),
    ("/var/spool/cron", High, None, COMMANDS),
    ("/var/spool/cron/crontabs", High, None, COMMANDS),
    ("~", High, Some(Medium), "a user's files, keys among them"),
    ("~/.ssh", High, Some(Medium), "a user's SSH keys, and the list of keys that may log in"),
];

const ACCOUNTS: &str = "the host's accounts, and their rights to become root";
const COMMANDS: &str = "the commands that the host runs by itself, as root";
const CONTAINERS: &str = "the files of every container";
const PROGRAMS: &str = "the programs that the host's users run, root among them";
const SERVICES: &str =
    "the sockets of the host's services, Docker's among them, which `ro` does not close";

fn mounted(
    project: &Project<'_>,
    service: &ComposeService<'_>,
    mount: &Mount<'_>,
) -> Option<Finding> {
    let device = project.bound(&mount.source);
    let (path, is_volume_read_only) = device.unwrap_or((&mount.source, false));
    let named = match device {
        Some(_) => format!("{}, which is {path} of the host,", mount.source),
        None => path.to_owned(),
    };
    // If the path is a variable that is not set, only the path in the container is known.
    let path = normalised(if path.is_empty() { &mount.target } else { path });
    let (rule, severity, why, advice) = if is_socket(&path) {
        (
            DockerSocket,
            of_socket(service),
            with_socket(&path),
            SOCKET_PROXY,
        )
    } else if mount.source.is_empty() {
        return None;
    } else {
        let (_, write, read, what) = FILES.iter().find(|row| is_path(&path, row.0))?;
        let (severity, how) = match is_volume_read_only || is_read_only(mount.node) {
            true => ((*read)?, "reads"),
            false => (*write, "reads and writes"),
        };
        let why =
            format!("the container mounts {named} and {how}, with its user's permissions, {what}");
        let advice = "mount only the files that it needs, with :ro if it does not write them";
        (HostFiles, severity, why, advice)
    };
    let place = &mount.node.place;
    let finding = Finding::new(rule, severity, service, place, why, None);
    Some(finding.advised(advice))
}

fn is_socket(path: &str) -> bool {
    path.rsplit_once('/')
        .is_some_and(|(_, name)| SOCKETS.contains(&name))
}

fn of_socket(service: &ComposeService<'_>) -> Severity {
    match SOCKET_PROXIES.contains(&service.image()) {
        true => Low,
        false => High,
    }
}

fn with_socket(path: &str) -> String {
    format!(
        "the container can use the API behind {path}, which on most hosts gives root, even with `ro`"
    )
}

const SOCKET_PROXY: &str = "put a proxy between that passes only the needed requests, such as \
                            tecnativa/docker-socket-proxy, and give the container DOCKER_HOST=tcp://NAME:2375";

/// `use_api_socket`: Compose mounts the socket without an item in `volumes`.
fn api_socket(service: &ComposeService<'_>) -> Option<Finding> {
    const KEY: &str = "use_api_socket";
    let entry = service.node.entry(KEY)?;
    if !service.text(KEY).is_some_and(is_true) {
        return None;
    }
    let why = with_socket("/var/run/docker.sock");
    let severity = of_socket(service);
    let place = &entry.key;
    let finding = Finding::new(DockerSocket, severity, service, place, why, None);
    Some(finding.advised(SOCKET_PROXY))
}

/// The path without `.`, `..` and repeated `/`, and with `/run` for `/var/run`, which is a link to it.
fn normalised(path: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match (part, parts.last()) {
            ("" | ".", _) => {}
            ("..", Some(last)) if *last != ".." => {
                parts.pop();
            }
            ("..", None) if path.starts_with('/') => {}
            (part, _) => parts.push(part),
        }
    }
    let root = if path.starts_with('/') { "/" } else { "" };
    let path = format!("{root}{}", parts.join("/"));
    match path.strip_prefix("/var/run") {
        Some(rest) if rest.is_empty() || rest.starts_with('/') => format!("/run{rest}"),
        _ => path,
    }
}

fn is_path(path: &str, pattern: &str) -> bool {
    let mut names = path.split('/');
    let is_same = |part: &str| {
        let name = names.next();
        name.is_some_and(|name| part == "*" || part == name)
    };
    pattern.split('/').all(is_same) && names.next().is_none()
}

fn is_read_only(mount: &Node) -> bool {
    match mount.scalar() {
        Some(scalar) => {
            let options = scalar.text.split(':').nth(2).unwrap_or_default();
            options.split(',').any(|option| option == "ro")
        }
        None => {
            let scalar = mount.get("read_only").and_then(Node::scalar);
            scalar.is_some_and(|scalar| is_true(&scalar.text))
        }
    }
}

/// The prefixes of names of disks: whole disks, partitions, and devices made of them.
const DISKS: [&str; 13] = [
    "sd", "hd", "vd", "xvd", "nvme", "mmcblk", "md", "dm-", "mapper/", "disk/", "loop", "sg",
    "bsg/",
];

fn device(service: &ComposeService<'_>, item: &Node) -> Option<Finding> {
    let text = |key: &str| Some(item.get(key)?.scalar()?.text.as_str());
    let (source, permissions) = match item.scalar() {
        Some(scalar) => {
            let mut parts = scalar.text.split(':');
            let source = parts.next()?;
            // The second of two parts may be the path in the container or the permissions.
            let last = parts.next_back().filter(|last| !last.starts_with('/'));
            (source, last)
        }
        None => (text("source")?, text("permissions")),
    };
    let writes = permissions.is_none_or(|permissions| permissions.contains('w'));
    let source = normalised(source);
    let name = match source.as_str() {
        "/dev" => "",
        source => source.strip_prefix("/dev/")?,
    };
    let is_disk = DISKS.iter().any(|disk| name.starts_with(disk));
    let what = match name {
        "" => "every device of the host",
        "mem" | "kmem" | "port" => "the memory of the host and its kernel",
        "kmsg" => "the messages of the kernel",
        _ if is_disk => "a disk of the host, without regard to file permissions",
        _ => return None,
    };
    let severity = match (name, writes) {
        ("kmsg", _) => Low,
        (_, true) => High,
        (_, false) => Medium,
    };
    let how = if writes { "reads and writes" } else { "reads" };
    let why = format!("the container has {source} and {how} {what}");
    let place = &item.place;
    let finding = Finding::new(HostFiles, severity, service, place, why, None);
    Some(finding.advised("give it only the device that it needs"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_the_same_however_it_is_spelt() {
        for (path, expected) in [
            ("/", "/"),
            ("//", "/"),
            ("/..", "/"),
            ("/etc/../", "/"),
            ("/etc/./ssh//", "/etc/ssh"),
            ("/var/run/docker.sock", "/run/docker.sock"),
            ("/var/../var/run", "/run"),
            ("/var/running", "/var/running"),
            ("./data/../..", ".."),
            ("~/.ssh/", "~/.ssh"),
        ] {
            assert_eq!(normalised(path), expected, "{path}");
        }
    }

    #[test]
    fn every_path_stands_once_and_in_order() {
        let paths: Vec<&str> = FILES.iter().map(|row| row.0).collect();
        assert!(paths.is_sorted_by(|a, b| a < b), "{paths:?}");
        assert!(paths.iter().all(|path| normalised(path) == **path));
    }
}
