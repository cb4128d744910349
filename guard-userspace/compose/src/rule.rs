//! The rules, and the severities of their findings.

use clap::ValueEnum;
use serde::Serialize;

/// The severity of a finding: how far an intruder gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Good to know
    Low,
    /// Worth a check: it may be intended
    Medium,
    /// An intruder gets in, or gets further
    High,
    /// An intruder gets in without a password, or out of the container
    Critical,
}

impl Severity {
    /// All severities, the highest first.
    pub const ALL: [Self; 4] = [Self::Critical, Self::High, Self::Medium, Self::Low];

    /// The name in JSON and text.
    pub fn name(self) -> &'static str {
        match self {
            Self::Low => "low",
            Self::Medium => "medium",
            Self::High => "high",
            Self::Critical => "critical",
        }
    }

    /// The next lower severity; the lowest stays.
    pub fn lower(self) -> Self {
        match self {
            Self::Critical => Self::High,
            Self::High => Self::Medium,
            Self::Medium | Self::Low => Self::Low,
        }
    }
}

/// A row for each rule. A released name never changes.
macro_rules! rules {
    ($($rule:ident $name:literal $summary:literal)*) => {
        /// A rule of the audit.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Rule { $($rule),* }

        impl Rule {
            /// All rules.
            pub const ALL: &[Self] = &[$(Self::$rule),*];

            /// The name in comments, JSON and text.
            pub fn name(self) -> &'static str {
                match self { $(Self::$rule => $name),* }
            }

            /// What the rule looks for, in one sentence.
            pub fn summary(self) -> &'static str {
                match self { $(Self::$rule => $summary),* }
            }
        }
    };
}

rules! {
    DangerousPort "dangerous-port"
        "A published port belongs to a service that should not be reached from outside"
    LoginOff "login-off"
        "A switch turns the login of a service off"
    PublishedBesideProxy "published-beside-proxy"
        "A port is published although a reverse proxy stands in front of the service"
    EveryAddress "every-address"
        "A port is published on every address of the host"
    PublicAddress "public-address"
        "A port is published on a public address of the host"
    Base60Port "base-60-port"
        "YAML 1.1 parsers read a port without quotes as a number in base 60"
    HostNetwork "host-network"
        "The container uses the host's network"
    HostNamespace "host-namespace"
        "The container uses the host's process or IPC namespace"
    DockerSocket "docker-socket"
        "The container has the socket of Docker or another container engine"
    HostFiles "host-files"
        "The container has the host's file system"
    Privileged "privileged"
        "The container is privileged"
    DangerousCapability "dangerous-capability"
        "The container has a capability that weakens its isolation"
    Unconfined "unconfined"
        "The container runs without seccomp, AppArmor or SELinux"
    SecretInEnvironment "secret-in-environment"
        "A secret is written in the environment"
    RunsAsRoot "runs-as-root"
        "The container runs as root, or as the user that its image sets"
}
