//! The format of the state file, line by line.

use std::{collections::BTreeMap, io::BufRead as _};

use guard_common::{address::Family, exposure::NetworkKind};
use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::{ChangedMode, KnownContainers, Modes, StoredPolicy, StoredState, StoredTrial};
use crate::policy::{ContainerNetwork, Containers, Entry, Labelled, PublishedPort};

/// The version of the format. A file with another version is set aside.
const VERSION: u32 = 1;

/// One line of the file.
#[derive(Deserialize, Serialize)]
#[serde(tag = "what", rename_all = "snake_case", deny_unknown_fields)]
pub enum StoreLine {
    Guard {
        version: u32,
    },
    LastId {
        id: u64,
    },
    Entry {
        entry: Entry,
    },
    Mode {
        /// `None`: the mode of the host.
        service: Option<String>,
        changed: ChangedMode,
    },
    /// The source of the next lines: a Docker daemon.
    Docker {
        // Omitted if unknown: older versions of guard refuse a line with unknown fields.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        socket: Option<String>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        daemon: Option<String>,
    },
    Published {
        /// With its address, if it is published on one address only.
        port: String,
        ipv6: bool,
    },
    Network {
        prefix: IpNet,
        masqueraded: bool,
    },
    Labelled {
        container: String,
        /// As in `Published`.
        published: Vec<(String, bool)>,
        labels: BTreeMap<String, String>,
    },
    Policy {
        policy: StoredPolicy,
    },
    Refused {
        sha256: String,
    },
    Trial {
        trial: StoredTrial,
    },
    Detached,
    /// The last line. If it is missing, the file was truncated.
    End {
        lines: usize,
    },
}

impl StoredState {
    /// The lines of the state file.
    pub fn lines(&self) -> Vec<StoreLine> {
        let Self {
            last_id,
            entries,
            modes: Modes { host, services },
            containers,
            policy,
            refused,
            trial,
            detached,
        } = self.clone();
        let mut lines = vec![
            StoreLine::Guard { version: VERSION },
            StoreLine::LastId { id: last_id },
        ];
        if detached {
            lines.push(StoreLine::Detached);
        }
        lines.extend(host.map(|changed| StoreLine::Mode {
            service: None,
            changed,
        }));
        let services = services.into_iter().map(|(name, changed)| StoreLine::Mode {
            service: Some(name),
            changed,
        });
        lines.extend(services);
        lines.extend(entries.into_iter().map(|entry| StoreLine::Entry { entry }));
        let is_known = containers.is_some();
        let KnownContainers {
            socket,
            daemon,
            containers:
                Containers {
                    published,
                    networks,
                    labelled,
                },
        } = containers.unwrap_or_default();
        lines.extend(is_known.then_some(StoreLine::Docker { socket, daemon }));
        lines.extend(published.iter().map(|port| {
            let (port, ipv6) = write_port(port);
            StoreLine::Published { port, ipv6 }
        }));
        lines.extend(labelled.into_iter().map(|labelled| {
            let Labelled {
                container,
                published,
                labels,
            } = labelled;
            StoreLine::Labelled {
                container,
                published: published.iter().map(write_port).collect(),
                labels,
            }
        }));
        lines.extend(networks.iter().map(|network| StoreLine::Network {
            prefix: network.prefix,
            masqueraded: network.kind == NetworkKind::Masqueraded,
        }));
        let refused = refused.into_iter();
        lines.extend(refused.map(|sha256| StoreLine::Refused { sha256 }));
        lines.extend(trial.map(|trial| StoreLine::Trial { trial }));
        lines.extend(policy.map(|policy| StoreLine::Policy { policy }));
        lines
    }

    fn known(&mut self) -> &mut Containers {
        &mut self.containers.get_or_insert_default().containers
    }

    fn add(&mut self, line: StoreLine) -> Result<(), String> {
        match line {
            StoreLine::Guard { version: VERSION } | StoreLine::End { .. } => {}
            StoreLine::Guard { version } => {
                return Err(format!("the format version is {version}, not {VERSION}"));
            }
            StoreLine::LastId { id } => self.last_id = self.last_id.max(id),
            StoreLine::Entry { entry } => {
                self.last_id = self.last_id.max(entry.id);
                self.entries.push(entry);
            }
            StoreLine::Mode {
                service: None,
                changed,
            } => self.modes.host = Some(changed),
            StoreLine::Mode {
                service: Some(name),
                changed,
            } => {
                self.modes.services.insert(name, changed);
            }
            StoreLine::Docker { socket, daemon } => {
                let known = self.containers.get_or_insert_default();
                known.socket = socket;
                known.daemon = daemon;
            }
            StoreLine::Published { port, ipv6 } => {
                let port = read_port(&port, ipv6)?;
                self.known().published.push(port);
            }
            StoreLine::Labelled {
                container,
                published,
                labels,
            } => {
                let published = published.iter().map(|(port, ipv6)| read_port(port, *ipv6));
                let labelled = Labelled {
                    container,
                    published: published.collect::<Result<_, _>>()?,
                    labels,
                };
                self.known().labelled.push(labelled);
            }
            StoreLine::Network {
                prefix,
                masqueraded,
            } => {
                self.known().networks.push(ContainerNetwork {
                    prefix: prefix.trunc(),
                    kind: if masqueraded {
                        NetworkKind::Masqueraded
                    } else {
                        NetworkKind::Routed
                    },
                });
            }
            StoreLine::Policy { policy } => self.policy = Some(policy),
            StoreLine::Refused { sha256 } => self.refused.push(sha256),
            StoreLine::Trial { trial } => self.trial = Some(trial),
            StoreLine::Detached => self.detached = true,
        }
        Ok(())
    }
}

fn write_port(port: &PublishedPort) -> (String, bool) {
    (port.to_string(), port.at.family() == Family::Ipv6)
}

fn read_port(port: &str, ipv6: bool) -> Result<PublishedPort, String> {
    let family = if ipv6 { Family::Ipv6 } else { Family::Ipv4 };
    // Without an address, the text stands for all addresses of both families.
    let mut ports = PublishedPort::parse(port)?;
    ports.retain(|port| port.at.family() == family);
    match ports[..] {
        [port] => Ok(port),
        _ => Err(format!("{port} is not a single port")),
    }
}

/// Reads a state file. Returns the valid lines, and the problems of the others.
pub fn read(bytes: &[u8]) -> (StoredState, Vec<String>) {
    let mut kept = StoredState::default();
    let mut problems = Vec::new();
    let mut end = None;
    let mut sound = 0;
    for (number, line) in (1..).zip(bytes.lines()) {
        let added = line
            .map_err(|_| "it is not UTF-8 text".to_owned())
            .and_then(|line| serde_json::from_str(&line).map_err(|error| error.to_string()))
            .and_then(|line| {
                if let StoreLine::End { lines } = line {
                    end = Some(lines);
                } else {
                    sound += 1;
                }
                kept.add(line)
            });
        if let Err(problem) = added {
            problems.push(format!("line {number}: {problem}"));
        }
    }
    if problems.is_empty() && end != Some(sound) {
        problems.push(match end {
            None => "the file was truncated: its last line is missing".to_owned(),
            Some(lines) => format!("the file has {sound} lines instead of {lines}"),
        });
    }
    (kept, problems)
}
