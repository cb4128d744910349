//! Finds what compose files would expose, from the files alone: for people who write them, and for CI.
//!
//! A file becomes a tree with line numbers (`source`, `yaml`), the trees become the project that Compose would run
//! (`interpolate`, `environment`, `merge`, `load`), and rules check its services (`service`, `project`, `port`,
//! `rules`). Nothing here connects to Docker or the network.

pub mod address;
pub mod command;
pub mod dangers;
mod environment;
mod finding;
mod fix;
mod interpolate;
mod load;
mod logins;
mod merge;
mod network;
mod not_web;
mod placeholders;
mod port;
mod project;
pub mod proxies;
mod rule;
mod rules;
mod sarif;
mod service;
mod source;
pub mod usage;
mod yaml;

use std::{
    collections::HashMap,
    net::IpAddr,
    path::{Path, PathBuf},
    rc::Rc,
};

use indexmap::IndexMap;
use serde::Serialize;

use self::{
    environment::Environment,
    fix::{Fix, Fixes},
    load::Loader,
    project::Project,
    service::ComposeService,
    source::Place,
    yaml::Node,
};

pub use self::{
    finding::Finding,
    rule::{Rule, Severity},
    sarif::sarif,
    source::ComposeError,
};

/// More findings are refused: no reader gets through so many.
const MAX_FINDINGS: usize = 10_000;

/// The input that Compose takes from its command line and environment.
#[derive(Debug, Default)]
pub struct ComposeRequest {
    /// Later files are put on top of earlier ones.
    pub files: Vec<PathBuf>,
    /// Empty: every service, whatever its profiles.
    pub profiles: Vec<String>,
    /// Read instead of `.env` and the files that `COMPOSE_ENV_FILES` names.
    pub env_files: Option<Vec<PathBuf>>,
    /// The variables of the process.
    pub environment: HashMap<String, String>,
}

/// A part of the project that could not be checked.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct ComposeWarning {
    pub file: String,
    pub line: usize,
    pub problem: String,
}

impl ComposeWarning {
    fn at(place: &Place, problem: String) -> Self {
        Self {
            file: place.source.name(),
            line: place.line(),
            problem,
        }
    }
}

/// The findings, in the order of the files.
pub struct ComposeReport {
    pub findings: Vec<Finding>,
    pub warnings: Vec<ComposeWarning>,
    /// In the order of the services.
    pub ports: Vec<ProjectPort>,
}

/// A port of a service as Compose reads it, before Docker and the network's options change it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct ProjectPort {
    pub service: String,
    /// The service runs with any of these profiles. Empty: it always runs.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub profiles: Vec<String>,
    pub file: String,
    pub line: usize,
    /// `null`: no address is written, which means every address.
    pub host_ip: Option<IpAddr>,
    /// The first and the last port on the host; `null`: Docker chooses the port.
    pub published: Option<[u16; 2]>,
    /// The first and the last port in the container.
    pub target: [u16; 2],
    pub protocol: &'static str,
}

/// A finding as it is printed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Printed {
    pub rule: &'static str,
    pub severity: Severity,
    pub file: String,
    pub line: usize,
    /// In characters, from 1.
    pub column: usize,
    pub services: Vec<String>,
    /// The services run with any of these profiles. Empty: they always run.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub profiles: Vec<String>,
    pub why: String,
    /// What to do, in words: where no edit is safe, or besides the edit.
    pub advice: Option<String>,
    /// The edit that fixes the finding; `null`: no edit is safe.
    pub fix: Option<Edit>,
    /// The line to write into the service instead, if the port is meant for everybody; `null`: a port that seldom is.
    pub accept: Option<String>,
}

/// Replaces a range of the file with a text.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Edit {
    pub file: String,
    pub line: usize,
    pub column: usize,
    pub end_line: usize,
    pub end_column: usize,
    pub text: String,
    /// The whole lines after the edit.
    pub corrected: String,
}

/// Checks the project that these files make up.
pub fn audit(request: &ComposeRequest) -> Result<ComposeReport, ComposeError> {
    let ComposeRequest {
        files,
        profiles,
        env_files,
        environment,
    } = request;
    let process = Environment::new(environment.clone());
    let env_files = env_files.clone().or_else(|| named_by(environment));
    let mut loader = Loader::new();
    let root = loader.project(files, &Rc::new(process), env_files.as_deref())?;
    let mut warnings = loader.warnings;
    let services = services(&root, profiles, &mut warnings)?;
    warnings.extend(files.iter().filter_map(|file| beside(file, files)));
    // A port is checked in each file, and once more in the whole project.
    warnings.sort();
    warnings.dedup();
    let ports = services.iter().flat_map(ComposeService::project_ports);
    let ports = ports.collect();
    let project = Project::new(&root, services);
    let services = project.services.iter();
    let findings = services.flat_map(|service| rules::judge(&project, service));
    let findings: Vec<Finding> = findings.take(MAX_FINDINGS + 1).collect();
    if findings.len() > MAX_FINDINGS {
        let problem = format!("has more than {MAX_FINDINGS} findings");
        return Err(root.place.error(problem));
    }
    Ok(ComposeReport {
        findings: gathered(findings),
        warnings,
        ports,
    })
}

/// The files that Compose looks for if no file is named, and those that it then puts on top.
const DEFAULT_FILES: [&str; 4] = [
    "compose.yaml",
    "compose.yml",
    "docker-compose.yml",
    "docker-compose.yaml",
];
const OVERRIDE_FILES: [&str; 4] = [
    "compose.override.yml",
    "compose.override.yaml",
    "docker-compose.override.yml",
    "docker-compose.override.yaml",
];

/// A warning for a file that `docker compose up` would put on top of this one, and that was not named.
fn beside(file: &Path, named: &[PathBuf]) -> Option<ComposeWarning> {
    let name = file.file_name()?.to_str()?;
    if !DEFAULT_FILES.contains(&name) {
        return None;
    }
    let mut candidates = OVERRIDE_FILES.into_iter();
    let other = candidates.find(|name| file.with_file_name(name).is_file())?;
    let is_it = |named: &PathBuf| named.file_name().is_some_and(|name| name == other);
    if named.iter().any(is_it) {
        return None;
    }
    let problem = format!(
        "{other} beside it was not read, and `docker compose` puts it on top if no file is named: name both \
         files"
    );
    Some(ComposeWarning {
        file: file.display().to_string(),
        line: 1,
        problem,
    })
}

fn named_by(environment: &HashMap<String, String>) -> Option<Vec<PathBuf>> {
    let files = environment.get("COMPOSE_ENV_FILES")?;
    let files = files.split(',').filter(|file| !file.is_empty());
    let files: Vec<PathBuf> = files.map(PathBuf::from).collect();
    (!files.is_empty()).then_some(files)
}

fn services<'a>(
    root: &'a Node,
    profiles: &[String],
    warnings: &mut Vec<ComposeWarning>,
) -> Result<Vec<ComposeService<'a>>, ComposeError> {
    let Some(node) = root.get("services") else {
        return Err(root
            .place
            .error("has no services: write them under the key services:"));
    };
    let Some(mapping) = node.mapping() else {
        return Err(node
            .place
            .error("services is a mapping from names to services"));
    };
    let mut services = Vec::new();
    for (name, entry) in mapping.iter().filter(|(_, entry)| !entry.node.is_reset()) {
        let service = ComposeService::read(name, entry, warnings)?;
        if is_selected(&service.profiles, profiles) {
            services.push(service);
        }
    }
    Ok(services)
}

fn is_selected(of_service: &[String], selected: &[String]) -> bool {
    let is_named =
        |profile: &String| selected.contains(profile) || selected.iter().any(|s| s == "*");
    selected.is_empty() || of_service.is_empty() || of_service.iter().any(is_named)
}

/// Merges findings with the same place, rule and reason, and sorts them by file and line.
fn gathered(findings: Vec<Finding>) -> Vec<Finding> {
    let mut gathered: IndexMap<_, Finding> = IndexMap::new();
    for finding in findings {
        let Place { source, start, .. } = &finding.place;
        let key = (
            source.path.clone(),
            *start,
            finding.rule,
            finding.why.clone(),
        );
        match gathered.get_mut(&key) {
            Some(first) => {
                // If one of the services has no profile, it always runs.
                match first.profiles.is_empty() || finding.profiles.is_empty() {
                    true => first.profiles.clear(),
                    false => first.profiles.extend(finding.profiles),
                }
                first.services.extend(finding.services);
            }
            None => {
                gathered.insert(key, finding);
            }
        }
    }
    gathered.sort_by(|a, _, b, _| a.cmp(b));
    let mut findings: Vec<Finding> = gathered.into_values().collect();
    for finding in &mut findings {
        finding.profiles.sort_unstable();
        finding.profiles.dedup();
    }
    findings
}

impl ComposeReport {
    /// The findings as they are printed, with their fixes as edits of lines.
    pub fn printed(&self) -> Vec<Printed> {
        let fixes = self.findings.iter();
        let fixes: Fixes<'_> = fixes.filter_map(|finding| finding.fix.as_ref()).collect();
        let findings = self.findings.iter();
        findings.map(|finding| finding.printed(&fixes)).collect()
    }
}

impl Finding {
    fn printed(&self, fixes: &Fixes<'_>) -> Printed {
        let Self {
            rule,
            severity,
            place,
            services,
            profiles,
            why,
            advice,
            fix,
            accept,
        } = self;
        Printed {
            rule: rule.name(),
            severity: *severity,
            file: place.source.name(),
            line: place.line(),
            column: place.column(),
            services: services.clone(),
            profiles: profiles.clone(),
            why: why.clone(),
            advice: advice.clone(),
            fix: fix.as_ref().map(|fix| Edit::new(fix, fixes)),
            accept: accept.clone(),
        }
    }

    /// The text of the file after the fix.
    pub fn fixed(&self) -> Option<String> {
        self.fix.as_ref().map(Fix::applied)
    }

    /// The file that the fix changes.
    pub fn fix_path(&self) -> Option<PathBuf> {
        self.fix.as_ref().map(|fix| fix.place.source.path.clone())
    }
}

impl Edit {
    /// The last line that it changes.
    pub fn last_line(&self) -> usize {
        match self.end_column {
            1 if self.end_line > self.line => self.end_line - 1,
            _ => self.end_line,
        }
    }

    fn new(fix: &Fix, fixes: &Fixes<'_>) -> Self {
        let Fix { place, text } = fix;
        let source = &place.source;
        Self {
            file: source.name(),
            line: place.line(),
            column: place.column(),
            end_line: source.line(place.end),
            end_column: source.column(place.end),
            text: text.clone(),
            corrected: fix::corrected(fix, fixes),
        }
    }
}
