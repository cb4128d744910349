//! Where a replay learns which ports containers publish: from its options, or from the runtime that the policy names.

use guard_common::{exposure::NetworkKind, exposure::Scope};
use ipnet::IpNet;

use crate::{
    agent::find_once,
    host::Host,
    policy::{ContainerNetwork, Containers, Policy, PublishedPort},
};

/// Says that containers publish nothing, so that no runtime is read.
pub const NONE: &str = "none";

/// The containers that a replay assumes.
pub struct Assumed {
    pub containers: Containers,
    pub from: AssumedFrom,
}

/// Where they come from.
pub enum AssumedFrom {
    Options,
    /// The runtime at this socket.
    Runtime(String),
    /// Why no runtime was read.
    Nowhere(String),
}

impl Assumed {
    /// The containers of these options.
    ///
    /// # Errors
    /// A port is not valid; the error says what to write.
    pub fn from_options(publish: &[String], networks: &[IpNet]) -> Result<Containers, String> {
        let ports = publish.iter().filter(|ports| *ports != NONE);
        let published: Vec<_> = ports
            .map(|ports| {
                PublishedPort::parse(ports).map_err(|problem| format!("--publish: {problem}"))
            })
            .collect::<Result<_, _>>()?;
        let networks = networks.iter().map(|prefix| ContainerNetwork {
            prefix: prefix.trunc(),
            kind: match prefix {
                IpNet::V4(_) => NetworkKind::Masqueraded,
                IpNet::V6(_) => NetworkKind::Routed,
            },
        });
        Ok(Containers {
            published: published.concat(),
            networks: networks.collect(),
            labelled: Vec::new(),
        })
    }

    /// Reads the runtime that the policy names.
    pub async fn from_runtime(policy: &Policy) -> Self {
        let nowhere = |why: String| Self {
            containers: Containers::default(),
            from: AssumedFrom::Nowhere(why),
        };
        let Some(socket) = &policy.docker_socket else {
            return nowhere("the policy names no Docker".to_owned());
        };
        let host = match Host::read_once() {
            Ok(host) => host,
            Err(error) => return nowhere(format!("this host cannot be read: {error:#}")),
        };
        let found = find_once(policy, &host).await;
        match found.error {
            Some(error) => nowhere(error),
            None => Self {
                containers: found.containers,
                from: AssumedFrom::Runtime(socket.clone()),
            },
        }
    }

    /// What a reader of the result must know: without published ports, scope `containers` closes nothing.
    pub fn warning(&self, scope: Scope) -> Option<String> {
        if scope != Scope::Containers || !self.containers.published.is_empty() {
            return None;
        }
        let why = match &self.from {
            AssumedFrom::Options => return None,
            AssumedFrom::Runtime(socket) => {
                format!("no container at {socket} publishes a port at this moment")
            }
            AssumedFrom::Nowhere(why) => format!("no published port is known ({why})"),
        };
        Some(format!(
            "{why}: closed ports of containers cannot be seen in this result. Name the ports with `--publish \
             tcp/8000,udp/9000-9010`, or write `--publish none` if there are none"
        ))
    }

    /// The published ports, as they are displayed, each once.
    pub fn ports(&self) -> Vec<String> {
        let published = self.containers.published.iter();
        let mut ports: Vec<String> = published.map(PublishedPort::to_string).collect();
        // A port on every address is listed for IPv4 and for IPv6.
        ports.dedup();
        ports
    }
}

impl AssumedFrom {
    /// Its name in JSON.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Options => "options",
            Self::Runtime(_) => "docker",
            Self::Nowhere(_) => "unknown",
        }
    }
}
