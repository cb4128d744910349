//! Compose and guard read the same project, and their results are compared.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::{IpAddr, Ipv4Addr},
    ops::RangeInclusive,
    path::{Path, PathBuf},
    process::{Command, Output},
    str::FromStr,
};

use guard_compose::{ComposeRequest, ProjectPort, audit};
use serde_json::Value;

/// The input of both programs.
#[derive(Clone, Debug, Default)]
pub struct ProjectInput {
    pub folder: PathBuf,
    /// Relative to the folder; later files are put on top of earlier ones.
    pub files: Vec<PathBuf>,
    /// Empty: all profiles.
    pub profiles: Vec<String>,
    pub env_files: Option<Vec<PathBuf>>,
    pub environment: BTreeMap<String, String>,
}

/// One port of a container.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PortFact {
    pub service: String,
    pub host_ip: Option<IpAddr>,
    /// `None`: Docker chooses.
    pub published: Option<(u16, u16)>,
    pub target: u16,
    pub protocol: String,
}

pub type ProjectPorts = BTreeSet<PortFact>;

/// Parses `web 127.0.0.1 8080 80/tcp`, with `-` for a part that is not written.
impl FromStr for PortFact {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let words: Vec<&str> = text.split([' ', '/']).collect();
        let [service, address, published, target, protocol] = words.as_slice() else {
            return Err(format!("{text:?} is no port"));
        };
        let is_written = |word: &&&str| **word != "-";
        let number = |word: &str| word.parse::<u16>().map_err(|error| error.to_string());
        let host_ip = Some(address).filter(is_written).map(|word| word.parse());
        let host_ip = host_ip.transpose();
        let published = Some(published).filter(is_written).map(|word| number(word));
        let published = published.transpose()?;
        Ok(Self {
            service: (*service).to_owned(),
            host_ip: host_ip.map_err(|_| format!("{address} is no address"))?,
            published: published.map(|port| (port, port)),
            target: number(target)?,
            protocol: (*protocol).to_owned(),
        })
    }
}

#[derive(Debug)]
pub enum ReadResult {
    Ports(ProjectPorts),
    /// Guard only: these ports, and others that need variables which are not set.
    Partly(ProjectPorts),
    Refused(String),
}

/// Reads a project with Compose, and refuses ports that Compose accepts and Docker would refuse.
pub fn of_compose(program: &Path, input: &ProjectInput) -> ReadResult {
    let ProjectInput {
        folder,
        files,
        profiles,
        env_files,
        environment,
    } = input;
    let mut command = Command::new(program);
    command
        .current_dir(folder)
        .env_clear()
        .envs(environment)
        // A project is read in milliseconds: one thread and no garbage collection are fastest.
        .envs([("GOMAXPROCS", "1"), ("GOGC", "off")])
        .env("HOME", folder);
    let all = ["*".to_owned()];
    let profiles = match profiles.as_slice() {
        [] => all.as_slice(),
        named => named,
    };
    for profile in profiles {
        command.arg("--profile").arg(profile);
    }
    for file in env_files.iter().flatten() {
        command.arg("--env-file").arg(file);
    }
    for file in files {
        command.arg("--file").arg(file);
    }
    let Output {
        status,
        stdout,
        stderr,
    } = command
        .args(["config", "--format", "json"])
        .output()
        .unwrap();
    if !status.success() {
        let words = String::from_utf8_lossy(&stderr);
        let words = words.lines().filter(|line| !line.contains("level=warning"));
        return ReadResult::Refused(words.collect::<Vec<_>>().join(" "));
    }
    let project: Value = serde_json::from_slice(&stdout).unwrap();
    let services = project["services"].as_object().unwrap();
    let ports = services.iter().flat_map(|(service, value)| {
        let ports = value["ports"].as_array().into_iter().flatten();
        ports.map(move |port| fact(service, port))
    });
    match ports.collect() {
        Ok(ports) => ReadResult::Ports(ports),
        Err(problem) => ReadResult::Refused(problem),
    }
}

/// Parses a port of Compose's output as Docker does (`nat.ParsePortRange`, `types.ParseProtocol`).
fn fact(service: &str, port: &Value) -> Result<PortFact, String> {
    let text = |key: &str| port[key].as_str().unwrap_or_default();
    let published = match text("published") {
        "" => None,
        text => Some(range(text).ok_or(format!("Docker: published {text}"))?),
    };
    let target = port["target"].as_u64().unwrap_or_default();
    let target = u16::try_from(target).ok().filter(|target| *target > 0);
    let protocol = text("protocol").to_ascii_lowercase();
    if !["", "tcp", "udp", "sctp"].contains(&protocol.as_str()) {
        return Err(format!("Docker: protocol {protocol}"));
    }
    Ok(PortFact {
        service: service.to_owned(),
        host_ip: match text("host_ip") {
            "" => None,
            text => Some(text.parse::<IpAddr>().unwrap().to_canonical()),
        },
        published: published
            .map(|range| (*range.start(), *range.end()))
            .filter(|range| *range != (0, 0)),
        target: target.ok_or(format!("Docker: target {port}"))?,
        protocol: match protocol.as_str() {
            "" => "tcp".to_owned(),
            _ => protocol,
        },
    })
}

fn range(text: &str) -> Option<RangeInclusive<u16>> {
    let number = |text: &str| {
        let is_number = text.bytes().all(|byte| byte.is_ascii_digit());
        text.parse::<u16>().ok().filter(|_| is_number)
    };
    let mut ends = text.split('-');
    let first = ends.next()?;
    let range = number(first)?..=number(ends.next().unwrap_or(first))?;
    (!range.is_empty()).then_some(range)
}

pub fn of_guard(input: &ProjectInput) -> ReadResult {
    let ProjectInput {
        folder,
        files,
        profiles,
        env_files,
        environment,
    } = input;
    let inside = |files: &Vec<PathBuf>| files.iter().map(|file| folder.join(file)).collect();
    let report = audit(&ComposeRequest {
        files: inside(files),
        profiles: profiles.clone(),
        env_files: env_files.as_ref().map(inside),
        environment: HashMap::from_iter(environment.clone()),
    });
    let report = match report {
        Ok(report) => report,
        Err(error) => return ReadResult::Refused(error.to_string()),
    };
    let ports = report.ports.iter().flat_map(expanded).collect();
    let mut warnings = report.warnings.iter();
    match warnings.any(|warning| warning.problem.contains("was not judged")) {
        true => ReadResult::Partly(ports),
        false => ReadResult::Ports(ports),
    }
}

/// One fact for each port of the container, as in Compose's output.
fn expanded(port: &ProjectPort) -> Vec<PortFact> {
    let ProjectPort {
        service,
        host_ip,
        published,
        target: [first, last],
        protocol,
        ..
    } = port;
    let published_for = |target: u16| match published {
        Some([start, end]) if end - start == last - first && start != end => {
            let port = start + (target - first);
            Some((port, port))
        }
        published => published.map(|[start, end]| (start, end)),
    };
    let fact = |target: u16| PortFact {
        service: service.clone(),
        host_ip: *host_ip,
        published: published_for(target),
        target,
        protocol: (*protocol).to_owned(),
    };
    (*first..=*last).map(fact).collect()
}

/// Words of Compose's errors about ports or variables.
const OF_PORTS: [&str; 12] = [
    "Docker: ",
    "Invalid containerPort",
    "Invalid hostPort",
    "Invalid ip address",
    "invalid ip address",
    "Invalid proto",
    "Invalid ranges specified",
    "No port specified",
    ".ports",
    "].ports[",
    "invalid interpolation format",
    "failed to read ",
];

/// Words of Compose's error about a required variable that is not set. Guard does not judge the port.
const OF_REQUIRED: &str = "required variable";

/// Words of Compose's error about a service that one file removes and the next names again.
const OF_IMAGES: &str = "has neither an image nor a build context";

/// Compares the two results.
pub fn compare(compose: &ReadResult, guard: &ReadResult) -> Result<Agreement, String> {
    match (compose, guard) {
        (ReadResult::Ports(theirs), ReadResult::Ports(ours)) if is_same(theirs, ours) => {
            Ok(Agreement::Ports(theirs.len()))
        }
        (ReadResult::Ports(theirs), ReadResult::Ports(ours) | ReadResult::Partly(ours)) => {
            let missing: Vec<_> = theirs.difference(ours).collect();
            let more: Vec<_> = ours.difference(theirs).collect();
            Err(format!("guard misses {missing:?} and has {more:?} more"))
        }
        (ReadResult::Ports(_), ReadResult::Refused(why)) => Err(format!("guard refuses: {why}")),
        (ReadResult::Refused(why), _) if why.contains(OF_REQUIRED) || why.contains(OF_IMAGES) => {
            Ok(Agreement::NotJudged)
        }
        (ReadResult::Refused(why), ReadResult::Refused(_) | ReadResult::Partly(_)) => {
            match OF_PORTS.iter().any(|words| why.contains(words)) {
                true => Ok(Agreement::Refused),
                false => Err(format!("Compose refuses for another reason: {why}")),
            }
        }
        (ReadResult::Refused(why), ReadResult::Ports(_)) => Err(format!("Compose refuses: {why}")),
        (ReadResult::Partly(_), _) => Err("Compose judges all or nothing".to_owned()),
    }
}

/// Whether the ports are equal. If a port is written twice, without an address and on 0.0.0.0, Compose mostly drops the
/// first. Guard lists both lines.
fn is_same(theirs: &ProjectPorts, ours: &ProjectPorts) -> bool {
    let every = |port: &PortFact| port.host_ip.is_none_or(|address| address == EVERY_IPV4);
    let twin = |port: &PortFact| PortFact {
        host_ip: port.host_ip.is_none().then_some(EVERY_IPV4),
        ..port.clone()
    };
    let is_dropped = |port: &&PortFact| {
        every(port) && theirs.contains(&twin(port)) && ours.contains(&twin(port))
    };
    theirs.is_subset(ours) && ours.difference(theirs).all(|port| is_dropped(&port))
}

const EVERY_IPV4: IpAddr = IpAddr::V4(Ipv4Addr::UNSPECIFIED);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Agreement {
    /// Both have this number of equal ports.
    Ports(usize),
    Refused,
    NotJudged,
}
