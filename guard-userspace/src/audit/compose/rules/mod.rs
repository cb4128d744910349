//! What is judged: one file for each kind.

mod isolation;
mod ports;
mod secrets;

use super::{
    rule::Finding,
    service::{Project, Service},
};

pub fn judge(project: &Project<'_>, service: &Service<'_>) -> Vec<Finding> {
    let mut findings = ports::judge(project, service);
    findings.extend(isolation::judge(project, service));
    findings.extend(secrets::judge(service));
    findings.retain(|finding| !service.accepted.contains(&finding.rule));
    findings
}
