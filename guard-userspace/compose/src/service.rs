//! A service, with the views of it that the rules need.

use indexmap::IndexMap;

use super::{
    ComposeWarning, ProjectPort,
    load::texts,
    port::Port,
    rule::Rule,
    source::{ComposeError, Place},
    yaml::{MappingEntry, Node, Scalar, Value},
};
use crate::proxies::image_name;

pub struct ComposeService<'a> {
    pub name: &'a str,
    pub key: &'a Place,
    pub node: &'a Node,
    pub ports: Vec<Port>,
    pub environment: Vec<Variable<'a>>,
    pub profiles: Vec<String>,
    /// Rules whose findings the file accepts.
    pub accepted: Vec<Rule>,
}

/// The key with the rules whose findings are accepted.
pub const ACCEPT: &str = "x-guard-accept";

/// An environment variable of a container.
pub struct Variable<'a> {
    pub name: String,
    /// The beginning of the entry.
    pub place: &'a Place,
    pub node: &'a Node,
    pub scalar: &'a Scalar,
    /// Name and value are one text, `NAME=value`, in a list.
    pub is_assignment: bool,
}

/// A word of `entrypoint` or `command`.
pub struct CommandWord<'a> {
    pub text: String,
    /// The item of a list, or the whole value.
    pub place: &'a Place,
    /// A variable in it has no value here: an empty word may be none where the project runs.
    pub has_unset: bool,
}

/// A label of a container.
pub struct Label<'a> {
    pub name: &'a str,
    pub value: &'a str,
    pub place: &'a Place,
}

/// A volume or a file of the host that a service mounts.
pub struct Mount<'a> {
    pub source: String,
    /// In the container.
    pub target: String,
    pub node: &'a Node,
}

impl<'a> ComposeService<'a> {
    /// A port that needs variables which are not set is left out, with a warning.
    pub fn read(
        name: &'a str,
        entry: &'a MappingEntry,
        warnings: &mut Vec<ComposeWarning>,
    ) -> Result<Self, ComposeError> {
        let MappingEntry { key, node } = entry;
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

    pub fn project_ports(&self) -> impl Iterator<Item = ProjectPort> {
        self.ports.iter().map(|port| ProjectPort {
            service: self.name.to_owned(),
            profiles: self.profiles.clone(),
            file: port.place.source.name(),
            line: port.place.line(),
            host_ip: port.address.ip(),
            published: port
                .host_ports()
                .map(|ports| [*ports.start(), *ports.end()]),
            target: [*port.container.start(), *port.container.end()],
            protocol: port.protocol.name(),
        })
    }

    pub fn text(&self, key: &str) -> Option<&'a str> {
        Some(&self.node.get(key)?.scalar()?.text)
    }

    /// The items of a list; none if the value is not a list.
    pub fn items(&self, key: &str) -> &'a [Node] {
        self.node.get(key).and_then(Node::sequence).unwrap_or(&[])
    }

    /// The image's name without registry, tag and digest.
    pub fn image(&self) -> &'a str {
        let image = self.text("image").unwrap_or_default();
        image_name(image)
    }

    /// Whether it runs one of these images. A part with a slash, such as `rocker/`, or after `*` is looked for in the
    /// whole image. A service that is built counts by its name.
    pub fn runs(&self, images: &[&str]) -> bool {
        let path = self.text("image").unwrap_or_default();
        let name = match path {
            "" => self.name,
            path => image_name(path),
        };
        images.iter().any(|image| match image.strip_prefix('*') {
            Some(part) => path.contains(part),
            None if image.contains('/') => path.contains(image),
            None => name == *image,
        })
    }

    pub fn labels(&self) -> Vec<Label<'a>> {
        self.node.get("labels").map(labels).unwrap_or_default()
    }

    /// The words of `entrypoint`, then of `command`. An item of a list with spaces, such as that of `sh -c`, is split.
    pub fn command(&self) -> Vec<CommandWord<'a>> {
        let values = ["entrypoint", "command"].map(|key| self.node.get(key));
        values.into_iter().flatten().flat_map(words).collect()
    }

    /// Whether a variable with a name that `is_it` accepts has a value, or gets one from outside of the files.
    pub fn may_set(&self, is_it: impl Fn(&str) -> bool) -> bool {
        let node = self.node.get("environment");
        let variables = node.map(variables).unwrap_or_default();
        let has_value = |variable: &Option<Variable<'_>>| match variable {
            None => true,
            Some(variable) => variable.scalar.reference.is_some() || !variable.value().is_empty(),
        };
        variables
            .iter()
            .any(|(name, variable)| is_it(name) && has_value(variable))
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

impl Variable<'_> {
    /// The value with its variables replaced.
    pub fn value(&self) -> &str {
        self.after_name(&self.scalar.text)
    }

    /// The part of the entry's text that is the value.
    pub fn after_name<'a>(&self, text: &'a str) -> &'a str {
        match self.is_assignment {
            true => text.split_once('=').map_or("", |(_, value)| value),
            false => text,
        }
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

fn labels(node: &Node) -> Vec<Label<'_>> {
    match &node.value {
        Value::Mapping(mapping) => {
            let entries = mapping.iter();
            entries
                .map(|(name, MappingEntry { key, node })| Label {
                    name,
                    value: node.scalar().map_or("", |scalar| &scalar.text),
                    place: key,
                })
                .collect()
        }
        Value::Sequence(items) => items.iter().flat_map(labels).collect(),
        Value::Scalar(scalar) => {
            let (name, value) = scalar.text.split_once('=').unwrap_or((&scalar.text, ""));
            let place = &node.place;
            vec![Label { name, value, place }]
        }
        Value::Null => Vec::new(),
    }
}

fn words(node: &Node) -> Vec<CommandWord<'_>> {
    match &node.value {
        Value::Sequence(items) => items.iter().flat_map(words).collect(),
        Value::Scalar(scalar) if !node.is_reset() => {
            let texts = match shlex::split(&scalar.text) {
                // The empty item of a list is an empty argument.
                Some(texts) if texts.is_empty() => vec![String::new()],
                Some(texts) => texts,
                None => scalar.text.split_whitespace().map(str::to_owned).collect(),
            };
            let place = &node.place;
            let reference = scalar.reference.as_ref();
            let has_unset = reference.is_some_and(|reference| {
                !reference.unset.is_empty() || !reference.required.is_empty()
            });
            let word = |text| CommandWord {
                text,
                place,
                has_unset,
            };
            texts.into_iter().map(word).collect()
        }
        _ => Vec::new(),
    }
}

/// Fails if Compose refuses a port of any service. A port that needs variables which are not set gives a warning.
pub fn check_ports(root: &Node, warnings: &mut Vec<ComposeWarning>) -> Result<(), ComposeError> {
    let services = root.get("services").and_then(Node::mapping);
    for entry in services.into_iter().flat_map(IndexMap::values) {
        for item in port_items(&entry.node)? {
            if Port::check(item)?.is_none() {
                warnings.push(not_judged(item));
            }
        }
    }
    Ok(())
}

fn not_judged(port: &Node) -> ComposeWarning {
    let problem = "this port needs variables that are not set here, and was not judged";
    ComposeWarning::at(&port.place, problem.to_owned())
}

fn port_items(service: &Node) -> Result<impl Iterator<Item = &Node>, ComposeError> {
    let entry = service.mapping().and_then(|keys| keys.get("ports"));
    let items = match entry.filter(|entry| !entry.node.is_reset()) {
        None => &[],
        Some(MappingEntry { key, node }) => node.sequence().ok_or_else(|| {
            let place = match node.value {
                Value::Null => key,
                _ => &node.place,
            };
            place.error("ports is a list, such as - \"127.0.0.1:8000:8000\"")
        })?,
    };
    Ok(items.iter().filter(|item| !item.is_reset()))
}

fn ports(service: &Node, warnings: &mut Vec<ComposeWarning>) -> Result<Vec<Port>, ComposeError> {
    let mut ports = Vec::new();
    for item in port_items(service)? {
        match Port::read(item)? {
            Some(port) => ports.push(port),
            None => warnings.push(not_judged(item)),
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

/// The variables by name. `None`: the value comes from the process, whatever an earlier file sets.
fn variables(node: &Node) -> Vec<(String, Option<Variable<'_>>)> {
    match &node.value {
        Value::Mapping(mapping) => {
            let entries = mapping.iter().filter(|(_, entry)| !entry.node.is_reset());
            entries
                .map(|(name, MappingEntry { key, node })| {
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

/// A mount, with its path in the container. `None`: it mounts nothing of the host.
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
