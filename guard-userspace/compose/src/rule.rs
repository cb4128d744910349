//! The rules, and how grave what they find is.

use clap::ValueEnum;
use serde::Serialize;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Good to know
    Low,
    /// To be looked at: it may be meant
    Medium,
    /// An intruder gets further, or comes in
    High,
    /// An intruder gets in without a password, or out of the container
    Critical,
}

impl Severity {
    pub const ALL: [Self; 4] = [Self::Critical, Self::High, Self::Medium, Self::Low];

    pub fn name(self) -> &'static str {
        match self {
            Self::Low => "low",
            Self::Medium => "medium",
            Self::High => "high",
            Self::Critical => "critical",
        }
    }

    pub fn milder(self) -> Self {
        match self {
            Self::Critical => Self::High,
            Self::High => Self::Medium,
            Self::Medium | Self::Low => Self::Low,
        }
    }
}

/// A row for each rule. A name, once released, is kept.
macro_rules! rules {
    ($($rule:ident $name:literal $summary:literal)*) => {
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Rule { $($rule),* }

        impl Rule {
            pub const ALL: &[Self] = &[$(Self::$rule),*];

            pub fn name(self) -> &'static str {
                match self { $(Self::$rule => $name),* }
            }

            pub fn summary(self) -> &'static str {
                match self { $(Self::$rule => $summary),* }
            }
        }
    };
}

rules! {
    DangerousPort "dangerous-port"
        "A port is published that is known for a service which should not be reached from outside"
    PublishedBesideProxy "published-beside-proxy"
        "A port is published although a reverse proxy stands in front of the service"
    EveryAddress "every-address"
        "A port is published on every address of the host"
    PublicAddress "public-address"
        "A port is published on a public address of the host"
    Base60Port "base-60-port"
        "A port without quotes is a number in base 60 for readers of YAML 1.1"
    HostNetwork "host-network"
        "The container has the host's network"
    HostNamespace "host-namespace"
        "The container has the host's processes or memory"
    DockerSocket "docker-socket"
        "The container has the socket of Docker or another container engine"
    HostFiles "host-files"
        "The container has the host's file system"
    Privileged "privileged"
        "The container is privileged"
    DangerousCapability "dangerous-capability"
        "The container has a capability that weakens its border"
    Unconfined "unconfined"
        "The container runs without seccomp, AppArmor or SELinux"
    SecretInEnvironment "secret-in-environment"
        "A secret is written in the environment"
    RunsAsRoot "runs-as-root"
        "The container runs as root, or as whom its image says"
}
