//! The project around a service, with the views of it that the rules need.

use std::collections::HashMap;

use super::{
    network::{ComposeNetwork, ComposeNetworks},
    port::{BindAddress, Port},
    service::{ComposeService, Variable},
    yaml::Node,
};
use crate::proxies::{PROXIES, PROXY_NAMES, WEB, WEB_SERVERS};

/// The services of a project, with its networks, volumes and reverse proxy.
pub struct Project<'a> {
    pub services: Vec<ComposeService<'a>>,
    networks: ComposeNetworks<'a>,
    /// Volumes that are folders of the host, and whether they are read-only.
    bound: HashMap<&'a str, (&'a str, bool)>,
    /// The first reverse proxy's name.
    proxy: Option<&'a str>,
}

impl<'a> Project<'a> {
    pub fn new(root: &'a Node, mut services: Vec<ComposeService<'a>>) -> Self {
        let networks = ComposeNetworks::read(root);
        for service in &mut services {
            if let Some(binding) = networks.binding(service) {
                let ports = service.ports.iter_mut();
                let unbound = ports.filter(|port| port.address == BindAddress::Every);
                unbound.for_each(|port| port.address = binding);
            }
        }
        let mut project = Self {
            services,
            networks,
            bound: bound(root),
            proxy: None,
        };
        let proxy = project
            .services
            .iter()
            .find(|service| project.is_proxy(service));
        project.proxy = proxy.map(|service| service.name);
        project
    }

    /// The folder of the host that a volume is, and whether it is read-only.
    pub fn bound(&self, volume: &str) -> Option<(&'a str, bool)> {
        self.bound.get(volume).copied()
    }

    pub fn is_on_host_network(&self, service: &ComposeService<'_>) -> bool {
        service.text("network_mode") == Some("host") || self.host_network(service).is_some()
    }

    /// The project's name of the service's network that is the host's.
    pub fn host_network(&self, service: &ComposeService<'_>) -> Option<String> {
        let mut networks = self.networks.of(service).into_iter();
        let (name, _) = networks.find(|(_, network)| *network == ComposeNetwork::Host)?;
        Some(name)
    }

    /// The ports that Docker publishes: none if the service has no bridge network.
    pub fn published<'b>(&self, service: &'b ComposeService<'_>) -> &'b [Port] {
        let networks = self.networks.of(service);
        let is_apart = |(_, network): &(String, ComposeNetwork)| *network == ComposeNetwork::Apart;
        let has_no_bridge = !networks.is_empty() && networks.iter().all(is_apart);
        let mode = service.text("network_mode").unwrap_or_default();
        let is_elsewhere = mode == "none" || mode.contains(':') || self.is_on_host_network(service);
        match has_no_bridge || is_elsewhere {
            true => &[],
            false => &service.ports,
        }
    }

    /// The reverse proxy in front of this service: a proxy of the project, or the proxy that the service's labels or
    /// variables configure.
    pub fn proxy_of(&self, service: &ComposeService<'_>) -> Option<String> {
        if self.is_proxy(service) {
            return None;
        }
        match self.proxy {
            Some(proxy) => Some(format!("\"{proxy}\"")),
            None => routed_by(service).map(ToOwned::to_owned),
        }
    }

    pub fn is_proxy(&self, service: &ComposeService<'_>) -> bool {
        let image = service.image();
        if PROXIES.contains(&image) {
            return true;
        }
        let is_built = image.is_empty() && PROXY_NAMES.contains(&service.name);
        (is_built || WEB_SERVERS.contains(&image))
            && routed_by(service).is_none()
            && (self.is_on_host_network(service) || self.serves_web(service))
    }

    fn serves_web(&self, service: &ComposeService<'_>) -> bool {
        let is_web = |port: &Port| {
            let host = port.host_ports();
            let is_public = host.is_some_and(|ports| WEB.iter().any(|web| ports.contains(web)));
            is_public && !port.address.is_loopback()
        };
        self.published(service).iter().any(is_web)
    }
}

/// Volumes with `driver_opts: {type: none, o: bind, device: /…}`.
fn bound(root: &Node) -> HashMap<&str, (&str, bool)> {
    let volumes = root.get("volumes").and_then(Node::mapping);
    let volumes = volumes.into_iter().flatten();
    volumes
        .filter_map(|(name, entry)| {
            let options = entry.node.get("driver_opts")?;
            let text = |key: &str| Some(options.get(key)?.scalar()?.text.as_str());
            let mut flags = text("o")?.split(',');
            let is_bind = flags.clone().any(|flag| matches!(flag, "bind" | "rbind"));
            let is_read_only = flags.any(|flag| flag == "ro");
            let folder = text("device").filter(|_| is_bind)?;
            Some((name.as_str(), (folder, is_read_only)))
        })
        .collect()
}

/// The proxy that the service's labels or variables configure.
pub fn routed_by(service: &ComposeService<'_>) -> Option<&'static str> {
    let labels = service.labels();
    if labels
        .iter()
        .any(|label| label.name.starts_with("traefik.http."))
    {
        return Some("Traefik, which its labels configure");
    }
    if labels.iter().any(|label| label.name == "caddy") {
        return Some("Caddy, which its labels configure");
    }
    let is_virtual_host = |variable: &Variable<'_>| variable.name == "VIRTUAL_HOST";
    let has_virtual_host = service.environment.iter().any(is_virtual_host);
    has_virtual_host.then_some("nginx-proxy, which its VIRTUAL_HOST configures")
}
