//! A service, and the project around it, as the rules ask about them.

use std::collections::HashMap;

use indexmap::IndexMap;

use super::{
    Warning,
    load::texts,
    network::{Network, Networks},
    port::{Address, Port},
    rule::Rule,
    source::{ComposeError, Place},
    yaml::{Entry, Node, Scalar, Value},
};
use crate::audit::proxies::{PROXIES, PROXY_NAMES, WEB, WEB_SERVERS, image_name};

pub struct Service<'a> {
    pub name: &'a str,
    pub key: &'a Place,
    pub node: &'a Node,
    pub ports: Vec<Port>,
    pub environment: Vec<Variable<'a>>,
    pub profiles: Vec<String>,
    /// Rules whose findings are meant to be.
    pub accepted: Vec<Rule>,
}

/// Where a service says which findings are accepted.
const ACCEPT: &str = "x-guard-accept";

/// A variable that a container is given.
pub struct Variable<'a> {
    pub name: String,
    /// Where it begins.
    pub place: &'a Place,
    pub node: &'a Node,
    pub scalar: &'a Scalar,
    /// `NAME=value` in one text, as a list has it.
    pub is_assignment: bool,
}

/// A volume or a file of the host that a service mounts.
pub struct Mount<'a> {
    pub source: String,
    /// In the container.
    pub target: String,
    pub node: &'a Node,
}

impl<'a> Service<'a> {
    /// What cannot be judged for lack of variables is put into the warnings.
    pub fn read(
        name: &'a str,
        entry: &'a Entry,
        warnings: &mut Vec<Warning>,
    ) -> Result<Self, ComposeError> {
        let Entry { key, node } = entry;
        if !matches!(node.value, Value::Mapping(_)) {
            return Err(key.error(format!(
                "service \"{name}\" is a mapping, such as image: and a name"
            )));
        }
        Ok(Self {
            name,
            key,
            node,
            ports: ports(node, warnings)?,
            environment: environment(node),
            profiles: node.get("profiles").map(texts).unwrap_or_default(),
            accepted: accepted(node)?,
        })
    }

    pub fn text(&self, key: &str) -> Option<&'a str> {
        Some(&self.node.get(key)?.scalar()?.text)
    }

    /// Those of a list; none if it is no list.
    pub fn items(&self, key: &str) -> &'a [Node] {
        self.node.get(key).and_then(Node::sequence).unwrap_or(&[])
    }

    /// The image's name without registry, tag and digest.
    pub fn image(&self) -> &'a str {
        let image = self.text("image").unwrap_or_default();
        image_name(image)
    }

    pub fn labels(&self) -> Vec<String> {
        self.node.get("labels").map(names).unwrap_or_default()
    }

    pub fn networks(&self) -> Vec<String> {
        self.node.get("networks").map(names).unwrap_or_default()
    }

    /// The last mount of each place in the container.
    pub fn mounts(&self) -> Vec<Mount<'a>> {
        let mounts = self.items("volumes").iter().filter_map(mount);
        let by_target: IndexMap<String, Mount<'a>> = mounts.collect();
        by_target.into_values().collect()
    }
}

fn accepted(service: &Node) -> Result<Vec<Rule>, ComposeError> {
    let Some(node) = service.get(ACCEPT) else {
        return Ok(Vec::new());
    };
    let rule = |name: &String| {
        let rule = Rule::ALL.iter().find(|rule| rule.name() == name);
        rule.copied().ok_or_else(|| {
            let known: Vec<&str> = Rule::ALL.iter().map(|rule| rule.name()).collect();
            node.place
                .error(format!("there is no rule \"{name}\": {}", known.join(", ")))
        })
    };
    texts(node).iter().map(rule).collect()
}

/// The keys of a mapping; the texts of a list up to `=`.
fn names(node: &Node) -> Vec<String> {
    match &node.value {
        Value::Mapping(mapping) => mapping.keys().cloned().collect(),
        Value::Sequence(items) => items.iter().flat_map(names).collect(),
        Value::Scalar(scalar) => {
            let name = scalar.text.split('=').next().unwrap_or(&scalar.text);
            vec![name.to_owned()]
        }
        Value::Null => Vec::new(),
    }
}

fn ports(service: &Node, warnings: &mut Vec<Warning>) -> Result<Vec<Port>, ComposeError> {
    let Some(node) = service.get("ports") else {
        return Ok(Vec::new());
    };
    let Some(items) = node.sequence() else {
        return Err(node
            .place
            .error("ports is a list, such as - \"127.0.0.1:8000:8000\""));
    };
    let mut ports = Vec::new();
    for item in items.iter().filter(|item| !item.is_reset()) {
        match Port::read(item)? {
            Some(port) => ports.push(port),
            None => warnings.push(Warning::at(
                &item.place,
                "this port needs variables that are not set here, and was not judged".to_owned(),
            )),
        }
    }
    Ok(ports)
}

/// The last value of each name.
fn environment(service: &Node) -> Vec<Variable<'_>> {
    let Some(node) = service.get("environment") else {
        return Vec::new();
    };
    let mut by_name: IndexMap<String, Variable<'_>> = IndexMap::new();
    for (name, variable) in variables(node) {
        match variable {
            Some(variable) => by_name.insert(name, variable),
            None => by_name.shift_remove(&name),
        };
    }
    by_name.into_values().collect()
}

/// By their names; `None`: its value is that of the process, whatever stood below.
fn variables(node: &Node) -> Vec<(String, Option<Variable<'_>>)> {
    match &node.value {
        Value::Mapping(mapping) => {
            let entries = mapping.iter().filter(|(_, entry)| !entry.node.is_reset());
            entries
                .map(|(name, Entry { key, node })| {
                    let variable = node.scalar().map(|scalar| Variable {
                        name: name.clone(),
                        place: key,
                        node,
                        scalar,
                        is_assignment: false,
                    });
                    (name.clone(), variable)
                })
                .collect()
        }
        Value::Sequence(items) => items.iter().flat_map(variables).collect(),
        Value::Scalar(scalar) => {
            let Some((name, _)) = scalar.text.split_once('=') else {
                return vec![(scalar.text.clone(), None)];
            };
            let variable = Variable {
                name: name.to_owned(),
                place: &node.place,
                node,
                scalar,
                is_assignment: true,
            };
            vec![(name.to_owned(), Some(variable))]
        }
        Value::Null => Vec::new(),
    }
}

/// With the place in the container. `None` if it mounts nothing of the host's.
fn mount(node: &Node) -> Option<(String, Mount<'_>)> {
    if node.is_reset() {
        return None;
    }
    let (source, target) = match node.scalar() {
        Some(scalar) => {
            let mut parts = scalar.text.split(':');
            (parts.next()?, parts.next()?)
        }
        None => {
            let text = |key: &str| Some(node.get(key)?.scalar()?.text.as_str());
            (
                text("source").or_else(|| text("src"))?,
                text("target").or_else(|| text("dst"))?,
            )
        }
    };
    let mount = Mount {
        source: source.to_owned(),
        target: target.to_owned(),
        node,
    };
    Some((target.to_owned(), mount))
}

/// What the rules know of the other services.
pub struct Project<'a> {
    pub services: Vec<Service<'a>>,
    networks: Networks<'a>,
    /// Volumes that are folders of the host, and whether they are read-only.
    bound: HashMap<&'a str, (&'a str, bool)>,
    /// The first reverse proxy's name.
    proxy: Option<&'a str>,
}

impl<'a> Project<'a> {
    pub fn new(root: &'a Node, mut services: Vec<Service<'a>>) -> Self {
        let networks = Networks::read(root);
        for service in &mut services {
            if let Some(binding) = networks.binding(service) {
                let ports = service.ports.iter_mut();
                let unbound = ports.filter(|port| port.address == Address::Every);
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

    pub fn is_on_host_network(&self, service: &Service<'_>) -> bool {
        service.text("network_mode") == Some("host") || self.host_network(service).is_some()
    }

    /// The network that is the host's, by its name in the project.
    pub fn host_network(&self, service: &Service<'_>) -> Option<String> {
        let mut networks = self.networks.of(service).into_iter();
        let (name, _) = networks.find(|(_, network)| *network == Network::Host)?;
        Some(name)
    }

    /// The ports that Docker does publish: not those of a service without a bridge of Docker's.
    pub fn published<'b>(&self, service: &'b Service<'_>) -> &'b [Port] {
        let networks = self.networks.of(service);
        let is_apart = |(_, network): &(String, Network)| *network == Network::Apart;
        let has_no_bridge = !networks.is_empty() && networks.iter().all(is_apart);
        let mode = service.text("network_mode").unwrap_or_default();
        let is_elsewhere = mode == "none" || mode.contains(':') || self.is_on_host_network(service);
        match has_no_bridge || is_elsewhere {
            true => &[],
            false => &service.ports,
        }
    }

    /// The reverse proxy that requests for this service come through: one of the project, or one that
    /// its labels or variables speak to.
    pub fn proxy_of(&self, service: &Service<'_>) -> Option<String> {
        if self.is_proxy(service) {
            return None;
        }
        match self.proxy {
            Some(proxy) => Some(format!("\"{proxy}\"")),
            None => routed_by(service).map(ToOwned::to_owned),
        }
    }

    pub fn is_proxy(&self, service: &Service<'_>) -> bool {
        let image = service.image();
        if PROXIES.contains(&image) {
            return true;
        }
        let is_built = image.is_empty() && PROXY_NAMES.contains(&service.name);
        (is_built || WEB_SERVERS.contains(&image))
            && routed_by(service).is_none()
            && (self.is_on_host_network(service) || self.serves_web(service))
    }

    fn serves_web(&self, service: &Service<'_>) -> bool {
        let is_web = |port: &Port| {
            let host = port.host_ports();
            let is_public = host.is_some_and(|ports| WEB.iter().any(|web| ports.contains(web)));
            is_public && !port.address.is_loopback()
        };
        self.published(service).iter().any(is_web)
    }
}

/// `driver_opts: {type: none, o: bind, device: /…}`.
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

/// Which proxy is told to route to the service.
fn routed_by(service: &Service<'_>) -> Option<&'static str> {
    let labels = service.labels();
    let has_label = |prefix: &str| labels.iter().any(|label| label.starts_with(prefix));
    if has_label("traefik.http.") {
        return Some("Traefik, which its labels speak to");
    }
    if labels.iter().any(|label| label == "caddy") {
        return Some("Caddy, which its labels speak to");
    }
    let is_virtual_host = |variable: &Variable<'_>| variable.name == "VIRTUAL_HOST";
    let has_virtual_host = service.environment.iter().any(is_virtual_host);
    has_virtual_host.then_some("nginx-proxy, which its VIRTUAL_HOST speaks to")
}

/// What Compose takes for true.
pub fn is_true(text: &str) -> bool {
    ["true", "yes", "y", "on", "1"].contains(&text.to_ascii_lowercase().as_str())
}
