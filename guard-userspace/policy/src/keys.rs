//! The keys of a policy file, section by section, for errors about keys and types. A test compares them with the types
//! of [`super::file`], which read the file.

use super::rate::Unit;

/// Keys that stand together.
#[derive(Debug)]
pub struct KeySection {
    /// What its budgets or keys are for, if a key could stand in more than one section.
    pub purpose: &'static str,
    pub keys: &'static [Key],
    /// The words of other tools, each with the key to write instead.
    pub synonyms: &'static [(&'static [&'static str], &'static str)],
}

#[derive(Debug)]
pub struct Key {
    pub name: &'static str,
    pub kind: Kind,
    pub required: bool,
}

/// What the value of a key may be.
#[derive(Clone, Copy, Debug)]
pub enum Kind {
    /// A text in quotes, such as this one.
    Text(&'static str),
    /// A list of texts in quotes, such as this one.
    Texts(&'static str),
    /// A list of ports.
    Ports,
    /// A whole number, such as this one.
    Number(&'static str),
    Flag,
    Moment,
    /// One of these texts.
    Choice(&'static [&'static str]),
    Budget(Unit),
    /// The rate of a budget.
    Rate(Unit),
    /// The burst of a budget.
    Burst(Unit),
    /// A section that stands once.
    Table(&'static KeySection),
    /// A section that may stand several times, in two brackets.
    Tables(&'static KeySection),
}

const fn key(name: &'static str, kind: Kind) -> Key {
    Key {
        name,
        kind,
        required: false,
    }
}

const fn required(name: &'static str, kind: Kind) -> Key {
    Key {
        name,
        kind,
        required: true,
    }
}

const MODES: &[&str] = &["off", "observe", "enforce"];

/// The top of the file, before the first section.
pub const TOP: KeySection = KeySection {
    purpose: "",
    keys: &[
        key("mode", Kind::Choice(MODES)),
        key("interfaces", Kind::Texts("eth0")),
        key("scope", Kind::Choice(&["containers", "host"])),
        key("cells", Kind::Number("524288")),
        key("on_exit", Kind::Choice(&["keep", "detach"])),
        key("docker", Kind::Table(&DOCKER)),
        key("web", Kind::Table(&WEB)),
        key("limits", Kind::Table(&LIMITS)),
        key("service", Kind::Tables(&SERVICE)),
        key("source", Kind::Tables(&SOURCE)),
    ],
    synonyms: &[
        (&["enforce", "observe", "dry_run", "enabled"], "mode"),
        (
            &["iface", "ifaces", "device", "devices", "nic", "nics"],
            "interfaces",
        ),
        (&["rule", "rules", "proxy"], "service"),
        (
            &[
                "allow",
                "allowlist",
                "whitelist",
                "deny",
                "denylist",
                "blacklist",
                "blocklist",
            ],
            "source",
        ),
        (&["metrics", "prometheus", "dashboard", "http"], "web"),
        (&["podman", "runtime", "containerd"], "docker"),
    ],
};

const DOCKER: KeySection = KeySection {
    purpose: "",
    keys: &[
        key("socket", Kind::Text("/var/run/docker.sock")),
        key("labels", Kind::Choice(&["narrow", "off", "full"])),
    ],
    synonyms: &[(&["path", "host", "url", "endpoint"], "socket")],
};

const WEB: KeySection = KeySection {
    purpose: "",
    keys: &[key("listen", Kind::Text("127.0.0.1:9469"))],
    synonyms: &[(&["address", "bind", "port", "addr"], "listen")],
};

const LIMITS: KeySection = KeySection {
    purpose: "each source, at ports that no service lists",
    keys: &[
        key("packets", Kind::Budget(Unit::Packets)),
        key("bytes", Kind::Budget(Unit::Bytes)),
        key("connections", Kind::Budget(Unit::Connections)),
        key("per", Kind::Table(&PER)),
        key("total", Kind::Table(&TOTAL)),
    ],
    synonyms: BUDGET_SYNONYMS,
};

const LIMIT: KeySection = KeySection {
    purpose: "each source",
    keys: &[
        key("packets", Kind::Budget(Unit::Packets)),
        key("bytes", Kind::Budget(Unit::Bytes)),
        key("connections", Kind::Budget(Unit::Connections)),
        key("per", Kind::Table(&PER)),
    ],
    synonyms: BUDGET_SYNONYMS,
};

const TOTAL: KeySection = KeySection {
    purpose: "all sources together",
    keys: &[
        key("packets", Kind::Budget(Unit::Packets)),
        key("bytes", Kind::Budget(Unit::Bytes)),
        key("connections", Kind::Budget(Unit::Connections)),
    ],
    synonyms: BUDGET_SYNONYMS,
};

const BUDGET_SYNONYMS: &[(&[&str], &str)] = &[
    (&["rate", "pps", "requests", "packet_rate"], "packets"),
    (&["bandwidth", "bps", "bits", "traffic"], "bytes"),
    (
        &["conns", "conn", "syn", "syns", "connection_rate"],
        "connections",
    ),
    (&["prefix", "mask", "group"], "per"),
];

const PER: KeySection = KeySection {
    purpose: "",
    keys: &[
        key("ipv4", Kind::Number("32")),
        key("ipv6", Kind::Number("64")),
    ],
    synonyms: &[(&["v4", "ip4"], "ipv4"), (&["v6", "ip6"], "ipv6")],
};

const SERVICE: KeySection = KeySection {
    purpose: "",
    keys: &[
        required("name", Kind::Text("proxy")),
        required("ports", Kind::Ports),
        key("address", Kind::Text("203.0.113.5")),
        key("from", Kind::Texts("198.51.100.0/24")),
        key("mode", Kind::Choice(MODES)),
        key("limit", Kind::Table(&LIMIT)),
        key("total", Kind::Table(&TOTAL)),
        key("flood", Kind::Table(&FLOOD)),
    ],
    synonyms: &[
        (
            &[
                "source",
                "sources",
                "allow",
                "allowed",
                "allow_from",
                "cidrs",
                "cidr",
                "whitelist",
            ],
            "from",
        ),
        (&["listen", "bind", "ip", "host", "destination"], "address"),
        (&["protocol", "proto", "listen_port", "dport"], "ports"),
        (&["enabled", "enforce", "observe"], "mode"),
        (&["rate", "rate_limit", "ratelimit", "budget"], "limit"),
        (&["max", "sum"], "total"),
    ],
};

const FLOOD: KeySection = KeySection {
    purpose: "floods of requests for TCP connections",
    keys: &[
        key("protect", Kind::Choice(&["auto", "off"])),
        key("attempts", Kind::Budget(Unit::Connections)),
        key("lane", Kind::Budget(Unit::Connections)),
        key("replies", Kind::Budget(Unit::Packets)),
        key("level2", Kind::Number("16")),
    ],
    synonyms: &[
        (&["mode", "enabled", "synproxy", "syncookies"], "protect"),
        (&["threshold", "rate", "connections", "syn"], "attempts"),
        (&["challenges", "answers"], "replies"),
    ],
};

const SOURCE: KeySection = KeySection {
    purpose: "",
    keys: &[
        required("name", Kind::Text("office")),
        required("cidrs", Kind::Texts("198.51.100.0/24")),
        key("factor", Kind::Number("20")),
        key("exempt", Kind::Flag),
        key("deny", Kind::Flag),
        key("owner", Kind::Text("ana")),
        key("reason", Kind::Text("head office NAT")),
        key("expires", Kind::Moment),
    ],
    synonyms: &[
        (
            &[
                "address",
                "addresses",
                "ip",
                "ips",
                "prefix",
                "prefixes",
                "range",
                "subnet",
                "subnets",
                "networks",
            ],
            "cidrs",
        ),
        (&["allow", "trusted", "unlimited", "whitelist"], "exempt"),
        (&["block", "ban", "drop", "blacklist"], "deny"),
        (&["comment", "description", "note", "why"], "reason"),
        (&["until", "expiry", "ttl", "ends"], "expires"),
        (&["multiplier", "times", "weight"], "factor"),
        (&["contact", "who"], "owner"),
    ],
};

/// `{ rate = "50/s", burst = 200 }`, by what it counts.
pub const fn budget(unit: Unit) -> &'static KeySection {
    match unit {
        Unit::Packets => &PACKETS,
        Unit::Connections => &CONNECTIONS,
        Unit::Bytes => &BYTES,
    }
}

const BURST_SYNONYMS: &[(&[&str], &str)] = &[
    (&["limit", "packets", "count", "per_second"], "rate"),
    (&["bucket", "size", "max", "peak"], "burst"),
];

const PACKETS: KeySection = KeySection {
    purpose: "",
    keys: &[
        required("rate", Kind::Rate(Unit::Packets)),
        key("burst", Kind::Burst(Unit::Packets)),
    ],
    synonyms: BURST_SYNONYMS,
};

const CONNECTIONS: KeySection = KeySection {
    purpose: "",
    keys: &[
        required("rate", Kind::Rate(Unit::Connections)),
        key("burst", Kind::Burst(Unit::Connections)),
    ],
    synonyms: BURST_SYNONYMS,
};

const BYTES: KeySection = KeySection {
    purpose: "",
    keys: &[
        required("rate", Kind::Rate(Unit::Bytes)),
        key("burst", Kind::Burst(Unit::Bytes)),
    ],
    synonyms: BURST_SYNONYMS,
};

impl KeySection {
    pub fn key(&self, name: &str) -> Option<&'static Key> {
        self.keys.iter().find(|key| key.name == name)
    }

    /// The keys as a policy writes them: `[[service]]` for sections that stand in brackets.
    pub fn written(&self) -> Vec<String> {
        self.keys.iter().map(Key::written).collect()
    }
}

impl Key {
    /// The key at the top of a file, or a section's header.
    pub fn written(&self) -> String {
        match self.kind {
            Kind::Tables(_) => format!("[[{}]]", self.name),
            _ => format!("`{}`", self.name),
        }
    }
}
