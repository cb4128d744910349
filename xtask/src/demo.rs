//! `cargo xtask demo`: a container that Docker publishes, a proxy in front of it, and guard's verdicts on real packets
//! to both.

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use comfy_table::{Table, presets::ASCII_MARKDOWN};
use lab::{
    docker::{CONTAINER_PORT, Docker},
    flood,
    guard::Guard,
    http::{HttpOutcome, get},
    interrupt,
    namespace::Namespace,
    process::{Daemon, run as run_command, wait_for},
    proxy::Proxy,
    topology::{FLOODER_V4, HOST_V4, INTERFACE, Lab, USER_V4},
};
use serde_json::json;

use crate::{build, setup};

/// The proxy's budget for each source, in packets a second.
const BUDGET: u64 = 500;

/// The flood: one packet per interval, and its duration.
const FLOOD_INTERVAL: Duration = Duration::from_micros(50);
const FLOOD: Duration = Duration::from_secs(5);

/// The number of requests by the second source during the flood.
const REQUESTS: u32 = 50;

pub fn run() -> Result<()> {
    let toolchain = setup::for_demo()?;
    let binary = build::guard(&toolchain, false)?;
    // SAFETY: no other thread runs yet. The lab reads it to find the guard.
    unsafe { std::env::set_var("GUARD_BINARY", binary) };
    show()
}

fn show() -> Result<()> {
    println!("\nTwo hosts are made: the internet, and a host with a container and a proxy.");
    let lab = Lab::new()?;
    let container = InvoiceServer::start(&lab)?;
    println!("{}", container.describe());
    let proxy = Proxy::start(&lab, &format!("127.0.0.1:{CONTAINER_PORT}"))?;
    println!("nginx stands in front of it on port 80, as the only intended way in.\n");
    wait_for(Duration::from_secs(10), || {
        let answer = get(&lab, USER_V4, HOST_V4, CONTAINER_PORT)?;
        ensure!(
            answer == HttpOutcome::Status(200),
            "the container answers {answer}"
        );
        Ok(())
    })?;

    let mut steps = Steps::new();
    let expected = HttpOutcome::Status(200);
    steps.add(&lab, "before", expected, |_| Ok("-".to_owned()))?;

    let guard = Guard::start(&lab, &container.policy("observe"))?;
    steps.add(&lab, "guard observes", expected, |_| {
        let would_drop =
            guard.packets(&[("reason", json!("closed_port")), ("would", json!("drop"))])?;
        let dropped = guard.packets(&[("verdict", json!("drop"))])?;
        ensure!(
            would_drop > 0 && dropped == 0,
            "{would_drop} would-drops, {dropped} drops"
        );
        Ok(format!(
            "1 connection ({would_drop} packets) would be dropped"
        ))
    })?;
    guard.remove()?;

    let guard = Guard::start(&lab, &container.policy("enforce"))?;
    steps.add(&lab, "guard enforces", HttpOutcome::TimedOut, |_| {
        let dropped =
            guard.packets(&[("reason", json!("closed_port")), ("verdict", json!("drop"))])?;
        ensure!(dropped > 0, "nothing was dropped");
        Ok(format!("{dropped} packets dropped: closed_port"))
    })?;
    println!("{}\n", steps.table);

    let FloodSummary {
        sent,
        dropped,
        answered,
    } = flood(&lab, &guard)?;
    let mut table = table(["flood, while the guard enforces", ""]);
    table.add_row([
        "the proxy's budget per source".to_owned(),
        format!("{BUDGET} packets a second"),
    ]);
    table.add_row([
        format!("packets that {FLOODER_V4} sent in {} s", FLOOD.as_secs()),
        sent.to_string(),
    ]);
    table.add_row([
        "dropped over its budget: packet_limit".to_owned(),
        dropped.to_string(),
    ]);
    table.add_row([
        format!("answers that {USER_V4} got meanwhile"),
        format!("{answered} of {REQUESTS}"),
    ]);
    println!("{table}\n");
    ensure!(answered == REQUESTS, "the second source lost answers");
    let allowance = BUDGET * (FLOOD.as_secs() + 1);
    ensure!(
        sent > 2 * allowance && dropped >= sent - 2 * allowance,
        "the flood was not limited to its budget of {allowance} packets"
    );

    println!(
        "The live counters (`guard counters`):\n{}",
        guard.run(&["counters"])?
    );
    println!("And `guard status`:\n{}", guard.run(&["status"])?);
    println!("{}", container.evidence(&lab)?);
    guard.remove()?;
    drop((proxy, container, lab));
    println!("The demo has removed everything that it made.");
    Ok(())
}

/// One row for each step: a client's results on both ways, and guard's counters.
struct Steps {
    table: Table,
}

impl Steps {
    fn new() -> Self {
        let direct = format!("direct, port {CONTAINER_PORT}");
        Self {
            table: table(["", &direct, "proxy, port 80", "the guard counted"]),
        }
    }

    /// Sends a request on both ways. The proxy must answer, and the direct way as expected.
    fn add(
        &mut self,
        lab: &Lab,
        name: &str,
        expected: HttpOutcome,
        counted: impl FnOnce(&Lab) -> Result<String>,
    ) -> Result<()> {
        interrupt::check()?;
        let direct = get(lab, USER_V4, HOST_V4, CONTAINER_PORT)?;
        let proxied = get(lab, USER_V4, HOST_V4, 80)?;
        let counted = counted(lab)?;
        let row = [
            name.to_owned(),
            direct.to_string(),
            proxied.to_string(),
            counted,
        ];
        self.table.add_row(row);
        ensure!(
            direct == expected && proxied == HttpOutcome::Status(200),
            "{name}: the direct way answers {direct} instead of {expected}, the proxy {proxied}"
        );
        Ok(())
    }
}

fn table<const COLUMNS: usize>(header: [&str; COLUMNS]) -> Table {
    let mut table = Table::new();
    table.load_style(ASCII_MARKDOWN);
    table.set_header(header);
    table
}

struct FloodSummary {
    sent: u64,
    dropped: u64,
    answered: u32,
}

/// One source floods the proxy with SYNs while another requests invoices.
fn flood(lab: &Lab, guard: &Guard) -> Result<FloodSummary> {
    let over_budget = [
        ("service", json!("proxy")),
        ("reason", json!("packet_limit")),
    ];
    let before = guard.packets(&over_budget)?;
    let count = u64::try_from(FLOOD.as_micros() / FLOOD_INTERVAL.as_micros())?;
    let flood = flood::Flood::start(lab, FLOODER_V4, 80, FLOOD_INTERVAL, count)?;
    let start = Instant::now();
    let mut answered = 0;
    for n in 0..REQUESTS {
        let due = FLOOD * n / REQUESTS;
        thread::sleep(due.saturating_sub(start.elapsed()));
        interrupt::check()?;
        if get(lab, USER_V4, HOST_V4, 80)? == HttpOutcome::Status(200) {
            answered += 1;
        }
    }
    thread::sleep(FLOOD.saturating_sub(start.elapsed()));
    Ok(FloodSummary {
        sent: flood.stop()?,
        dropped: guard.packets(&over_budget)? - before,
        answered,
    })
}

/// The server of the invoices on port 8000, behind a destination NAT.
enum InvoiceServer {
    Docker(Docker),
    /// If Docker cannot be started here: a namespace with NAT rules of its own.
    Namespace {
        _server: Daemon,
        _namespace: Namespace,
    },
}

impl InvoiceServer {
    fn start(lab: &Lab) -> Result<Self> {
        if setup::has_docker() {
            match Self::start_docker(lab) {
                Ok(container) => return Ok(container),
                Err(error) => println!("Docker does not start here: {error:#}"),
            }
        }
        Self::start_namespace(lab)
    }

    fn start_docker(lab: &Lab) -> Result<Self> {
        let docker = Docker::start(lab)?;
        docker.run_invoices("invoices", &["8000:8000"])?;
        Ok(Self::Docker(docker))
    }

    fn start_namespace(lab: &Lab) -> Result<Self> {
        let namespace = Namespace::new(format!("{}-container", lab.name()))?;
        let host = &lab.host;
        host.ip(&format!(
            "link add bridge type veth peer name eth0 netns {}",
            namespace.name()
        ))?;
        host.ip("addr add 172.31.0.1/24 dev bridge")?;
        host.ip("link set bridge up")?;
        namespace.ip("addr add 172.31.0.2/24 dev eth0")?;
        namespace.ip("link set eth0 up")?;
        namespace.ip("route add 198.51.100.0/24 via 172.31.0.1")?;
        run_command(
            host.command("sysctl")
                .args(["-qw", "net/ipv4/ip_forward=1"]),
        )?;
        run_command(
            host.command("sysctl")
                .args(["-qw", "net/ipv4/conf/all/route_localnet=1"]),
        )?;
        let rules = "table ip lab {
            chain prerouting {
                type nat hook prerouting priority dstnat;
                iif != \"bridge\" tcp dport 8000 dnat to 172.31.0.2:8000
            }
            chain output {
                type nat hook output priority dstnat;
                oif \"lo\" tcp dport 8000 dnat to 172.31.0.2:8000
            }
            chain postrouting {
                type nat hook postrouting priority srcnat;
                oif \"bridge\" ip saddr 127.0.0.0/8 masquerade
            }
        }";
        run_command(host.command("nft").arg(rules))?;
        let root = lab.folder().join("container");
        lab::docker::make_invoices_root(&root)?;
        let [program, arguments @ ..] = &lab::docker::invoices_command(&root.display().to_string());
        let server = Daemon::start(
            namespace.command(program).args(arguments),
            &lab.folder().join("container.log"),
        )?;
        Ok(Self::Namespace {
            _server: server,
            _namespace: namespace,
        })
    }

    fn describe(&self) -> &'static str {
        match self {
            Self::Docker(_) => {
                "A real Docker runs a container that serves invoices: `docker run -p 8000:8000`."
            }
            Self::Namespace { .. } => {
                "Without Docker: a namespace serves invoices behind a DNAT rule of nftables on port \
                 8000."
            }
        }
    }

    /// The proxy is listed; the container's port is not.
    fn policy(&self, mode: &str) -> String {
        // Without Docker no published ports are known, so the scope `host` closes every port that is not listed.
        let (scope, socket) = match self {
            Self::Docker(docker) => ("containers", docker.socket().display().to_string()),
            Self::Namespace { .. } => ("host", String::new()),
        };
        format!(
            "mode = \"{mode}\"
             interfaces = [\"{INTERFACE}\"]
             scope = \"{scope}\"

             [docker]
             socket = \"{socket}\"

             [[service]]
             name = \"proxy\"
             ports = [\"tcp/80\"]
             from = [\"any\"]
             [service.limit]
             packets = \"{BUDGET}/s\"\n"
        )
    }

    /// Shows that the NAT rule is still there: guard decides before it.
    fn evidence(&self, lab: &Lab) -> Result<String> {
        let rules = match self {
            Self::Docker(_) => run_command(
                lab.host
                    .command("iptables")
                    .args(["-t", "nat", "-S", "DOCKER"]),
            )?,
            Self::Namespace { .. } => run_command(lab.host.command("nft").args([
                "list",
                "chain",
                "ip",
                "lab",
                "prerouting",
            ]))?,
        };
        let rule = rules.lines().find(|line| line.contains("8000"));
        let rule = rule.context("the NAT rule for port 8000 is gone")?;
        Ok(format!(
            "The NAT rule that bypassed the firewall is still there:\n  {}\n",
            rule.trim()
        ))
    }
}
