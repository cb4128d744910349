//! The rules, one file for each kind.

mod host_files;
mod isolation;
mod logins;
mod ports;
mod secrets;

use super::{finding::Finding, project::Project, service::ComposeService};

pub fn judge(project: &Project<'_>, service: &ComposeService<'_>) -> Vec<Finding> {
    let mut findings = ports::judge(project, service);
    findings.extend(logins::judge(project, service));
    findings.extend(isolation::judge(project, service));
    findings.extend(host_files::judge(project, service));
    findings.extend(secrets::judge(service));
    findings.retain(|finding| !service.accepted.contains(&finding.rule));
    findings
}
