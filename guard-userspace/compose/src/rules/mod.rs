//! The rules, one file for each kind.

mod host_files;
mod isolation;
mod ports;
mod secrets;

use super::{
    finding::Finding,
    fix::Fix,
    project::Project,
    service::ComposeService,
    yaml::{MappingEntry, Node},
};

pub fn judge(project: &Project<'_>, service: &ComposeService<'_>) -> Vec<Finding> {
    let mut findings = ports::judge(project, service);
    findings.extend(isolation::judge(project, service));
    findings.extend(host_files::judge(project, service));
    findings.extend(secrets::judge(service));
    findings.retain(|finding| !service.accepted.contains(&finding.rule));
    findings
}

/// A fix that removes a key with its value.
fn without_key(service: &ComposeService<'_>, key: &str) -> Option<Fix> {
    let entry = service.node.entry(key)?;
    let keys = service.node.mapping()?;
    if keys.len() < 2 {
        return None;
    }
    Fix::without(&entry.key, &entry.node).or_else(|| Fix::without_flow_entry(keys, entry))
}

/// Longer lists get no fix: no person wrote them.
const LONGEST_MENDED: usize = 1000;

/// A fix that removes an item from a list, and the list with its only item.
fn without_item(service: &ComposeService<'_>, key: &str, item: &Node) -> Option<Fix> {
    let items = service.items(key);
    if items.len() > LONGEST_MENDED {
        return None;
    }
    let beside = items
        .iter()
        .filter(|other| other.place.is_in(&item.place.source));
    let is_in_place = |entry: &MappingEntry| entry.key.is_in(&item.place.source);
    match (beside.count(), items.len()) {
        (1, 1) if service.node.entry(key).is_some_and(is_in_place) => without_key(service, key),
        // The list would be left empty in its file.
        (1, _) => None,
        _ if item.in_flow => Fix::without_flow_item(items, item),
        _ => Fix::without(&item.place, item),
    }
}
